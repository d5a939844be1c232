//! Pure core of the cluster: what was agreed ([`state`], fed by [`raft`] and kept by [`log`]) and what is told
//! ([`rows`], [`membership`]).
//!
//! No clock, no socket, no thread, no ambient randomness: time, entropy and bytes come in as arguments, decisions and
//! bytes go out. The shells are in netd: `store` drives `raft` and `log`, `gossip` drives `membership` and `rows`.

pub mod ipam;
pub mod log;
pub mod membership;
pub mod placement;
pub mod raft;
pub mod rows;
pub mod seal;
pub mod state;
