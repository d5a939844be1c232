//! Orderly moves: a slot that moves off a living node goes on there until the leader has seen its successor ready.
//!
//! Arithmetic on placements as `node -> slots`; the cost counts nodes and ranges, not tasks.

use std::collections::BTreeMap;

use model::{
    Intent, Name, NodeId, Shared,
    intent::{Placed, SlotSet},
};

use super::State;
use crate::placement::slots::{all, common, drop_highest, minus, take_lowest, union};

/// A placement in which slots that go on somewhere and have no place, or one on a dead node, are placed there: they keep
/// their numbers.
pub(super) fn with_homeless(placed: &Placed, leaving: &Placed, alive: impl Fn(&NodeId) -> bool) -> Placed {
    let mut out = placed.clone();
    if leaving.is_empty() {
        return out;
    }
    let runs = all(leaving.iter().filter(|(node, _)| alive(node)).map(|(_, slots)| slots));
    for (_, slots) in out.iter_mut().filter(|(node, _)| !runs.is_empty() && !alive(node)) {
        *slots = minus(slots, &runs);
    }
    out.retain(|_, slots| !slots.is_empty());
    let mut known = all(out.values());
    for (node, slots) in leaving {
        let homeless = minus(slots, &known);
        if !homeless.is_empty() {
            known = union(&known, &homeless);
            let set = out.entry(*node).or_default();
            *set = union(set, &homeless);
        }
    }
    out
}

/// Slots that go on somewhere and are placed elsewhere.
pub(super) fn apart(leaving: &Placed, placed: &Placed) -> Placed {
    let here = |node| placed.get(node).cloned().unwrap_or_default();
    let all = leaving.iter().map(|(node, slots)| (*node, minus(slots, &here(node))));
    all.filter(|(_, slots)| !slots.is_empty()).collect()
}

/// Takes `which` out of a placement.
pub(super) fn take(placed: &mut Placed, which: &SlotSet) -> Placed {
    let mut out = Placed::new();
    if which.is_empty() {
        return out;
    }
    for (node, slots) in placed.iter_mut() {
        let taken = common(slots, which);
        if !taken.is_empty() {
            *slots = minus(slots, &taken);
            out.insert(*node, taken);
        }
    }
    placed.retain(|_, slots| !slots.is_empty());
    out
}

/// A service that grows takes over the slots that it has beyond its size, lowest first.
pub(super) fn promote(placed: &mut Placed, extra: &mut Placed, replicas: u32) {
    let has: u32 = placed.values().map(SlotSet::len).sum();
    if has >= replicas || extra.is_empty() {
        return;
    }
    let mut spare = all(extra.values());
    let grown = take_lowest(&mut spare, replicas - has);
    join(placed, take(extra, &grown));
}

/// Adds a placement to another.
pub(super) fn join(placed: &mut Placed, more: Placed) {
    for (node, slots) in more {
        let set = placed.entry(node).or_default();
        *set = union(set, &slots);
    }
}

/// What goes on at earlier places once `now` is the placement: slots that moved away, and as many of those that found no
/// node as are missing, wherever the node lives.
pub(super) fn leaving(
    before: &Placed,
    left: &Placed,
    now: &Placed,
    surge: &SlotSet,
    missing: u32,
    alive: impl Fn(&NodeId) -> bool,
) -> Placed {
    let placed = all(now.values());
    let mut homeless = minus(&minus(&all(before.values().chain(left.values())), &placed), surge);
    let surplus = homeless.len().saturating_sub(missing);
    drop_highest(&mut homeless, surplus);
    let wanted = union(&placed, &homeless);
    // Most of it stays where it is: only what differs is looked at, and copied.
    let differs = before
        .iter()
        .chain(left)
        .filter(|(node, slots)| now.get(node) != Some(*slots) && alive(node));
    let mut out = Placed::new();
    for (node, slots) in differs {
        let here = now.get(node).cloned().unwrap_or_default();
        let goes_on = minus(&common(slots, &wanted), &here);
        if !goes_on.is_empty() {
            let set = out.entry(*node).or_default();
            *set = union(set, &goes_on);
        }
    }
    out
}

/// Puts a service's placement into one of the intent's two maps, if that changes anything.
pub(super) fn put(
    state: &mut State,
    index: u64,
    read: impl Fn(&Intent) -> &BTreeMap<Name, Shared<Placed>>,
    write: impl Fn(&mut Intent) -> &mut BTreeMap<Name, Shared<Placed>>,
    name: &Name,
    mut placed: Placed,
) {
    placed.retain(|_, slots| !slots.is_empty());
    let same = match read(&state.intent).get(name) {
        Some(old) => **old == placed,
        None => placed.is_empty(),
    };
    if same {
        return;
    }
    let map = write(state.change(index));
    match placed.is_empty() {
        true => map.remove(name),
        false => map.insert(name.clone(), Shared::new(placed)),
    };
}
