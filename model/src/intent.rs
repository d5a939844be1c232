//! Intent as every node holds it: the part of the replicated state that is no secret. Managers derive it from the log's
//! state machine, workers get it as a stream of [`IntentDelta`], both keep the last one on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    ids::{Name, NodeId, Proto, Vni},
    settings::ClusterSettings,
    shared::Shared,
    spec::{PortSpec, Resources, ServiceSpec},
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

/// A service as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Service {
    /// Given out by the log, unique among the living; from 1.
    pub index: u32,
    /// As asked for, with `networks` filled in.
    pub spec: ServiceSpec,
    /// Virtual addresses, one a network.
    pub vips: BTreeMap<Name, Vip>,
    /// Published ports with their fwmark index (CONTRACTS, IPVS numbers).
    pub ports: BTreeMap<PortKey, PublishedPort>,
    /// Revision at which what tasks are made from last changed: a running task of another one is replaced.
    pub generation: u64,
    /// Revision at which a person changed it last: who changes it again says which one was seen.
    #[serde(default)]
    pub changed: u64,
    /// What `rollback` goes back to.
    #[serde(default)]
    pub previous: Option<Box<ServiceSpec>>,
    /// The change that is being carried out, or how the last one ended.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// What the log could not give it (an address pool used up, no node to place on), for the user's eyes.
    pub problem: Option<String>,
}

impl Service {
    /// What a slot's task is made from now, and its generation: while a change is carried out, slots that it has not
    /// reached stay with what was.
    pub fn template(&self, slot: u32) -> (&ServiceSpec, u64) {
        let open = self.rollout.iter().flat_map(|r| &r.pending);
        match open.into_iter().find(|p| p.slots.contains(slot)) {
            Some(p) => (&p.spec, p.generation),
            None => (&self.spec, self.generation),
        }
    }

    /// The port of a slot's task that a published one leads to: while a change is carried out, of slots that it has not
    /// reached what it was. None: such a task was made before the port was published, and need not know it.
    pub fn target(&self, slot: Option<u32>, port: &PublishedPort) -> Option<u16> {
        match slot.map(|slot| self.template(slot)) {
            Some((spec, generation)) => self.target_of(generation, &spec.publish, port),
            None => Some(port.spec.target),
        }
    }

    /// The same of a task of a generation, with what was published then.
    pub fn target_of(&self, generation: u64, publish: &[PortSpec], port: &PublishedPort) -> Option<u16> {
        if generation == self.generation {
            return Some(port.spec.target);
        }
        let mut known = publish.iter();
        let known = known.find(|p| **p == port.asked() || p.same_place(&port.spec));
        known.map(|p| p.target)
    }

    /// Where a published port led before the change that is carried out, or the last one.
    pub fn targets_before<'s>(&'s self, port: &'s PublishedPort) -> impl Iterator<Item = u16> + 's {
        let pending = self.rollout.iter().flat_map(|r| &r.pending).map(|p| &*p.spec);
        let before = pending.chain(self.previous.as_deref());
        let same = move |spec: &'s ServiceSpec| spec.publish.iter().find(|p| p.same_place(&port.spec));
        before.filter_map(same).map(|p| p.target)
    }

    /// Ports that a slot's task listens on once it is ready.
    pub fn listened(&self, slot: Option<u32>) -> impl Iterator<Item = (Proto, u16)> + '_ {
        let ports = self.ports.values();
        ports.filter_map(move |p| Some((p.spec.proto, self.target(slot, p)?)))
    }

    /// Every network that a task of it may be on: those asked for, and those of tasks that are to be replaced.
    pub fn networks(&self) -> impl Iterator<Item = &Name> {
        let was = self.rollout.iter().flat_map(|r| &r.pending);
        let all: BTreeSet<&Name> = self
            .spec
            .networks
            .iter()
            .chain(was.flat_map(|p| &p.spec.networks))
            .collect();
        all.into_iter()
    }
}

/// A change of what tasks are made from, carried out some slots at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// How far it is.
    pub state: RolloutState,
    /// Slots that still run what was, by what that is: one entry, or more after a change in the middle of another one.
    /// A slot that is in none of them runs what is asked for now.
    pub pending: Vec<Pending>,
    /// Slots beyond those asked for, that take over while others are replaced (start-first).
    pub surge: SlotSet,
    /// Why it is paused or was rolled back; empty: nothing to say.
    pub message: String,
}

/// Slots that a change has not reached yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What they run.
    pub spec: Box<ServiceSpec>,
    /// Its generation.
    pub generation: u64,
    /// Which.
    pub slots: SlotSet,
}

impl Rollout {
    /// Whether it is not over: it is carried out, or paused.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, RolloutState::Completed | RolloutState::RollbackCompleted)
    }

    /// Whether slots are being replaced now.
    pub fn is_moving(&self) -> bool {
        matches!(self.state, RolloutState::Updating | RolloutState::RollbackStarted)
    }

    /// Whether it leads back to what was.
    pub fn is_rollback(&self) -> bool {
        matches!(
            self.state,
            RolloutState::RollbackStarted | RolloutState::RollbackPaused | RolloutState::RollbackCompleted
        )
    }

    /// Whether a slot still runs what was.
    pub fn is_pending(&self, slot: u32) -> bool {
        self.pending.iter().any(|p| p.slots.contains(slot))
    }
}

/// How far a change is (Swarm's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// Slots are being replaced.
    Updating,
    /// Stopped by failures; `service update` or `rollback` goes on.
    Paused,
    /// Every slot runs the new one.
    Completed,
    /// Slots go back to what was.
    RollbackStarted,
    /// Stopped by failures on the way back.
    RollbackPaused,
    /// Every slot runs what was.
    RollbackCompleted,
}

/// `80/tcp`, `192.0.2.1:80/tcp`, `eth0:80/tcp`: a published port is unique in its service, and of the mesh in the
/// cluster ([`PortSpec::meets`]).
pub type PortKey = String;

/// A published port as the log knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// As asked for, with the port that the log gave.
    pub spec: PortSpec,
    /// The log gave it.
    #[serde(default)]
    pub auto: bool,
    /// Index of its fwmark, the same on every node.
    pub mark: u32,
}

impl PublishedPort {
    /// As asked for: what stands in [`ServiceSpec::publish`].
    pub fn asked(&self) -> PortSpec {
        PortSpec {
            published: if self.auto { 0 } else { self.spec.published },
            ..self.spec
        }
    }
}

/// A VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Vip {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6, where the network has it.
    pub v6: Option<Ipv6Addr>,
}

/// A set of slots as sorted, disjoint, non-adjacent inclusive ranges: a thousand tasks are one pair of numbers. Slots
/// count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u32, u32)>")]
pub struct SlotSet(pub Vec<(u32, u32)>);

impl TryFrom<Vec<(u32, u32)>> for SlotSet {
    type Error = &'static str;

    /// From outside: what is not such a set is refused, or counting its slots would overflow, or never end.
    fn try_from(ranges: Vec<(u32, u32)>) -> Result<Self, Self::Error> {
        // Behind a range one slot at least is left out.
        let mut first = 1;
        let mut slots = 0;
        for (a, b) in &ranges {
            if *a < first || b < a {
                return Err("the ranges of a set of slots are not ascending and apart");
            }
            if *b > SlotSet::HIGHEST {
                return Err("a slot is higher than any service has");
            }
            slots += b - a + 1;
            if slots > SlotSet::MOST {
                return Err("more slots than any service has");
            }
            first = b.saturating_add(2);
        }
        Ok(SlotSet(ranges))
    }
}

impl SlotSet {
    /// Highest slot: those of global services are named by their nodes, and others stand above them while they are replaced.
    pub const HIGHEST: u32 = 2_000_000_000;
    /// Most slots in one set: those of the largest service, and as many again while each is replaced by one beside it, and
    /// room.
    pub const MOST: u32 = 4 * ServiceSpec::MAX_REPLICAS;

    /// Every slot, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|(a, b)| *a..=*b)
    }
    /// How many.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|(a, b)| b - a + 1).sum()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Whether `slot` is among them.
    pub fn contains(&self, slot: u32) -> bool {
        self.0
            .binary_search_by(|(a, b)| {
                if *b < slot {
                    std::cmp::Ordering::Less
                } else if *a > slot {
                    std::cmp::Ordering::Greater
                } else {
                    std::cmp::Ordering::Equal
                }
            })
            .is_ok()
    }
}

impl FromIterator<u32> for SlotSet {
    fn from_iter<T: IntoIterator<Item = u32>>(iter: T) -> Self {
        let sorted: BTreeSet<u32> = iter.into_iter().collect();
        let mut out: Vec<(u32, u32)> = Vec::new();
        for s in sorted {
            match out.last_mut() {
                Some((_, end)) if *end + 1 == s => *end = s,
                _ => out.push((s, s)),
            }
        }
        SlotSet(out)
    }
}

/// The difference between two intents. Applying it to `from` gives `to`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IntentDelta {
    /// Revision that it applies to; a receiver at another one asks for a snapshot (a delta from 0).
    pub from: u64,
    /// Revision that it leads to.
    pub to: u64,
    /// Id of the cluster.
    pub cluster: String,
    /// Changed or new (`Some`) and gone (`None`).
    pub nodes: BTreeMap<NodeId, Option<Node>>,
    /// As above.
    pub networks: BTreeMap<Name, Option<Network>>,
    /// As above.
    pub services: BTreeMap<Name, Option<Service>>,
    /// As above, per network.
    pub blocks: BTreeMap<Vni, Option<BTreeMap<u32, NodeId>>>,
    /// As above, per service.
    pub placements: BTreeMap<Name, Option<Shared<Placed>>>,
    /// As above, per service.
    #[serde(default)]
    pub leaving: BTreeMap<Name, Option<Shared<Placed>>>,
    /// If it has changed.
    #[serde(default)]
    pub trust: Option<Trust>,
    /// All settings, when one of them changed; always there in a snapshot.
    #[serde(default)]
    pub settings: Option<ClusterSettings>,
}

fn diff<K: Ord + Clone, V: PartialEq + Clone>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> BTreeMap<K, Option<V>> {
    let gone = old.keys().filter(|k| !new.contains_key(k)).map(|k| (k.clone(), None));
    let changed = new
        .iter()
        .filter(|(k, v)| old.get(k) != Some(v))
        .map(|(k, v)| (k.clone(), Some(v.clone())));
    gone.chain(changed).collect()
}

/// As [`diff`], of what is most often one and the same.
fn diff_shared<K: Ord + Clone, V: PartialEq + Clone>(
    old: &Shared<BTreeMap<K, V>>,
    new: &Shared<BTreeMap<K, V>>,
) -> BTreeMap<K, Option<V>> {
    match old.same(new) {
        true => BTreeMap::new(),
        false => diff(old, new),
    }
}

fn patch_shared<K: Ord + Clone, V: Clone>(map: &mut Shared<BTreeMap<K, V>>, delta: BTreeMap<K, Option<V>>) {
    if !delta.is_empty() {
        patch(map, delta);
    }
}

fn patch<K: Ord, V>(map: &mut BTreeMap<K, V>, delta: BTreeMap<K, Option<V>>) {
    for (k, v) in delta {
        match v {
            Some(v) => map.insert(k, v),
            None => map.remove(&k),
        };
    }
}

impl Intent {
    /// What leads from `self` to `new`.
    pub fn delta_to(&self, new: &Intent) -> IntentDelta {
        IntentDelta {
            from: self.revision,
            to: new.revision,
            cluster: new.cluster.clone(),
            nodes: diff_shared(&self.nodes, &new.nodes),
            networks: diff_shared(&self.networks, &new.networks),
            services: diff_shared(&self.services, &new.services),
            blocks: diff_shared(&self.blocks, &new.blocks),
            placements: diff(&self.placements, &new.placements),
            leaving: diff(&self.leaving, &new.leaving),
            trust: (self.trust != new.trust).then(|| new.trust.clone()),
            // Also the defaults are told once: another version may have others.
            settings: (self.revision == 0 || self.settings != new.settings).then(|| new.settings.clone()),
        }
    }

    /// Applies a delta that was made from this very revision (or from 0, a snapshot: what was known before is dropped).
    /// `false`: it was made from another one, nothing was changed.
    pub fn apply(&mut self, delta: IntentDelta) -> bool {
        if delta.from == 0 {
            *self = Intent::default();
        }
        if delta.from != self.revision {
            return false;
        }
        self.revision = delta.to;
        self.cluster = delta.cluster;
        patch_shared(&mut self.nodes, delta.nodes);
        patch_shared(&mut self.networks, delta.networks);
        patch_shared(&mut self.services, delta.services);
        patch_shared(&mut self.blocks, delta.blocks);
        patch(&mut self.placements, delta.placements);
        patch(&mut self.leaving, delta.leaving);
        if let Some(trust) = delta.trust {
            self.trust = trust;
        }
        if let Some(settings) = delta.settings {
            self.settings = settings;
        }
        true
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_leads_where_a_task_was_made_for() {
        let published = |text: &str, port: u16| {
            let asked: PortSpec = text.parse().unwrap();
            let spec = PortSpec {
                published: port,
                ..asked
            };
            let auto = asked.is_auto();
            PublishedPort { spec, auto, mark: 1 }
        };
        let spec = |ports: &[&str]| ServiceSpec {
            publish: ports.iter().map(|p| p.parse().unwrap()).collect(),
            ..ServiceSpec::default()
        };
        let pending = |generation, slots, ports: &[&str]| Pending {
            spec: Box::new(spec(ports)),
            generation,
            slots: SlotSet(vec![slots]),
        };
        let s = Service {
            spec: spec(&["80:9090", "443", "auto:70"]),
            generation: 9,
            rollout: Some(Rollout {
                state: RolloutState::Updating,
                pending: vec![
                    pending(7, (1, 2), &["80:8080", "auto:70"]),
                    pending(8, (3, 3), &["80:7070,mode=host", "443", "auto:71"]),
                ],
                surge: SlotSet::default(),
                message: String::new(),
            }),
            ..Service::default()
        };
        let ports = [
            published("80:9090", 80),
            published("443", 443),
            published("auto:70", 30_000),
        ];
        for (slot, want) in [
            (Some(1), [Some(8080), None, Some(70)]),
            (Some(3), [None, Some(443), None]),
            (Some(4), [Some(9090), Some(443), Some(70)]),
            (None, [Some(9090), Some(443), Some(70)]),
        ] {
            assert_eq!(ports.map(|p| s.target(slot, &p)), want, "{slot:?}");
        }
    }

    #[test]
    fn a_task_is_replaced_when_a_port_leads_elsewhere() {
        let with = |ports: &[&str]| ServiceSpec {
            publish: ports.iter().map(|p| p.parse().unwrap()).collect(),
            ..ServiceSpec::default()
        };
        let one = with(&["80:8080", "53/udp"]);
        assert!(one.replaces(&with(&["80:9090", "53/udp"])));
        // What comes and goes does so around the tasks.
        for around in [
            &["80:8080"][..],
            &["80:8080", "53/udp", "81:9090", "auto:70"],
            &["81:9090"],
            &["80:8080,mode=host"],
            &["192.0.2.1:80:9090"],
        ] {
            assert!(!one.replaces(&with(around)), "{around:?}");
        }
    }

    #[test]
    fn a_set_of_slots_from_outside_is_one_or_is_refused() {
        let read = |text: &str| serde_json::from_str::<SlotSet>(text).map(|s| (s.len(), s.iter().count()));
        assert_eq!(read("[]").unwrap(), (0, 0));
        assert_eq!(read("[[1,3],[5,5]]").unwrap(), (4, 4));
        for bad in [
            "[[3,1]]",
            "[[0,1]]",
            "[[1,2],[2,3]]",
            "[[1,2],[3,4]]",
            "[[5,6],[1,1]]",
            "[[1,4294967295]]",
            "[[2000000001,2000000001]]",
            "[[1,2000001],[1000000001,1002000001]]",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(read("[[4700,4700],[1000004700,1000004700]]").unwrap(), (2, 2));
        let all = SlotSet(vec![(1, 3), (5, 5)]);
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<SlotSet>(&text).unwrap(), all);
    }
}
