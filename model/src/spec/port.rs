//! A published port.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::ids::{BadValue, Proto};

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
