//! Tasks, and what an orchestrator is told to run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::EndpointId;
use crate::ids::Name;
use crate::ids::NodeId;

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
    /// Generation of what it runs ([`Assignment::generation`]); 0: not told.
    #[serde(default)]
    pub generation: u64,
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
    /// Generation of what runs, or is being made or stopped ([`Assignment::generation`]); 0: not told.
    #[serde(default)]
    pub generation: u64,
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
