//! What of others' no rule of ours can help against.
//!
//! A packet that our table accepts still meets everybody else's chains at the same hook. Rules there are somebody's
//! will; a policy that drops is often but a default (Docker's), and nothing would tell why nothing passes.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use mesh::lower::ipvs::{Family, rules::TableName};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    FirewallError, nft,
    watch::{Info, info, raw_socket},
};
use crate::{netfilter::TABLE, netlink::Socket};

/// A chain of others that drops by its policy what is forwarded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// Where it is, and its name.
    pub chain: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} drops by its policy what this node forwards: published ports and tasks' ways out end there unless one of \
             its rules lets them pass; try: a rule there that accepts what comes from devices nvh* or goes to them, or \
             policy accept",
            self.chain
        )
    }
}

/// `NF_INET_FORWARD` of linux/netfilter.h.
const FORWARD: usize = 2;

/// Those of the calling thread's namespace.
pub(super) fn find() -> Result<Vec<Obstacle>, FirewallError> {
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(|source| FirewallError::Netlink {
        doing: "read",
        what: "chains beside those".into(),
        source,
    })?;
    let mut out: Vec<Obstacle> = nft::base_chains(&mut socket)?
        .into_iter()
        .filter(|c| c.hook == FORWARD as u32 && c.policy_drops && c.table != TABLE)
        .map(|c| Obstacle {
            chain: format!("chain {} of nf_tables table {} {}", c.name, c.family, c.table),
        })
        .collect();
    for (family, list, name) in [
        (Family::V4, "/proc/thread-self/net/ip_tables_names", "iptables-legacy"),
        (Family::V6, "/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"),
    ] {
        // A table that nobody uses would be made by asking about it.
        let used = fs::read_to_string(list).unwrap_or_default();
        if used.lines().any(|t| t == TableName::Filter.as_str()) && forward_drops(family).unwrap_or(false) {
            out.push(Obstacle {
                chain: format!("chain FORWARD of {name}"),
            });
        }
    }
    Ok(out)
}

/// The policy is the verdict of the chain's last rule, whose place the table tells (`underflow`).
fn forward_drops(family: Family) -> io::Result<bool> {
    let socket = raw_socket(family)?;
    let info = info(socket.as_fd(), family, TableName::Filter)?;
    let entries = entries(socket.as_fd(), family, &info)?;
    let at = info.underflow[FORWARD] as usize;
    Ok(verdict(&entries, at, family) == Some(DROP))
}

/// Verdicts are kept as `-verdict - 1`; `NF_DROP` is 0.
const DROP: i32 = -1;

/// The verdict of the rule at an offset: `struct ipt_entry` tells at `target_offset` where its target is (behind the
/// addresses and `nfcache`), `struct xt_entry_target` has 32 octets, the verdict follows.
fn verdict(entries: &[u8], at: usize, family: Family) -> Option<i32> {
    // sizeof(struct ipt_ip) + 4, sizeof(struct ip6t_ip6) + 4.
    let target_offset = match family {
        Family::V4 => 84 + 4,
        Family::V6 => 136 + 4,
    };
    let entry = entries.get(at..)?;
    let target = u16::from_ne_bytes(*entry.get(target_offset..)?.first_chunk()?);
    let verdict = entry.get(usize::from(target) + 32..)?.first_chunk()?;
    Some(i32::from_ne_bytes(*verdict))
}

/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES` of linux/netfilter_ipv4/ip_tables.h.
const GET_ENTRIES: libc::c_int = 65;
/// Octets of `struct ipt_get_entries` before the entries: name and size, aligned for what follows.
const HEAD: usize = 40;

fn entries(socket: BorrowedFd<'_>, family: Family, info: &Info) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; HEAD + info.size as usize];
    let (head, _) = buffer.split_at_mut(HEAD);
    let (name, size) = head.split_at_mut(32);
    name.copy_from_slice(&info.name);
    for (to, from) in size.iter_mut().zip(info.size.to_ne_bytes()) {
        *to = from;
    }
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the kernel reads the head and writes at most `length` octets, which is the size of `buffer`.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            super::watch::level(family),
            GET_ENTRIES,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    buffer.drain(..HEAD);
    Ok(buffer)
}
