//! Which of the nodes that are left.

use std::{cmp::Reverse, collections::BTreeMap};

use model::{
    Name,
    intent::Placed,
    spec::{Resources, Strategy},
};

use super::{
    Fill, Request,
    expr::Key,
    level::{self, Bin},
};

/// Hands out `count` slots. Returns what could not be handed out.
pub(super) fn fill(fills: &mut [Fill<'_>], ask: &Request<'_>, count: u32) -> u32 {
    let keys = keys(ask);
    let open: Vec<usize> = (0..fills.len()).filter(|i| fills[*i].cap > fills[*i].has).collect();
    over(fills, open, &keys, count, ask, &mut Way::Up)
}

/// Takes `count` slots away.
pub(super) fn drain(fills: &mut [Fill<'_>], ask: &Request<'_>, placed: &Placed, count: u32) {
    if count == 0 {
        return;
    }
    let having: Vec<usize> = (0..fills.len()).filter(|i| fills[*i].has > 0).collect();
    over(fills, having, &keys(ask), count, ask, &mut Way::Down(placed));
}

/// More, or fewer of what is placed.
enum Way<'p> {
    Up,
    Down(&'p Placed),
}

fn keys(ask: &Request<'_>) -> Vec<Key> {
    // What cannot be read was refused before.
    ask.spec.spread.iter().filter_map(|k| Key::parse(k).ok()).collect()
}

/// Spreads over the values of the first key, then within each over the next.
fn over(
    fills: &mut [Fill<'_>],
    nodes: Vec<usize>,
    keys: &[Key],
    count: u32,
    ask: &Request<'_>,
    way: &mut Way<'_>,
) -> u32 {
    let Some((key, deeper)) = keys.split_first() else {
        return leaf(fills, nodes, count, ask, way);
    };
    let mut groups: BTreeMap<Option<String>, Vec<usize>> = BTreeMap::new();
    for i in nodes {
        let value = key.of(fills[i].host.id, fills[i].host.node);
        groups.entry(value.map(|v| v.into_owned())).or_default().push(i);
    }
    let mut bins: Vec<Bin> = groups
        .values()
        .enumerate()
        .map(|(order, nodes)| {
            let sum = |of: fn(&Fill<'_>) -> u32| nodes.iter().fold(0u32, |n, i| n.saturating_add(of(&fills[*i])));
            let others: u64 = nodes.iter().map(|i| fills[*i].host.others.tasks).sum();
            let has = sum(|f| f.has);
            Bin {
                has,
                want: has,
                cap: sum(|f| f.cap.max(f.has)),
                // The emptier per node, as whole numbers.
                tie: (
                    unliked(sum(|f| f.liked)),
                    others.saturating_mul(1000) / nodes.len().max(1) as u64,
                    order as u64,
                ),
            }
        })
        .collect();
    let mut left = 0;
    match way {
        Way::Up => left = level::up(&mut bins, count),
        Way::Down(_) => level::down(&mut bins, count),
    }
    for (bin, nodes) in bins.iter().zip(groups.into_values()) {
        let share = bin.want.abs_diff(bin.has);
        if share > 0 {
            left += over(fills, nodes, deeper, share, ask, way);
        }
    }
    left
}

/// Lower for what is liked more.
fn unliked(liked: u32) -> u64 {
    u64::from(u32::MAX - liked)
}

fn leaf(fills: &mut [Fill<'_>], nodes: Vec<usize>, count: u32, ask: &Request<'_>, way: &mut Way<'_>) -> u32 {
    match (ask.spec.strategy, way) {
        (Strategy::Spread, way) => {
            let bin = |f: &Fill<'_>| Bin {
                has: f.has,
                want: f.has,
                cap: f.cap,
                tie: (unliked(f.liked), f.host.others.tasks, f.host.id.0),
            };
            let mut bins: Vec<Bin> = nodes.iter().map(|i| bin(&fills[*i])).collect();
            let mut left = 0;
            match way {
                Way::Up => left = level::up(&mut bins, count),
                Way::Down(_) => level::down(&mut bins, count),
            }
            for (i, bin) in nodes.iter().zip(bins) {
                fills[*i].want = bin.want;
            }
            left
        }
        (Strategy::Binpack, Way::Up) => pack(fills, nodes, count, ask.spec.reserve),
        (Strategy::Binpack, Way::Down(_)) => unpack(fills, nodes, count, ask.spec.reserve),
        (Strategy::Random, Way::Up) => draw(fills, nodes, count, ask.service),
        (Strategy::Random, Way::Down(placed)) => {
            highest(fills, &nodes, placed, count);
            0
        }
    }
}

/// How full a node is with what stays on it: its reserved share in millionths, its tasks.
fn fullness(f: &Fill<'_>, each: Resources) -> (u64, u64) {
    let mut load = f.host.others;
    load.add(f.has.max(f.liked), each);
    let share = |used: u64, all: u64| {
        let millionths = u128::from(used) * 1_000_000 / u128::from(all.max(1));
        u64::try_from(millionths.min(1_000_000)).unwrap_or(1_000_000)
    };
    let all = f.host.node.machine.capacity;
    let share = match all == Resources::default() {
        true => 0,
        false => share(load.reserved.cpu_milli, all.cpu_milli).max(share(load.reserved.memory, all.memory)),
    };
    (share, load.tasks)
}

/// The fullest that has room gets all that it can.
fn pack(fills: &mut [Fill<'_>], mut nodes: Vec<usize>, mut count: u32, each: Resources) -> u32 {
    nodes.sort_by_cached_key(|i| (Reverse(fullness(&fills[*i], each)), fills[*i].host.id));
    for i in nodes {
        let f = &mut fills[i];
        let more = f.cap.saturating_sub(f.has).min(count);
        f.want = f.has + more;
        count -= more;
    }
    count
}

/// The emptiest gives first, so that fewer nodes are in use.
fn unpack(fills: &mut [Fill<'_>], mut nodes: Vec<usize>, mut count: u32, each: Resources) -> u32 {
    nodes.sort_by_cached_key(|i| (fullness(&fills[*i], each), Reverse(fills[*i].host.id)));
    for i in nodes {
        let f = &mut fills[i];
        let fewer = f.has.min(count);
        f.want = f.has - fewer;
        count -= fewer;
    }
    0
}

/// Each slot goes to a node drawn for it, as if by chance, but the same on every manager.
fn draw(fills: &mut [Fill<'_>], mut open: Vec<usize>, count: u32, service: &Name) -> u32 {
    let seed = seed(service);
    let begun: u32 = open.iter().map(|i| fills[*i].has).fold(0, u32::saturating_add);
    for n in 0..count {
        if open.is_empty() {
            return count - n;
        }
        let number = mix(seed ^ u64::from(begun.saturating_add(n)));
        let at = usize::try_from(number % open.len() as u64).unwrap_or(0);
        let f = &mut fills[open[at]];
        f.want += 1;
        if f.want >= f.cap {
            open.swap_remove(at);
        }
    }
    0
}

/// The highest slots of all go.
fn highest(fills: &mut [Fill<'_>], nodes: &[usize], placed: &Placed, mut count: u32) {
    let mut ranges: Vec<(u32, u32, usize)> = Vec::new();
    for i in nodes {
        let slots = placed.get(&fills[*i].host.id);
        ranges.extend(slots.into_iter().flat_map(|s| &s.0).map(|(a, b)| (*b, *a, *i)));
    }
    ranges.sort_unstable_by(|a, b| b.cmp(a));
    for (to, from, i) in ranges {
        let fewer = (to - from + 1).min(count);
        fills[i].want -= fewer;
        count -= fewer;
        if count == 0 {
            return;
        }
    }
}

/// FNV-1a of the name.
fn seed(name: &Name) -> u64 {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The finaliser of SplitMix64: near numbers become far ones.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
