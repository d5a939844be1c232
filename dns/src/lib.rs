//! Pure core: names, views and answers.
//!
//! A [`Table`] holds every name of the cluster, built from intent and facts; a [`View`] says which networks an asker may
//! see. [`answer`] turns a query into a reply, or says that it must be forwarded; [`foreign`] is the part of forwarding
//! that needs no socket. [`kernel::entries`] yields the same names for the program that answers in the kernel.
//!
//! What is ours, and never forwarded: names of one label; names that end in a network's name; `tasks.X`, `<slot>.X` and
//! `_port._proto.X` of a service; reverse names of addresses in our subnets. Absent here: clocks, sockets, randomness.

mod answer;
pub mod foreign;
pub mod kernel;
mod lookup;
mod ports;
mod table;
mod wire;

pub use answer::{Verdict, answer};
pub use table::{Addresses, Table, View};
pub use wire::{Transport, rcode};

/// Time to live of our answers, seconds. 1, not 0: a name follows a health change within the convergence bound (5 s,
/// FAULTS P9), and some resolvers take 0 for "ask again for each use, also within one connection attempt".
pub const TTL: u32 = 1;

#[cfg(test)]
mod tests;
