//! What a node does beside Raft: follows the intent, holds blocks and endpoints, tells rows, watches the others. The glue
//! that netd has around the same cores, without its sockets.

mod agree;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use cluster::{
    membership::{Member, Membership, Output},
    rows::{Deltas, Refused, SignedRow, Signer, Table, decode_all},
    state::Command,
};
use model::{
    Intent, Name, NodeId, Vni,
    ids::Mac,
    intent::BLOCK,
    row::{Datapath, EndpointRow, EndpointState, NodeRow, RowBody, RowKey},
};
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::{
    client::{Purpose, of_host},
    event::Packet,
    oracle::{Check, broken, hash},
    world::World,
};

/// Id of the simulated cluster.
pub(crate) const CLUSTER: &str = "0123456789abcdef0123456789abcdef";
/// Octets of rows in a datagram.
const ROOM: usize = 1300;
/// Datagrams of rows to one peer in a round.
const BURST: usize = 4;
/// Rows of a page.
const PAGE: usize = 16;
/// Rows that wait for their owner to be known.
const MAX_PENDING: usize = 256;
/// Between two rounds of an agent, µs.
const ROUND: u64 = 100_000;

thread_local! {
    // Keys are the same in every run: making them costs more than all else that a host needs.
    static KEYS: RefCell<BTreeMap<usize, Vec<u8>>> = const { RefCell::new(BTreeMap::new()) };
}

fn key_pair(host: usize) -> Ed25519KeyPair {
    let mut seed = [7; 32];
    seed[0] = host as u8;
    Ed25519KeyPair::from_seed_unchecked(&seed).unwrap_or_else(|_| unreachable!())
}

/// A host's public key.
pub(crate) fn public_key(host: usize) -> Vec<u8> {
    KEYS.with_borrow_mut(|keys| {
        let key = || key_pair(host).public_key().as_ref().to_vec();
        keys.entry(host).or_insert_with(key).clone()
    })
}

/// An endpoint of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endpoint {
    vni: Vni,
    offset: u32,
    generation: u64,
}

impl Endpoint {
    /// Where.
    pub(crate) fn place(&self) -> (Vni, u32) {
        (self.vni, self.offset)
    }

    /// Of what its task is made from.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }
}

/// What a host has on its disk beside the log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    /// Endpoints by service and slot.
    pub endpoints: BTreeMap<(Name, u32), Endpoint>,
    /// Addresses that were used: none is used again.
    used: BTreeSet<(Vni, u32)>,
    /// Blocks that are being given back.
    releasing: BTreeSet<(Vni, u32)>,
    /// Counter of rows' versions.
    version: u64,
    /// Whether blocks that it finds to be its own may hold addresses that it has forgotten.
    pub forgetful: bool,
}

/// The running part.
pub(crate) struct Agent {
    me: NodeId,
    signer: Signer,
    pub table: Table,
    membership: Membership,
    news: Deltas,
    queue: usize,
    pending: Vec<SignedRow>,
    highest: NodeId,
    /// Version, and whether it is a tombstone, of each row seen.
    peaks: BTreeMap<(NodeId, RowKey), (u64, bool)>,
    turn: usize,
    sync_at: u64,
}

impl World {
    fn member(&self, host: usize, generation: u64) -> Option<Member> {
        let addr = SocketAddr::new(IpAddr::from([198, 18, 0, host as u8 + 1]), 7946);
        Some(Member {
            node: self.hosts[host].node?,
            generation,
            addr,
        })
    }

    /// A host's agent begins, with what is on its disk.
    pub(crate) fn start_agent(&mut self, host: usize) {
        let boot = self.hosts[host].boot;
        let first = self.rng.below(ROUND);
        self.plan(first, crate::event::Event::Agent { host, boot });
        let Some(me) = self.member(host, self.now + 1).filter(|_| self.script.shape.agents) else {
            return;
        };
        let seed = self.rng.word();
        let now = self.local(host);
        let mut agent = Agent {
            me: me.node,
            signer: Signer::new(CLUSTER, key_pair(host)),
            table: Table::new(me.node),
            membership: Membership::new(me, seed),
            news: Deltas::new(self.script.shape.queue),
            queue: self.script.shape.queue,
            pending: vec![],
            highest: NodeId(0),
            peaks: BTreeMap::new(),
            turn: 0,
            sync_at: self.now + 300_000 + self.rng.below(700_000),
        };
        for other in (0..self.hosts.len()).filter(|o| *o != host) {
            if let Some(m) = self.member(other, 0) {
                agent.membership.announce(now, m);
            }
        }
        self.hosts[host].agent = Some(agent);
    }

    /// A host has a new view.
    pub(crate) fn view_changed(&mut self, host: usize) {
        let now = self.local(host);
        let h = &mut self.hosts[host];
        let view = Arc::clone(&h.view);
        let Some(a) = h.agent.as_mut() else { return };
        a.highest = a.highest.max(view.nodes.keys().last().copied().unwrap_or(NodeId(0)));
        a.table.retain(&view);
        a.peaks.retain(|(owner, _), _| view.nodes.contains_key(owner));
        a.news.retain(|id| view.nodes.contains_key(&id));
        let (highest, ids) = (a.highest, view.nodes.keys().copied().collect::<BTreeSet<_>>());
        a.membership.refuse(now, move |id| id <= highest && !ids.contains(&id));
    }

    /// An agent goes round.
    pub(crate) fn agent_round(&mut self, host: usize) -> Check {
        let boot = self.hosts[host].boot;
        self.plan(ROUND, crate::event::Event::Agent { host, boot });
        self.hosts[host].rounds += 1;
        if self.hosts[host].rounds.is_multiple_of(3) {
            self.pull(host);
        }
        if self.hosts[host].agent.is_none() {
            return Ok(());
        }
        self.endpoints(host)?;
        let now = self.local(host);
        let (at, len) = (self.now, self.hosts.len());
        let Some(a) = self.hosts[host].agent.as_mut() else {
            return Ok(());
        };
        a.membership.tick(now);
        a.table.expire(now);
        let mut out = Vec::new();
        for peer in a.news.peers() {
            if a.news.waiting(peer) > a.queue {
                return broken(18, format!("{} octets of news wait for {peer}", a.news.waiting(peer)));
            }
            for _ in 0..BURST {
                let rows = a.news.take(peer, &a.table, ROOM);
                if rows.is_empty() {
                    break;
                }
                out.push((peer, Packet::Rows(rows.into())));
            }
        }
        let sync = at >= a.sync_at;
        if sync {
            a.sync_at = at + 1_000_000;
        }
        let summary = a.table.summary();
        for (peer, packet) in out {
            if let Some(to) = self.host_of(peer) {
                self.packet(host, to, packet);
            }
        }
        if sync {
            let partner = (host + 1 + self.rng.below(len as u64 - 1) as usize) % len;
            self.packet(host, partner, Packet::Compare(summary));
        }
        self.swim_out(host)
    }

    fn swim_out(&mut self, host: usize) -> Check {
        loop {
            let Some(output) = self.hosts[host].agent.as_mut().and_then(|a| a.membership.poll()) else {
                return Ok(());
            };
            if let Output::Send { to, bytes } = output {
                let IpAddr::V4(addr) = to.addr.ip() else { continue };
                self.packet(host, usize::from(addr.octets()[3]) - 1, Packet::Swim(bytes.into()));
            }
        }
    }

    /// A packet has come to a living host.
    pub(crate) fn on_packet(&mut self, from: usize, host: usize, packet: Packet) -> Check {
        let now = self.local(host);
        match packet {
            Packet::Pull(have) => self.on_pull(from, host, have),
            Packet::View(delta) => return self.on_view(host, *delta),
            Packet::Swim(bytes) => {
                if let Some(a) = self.hosts[host].agent.as_mut() {
                    // Refused from removed nodes; SWIM takes the rest or heals itself.
                    let _ = a.membership.handle_data(now, &bytes);
                }
                return self.swim_out(host);
            }
            Packet::Rows(bytes) => return self.merge(host, &bytes, None),
            Packet::Compare(theirs) => {
                let Some(a) = self.hosts[host].agent.as_mut() else {
                    return Ok(());
                };
                a.turn += 1;
                let pages = a.table.pages(&theirs, PAGE, a.turn);
                if !pages.is_empty() {
                    self.packet(host, from, Packet::Pages(pages));
                }
            }
            Packet::Pages(pages) => {
                let Some(a) = self.hosts[host].agent.as_ref() else {
                    return Ok(());
                };
                let diff = a.table.compare(&pages);
                let rows = encode(&a.table, &diff.send);
                self.packet(host, from, Packet::Lacks(rows.into(), diff.want));
            }
            Packet::Lacks(rows, want) => {
                self.merge(host, &rows, self.hosts[from].node)?;
                let Some(a) = self.hosts[host].agent.as_ref() else {
                    return Ok(());
                };
                let rest = encode(&a.table, &want);
                if !rest.is_empty() {
                    self.packet(host, from, Packet::Rest(rest.into()));
                }
            }
            Packet::Rest(rows) => return self.merge(host, &rows, self.hosts[from].node),
        }
        Ok(())
    }

    fn merge(&mut self, host: usize, bytes: &[u8], from: Option<NodeId>) -> Check {
        let Ok(rows) = decode_all(bytes) else {
            return broken(0, "rows on the wire cannot be read");
        };
        for row in rows {
            self.merge_one(host, row, from)?;
        }
        Ok(())
    }

    fn merge_one(&mut self, host: usize, signed: SignedRow, from: Option<NodeId>) -> Check {
        let now = self.local(host);
        let view = Arc::clone(&self.hosts[host].view);
        let Some(a) = self.hosts[host].agent.as_mut() else {
            return Ok(());
        };
        let row = signed.row().clone();
        match a.table.merge(now, &view, signed.clone(), from) {
            Ok(true) => {}
            Err(Refused::Stranger(id)) if id > a.highest && a.pending.len() < MAX_PENDING => {
                a.pending.push(signed);
                return Ok(());
            }
            _ => return Ok(()),
        }
        let mut octets = Vec::new();
        signed.encode(&mut octets);
        let genuine = self
            .signed
            .get(&row.owner)
            .is_some_and(|all| all.contains(&hash(&octets)));
        if !genuine {
            return broken(
                13,
                format!("host {host} holds a row of {} that it never signed", row.owner),
            );
        }
        let dead = row.body == RowBody::Tombstone;
        let peak = a.peaks.insert((row.owner, row.key.clone()), (row.version, dead));
        if let Some((version, was_dead)) = peak
            && (row.version < version || (was_dead && !dead && row.version == version))
        {
            return broken(12, format!("host {host}: row {:?} of {} came back", row.key, row.owner));
        }
        if row.owner == a.me {
            // A peer gave back a row of ours that is newer than what we know: what we want must win.
            self.insist(host, row.key)?;
        }
        Ok(())
    }

    fn insist(&mut self, host: usize, key: RowKey) -> Check {
        let body = match &key {
            RowKey::Node => self.node_row(host),
            RowKey::Endpoint(id) => {
                let wanted = self.hosts[host].kept.endpoints.iter();
                let mut wanted = wanted.filter(|((s, slot), _)| id.as_str() == format!("{s}.{slot}"));
                match wanted.next() {
                    Some(((service, slot), e)) => endpoint_row(host, &self.hosts[host].view, service, *slot, *e),
                    None => RowBody::Tombstone,
                }
            }
        };
        self.put(host, key, body)
    }

    fn node_row(&self, host: usize) -> RowBody {
        let ip = IpAddr::from([198, 18, 0, host as u8 + 1]);
        RowBody::Node(NodeRow {
            hostname: format!("host{host}"),
            datapath_addr: ip,
            datapath_port: 4789,
            gossip: SocketAddr::new(ip, 7946),
            mac: mac(host, 0),
            datapath: Datapath::Ebpf,
            version: "sim".into(),
        })
    }

    fn put(&mut self, host: usize, key: RowKey, body: RowBody) -> Check {
        let now = self.local(host);
        let h = &mut self.hosts[host];
        let (Some(a), version) = (h.agent.as_mut(), &mut h.kept.version) else {
            return Ok(());
        };
        let put = a.table.put(now, &a.signer, key.clone(), body, || {
            *version += 1;
            *version
        });
        match put {
            Ok((_, false)) => return Ok(()),
            Ok((_, true)) => {}
            Err(e) => return broken(0, format!("a row cannot be signed: {e}")),
        }
        let Some(row) = a.table.get(a.me, &key) else {
            return Ok(());
        };
        let (size, me) = (row.size(), a.me);
        let mut octets = Vec::new();
        row.encode(&mut octets);
        let dead = row.row().body == RowBody::Tombstone;
        a.peaks.insert((me, key.clone()), (row.row().version, dead));
        self.signed.entry(me).or_default().insert(hash(&octets));
        let others: Vec<NodeId> = h.view.nodes.keys().copied().filter(|id| *id != me).collect();
        for peer in others {
            a.news.push(peer, me, &key, size);
        }
        Ok(())
    }

    /// Makes the endpoints be what is placed here.
    fn endpoints(&mut self, host: usize) -> Check {
        let view = Arc::clone(&self.hosts[host].view);
        let Some(me) = self.hosts[host].node.filter(|me| view.nodes.contains_key(me)) else {
            return Ok(());
        };
        let waiting = std::mem::take(
            &mut self.hosts[host]
                .agent
                .as_mut()
                .map_or(vec![], |a| std::mem::take(&mut a.pending)),
        );
        for row in waiting {
            self.merge_one(host, row, None)?;
        }
        let row = self.node_row(host);
        self.put(host, RowKey::Node, row)?;
        self.blocks(host, me, &view);
        let mut wanted: BTreeMap<(Name, u32), (Vni, u64)> = BTreeMap::new();
        for (name, s, slot) in view.tasks_on(me) {
            let (spec, generation) = s.template(slot);
            if let Some(n) = spec.networks.first().and_then(|n| view.networks.get(n)) {
                wanted.insert((name.clone(), slot), (n.vni, generation));
            }
        }
        let have = self.hosts[host].kept.endpoints.clone();
        for ((service, slot), e) in have {
            if wanted.get(&(service.clone(), slot)) != Some(&(e.vni, e.generation)) {
                self.hosts[host].kept.endpoints.remove(&(service.clone(), slot));
                self.addresses.remove(&(e.vni, e.offset));
                self.put(host, endpoint_key(&service, slot), RowBody::Tombstone)?;
            }
        }
        for ((service, slot), (vni, generation)) in wanted {
            if let Some(e) = self.hosts[host].kept.endpoints.get(&(service.clone(), slot)).copied() {
                let row = endpoint_row(host, &view, &service, slot, e);
                self.put(host, endpoint_key(&service, slot), row)?;
                continue;
            }
            let Some(offset) = self.address(host, me, &view, vni) else {
                if self.clients[of_host(host)].is_idle() {
                    self.order(of_host(host), Command::AssignBlock { node: me, vni }, Purpose::Other);
                }
                continue;
            };
            if let Some(other) = self.addresses.insert((vni, offset), host) {
                return broken(
                    7,
                    format!("hosts {other} and {host} both use address {offset} of {vni}"),
                );
            }
            let e = Endpoint {
                vni,
                offset,
                generation,
            };
            self.hosts[host].kept.used.insert((vni, offset));
            self.hosts[host].kept.endpoints.insert((service.clone(), slot), e);
            let row = endpoint_row(host, &view, &service, slot, e);
            self.put(host, endpoint_key(&service, slot), row)?;
        }
        Ok(())
    }

    fn address(&self, host: usize, me: NodeId, view: &Intent, vni: Vni) -> Option<u32> {
        let kept = &self.hosts[host].kept;
        let blocks = view.blocks.get(&vni)?.iter();
        let mine = blocks.filter(|(k, owner)| **owner == me && !kept.releasing.contains(&(vni, **k)));
        let mut offsets = mine.flat_map(|(k, _)| k * BLOCK..(k + 1) * BLOCK);
        offsets.find(|o| !kept.used.contains(&(vni, *o)))
    }

    /// Gives back blocks that nothing is in, and those that may hold what was forgotten.
    fn blocks(&mut self, host: usize, me: NodeId, view: &Intent) {
        let idle = self.clients[of_host(host)].is_idle();
        let tired = self.rng.chance(20);
        let kept = &mut self.hosts[host].kept;
        let mine: BTreeSet<(Vni, u32)> = view
            .blocks
            .iter()
            .flat_map(|(vni, b)| b.iter().filter(|b| *b.1 == me).map(|b| (*vni, *b.0)))
            .collect();
        kept.releasing.retain(|b| mine.contains(b));
        let busy = &kept.endpoints;
        kept.used
            .retain(|(v, o)| mine.contains(&(*v, o / BLOCK)) || busy.values().any(|e| (e.vni, e.offset) == (*v, *o)));
        if std::mem::take(&mut kept.forgetful) {
            kept.releasing.extend(mine.iter().copied());
        }
        let empty = |b: &(Vni, u32)| !busy.values().any(|e| (e.vni, e.offset / BLOCK) == *b);
        let spare = mine.iter().copied().find(|b| tired && empty(b));
        kept.releasing.extend(spare);
        if let Some((vni, block)) = kept.releasing.first().copied().filter(|_| idle) {
            let blocks = vec![block];
            self.order(
                of_host(host),
                Command::ReleaseBlocks { node: me, vni, blocks },
                Purpose::Other,
            );
        }
    }

    /// A host tells rows of another one, signed by itself.
    pub(crate) fn forge(&mut self, host: usize, owner: usize) {
        let (Some(node), Some(victim)) = (self.hosts[host].node, self.hosts[owner].node) else {
            return;
        };
        if self.hosts[host].agent.is_none() || node == victim {
            return;
        }
        let Some(a) = self.hosts[host].agent.as_ref() else {
            return;
        };
        let row = model::row::Row {
            owner: victim,
            key: RowKey::Node,
            version: a.table.newest(victim) + 5,
            body: RowBody::Tombstone,
        };
        let Ok(signed) = a.signer.sign(row) else { return };
        let mut octets = Vec::new();
        signed.encode(&mut octets);
        let bytes: Rc<[u8]> = octets.into();
        for to in (0..self.hosts.len()).filter(|to| *to != host) {
            self.packet(host, to, Packet::Rows(bytes.clone()));
            self.packet(host, to, Packet::Rest(bytes.clone()));
        }
    }

    /// The time of a host's monotonic clock.
    pub(crate) fn local(&self, host: usize) -> Duration {
        Duration::from_micros(self.now + self.hosts[host].offset)
    }
}

fn encode(table: &Table, keys: &[(NodeId, RowKey)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (owner, key) in keys {
        if let Some(row) = table.get(*owner, key) {
            row.encode(&mut out);
        }
    }
    out
}

fn mac(host: usize, offset: u32) -> Mac {
    let o = offset.to_be_bytes();
    Mac([2, host as u8, o[0], o[1], o[2], o[3]])
}

fn endpoint_key(service: &Name, slot: u32) -> RowKey {
    RowKey::Endpoint(format!("{service}.{slot}").parse().unwrap_or_else(|_| unreachable!()))
}

fn endpoint_row(host: usize, view: &Intent, service: &Name, slot: u32, e: Endpoint) -> RowBody {
    RowBody::Endpoint(EndpointRow {
        vni: e.vni,
        v4: view.network_by_vni(e.vni).map(|n| n.1.v4(e.offset)),
        v6: None,
        mac: mac(host, e.offset),
        service: Some(service.clone()),
        slot: Some(slot),
        state: EndpointState::Ready,
        listening: vec![],
    })
}
