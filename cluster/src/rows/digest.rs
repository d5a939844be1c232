//! How two tables find out what each lacks, in messages of bounded size: a root hash, then a hash per owner, then pages
//! of (key, version) of those owners that differ.

use std::{collections::BTreeMap, ops::Bound};

use model::{ids::NodeId, row::RowKey};
use serde::{Deserialize, Serialize};

use super::table::{Owner, Table};
use crate::mutant::{self, Mutant};

/// A hash per owner of rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary(pub BTreeMap<NodeId, u64>);

/// What a table holds of one owner in a range of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Owner.
    pub owner: NodeId,
    /// The range begins behind this key; none: at the first.
    pub after: Option<RowKey>,
    /// The range ends with this key; none: with the last.
    pub upto: Option<RowKey>,
    /// What is in the range, ascending.
    pub rows: Vec<PageRow>,
}

/// A row in a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRow {
    /// Key.
    pub key: RowKey,
    /// Version.
    pub version: u64,
    /// Hash of row and signature: two rows of one version are both sent, and the merge picks one.
    pub hash: u64,
}

/// What two tables lack of each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// The other one lacks these.
    pub send: Vec<(NodeId, RowKey)>,
    /// This one lacks these.
    pub want: Vec<(NodeId, RowKey)>,
}

impl Table {
    /// Equal in two tables that hold the same.
    pub fn root(&self) -> u64 {
        // SplitMix64's finalizer: spreads (owner, sum), so that equal sums of two owners do not cancel out.
        let mix = |x: u64| {
            let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        };
        self.owners
            .iter()
            .map(|(id, o)| mix(mix(id.0).wrapping_add(o.sum)))
            .fold(0, u64::wrapping_add)
    }

    /// A hash per owner.
    pub fn summary(&self) -> Summary {
        Summary(self.owners.iter().map(|(id, o)| (*id, o.sum)).collect())
    }

    /// Pages of what this table holds of the owners that differ from `theirs`, at most `max` rows in all. `turn` moves
    /// the place to begin at, so that what found no room comes up another time.
    pub fn pages(&self, theirs: &Summary, max: usize, turn: usize) -> Vec<Page> {
        let mut differ: Vec<NodeId> = self
            .owners
            .iter()
            .filter(|(id, o)| theirs.0.get(id) != Some(&o.sum))
            .map(|(id, _)| *id)
            .chain(theirs.0.keys().copied().filter(|id| !self.owners.contains_key(id)))
            .collect();
        differ.sort_unstable();
        let n = differ.len().max(1);
        differ.rotate_left(turn % n);
        let mut left = max;
        let mut out = Vec::new();
        for owner in differ {
            if left == 0 {
                break;
            }
            let page = match self.owners.get(&owner) {
                None => Page {
                    owner,
                    after: None,
                    upto: None,
                    rows: Vec::new(),
                },
                // Each owner comes first once in `n` turns: its windows are counted in rounds of turns, or two numbers
                // with a common divisor would leave some windows out for ever.
                Some(o) => o.page(owner, left, turn / n),
            };
            // A page costs something even when it is empty.
            left = left.saturating_sub(page.rows.len().max(1));
            out.push(page);
        }
        out
    }

    /// Compares what another table says of itself with this one.
    pub fn compare(&self, pages: &[Page]) -> Diff {
        let mut out = Diff::default();
        let none = Owner::default();
        for p in pages {
            let mine = &self.owners.get(&p.owner).unwrap_or(&none).rows;
            let theirs: BTreeMap<&RowKey, &PageRow> = p.rows.iter().map(|r| (&r.key, r)).collect();
            let forgotten = [mine.keys().next_back(), p.rows.last().map(|r| &r.key)]
                .into_iter()
                .max();
            let forgotten = forgotten.flatten().filter(|_| mutant::on(Mutant::DigestLeavesOut));
            let after = p.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let upto = p.upto.as_ref().map_or(Bound::Unbounded, Bound::Included);
            // A range that ends before it begins makes BTreeMap::range panic.
            if matches!((&p.after, &p.upto), (Some(a), Some(b)) if a >= b) {
                continue;
            }
            for (key, e) in mine.range::<RowKey, _>((after, upto)) {
                if Some(key) == forgotten {
                    continue;
                }
                let version = e.signed.row().version;
                match theirs.get(key) {
                    Some(t) if t.version > version || (t.version == version && t.hash == e.hash) => {}
                    _ => out.send.push((p.owner, key.clone())),
                }
            }
            for (key, t) in theirs {
                let lacks = mine.get(key).is_none_or(|e| {
                    let version = e.signed.row().version;
                    t.version > version || (t.version == version && t.hash != e.hash)
                });
                if lacks && Some(key) != forgotten {
                    out.want.push((p.owner, key.clone()));
                }
            }
        }
        out
    }
}

impl Owner {
    fn page(&self, owner: NodeId, max: usize, turn: usize) -> Page {
        let total = self.rows.len();
        // Windows of `max` rows; the turn chooses which one, and it reaches to the neighbouring window's first key.
        let windows = total.div_ceil(max).max(1);
        let first = (turn % windows) * max;
        let key = |i: usize| self.rows.keys().nth(i).cloned();
        let after = first.checked_sub(1).and_then(key);
        let last = first + max >= total;
        let upto = if last { None } else { key(first + max - 1) };
        let rows = self.rows.iter().skip(first).take(max);
        Page {
            owner,
            after,
            upto,
            rows: rows
                .map(|(key, e)| PageRow {
                    key: key.clone(),
                    version: e.signed.row().version,
                    hash: e.hash,
                })
                .collect(),
        }
    }
}
