//! The only home of netlink, bpf(2), setns and `unsafe`.
//!
//! Every room here speaks to one kernel interface and keeps no policy: what should exist is decided by the cores
//! (`overlay`, `mesh`, `dns`), which hand over plain plans.
#![allow(clippy::disallowed_methods, reason = "a shell may ask the clock")]
#![allow(clippy::disallowed_types, reason = "no decision is taken here")]

pub mod bpf;
pub mod fabric;
pub mod firewall;
pub mod heap;
pub mod ipvs;
pub mod netfilter;
mod netlink;
pub mod netns;
pub mod rtnl;
pub mod sockdiag;
pub mod sysctl;
pub mod xfrm;

#[cfg(test)]
mod testing;
