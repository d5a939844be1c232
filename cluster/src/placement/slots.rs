//! Arithmetic on sets of slots as sorted, disjoint, non-adjacent ranges: the cost counts ranges, not slots.

use model::intent::SlotSet;

/// All slots of `a` and of `b`.
pub fn union(a: &SlotSet, b: &SlotSet) -> SlotSet {
    let mut all: Vec<(u32, u32)> = a.0.iter().chain(&b.0).copied().collect();
    all.sort_unstable();
    normal(all)
}

/// All slots of `a` that are not in `b`.
pub fn minus(a: &SlotSet, b: &SlotSet) -> SlotSet {
    let mut out = Vec::new();
    let mut cuts = b.0.iter().peekable();
    for (from, to) in &a.0 {
        let mut at = *from;
        while let Some((cut, end)) = cuts.peek()
            && cut <= to
        {
            if *cut > at {
                out.push((at, cut - 1));
            }
            at = at.max(end.saturating_add(1));
            if *end >= *to {
                break;
            }
            cuts.next();
        }
        // At the very end of the numbers nothing is left behind a cut that reaches it.
        let cut_off = cuts.peek().is_some_and(|(cut, end)| cut <= to && end >= to);
        if at <= *to && !cut_off {
            out.push((at, *to));
        }
    }
    SlotSet(out)
}

/// All slots that are in both.
pub fn common(a: &SlotSet, b: &SlotSet) -> SlotSet {
    minus(a, &minus(a, b))
}

/// All slots of a placement.
pub fn all<'a>(placed: impl IntoIterator<Item = &'a SlotSet>) -> SlotSet {
    let mut ranges: Vec<(u32, u32)> = placed.into_iter().flat_map(|s| s.0.iter().copied()).collect();
    ranges.sort_unstable();
    normal(ranges)
}

/// Joins sorted ranges that touch or overlap.
pub fn normal(sorted: Vec<(u32, u32)>) -> SlotSet {
    let mut out: Vec<(u32, u32)> = Vec::with_capacity(sorted.len());
    for (from, to) in sorted {
        match out.last_mut() {
            Some((_, end)) if from <= end.saturating_add(1) => *end = (*end).max(to),
            _ => out.push((from, to)),
        }
    }
    SlotSet(out)
}

/// The lowest `n` numbers from 1 on that are not in `used`.
pub fn lowest_free(used: &SlotSet, n: u32) -> SlotSet {
    let mut out = Vec::new();
    let (mut at, mut left) = (1u32, n);
    let ends = used.0.iter().copied().chain([(u32::MAX, u32::MAX)]);
    for (from, to) in ends {
        let gap = from.saturating_sub(at).min(left);
        if gap > 0 {
            out.push((at, at + (gap - 1)));
            left -= gap;
        }
        if left == 0 {
            break;
        }
        at = to.saturating_add(1);
    }
    SlotSet(out)
}

/// Slots that wait for a node, lowest first.
#[derive(Debug)]
pub struct Queue {
    ranges: Vec<(u32, u32)>,
    at: usize,
}

impl Queue {
    /// These.
    pub fn new(slots: SlotSet) -> Queue {
        Queue { ranges: slots.0, at: 0 }
    }

    /// The lowest `n`; fewer, if there are fewer.
    pub fn take(&mut self, n: u32) -> SlotSet {
        let mut out = Vec::new();
        let mut left = n;
        while left > 0
            && let Some(range) = self.ranges.get_mut(self.at)
        {
            let len = range.1 - range.0 + 1;
            if len <= left {
                out.push(*range);
                left -= len;
                self.at += 1;
            } else {
                out.push((range.0, range.0 + (left - 1)));
                range.0 += left;
                left = 0;
            }
        }
        SlotSet(out)
    }
}

/// All but the highest `n`, and those.
pub fn split_highest(set: &SlotSet, n: u32) -> (SlotSet, SlotSet) {
    let stays = set.len().saturating_sub(n);
    let mut queue = Queue::new(set.clone());
    (queue.take(stays), queue.take(n))
}

/// Takes the lowest `n` slots out of `set`.
pub fn take_lowest(set: &mut SlotSet, n: u32) -> SlotSet {
    let mut queue = Queue::new(std::mem::take(set));
    let out = queue.take(n);
    *set = queue.take(u32::MAX);
    out
}

/// Drops the highest `n` slots of `set`.
pub fn drop_highest(set: &mut SlotSet, n: u32) {
    let mut left = n;
    while left > 0
        && let Some(range) = set.0.last_mut()
    {
        let len = range.1 - range.0 + 1;
        if len <= left {
            left -= len;
            set.0.pop();
        } else {
            range.1 -= left;
            left = 0;
        }
    }
}
