//! News that wait for their way to each peer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::{ids::NodeId, row::RowKey};

use super::table::Table;
use crate::mutant::{self, Mutant};

/// A queue per peer, bounded in octets. A row waits at most once per peer and is looked up when it is sent, so that the
/// newest version goes out. What finds no room is dropped, oldest first: anti-entropy brings it.
#[derive(Debug, Clone)]
pub struct Deltas {
    max: usize,
    peers: BTreeMap<NodeId, Queue>,
    dropped: u64,
}

#[derive(Debug, Clone, Default)]
struct Queue {
    order: VecDeque<(NodeId, RowKey, usize)>,
    waiting: BTreeSet<(NodeId, RowKey)>,
    octets: usize,
}

impl Queue {
    fn pop(&mut self) -> Option<(NodeId, RowKey)> {
        let (owner, key, size) = self.order.pop_front()?;
        self.octets -= size;
        let id = (owner, key);
        self.waiting.remove(&id);
        Some(id)
    }
}

impl Deltas {
    /// Queues that hold at most `max` octets of rows for each peer.
    pub fn new(max: usize) -> Self {
        Deltas {
            max,
            peers: BTreeMap::new(),
            dropped: 0,
        }
    }

    /// Queues a row of `size` octets for a peer.
    pub fn push(&mut self, peer: NodeId, owner: NodeId, key: &RowKey, size: usize) {
        let q = self.peers.entry(peer).or_default();
        if size > self.max || !q.waiting.insert((owner, key.clone())) {
            return;
        }
        q.order.push_back((owner, key.clone(), size));
        q.octets += size;
        while q.octets > self.max && !mutant::on(Mutant::UnboundedQueue) && q.pop().is_some() {
            self.dropped += 1;
        }
    }

    /// Rows for a peer, encoded, at most `room` octets; empty: nothing waits (or not even one row fits).
    pub fn take(&mut self, peer: NodeId, table: &Table, room: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let Some(q) = self.peers.get_mut(&peer) else {
            return out;
        };
        while let Some((owner, key, _)) = q.order.front() {
            if let Some(row) = table.get(*owner, key) {
                if out.len() + row.size() > room {
                    break;
                }
                row.encode(&mut out);
            }
            q.pop();
        }
        if q.order.is_empty() {
            self.peers.remove(&peer);
        }
        out
    }

    /// Octets of rows that wait for a peer.
    pub fn waiting(&self, peer: NodeId) -> usize {
        self.peers.get(&peer).map_or(0, |q| q.octets)
    }

    /// Peers that something waits for.
    pub fn peers(&self) -> Vec<NodeId> {
        self.peers.keys().copied().collect()
    }

    /// Forgets all peers but these.
    pub fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.peers.retain(|id, _| keep(*id));
    }

    /// Rows dropped for lack of room so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
