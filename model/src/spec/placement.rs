//! Which nodes a service's tasks may go to, and which of them are liked best.

use serde::{Deserialize, Serialize};

use crate::ids::Name;

/// Which nodes, and which first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementSpec {
    /// All must hold: `node.labels.zone==a`, `node.hostname!=db*`, `node.role==worker`, `node.platform.arch==/x86.*/`.
    pub constraints: Vec<String>,
    /// Only on nodes that have tasks of these services.
    pub near: Vec<Name>,
    /// Only on nodes that have none of these; its own name: one task a node.
    pub apart: Vec<Name>,
    /// Nothing is placed before each of these has a ready task somewhere.
    pub after: Vec<Name>,
    /// Labels over whose values tasks are spread evenly, the first one first: `node.labels.zone`.
    pub spread: Vec<String>,
    /// Which of the nodes that are left.
    pub strategy: Strategy,
    /// Most tasks of this service on one node; none: no limit.
    pub max_per_node: Option<u32>,
    /// What each task is counted as.
    pub reserve: Resources,
}

/// Which node is taken first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The one with the fewest tasks of the service, then the fewest in all.
    #[default]
    Spread,
    /// The fullest that has room.
    Binpack,
    /// Any, by a number drawn from the service and the slot.
    Random,
}

/// CPU and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Octets.
    pub memory: u64,
}
