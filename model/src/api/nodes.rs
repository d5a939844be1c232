//! Nodes, and how far they have come.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::NetworkView;
use super::ServiceView;
use crate::ids::NodeId;
use crate::intent::Availability;
use crate::intent::Machine;
use crate::intent::Role;
use crate::row::Datapath;
use crate::spec::Resources;

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
    /// Why it is that one; none: not told (known to managers, and of the node that answers).
    #[serde(default)]
    pub datapath_why: Option<String>,
    /// Where what it does for published ports is in the kernel; none: it is another node than the one that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub here: Option<super::KernelPlace>,
    /// Version of netd.
    pub version: Option<String>,
    /// Newest revision that it has reported as applied (known to managers).
    pub applied: Option<u64>,
    /// Tasks placed on it, and those that go on there until their successors elsewhere are ready or have not ended yet.
    pub tasks: u32,
    /// Labels, for constraints.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Most tasks that may be placed on it; none: no limit.
    #[serde(default)]
    pub max_tasks: Option<u32>,
    /// What it has told of itself.
    #[serde(default)]
    pub machine: Machine,
    /// What its tasks reserve.
    #[serde(default)]
    pub reserved: Resources,
    /// What is left of its capacity; none: it has not told it.
    #[serde(default)]
    pub free: Option<Resources>,
    /// What it could not apply, from its last report.
    pub problems: Vec<String>,
}

/// `POST /v1/nodes/NODE`: what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeChange {
    /// Active, pause, drain.
    pub availability: Option<Availability>,
    /// Labels to set, and (null) to take away.
    pub labels: BTreeMap<String, Option<String>>,
    /// Most tasks on it; 0: no limit.
    pub max_tasks: Option<u32>,
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
    /// Why its data path is the one that it is; empty: not told.
    #[serde(default)]
    pub datapath: String,
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
    /// How the intent has come from managers since this netd began.
    #[serde(default)]
    pub taken: IntentTaken,
    /// Kernel writes of the last reconcile on this node, and in all since start.
    pub writes: Writes,
    /// Counters of the data path of this node that are not 0.
    pub counters: BTreeMap<String, u64>,
    /// What is wrong on this node.
    pub problems: Vec<String>,
}

/// In which pieces a node got the intent. One that comes back within a few megabytes of changes, or to a manager that
/// knows what it knows, gets increments alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IntentTaken {
    /// All of it at once.
    pub whole: u64,
    /// What had changed.
    pub increments: u64,
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
