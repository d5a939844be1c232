//! Pure core: what of a node's overlay should exist in the kernel, and the steps that lead there.
//!
//! ```text
//! Desired (from the view) --want()--> Wanted (kernel objects) --\
//!                                                                plan() -> Plan (steps in order) -> kernel::overlay
//!                        Observed (read from the kernel) -------/
//! Desired + Observed --rows()--> Rows (entries of the eBPF maps)
//! ```
//!
//! Nothing here touches the kernel, asks the clock or keeps state. `plan` after its steps were carried out is empty, and
//! a test says so. Objects without netd's mark (an alias `netd:...`, route protocol 110, an own nftables table) are never
//! in a plan: one that stands in the way is a [`Conflict`].

mod desired;
pub mod names;
mod objects;
mod plan;
mod rows;
mod step;
mod want;

pub use desired::{Desired, Endpoint, Network, Node, Remote};
pub use objects::{
    Filter, Link, LinkKind, Ns, Observed, Range, Route, RouteKey, Rule, SeenLink, SeenSpace, Space, Sysctl, Wanted,
    ranges,
};
pub use plan::{Conflict, Plan, plan};
pub use rows::{Rows, rows};
pub use step::{Change, Step, device_of};
pub use want::{Abilities, want};

#[cfg(test)]
mod tests;
