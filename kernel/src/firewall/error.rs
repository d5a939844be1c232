//! What can go wrong.

use std::{io, path::PathBuf};

use mesh::lower::ipvs::{Family, rules::TableName};

use super::iptables::LOCK_SECONDS;
use crate::{netlink::NetlinkError, netns::NetnsError};

/// The rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The kernel lacks something.
    #[error("the kernel cannot make {what} of table inet netd; try: a kernel with {option}, or `modprobe {module}`")]
    Missing {
        /// What was refused.
        what: String,
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
        what: String,
        /// Cause.
        #[source]
        source: NetlinkError,
    },
    /// Others change nf_tables all the time.
    #[error(
        "nf_tables was changed by others during each of {0} attempts; try: find who reloads rules in a loop (nft monitor)"
    )]
    Busy(usize),
    /// Others change our chains all the time.
    #[error(
        "rules of netd in iptables were changed by others after each of {0} writes; try: find who restores rules in a loop"
    )]
    Unsettled(usize),
    /// A table of our name is not ours.
    #[error(
        "table inet netd is not netd's: it has {chains} and not netd's comment; try: look at it (nft list table inet netd), then rename or delete it"
    )]
    ForeignTable {
        /// Its chains.
        chains: String,
    },
    /// A chain of our name is not ours.
    #[error(
        "chain {chain} of {} -t {table} is not netd's: it begins with `{rule}`; try: find who made it, then rename or delete it", tool(*.family)
    )]
    ForeignChain {
        /// Family.
        family: Family,
        /// Table.
        table: TableName,
        /// Chain.
        chain: String,
        /// Its first rule.
        rule: String,
    },
    /// A program is not installed.
    #[error(
        "this kernel has no nf_tables for family inet, and {name} is not installed; try: a kernel with CONFIG_NF_TABLES_INET, or the package iptables"
    )]
    NoTool {
        /// Its name.
        name: &'static str,
    },
    /// A program could not be run.
    #[error("cannot run {}", path.display())]
    Run {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Somebody holds iptables' lock.
    #[error(
        "iptables was locked by {holder} for {LOCK_SECONDS} s; netd comes again; try: end it if it hangs (fuser -v {})", lock.display()
    )]
    Locked {
        /// Who, if it can be told.
        holder: String,
        /// The lock.
        lock: PathBuf,
    },
    /// iptables refused.
    #[error("{tool} refused a change of table {table}: {said}; try: modprobe the module of that match or target")]
    Refused {
        /// Which program.
        tool: &'static str,
        /// Table.
        table: String,
        /// What it said, and the line it was about.
        said: String,
    },
    /// The kernel does not tell about a table.
    #[error("cannot look at iptables; try: run as root with CAP_NET_ADMIN")]
    Look(#[source] io::Error),
    /// The namespace is not to be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// The command of a family.
fn tool(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables-legacy",
        Family::V6 => "ip6tables-legacy",
    }
}
