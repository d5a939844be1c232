//! What tasks say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{EndpointId, NodeId};

/// `POST /v1/services/NAME/logs`, `POST /v1/tasks/ID/logs`: the output of tasks on all nodes, a piece at a time; the answer
/// is a [`Logs`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogsAsk {
    /// So many of the last lines of each task; none: from the beginning, as far as it is kept. Of a task that `after` knows
    /// it counts no more.
    pub tail: Option<u64>,
    /// Only lines written at this time or later, ms since 1970 by each node's clock; none: all. Of lines of which no time
    /// is known the last write to their log decides. Of a task that `after` knows it counts no more.
    pub since_ms: Option<u64>,
    /// What an earlier answer said: what comes behind it is asked for.
    pub after: LogCursor,
    /// A last line that has no end yet is left for later.
    pub follow: bool,
}

/// Where pieces of logs ended, by node and task.
pub type LogCursor = BTreeMap<NodeId, BTreeMap<EndpointId, LogPlace>>;

/// A place in a log; what the numbers mean is its node's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogPlace {
    /// Which file.
    pub cut: u64,
    /// Octets.
    pub at: u64,
}

/// A piece of the logs of some tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Logs {
    /// Lines: in order for each task, not between them.
    pub lines: Vec<LogLine>,
    /// For the next piece.
    pub after: LogCursor,
    /// There is more by now.
    pub more: bool,
    /// Whose logs cannot be read, and why.
    pub problems: Vec<String>,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Task.
    pub task: EndpointId,
    /// Node.
    pub node: NodeId,
    /// Its host name.
    pub hostname: String,
    /// When it was written, ms since 1970 by its node's clock, to some milliseconds; none: not known.
    #[serde(default)]
    pub at_ms: Option<u64>,
    /// Text, without its end; what is no UTF-8 is replaced.
    pub line: String,
}
