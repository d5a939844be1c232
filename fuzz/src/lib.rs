//! Octets from outside, at every door: whatever a wire or a disk brings, netd refuses it or takes it, in bounded time,
//! and never panics.
//!
//! A [`Door`] is the code that takes octets, with examples of what it takes. [`drive`] changes the examples at random
//! for a while; the program `guided` has libFuzzer do it, with the coverage of the code as its guide. What either finds
//! is cut short and kept in `found/<door>/`, which the tests try first.
#![allow(clippy::disallowed_methods, reason = "a tool around the cores: it measures time")]

mod doors;
pub mod drive;
mod found;
mod mutate;

pub use doors::{all, raft_kinds};
pub use found::{found, keep};
pub use netd::doors::Door;
