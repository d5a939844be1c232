//! The packet filter of the IPVS data path: rules as data, and what each of the kernel's two filters is told.
//!
//! [`Host`] and [`Sandbox`] are plain inputs; their `rules()` is the whole rule set of a node's namespace and of a
//! network's. A [`Rules`] is lowered
//!
//! - by [`nft::table`] to one nf_tables table, where what grows with services and ports is in maps, never in rules;
//! - by [`iptables::tables`] to chains `NETD-*` of iptables-legacy, for kernels without nf_tables; there what grows is
//!   a tree of chains, so that a packet meets a few dozen rules, not thousands.
//!
//! Each lowering has its way from what is seen to what is wanted beside it: [`nft::change`], [`iptables::change`].
//! `tests/snapshots` shows both forms in full.

mod host;
pub mod iptables;
mod language;
pub mod nft;
mod sandbox;
#[cfg(test)]
mod tests;

pub use host::{Allow, Host, HostNetwork, Published};
pub use language::{
    Action, Device, Entry, Holds, Hook, Key, List, Match, Rule, Rules, TableName, Transport, Value, families_of,
};
pub use sandbox::{Destination, Sandbox};

/// FNV-1a, 64 bits (draft-eastlake-fnv), as text: what a rule or chain of ours says of itself in the kernel.
fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let octets = parts.into_iter().flat_map(|p| p.bytes().chain([0]));
    let hash = octets.fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{OWNER}{hash:016x}")
}

/// What begins the comment of every rule that netd makes; sixteen hexadecimal digits follow.
pub const OWNER: &str = "netd:";

/// Whether a comment is one of netd's.
pub fn is_ours(comment: &str) -> bool {
    comment
        .strip_prefix(OWNER)
        .is_some_and(|h| h.len() == 16 && h.bytes().all(|b| b.is_ascii_hexdigit()))
}
