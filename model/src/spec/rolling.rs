//! How a service's tasks are replaced, some at a time.

use serde::{Deserialize, Serialize};

/// How a change of what tasks are made from is carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RollingUpdate {
    /// Tasks replaced at a time; 0: all at once. Default: 1.
    pub parallelism: u32,
    /// Between two such batches, ms; 0 to a day. Default: 0.
    pub delay_ms: u64,
    /// What comes first. Default: stop-first.
    pub order: Order,
    /// How long a new task is watched for a failure after it is ready, ms; 0 to a day. Default: 1,000.
    pub monitor_ms: u64,
    /// Share of tasks that may fail before `failure_action` is taken, in thousandths, 0 to 1,000. Default: 0.
    pub max_failure_permille: u16,
    /// What then. Default: pause. A rollback that fails is paused.
    pub failure_action: FailureAction,
}

impl Default for RollingUpdate {
    fn default() -> Self {
        RollingUpdate {
            parallelism: 1,
            delay_ms: 0,
            order: Order::StopFirst,
            monitor_ms: 1_000,
            max_failure_permille: 0,
            failure_action: FailureAction::Pause,
        }
    }
}

/// Whether a task's successor is started before it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The old task is drained and stopped, then the new one is started.
    StopFirst,
    /// There are never fewer ready tasks than asked for: new ones are ready before old ones are drained.
    StartFirst,
}

/// What becomes of a change whose new tasks fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureAction {
    /// It stops where it is, and says so.
    Pause,
    /// It goes on.
    Continue,
    /// All goes back to what ran before.
    Rollback,
}
