//! Numbers and addresses that the log gives out: each is unique among the living and rests after use.

mod pool;
mod subnets;
#[cfg(test)]
mod tests;

pub use pool::{Pool, Taken};
pub use subnets::{SubnetError, check_v4, check_v6, pick_v4, pick_v6};

/// How long VNIs, VIPs and indices rest after use, ms of log time (CONTRACTS, Addresses): longer than a node may lag
/// behind and still forward by what it knew.
pub const REST_MS: u64 = 10 * 60 * 1000;

/// How long the blocks of a removed node rest, ms of log time.
pub const BLOCK_REST_MS: u64 = 60 * 1000;
