//! What gossip decides: joins membership, rows, health and intent. No socket, no task; the lock around it is held for
//! the length of a call.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use cluster::{
    membership::{Member, MemberState, Membership, Outcome, Output, Watch},
    rows::{Deltas, Diff, Page, Refused, RowError, SignedRow, Signer, Summary, Table, decode_all, grant},
    seal::MAX_PLAIN,
};
use model::{
    api::NodeHealth,
    ids::NodeId,
    intent::Intent,
    row::{Row, RowBody, RowKey},
};
use rand::{SeedableRng, rngs::StdRng, seq::IteratorRandom};
use tokio::sync::watch;

use super::{
    Facts, Stats,
    disk::{Disk, Save, View},
    kept::KEPT,
};

/// First octet of a datagram's content.
const SWIM: u8 = 1;
const ROWS: u8 = 2;

/// With so many living members or fewer, news go from their owner to all of them at once.
const ALL_AT_ONCE: usize = 32;
/// With more, the owner tells so many, ...
const FIRST_FAN: usize = 8;
/// ... and each that hears it for the first time so many more.
const FAN: usize = 6;
/// News that wait for one peer, octets.
const QUEUE: usize = 512 << 10;
/// Datagrams of news for one peer in one go: more would only overflow its socket.
const BURST: usize = 32;
/// Rows of nodes that the intent does not know yet; they are looked at again when it changes.
const MAX_PENDING: usize = 4096;
/// Before this much time has passed nobody is missed.
const START_GRACE: Duration = Duration::from_secs(2);
/// Octets of rows in one message of a comparison.
pub(super) const SYNC_ROWS: usize = 512 << 10;
/// Rows of pages in one message of a comparison.
const SYNC_PAGES: usize = 8192;

/// What is to be sent: to whom, octets to seal.
pub(super) type Datagram = (SocketAddr, Vec<u8>);

pub(super) struct Core {
    me: NodeId,
    signer: Signer,
    disk: Disk,
    table: Table,
    membership: Membership,
    watch: Watch,
    news: Deltas,
    intent: Arc<Intent>,
    /// Highest node id that the intent has ever held here: below it, an unknown id is a removed node.
    highest: NodeId,
    /// Last known gossip addresses.
    addrs: BTreeMap<NodeId, SocketAddr>,
    /// Addresses to meet others at, and who was met there last.
    seeds: BTreeMap<SocketAddr, Option<NodeId>>,
    /// What this node wants its own rows to say.
    own: BTreeMap<RowKey, RowBody>,
    pending: Vec<SignedRow>,
    dirty: BTreeSet<NodeId>,
    facts: Arc<Facts>,
    /// The health of nodes may have changed since it was published.
    judged: bool,
    unsaved: bool,
    leaving: bool,
    rng: StdRng,
    stats: Stats,
}

impl Core {
    pub(super) fn new(me: Member, signer: Signer, disk: Disk, last: View, intent: Arc<Intent>, seed: u64) -> Core {
        let mut core = Core {
            me: me.node,
            signer,
            disk,
            table: Table::new(me.node),
            membership: Membership::new(me, seed),
            watch: Watch::new(me.node, &last.health),
            news: Deltas::new(QUEUE),
            intent: Arc::default(),
            highest: NodeId(0),
            addrs: last.members.iter().map(|m| (m.member.node, m.member.addr)).collect(),
            seeds: BTreeMap::new(),
            own: BTreeMap::new(),
            pending: decode_all(&last.rows).unwrap_or_default(),
            dirty: BTreeSet::new(),
            facts: Arc::default(),
            judged: true,
            unsaved: false,
            leaving: false,
            rng: StdRng::seed_from_u64(seed ^ 1),
            stats: Stats::default(),
        };
        let now = Duration::ZERO;
        core.on_intent(now, intent);
        core.membership.apply(now, &last.members);
        // Those that were there last time may not have noticed that we were away: come with the new generation.
        for m in last.members.iter().filter(|m| m.member.node != me.node) {
            core.membership.announce(now, m.member);
        }
        core
    }

    // What comes in.

    pub(super) fn on_intent(&mut self, now: Duration, intent: Arc<Intent>) {
        let nodes = |i: &Intent| i.nodes.keys().copied().collect::<BTreeSet<_>>();
        let ids = nodes(&intent);
        let before = nodes(&self.intent);
        let changed = before != ids;
        let new: BTreeSet<NodeId> = ids.difference(&before).copied().collect();
        self.highest = self.highest.max(ids.last().copied().unwrap_or(NodeId(0)));
        self.intent = intent;
        if self.intent.revision > 0 && changed {
            for gone in self.table.retain(&self.intent) {
                self.dirty.insert(gone);
            }
            self.watch.nodes(|id| ids.contains(&id), ids.iter().copied());
            // Those that SWIM has met before the intent told of them.
            let met = self.membership.living().map(|m| m.node);
            for node in met.filter(|n| new.contains(n)).collect::<Vec<_>>() {
                self.watch.up(node);
            }
            self.news.retain(|id| ids.contains(&id));
            self.addrs.retain(|id, _| ids.contains(id));
            let highest = self.highest;
            self.membership
                .refuse(now, move |id| id <= highest && !ids.contains(&id));
        }
        // Rows of the disk wait for the first intent.
        if self.intent.revision > 0 {
            for row in std::mem::take(&mut self.pending) {
                self.merge(now, row, None);
            }
        }
        self.dirty.extend(self.table.owners());
        self.judged = true;
    }

    /// A datagram's content.
    pub(super) fn on_packet(&mut self, now: Duration, plain: &[u8]) {
        let taken = match plain.split_first() {
            Some((&SWIM, rest)) => self.membership.handle_data(now, rest).is_ok(),
            Some((&ROWS, rest)) => match decode_all(rest) {
                Ok(rows) => {
                    for row in rows {
                        self.merge(now, row, None);
                    }
                    true
                }
                Err(_) => {
                    self.stats.rows_refused += 1;
                    false
                }
            },
            _ => false,
        };
        match taken {
            true => self.stats.received += 1,
            false => self.stats.refused += 1,
        }
    }

    pub(super) fn refused_packet(&mut self) {
        self.stats.refused += 1;
    }

    pub(super) fn refused_stranger(&mut self) {
        self.stats.strangers += 1;
    }

    fn merge(&mut self, now: Duration, row: SignedRow, from: Option<NodeId>) {
        let (owner, key, size) = (row.row().owner, row.row().key.clone(), row.size());
        match self.table.merge(now, &self.intent, row.clone(), from) {
            Ok(false) => {}
            Ok(true) => {
                self.changed(owner, &key);
                if owner == self.me {
                    self.insist(now, key);
                } else {
                    self.spread(owner, &key, size, FAN);
                }
            }
            // The intent that adds the node is probably on its way; the signature is checked then.
            Err(Refused::Stranger(id)) if id > self.highest && self.pending.len() < MAX_PENDING => {
                self.pending.push(row);
            }
            Err(e) => {
                self.stats.rows_refused += 1;
                tracing::debug!(%owner, error = %e, "a row was refused");
            }
        }
    }

    /// A peer gave back a row of ours that is newer than what our disk held. What we want now must win.
    fn insist(&mut self, now: Duration, key: RowKey) {
        if let Some(body) = self.own.get(&key).cloned() {
            // The same body was signed before, so it can be signed again.
            let _ = self.put(now, key, body);
        }
    }

    fn changed(&mut self, owner: NodeId, key: &RowKey) {
        self.dirty.insert(owner);
        self.unsaved = true;
        if let Some(RowBody::Node(n)) = self.table.get(owner, key).map(|r| &r.row().body) {
            self.addrs.insert(owner, n.gossip);
        }
    }

    pub(super) fn put(&mut self, now: Duration, key: RowKey, body: RowBody) -> Result<u64, RowError> {
        let disk = &mut self.disk;
        let put = self
            .table
            .put(now, &self.signer, key.clone(), body.clone(), || disk.version());
        let (version, new) = put?;
        self.own.insert(key.clone(), body);
        if new {
            self.changed(self.me, &key);
            let size = self.table.get(self.me, &key).map_or(0, SignedRow::size);
            self.spread(self.me, &key, size, FIRST_FAN);
        }
        Ok(version)
    }

    pub(super) fn own(&self) -> Vec<RowKey> {
        let rows = self.table.rows_of(self.me).map(|r| r.row());
        let live = rows.filter(|r| r.body != RowBody::Tombstone);
        live.map(|r| r.key.clone()).collect()
    }

    /// Queues news for living members: for all when they are few and the row is ours, else for some.
    fn spread(&mut self, owner: NodeId, key: &RowKey, size: usize, fan: usize) {
        let living = self.membership.living().map(|m| m.node);
        let living: Vec<NodeId> = living.filter(|n| *n != owner && *n != self.me).collect();
        let few = living.len() <= ALL_AT_ONCE;
        let to = match (few, owner == self.me) {
            (true, true) => living,
            (true, false) => return,
            (false, _) => living.into_iter().sample(&mut self.rng, fan),
        };
        for peer in to {
            self.news.push(peer, owner, key, size);
        }
    }

    pub(super) fn tick(&mut self, now: Duration) {
        self.membership.tick(now);
    }

    /// Once a second.
    pub(super) fn housekeeping(&mut self, now: Duration) {
        self.table.expire(now);
        self.stats.news_dropped = self.news.dropped();
        if now >= START_GRACE {
            let living: BTreeSet<NodeId> = self.membership.living().map(|m| m.node).collect();
            for node in self.watch.unmet(|id| living.contains(&id)) {
                self.watch.down(now, node);
            }
        }
    }

    pub(super) fn pinged(&mut self, now: Duration, node: NodeId, outcome: Outcome) {
        tracing::debug!(%node, ?outcome, "direct ping");
        self.watch.pinged(now, node, outcome);
        self.judged = true;
    }

    pub(super) fn seeds(&mut self, seeds: &[SocketAddr]) {
        for seed in seeds {
            self.seeds.entry(*seed).or_insert(None);
        }
    }

    /// This node's gossip address has changed.
    pub(super) fn moved(&mut self, now: Duration, addr: SocketAddr) {
        let me = self.membership.moved(now, addr);
        self.disk.set_generation(me.generation);
        self.unsaved = true;
    }

    pub(super) fn leave(&mut self, now: Duration) {
        self.membership.leave(now);
        self.leaving = true;
        self.disk.forget();
    }

    pub(super) fn leaving(&self) -> bool {
        self.leaving
    }

    // What goes out.

    /// When [`Core::tick`] or a ping is due.
    pub(super) fn next(&self) -> Option<Duration> {
        let timers = [self.membership.next_timer(), self.watch.next()];
        timers.into_iter().flatten().min()
    }

    /// What is to be sent now. More may wait for a moment when the second is true.
    pub(super) fn outgoing(&mut self, now: Duration) -> (Vec<Datagram>, bool) {
        let mut out = Vec::new();
        while let Some(o) = self.membership.poll() {
            match o {
                Output::Send { to, bytes } => out.push((to.addr, tagged(SWIM, &bytes))),
                Output::Up(m) => {
                    tracing::info!(node = %m.node, addr = %m.addr, "member up");
                    self.addrs.insert(m.node, m.addr);
                    self.watch.up(m.node);
                    self.judged = true;
                    self.unsaved = true;
                }
                Output::Down(m) => {
                    tracing::info!(node = %m.node, "member silent, asking it directly");
                    self.watch.down(now, m.node);
                    self.unsaved = true;
                }
                Output::Rejoined(m) => {
                    tracing::warn!("this node was taken for dead and comes back");
                    self.disk.set_generation(m.generation);
                }
            }
        }
        let mut more = false;
        for peer in self.news.peers() {
            let Some(addr) = self.addr(peer) else {
                continue;
            };
            for i in 0.. {
                if i == BURST {
                    more = true;
                    break;
                }
                let rows = self.news.take(peer, &self.table, MAX_PLAIN - 1);
                if rows.is_empty() {
                    break;
                }
                out.push((addr, tagged(ROWS, &rows)));
            }
        }
        self.stats.sent += u64::try_from(out.len()).unwrap_or(0);
        (out, more)
    }

    /// Nodes to ping directly now, with their addresses.
    pub(super) fn due(&mut self, now: Duration) -> Vec<(NodeId, SocketAddr)> {
        let mut out = Vec::new();
        for node in self.watch.due(now) {
            match self.addr(node) {
                Some(addr) => out.push((node, addr)),
                None => self.watch.skipped(now, node),
            }
        }
        out
    }

    fn addr(&self, node: NodeId) -> Option<SocketAddr> {
        self.addrs.get(&node).copied()
    }

    /// Somebody to compare with: a living member, or (`far`, or when there is none) one that is not, or a seed.
    ///
    /// `kept`: nodes that a connection is open to. With [`KEPT`] of them that live, it is one of them.
    pub(super) fn partner(&mut self, far: bool, kept: &[NodeId]) -> Option<(Option<NodeId>, SocketAddr)> {
        let living: BTreeMap<NodeId, SocketAddr> = self.membership.living().map(|m| (m.node, m.addr)).collect();
        let kept = kept.iter().filter_map(|n| living.get_key_value(n));
        let near: Vec<(&NodeId, &SocketAddr)> = match kept.clone().count() >= KEPT {
            true => kept.collect(),
            false => living.iter().collect(),
        };
        let near = near.into_iter().choose(&mut self.rng).map(|(n, a)| (Some(*n), *a));
        if !far && near.is_some() {
            return near;
        }
        let known = self
            .addrs
            .iter()
            .filter(|(n, _)| **n != self.me && !living.contains_key(n));
        let known = known.map(|(n, a)| (Some(*n), *a));
        // A seed that lives is near: were it asked as a seed, all nodes would ask the same few managers.
        let lives = |who: &Option<NodeId>| who.is_some_and(|n| living.contains_key(&n));
        let seeds = self.seeds.iter().filter(|(_, who)| !lives(who));
        let seeds = seeds.map(|(a, _)| (None, *a));
        let mine = self.membership.me().addr;
        let far = known.chain(seeds).filter(|(_, a)| *a != mine);
        far.choose(&mut self.rng).or(near)
    }

    /// The facts, if they have changed since the last call.
    pub(super) fn publish(&mut self, to: &watch::Sender<Arc<Facts>>) {
        let mut rows = None;
        for owner in std::mem::take(&mut self.dirty) {
            let all = self.table.rows_of(owner).map(SignedRow::row);
            let new: BTreeMap<RowKey, Row> = all
                .filter_map(|r| grant::effective(&self.intent, r))
                .map(|r| (r.key.clone(), r))
                .collect();
            let old = self.facts.rows.get(&owner);
            if old.map_or(new.is_empty(), |o| **o == new) {
                continue;
            }
            let rows = rows.get_or_insert_with(|| self.facts.rows.clone());
            match new.is_empty() {
                true => rows.remove(&owner),
                false => rows.insert(owner, Arc::new(new)),
            };
        }
        let judged = std::mem::take(&mut self.judged);
        let health = judged.then(|| self.health()).filter(|h| *h != self.facts.health);
        if rows.is_none() && health.is_none() {
            return;
        }
        self.unsaved = true;
        self.facts = Arc::new(Facts {
            rows: rows.unwrap_or_else(|| self.facts.rows.clone()),
            health: health.unwrap_or_else(|| self.facts.health.clone()),
            seq: self.facts.seq + 1,
        });
        to.send_replace(self.facts.clone());
    }

    fn health(&self) -> BTreeMap<NodeId, NodeHealth> {
        let mut h = self.watch.health();
        h.retain(|id, _| *id == self.me || self.intent.nodes.contains_key(id));
        h
    }

    /// Whether there is something to keep on disk.
    pub(super) fn is_unsaved(&self) -> bool {
        self.unsaved && !self.leaving
    }

    /// What to keep on disk, if it has changed.
    pub(super) fn take_save(&mut self) -> Option<Save> {
        if !std::mem::take(&mut self.unsaved) || self.leaving {
            return None;
        }
        let living: BTreeSet<NodeId> = self.membership.living().map(|m| m.node).collect();
        let mut view = View {
            members: self.membership.state(),
            health: self.health(),
            rows: Vec::new(),
        };
        view.members.retain(|m| living.contains(&m.member.node));
        for row in self.table.iter().chain(&self.pending) {
            row.encode(&mut view.rows);
        }
        Some(self.disk.save(view))
    }

    pub(super) fn stats(&self) -> Stats {
        self.stats
    }

    // Comparing with another node (`link`).

    pub(super) fn synced(&mut self, well: bool) {
        match well {
            true => self.stats.syncs += 1,
            false => self.stats.syncs_failed += 1,
        }
    }

    /// A connection was made for a comparison, and this node answered.
    pub(super) fn opened(&mut self, addr: SocketAddr, node: NodeId) {
        self.stats.opened += 1;
        if let Some(who) = self.seeds.get_mut(&addr) {
            *who = Some(node);
        }
    }

    /// Equal where the same members live.
    pub(super) fn digest(&self) -> u64 {
        self.membership.digest()
    }

    pub(super) fn members(&self) -> Vec<MemberState> {
        self.membership.state()
    }

    pub(super) fn take_members(&mut self, now: Duration, members: &[MemberState]) {
        self.membership.apply(now, members);
    }

    pub(super) fn root(&self) -> u64 {
        self.table.root()
    }

    #[cfg(test)]
    pub(super) fn rows_of(&self, owner: NodeId) -> usize {
        self.table.rows_of(owner).count()
    }

    pub(super) fn summary(&self) -> Summary {
        self.table.summary()
    }

    pub(super) fn pages(&mut self, theirs: &Summary) -> Vec<Page> {
        let turn = rand::RngExt::random::<u32>(&mut self.rng);
        self.table.pages(theirs, SYNC_PAGES, usize::try_from(turn).unwrap_or(0))
    }

    /// Rows that the other one lacks, encoded, and keys that we lack.
    pub(super) fn compare(&self, pages: &[Page]) -> (Vec<u8>, Vec<(NodeId, RowKey)>) {
        let Diff { send, mut want } = self.table.compare(pages);
        want.truncate(SYNC_PAGES);
        (self.encode(&send), want)
    }

    /// Rows by key, encoded, as many as one message takes.
    pub(super) fn encode(&self, keys: &[(NodeId, RowKey)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (owner, key) in keys {
            let Some(row) = self.table.get(*owner, key) else {
                continue;
            };
            if out.len() + row.size() > SYNC_ROWS {
                break;
            }
            row.encode(&mut out);
        }
        out
    }

    /// Rows that came over mutual TLS from a node.
    pub(super) fn take_rows(&mut self, now: Duration, bytes: &[u8], from: NodeId) -> Result<(), RowError> {
        for row in decode_all(bytes)? {
            self.merge(now, row, Some(from));
        }
        Ok(())
    }
}

fn tagged(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind], bytes].concat()
}
