//! What a task is told, and what it says is to be done.

use model::{
    NodeId,
    api::{Assignment, EndpointCreate, TaskStatus},
    spec::Health,
};
use serde::{Deserialize, Serialize};

/// A task that the log wants on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The node, as the cluster names it.
    pub(crate) node: NodeId,
    /// The task.
    pub(crate) task: Assignment,
}

impl Order {
    /// Whether a task that runs for `self` also serves `new`.
    pub(super) fn serves(&self, new: &Order) -> bool {
        let key = |o: &Order| (o.node, o.task.generation);
        key(self) == key(new) && self.task.networks == new.task.networks
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The log wants it so.
    Wanted(Box<Order>),
    /// The log does not want it here any more.
    Unwanted,
    /// netd is back: it is told everything again, and asked for the endpoint again.
    Reconnected,
    /// The endpoint is there.
    Attached {
        /// Whether what runs, if anything does, runs in its namespace.
        same: bool,
    },
    /// It is not; why.
    NotAttached(String),
    /// The command was started.
    Started {
        /// Process id.
        pid: u32,
    },
    /// It was not; why.
    NotStarted(String),
    /// The started process has ended. What it started may live on.
    Exited(End),
    /// Answer to the probe of that number: well, or how it failed.
    Probed {
        /// As in [`Action::Probe`].
        number: u32,
        /// What it came to.
        answer: Result<(), String>,
    },
    /// Nothing of it is left.
    Empty,
    /// No node sends new flows to it, or netd has waited long enough.
    Drained,
    /// The endpoint is gone.
    Detached,
    /// It is not; why.
    NotDetached(String),
    /// Time has passed.
    Tick,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// In words.
    pub(crate) how: String,
    /// With status 0.
    pub(crate) well: bool,
}

/// What an earlier life of this program left of a task.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// What it ran for.
    pub(crate) order: Order,
    /// Its process, if it still runs.
    pub(crate) pid: Option<u32>,
    /// Restarts so far.
    pub(crate) restarts: u32,
    /// Those that count for the restart policy.
    pub(crate) recent: u32,
    /// Its namespace is there.
    pub(crate) attached: bool,
    /// As last told.
    pub(crate) health: Option<bool>,
    /// It is not to be started again here: what was told last.
    pub(crate) done: Option<TaskStatus>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask netd for the endpoint; answered by [`Event::Attached`] or [`Event::NotAttached`].
    Attach(EndpointCreate),
    /// Start the command in the endpoint's namespace; answered by [`Event::Started`] or [`Event::NotStarted`].
    Start {
        /// What.
        order: Box<Order>,
        /// For the record.
        restarts: u32,
    },
    /// Ask the running task for its health; answered by [`Event::Probed`].
    Probe {
        /// To be given back.
        number: u32,
        /// What, and for how long.
        health: Box<Health>,
    },
    /// Keep on record, over a restart of this program: restarts that count, and, when it is not to be started again here,
    /// what was told last.
    Remember {
        /// See [`Found::recent`].
        recent: u32,
        /// See [`Found::done`].
        done: Option<TaskStatus>,
    },
    /// Ask netd to drain the endpoint; answered by [`Event::Drained`].
    Drain {
        /// How long established flows may go on, ms.
        timeout_ms: u64,
    },
    /// SIGTERM to its process group.
    Terminate,
    /// SIGKILL to all that is left of it.
    Kill,
    /// Ask netd to remove the endpoint; answered by [`Event::Detached`] or [`Event::NotDetached`].
    Detach,
    /// Tell netd.
    Report(TaskStatus),
    /// Nothing is left and nothing is wanted: drop the task and its record.
    Forget,
}
