//! URLs of registries and ranges of addresses, as Swarm wrote them. Pure.

use std::{fmt, net::Ipv6Addr, str::FromStr, time::Duration};

use model::settings::parse_time;

/// Most addresses that a URL, a file or a registry may yield.
pub const MAX_ADDRESSES: usize = 4096;
/// Longest URL, octets.
const MAX_URL: usize = 2048;
/// Managers' port, where none is said.
const PORT: u16 = 2377;
/// Time to live in a registry, where none is said (Swarm v1's).
const TTL: Duration = Duration::from_secs(180);

/// Why a text is no URL of a registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {why}")]
pub struct BadUrl {
    /// The offending part, cut to 80 characters.
    pub text: String,
    /// Why.
    pub why: &'static str,
    /// A good one.
    pub hint: &'static str,
}

pub(super) fn bad(text: &str, why: &'static str, hint: &'static str) -> BadUrl {
    BadUrl {
        text: text.chars().take(80).collect(),
        why,
        hint,
    }
}

/// Kind of registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// The URL itself.
    Nodes,
    /// A file.
    File,
    /// Names.
    Dns,
    /// A manager.
    Token,
    /// etcd v3.
    Etcd,
    /// Consul.
    Consul,
    /// ZooKeeper.
    Zk,
}

const SCHEMES: [(&str, Scheme); 7] = [
    ("nodes", Scheme::Nodes),
    ("file", Scheme::File),
    ("dns", Scheme::Dns),
    ("token", Scheme::Token),
    ("etcd", Scheme::Etcd),
    ("consul", Scheme::Consul),
    ("zk", Scheme::Zk),
];

impl Scheme {
    /// Port of the registry's hosts, where none is said.
    pub const fn port(self) -> u16 {
        match self {
            Scheme::Etcd => 2379,
            Scheme::Consul => 8500,
            Scheme::Zk => 2181,
            Scheme::Nodes | Scheme::File | Scheme::Dns | Scheme::Token => PORT,
        }
    }
}

/// A registry's URL: `scheme://host[:port],host.../path?ttl=30s`.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// Kind.
    pub scheme: Scheme,
    /// Registry's hosts with ports; for `nodes` all that is said, for `file` none.
    pub hosts: Vec<String>,
    /// A port was said (`dns`).
    pub port_said: bool,
    /// Path, without slashes at its ends; of `file` as it is.
    pub path: String,
    /// How long an announcement holds.
    pub ttl: Duration,
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

impl fmt::Display for Url {
    /// As people may see it: a token's path is its secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SCHEMES.iter().find(|(_, s)| *s == self.scheme).map_or("", |(n, _)| n);
        let hosts = self.hosts.join(",");
        match (self.scheme, self.path.as_str()) {
            (Scheme::Token, _) => write!(f, "{name}://{hosts}/..."),
            (Scheme::File, path) => write!(f, "{name}://{path}"),
            (_, "") => write!(f, "{name}://{hosts}"),
            (_, path) => write!(f, "{name}://{hosts}/{path}"),
        }
    }
}

impl FromStr for Url {
    type Err = BadUrl;
    fn from_str(s: &str) -> Result<Url, BadUrl> {
        const HINT: &str = "nodes://, file://, dns://, token://, etcd://, consul:// or zk://";
        if s.len() > MAX_URL || s.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(bad(s, "is no URL: it is too long, or has blanks", HINT));
        }
        let (name, rest) = s.split_once("://").unwrap_or(("nodes", s));
        let scheme = SCHEMES.iter().find(|(n, _)| *n == name).map(|(_, s)| *s);
        let scheme = scheme.ok_or_else(|| bad(name, "is no way to discover managers", HINT))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let ttl = match query.split_once('=') {
            None if query.is_empty() => TTL,
            Some(("ttl", t)) => parse_time(t)
                .map(Duration::from_millis)
                .filter(|t| (Duration::from_secs(3)..=Duration::from_secs(86_400)).contains(t))
                .ok_or_else(|| bad(t, "is no time to live", "ttl=3s to ttl=24h"))?,
            _ => return Err(bad(query, "is not known behind the question mark", "?ttl=30s")),
        };
        if scheme == Scheme::File {
            return match rest.starts_with('/') {
                true => Ok(Url {
                    scheme,
                    hosts: Vec::new(),
                    port_said: false,
                    path: rest.to_owned(),
                    ttl,
                }),
                false => Err(bad(rest, "is no absolute path", "file:///etc/netd/managers")),
            };
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        if scheme == Scheme::Nodes {
            let hosts = ranges(hosts)?;
            return Ok(Url {
                scheme,
                hosts,
                port_said: true,
                path: String::new(),
                ttl,
            });
        }
        let good = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
        if !path.chars().all(good) || path.split('/').any(|p| p == "." || p == "..") {
            return Err(bad(
                path,
                "is no path of letters, digits and -._~/",
                "zk://127.0.0.1/production",
            ));
        }
        let hosts: Vec<(String, bool)> = hosts
            .split(',')
            .map(|h| with_port(h, scheme.port()))
            .collect::<Result<_, _>>()?;
        Ok(Url {
            scheme,
            port_said: hosts.iter().any(|(_, said)| *said),
            hosts: hosts.into_iter().map(|(h, _)| h).collect(),
            path: path.to_owned(),
            ttl,
        })
    }
}

/// `host[:port]` with a port: an IPv4 address, a name, or an IPv6 address (in brackets when a port follows). Tells whether
/// the port was said.
fn with_port(s: &str, default: u16) -> Result<(String, bool), BadUrl> {
    let wrong = |why| bad(s, why, "198.51.100.1:2377, [2001:db8::1]:2377 or host.example.net");
    if let Ok(ip) = s.parse::<Ipv6Addr>() {
        return Ok((format!("[{ip}]:{default}"), false));
    }
    let (host, port) = match s.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((ip, after)) => {
            let ip: Ipv6Addr = ip.parse().map_err(|_| wrong("has no IPv6 address in its brackets"))?;
            let port = match after {
                "" => None,
                _ => Some(
                    after
                        .strip_prefix(':')
                        .ok_or_else(|| wrong("has something behind its bracket"))?,
                ),
            };
            (format!("[{ip}]"), port)
        }
        None => match s.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (s.to_owned(), None),
        },
    };
    let label =
        |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !host.starts_with('[') && (host.len() > 253 || !host.split('.').all(label)) {
        return Err(wrong("is neither an address nor a name"));
    }
    let numbers = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if numbers && host.parse::<std::net::Ipv4Addr>().is_err() {
        return Err(wrong("is no IPv4 address"));
    }
    match port {
        None => Ok((format!("{host}:{default}"), false)),
        Some(p) => match p.parse::<u16>() {
            Ok(p) if p > 0 => Ok((format!("{host}:{p}"), true)),
            _ => Err(wrong("has no port between 1 and 65535")),
        },
    }
}

/// A manager's address with its port.
pub(super) fn address(s: &str) -> Result<String, BadUrl> {
    with_port(s, PORT).map(|(a, _)| a)
}

/// Addresses of one entry: each `[a:b]` in it stands for the numbers from `a` to `b`.
pub fn addresses(entry: &str) -> Result<Vec<String>, BadUrl> {
    let hint = "10.0.0.[1:9]:2377";
    let Some((before, from, to, after)) = range(entry) else {
        return Ok(vec![address(entry)?]);
    };
    if from > to || to - from >= MAX_ADDRESSES {
        return Err(bad(entry, "has a range that is empty or too wide", hint));
    }
    let mut out = Vec::new();
    for n in from..=to {
        out.extend(addresses(&format!("{before}{n}{after}"))?);
        if out.len() > MAX_ADDRESSES {
            return Err(bad(entry, "stands for more than 4096 addresses", hint));
        }
    }
    Ok(out)
}

/// The first `[a:b]` of two decimal numbers. An IPv6 address in brackets has more colons.
fn range(s: &str) -> Option<(&str, usize, usize, &str)> {
    let mut from = 0;
    while let Some(open) = s.get(from..)?.find('[').map(|i| i + from) {
        let close = s.get(open..)?.find(']')? + open;
        let number = |t: &str| {
            let digits = (1..=5).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| t.parse::<usize>().ok()).flatten()
        };
        if let Some((a, b)) = s.get(open + 1..close)?.split_once(':')
            && let (Some(a), Some(b)) = (number(a), number(b))
        {
            return Some((s.get(..open)?, a, b, s.get(close + 1..)?));
        }
        from = close + 1;
    }
    None
}

/// Addresses of entries with commas between them.
pub fn ranges(text: &str) -> Result<Vec<String>, BadUrl> {
    let mut out = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        out.extend(addresses(entry)?);
        if out.len() > MAX_ADDRESSES {
            return Err(bad(text, "stands for more than 4096 addresses", "fewer of them"));
        }
    }
    Ok(out)
}
