//! Names of ports for SRV (`_http._tcp.web`), from IANA's "Service Name and Transport Protocol Port Number Registry".

/// The usual ones; any other port is asked for by its number.
const NAMES: &[(&str, u16)] = &[
    ("amqp", 5672),
    ("amqps", 5671),
    ("bgp", 179),
    ("coap", 5683),
    ("domain", 53),
    ("domain-s", 853),
    ("epmd", 4369),
    ("etcd-client", 2379),
    ("ftp", 21),
    ("git", 9418),
    ("http", 80),
    ("http-alt", 8080),
    ("https", 443),
    ("imap", 143),
    ("imaps", 993),
    ("ipp", 631),
    ("kerberos", 88),
    ("ldap", 389),
    ("ldaps", 636),
    ("memcache", 11211),
    ("mqtt", 1883),
    ("ms-sql-s", 1433),
    ("ms-wbt-server", 3389),
    ("mysql", 3306),
    ("nfs", 2049),
    ("ntp", 123),
    ("pop3", 110),
    ("pop3s", 995),
    ("postgresql", 5432),
    ("radius", 1812),
    ("redis", 6379),
    ("rsync", 873),
    ("rtsp", 554),
    ("secure-mqtt", 8883),
    ("sip", 5060),
    ("sips", 5061),
    ("smtp", 25),
    ("snmp", 161),
    ("ssh", 22),
    ("stun", 3478),
    ("submission", 587),
    ("submissions", 465),
    ("syslog", 514),
    ("telnet", 23),
    ("tftp", 69),
    ("turn", 3478),
    ("xmpp-client", 5222),
    ("xmpp-server", 5269),
];

/// The port that a label (without its underscore, in lower case) names: a number or a registered name.
pub(crate) fn port(label: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(label).ok()?;
    if let Ok(at) = NAMES.binary_search_by(|(name, _)| (*name).cmp(text)) {
        return NAMES.get(at).map(|(_, port)| *port);
    }
    number(label).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)
}

/// A decimal number without sign and leading zeros.
pub(crate) fn number(label: &[u8]) -> Option<u32> {
    if !label.iter().all(u8::is_ascii_digit) || (label.len() > 1 && label.first() == Some(&b'0')) {
        return None;
    }
    std::str::from_utf8(label).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert!(NAMES.is_sorted_by(|a, b| a.0 < b.0));
        let table: &[(&str, Option<u16>)] = &[
            ("http", Some(80)),
            ("8080", Some(8080)),
            ("080", None),
            ("0", None),
            ("65536", None),
            ("+80", None),
            ("", None),
            ("nonesuch", None),
        ];
        for (label, expected) in table {
            assert_eq!(port(label.as_bytes()), *expected, "{label}");
        }
    }
}
