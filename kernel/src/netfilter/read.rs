//! Reading the table back.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::errno::Errno;
use overlay::{Filter, Range};

use super::{
    FilterError, Seen, TABLE,
    message::{kind, request},
    missing,
    rules::{CHAINS, SETS, Tunnel, tunnel_of},
};
use crate::netlink::{Answer, Attrs, NetlinkError, Socket, Writer};

/// Octets of `struct nfgenmsg` before the attributes.
const NFGENMSG: usize = 4;

fn attrs(a: &Answer) -> Attrs<'_> {
    Attrs(a.body.get(NFGENMSG..).unwrap_or_default())
}

fn failed(what: &'static str) -> impl Fn(NetlinkError) -> FilterError {
    move |source| FilterError::Netlink {
        doing: "read",
        what,
        source,
    }
}

/// The generation of nf_tables, and the table as it was then (a change in between fails the transaction).
pub(super) fn table(socket: &mut Socket) -> Result<(u32, Seen), FilterError> {
    let answer = socket
        .get(&request(kind::GET_GENERATION, 0, |_| {}))
        .map_err(|e| missing("the generation", "CONFIG_NF_TABLES", "nf_tables", e))?;
    let generation = attrs(&answer)
        .be32(1)
        .ok_or_else(|| failed("the generation")(NetlinkError::Short))?;
    let seen = match socket.get(&request(kind::GET_TABLE, 0, name_table)) {
        Ok(_) => content(socket)?,
        Err(e) if e.is(Errno::ENOENT) => Seen::Absent,
        // The family is not known: nothing can be there. Making the table will say so.
        Err(e) if e.is(Errno::EAFNOSUPPORT) => Seen::Absent,
        Err(e) => return Err(failed("the table")(e)),
    };
    Ok((generation, seen))
}

fn name_table(w: &mut Writer) {
    w.string(1, TABLE);
}

fn content(socket: &mut Socket) -> Result<Seen, FilterError> {
    if !(chains_match(socket)? && sets_match(socket)?) {
        return Ok(Seen::Other);
    }
    let Some(tunnel) = rules_match(socket)? else {
        return Ok(Seen::Other);
    };
    let mut filter = Filter {
        tunnel,
        ..Filter::default()
    };
    for (name, octets, _) in SETS {
        let list = request(kind::GET_ELEMENT, 0, |w| {
            w.string(1, TABLE).string(2, name);
        });
        let answers = match socket.dump(&list) {
            Err(e) if e.is(Errno::ENOENT) => return Ok(Seen::Other),
            other => other.map_err(failed("addresses"))?,
        };
        let Some(ranges) = ranges(&answers, octets as usize) else {
            return Ok(Seen::Other);
        };
        if name.starts_with("pools") {
            &mut filter.pools
        } else {
            &mut filter.outside
        }
        .extend(ranges);
    }
    Ok(Seen::Ours(filter))
}

fn of_table(answers: Vec<Answer>, table_attr: u16) -> Vec<Answer> {
    // Older kernels do not filter dumps by table.
    answers
        .into_iter()
        .filter(|a| attrs(a).string(table_attr).as_deref() == Some(TABLE))
        .collect()
}

fn chains_match(socket: &mut Socket) -> Result<bool, FilterError> {
    let answers = socket
        .dump(&request(kind::GET_CHAIN, 0, name_table))
        .map_err(failed("chains"))?;
    let seen: BTreeSet<_> = of_table(answers, 1)
        .iter()
        .map(|c| {
            let c = attrs(c);
            let hook = c.get(4).map(Attrs);
            (
                c.string(3),
                c.string(7),
                hook.and_then(|h| h.be32(1)),
                hook.and_then(|h| h.be32(2)),
                c.be32(5),
            )
        })
        .collect();
    let wanted = CHAINS.map(|c| {
        (
            Some(c.name.to_owned()),
            Some(c.kind.to_owned()),
            Some(c.hook),
            Some(c.priority as u32),
            Some(1),
        )
    });
    Ok(seen == BTreeSet::from(wanted))
}

/// The tunnel that the rules are about, when they are as netd makes them.
fn rules_match(socket: &mut Socket) -> Result<Option<Option<Tunnel>>, FilterError> {
    let answers = socket
        .dump(&request(kind::GET_RULE, 0, name_table))
        .map_err(failed("rules"))?;
    let answers = of_table(answers, 1);
    let tunnel = answers.iter().find_map(|r| tunnel_of(attrs(r).get(7)?));
    let same = CHAINS.iter().all(|chain| {
        // In the kernel's order, which counts.
        let of_chain = answers
            .iter()
            .map(attrs)
            .filter(|r| r.string(2).as_deref() == Some(chain.name));
        let seen: Vec<Option<&[u8]>> = of_chain.map(|r| r.get(7)).collect();
        let marks: Vec<Vec<u8>> = (chain.rules)(tunnel).iter().map(|r| r.mark()).collect();
        seen == marks.iter().map(|m| Some(&m[..])).collect::<Vec<_>>()
    });
    Ok(same.then_some(tunnel))
}

fn sets_match(socket: &mut Socket) -> Result<bool, FilterError> {
    let answers = socket
        .dump(&request(kind::GET_SET, 0, name_table))
        .map_err(failed("sets"))?;
    let seen: BTreeSet<_> = of_table(answers, 1)
        .iter()
        .map(attrs)
        .map(|s| (s.string(2), s.be32(5), s.be32(3)))
        .collect();
    Ok(seen == BTreeSet::from(SETS.map(|(name, octets, _)| (Some(name.to_owned()), Some(octets), Some(4)))))
}

/// Elements to ranges: sorted, each start is followed by its end, except the last of an open range.
fn ranges(answers: &[Answer], octets: usize) -> Option<BTreeSet<Range>> {
    let mut elements: Vec<(u128, bool)> = Vec::new();
    for list in answers.iter().filter_map(|a| attrs(a).get(3)) {
        for (_, element) in Attrs(list) {
            let element = Attrs(element);
            let key = element.get(1).map(Attrs)?.get(1).filter(|k| k.len() == octets)?;
            let number = key.iter().fold(0u128, |n, b| n << 8 | u128::from(*b));
            elements.push((number, element.be32(3).unwrap_or(0) & 1 == 0));
        }
    }
    // An end sorts before a start at the same place.
    elements.sort_unstable();
    let address = |n: u128| {
        if octets == 4 {
            u32::try_from(n).ok().map(|n| IpAddr::V4(Ipv4Addr::from(n)))
        } else {
            Some(IpAddr::V6(Ipv6Addr::from(n)))
        }
    };
    let mut out = BTreeSet::new();
    let mut open: Option<u128> = None;
    for (n, is_start) in elements {
        match (is_start, open) {
            (true, None) => open = Some(n),
            (false, Some(start)) => {
                out.insert((address(start)?, address(n.checked_sub(1)?)?));
                open = None;
            }
            _ => return None,
        }
    }
    if let Some(start) = open {
        out.insert((
            address(start)?,
            address(if octets == 4 { u128::from(u32::MAX) } else { u128::MAX })?,
        ));
    }
    Some(out)
}
