//! Sets of slots.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::spec::ServiceSpec;

/// A set of slots as sorted, disjoint, non-adjacent inclusive ranges: a thousand tasks are one pair of numbers. Slots
/// count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u32, u32)>")]
pub struct SlotSet(pub Vec<(u32, u32)>);

impl TryFrom<Vec<(u32, u32)>> for SlotSet {
    type Error = &'static str;

    /// From outside: what is not such a set is refused, or counting its slots would overflow, or never end.
    fn try_from(ranges: Vec<(u32, u32)>) -> Result<Self, Self::Error> {
        // Behind a range one slot at least is left out.
        let mut first = 1;
        let mut slots = 0;
        for (a, b) in &ranges {
            if *a < first || b < a {
                return Err("the ranges of a set of slots are not ascending and apart");
            }
            if *b > SlotSet::HIGHEST {
                return Err("a slot is higher than any service has");
            }
            slots += b - a + 1;
            if slots > SlotSet::MOST {
                return Err("more slots than any service has");
            }
            first = b.saturating_add(2);
        }
        Ok(SlotSet(ranges))
    }
}

impl SlotSet {
    /// Highest slot: those of global services are named by their nodes, and others stand above them while they are replaced.
    pub const HIGHEST: u32 = 2_000_000_000;
    /// Most slots in one set: those of the largest service, and as many again while each is replaced by one beside it, and
    /// room.
    pub const MOST: u32 = 4 * ServiceSpec::MAX_REPLICAS;

    /// Every slot, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|(a, b)| *a..=*b)
    }
    /// How many.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|(a, b)| b - a + 1).sum()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Whether `slot` is among them.
    pub fn contains(&self, slot: u32) -> bool {
        self.0
            .binary_search_by(|(a, b)| {
                if *b < slot {
                    std::cmp::Ordering::Less
                } else if *a > slot {
                    std::cmp::Ordering::Greater
                } else {
                    std::cmp::Ordering::Equal
                }
            })
            .is_ok()
    }
}

impl FromIterator<u32> for SlotSet {
    fn from_iter<T: IntoIterator<Item = u32>>(iter: T) -> Self {
        let sorted: BTreeSet<u32> = iter.into_iter().collect();
        let mut out: Vec<(u32, u32)> = Vec::new();
        for s in sorted {
            match out.last_mut() {
                Some((_, end)) if *end + 1 == s => *end = s,
                _ => out.push((s, s)),
            }
        }
        SlotSet(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_slots_from_outside_is_one_or_is_refused() {
        let read = |text: &str| serde_json::from_str::<SlotSet>(text).map(|s| (s.len(), s.iter().count()));
        assert_eq!(read("[]").unwrap(), (0, 0));
        assert_eq!(read("[[1,3],[5,5]]").unwrap(), (4, 4));
        for bad in [
            "[[3,1]]",
            "[[0,1]]",
            "[[1,2],[2,3]]",
            "[[1,2],[3,4]]",
            "[[5,6],[1,1]]",
            "[[1,4294967295]]",
            "[[2000000001,2000000001]]",
            "[[1,2000001],[1000000001,1002000001]]",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(read("[[4700,4700],[1000004700,1000004700]]").unwrap(), (2, 2));
        let all = SlotSet(vec![(1, 3), (5, 5)]);
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<SlotSet>(&text).unwrap(), all);
    }
}
