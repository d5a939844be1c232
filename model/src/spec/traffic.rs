//! What becomes of a service's traffic on its way: its source, who may send it, how long a flow is remembered.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::ids::BadValue;

/// What a service's backends see as the source of what comes by a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SourceIp {
    /// The client.
    #[default]
    Preserve,
    /// The node that the client asked: for backends that answer known addresses alone. Nodes whose data path is eBPF do
    /// not have it.
    Masquerade,
}

impl SourceIp {
    /// As it is written.
    pub const fn word(self) -> &'static str {
        match self {
            SourceIp::Preserve => "preserve",
            SourceIp::Masquerade => "masquerade",
        }
    }
}

impl fmt::Display for SourceIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for SourceIp {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        let bad = |why| Err(BadValue::new("source address", s, why, "--source-ip preserve"));
        match s {
            "preserve" => Ok(SourceIp::Preserve),
            "masquerade" => Ok(SourceIp::Masquerade),
            // CONTRACTS 9.
            "direct" => bad(
                "is not done: a task's node would answer with the address of the node that was asked, which networks with \
                 reverse path filters, clouds and address translators drop, and nothing finds out yet whether this \
                 network lets it pass; nor can direct routing lead a port to another one",
            ),
            _ => bad("is neither preserve nor masquerade"),
        }
    }
}

impl From<SourceIp> for String {
    fn from(s: SourceIp) -> String {
        s.word().to_owned()
    }
}

impl TryFrom<String> for SourceIp {
    type Error = BadValue;
    fn try_from(s: String) -> Result<Self, BadValue> {
        s.parse()
    }
}

/// How long a flow of a service is remembered without a packet, seconds, 1 to [`Timeouts::MAX`]; none: [`Kept::USUAL`].
/// A network has one set of them, so there the longest of its services' counts ([`Timeouts::kept`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// An established TCP connection.
    pub tcp_s: Option<u32>,
    /// A TCP connection after its first FIN.
    pub tcp_fin_s: Option<u32>,
    /// UDP.
    pub udp_s: Option<u32>,
}

impl Timeouts {
    /// 24 days: IPVS takes what fits into 31 bits at 1,000 ticks a second (net/netfilter/ipvs/ip_vs_ctl.c,
    /// `ip_vs_set_timeout`).
    pub const MAX: u32 = 24 * 24 * 3600;

    /// What is kept where these meet: of each the longest, so that nobody's flows end before they were promised to.
    pub fn kept<'t>(all: impl IntoIterator<Item = &'t Timeouts>) -> Kept {
        let usual = Kept::USUAL;
        let each = all.into_iter().map(|t| Kept {
            tcp_s: t.tcp_s.unwrap_or(usual.tcp_s),
            tcp_fin_s: t.tcp_fin_s.unwrap_or(usual.tcp_fin_s),
            udp_s: t.udp_s.unwrap_or(usual.udp_s),
        });
        let longest = each.reduce(|a, b| Kept {
            tcp_s: a.tcp_s.max(b.tcp_s),
            tcp_fin_s: a.tcp_fin_s.max(b.tcp_fin_s),
            udp_s: a.udp_s.max(b.udp_s),
        });
        longest.unwrap_or(usual)
    }

    /// Whether all are such as a data path can have.
    pub fn fit(&self) -> bool {
        let all = [self.tcp_s, self.tcp_fin_s, self.udp_s];
        all.into_iter().flatten().all(|s| (1..=Timeouts::MAX).contains(&s))
    }
}

/// How long flows without a packet are remembered on a network, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Kept {
    /// Established TCP connections.
    pub tcp_s: u32,
    /// TCP connections after their first FIN.
    pub tcp_fin_s: u32,
    /// UDP.
    pub udp_s: u32,
}

impl Kept {
    /// TCP: what the Internet asks of who translates addresses, so that the keepalives of an idle connection, each 2 hours,
    /// come in time (RFC 5382, REQ-5). UDP: RFC 4787, REQ-5. After FIN: the kernel's own.
    pub const USUAL: Kept = Kept {
        tcp_s: 2 * 3600 + 4 * 60,
        tcp_fin_s: 2 * 60,
        udp_s: 5 * 60,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for s in [SourceIp::Preserve, SourceIp::Masquerade] {
            assert_eq!(s.to_string().parse(), Ok(s));
            let json = serde_json::to_string(&s).unwrap();
            assert_eq!(json, format!("\"{s}\""));
            assert_eq!(serde_json::from_str::<SourceIp>(&json).unwrap(), s);
        }
        let no = "snat".parse::<SourceIp>().unwrap_err().to_string();
        assert!(no.contains("neither preserve nor masquerade"), "{no}");
    }

    #[test]
    fn direct_is_refused_with_its_reason_and_a_way_out() {
        for no in [
            "direct".parse::<SourceIp>().unwrap_err().to_string(),
            serde_json::from_str::<SourceIp>("\"direct\"").unwrap_err().to_string(),
        ] {
            for word in ["reverse path", "lead a port to another", "try: --source-ip preserve"] {
                assert!(no.contains(word), "{no}");
            }
        }
    }

    #[test]
    fn the_longest_counts_and_who_says_nothing_keeps_the_usual() {
        let of = |tcp_s, udp_s| Timeouts {
            tcp_s,
            udp_s,
            tcp_fin_s: None,
        };
        assert_eq!(Timeouts::kept([]), Kept::USUAL);
        let kept = Timeouts::kept(&[of(Some(60), Some(30)), of(Some(90), Some(20))]);
        assert_eq!((kept.tcp_s, kept.tcp_fin_s, kept.udp_s), (90, 120, 30));
        let kept = Timeouts::kept(&[of(Some(60), Some(3600)), of(None, None)]);
        assert_eq!((kept.tcp_s, kept.udp_s), (7440, 3600));
        assert!(of(Some(1), Some(Timeouts::MAX)).fit());
        assert!(!of(Some(0), None).fit() && !of(None, Some(Timeouts::MAX + 1)).fit());
    }
}
