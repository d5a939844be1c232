//! The packet filter: table `inet netd`, in the calling thread's namespace (nf_tables over netlink, no binary).
//!
//! ```text
//! table inet netd {
//!   set pools4, pools6     { addresses of all networks }
//!   set outside4, outside6 { those of networks that are not internal }
//!   chain tunnel  { type filter hook output      priority raw;    # our own VXLAN is not tracked
//!     ip saddr VTEP udp dport PORT notrack accept }
//!   chain spoof   { type filter hook prerouting  priority raw;    # a source in our pools comes from a task or not at all
//!     ip daddr VTEP udp dport PORT notrack accept
//!     iifname "lo" accept; iifname "nv*" accept; ip saddr @pools4 drop; ip6 saddr @pools6 drop }
//!   chain guard   { type filter hook forward     priority filter; # tasks are reached through the overlay alone
//!     oifname "nv*" ct state & (established | related) == 0 drop }
//!   chain outside { type nat    hook postrouting priority srcnat; # tasks reach the outside by their node's address
//!     oifname "nv*" accept; ip saddr @outside4 masquerade; ip6 saddr @outside6 masquerade }
//! }
//! ```
//!
//! Own messages rather than netlink-bindings: its nf_tables module is 21,000 generated lines for the dozen attributes
//! that are needed here, and brings a socket of its own beside the one executor.
//!
//! What is there is compared first: chains, rules (each bears a hash of itself as user data), sets and elements. The same:
//! nothing is written. Other elements: they alone are replaced. Anything else: the table is made anew. Each is one
//! transaction, refused by the kernel (and begun again) when somebody else changed nf_tables since the comparison.

mod message;
mod read;
mod rules;

use std::collections::BTreeSet;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use overlay::{Filter, Range};

use self::message::Part;
use crate::netlink::{NetlinkError, Socket};

/// Name of the table.
pub const TABLE: &str = "netd";
/// How often a transaction is begun again after others' changes.
const RETRIES: usize = 10;

/// The filter could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The kernel lacks something.
    #[error("the kernel cannot make {what} of table inet netd; try: a kernel with {option}, or `modprobe {module}`")]
    Missing {
        /// What was refused.
        what: &'static str,
        /// Build option.
        option: &'static str,
        /// Module with it.
        module: &'static str,
        /// Cause.
        #[source]
        source: NetlinkError,
    },
    /// The exchange failed.
    #[error("cannot {doing} {what} of table inet netd")]
    Netlink {
        /// Verb.
        doing: &'static str,
        /// What.
        what: &'static str,
        /// Cause.
        #[source]
        source: NetlinkError,
    },
    /// Others change nf_tables all the time.
    #[error(
        "nf_tables was changed by others during each of {RETRIES} attempts; try: find who reloads rules in a loop (nft monitor)"
    )]
    Busy,
}

/// What exists of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Absent,
    /// Something of the same name that is not as netd makes it.
    Other,
    /// As netd makes it, with these addresses.
    Ours(Filter),
}

fn open() -> Result<Socket, FilterError> {
    Socket::open(NETLINK_NETFILTER).map_err(|source| FilterError::Missing {
        what: "anything",
        option: "CONFIG_NETFILTER_NETLINK",
        module: "nfnetlink",
        source,
    })
}

/// Reads the table.
pub fn observe() -> Result<Seen, FilterError> {
    let mut socket = open()?;
    Ok(read::table(&mut socket)?.1)
}

/// Makes the table hold `filter`. `Ok(false)`: it did, nothing was written.
pub fn set(filter: &Filter) -> Result<bool, FilterError> {
    let mut socket = open()?;
    for _ in 0..RETRIES {
        let (generation, seen) = read::table(&mut socket)?;
        let parts = match seen {
            Seen::Ours(now) if now == *filter => return Ok(false),
            Seen::Ours(now) => message::refill(&now, filter),
            Seen::Absent | Seen::Other => message::rebuild(filter),
        };
        if commit(&mut socket, generation, parts)? {
            return Ok(true);
        }
    }
    Err(FilterError::Busy)
}

/// Removes the table. `Ok(false)`: there was none.
pub fn remove() -> Result<bool, FilterError> {
    let mut socket = open()?;
    for _ in 0..RETRIES {
        let (generation, seen) = read::table(&mut socket)?;
        if seen == Seen::Absent {
            return Ok(false);
        }
        if commit(&mut socket, generation, vec![message::delete_table()])? {
            return Ok(true);
        }
    }
    Err(FilterError::Busy)
}

/// One transaction. `Ok(false)`: somebody else was faster.
fn commit(socket: &mut Socket, generation: u32, parts: Vec<Part>) -> Result<bool, FilterError> {
    let names: Vec<(&'static str, &'static str, &'static str)> =
        parts.iter().map(|p| (p.what, p.option, p.module)).collect();
    match socket.transaction(&message::batch(generation, parts)) {
        Ok(()) => Ok(true),
        Err((_, e)) if e.is(Errno::ERESTART) => Ok(false),
        Err((at, source)) => {
            // The batch begins with a header that is not a part.
            let (what, option, module) = at
                .and_then(|i| i.checked_sub(1))
                .and_then(|i| names.get(i))
                .copied()
                .unwrap_or(("a change", "CONFIG_NF_TABLES", "nf_tables"));
            Err(missing(what, option, module, source))
        }
    }
}

/// Tells what the kernel lacks from other refusals: an unknown family, chain type or expression.
fn missing(what: &'static str, option: &'static str, module: &'static str, source: NetlinkError) -> FilterError {
    let lacks = [
        Errno::EOPNOTSUPP,
        Errno::EAFNOSUPPORT,
        Errno::EPROTONOSUPPORT,
        Errno::ENOENT,
        Errno::EINVAL,
    ];
    if source.refusal().is_some_and(|r| lacks.contains(&r.errno)) {
        FilterError::Missing {
            what,
            option,
            module,
            source,
        }
    } else {
        FilterError::Netlink {
            doing: "change",
            what,
            source,
        }
    }
}

/// Whether the table has a chain of that name.
pub(crate) fn has_chain(name: &str) -> bool {
    rules::CHAINS.iter().any(|c| c.name == name)
}

/// Ranges of one family.
fn family(ranges: &BTreeSet<Range>, v4: bool) -> impl Iterator<Item = &Range> {
    ranges.iter().filter(move |(start, _)| start.is_ipv4() == v4)
}

#[cfg(test)]
mod tests;
