//! Where the slots of a service go: a pure function of what runs and of the nodes there are.
//!
//! Spread: a new slot goes to the node with the fewest tasks of this service, then the fewest tasks in all, then the
//! lowest id. What runs stays where it is: a change moves only the slots of nodes that may not keep them, a smaller
//! service gives up the highest slots of the fullest nodes. The cost counts nodes and ranges, not tasks.

pub mod slots;
#[cfg(test)]
mod tests;

use std::{cmp::Reverse, collections::BTreeMap};

use model::{NodeId, intent::SlotSet};

/// A node as placement sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Which.
    pub id: NodeId,
    /// What runs there may stay (active or paused, and not down).
    pub keeps: bool,
    /// It may be given more (active, and not down).
    pub takes: bool,
    /// Tasks of other services on it.
    pub others: u64,
}

/// A node while it is filled.
struct Fill {
    host: Host,
    has: u32,
    /// What it is to have.
    want: u32,
}

/// Places `replicas` slots of a service: `placed` becomes what should be. Returns how many slots found no node.
///
/// `hosts` is sorted by id and names every node; what is placed on others is moved.
pub fn spread(placed: &mut BTreeMap<NodeId, SlotSet>, hosts: &[Host], replicas: u32) -> u32 {
    let keeps = |id: &NodeId| hosts.binary_search_by_key(id, |h| h.id).is_ok_and(|at| hosts[at].keeps);
    let mut lost = Vec::new();
    placed.retain(|id, slots| {
        let stays = keeps(id) && !slots.is_empty();
        if !stays {
            lost.extend_from_slice(&slots.0);
        }
        stays
    });
    let mut fills: Vec<Fill> = hosts
        .iter()
        .map(|host| {
            let has = placed.get(&host.id).map_or(0, SlotSet::len);
            Fill {
                host: *host,
                has,
                want: has,
            }
        })
        .collect();
    let kept: u32 = fills.iter().map(|f| f.has).sum();
    if kept >= replicas {
        drain(&mut fills, kept - replicas);
        for f in fills.iter().filter(|f| f.want < f.has) {
            if let Some(slots) = placed.get_mut(&f.host.id) {
                slots::drop_highest(slots, f.has - f.want);
            }
        }
        placed.retain(|_, slots| !slots.is_empty());
        return 0;
    }

    let missing = replicas - kept;
    // A slot that loses its node keeps its number.
    lost.sort_unstable();
    let mut moving = slots::normal(lost);
    let surplus = moving.len().saturating_sub(missing);
    slots::drop_highest(&mut moving, surplus);
    let new = missing - moving.len();
    if new > 0 {
        let mut used: Vec<(u32, u32)> = placed.values().flat_map(|s| s.0.clone()).collect();
        used.extend_from_slice(&moving.0);
        used.sort_unstable();
        moving = slots::union(&moving, &slots::lowest_free(&slots::normal(used), new));
    }
    let unplaced = fill(&mut fills, missing);
    for f in fills.iter().filter(|f| f.want > f.has) {
        let more = slots::take_lowest(&mut moving, f.want - f.has);
        let set = placed.entry(f.host.id).or_default();
        *set = slots::union(set, &more);
    }
    unplaced
}

/// Hands out `count` slots one by one to the node that has the fewest, in one step: every node below a level is filled
/// up to it, and the rest goes, one each, to the emptiest nodes at that level. Returns what could not be handed out.
fn fill(fills: &mut [Fill], count: u32) -> u32 {
    let mut takers: Vec<&mut Fill> = fills.iter_mut().filter(|f| f.host.takes).collect();
    if takers.is_empty() {
        return count;
    }
    let cost = |level: u32, takers: &[&mut Fill]| -> u64 {
        takers.iter().map(|f| u64::from(level.saturating_sub(f.has))).sum()
    };
    let top = takers.iter().map(|f| f.has).max().unwrap_or(0);
    let (mut low, mut high) = (0, top.saturating_add(count));
    while low < high {
        let mid = low + (high - low).div_ceil(2);
        if cost(mid, &takers) <= u64::from(count) {
            low = mid;
        } else {
            high = mid - 1;
        }
    }
    let rest = u64::from(count) - cost(low, &takers);
    for f in &mut takers {
        f.want = f.has.max(low);
    }
    takers.retain(|f| f.want == low);
    // Below the number of takers at this level, else the level would be higher.
    let rest = usize::try_from(rest).unwrap_or(usize::MAX);
    first(&mut takers, rest, |f| (f.host.others, f.host.id), |f| f.want += 1);
    0
}

/// Takes `count` slots away one by one from the node that has the most; of equals from the one with the most tasks in all,
/// then the highest id.
fn drain(fills: &mut [Fill], count: u32) {
    let gain =
        |level: u32, fills: &[Fill]| -> u64 { fills.iter().map(|f| u64::from(f.has.saturating_sub(level))).sum() };
    let (mut low, mut high) = (0, fills.iter().map(|f| f.has).max().unwrap_or(0));
    while low < high {
        let mid = low + (high - low) / 2;
        if gain(mid, fills) <= u64::from(count) {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    let rest = u64::from(count).saturating_sub(gain(low, fills));
    let mut at_level: Vec<&mut Fill> = Vec::new();
    for f in fills.iter_mut() {
        f.want = f.has.min(low);
        if f.want == low && low > 0 {
            at_level.push(f);
        }
    }
    let rest = usize::try_from(rest).unwrap_or(usize::MAX);
    first(
        &mut at_level,
        rest,
        |f| (Reverse(f.host.others), Reverse(f.host.id)),
        |f| f.want -= 1,
    );
}

/// Does `what` to the `n` first of `them` by `key`, without sorting them all.
fn first<K: Ord>(them: &mut [&mut Fill], n: usize, key: impl Fn(&Fill) -> K, what: impl Fn(&mut Fill)) {
    if n == 0 {
        return;
    }
    let n = n.min(them.len());
    if n < them.len() {
        them.select_nth_unstable_by_key(n, |f| key(f));
    }
    for f in &mut them[..n] {
        what(f);
    }
}
