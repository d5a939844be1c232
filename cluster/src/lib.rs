//! Pure core of the cluster: what was agreed ([`state`], fed by [`raft`], kept by [`log`], all three in a [`manager`]) and what is told
//! ([`rows`], [`membership`]).
//!
//! No clock, no socket, no thread, no ambient randomness: time, entropy and bytes come in as arguments, decisions and
//! bytes go out. The shells are in netd: `store` drives a [`manager`], `gossip` drives `membership` and `rows`.

pub mod ipam;
pub mod log;
pub mod manager;
pub mod membership;
pub mod mutant;
pub mod placement;
pub mod raft;
pub mod rollout;
pub mod rows;
pub mod seal;
pub mod state;
