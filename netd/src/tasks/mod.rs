//! What becomes of tasks: on their node ([`own`]), and in the managers' memory ([`board`]); what they say ([`logs`]).
//!
//! Runtime status never enters the log (DESIGN, Three kinds of state). Nodes remember how their tasks are and how earlier
//! ones ended, and tell it with every report, so that a new leader knows it too.

mod board;
pub mod logs;
mod own;

use std::time::{SystemTime, UNIX_EPOCH};

use model::api::TaskStatus;

pub use board::{Reported, TaskBoard};
pub use own::{OwnTasks, Past};

/// Seconds since 1970.
fn unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Whether a report makes sense after the last one of the same slot: the same task goes on as it may, or another one has
/// begun.
pub fn follows(before: &TaskStatus, next: &TaskStatus) -> bool {
    let same = before.restarts == next.restarts;
    let begins = before.state.is_end() && next.state < model::api::TaskState::Running;
    !same || begins || before.state == next.state || before.state.may_become(next.state)
}
