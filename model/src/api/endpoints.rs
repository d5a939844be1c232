//! Endpoints, here and everywhere.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::ids::EndpointId;
use crate::ids::Mac;
use crate::ids::Name;
use crate::ids::NodeId;
use crate::ids::Vni;
use crate::row::EndpointState;

/// `PUT /v1/endpoints/ID`: attaches a namespace to a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointCreate {
    /// Network.
    pub network: Name,
    /// Path of an existing network namespace; neither this nor `pid`: netd makes one.
    #[serde(default)]
    pub netns: Option<String>,
    /// A process of that namespace, as netd sees it.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Service whose backend it becomes.
    #[serde(default)]
    pub service: Option<Name>,
    /// Slot, for a task placed by the log.
    #[serde(default)]
    pub slot: Option<u32>,
    /// Further networks: on each an endpoint `ID.NETWORK` in the same namespace, made, drained and removed together with
    /// this one. The first network has the default route.
    #[serde(default)]
    pub further: Vec<Name>,
}

/// Answer to `PUT /v1/endpoints/ID`; `GET /v1/endpoints` lists those of this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndpointView {
    /// Id.
    pub id: EndpointId,
    /// Node.
    pub node: NodeId,
    /// Network.
    pub network: Name,
    /// VNI.
    pub vni: Vni,
    /// Namespace.
    pub netns: String,
    /// Interface in it.
    pub interface: String,
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
    /// MAC.
    pub mac: Mac,
    /// MTU, octets.
    pub mtu: u16,
    /// Service.
    pub service: Option<Name>,
    /// The endpoint that it is made, drained and removed with; none: by itself.
    #[serde(default)]
    pub part_of: Option<EndpointId>,
    /// State.
    pub state: EndpointState,
    /// Text of the resolv.conf that its processes should see.
    pub resolv_conf: String,
    /// What is wrong, e.g. a namespace that vanished.
    pub problem: Option<String>,
}

/// A line of `GET /v1/watch?resource=endpoints`: what has changed since the line before, in the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EndpointsSeen {
    /// The first line of a stream: `changed` is everything, what the reader knew before counts no more.
    pub snapshot: bool,
    /// New or changed.
    pub changed: Vec<EndpointSeen>,
    /// Gone.
    pub removed: Vec<EndpointAt>,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointAt {
    /// Node.
    pub node: NodeId,
    /// Endpoint.
    pub id: EndpointId,
}

/// An endpoint as its node tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSeen {
    /// Where.
    #[serde(flatten)]
    pub at: EndpointAt,
    /// Version of its row.
    pub version: u64,
    /// Network.
    pub vni: Vni,
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Service.
    pub service: Option<Name>,
    /// State.
    pub state: EndpointState,
}

/// `POST /v1/endpoints/ID/drain`: takes an endpoint out of new flows everywhere, and answers when its established ones have
/// ended or may go on no longer. The answer says whether all living nodes have acknowledged it, and how many are cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointDrain {
    /// How long established flows may go on after the acknowledgements, ms; none: as its service says, else 10,000.
    pub timeout_ms: Option<u64>,
}

/// What a drain came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointDrained {
    /// All living nodes have said that they send no new flows to it.
    pub acknowledged: bool,
    /// TCP connections that were still established when the time was over. A UDP flow has no end that could be seen.
    pub cut: usize,
}
