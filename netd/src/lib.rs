//! The daemon of a node: shells around the cores, wired together.
//!
//! `store` (the log on managers) and `rpc` (workers' stream) yield intent; `gossip` yields facts; [`view`] joins them;
//! [`reconcile`] makes the kernel match the view; `dns` and [`api`] answer from it.
#![allow(clippy::disallowed_methods, reason = "a shell may ask the clock")]
#![allow(clippy::disallowed_types, reason = "no decision is taken here")]

// Faults that the simulator plants have no place here.
const _: () = assert!(
    !cluster::mutant::PLANTED,
    "build netd without the feature `mutants` of cluster"
);

pub mod api;
pub mod backup;
pub mod config;
pub mod custodian;
pub mod daemon;
pub mod discover;
pub mod disk;
pub mod dns;
pub mod doors;
pub mod endpoints;
pub mod gossip;
pub mod identity;
pub mod known;
mod machine;
pub mod manager;
pub mod notify;
pub mod peers;
pub mod place;
pub mod reconcile;
pub mod rpc;
pub mod store;
pub mod tasks;
pub mod view;
