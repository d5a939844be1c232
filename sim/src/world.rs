//! The whole: hosts, clients, network and time, driven by a script.

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use cluster::{
    manager::Input,
    state::{Command, InitCluster},
};
use ipnet::{Ipv4Net, Ipv6Net};
use model::{ClusterSettings, NetworkSpec, NodeId, Vni, intent::Role};

use crate::{
    agent::CLUSTER,
    client::{ADMIN, ALL, Client, Purpose},
    disk::Keep,
    event::{Event, Packet, Planned},
    host::Host,
    net::Net,
    oracle::{Check, Oracle, Violation, broken},
    rng::{Rng, mix},
    script::{Act, Script},
};

/// After the last act all is healed, and so long (µs) may pass until everybody agrees.
const CALM: u64 = 20_000_000;
/// Between two looks whether everybody does.
const LOOK: u64 = 250_000;
/// Old packets of rows that may come again.
const MAX_OLD: usize = 512;

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What was broken, and when (µs).
    pub violation: Option<(u64, Violation)>,
    /// Hash of all that happened.
    pub trace: u64,
    /// Events.
    pub events: u64,
    /// Changes that clients were told of.
    pub acknowledged: u64,
    /// Reads that they got.
    pub reads: u64,
    /// Entries of the log.
    pub committed: u64,
    /// Terms in which somebody led.
    pub terms: usize,
    /// Simulated time, µs.
    pub time: u64,
}

/// See the module.
pub(crate) struct World {
    pub script: Script,
    pub now: u64,
    seq: u64,
    queue: BinaryHeap<Planned>,
    pub rng: Rng,
    pub net: Net,
    pub hosts: Vec<Host>,
    pub clients: Vec<Client>,
    pub oracle: Oracle,
    /// Where ids in Raft live.
    pub homes: BTreeMap<u64, usize>,
    /// Nodes that the administrator wants demoted.
    pub demoting: BTreeSet<NodeId>,
    removing: BTreeSet<NodeId>,
    /// Who uses an address.
    pub addresses: BTreeMap<(Vni, u32), usize>,
    /// Hashes of the rows that each node signed.
    pub signed: BTreeMap<NodeId, BTreeSet<u64>>,
    old: Vec<(usize, usize, Packet)>,
    pub unique: u64,
    requests: u64,
    pub acknowledged: u64,
    pub reads: u64,
    pub looked: u64,
    /// No more faults: everybody may take the time that it needs.
    pub quiet: bool,
    trace: u64,
    events: u64,
    pub(crate) told: bool,
    /// What happens to the next manager that gives its vote away.
    pub(crate) voter: Option<(Keep, u64)>,
}

/// Runs a script; `told`: and says on stderr what happens.
pub fn run(script: &Script, told: bool) -> Report {
    let mut world = World::new(script.clone());
    world.told = told;
    let violation = world.play().err().map(|v| (world.now, v));
    Report {
        violation,
        trace: world.trace,
        events: world.events,
        acknowledged: world.acknowledged,
        reads: world.reads,
        committed: world.oracle.committed(),
        terms: world.oracle.terms(),
        time: world.now,
    }
}

impl World {
    fn new(script: Script) -> World {
        let shape = &script.shape;
        let count = usize::from(shape.managers + shape.workers);
        let hosts = (0..count).map(|_| Host::default()).collect();
        let world = World {
            now: 0,
            seq: 0,
            queue: BinaryHeap::new(),
            rng: Rng::new(script.seed, 2),
            net: Net::new(shape.weather),
            hosts,
            clients: (0..ALL).map(|_| Client::default()).collect(),
            oracle: Oracle::default(),
            homes: BTreeMap::new(),
            demoting: BTreeSet::new(),
            removing: BTreeSet::new(),
            addresses: BTreeMap::new(),
            signed: BTreeMap::new(),
            old: vec![],
            unique: 0,
            requests: 0,
            acknowledged: 0,
            reads: 0,
            looked: 0,
            quiet: false,
            trace: 0,
            events: 0,
            told: false,
            voter: None,
            script,
        };
        for h in &world.hosts {
            h.disk.set_cost(world.script.shape.sync_us);
        }
        world
    }

    /// Where a host's managers' RPC listens.
    pub(crate) fn rpc(host: usize) -> String {
        format!("198.18.0.{}:2377", host + 1)
    }

    /// A network's subnet: small, so that it runs out.
    pub(crate) fn subnet(n: u8) -> Ipv4Net {
        Ipv4Net::new_assert([10, 40 + n, 0, 0].into(), 24)
    }

    /// An id for a request that nobody had.
    pub(crate) fn new_request(&mut self) -> u128 {
        self.requests += 1;
        u128::from(self.requests) << 32 | u128::from(self.requests)
    }

    /// Something happens so many µs from now.
    pub(crate) fn plan(&mut self, after: u64, event: Event) {
        self.seq += 1;
        self.queue.push(Planned {
            at: self.now + after,
            seq: self.seq,
            event,
        });
    }

    /// The host of a node.
    pub(crate) fn host_of(&self, node: NodeId) -> Option<usize> {
        self.hosts.iter().position(|h| h.node == Some(node))
    }

    /// A packet goes out.
    pub(crate) fn packet(&mut self, from: usize, to: usize, packet: Packet) {
        let datagram = matches!(packet, Packet::Swim(_) | Packet::Rows(_));
        if matches!(packet, Packet::Rows(_)) && self.old.len() < MAX_OLD {
            self.old.push((from, to, packet.clone()));
        }
        let ways = match datagram {
            true => self.net.fate(&mut self.rng, from, to),
            false => [self.net.stream(&mut self.rng, from, to), None],
        };
        for way in ways.into_iter().flatten() {
            let packet = packet.clone();
            self.plan(way, Event::Packet { from, to, packet });
        }
    }

    fn play(&mut self) -> Check {
        self.begin_cluster()?;
        for (i, (at, _)) in self.script.acts.clone().iter().enumerate() {
            self.plan(at * 1000, Event::Act(i));
        }
        let end = self.script.end() * 1000 + 100_000;
        let mut look = end;
        loop {
            let next = self.queue.peek().map_or(u64::MAX, |p| p.at);
            if next > look {
                self.now = look;
                if !self.quiet {
                    self.calm();
                }
                let agreed = self.agreed();
                match agreed {
                    Ok(()) => return self.last_look(),
                    Err(what) if self.now > end + CALM => {
                        return broken(14, format!("20 s after the last fault: {what}"));
                    }
                    Err(_) => look += LOOK,
                }
                continue;
            }
            let Some(planned) = self.queue.pop() else {
                return broken(0, "nothing happens any more");
            };
            self.now = planned.at;
            self.events += 1;
            self.note(&planned.event);
            if self.told {
                self.tell_story(&planned.event);
            }
            self.happen(planned.event)?;
        }
    }

    fn begin_cluster(&mut self) -> Check {
        for host in 0..self.hosts.len() {
            self.hosts[host].up = true;
        }
        self.found()?;
        let init = InitCluster {
            cluster: CLUSTER.into(),
            node: self.newcomer(0, Role::Manager),
            settings: ClusterSettings {
                default_addr_pool6: Some(Ipv6Net::new_assert([0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0].into(), 48)),
                ..ClusterSettings::default()
            },
            default_network: NetworkSpec {
                subnet: Some(World::subnet(0)),
                ..NetworkSpec::default()
            },
            avoid: vec![],
            secrets: BTreeMap::new(),
        };
        self.order(ADMIN, Command::InitCluster(init), Purpose::Join(0));
        for host in 1..self.hosts.len() {
            let role = match host < usize::from(self.script.shape.managers) {
                true => Role::Manager,
                false => Role::Worker,
            };
            let node = self.newcomer(host, role);
            self.order(ADMIN, Command::AddNode(node), Purpose::Join(host));
        }
        Ok(())
    }

    fn note(&mut self, event: &Event) {
        let what = match event {
            Event::Act(i) => mix(1 + *i as u64),
            Event::Run { host, boot } => mix(2) ^ (*host as u64) << 8 ^ u64::from(*boot) << 16,
            Event::Raft { to, message: m } => {
                mix(3 ^ (m.kind as u64) << 8 ^ (*to as u64) << 16)
                    ^ mix(m.term << 32 ^ m.index << 8 ^ m.from)
                    ^ m.commit
            }
            Event::Sent { id, arrived, .. } => mix(4 ^ id << 8 ^ u64::from(*arrived) << 4),
            Event::Ask {
                host, client, request, ..
            } => mix(5 ^ (*host as u64) << 8 ^ (*client as u64) << 16) ^ *request as u64,
            Event::Told { client, request, .. } => mix(6 ^ (*client as u64) << 16) ^ *request as u64,
            Event::Try { client, request, turn } => {
                mix(7 ^ (*client as u64) << 16 ^ u64::from(*turn) << 8) ^ *request as u64
            }
            Event::Boot { host, .. } => mix(8 ^ (*host as u64) << 8),
            Event::Agent { host, .. } => mix(9 ^ (*host as u64) << 8),
            Event::Packet { from, to, packet } => {
                let size = match packet {
                    Packet::Swim(b) | Packet::Rows(b) | Packet::Rest(b) | Packet::Lacks(b, _) => crate::oracle::hash(b),
                    Packet::Pull(revision) => *revision,
                    Packet::View(d) => d.to ^ d.from << 32,
                    Packet::Pages(p) => p.len() as u64,
                    Packet::Compare(s) => s.0.values().fold(0, |a, b| a ^ b),
                };
                mix(10 ^ (*from as u64) << 8 ^ (*to as u64) << 16) ^ size
            }
        };
        self.trace = mix(self.trace.rotate_left(9) ^ what ^ mix(self.now));
    }

    /// Says what happens, for whoever looks for the reason.
    fn tell_story(&self, event: &Event) {
        let at = self.now / 1000;
        match event {
            Event::Act(i) => eprintln!("{at:>6} ms ** {:?}", self.script.acts[*i].1),
            Event::Raft { to, message: m } => eprintln!(
                "{at:>6} ms host {to} <- {:?} of {} to {} term {} index {}/{} commit {} entries {}{}",
                m.kind,
                m.from,
                m.to,
                m.term,
                m.index,
                m.log_term,
                m.commit,
                m.entries.len(),
                if m.reject { " rejected" } else { "" }
            ),
            Event::Ask {
                host,
                client,
                request,
                ask,
            } => {
                eprintln!("{at:>6} ms host {host} <- client {client} {request:x} {ask:?}");
            }
            Event::Told { client, request, told } => eprintln!("{at:>6} ms client {client} <- {request:x} {told:?}"),
            Event::Boot { host, .. } => eprintln!("{at:>6} ms host {host} starts"),
            _ => {}
        }
    }

    fn happen(&mut self, event: Event) -> Check {
        match event {
            Event::Act(i) => {
                let act = self.script.acts[i].1.clone();
                self.act(&act)
            }
            Event::Run { host, boot } => match self.hosts[host].boot == boot {
                true => self.run_manager(host),
                false => Ok(()),
            },
            Event::Raft { to, message } => {
                let id = self.hosts[to].manager.as_ref().map(|m| m.id());
                if self.hosts[to].up && id == Some(message.to) {
                    let from = message.from;
                    self.input(to, Input::Message { from, message });
                }
                Ok(())
            }
            Event::Sent {
                host,
                boot,
                id,
                arrived,
            } => {
                if self.hosts[host].boot == boot && self.hosts[host].manager.is_some() {
                    self.input(host, Input::SnapshotSent { id, arrived });
                }
                Ok(())
            }
            Event::Ask {
                host,
                client,
                request,
                ask,
            } => {
                self.on_ask(host, client, request, ask);
                Ok(())
            }
            Event::Told { client, request, told } => self.on_told(client, request, told),
            Event::Try { client, request, turn } => {
                self.on_try(client, request, turn);
                Ok(())
            }
            Event::Boot { host, boot } => match self.hosts[host].boot == boot && !self.hosts[host].up {
                true => self.boot(host),
                false => Ok(()),
            },
            Event::Agent { host, boot } => {
                let h = &self.hosts[host];
                if h.boot != boot || !h.up || h.removed {
                    return Ok(());
                }
                if self.now < h.stopped_until {
                    self.plan(h.stopped_until - self.now, Event::Agent { host, boot });
                    return Ok(());
                }
                self.retry_role(host);
                self.agent_round(host)
            }
            Event::Packet { from, to, packet } => {
                let h = &self.hosts[to];
                if !h.up || h.removed || h.node.is_none() {
                    return Ok(());
                }
                if self.now < h.stopped_until {
                    self.plan(h.stopped_until - self.now, Event::Packet { from, to, packet });
                    return Ok(());
                }
                self.on_packet(from, to, packet)
            }
        }
    }

    /// A manager without a log goes on asking.
    fn retry_role(&mut self, host: usize) {
        let h = &self.hosts[host];
        let Some(me) = h.node else { return };
        if h.manager.is_none() && h.view.nodes.get(&me).is_some_and(|n| n.raft.is_some()) {
            self.lost_log(host, me);
        }
    }

    fn leader(&self) -> Option<usize> {
        let leaders = self.managers().filter_map(|i| {
            let peer = self.hosts[i].manager.as_ref()?.peer();
            peer.is_leader().then_some((peer.term(), i))
        });
        leaders.max().map(|l| l.1)
    }

    fn act(&mut self, act: &Act) -> Check {
        let ok = |host: u8| usize::from(host) < self.hosts.len();
        let count = self.hosts.len();
        match act.clone() {
            Act::Want { client, want, twice } => {
                if let Some(ask) = self.asked(&want) {
                    let purpose = Purpose::Script;
                    self.ask(usize::from(client), crate::client::Job { ask, purpose, twice });
                }
            }
            Act::Crash { host, keep, back_ms } if ok(host) => self.crash(usize::from(host), keep, back_ms * 1000),
            Act::KillLeader { keep, back_ms } => {
                if let Some(host) = self.leader() {
                    self.crash(host, keep, back_ms * 1000);
                }
            }
            Act::KillVoter { keep, back_ms } => self.voter = Some((keep, back_ms)),
            Act::PowerCut { keep, back_ms } => {
                for host in 0..count {
                    let back = back_ms * 1000 + self.rng.below(200_000);
                    self.crash(host, keep, back);
                }
            }
            Act::Tear { host, steps, keep } if ok(host) => {
                let h = &mut self.hosts[usize::from(host)];
                h.keep = Some(keep);
                h.disk.stop_after(steps);
            }
            Act::SyncFails { host, keep } if ok(host) => {
                let h = &mut self.hosts[usize::from(host)];
                h.keep = Some(keep);
                h.disk.fail_syncs();
            }
            Act::Slow { host, us } if ok(host) => self.hosts[usize::from(host)].disk.set_cost(us),
            Act::Full { host, full } if ok(host) => self.hosts[usize::from(host)].disk.set_full(full),
            Act::Wipe { host, back_ms } if ok(host) && self.may_wipe(usize::from(host)) => {
                self.wipe(usize::from(host), back_ms * 1000);
            }
            Act::Stop { host, ms } if ok(host) => self.hosts[usize::from(host)].stopped_until = self.now + ms * 1000,
            Act::Leap { host, secs } if ok(host) => {
                self.hosts[usize::from(host)].offset += secs * 1_000_000;
                self.wake(usize::from(host), self.now);
            }
            Act::Cut { from, to } => self.net.keep(|a, b| (a, b) != (usize::from(from), usize::from(to))),
            Act::Isolate { host } => self.net.keep(|a, b| a != usize::from(host) && b != usize::from(host)),
            Act::Split { mask } => self.net.keep(|a, b| mask >> a & 1 == mask >> b & 1),
            Act::Chain { first } => {
                let place = |h: usize| (h + count - usize::from(first) % count) % count;
                self.net.keep(|a, b| place(a % count).abs_diff(place(b % count)) <= 1);
            }
            Act::Heal => self.net.heal(),
            Act::Weather(w) => self.net.weather = w,
            Act::Promote { host } if ok(host) => {
                let host = usize::from(host);
                let Some(node) = self.hosts[host].node else {
                    return Ok(());
                };
                if !self.removing.contains(&node) {
                    self.demoting.remove(&node);
                    let (role, rpc) = (Role::Manager, Some(World::rpc(host)));
                    self.order(ADMIN, Command::SetRole { node, role, rpc }, Purpose::Other);
                }
            }
            Act::Demote { host } if ok(host) => self.demote(usize::from(host)),
            Act::Remove { host } if ok(host) && host > 0 => {
                let host = usize::from(host);
                if let Some(node) = self.hosts[host].node {
                    self.removing.insert(node);
                    self.demote(host);
                    if !self.demoting.contains(&node) && self.is_manager(node) {
                        self.removing.remove(&node);
                    }
                    self.remove_demoted();
                }
            }
            Act::Transfer { host } if ok(host) => {
                let to = self.hosts[usize::from(host)].manager.as_ref().map(|m| m.id());
                if let (Some(leader), Some(to)) = (self.leader(), to) {
                    self.input(leader, Input::Transfer { to });
                }
            }
            Act::Snapshot { host } if ok(host) => {
                let host = usize::from(host);
                let h = &mut self.hosts[host];
                if let Some(m) = h.manager.as_mut()
                    && m.read().applied() > 0
                    && !m.status(std::time::Duration::ZERO).disk_full
                    && m.snapshot().is_err()
                {
                    let keep = h.keep.take().unwrap_or(Keep::All);
                    self.crash(host, keep, 300_000);
                }
            }
            Act::Forge { host, owner } if ok(host) && ok(owner) => self.forge(usize::from(host), usize::from(owner)),
            Act::Replay { host, packet } if ok(host) && self.script.shape.agents && !self.old.is_empty() => {
                let at = usize::from(packet) % self.old.len();
                let (from, _, packet) = self.old[at].clone();
                let to = usize::from(host);
                self.plan(100, Event::Packet { from, to, packet });
            }
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn is_manager(&self, node: NodeId) -> bool {
        let intent = self.oracle.state.intent();
        intent.nodes.get(&node).is_some_and(|n| n.role == Role::Manager)
    }

    fn demote(&mut self, host: usize) {
        let Some(node) = self.hosts[host].node else { return };
        let intent = self.oracle.state.intent();
        let stay = intent
            .nodes
            .iter()
            .filter(|(id, n)| n.role == Role::Manager && !self.demoting.contains(id));
        // Somebody must be left who has the log, also while others are on their way.
        let mut rafts = intent.nodes.values().filter_map(|n| n.raft);
        let whole = rafts.all(|r| self.has_log(r));
        if self.is_manager(node) && stay.count() >= 3 && self.demoting.is_empty() && whole {
            self.demoting.insert(node);
        }
    }

    /// Whether there is the log of an id in Raft.
    fn has_log(&self, raft: u64) -> bool {
        let home = self.homes.get(&raft).map(|i| &self.hosts[*i]);
        home.is_some_and(|h| h.has_log(raft))
    }

    fn remove_demoted(&mut self) {
        let done: Vec<NodeId> = self.demoting.iter().copied().filter(|n| !self.is_manager(*n)).collect();
        for node in done {
            self.demoting.remove(&node);
        }
        let ready: Vec<NodeId> = self.removing.iter().copied().filter(|n| !self.is_manager(*n)).collect();
        for node in ready {
            self.removing.remove(&node);
            self.order(ADMIN, Command::RemoveNode { node }, Purpose::Other);
        }
    }

    /// Whether a quorum keeps its disks when this host's is lost.
    fn may_wipe(&self, host: usize) -> bool {
        let Some(leader) = self.leader() else { return false };
        let Some(m) = self.hosts[leader].manager.as_ref() else {
            return false;
        };
        let conf = m.peer().conf();
        if !conf.outgoing.is_empty()
            || !conf.learners.is_empty()
            || m.peer().changing()
            || !m.peer().is_settled()
            || !self.demoting.is_empty()
        {
            return false;
        }
        // All must know of the same members, or one that was wiped may count for some.
        let same = |h: &Host| h.manager.as_ref().is_none_or(|m| m.peer().conf() == conf);
        if !self.hosts.iter().all(|h| h.removed || (h.up && same(h))) {
            return false;
        }
        let whole = conf.voters.iter().filter(|v| {
            let home = self.homes.get(v).copied();
            home.is_some_and(|i| i != host && self.hosts[i].has_log(**v))
        });
        whole.count() >= conf.quorum()
    }

    /// No more faults.
    fn calm(&mut self) {
        self.quiet = true;
        self.voter = None;
        self.net.heal();
        self.net.weather = crate::script::Weather {
            loss: 0,
            twice: 0,
            near_us: 100,
            far_us: 1000,
        };
        for host in 0..self.hosts.len() {
            let h = &mut self.hosts[host];
            h.disk.set_full(false);
            h.disk.set_cost(200);
            h.stopped_until = 0;
            h.keep = None;
            if h.up {
                // A disk that was to fail gets a whole one's habits.
                h.disk.crash(Keep::All);
                self.wake(host, self.now);
            }
        }
    }

    /// Whether everybody agrees, and on what the log says.
    fn agreed(&mut self) -> Result<(), String> {
        self.remove_demoted();
        if let Some(i) = self.clients.iter().position(|c| !c.is_idle()) {
            return Err(format!("client {i} waits"));
        }
        if !self.demoting.is_empty() || !self.removing.is_empty() {
            return Err("a node is to be demoted or removed".into());
        }
        let intent = self.oracle.state.intent();
        let Some(leader) = self.leader() else {
            return Err("nobody leads".into());
        };
        let wanted: BTreeSet<u64> = intent.nodes.values().filter_map(|n| n.raft).collect();
        let Some(m) = self.hosts[leader].manager.as_ref() else {
            return Err("nobody leads".into());
        };
        let conf = m.peer().conf();
        let voters: BTreeSet<u64> = conf.voters.iter().copied().collect();
        if voters != wanted || !conf.learners.is_empty() || !conf.outgoing.is_empty() {
            return Err(format!("the members are {conf:?}, wanted are {wanted:?}"));
        }
        for raft in &wanted {
            let home = self.homes.get(raft).map(|i| &self.hosts[*i]);
            let Some(m) = home.and_then(|h| h.manager.as_ref()).filter(|m| m.id() == *raft) else {
                return Err(format!("manager {raft} does not run"));
            };
            if m.read().applied() != self.oracle.committed() {
                return Err(format!("manager {raft} lags behind"));
            }
        }
        for (i, h) in self.hosts.iter().enumerate() {
            match h.node {
                Some(me) if intent.nodes.contains_key(&me) && h.view.revision != intent.revision => {
                    return Err(format!("host {i} has not seen revision {}", intent.revision));
                }
                None => return Err(format!("host {i} has not joined")),
                _ => {}
            }
        }
        self.agents_agree()
    }

    fn last_look(&mut self) -> Check {
        for host in 0..self.hosts.len() {
            if let Some(m) = self.hosts[host].manager.as_ref() {
                let (id, state) = (m.id(), m.read().clone());
                self.oracle.applied(id, &state)?;
            }
        }
        let view = Arc::clone(&self.oracle.state.intent());
        for h in self.hosts.iter().filter(|h| h.removed) {
            if h.node.is_some_and(|n| view.nodes.contains_key(&n)) {
                return broken(17, "a host believes that it was removed");
            }
        }
        Ok(())
    }
}
