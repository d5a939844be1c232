//! The replicated state machine: what every manager holds after the same entries of the log.
//!
//! [`State::apply`] is the only way to change it. It is a pure function of the state and the entry: no clock (log time
//! comes with the entry), no randomness (ids of requests and the ULA prefix do too). A refused command changes nothing
//! but the memory of its request.

mod avoid;
mod command;
mod dry;
mod networks;
mod node_update;
mod nodes;
mod orderly;
mod place;
mod placement_check;
mod ports;
mod refill;
mod requests;
mod roles;
mod rollouts;
mod secrets;
mod services;
mod settings;
mod snapshot;
mod task;
#[cfg(test)]
mod tests;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use model::{
    Intent, Name, NodeId, PortSpec, Vni,
    intent::{Availability, BLOCK},
};
use serde::{Deserialize, Serialize};

use crate::{
    ipam::Pool,
    mutant::{self, Mutant},
    placement::Load,
};

pub use command::{
    Applied, CodecError, Command, Envelope, InitCluster, MAX_COMMAND, NewNode, NodeUpdate, Refusal, RolloutEnd, Secret,
    ServiceUpdate,
};
pub use dry::{Preview, Proposal};
pub use place::SURGE_OF_NODE;
pub use requests::{FEWEST, MOST, Outcome, REMEMBERED_MS};
pub use roles::{EPOCH, MAX_MANAGERS};
pub use secrets::{TOKEN_MANAGER, TOKEN_WORKER};
pub use settings::check as check_settings;
pub use snapshot::SnapshotError;

/// Highest index of a published port's mark: the mark is `0x6e000000 + index` (CONTRACTS, IPVS numbers). The upper half of
/// what is below 0x6f000000 belongs to VIPs, by their place in the network (`mesh::ipvs::VIP_MARKS`).
const MARK_MAX: u32 = 0x007f_ffff;
/// Highest index of a service.
const SERVICE_MAX: u32 = u32::MAX - 1;

/// All that the log has agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The part that is no secret; shared with readers, copied when it is changed while they hold it.
    #[serde(with = "shared")]
    intent: Arc<Intent>,
    /// Index of the last entry, changed or not.
    applied: u64,
    /// Log time, ms.
    now_ms: u64,
    /// Set by `InitCluster`.
    pools: Option<Pools>,
    /// What managers alone may know.
    secrets: BTreeMap<String, Secret>,
    /// Index of the entry that changed them last.
    secrets_at: u64,
    /// Index of the entry that removed a node last.
    removed_at: u64,
    next_node: u64,
    /// Raft's ids are not the nodes': a manager that lost its disk must not vote twice under one id.
    next_raft: u64,
    /// Raft ids that get the log, voters or not, and those that still vote although they are leaving.
    raft_members: BTreeSet<u64>,
    raft_leaving: BTreeSet<u64>,
    /// Raft ids of managers that took part under them and were taken out while they stayed managers: they have voted.
    raft_spent: BTreeSet<u64>,
    vnis: Pool,
    indices: Pool,
    marks: Pool,
    /// Published ports that the log chooses.
    autos: Pool,
    /// Those of them that hosts use, as last seen.
    busy: BTreeSet<u16>,
    /// Offsets of VIPs and numbers of blocks, per network.
    nets: BTreeMap<Vni, NetPools>,
    /// Nodes that services are not given, each until when, ms of log time.
    avoided: BTreeMap<Name, BTreeMap<NodeId, u64>>,
    requests: requests::Requests,
    /// What is on each node in all: derived from the placements.
    #[serde(skip)]
    loads: BTreeMap<NodeId, Load>,
    /// Who holds a published port: derived from the services.
    #[serde(skip)]
    ports: ports::Holders,
}

/// Where the next subnet is looked for: slices of the pools in the settings, in a circle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pools {
    next_v4: u32,
    next_v6: u32,
}

/// What a network gives out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NetPools {
    vips: Pool,
    blocks: Pool,
}

impl NetPools {
    fn new(n: &model::intent::Network) -> NetPools {
        NetPools {
            vips: Pool::new(1..n.vip_pool().max(BLOCK)),
            blocks: Pool::new(n.block_numbers()),
        }
    }
}

impl Default for State {
    fn default() -> Self {
        State {
            intent: Arc::default(),
            applied: 0,
            now_ms: 0,
            pools: None,
            secrets: BTreeMap::new(),
            secrets_at: 0,
            removed_at: 0,
            next_node: 1,
            next_raft: 1,
            raft_members: BTreeSet::new(),
            raft_leaving: BTreeSet::new(),
            raft_spent: BTreeSet::new(),
            vnis: Pool::new(Vni::FIRST..Vni::MAX + 1).claimable_from(1),
            indices: Pool::new(1..SERVICE_MAX),
            marks: Pool::new(1..MARK_MAX),
            autos: Pool::new(u32::from(*PortSpec::AUTO.start())..u32::from(*PortSpec::AUTO.end()) + 1),
            busy: BTreeSet::new(),
            nets: BTreeMap::new(),
            avoided: BTreeMap::new(),
            requests: requests::Requests::default(),
            loads: BTreeMap::new(),
            ports: BTreeMap::new(),
        }
    }
}

impl State {
    /// Applies the entry at `index`. Returns the revision that holds the change, and what was given out; a request seen
    /// before gets its first answer again, and nothing changes.
    pub fn apply(&mut self, index: u64, envelope: &Envelope) -> Outcome {
        self.applied = index;
        self.now_ms = match mutant::on(Mutant::TimeGoesBack) {
            true => envelope.time_ms,
            false => self.now_ms.max(envelope.time_ms),
        };
        if let Some(known) = self.requests.get(envelope.request) {
            return known.clone();
        }
        let outcome = self.run(index, &envelope.command).map(|applied| {
            // What changed nothing has no revision of its own: nobody needs to be told.
            (self.intent.revision, applied)
        });
        self.requests.put(self.now_ms, envelope.request, outcome.clone());
        outcome
    }

    /// Tells that an entry without a command (a leader's first, a change of voters) was passed.
    pub fn pass(&mut self, index: u64) {
        self.applied = index;
        if mutant::on(Mutant::FreeVip) {
            self.nets.values_mut().for_each(|n| n.vips.forget_first());
        }
    }

    fn run(&mut self, index: u64, command: &Command) -> Result<Applied, Refusal> {
        match command {
            Command::InitCluster(init) => self.init(index, init),
            _ if self.pools.is_none() => Err(no_cluster()),
            Command::AddNode(node) => self.add_node(index, node, Availability::Active),
            Command::RemoveNode { node } => self.remove_node(index, *node),
            Command::SetNodeDown { node, down } => self.set_down(index, *node, *down),
            Command::SetAvailability { node, availability } => self.set_availability(index, *node, *availability),
            Command::UpdateNode { node, update } => self.update_node(index, *node, update),
            Command::SetMachine { node, machine } => self.set_machine(index, *node, machine),
            Command::Rebalance { service, budget } => self.rebalance(index, service, *budget),
            Command::CreateNetwork { name, spec, avoid } => self.create_network(index, name, spec, avoid),
            Command::RemoveNetwork { name } => self.remove_network(index, name),
            Command::CreateService { name, spec } => self.create_service(index, name, spec),
            Command::UpdateService { name, update } => self.update_service(index, name, update),
            Command::Scale { name, replicas } => self.update_service(
                index,
                name,
                &ServiceUpdate {
                    replicas: Some(*replicas),
                    ..ServiceUpdate::default()
                },
            ),
            Command::ReplaceService { name, spec, seen } => self.replace_service(index, name, spec, *seen),
            Command::Rollback { name } => self.rollback(index, name),
            Command::Advance {
                service,
                generation,
                slots,
                surge,
            } => self.advance(index, service, *generation, slots, surge),
            Command::EndRollout {
                service,
                generation,
                end,
                message,
            } => self.end_rollout(index, service, *generation, *end, message),
            Command::Release { service, node, slots } => self.release(index, service, *node, slots),
            Command::RemoveService { name } => self.remove_service(index, name),
            Command::Publish { service, port } => self.publish(index, service, *port),
            Command::SeePorts(ports) => self.see_ports(ports),
            Command::Unpublish { service, port } => self.unpublish(index, service, *port),
            Command::AssignBlock { node, vni } => self.assign_block(index, *node, *vni),
            Command::ReleaseBlocks { node, vni, blocks } => self.release_blocks(index, *node, *vni, blocks),
            Command::SetSecrets(secrets) => self.set_secrets(index, secrets),
            Command::SetRole { node, role, rpc } => self.set_role(index, *node, *role, rpc.as_deref()),
            Command::RenewRaft { node, old } => self.renew_raft(index, *node, *old),
            Command::Join {
                node,
                secret,
                availability,
            } => self.join(index, node, secret, *availability),
            Command::ReplaceSecrets { seen, secrets, trust } => self.replace_secrets(index, *seen, secrets, trust),
            Command::Avoid { service, node, slots } => self.avoid(index, service, *node, slots),
            Command::UpdateSettings(changes) => self.update_settings(index, changes),
        }
    }

    /// The part that every node may know; cheap.
    pub fn intent(&self) -> Arc<Intent> {
        Arc::clone(&self.intent)
    }

    /// What is on a node in all.
    pub fn load(&self, node: NodeId) -> Load {
        self.loads.get(&node).copied().unwrap_or_default()
    }

    /// Index of the last entry applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Log time, ms. A new leader goes on from here.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Whether `InitCluster` was applied.
    pub fn is_initialised(&self) -> bool {
        self.pools.is_some()
    }

    /// The intent, to be changed by the entry at `index`.
    fn change(&mut self, index: u64) -> &mut Intent {
        let intent = Arc::make_mut(&mut self.intent);
        intent.revision = index;
        intent
    }
}

fn no_cluster() -> Refusal {
    Refusal::new(model::Code::NoCluster, "there is no cluster yet", "netctl cluster init")
}

/// An `Arc` as what it holds: serde's own feature for it would be switched on for every crate.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(v: &Arc<T>, s: S) -> Result<S::Ok, S::Error> {
        T::serialize(v, s)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Arc<T>, D::Error> {
        T::deserialize(d).map(Arc::new)
    }
}
