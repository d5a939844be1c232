//! Facts: rows owned, versioned and signed by one node each, spread by gossip (CONTRACTS, Joining, identity, rows).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::ids::{EndpointId, Mac, Name, NodeId, Proto, Vni};

/// A fact. `version` rises by at least one with each change that its owner makes to any of its rows, also over restarts;
/// of two rows with the same owner and key the higher version wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The node that owns, and signs, it.
    pub owner: NodeId,
    /// What it is about.
    pub key: RowKey,
    /// See above.
    pub version: u64,
    /// What it says.
    pub body: RowBody,
}

/// What a row is about; unique within its owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RowKey {
    /// The owner itself.
    Node,
    /// One of its endpoints.
    Endpoint(EndpointId),
}

/// What a row says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowBody {
    /// The owner itself.
    Node(NodeRow),
    /// One of its endpoints.
    Endpoint(EndpointRow),
    /// The row is gone; kept so that an older version cannot come back.
    Tombstone,
}

/// How a node balances and forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datapath {
    /// eBPF programs: translates late.
    Ebpf,
    /// IPVS and MARK rules: wants packets translated early.
    Ipvs,
}

/// A node's own facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Host name.
    pub hostname: String,
    /// Where VXLAN is sent to.
    pub datapath_addr: IpAddr,
    /// UDP port of VXLAN.
    pub datapath_port: u16,
    /// Where gossip (UDP and TCP) is sent to.
    pub gossip: SocketAddr,
    /// Its MAC on every network.
    pub mac: Mac,
    /// Data path in use.
    pub datapath: Datapath,
    /// Version of netd, e.g. `0.1.0`.
    pub version: String,
}

/// A life stage of an endpoint, as the mesh and DNS see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// Attached, not to be used yet.
    Starting,
    /// Takes new flows.
    Ready,
    /// Takes no new flows.
    Draining,
}

/// An endpoint's facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRow {
    /// Network.
    pub vni: Vni,
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// MAC, unique in the cluster: names the endpoint in a late-translated packet.
    pub mac: Mac,
    /// Service whose backend it is.
    pub service: Option<Name>,
    /// Slot, for a task placed by the log; `None`: attached by hand.
    pub slot: Option<u32>,
    /// State.
    pub state: EndpointState,
    /// Ports that something in its namespace listens on, sorted; at most [`EndpointRow::MAX_LISTENING`].
    pub listening: Vec<(Proto, u16)>,
}

impl EndpointRow {
    /// Most listening ports told in a row; more are left out, lowest first kept.
    pub const MAX_LISTENING: usize = 64;
}
