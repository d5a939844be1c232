//! What is said on `/run/netd/netd.sock`: HTTP/1.1 with JSON below `/v1`. Each type names its path.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{EndpointId, Mac, Name, NodeId, Proto, Vni},
    intent::{Availability, Network, Role, Service},
    row::{Datapath, EndpointState},
    settings::ClusterSettings,
    spec::PortSpec,
};

/// Header of a request: a hexadecimal number that its sender chose. The same one sent again changes nothing again.
pub const REQUEST_HEADER: &str = "netd-request";

/// Header of an answer that may be old, and why.
pub const STALE_HEADER: &str = "netd-stale";

/// `POST /v1/cluster/init`: makes a one-manager cluster of this node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterInit {
    /// Address that the others reach this node by, or the device that has it, `ADDR[:PORT]`; default: the only address
    /// that is not loopback. It need not be this host's (NAT). The port is the managers' RPC's.
    pub advertise_addr: Option<String>,
    /// Where the managers' RPC listens, `ADDR[:PORT]`; default: as the configuration says.
    pub listen_addr: Option<String>,
    /// Where the others send VXLAN to, an address or a device; default: the advertised address.
    pub data_path_addr: Option<String>,
    /// Port of gossip; default: as the configuration says.
    pub gossip_port: Option<u16>,
    /// Registry that this node is announced in while it is a manager; default: as the configuration says.
    pub announce: Option<String>,
    /// Settings that the cluster begins with, as `POST /v1/cluster/update` takes them; default: those of the node's
    /// configuration, then those of [`ClusterSettings`].
    pub settings: BTreeMap<String, String>,
}

/// Answer to init.
#[derive(Clone, Serialize, Deserialize)]
pub struct ClusterInitAnswer {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of this node.
    pub node: NodeId,
    /// `ip:port` to join at.
    pub addr: String,
    /// Token for workers.
    pub worker_token: String,
    /// With `autolock`: the key that opens managers after a restart. It is told here, and by `unlock-key`.
    #[serde(default)]
    pub unlock_key: Option<String>,
}

impl std::fmt::Debug for ClusterInitAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest is secret.
        f.debug_struct("ClusterInitAnswer")
            .field("cluster", &self.cluster)
            .field("node", &self.node)
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// `POST /v1/cluster/join`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterJoin {
    /// Token with the CA's pin and a secret.
    pub token: String,
    /// A manager, `host[:port]`; empty: `discover` tells.
    #[serde(default)]
    pub addr: String,
    /// Where managers can be found: `nodes://`, `file://`, `dns://`, `token://`, `etcd://`, `consul://`, `zk://`.
    #[serde(default)]
    pub discover: Option<String>,
    /// As at init; default: the address that leads to the manager.
    #[serde(default)]
    pub advertise_addr: Option<String>,
    /// As at init.
    #[serde(default)]
    pub listen_addr: Option<String>,
    /// As at init.
    #[serde(default)]
    pub data_path_addr: Option<String>,
    /// As at init.
    #[serde(default)]
    pub gossip_port: Option<u16>,
    /// As at init.
    #[serde(default)]
    pub announce: Option<String>,
}

impl std::fmt::Debug for ClusterJoin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest is secret.
        f.debug_struct("ClusterJoin")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// Answer to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterJoinAnswer {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of this node.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
}

/// `POST /v1/cluster/leave`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterLeave {
    /// Also when this node is the last manager, or managers cannot be told.
    pub force: bool,
}

/// `GET /v1/cluster/token?role=worker`.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenAnswer {
    /// The token.
    pub token: String,
    /// `ip:port` to join at.
    pub addr: String,
}

impl std::fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest is secret.
        f.debug_struct("TokenAnswer")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// How a node is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeHealth {
    /// Answers.
    Ready,
    /// Its daemon is silent, its host answers: the data path stands.
    DaemonDown,
    /// Its host is silent: backends are out.
    Down,
    /// Not seen yet.
    Unknown,
}

/// `GET /v1/nodes`: a list of these.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeView {
    /// Id.
    pub id: NodeId,
    /// Host name.
    pub hostname: String,
    /// Role.
    pub role: Role,
    /// Availability.
    pub availability: Availability,
    /// As this node (or the leader, on managers) sees it.
    pub health: NodeHealth,
    /// Whether it leads the managers.
    pub leader: bool,
    /// Whether it is the node that answers.
    pub me: bool,
    /// Data-path address.
    pub addr: Option<String>,
    /// Data path in use.
    pub datapath: Option<Datapath>,
    /// Version of netd.
    pub version: Option<String>,
    /// Newest revision that it has reported as applied (known to managers).
    pub applied: Option<u64>,
    /// Tasks placed on it.
    pub tasks: u32,
    /// What it could not apply, from its last report.
    pub problems: Vec<String>,
}

/// A manager's part in Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vote {
    /// It votes.
    Voter,
    /// It gets the log, and will vote once it has it.
    Learner,
    /// It is to become a manager, and is not heard yet.
    None,
}

/// `GET /v1/cluster/members`: a list of these.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberView {
    /// Id.
    pub id: NodeId,
    /// Host name.
    pub hostname: String,
    /// Role.
    pub role: Role,
    /// Gossip address.
    pub addr: Option<String>,
    /// Health.
    pub health: NodeHealth,
    /// Last log index (managers).
    pub log_index: Option<u64>,
    /// Raft term (managers).
    pub term: Option<u64>,
    /// Whether it leads.
    pub leader: bool,
    /// Its part in Raft (managers).
    #[serde(default)]
    pub vote: Option<Vote>,
    /// Last log index applied (managers).
    #[serde(default)]
    pub applied: Option<u64>,
    /// Whether it answers the manager that tells this (managers).
    #[serde(default)]
    pub reachable: Option<bool>,
    /// Time to it and back, microseconds, from the manager that tells this (other managers).
    #[serde(default)]
    pub round_trip_us: Option<u64>,
    /// Why it is not reached, or cannot do its part.
    #[serde(default)]
    pub problem: Option<String>,
}

/// `GET /v1/cluster/quorum`: whether the cluster can be changed, and what it can bear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumView {
    /// Managers that vote.
    pub voters: u32,
    /// Managers that will.
    pub learners: u32,
    /// Voters that must agree.
    pub quorum: u32,
    /// Voters that answer the manager that tells this, itself among them.
    pub reachable: u32,
    /// Voters that may still fail before nothing can be changed any more.
    pub tolerated: u32,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// Term.
    pub term: u64,
    /// Why nothing can be changed now.
    pub problem: Option<String>,
    /// What would be better.
    pub warning: Option<String>,
}

/// `POST /v1/nodes/NODE/role`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleChange {
    /// To what.
    pub role: Role,
    /// Also if too few of the managers that would be left can be reached.
    #[serde(default)]
    pub force: bool,
}

/// Answer to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoleAnswer {
    /// Node.
    pub node: NodeId,
    /// Revision that holds the change.
    pub revision: u64,
    /// What there is to tell.
    pub message: String,
    /// What would be better.
    pub warning: Option<String>,
}

/// `POST /v1/cluster/transfer`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transfer {
    /// Who is to lead, an id or a host name; none: the manager that has most of the log.
    pub to: Option<String>,
}

/// Answer to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TransferAnswer {
    /// Who leads now.
    pub leader: NodeId,
}

/// `POST /v1/cluster/backup`: a sealed copy of all that the managers know, secrets included.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Passphrase, or the octets of a key file, base64.
    pub secret: String,
}

/// Answer to it.
#[derive(Clone, Serialize, Deserialize)]
pub struct BackupAnswer {
    /// Id of the cluster.
    pub cluster: String,
    /// Index of the last log entry in it.
    pub index: u64,
    /// The file, base64.
    pub file: String,
}

/// `POST /v1/cluster/restore`: makes a one-manager cluster of this node from a backup.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// As for the backup.
    pub secret: String,
    /// The file, base64.
    pub file: String,
    /// As at init.
    #[serde(default)]
    pub advertise_addr: Option<String>,
    /// Also if a manager of that cluster answers.
    #[serde(default)]
    pub force: bool,
}

/// Answer to a restore and to `POST /v1/cluster/recover`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AloneAnswer {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of this node, now its only manager.
    pub node: NodeId,
    /// Revision that it goes on from.
    pub revision: u64,
    /// Managers that were; they are workers now.
    pub former: Vec<String>,
}

/// `GET /v1/networks`, `GET /v1/networks/NAME`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkView {
    /// Name.
    pub name: Name,
    /// As the log knows it.
    #[serde(flatten)]
    pub network: Network,
    /// Services on it.
    pub services: Vec<Name>,
    /// Endpoints known on all nodes.
    pub endpoints: u32,
    /// Blocks given out: node -> prefixes.
    pub blocks: BTreeMap<NodeId, Vec<String>>,
}

/// Answer to every change of intent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Changed {
    /// Revision that holds the change; wait for it with `/v1/convergence`.
    pub revision: u64,
    /// What there is to tell, e.g. the subnet chosen.
    pub message: String,
}

/// `GET /v1/convergence?revision=N`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Convergence {
    /// As asked.
    pub revision: u64,
    /// Every living node has applied it.
    pub converged: bool,
    /// Nodes.
    pub nodes: Vec<NodeProgress>,
}

/// A node's progress.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeProgress {
    /// Node.
    pub id: NodeId,
    /// Host name.
    pub hostname: String,
    /// Whether it counts: a dead one is named but not waited for.
    pub living: bool,
    /// Newest revision applied.
    pub applied: u64,
    /// What it could not apply.
    pub problems: Vec<String>,
}

/// `GET /v1/services`, `GET /v1/services/NAME`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceView {
    /// Name.
    pub name: Name,
    /// As the log knows it.
    #[serde(flatten)]
    pub service: Service,
    /// Endpoints that take new flows.
    pub ready: u32,
    /// Endpoints.
    pub backends: Vec<BackendView>,
}

/// A backend as this node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackendView {
    /// Endpoint.
    pub endpoint: EndpointId,
    /// Node.
    pub node: NodeId,
    /// Host name of the node.
    pub hostname: String,
    /// Network.
    pub vni: Vni,
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
    /// State.
    pub state: EndpointState,
    /// Whether it is in the new-flow set here.
    pub in_use: bool,
    /// Why not, when it is not.
    pub why: Option<String>,
    /// Listening ports.
    pub listening: Vec<(Proto, u16)>,
}

/// `POST /v1/services/NAME/scale`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Tasks.
    pub replicas: u32,
}

/// `POST /v1/publish` and `POST /v1/unpublish`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Service; none: the one whose tasks listen on the target port, or the only one there is.
    #[serde(default)]
    pub service: Option<Name>,
    /// Ports.
    pub port: PortSpec,
}

/// Answer to publish and unpublish.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PublishAnswer {
    /// Revision of the change.
    pub revision: u64,
    /// Service chosen.
    pub service: Name,
    /// Ports.
    pub port: PortSpec,
}

/// A life stage of a task (Swarm's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Placed, not yet seen by its node.
    Assigned,
    /// Its namespace is being made.
    Preparing,
    /// Its command was started.
    Starting,
    /// Its command runs.
    Running,
    /// Ended with 0 and not restarted.
    Complete,
    /// Ended by an error; restarted after a pause.
    Failed,
    /// Stopped because the log no longer wants it here.
    Shutdown,
    /// Its node is gone.
    Orphaned,
}

/// `GET /v1/services/NAME/tasks`: newest first within a slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskView {
    /// `web.1`.
    pub id: EndpointId,
    /// Service.
    pub service: Name,
    /// Slot.
    pub slot: u32,
    /// Node.
    pub node: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Whether the log wants it there now (else: history).
    pub desired: bool,
    /// State.
    pub state: TaskState,
    /// Seconds in that state, as the manager saw it.
    pub since_s: u64,
    /// Message, e.g. `exit status 1, next try in 2 s`.
    pub message: String,
    /// Addresses.
    pub addresses: Vec<String>,
    /// Restarts on that node.
    pub restarts: u32,
}

/// `PUT /v1/tasks/ID/status`: what the runner reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskStatus {
    /// State.
    pub state: TaskState,
    /// Message for people.
    #[serde(default)]
    pub message: String,
    /// Process id in netd-run's pid namespace.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Restarts so far.
    #[serde(default)]
    pub restarts: u32,
}

/// A line of `GET /v1/watch?resource=assignments` (NDJSON): the whole set at each change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignments {
    /// Revision.
    pub revision: u64,
    /// Node.
    pub node: NodeId,
    /// Tasks that should run on it.
    pub tasks: Vec<Assignment>,
}

/// A task that should run here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// `web.1`: also the id of its endpoint.
    pub id: EndpointId,
    /// Service.
    pub service: Name,
    /// Slot.
    pub slot: u32,
    /// Networks to attach to, first one first.
    pub networks: Vec<Name>,
    /// Command and arguments.
    pub command: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// SIGTERM to SIGKILL, ms.
    pub stop_grace_ms: u64,
    /// A task running with another one is replaced.
    pub generation: u64,
}

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
    /// State.
    pub state: EndpointState,
    /// Text of the resolv.conf that its processes should see.
    pub resolv_conf: String,
    /// What is wrong, e.g. a namespace that vanished.
    pub problem: Option<String>,
}

/// `GET /v1/status`: the one screen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// This node; none: in no cluster.
    pub me: Option<NodeId>,
    /// Id of the cluster.
    pub cluster: String,
    /// Newest revision known here.
    pub revision: u64,
    /// Newest revision applied to this node's kernel.
    pub applied: u64,
    /// Leader, when known.
    pub leader: Option<NodeId>,
    /// Whether every living node has applied `revision`; none: unknown here (no manager reached).
    pub converged: Option<bool>,
    /// Nodes.
    pub nodes: Vec<NodeView>,
    /// Networks.
    pub networks: Vec<NetworkView>,
    /// Services.
    pub services: Vec<ServiceView>,
    /// Kernel writes of the last reconcile on this node, and in all since start.
    pub writes: Writes,
    /// Counters of the data path of this node that are not 0.
    pub counters: BTreeMap<String, u64>,
    /// What is wrong on this node.
    pub problems: Vec<String>,
}

/// Kernel writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Writes {
    /// In the last reconcile.
    pub last: u64,
    /// Since netd started.
    pub total: u64,
    /// Reconciles since netd started.
    pub runs: u64,
}

/// A line of `GET /v1/watch?resource=nodes`: every node, told again at each change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodesSeen {
    /// Health as seen from the node that answers.
    pub nodes: BTreeMap<NodeId, NodeHealth>,
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

/// `GET /v1/cluster`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterView {
    /// Id of the cluster.
    pub id: String,
    /// Newest revision known here.
    pub revision: u64,
    /// Managers.
    pub managers: u32,
    /// Nodes, managers among them.
    pub nodes: u32,
    /// Settings as data.
    pub settings: ClusterSettings,
    /// Settings as people read and type them, in the order in which they are shown.
    pub table: Vec<SettingView>,
}

/// A setting of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingView {
    /// Key.
    pub key: String,
    /// Value now.
    pub value: String,
    /// Value when nobody says anything.
    pub default: String,
    /// What it may be.
    pub range: String,
    /// What it does.
    pub help: String,
}

/// `POST /v1/cluster/update`: all of it is carried out, or nothing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterUpdate {
    /// Key -> value, as people type them.
    pub set: BTreeMap<String, String>,
}

/// `POST /v1/discover`: asks a registry for managers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discover {
    /// URL, as for [`ClusterJoin::discover`].
    pub url: String,
}

/// Answer to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Discovered {
    /// `host:port` of managers.
    pub addresses: Vec<String>,
}

/// `POST /v1/cluster/token`: makes the token of a role worthless; the answer is a [`TokenAnswer`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRotate {
    /// Whose.
    pub role: Role,
}

/// `POST /v1/cluster/renew`: proves this node anew by a token, when its certificate is too old to be traded in. Its id,
/// its tasks and its state stay.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterRenew {
    /// Token of the node's role.
    pub token: String,
    /// A manager, `ip[:port]`.
    pub addr: String,
}

impl std::fmt::Debug for ClusterRenew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest is secret.
        f.debug_struct("ClusterRenew")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// `GET /v1/cluster/custody`: how the CA, the gossip keys and the certificates stand.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CustodyView {
    /// The CA.
    pub ca: CaView,
    /// Gossip keys.
    pub gossip: GossipKeysView,
    /// Whether managers' disks are sealed.
    pub autolock: bool,
    /// Ends of the certificates that connected nodes have reported, seconds since 1970.
    pub certificates: BTreeMap<NodeId, u64>,
}

/// The CA.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CaView {
    /// The root that certificates come from.
    pub signs: RootView,
    /// Roots that nodes trust: two while the CA is changed.
    pub trusted: Vec<RootView>,
    /// `trust`: all nodes learn to trust the new root; `renew`: all get certificates of it; none: no change is under way.
    pub phase: Option<String>,
    /// Seconds that the phase lasts already.
    pub since_s: Option<u64>,
    /// Nodes that it waits for; one that is dead is not waited for and trades in its certificate when it returns.
    pub waits_for: Vec<NodeId>,
}

/// A root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RootView {
    /// SHA-256 of its certificate, hexadecimal.
    pub fingerprint: String,
    /// Whether managers have its key; else an external signer has.
    pub key_here: bool,
}

/// The gossip keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GossipKeysView {
    /// Numbers, the one to seal with first.
    pub keys: Vec<u32>,
    /// `receive`: all learn to open with the new one; `send`: it seals; none: no change is under way.
    pub phase: Option<String>,
    /// Age of the newest one, seconds of log time.
    pub age_s: u64,
    /// Nodes that the change waits for.
    pub waits_for: Vec<NodeId>,
}

/// `POST /v1/cluster/ca/rotate`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaRotate {
    /// Certificate (PEM) of a CA whose key the external signer has; none: a new root of the managers' own.
    pub ca_cert: Option<String>,
}

/// Longest secret that a person types, octets.
pub const MAX_SECRET_TEXT: usize = 256;

/// `POST /v1/cluster/unlock`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterUnlock {
    /// The unlock key.
    pub key: String,
}

impl std::fmt::Debug for ClusterUnlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It is a secret.
        f.debug_struct("ClusterUnlock").finish_non_exhaustive()
    }
}

/// `GET /v1/cluster/unlock-key`, and `POST` of the same, which changes it.
#[derive(Clone, Serialize, Deserialize)]
pub struct UnlockKeyAnswer {
    /// The key that opens managers after a restart.
    pub key: String,
}

impl std::fmt::Debug for UnlockKeyAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnlockKeyAnswer").finish_non_exhaustive()
    }
}
