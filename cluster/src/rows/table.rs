//! The table of all rows that this node knows.

use std::{collections::BTreeMap, time::Duration};

use model::{
    ids::NodeId,
    intent::Intent,
    row::{Row, RowBody, RowKey},
};
use ring::digest::{Context, SHA256};

use super::signed::{RowError, SignedRow, Signer};
use crate::mutant::{self, Mutant};

/// Most rows, tombstones included, that one node may own: a member gone mad must not fill the others' memory.
pub const MAX_ROWS_PER_OWNER: usize = 65_536;

/// How long a tombstone is kept after it came. A node that was cut off for longer may bring the dead row back, until its
/// owner, which keeps its own tombstones, repeats the tombstone.
pub const TOMBSTONE_KEEP: Duration = Duration::from_secs(24 * 3600);

/// Why a row was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The intent knows no such node: it was removed, or the intent that adds it is still on its way.
    #[error("a row of {0}, which is not in the cluster; try: netctl node ls")]
    Stranger(NodeId),
    /// The signature is not its owner's.
    #[error("a row of {0} was not signed by it; try: look for a node that tampers with rows")]
    Forged(NodeId),
    /// Its owner has [`MAX_ROWS_PER_OWNER`].
    #[error("{0} has more than {MAX_ROWS_PER_OWNER} rows; try: remove endpoints on it")]
    Full(NodeId),
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) signed: SignedRow,
    pub(super) hash: u64,
    since: Duration,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Owner {
    pub(super) rows: BTreeMap<RowKey, Entry>,
    /// Sum of the hashes of its rows: does not depend on their order, kept up to date at each change.
    pub(super) sum: u64,
    /// Highest version seen, also of rows forgotten since.
    newest: u64,
}

/// Rows by owner and key. Time is given as the time since any fixed moment.
#[derive(Debug, Clone)]
pub struct Table {
    me: NodeId,
    pub(super) owners: BTreeMap<NodeId, Owner>,
}

fn hash(signed: &SignedRow) -> u64 {
    let mut c = Context::new(&SHA256);
    for part in signed.parts() {
        c.update(part);
    }
    let digest = c.finish();
    digest.as_ref().first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b))
}

impl Table {
    /// An empty table of node `me`.
    pub fn new(me: NodeId) -> Self {
        Table {
            me,
            owners: BTreeMap::new(),
        }
    }

    /// Takes a row if it is newer than what is known of its key. `true`: the table changed. The signature is checked
    /// (with the key from the intent) unless `from` is the owner itself, proven by its certificate.
    pub fn merge(
        &mut self,
        now: Duration,
        intent: &Intent,
        signed: SignedRow,
        from: Option<NodeId>,
    ) -> Result<bool, Refused> {
        let id = signed.row().owner;
        let owner = self.owners.get(&id);
        let known = owner.and_then(|o| o.rows.get(&signed.row().key));
        let removed = known.is_some_and(|k| k.signed.row().body == RowBody::Tombstone);
        let resurrects = removed && mutant::on(Mutant::ResurrectTombstone);
        if known.is_some_and(|k| k.signed.rank() >= signed.rank()) && !resurrects {
            return Ok(false);
        }
        let node = intent.nodes.get(&id).ok_or(Refused::Stranger(id))?;
        if known.is_none() && owner.is_some_and(|o| o.rows.len() >= MAX_ROWS_PER_OWNER) {
            return Err(Refused::Full(id));
        }
        let trusts = from == Some(id) || mutant::on(Mutant::AcceptForeignRow);
        if !trusts && !signed.verify(&intent.cluster, &node.key) {
            return Err(Refused::Forged(id));
        }
        self.insert(now, signed);
        Ok(true)
    }

    fn insert(&mut self, now: Duration, signed: SignedRow) {
        let hash = hash(&signed);
        let owner = self.owners.entry(signed.row().owner).or_default();
        let entry = Entry {
            signed,
            hash,
            since: now,
        };
        owner.sum = owner.sum.wrapping_add(hash);
        owner.newest = owner.newest.max(entry.signed.row().version);
        if let Some(old) = owner.rows.insert(entry.signed.row().key.clone(), entry) {
            owner.sum = owner.sum.wrapping_sub(old.hash);
        }
    }

    /// Sets a row of this node; [`RowBody::Tombstone`] removes it. Gives the version that says so: `next()` if it
    /// changed, else the one it has. Removing what never was gives 0 and changes nothing.
    pub fn put(
        &mut self,
        now: Duration,
        signer: &Signer,
        key: RowKey,
        body: RowBody,
        next: impl FnOnce() -> u64,
    ) -> Result<(u64, bool), RowError> {
        match self.get(self.me, &key) {
            Some(old) if old.row().body == body => return Ok((old.row().version, false)),
            None if body == RowBody::Tombstone => return Ok((0, false)),
            _ => {}
        }
        // Above all that was ever seen: the counter may be older than the rows, when the disk was.
        let version = next().max(self.newest(self.me) + 1);
        let row = Row {
            owner: self.me,
            key,
            version,
            body,
        };
        self.insert(now, signer.sign(row)?);
        Ok((version, true))
    }

    /// Highest version of an owner's rows; 0: none is known.
    pub fn newest(&self, owner: NodeId) -> u64 {
        self.owners.get(&owner).map_or(0, |o| o.newest)
    }

    /// A row, tombstones included.
    pub fn get(&self, owner: NodeId, key: &RowKey) -> Option<&SignedRow> {
        Some(&self.owners.get(&owner)?.rows.get(key)?.signed)
    }

    /// Owners of rows, tombstones included.
    pub fn owners(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.owners.keys().copied()
    }

    /// Rows of an owner, tombstones included.
    pub fn rows_of(&self, owner: NodeId) -> impl Iterator<Item = &SignedRow> {
        let rows = self.owners.get(&owner).into_iter().flat_map(|o| &o.rows);
        rows.map(|(_, e)| &e.signed)
    }

    /// All rows, tombstones included.
    pub fn iter(&self) -> impl Iterator<Item = &SignedRow> {
        self.owners.values().flat_map(|o| o.rows.values()).map(|e| &e.signed)
    }

    /// Forgets nodes that the intent no longer has: their ids are never used again. Gives those forgotten.
    pub fn retain(&mut self, intent: &Intent) -> Vec<NodeId> {
        if mutant::on(Mutant::KeepRemovedRows) {
            return Vec::new();
        }
        let gone: Vec<NodeId> = self.owners().filter(|id| !intent.nodes.contains_key(id)).collect();
        for id in &gone {
            self.owners.remove(id);
        }
        gone
    }

    /// Forgets other nodes' tombstones that came [`TOMBSTONE_KEEP`] ago or earlier.
    pub fn expire(&mut self, now: Duration) {
        let me = self.me;
        for (_, owner) in self.owners.iter_mut().filter(|(id, _)| **id != me) {
            let Owner { rows, sum, .. } = owner;
            rows.retain(|_, e| {
                let old = e.signed.row().body == RowBody::Tombstone && now.saturating_sub(e.since) >= TOMBSTONE_KEEP;
                if old {
                    *sum = sum.wrapping_sub(e.hash);
                }
                !old
            });
        }
        self.owners.retain(|_, o| !o.rows.is_empty());
    }
}
