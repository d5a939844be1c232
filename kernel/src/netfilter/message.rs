//! Messages of a transaction.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use overlay::{Filter, Range};

use super::{
    TABLE, family,
    rules::{CHAINS, SETS},
};
use crate::netlink::{Request, Writer};

/// `NFNL_SUBSYS_NFTABLES << 8`.
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NFPROTO_INET`, both IP families.
const INET: u8 = 1;
/// Ranges told in one message: two elements of at most 36 octets each must fit an attribute of 64 KiB.
const ELEMENTS: usize = 500;

/// `NFT_MSG_*` of linux/netfilter/nf_tables.h.
pub(super) mod kind {
    pub(crate) const NEW_TABLE: u16 = 0;
    pub(crate) const GET_TABLE: u16 = 1;
    pub(crate) const DEL_TABLE: u16 = 2;
    pub(crate) const NEW_CHAIN: u16 = 3;
    pub(crate) const GET_CHAIN: u16 = 4;
    pub(crate) const NEW_RULE: u16 = 6;
    pub(crate) const GET_RULE: u16 = 7;
    pub(crate) const NEW_SET: u16 = 9;
    pub(crate) const GET_SET: u16 = 10;
    pub(crate) const NEW_ELEMENT: u16 = 12;
    pub(crate) const GET_ELEMENT: u16 = 13;
    pub(crate) const DEL_ELEMENT: u16 = 14;
    pub(crate) const GET_GENERATION: u16 = 16;
}

/// A message of a transaction, and what to say when it is refused.
pub(super) struct Part {
    request: Request,
    pub(super) what: &'static str,
    pub(super) option: &'static str,
    pub(super) module: &'static str,
}

/// A message: `struct nfgenmsg` (family, version, resource) and attributes.
pub(super) fn request(kind: u16, flags: u16, build: impl FnOnce(&mut Writer)) -> Request {
    let mut w = Writer(vec![INET, 0, 0, 0]);
    build(&mut w);
    Request {
        kind: SUBSYSTEM | kind,
        flags,
        body: w.0,
    }
}

fn part(kind: u16, flags: u16, what: &'static str, build: impl FnOnce(&mut Writer)) -> Part {
    Part {
        request: request(kind, flags | NLM_F_ACK, build),
        what,
        option: "CONFIG_NF_TABLES",
        module: "nf_tables",
    }
}

/// Parts within a transaction that fails if nf_tables is no longer of `generation` (`NFNL_BATCH_GENID`).
pub(super) fn batch(generation: u32, parts: Vec<Part>) -> Vec<Request> {
    let edge = |kind, attrs: &[u8]| {
        // The resource is the subsystem, in network order.
        let mut body = vec![0, 0, 0, 10];
        body.extend_from_slice(attrs);
        Request { kind, flags: 0, body }
    };
    let mut genid = Writer::default();
    genid.be32(1, generation);
    let mut out = vec![edge(BATCH_BEGIN, &genid.0)];
    out.extend(parts.into_iter().map(|p| p.request));
    out.push(edge(BATCH_END, &[]));
    out
}

fn new_table() -> Part {
    let mut p = part(kind::NEW_TABLE, NLM_F_CREATE, "the table", |w| {
        w.string(1, TABLE);
    });
    (p.option, p.module) = ("CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET", "nf_tables");
    p
}

pub(super) fn delete_table() -> Part {
    part(kind::DEL_TABLE, 0, "the table", |w| {
        w.string(1, TABLE);
    })
}

/// The whole table anew. Making it first lets the removal succeed where there is none.
pub(super) fn rebuild(filter: &Filter) -> Vec<Part> {
    let mut out = vec![new_table(), delete_table(), new_table()];
    for (i, (name, octets, type_number)) in (1u32..).zip(SETS) {
        // Flags: NFT_SET_INTERVAL. The id names the set within the transaction.
        out.push(part(kind::NEW_SET, NLM_F_CREATE, "an interval set", |w| {
            w.string(1, TABLE)
                .string(2, name)
                .be32(3, 4)
                .be32(4, type_number)
                .be32(5, octets)
                .be32(10, i);
        }));
        out.extend(fill(name, filter));
    }
    for chain in CHAINS {
        let mut p = part(kind::NEW_CHAIN, NLM_F_CREATE, "a chain", |w| {
            w.string(1, TABLE).string(3, chain.name).nest(4, |w| {
                w.be32(1, chain.hook).bytes(2, &chain.priority.to_be_bytes());
            });
            // Policy: accept.
            w.be32(5, 1).string(7, chain.kind);
        });
        (p.option, p.module) = (chain.option, chain.module);
        out.push(p);
        for rule in (chain.rules)(filter.tunnel) {
            let mark = rule.mark();
            let mut p = part(kind::NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, "a rule", |w| {
                // NFTA_RULE_EXPRESSIONS is a nested list; NFTA_RULE_USERDATA comes back as it was given.
                w.string(1, TABLE)
                    .string(2, chain.name)
                    .nest(4, |w| w.0.extend_from_slice(&rule.expressions))
                    .bytes(7, &mark);
            });
            (p.option, p.module) = (rule.option, rule.module);
            out.push(p);
        }
    }
    out
}

/// Only the sets that differ are emptied and filled; another tunnel is another set of rules.
pub(super) fn refill(now: &Filter, filter: &Filter) -> Vec<Part> {
    if now.tunnel != filter.tunnel {
        return rebuild(filter);
    }
    let mut out = Vec::new();
    for (name, ..) in SETS {
        if content(name, now) != content(name, filter) {
            out.push(part(kind::DEL_ELEMENT, 0, "the addresses", |w| {
                w.string(1, TABLE).string(2, name);
            }));
            out.extend(fill(name, filter));
        }
    }
    out
}

/// The ranges that belong into a set.
fn content<'a>(set: &str, filter: &'a Filter) -> Vec<&'a Range> {
    let ranges = if set.starts_with("pools") {
        &filter.pools
    } else {
        &filter.outside
    };
    family(ranges, set.ends_with('4')).collect()
}

fn fill(set: &'static str, filter: &Filter) -> Vec<Part> {
    let ranges = content(set, filter);
    let message = |chunk: &[&Range]| {
        part(kind::NEW_ELEMENT, NLM_F_CREATE, "addresses", |w| {
            w.string(1, TABLE)
                .string(2, set)
                .nest(3, |w| chunk.iter().for_each(|r| range(w, r)));
        })
    };
    ranges.chunks(ELEMENTS).map(message).collect()
}

/// A range is an element at its start and one with NFT_SET_ELEM_INTERVAL_END behind its end, where there is a behind.
fn range(w: &mut Writer, (start, end): &Range) {
    let mut element = |key: IpAddr, flags: u32| {
        w.nest(1, |w| {
            w.nest(1, |w| {
                match key {
                    IpAddr::V4(a) => w.bytes(1, &a.octets()),
                    IpAddr::V6(a) => w.bytes(1, &a.octets()),
                };
            });
            if flags != 0 {
                w.be32(3, flags);
            }
        });
    };
    element(*start, 0);
    let behind = match end {
        IpAddr::V4(a) => u32::from(*a).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(a) => u128::from(*a).checked_add(1).map(|n| IpAddr::V6(n.into())),
    };
    behind.into_iter().for_each(|b| element(b, 1));
}
