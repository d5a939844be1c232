//! Which row versions all living nodes hold: what a draining owner waits for (CONTRACTS, Draining).

use std::collections::BTreeMap;

use model::ids::NodeId;

/// Per owner, per node: the highest version that this node's kernel holds.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<NodeId, BTreeMap<NodeId, u64>>);

impl Held {
    /// Takes what a node reports; owners it no longer names are forgotten. Gives the owners of whose rows it now holds
    /// another version.
    pub(super) fn report(&mut self, node: NodeId, held: &BTreeMap<NodeId, u64>) -> Vec<NodeId> {
        self.0.retain(|owner, by| {
            if !held.contains_key(owner) {
                by.remove(&node);
            }
            !by.is_empty()
        });
        let mut changed = Vec::new();
        for (owner, version) in held {
            let old = self.0.entry(*owner).or_default().insert(node, *version);
            if old != Some(*version) {
                changed.push(*owner);
            }
        }
        changed
    }

    /// The highest version of an owner's rows that any node holds; 0: none is told of.
    pub(super) fn newest(&self, owner: NodeId) -> u64 {
        let by = self.0.get(&owner);
        by.and_then(|by| by.values().max()).copied().unwrap_or(0)
    }

    /// The version of an owner's rows that all of `living` hold; none: nobody told of them.
    pub(super) fn by_all(&self, owner: NodeId, mut living: impl Iterator<Item = NodeId>) -> Option<u64> {
        let by = self.0.get(&owner)?;
        living.try_fold(u64::MAX, |least, node| Some(least.min(*by.get(&node)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_living_node_counts() {
        let n = NodeId;
        let mut h = Held::default();
        assert_eq!(h.by_all(n(1), [n(1)].into_iter()), None);
        assert_eq!(h.report(n(1), &BTreeMap::from([(n(1), 9)])), [n(1)]);
        assert_eq!(h.report(n(2), &BTreeMap::from([(n(1), 7), (n(3), 2)])), [n(1), n(3)]);
        assert_eq!((h.newest(n(1)), h.newest(n(3)), h.newest(n(7))), (9, 2, 0));
        assert_eq!(h.by_all(n(1), [n(1), n(2)].into_iter()), Some(7));
        // n3 lives and has said nothing yet.
        assert_eq!(h.by_all(n(1), [n(1), n(2), n(3)].into_iter()), None);
        assert_eq!(h.report(n(2), &BTreeMap::from([(n(1), 9)])), [n(1)]);
        assert_eq!(h.report(n(2), &BTreeMap::from([(n(1), 9)])), []);
        assert_eq!(h.by_all(n(1), [n(1), n(2)].into_iter()), Some(9));
        assert_eq!(h.by_all(n(3), [n(2)].into_iter()), None);
    }
}
