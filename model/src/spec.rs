//! What a user asks for: networks, services, published ports.

use std::{collections::BTreeMap, fmt, str::FromStr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::ids::{BadValue, Name, Proto, Vni};

/// A network as asked for. Missing subnets come from the cluster's default pools.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSpec {
    /// IPv4 subnet, /8 to /24, not overlapping another network or a host's route. Default: a /16 of the pool.
    pub subnet: Option<Ipv4Net>,
    /// Whether tasks get IPv6 addresses too.
    pub ipv6: bool,
    /// IPv6 subnet, /48 to /104. Default with `ipv6`: a /64 of the cluster's ULA prefix. Implies `ipv6`.
    pub subnet6: Option<Ipv6Net>,
    /// Nothing leaves the network: no masquerade, no forwarded names.
    pub internal: bool,
    /// MTU inside, octets; default: the underlay's less 50.
    pub mtu: Option<u16>,
    /// VNI; default: given out by the log.
    pub vni: Option<Vni>,
}

/// A published port as asked for: `80`, `80:8080`, `53/udp`, `80:8080/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Port on every node, 1-65535.
    pub published: u16,
    /// Port of the task, 1-65535.
    pub target: u16,
    /// Protocol.
    pub proto: Proto,
}

impl PortSpec {
    /// `80/tcp`: what is unique in the cluster, the key of `Service::ports`.
    pub fn key(&self) -> crate::intent::PortKey {
        format!("{}/{}", self.published, self.proto)
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.published == self.target {
            write!(f, "{}/{}", self.published, self.proto)
        } else {
            write!(f, "{}:{}/{}", self.published, self.target, self.proto)
        }
    }
}

impl FromStr for PortSpec {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        let bad = |why| BadValue::new("port", s, why, "80, 80:8080 or 53/udp");
        let (ports, proto) = match s.split_once('/') {
            Some((p, proto)) => (p, proto.parse()?),
            None => (s, Proto::Tcp),
        };
        let (published, target) = ports.split_once(':').unwrap_or((ports, ports));
        let port = |t: &str| match t.parse::<u16>() {
            Ok(0) | Err(_) => Err(bad("is not a number between 1 and 65535")),
            Ok(n) => Ok(n),
        };
        Ok(PortSpec {
            published: port(published)?,
            target: port(target)?,
            proto,
        })
    }
}

/// A service as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceSpec {
    /// Networks to join; empty: `default`.
    pub networks: Vec<Name>,
    /// Tasks, 0 to [`ServiceSpec::MAX_REPLICAS`].
    pub replicas: u32,
    /// Command and arguments that netd-run starts for each task; empty: an orchestrator attaches the endpoints.
    pub command: Vec<String>,
    /// Environment of the command, beside `NETD_SERVICE`, `NETD_SLOT`, `NETD_NODE`.
    pub env: BTreeMap<String, String>,
    /// Ports on every node.
    pub publish: Vec<PortSpec>,
    /// How long SIGTERM is given before SIGKILL, ms.
    pub stop_grace_ms: u64,
    /// How long established flows may go on after a drain began, ms.
    pub drain_timeout_ms: u64,
    /// Whether endpoints may be attached by hand (`netctl endpoint add --service`).
    pub attachable: bool,
}

impl ServiceSpec {
    /// Most tasks of one service.
    pub const MAX_REPLICAS: u32 = 1_000_000;
}

impl Default for ServiceSpec {
    fn default() -> Self {
        ServiceSpec {
            networks: Vec::new(),
            replicas: 1,
            command: Vec::new(),
            env: BTreeMap::new(),
            publish: Vec::new(),
            stop_grace_ms: 10_000,
            drain_timeout_ms: 10_000,
            attachable: true,
        }
    }
}
