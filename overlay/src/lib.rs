//! Pure core: what of a node's overlay should exist in the kernel, and the steps that lead there.
//!
//! ```text
//! Desired (from the view) --want()--> Wanted (kernel objects) --\
//!                                                                plan() -> Plan (steps in order) -> kernel::overlay
//!                        Observed (read from the kernel) -------/
//! Desired + Observed --rows()--> Rows (entries of the eBPF maps)
//! ```
//!
//! There are two shapes of the overlay: [`want`] makes the one that the eBPF programs work on, [`routed::want`] the one
//! that the kernel routes by itself (for IPVS). Both are lists of the same kinds of objects, and one plan leads from
//! either to the other.
//!
//! Nothing here touches the kernel, asks the clock or keeps state. `plan` after its steps were carried out is empty, and
//! a test says so. Objects without netd's mark (an alias `netd:...`, route protocol 110, an own nftables table) are never
//! in a plan: one that stands in the way is a [`Conflict`].

mod classify;
mod desired;
pub mod names;
mod objects;
mod plan;
pub mod routed;
mod rows;
mod step;
mod want;

pub use classify::{Classifier, FIRST_PRIORITY, Hook, LAST_PRIORITY, Match, Verdict};
pub use desired::{Desired, Endpoint, Network, Node, Remote};
pub use objects::{
    ClassifierPlace, Filter, Link, LinkKind, MaskedMark, Ns, Observed, PeerIn, Range, Route, RouteKey, RouteKind, Rule,
    Sandbox, SeenLink, SeenSandbox, SeenSpace, Space, Stray, Sysctl, Tunnel, Wanted, ranges,
};
pub use plan::{Conflict, Plan, plan};
pub use rows::{Rows, rows};
pub use step::{Change, Step, device_of};
pub use want::{Abilities, want};

#[cfg(test)]
mod tests;
