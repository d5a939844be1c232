//! Reading the table back.

use std::collections::BTreeMap;

use mesh::lower::ipvs::rules::nft::{Elements, Seen, Shape};
use nix::errno::Errno;

use super::{
    TABLE,
    encode::{TABLE_COMMENT, comment_of, kind, request},
    missing,
};
use crate::{
    firewall::FirewallError,
    netfilter,
    netlink::{Answer, Attrs, NetlinkError, Socket, Writer},
};

/// Octets of `struct nfgenmsg` before the attributes.
const NFGENMSG: usize = 4;
/// `NFT_SET_INTERVAL`, `NFT_SET_CONCAT`.
const INTERVAL: u32 = 4;
const CONCAT: u32 = 128;

fn attrs(a: &Answer) -> Attrs<'_> {
    Attrs(a.body.get(NFGENMSG..).unwrap_or_default())
}

fn failed(what: &'static str) -> impl Fn(NetlinkError) -> FirewallError {
    move |source| FirewallError::Netlink {
        doing: "read",
        what: what.to_owned(),
        source,
    }
}

/// The generation of nf_tables: a number that each change of anything in the namespace raises by one.
pub(super) fn generation(socket: &mut Socket) -> Result<u32, FirewallError> {
    let answer = socket
        .get(&request(kind::GET_GENERATION, 0, |_| {}))
        .map_err(|e| missing("the generation", "CONFIG_NF_TABLES", "nf_tables", e))?;
    attrs(&answer)
        .be32(1)
        .ok_or_else(|| failed("the generation")(NetlinkError::Short))
}

fn name_table(w: &mut Writer) {
    w.string(1, TABLE);
}

/// The table; `None`: there is none. One that somebody else made under our name is an error.
pub(super) fn table(socket: &mut Socket) -> Result<Option<Seen>, FirewallError> {
    let ours = match socket.get(&request(kind::GET_TABLE, 0, name_table)) {
        Ok(t) => attrs(&t).get(6).and_then(comment_of) == Some(TABLE_COMMENT),
        Err(e) if e.is(Errno::ENOENT) || e.is(Errno::EAFNOSUPPORT) => return Ok(None),
        Err(e) => return Err(failed("the table")(e)),
    };
    let list = |socket: &mut Socket, kind, what| -> Result<Vec<Answer>, FirewallError> {
        let answers = match socket.dump(&request(kind, 0, name_table)) {
            // It went away meanwhile; the transaction will notice.
            Err(e) if e.is(Errno::ENOENT) => Vec::new(),
            other => other.map_err(failed(what))?,
        };
        // Older kernels do not filter dumps by table.
        let of_table = |a: &Answer| attrs(a).string(1).as_deref() == Some(TABLE);
        Ok(answers.into_iter().filter(of_table).collect())
    };
    let mut shape = Shape::default();
    for c in list(socket, kind::GET_CHAIN, "chains")? {
        let c = attrs(&c);
        let hook = c.get(4).map(Attrs);
        let of_hook = |kind| hook.and_then(|h| h.be32(kind));
        let of_chain = (
            c.string(7).unwrap_or_default(),
            of_hook(1).unwrap_or(u32::MAX),
            of_hook(2).unwrap_or(0).cast_signed(),
            Vec::new(),
        );
        shape.chains.extend(c.string(3).map(|name| (name, of_chain)));
    }
    if !ours && !is_of_the_other_path(&shape) {
        let chains: Vec<String> = shape.chains.keys().map(|c| format!("chain {c}")).collect();
        return Err(FirewallError::ForeignTable {
            chains: chains.join(", "),
        });
    }
    for r in list(socket, kind::GET_RULE, "rules")? {
        let r = attrs(&r);
        let comment = r.get(7).and_then(comment_of).unwrap_or_default().to_owned();
        // In the kernel's order, which counts.
        if let Some(chain) = r.string(2).and_then(|c| shape.chains.get_mut(&c)) {
            chain.3.push(comment);
        }
    }
    for s in list(socket, kind::GET_SET, "sets")? {
        let s = attrs(&s);
        let of_set = (s.be32(5).unwrap_or(0), s.be32(7).unwrap_or(0), s.be32(3).unwrap_or(0));
        shape.sets.extend(s.string(2).map(|name| (name, of_set)));
    }
    let mut elements = BTreeMap::new();
    for (name, (_, _, flags)) in &shape.sets {
        let list = request(kind::GET_ELEMENT, 0, |w| {
            w.string(1, TABLE).string(2, name);
        });
        let answers = match socket.dump(&list) {
            Err(e) if e.is(Errno::ENOENT) => Vec::new(),
            other => other.map_err(failed("elements"))?,
        };
        elements.insert(name.clone(), of_set(&answers, *flags));
    }
    Ok(Some(Seen { shape, elements }))
}

/// Whether a table without our comment has no chains, or those of the eBPF path: then it is replaced.
fn is_of_the_other_path(shape: &Shape) -> bool {
    shape.chains.keys().all(|c| netfilter::has_chain(c))
}

fn of_set(answers: &[Answer], flags: u32) -> Elements {
    let mut out = Elements::new();
    let mut edges = Vec::new();
    for list in answers.iter().filter_map(|a| attrs(a).get(3)) {
        for (_, element) in Attrs(list) {
            let element = Attrs(element);
            let octets = |kind| element.get(kind).map(Attrs).and_then(|k| k.get(1)).map(<[u8]>::to_vec);
            let Some(key) = octets(1) else { continue };
            if flags & INTERVAL != 0 && flags & CONCAT == 0 {
                // An end sorts before a start at the same place.
                edges.push((key, element.be32(3).unwrap_or(0) & 1 == 0));
            } else {
                let last = octets(10).unwrap_or_else(|| key.clone());
                out.insert((key, last), octets(2).unwrap_or_default());
            }
        }
    }
    edges.sort_unstable();
    let mut open: Option<Vec<u8>> = None;
    for (key, is_start) in edges {
        if is_start {
            open = Some(key);
        } else if let Some(first) = open.take() {
            out.insert((first, before(key)), Vec::new());
        }
    }
    if let Some(first) = open {
        let last = vec![0xff; first.len()];
        out.insert((first, last), Vec::new());
    }
    out
}

/// The address before one.
fn before(mut key: Vec<u8>) -> Vec<u8> {
    for b in key.iter_mut().rev() {
        let (next, borrow) = b.overflowing_sub(1);
        *b = next;
        if !borrow {
            break;
        }
    }
    key
}

/// A chain on a hook, of whichever table.
pub(in crate::firewall) struct BaseChain {
    pub(in crate::firewall) family: &'static str,
    pub(in crate::firewall) table: String,
    pub(in crate::firewall) name: String,
    pub(in crate::firewall) hook: u32,
    pub(in crate::firewall) policy_drops: bool,
}

/// All chains on hooks of the IP families.
pub(in crate::firewall) fn base_chains(socket: &mut Socket) -> Result<Vec<BaseChain>, FirewallError> {
    let mut every = request(kind::GET_CHAIN, 0, |_| {});
    // NFPROTO_UNSPEC: of all families.
    if let Some(family) = every.body.first_mut() {
        *family = 0;
    }
    let chains = socket.dump(&every).map_err(failed("chains beside those"))?;
    let base = |c: &Answer| {
        // NFPROTO_*.
        let family = match c.body.first()? {
            1 => "inet",
            2 => "ip",
            10 => "ip6",
            _ => return None,
        };
        let c = attrs(c);
        Some(BaseChain {
            family,
            table: c.string(1)?,
            name: c.string(3)?,
            hook: Attrs(c.get(4)?).be32(1)?,
            policy_drops: c.be32(5) == Some(0),
        })
    };
    Ok(chains.iter().filter_map(base).collect())
}
