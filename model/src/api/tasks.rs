//! Tasks, and what an orchestrator is told to run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::EndpointId;
use crate::ids::Name;
use crate::ids::NodeId;
use crate::spec::{Health, Restart};

/// Tasks that a list over all services holds at most.
pub const MAX_TASKS: usize = 10_000;

/// A life stage of a task (Swarm's words), in the order in which they come; from `Complete` on it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Wanted, and no node found yet.
    New,
    /// Placed, not yet seen by its node.
    Assigned,
    /// Its node knows of it.
    Accepted,
    /// Its namespace is being made.
    Preparing,
    /// All is made, and something else is waited for.
    Ready,
    /// Its command was started.
    Starting,
    /// Its command runs.
    Running,
    /// Ended with 0 and not restarted.
    Complete,
    /// Stopped because the log no longer wants it here.
    Shutdown,
    /// Ended by an error, or found unhealthy.
    Failed,
    /// Its node could not start it.
    Rejected,
    /// Its node is gone.
    Orphaned,
}

impl TaskState {
    /// All of them.
    pub const ALL: [TaskState; 12] = [
        TaskState::New,
        TaskState::Assigned,
        TaskState::Accepted,
        TaskState::Preparing,
        TaskState::Ready,
        TaskState::Starting,
        TaskState::Running,
        TaskState::Complete,
        TaskState::Shutdown,
        TaskState::Failed,
        TaskState::Rejected,
        TaskState::Orphaned,
    ];

    /// Whether nothing comes after it.
    pub fn is_end(self) -> bool {
        self >= TaskState::Complete
    }

    /// Whether it ended as nobody wished.
    pub fn is_failure(self) -> bool {
        matches!(self, TaskState::Failed | TaskState::Rejected | TaskState::Orphaned)
    }

    /// Whether one and the same task may go from here to `next`. Stages may be passed over, since reports are; none comes
    /// twice, and nothing comes after an end.
    pub fn may_become(self, next: TaskState) -> bool {
        use TaskState::{Accepted, Complete, Orphaned, Rejected, Running};
        match next {
            _ if self.is_end() => false,
            // A command that ends at once has started and run between two reports.
            Complete => self >= Accepted,
            Rejected => self < Running,
            Orphaned => true,
            _ => next > self,
        }
    }

    /// Whether a node may say this of a task of its own; the others are the managers' to say.
    pub fn is_told_by_nodes(self) -> bool {
        !matches!(self, TaskState::New | TaskState::Assigned | TaskState::Orphaned)
    }
}

/// `GET /v1/services/NAME/tasks`, `GET /v1/nodes/NODE/tasks`, `GET /v1/tasks` ([`MAX_TASKS`] at most), `GET /v1/tasks/ID`:
/// the one that is wanted, then the newest, within a slot.
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
    /// Seconds in that state.
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
    /// What its health check says; none: there is none, or no probe has succeeded yet.
    #[serde(default)]
    pub health: Option<bool>,
    /// Process id on its node.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Its restarts on that node are used up.
    #[serde(default)]
    pub exhausted: bool,
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
    /// Restarts so far: another number is another task in the same slot.
    #[serde(default)]
    pub restarts: u32,
    /// Generation of what runs, or is being made or stopped ([`Assignment::generation`]); 0: not told.
    #[serde(default)]
    pub generation: u64,
    /// What the health check says; none: there is none, or no probe has succeeded yet.
    #[serde(default)]
    pub health: Option<bool>,
    /// Its restarts on this node are used up: it is not started here again.
    #[serde(default)]
    pub exhausted: bool,
    /// File with its output, an absolute path on the node.
    #[serde(default)]
    pub log: Option<String>,
    /// When it came into the state, seconds since 1970 by its node's clock; netd fills it in. 0: not known.
    #[serde(default)]
    pub at: u64,
}

impl TaskStatus {
    /// Of a state, with nothing more to say.
    pub fn of(state: TaskState) -> TaskStatus {
        TaskStatus {
            state,
            message: String::new(),
            pid: None,
            restarts: 0,
            generation: 0,
            health: None,
            exhausted: false,
            log: None,
            at: 0,
        }
    }
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
    /// Environment, templates filled in.
    pub env: BTreeMap<String, String>,
    /// Host name; none: the host's.
    pub hostname: Option<String>,
    /// What happens when it ends.
    pub restart: Restart,
    /// When it is fit for new flows; none: when it listens.
    pub health: Option<Health>,
    /// SIGTERM to SIGKILL, ms.
    pub stop_grace_ms: u64,
    /// How long established flows may go on when it leaves, ms.
    pub drain_timeout_ms: u64,
    /// A task running with another one is replaced.
    pub generation: u64,
}

#[cfg(test)]
mod tests {
    use super::TaskState::{self, *};

    /// The whole table: what each state may become.
    #[test]
    fn no_way_but_the_allowed_ones() {
        let table: [(TaskState, &[TaskState]); 12] = [
            (
                New,
                &[
                    Assigned, Accepted, Preparing, Ready, Starting, Running, Shutdown, Failed, Rejected, Orphaned,
                ],
            ),
            (
                Assigned,
                &[
                    Accepted, Preparing, Ready, Starting, Running, Shutdown, Failed, Rejected, Orphaned,
                ],
            ),
            (
                Accepted,
                &[
                    Preparing, Ready, Starting, Running, Complete, Shutdown, Failed, Rejected, Orphaned,
                ],
            ),
            (
                Preparing,
                &[Ready, Starting, Running, Complete, Shutdown, Failed, Rejected, Orphaned],
            ),
            (
                Ready,
                &[Starting, Running, Complete, Shutdown, Failed, Rejected, Orphaned],
            ),
            (Starting, &[Running, Complete, Shutdown, Failed, Rejected, Orphaned]),
            (Running, &[Complete, Shutdown, Failed, Orphaned]),
            (Complete, &[]),
            (Shutdown, &[]),
            (Failed, &[]),
            (Rejected, &[]),
            (Orphaned, &[]),
        ];
        assert_eq!(table.map(|(s, _)| s), TaskState::ALL, "every state, in order");
        for (from, to) in table {
            let got: Vec<TaskState> = TaskState::ALL.into_iter().filter(|s| from.may_become(*s)).collect();
            assert_eq!(got, to, "from {from:?}");
        }
    }
}
