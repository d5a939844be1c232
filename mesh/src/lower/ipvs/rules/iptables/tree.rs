//! Many entries as a tree of chains: a packet meets at most [`FANOUT`] rules at each of a few levels, instead of all.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{Entry, More, Spec, port};

/// Most rules of a chain that has others below it, and most entries of one that has none.
const FANOUT: usize = 16;
/// Bits of an address that are told apart at once: 2^4 = [`FANOUT`].
const STEP: u32 = 4;

/// An entry and its target.
type Leaf = (Entry, String);

/// Writes the chain `root` and those below it. Entries have one family.
pub(super) fn grow(root: &str, leaves: Vec<Leaf>, more: &mut More) {
    let mut tree = Tree { root, next: 1, more };
    let lines = tree.chain(leaves);
    tree.more.insert(root.to_owned(), lines);
}

struct Tree<'a> {
    root: &'a str,
    next: usize,
    more: &'a mut More,
}

impl Tree<'_> {
    fn chain(&mut self, leaves: Vec<Leaf>) -> Vec<String> {
        if leaves.len() <= FANOUT {
            return leaves.iter().map(line).collect();
        }
        let first = leaves.first().map(|(e, _)| address(e));
        if leaves.iter().any(|(e, _)| Some(address(e)) != first) {
            by_address(leaves)
                .into_iter()
                .flat_map(|g| self.group(g, covering))
                .collect()
        } else {
            by_port(leaves).into_iter().flat_map(|g| self.group(g, range)).collect()
        }
    }

    /// A group as it is, or as one rule that goes to a chain of it. Who came to its end goes on where the tree was called.
    fn group(&mut self, leaves: Vec<Leaf>, spec: fn(&[Leaf]) -> Spec) -> Vec<String> {
        if leaves.len() <= 2 {
            return leaves.iter().map(line).collect();
        }
        let name = format!("{}-{}", self.root, self.next);
        self.next += 1;
        let rule = spec(&leaves).line(&format!("-g {name}"));
        let lines = self.chain(leaves);
        self.more.insert(name, lines);
        vec![rule]
    }
}

fn line((entry, target): &Leaf) -> String {
    let mut spec = Spec::default();
    spec.entry(entry);
    spec.line(target)
}

/// An address as the highest bits of a number.
fn bits(a: IpAddr) -> u128 {
    match a {
        IpAddr::V4(a) => u128::from(u32::from(a)) << 96,
        IpAddr::V6(a) => a.into(),
    }
}

/// The address that entries of a list differ in: the destination, or else the source.
fn end(e: &Entry) -> Option<IpAddr> {
    e.to.or_else(|| e.from.map(|n| n.addr()))
}

fn address(e: &Entry) -> u128 {
    end(e).map_or(0, bits)
}

/// How many of the highest bits all have in common.
fn common(leaves: &[Leaf]) -> u32 {
    let mut all = leaves.iter().map(|(e, _)| address(e));
    let first = all.next().unwrap_or(0);
    all.map(|a| (a ^ first).leading_zeros()).min().unwrap_or(128)
}

/// Groups by the bits that follow those in common.
fn by_address(leaves: Vec<Leaf>) -> Vec<Vec<Leaf>> {
    let at = common(&leaves).min(128 - STEP);
    let mut out: BTreeMap<u128, Vec<Leaf>> = BTreeMap::new();
    for leaf in leaves {
        let part = (address(&leaf.0) << at) >> (128 - STEP);
        out.entry(part).or_default().push(leaf);
    }
    out.into_values().collect()
}

/// The smallest network with all addresses of a group.
fn covering(leaves: &[Leaf]) -> Spec {
    let Some((entry, first)) = leaves.first().and_then(|(e, _)| Some((e, end(e)?))) else {
        return Spec::default();
    };
    let whole = if first.is_ipv4() { 32 } else { 128 };
    let length = common(leaves).min(whole);
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    let start = bits(first) & mask;
    let start = match first {
        IpAddr::V4(_) => Ipv4Addr::from((start >> 96) as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(start).into(),
    };
    let net = u8::try_from(length).ok().and_then(|l| IpNet::new(start, l).ok());
    let mut spec = Spec::default();
    match entry.to {
        Some(_) => spec.to = net.and_then(|n| super::net("-d", n)),
        None => spec.from = net.and_then(|n| super::net("-s", n)),
    }
    spec
}

/// Groups of neighbouring ports, a protocol each.
fn by_port(mut leaves: Vec<Leaf>) -> Vec<Vec<Leaf>> {
    leaves.sort_by_key(|(e, _)| (e.transport, e.port));
    let size = leaves.len().div_ceil(FANOUT - 2);
    let mut out: Vec<Vec<Leaf>> = Vec::new();
    for leaf in leaves {
        match out.last_mut() {
            Some(group)
                if group.len() < size && group.first().is_some_and(|(e, _)| e.transport == leaf.0.transport) =>
            {
                group.push(leaf);
            }
            _ => out.push(vec![leaf]),
        }
    }
    out
}

/// The protocol of a group and its ports.
fn range(leaves: &[Leaf]) -> Spec {
    let mut spec = Spec::default();
    if let (Some((first, _)), Some((last, _))) = (leaves.first(), leaves.last())
        && let (Some(t), Some(from), Some(to)) = (first.transport, first.port, last.port)
    {
        spec.port = Some(port(t, from, to));
    }
    spec
}
