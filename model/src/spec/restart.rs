//! What happens when a task ends by itself.

use serde::{Deserialize, Serialize};

/// When, and how often, a task that ended is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restart {
    /// After which ends. Default: any.
    pub condition: Condition,
    /// Before a start, ms; 0 to a day. After each further start whose task ends within 10 s twice as long, up to 30 s or
    /// `delay_ms` if that is more. Default: 100.
    pub delay_ms: u64,
    /// Restarts on one node within `window_ms`, 1 to 1,000, after which the slot is given to another node; none: no limit.
    pub max_attempts: Option<u32>,
    /// The time that `max_attempts` counts in, ms; 0: for ever. Default: 0.
    pub window_ms: u64,
}

impl Default for Restart {
    fn default() -> Self {
        Restart {
            condition: Condition::Any,
            delay_ms: 100,
            max_attempts: None,
            window_ms: 0,
        }
    }
}

/// After which ends of its command a task is started again (Swarm's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// All.
    Any,
    /// Those with another status than 0, or by a signal.
    OnFailure,
    /// None.
    None,
}
