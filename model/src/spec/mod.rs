//! What a user asks for: networks, services, published ports.

mod health;
mod lb;
mod packed;
mod placement;
mod port;
mod restart;
mod rolling;
mod service;
pub mod template;
mod traffic;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::ids::Vni;

pub use health::{Health, Probe};
pub use lb::Lb;
pub use placement::{PlacementSpec, Resources, Strategy};
pub use port::{On, PortSpec, PublishMode};
pub use restart::{Condition, Restart};
pub use rolling::{FailureAction, Order, RollingUpdate};
pub use service::{EndpointMode, Mode, ServiceSpec};
pub use traffic::{Kept, SourceIp, Timeouts};

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
