//! From a query to a reply.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{
    TTL,
    lookup::{Found, find},
    table::{Addresses, Form, Table, View},
    wire::{self, Bad, CLASS_IN, QUESTION_NAME, Query, Reply, Section, Transport, rcode, rtype},
};

/// What becomes of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// `out` holds the reply.
    Reply,
    /// It is to be asked of others ([`crate::foreign`]); `out` is empty.
    Forward,
    /// It is no query, and an answer might start a loop; `out` is empty.
    Drop,
}

/// Our zone is everything that has no other home, so its SOA stands at the root, as in a root server's own answers
/// (RFC 2308 2.1). Both names are reserved by RFC 6761. Serial 1, refresh 3600, retry 1200, expire 604800, minimum
/// [`TTL`].
const SOA: &[u8] = b"\x09localhost\0\x06nobody\x07invalid\0\0\0\0\x01\0\0\x0e\x10\0\0\x04\xb0\0\x09\x3a\x80\0\0\0\x01";
const ROOT: &[u8] = &[0];

/// Answers a query as `view` sees the cluster. `spin` (a counter or a random number) chooses the order of addresses.
///
/// Any input is good: what is malformed gets FORMERR or is dropped. Questions for ANY (RFC 8482), zone transfers and classes other than IN
/// are refused; so are foreign names where every network of the view is internal.
pub fn answer(table: &Table, view: &View, query: &[u8], transport: Transport, spin: u32, out: &mut Vec<u8>) -> Verdict {
    out.clear();
    let query = match Query::parse(query) {
        Ok(query) => query,
        Err(Bad::Drop) => return Verdict::Drop,
        Err(Bad::Reply { id, flags, rcode }) => {
            wire::bare_reply(id, flags, rcode, out);
            return Verdict::Reply;
        }
    };
    let found = match refusal(&query) {
        Some(rcode) => Err(rcode),
        None => match find(table, view, &query.name) {
            Found::Foreign if table.forwards(view) => return Verdict::Forward,
            Found::Foreign => Err(rcode::REFUSED),
            found => Ok(found),
        },
    };
    let mut reply = Reply::new(&query, transport, out);
    match found {
        Err(rcode) => reply.finish(transport, rcode, false),
        Ok(found) => {
            let rcode = if matches!(found, Found::Nothing) {
                rcode::NXDOMAIN
            } else {
                rcode::NOERROR
            };
            if !write(table, &query, &found, spin, &mut reply) {
                reply.record(Section::Authority, ROOT, rtype::SOA, TTL, &[SOA]);
            }
            reply.finish(transport, rcode, true);
        }
    }
    Verdict::Reply
}

fn refusal(query: &Query<'_>) -> Option<u8> {
    if query.edns.is_some_and(|e| e.version > 0) {
        return Some(rcode::BADVERS);
    }
    match (query.qclass, query.qtype) {
        (_, 0 | rtype::OPT) => Some(rcode::FORMERR),
        (CLASS_IN, qtype) if !(249..=rtype::ANY).contains(&qtype) => None,
        // TKEY, TSIG, IXFR, AXFR, MAILB, MAILA, ANY; CH, HS, NONE, ANY.
        _ => Some(rcode::REFUSED),
    }
}

/// Writes the records that were asked for; `false`: the name has none of that type (a SOA says so).
fn write(table: &Table, query: &Query<'_>, found: &Found<'_>, spin: u32, reply: &mut Reply<'_, '_>) -> bool {
    let pointer = |reply: &mut Reply<'_, '_>, name: &[u8]| {
        reply.record(Section::Answer, &QUESTION_NAME, rtype::PTR, TTL, &[name]);
        true
    };
    match (found, query.qtype) {
        (Found::Addresses(a), rtype::A | rtype::AAAA) => addresses(query.qtype, a, spin, reply),
        (Found::Localhost, rtype::A | rtype::AAAA) => {
            let local = Addresses {
                v4: vec![Ipv4Addr::LOCALHOST],
                v6: vec![Ipv6Addr::LOCALHOST],
            };
            addresses(query.qtype, &local, 0, reply)
        }
        (Found::Pointer(p), rtype::PTR) => match table.wire(p.vni, &p.service, p.form) {
            Some(name) => pointer(reply, &name),
            None => false,
        },
        (Found::LocalhostPointer, rtype::PTR) => pointer(reply, b"\x09localhost\0"),
        (
            Found::Port {
                vni,
                service,
                port,
                addresses,
            },
            rtype::SRV,
        ) => {
            let Some(target) = table.wire(*vni, service, Form::Vip) else {
                return false;
            };
            // Where the target's name will stand: after the pointer, type, class, TTL, length, priority, weight, port.
            let at = reply.len() + 2 + 10 + 6;
            let number = port.to_be_bytes();
            // Priority 0, weight 1: there is one target, the VIP, which balances.
            if reply.record(
                Section::Answer,
                &QUESTION_NAME,
                rtype::SRV,
                TTL,
                &[&[0, 0, 0, 1], &number, &target],
            ) {
                extra(addresses, at, reply);
            }
            true
        }
        _ => false,
    }
}

/// The addresses of one family, shuffled by `spin`; as many as fit.
fn addresses(qtype: u16, a: &Addresses, spin: u32, reply: &mut Reply<'_, '_>) -> bool {
    let mut put = |octets: &[u8]| reply.record(Section::Answer, &QUESTION_NAME, qtype, TTL, &[octets]);
    if qtype == rtype::A {
        shuffled(&a.v4, spin).all(|ip| put(&ip.octets()));
        !a.v4.is_empty()
    } else {
        shuffled(&a.v6, spin).all(|ip| put(&ip.octets()));
        !a.v6.is_empty()
    }
}

/// Each once: the first one takes turns with `spin`, and each is followed by another one each time, so that what falls
/// to a task that does not answer is spread over all others.
fn shuffled<T>(all: &[T], spin: u32) -> impl Iterator<Item = &T> {
    let (n, spin) = (all.len().max(1), spin as usize);
    // Any step that has no divisor in common with the length meets each place once; n + 1 is one.
    let round = (spin / n).wrapping_mul(0x9e37_79b1) >> 7;
    let from = round % n + 1;
    let step = (from..=n + 1).find(|s| coprime(*s, n)).unwrap_or(1);
    (0..all.len()).filter_map(move |i| all.get((spin % n + i * step) % n))
}

fn coprime(mut a: usize, mut b: usize) -> bool {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// Addresses of the name at `at`, so that the client need not ask again; left out when they do not fit.
fn extra(a: &Addresses, at: usize, reply: &mut Reply<'_, '_>) {
    let Ok(at) = u16::try_from(at) else { return };
    let owner = (0xc000 | at).to_be_bytes();
    let v4 =
        a.v4.iter()
            .all(|ip| reply.record(Section::Additional, &owner, rtype::A, TTL, &[&ip.octets()]));
    let v6 =
        a.v6.iter()
            .all(|ip| reply.record(Section::Additional, &owner, rtype::AAAA, TTL, &[&ip.octets()]));
    if !(v4 && v6) {
        reply.not_missed();
    }
}
