//! Lowering to IPVS: services by firewall mark, in the namespace of their network.
//!
//! A namespace has one [`Table`]: what is seen in the kernel and what is wanted are of one shape, and [`plan()`] is the way
//! from one to the other. Marks come from the log and are the same on every node, so a service is recognised by its mark
//! after any death of the daemon, and a second plan is empty.

mod plan;
pub mod rules;
mod table;
#[cfg(test)]
mod tests;

pub use plan::{Step, plan};
pub use table::{
    Dest, DestKey, Family, Forward, MARK_BASE, MARK_COUNT, Mark, SchedFlags, Scheduler, Service, ServiceKey, Settings,
    Table, Timeouts, mark_of,
};
