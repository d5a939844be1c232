//! A published port.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::ids::{BadValue, Device, Proto};

/// A published port as asked for: `80`, `80:8080`, `53/udp`, `auto:80`, `192.0.2.1:80:8080`, `[2001:db8::1]:80`,
/// `eth0:80`, `80:8080,mode=host`, `published=80,target=8080,protocol=tcp,mode=host`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Port on the nodes, 1-65535; 0: the log gives one of [`PortSpec::AUTO`].
    #[serde(default)]
    pub published: u16,
    /// Port of the task, 1-65535.
    pub target: u16,
    /// Protocol.
    pub proto: Proto,
    /// On which nodes. Default: ingress.
    #[serde(default)]
    pub mode: PublishMode,
    /// On which of their addresses. Default: all.
    #[serde(default)]
    pub on: On,
}

/// Which nodes a published port answers on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// All; it leads to the tasks of all nodes.
    #[default]
    Ingress,
    /// Those that run a task; it leads to the node's own. So a node has one task at most.
    Host,
}

impl FromStr for PublishMode {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        match s {
            "ingress" => Ok(PublishMode::Ingress),
            "host" => Ok(PublishMode::Host),
            _ => Err(BadValue::new("mode", s, "is neither ingress nor host", "mode=host")),
        }
    }
}

impl fmt::Display for PublishMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PublishMode::Ingress => "ingress",
            PublishMode::Host => "host",
        })
    }
}

/// Which addresses of a node a published port answers on. On others the port stays the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum On {
    /// All, 127.0.0.1 among them. Written as an empty text.
    #[default]
    All,
    /// This one, where a node has it.
    Address(IpAddr),
    /// Those of a device, where a node has it.
    Device(Device),
}

impl On {
    /// An address that a port can be published on: of one node, and not `::1` (CONTRACTS 4) or link-local, which no
    /// key of the data path can name.
    pub fn address(ip: IpAddr) -> Result<On, BadValue> {
        let ip = ip.to_canonical();
        let bad = |why| {
            Err(BadValue::new(
                "address",
                &ip.to_string(),
                why,
                "192.0.2.1:80 or [2001:db8::1]:80",
            ))
        };
        if ip.is_unspecified() {
            return bad("stands for every address, which is what no address says too");
        }
        match ip {
            _ if ip.is_multicast() => bad("is no address of one host"),
            IpAddr::V4(Ipv4Addr::BROADCAST) => bad("is no address of one host"),
            IpAddr::V4(a) if a.is_loopback() && a != Ipv4Addr::LOCALHOST => {
                bad("is not served: of loopback 127.0.0.1 is")
            }
            IpAddr::V6(a) if a.is_loopback() => bad("is not served; 127.0.0.1 is"),
            IpAddr::V6(a) if a.is_unicast_link_local() => bad("is link-local, and says nothing without its device"),
            _ => Ok(On::Address(ip)),
        }
    }

    /// Whether one address may be meant by both. A device's addresses are not known here: it may have any.
    fn meets(self, other: On) -> bool {
        match (self, other) {
            (On::All, _) | (_, On::All) | (On::Address(_), On::Device(_)) | (On::Device(_), On::Address(_)) => true,
            (a, b) => a == b,
        }
    }
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            On::All => Ok(()),
            On::Address(a) => write!(f, "{a}"),
            On::Device(d) => write!(f, "{d}"),
        }
    }
}

impl From<On> for String {
    fn from(on: On) -> String {
        on.to_string()
    }
}

impl TryFrom<String> for On {
    type Error = BadValue;
    fn try_from(s: String) -> Result<Self, BadValue> {
        s.parse()
    }
}

impl FromStr for On {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        match s.parse::<IpAddr>() {
            _ if s.is_empty() => Ok(On::All),
            Ok(ip) => On::address(ip),
            Err(_) => Ok(On::Device(s.parse()?)),
        }
    }
}

impl PortSpec {
    /// What the log gives out for [`PortSpec::published`] 0: below the range that Linux takes for its own connections
    /// (`net.ipv4.ip_local_port_range`), as Swarm and Kubernetes do.
    pub const AUTO: std::ops::RangeInclusive<u16> = 30_000..=32_767;

    /// A port of the mesh on every address.
    pub const fn new(published: u16, target: u16, proto: Proto) -> PortSpec {
        PortSpec {
            published,
            target,
            proto,
            mode: PublishMode::Ingress,
            on: On::All,
        }
    }

    /// `80/tcp`, `192.0.2.1:80/tcp`: where it is published, the key of `Service::ports`.
    pub fn key(&self) -> crate::intent::PortKey {
        let mut out = self.prefix();
        out.push_str(&format!("{}/{}", self.published, self.proto));
        out
    }

    /// Whether the log chooses the published port.
    pub fn is_auto(&self) -> bool {
        self.published == 0
    }

    /// Whether both are published at the same place in the same way, wherever they lead to. Of those that the log chooses
    /// nothing is known of that.
    pub fn same_place(&self, other: &PortSpec) -> bool {
        let place = |p: &PortSpec| (p.published, p.proto, p.on, p.mode);
        !self.is_auto() && place(self) == place(other)
    }

    /// Whether both claim one port of one address, on nodes where both are.
    pub fn meets(&self, other: &PortSpec) -> bool {
        (self.published, self.proto) == (other.published, other.proto) && self.on.meets(other.on)
    }

    fn prefix(&self) -> String {
        match self.on {
            On::All => String::new(),
            On::Address(IpAddr::V6(a)) => format!("[{a}]:"),
            on => format!("{on}:"),
        }
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix())?;
        match self.published {
            0 => write!(f, "auto:{}", self.target)?,
            p if p == self.target => write!(f, "{p}")?,
            p => write!(f, "{p}:{}", self.target)?,
        }
        write!(f, "/{}", self.proto)?;
        match self.mode {
            PublishMode::Ingress => Ok(()),
            PublishMode::Host => write!(f, ",mode=host"),
        }
    }
}

const HINT: &str = "80, 80:8080, 53/udp, auto:80, 192.0.2.1:80:8080 or published=80,target=8080,mode=host";

fn number(whole: &str, text: &str) -> Result<u16, BadValue> {
    match text.parse::<u16>() {
        Ok(0) | Err(_) => Err(BadValue::new("port", whole, "has no number between 1 and 65535", HINT)),
        Ok(n) => Ok(n),
    }
}

/// `auto` is 0.
fn published(whole: &str, text: &str) -> Result<u16, BadValue> {
    match text {
        "auto" => Ok(0),
        _ => number(whole, text),
    }
}

/// What may stand in front of the ports, and the ports.
fn split_on<'t>(whole: &str, text: &'t str) -> Result<(On, &'t str), BadValue> {
    let bad = |why| BadValue::new("port", whole, why, HINT);
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, ports) = rest
            .split_once("]:")
            .ok_or_else(|| bad("has an address without its end and a port"))?;
        let ip = ip.parse().map_err(|_| bad("has no IPv6 address in its brackets"))?;
        return Ok((On::address(ip)?, ports));
    }
    if text.matches(':').count() > 2 {
        return Err(bad("has more colons than ports; an IPv6 address stands in brackets"));
    }
    let Some((first, rest)) = text.split_once(':') else {
        return Ok((On::All, text));
    };
    if first == "auto" || first.bytes().all(|b| b.is_ascii_digit()) {
        return Ok((On::All, text));
    }
    Ok((first.parse()?, rest))
}

/// `[ON:]PUBLISHED[:TARGET][/PROTO]`
fn short(s: &str) -> Result<PortSpec, BadValue> {
    let (text, proto) = match s.rsplit_once('/') {
        Some((text, proto)) => (text, proto.parse()?),
        None => (s, Proto::Tcp),
    };
    let (on, ports) = split_on(s, text)?;
    let (outer, target) = match ports.split_once(':') {
        Some((outer, target)) => (outer, number(s, target)?),
        None if ports == "auto" => {
            return Err(BadValue::new(
                "port",
                s,
                "does not say which port of the task",
                "auto:80",
            ));
        }
        None => (ports, number(s, ports)?),
    };
    Ok(PortSpec {
        on,
        ..PortSpec::new(published(s, outer)?, target, proto)
    })
}

impl FromStr for PortSpec {
    type Err = BadValue;
    /// The short form, the long one of `key=value`, or the short one with some of these behind it.
    fn from_str(s: &str) -> Result<Self, BadValue> {
        let bad = |why| BadValue::new("port", s, why, HINT);
        let mut parts = s.split(',').map(str::trim).peekable();
        let (mut spec, mut target) = match parts.next_if(|p| !p.contains('=')) {
            Some(text) => {
                let spec = short(text)?;
                (spec, Some(spec.target))
            }
            None => (PortSpec::new(0, 0, Proto::Tcp), None),
        };
        let mut seen = Vec::new();
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| bad("has a part that is no key=value"))?;
            if seen.contains(&key) {
                return Err(bad("says one thing twice"));
            }
            seen.push(key);
            match key {
                "published" => spec.published = published(s, value)?,
                "target" => target = Some(number(s, value)?),
                "protocol" | "proto" => spec.proto = value.parse()?,
                "mode" => spec.mode = value.parse()?,
                "address" | "interface" if spec.on != On::All => {
                    return Err(bad("says twice on which addresses"));
                }
                "address" => {
                    let text = value
                        .strip_prefix('[')
                        .and_then(|t| t.strip_suffix(']'))
                        .unwrap_or(value);
                    let ip = text.parse().map_err(|_| bad("has an address that is none"))?;
                    spec.on = On::address(ip)?;
                }
                "interface" => spec.on = On::Device(value.parse()?),
                _ => {
                    return Err(bad(
                        "has a key that is none of published, target, protocol, mode, address, interface",
                    ));
                }
            }
        }
        spec.target = target.ok_or_else(|| bad("does not say which port of the task: target"))?;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(s: &str) -> PortSpec {
        s.parse().unwrap_or_else(|e| panic!("{s}: {e}"))
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (text, shown, key) in [
            ("80", "80/tcp", "80/tcp"),
            ("80:8080", "80:8080/tcp", "80/tcp"),
            ("53/udp", "53/udp", "53/udp"),
            ("3868/sctp", "3868/sctp", "3868/sctp"),
            ("auto:80", "auto:80/tcp", "0/tcp"),
            ("192.0.2.1:80:8080", "192.0.2.1:80:8080/tcp", "192.0.2.1:80/tcp"),
            ("127.0.0.1:80", "127.0.0.1:80/tcp", "127.0.0.1:80/tcp"),
            ("192.0.2.1:auto:80", "192.0.2.1:auto:80/tcp", "192.0.2.1:0/tcp"),
            ("[2001:db8::1]:53/udp", "[2001:db8::1]:53/udp", "[2001:db8::1]:53/udp"),
            ("eth0:80", "eth0:80/tcp", "eth0:80/tcp"),
            ("eth0.5:80:81/udp", "eth0.5:80:81/udp", "eth0.5:80/udp"),
            ("80,mode=host", "80/tcp,mode=host", "80/tcp"),
            (
                "published=80,target=8080,protocol=udp,mode=host",
                "80:8080/udp,mode=host",
                "80/udp",
            ),
            ("target=80", "auto:80/tcp", "0/tcp"),
            ("target=80,published=auto,mode=ingress", "auto:80/tcp", "0/tcp"),
            (
                "published=80,target=80,address=2001:db8::1",
                "[2001:db8::1]:80/tcp",
                "[2001:db8::1]:80/tcp",
            ),
            ("80:81,interface=auto", "auto:80:81/tcp", "auto:80/tcp"),
        ] {
            let p = port(text);
            assert_eq!((p.to_string().as_str(), p.key().as_str()), (shown, key), "{text}");
            if !text.contains("interface=auto") {
                assert_eq!(port(shown), p, "{shown}");
            }
            let json = serde_json::to_string(&p).unwrap();
            assert_eq!(serde_json::from_str::<PortSpec>(&json).unwrap(), p, "{json}");
        }
        let plain: PortSpec = serde_json::from_str(r#"{"published":80,"target":80,"proto":"tcp"}"#).unwrap();
        assert_eq!(plain, port("80"));
    }

    #[test]
    fn slips_are_told() {
        for (text, word) in [
            ("0", "between 1 and 65535"),
            ("80:", "between 1 and 65535"),
            (":80", "between 1 and 65535"),
            ("", "between 1 and 65535"),
            ("auto", "which port of the task"),
            ("80/dccp", "tcp nor udp"),
            ("2001:db8::1:80", "brackets"),
            ("fe80::1:80", "brackets"),
            ("[2001:db8::1]", "without its end"),
            ("[x]:80", "no IPv6 address"),
            ("0.0.0.0:80", "every address"),
            ("[::1]:80", "127.0.0.1 is"),
            ("127.0.0.2:80", "127.0.0.1 is"),
            ("224.0.0.1:80", "no address of one host"),
            ("1.2.3.4.5:80", "no name of a device"),
            ("averylongdevicename:80", "no name of a device"),
            ("mode=host", "target"),
            ("80,mode=local", "neither ingress nor host"),
            ("80,color=red", "none of published"),
            ("80,mode=host,mode=host", "twice"),
            ("eth0:80,address=192.0.2.1", "twice"),
            ("80,host", "no key=value"),
        ] {
            let e = text.parse::<PortSpec>().unwrap_err().to_string();
            assert!(e.contains(word), "{text}: {e}");
        }
    }

    #[test]
    fn who_is_in_whose_way() {
        for (a, b, meet) in [
            ("80", "80:81", true),
            ("80", "80/udp", false),
            ("80", "81", false),
            ("192.0.2.1:80", "80", true),
            ("192.0.2.1:80", "192.0.2.2:80", false),
            ("192.0.2.1:80", "192.0.2.1:80:90,mode=host", true),
            ("eth0:80", "eth1:80", false),
            ("eth0:80", "192.0.2.1:80", true),
        ] {
            assert_eq!(port(a).meets(&port(b)), meet, "{a} {b}");
            assert_eq!(port(b).meets(&port(a)), meet, "{b} {a}");
        }
    }
}
