//! Intent as every node holds it: the part of the replicated state that is no secret. Managers derive it from the log's
//! state machine, workers get it as a stream of [`IntentDelta`], both keep the last one on disk.

mod delta;
mod service;
mod slots;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use self::{
    delta::IntentDelta,
    service::{Pending, PortKey, PublishedPort, Rollout, RolloutState, Service, Vip},
    slots::SlotSet,
};
use crate::{
    ids::{Name, NodeId, Vni},
    settings::ClusterSettings,
    shared::Shared,
    spec::{PortSpec, Resources},
};

/// Where the slots of one service are: node -> slots.
pub type Placed = BTreeMap<NodeId, SlotSet>;

/// What the cluster should be, as of `revision`. Its large parts are shared between versions: a copy costs as much as what
/// differs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Intent {
    /// Index of the last log entry that it contains; 0: not in a cluster.
    pub revision: u64,
    /// Random id of the cluster, 32 hex digits; empty: not in a cluster.
    pub cluster: String,
    /// Nodes by id. A removed node is absent and its id is never used again.
    pub nodes: Shared<BTreeMap<NodeId, Node>>,
    /// Networks by name.
    pub networks: Shared<BTreeMap<Name, Network>>,
    /// Services by name.
    pub services: Shared<BTreeMap<Name, Service>>,
    /// Address blocks: network -> block number -> owner. Block `k` of a network holds the host offsets
    /// `k * BLOCK .. (k + 1) * BLOCK` of both subnets.
    pub blocks: Shared<BTreeMap<Vni, BTreeMap<u32, NodeId>>>,
    /// Placement: service -> node -> slots.
    pub placements: BTreeMap<Name, Shared<Placed>>,
    /// Slots that go on at an earlier place until the new one is ready: service -> node -> slots. An orderly move has
    /// both, and the old one ends when the managers take it out here.
    #[serde(default)]
    pub leaving: BTreeMap<Name, Shared<Placed>>,
    /// Which certificates and keys count.
    #[serde(default)]
    pub trust: Trust,
    /// Settings of the cluster.
    #[serde(default)]
    pub settings: ClusterSettings,
}

/// What nodes trust and hold of what managers keep: the part that is no secret. Empty until managers have told it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Trust {
    /// Certificates of the CAs whose certificates count, PEM: one, two while the CA is changed.
    pub roots: Vec<String>,
    /// Fingerprint (SHA-256, hexadecimal) of the root that certificates come from: one of another is renewed at once.
    pub issuer: String,
    /// Numbers of the gossip keys, the one to seal with first.
    pub gossip: Vec<u32>,
}

/// A role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Votes on the log.
    Manager,
    /// Runs tasks alone.
    Worker,
}

/// Whether a node may be given tasks (Swarm's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Yes.
    #[default]
    Active,
    /// No new ones.
    Pause,
    /// None; what runs is moved.
    Drain,
}

/// A node as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Host name, as told at join.
    pub hostname: String,
    /// Role.
    pub role: Role,
    /// Availability.
    pub availability: Availability,
    /// Ed25519 public key that signs its rows and certificates' requests, 32 octets.
    pub key: Vec<u8>,
    /// Confirmed dead for longer than `node_grace`: its slots were placed elsewhere.
    pub down: bool,
    /// Address that managers' RPC listens on (`ip:port`), managers only.
    pub rpc: Option<String>,
    /// Its id in Raft, managers only; given out by the log, never twice: a manager whose disk was wiped gets a new one.
    #[serde(default)]
    pub raft: Option<u64>,
    /// For constraints; given by people.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Most tasks of all services on it; none: no limit.
    #[serde(default)]
    pub max_tasks: Option<u32>,
    /// What it has told of itself.
    #[serde(default)]
    pub machine: Machine,
}

/// What a node tells of its machine, for placement: it changes with the hardware, not with the load.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Machine {
    /// `linux`.
    pub os: String,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// What there is in all; zeros: not told yet.
    pub capacity: Resources,
    /// Where its data path is reached.
    #[serde(default)]
    pub address: Option<IpAddr>,
}

/// A network as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Number on the wire.
    pub vni: Vni,
    /// IPv4 subnet.
    pub subnet: Ipv4Net,
    /// IPv6 subnet.
    pub subnet6: Option<Ipv6Net>,
    /// Nothing leaves it.
    pub internal: bool,
    /// MTU asked for, octets.
    pub mtu: Option<u16>,
}

/// Addresses in a block.
pub const BLOCK: u32 = 16;

impl Network {
    /// Host addresses of the IPv4 subnet (2^(32 - prefix)); offsets are below this.
    pub fn size(&self) -> u32 {
        1u32.checked_shl(32 - u32::from(self.subnet.prefix_len()))
            .unwrap_or(u32::MAX)
    }
    /// Number of offsets, from 0, kept for VIPs: a sixteenth of the subnet, at least one block, a multiple of [`BLOCK`].
    /// Offset 0 (the subnet's own address) is never given out.
    pub fn vip_pool(&self) -> u32 {
        (self.size() / 16).max(BLOCK) / BLOCK * BLOCK
    }
    /// Numbers of the blocks that nodes may get.
    pub fn block_numbers(&self) -> std::ops::Range<u32> {
        self.vip_pool() / BLOCK..self.size() / BLOCK
    }
    /// IPv4 address at a host offset.
    pub fn v4(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()).wrapping_add(offset))
    }
    /// IPv6 address at a host offset.
    pub fn v6(&self, offset: u32) -> Option<Ipv6Addr> {
        self.subnet6
            .map(|n| Ipv6Addr::from(u128::from(n.network()) + u128::from(offset)))
    }
    /// Host offset of an IPv4 address of this subnet.
    pub fn offset(&self, a: Ipv4Addr) -> Option<u32> {
        self.subnet
            .contains(&a)
            .then(|| u32::from(a) - u32::from(self.subnet.network()))
    }
    /// IPv4 and IPv6 prefixes of a block.
    pub fn block(&self, number: u32) -> (Ipv4Net, Option<Ipv6Net>) {
        let at = number.saturating_mul(BLOCK);
        let v4 = Ipv4Net::new_assert(self.v4(at), 28);
        (v4, self.v6(at).map(|a| Ipv6Net::new_assert(a, 124)))
    }
}

impl Intent {
    /// The network with a VNI.
    pub fn network_by_vni(&self, vni: Vni) -> Option<(&Name, &Network)> {
        self.networks.iter().find(|(_, n)| n.vni == vni)
    }

    /// The services that hold a published port, with the part of it that they hold: one address may be another's.
    pub fn holders<'i>(&'i self, port: &PortSpec) -> impl Iterator<Item = (&'i Name, &'i PublishedPort)> + use<'i> {
        let port = *port;
        let all = self.services.iter();
        all.flat_map(|(name, s)| s.ports.values().map(move |p| (name, p)))
            .filter(move |(_, p)| p.spec.meets(&port))
    }

    /// Slots of a service placed on a node.
    pub fn slots(&self, service: &Name, node: NodeId) -> Option<&SlotSet> {
        self.placements.get(service)?.get(&node)
    }

    /// Whether a slot's task may run on a node: it is placed there, or goes on there until its successor elsewhere is
    /// ready.
    pub fn holds(&self, service: &Name, node: NodeId, slot: u32) -> bool {
        let leaving = self.leaving.get(service).and_then(|l| l.get(&node));
        let all = self.slots(service, node).into_iter().chain(leaving);
        all.into_iter().any(|s| s.contains(slot))
    }

    /// Every task that may run on a node: those placed there, and those that go on there.
    pub fn tasks_on(&self, node: NodeId) -> impl Iterator<Item = (&Name, &Service, u32)> {
        self.services.iter().flat_map(move |(name, service)| {
            let slots = |of: &'_ BTreeMap<Name, Shared<Placed>>| -> Vec<(u32, u32)> {
                of.get(name)
                    .and_then(|p| p.get(&node))
                    .map_or_else(Vec::new, |s| s.0.clone())
            };
            // A slot is in one of the two.
            let mut ranges = slots(&self.placements);
            ranges.extend(slots(&self.leaving));
            ranges.sort_unstable();
            ranges
                .into_iter()
                .flat_map(|(a, b)| a..=b)
                .map(move |slot| (name, service, slot))
        })
    }
}
