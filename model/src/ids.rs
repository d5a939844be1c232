//! Ids and names that reject bad values at construction.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A value that is not what it should be; the text says what, why and what to try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} {why}; try: {hint}")]
pub struct BadValue {
    /// What was being read, e.g. `service name`.
    pub what: &'static str,
    /// The offending text, cut to 80 characters.
    pub value: String,
    /// Why it was refused.
    pub why: &'static str,
    /// An example of a good value or command.
    pub hint: &'static str,
}

impl BadValue {
    /// A refusal of `value`.
    pub fn new(what: &'static str, value: &str, why: &'static str, hint: &'static str) -> Self {
        BadValue {
            what,
            value: value.chars().take(80).collect(),
            why,
            hint,
        }
    }
}

/// A node's id: a number given out by the log, never used again, written `n1`. Its id in Raft is another
/// one (`intent::Node::raft`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        s.strip_prefix('n')
            .and_then(|d| d.parse::<u64>().ok())
            .filter(|n| *n > 0)
            .map(NodeId)
            .ok_or_else(|| BadValue::new("node id", s, "is not n1, n2, ...", "netctl node ls"))
    }
}

/// A VXLAN network identifier, 1 to 2^24 - 1 (RFC 7348 5). The log gives them out from 4096 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The first that the log gives out.
    pub const FIRST: u32 = 4096;
    /// The largest.
    pub const MAX: u32 = (1 << 24) - 1;
    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = BadValue;
    fn try_from(n: u32) -> Result<Self, BadValue> {
        if n == 0 || n > Self::MAX {
            return Err(BadValue::new(
                "VNI",
                &n.to_string(),
                "is not between 1 and 16777215",
                "--vni 4100",
            ));
        }
        Ok(Vni(n))
    }
}

impl From<Vni> for u32 {
    fn from(v: Vni) -> u32 {
        v.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A DNS label (RFC 1123 2.1: 1-63 letters, digits and hyphens, no hyphen at either end), kept in lower case: the name
/// of a network or service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        let bad = |why| Err(BadValue::new("name", s, why, "a DNS label such as web or my-app2"));
        if s.is_empty() {
            return bad("is empty");
        }
        if s.len() > 63 {
            return bad("is longer than 63 characters");
        }
        if !s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return bad("has characters other than letters, digits and hyphens");
        }
        if s.starts_with('-') || s.ends_with('-') {
            return bad("begins or ends with a hyphen");
        }
        if s.bytes().all(|b| b.is_ascii_digit()) {
            return bad("is a number (slots are named by numbers)");
        }
        if s.eq_ignore_ascii_case("tasks") || s.eq_ignore_ascii_case("localhost") {
            return bad("is a reserved word");
        }
        Ok(Name(s.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for Name {
    type Error = BadValue;
    fn try_from(s: String) -> Result<Self, BadValue> {
        s.parse()
    }
}

impl From<Name> for String {
    fn from(n: Name) -> String {
        n.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The id of an endpoint on its node: `web.1` for a task of a service, else what the client chose (1-160 characters of
/// letters, digits, `.`, `_`, `-`; it becomes a file name).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointId(String);

impl EndpointId {
    /// Longest, characters: the longest task's (service, slot) on the longest further network, and some for others.
    pub const MAX: usize = 160;
    /// The endpoint of a service's slot.
    pub fn task(service: &Name, slot: u32) -> Self {
        EndpointId(format!("{service}.{slot}"))
    }
    /// The endpoint that a task has on a further network: `web.1` on `db` is `web.1.db`.
    pub fn on(&self, network: &Name) -> Self {
        EndpointId(format!("{}.{network}", self.0))
    }
    /// The service and slot of [`EndpointId::task`], if it may be one.
    pub fn slot(&self) -> Option<(Name, u32)> {
        let (service, slot) = self.0.rsplit_once('.')?;
        Some((service.parse().ok()?, slot.parse().ok()?))
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EndpointId {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        let ok = (1..=EndpointId::MAX).contains(&s.len())
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && s.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if !ok {
            return Err(BadValue::new(
                "endpoint id",
                s,
                "is not 1-160 letters, digits, dots, hyphens, beginning with a letter or digit",
                "--id web.1",
            ));
        }
        Ok(EndpointId(s.to_owned()))
    }
}

impl TryFrom<String> for EndpointId {
    type Error = BadValue;
    fn try_from(s: String) -> Result<Self, BadValue> {
        s.parse()
    }
}

impl From<EndpointId> for String {
    fn from(n: EndpointId) -> String {
        n.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A MAC address, written `02:6e:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        let bad = || {
            BadValue::new(
                "MAC address",
                s,
                "is not six octets in hexadecimal",
                "02:6e:00:00:00:01",
            )
        };
        let mut out = [0u8; 6];
        let mut parts = s.split(':');
        for o in &mut out {
            let p = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *o = u8::from_str_radix(p, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || out[0] & 1 != 0 {
            return Err(bad());
        }
        Ok(Mac(out))
    }
}

impl TryFrom<String> for Mac {
    type Error = BadValue;
    fn try_from(s: String) -> Result<Self, BadValue> {
        s.parse()
    }
}

impl From<Mac> for String {
    fn from(m: Mac) -> String {
        m.to_string()
    }
}

/// The name of a network device, as `dev_valid_name()` of net/core/dev.c allows it, with a letter in it: a name of
/// digits and dots alone is a mistyped address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Device([u8; Device::MAX]);

impl Device {
    /// Longest, characters (IFNAMSIZ of linux/if.h less its end).
    pub const MAX: usize = 15;

    /// The text.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(Device::MAX);
        self.0
            .get(..end)
            .and_then(|t| std::str::from_utf8(t).ok())
            .unwrap_or_default()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Device {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        let good = s
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b',' | b'='))
            && s.bytes().any(|b| b.is_ascii_alphabetic());
        let mut text = [0; Device::MAX];
        match text.get_mut(..s.len()) {
            Some(to) if good => to.copy_from_slice(s.as_bytes()),
            _ => {
                return Err(BadValue::new(
                    "interface",
                    s,
                    "is no name of a device",
                    "eth0, or an address such as 192.0.2.1",
                ));
            }
        }
        Ok(Device(text))
    }
}

impl TryFrom<String> for Device {
    type Error = BadValue;
    fn try_from(s: String) -> Result<Self, BadValue> {
        s.parse()
    }
}

impl From<Device> for String {
    fn from(d: Device) -> String {
        d.as_str().to_owned()
    }
}

/// A transport protocol that the mesh balances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, on nodes that balance by IPVS.
    Sctp,
}

impl Proto {
    /// IP protocol number (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Proto::Tcp => 6,
            Proto::Udp => 17,
            Proto::Sctp => 132,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Sctp => "sctp",
        })
    }
}

impl FromStr for Proto {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        match s {
            "tcp" => Ok(Proto::Tcp),
            "udp" => Ok(Proto::Udp),
            "sctp" => Ok(Proto::Sctp),
            _ => Err(BadValue::new(
                "protocol",
                s,
                "is neither tcp nor udp nor sctp",
                "80/tcp or 53/udp",
            )),
        }
    }
}
