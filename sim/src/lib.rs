//! A cluster in one thread: `cluster`'s cores, driven by a script under a virtual clock, a seeded network and simulated
//! disks, with the invariants of FAULTS.md checked after each step. A seed makes a script, a script makes a run, and the
//! same script makes the same run everywhere.

mod act;
mod agent;
mod client;
mod disk;
mod duties;
mod event;
mod host;
mod net;
mod oracle;
mod rng;
mod roll;
mod script;
mod shrink;
mod story;
mod world;

pub use oracle::Violation;
pub use script::Script;
pub use shrink::shrink;
pub use world::{Report, run};
