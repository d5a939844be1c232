//! The whole: hosts, clients, network and time, driven by a script.

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use cluster::{
    manager::Input,
    state::{Command, InitCluster, Secret, TOKEN_WORKER},
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
    rng::Rng,
    script::Script,
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
    pub(crate) script: Script,
    pub(crate) now: u64,
    pub(crate) seq: u64,
    pub(crate) queue: BinaryHeap<Planned>,
    pub(crate) rng: Rng,
    pub(crate) net: Net,
    pub(crate) hosts: Vec<Host>,
    pub(crate) clients: Vec<Client>,
    pub(crate) oracle: Oracle,
    /// Where ids in Raft live.
    pub(crate) homes: BTreeMap<u64, usize>,
    /// Nodes that the administrator wants demoted.
    pub(crate) demoting: BTreeSet<NodeId>,
    pub(crate) removing: BTreeSet<NodeId>,
    /// Who uses an address.
    pub(crate) addresses: BTreeMap<(Vni, u32), usize>,
    /// Hashes of the rows that each node signed.
    pub(crate) signed: BTreeMap<NodeId, BTreeSet<u64>>,
    pub(crate) old: Vec<(usize, usize, Packet)>,
    pub(crate) unique: u64,
    pub(crate) requests: u64,
    pub(crate) acknowledged: u64,
    pub(crate) reads: u64,
    pub(crate) looked: u64,
    /// No more faults: everybody may take the time that it needs.
    pub(crate) quiet: bool,
    pub(crate) trace: u64,
    pub(crate) events: u64,
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
            secrets: BTreeMap::from([(TOKEN_WORKER.into(), Secret(b"the token of workers".to_vec()))]),
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
                self.retry_role(host)?;
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
    fn retry_role(&mut self, host: usize) -> Check {
        let h = &self.hosts[host];
        let raft = h.node.and_then(|me| h.view.nodes.get(&me)?.raft);
        match h.manager.is_none() && raft.is_some() {
            true => self.role(host),
            false => Ok(()),
        }
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        let leaders = self.managers().filter_map(|i| {
            let peer = self.hosts[i].manager.as_ref()?.peer();
            peer.is_leader().then_some((peer.term(), i))
        });
        leaders.max().map(|l| l.1)
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
        self.nothing_rolls()?;
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
