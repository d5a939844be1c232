//! The state machine, runners that carry out what it says, and the leader's loop, in one thread with made-up time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use model::{
    ClusterSettings, Intent, Name, NetworkSpec, NodeId, ServiceSpec,
    api::TaskState,
    intent::{Availability, Role, Service},
};

use crate::{
    rollout::{Place, Rollouts, Seen},
    state::{Command, Envelope, InitCluster, NewNode, State},
};

/// Between two looks, ms.
const STEP: u64 = 50;

/// A task on a node.
#[derive(Debug, Clone)]
struct Task {
    /// Unique: another one is another process.
    process: u64,
    generation: u64,
    command: String,
    state: Life,
    /// When it changes next.
    at: u64,
    restarts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Starting,
    Ready,
    Failed,
    Draining,
}

/// See the module.
pub(super) struct World {
    state: State,
    index: u64,
    now: u64,
    rng: u64,
    tasks: BTreeMap<(NodeId, u32), Task>,
    dead: BTreeSet<NodeId>,
    leader: Rollouts,
    processes: u64,
    /// From now on so many tasks must be ready, always.
    pub(super) least: u32,
    /// The fewest that were.
    pub(super) fewest: u32,
    /// A slot whose new tasks fail.
    pub(super) cursed: Option<u32>,
}

/// A service's spec that runs `command`.
pub(super) fn spec(command: &str) -> ServiceSpec {
    ServiceSpec {
        command: vec![command.to_owned()],
        ..ServiceSpec::default()
    }
}

impl World {
    pub(super) fn new(nodes: u8, spec: ServiceSpec) -> World {
        World::seeded(nodes, spec, 1)
    }

    pub(super) fn seeded(nodes: u8, spec: ServiceSpec, seed: u64) -> World {
        let mut w = World {
            state: State::default(),
            index: 0,
            now: 0,
            rng: seed | 1,
            tasks: BTreeMap::new(),
            dead: BTreeSet::new(),
            leader: Rollouts::default(),
            processes: 0,
            least: 0,
            fewest: u32::MAX,
            cursed: None,
        };
        let node = |n: u8| NewNode {
            hostname: format!("host{n}"),
            role: if n == 1 { Role::Manager } else { Role::Worker },
            key: vec![n; 32],
            rpc: (n == 1).then(|| "198.18.0.1:2377".to_owned()),
        };
        w.command(Command::InitCluster(InitCluster {
            cluster: "0123456789abcdef0123456789abcdef".into(),
            node: node(1),
            settings: ClusterSettings {
                default_addr_pool6: Some("fd12:3456:789a::/48".parse().unwrap()),
                ..ClusterSettings::default()
            },
            default_network: NetworkSpec::default(),
            avoid: vec![],
            secrets: BTreeMap::new(),
        }));
        for n in 2..=nodes {
            w.command(Command::AddNode(node(n)));
        }
        w.command(Command::CreateService { name: w.name(), spec });
        w
    }

    pub(super) fn name(&self) -> Name {
        "web".parse().unwrap()
    }

    pub(super) fn intent(&self) -> Arc<Intent> {
        self.state.intent()
    }

    pub(super) fn service(&self) -> Service {
        self.intent().services[&self.name()].clone()
    }

    pub(super) fn command(&mut self, command: Command) {
        if let Err(e) = self.propose(command.clone()) {
            panic!("{command:?}: {e}");
        }
    }

    /// One that may be refused.
    pub(super) fn try_command(&mut self, command: Command) {
        let _ = self.propose(command);
    }

    fn propose(&mut self, command: Command) -> Result<(), String> {
        self.index += 1;
        let envelope = Envelope {
            request: u128::from(self.index),
            time_ms: self.now,
            command,
        };
        let outcome = self.state.apply(self.index, &envelope);
        outcome.map(drop).map_err(|e| e.to_string())
    }

    pub(super) fn replace(&mut self, spec: ServiceSpec) {
        let seen = self.service().changed;
        self.command(Command::ReplaceService {
            name: self.name(),
            spec,
            seen,
        });
    }

    pub(super) fn drain(&mut self, node: u64) {
        self.available(node, Availability::Drain);
    }

    pub(super) fn activate(&mut self, node: u64) {
        self.available(node, Availability::Active);
    }

    fn available(&mut self, node: u64, availability: Availability) {
        self.command(Command::SetAvailability {
            node: NodeId(node),
            availability,
        });
    }

    /// A host dies, and the leader has seen it.
    pub(super) fn die(&mut self, node: u64) {
        let node = NodeId(node);
        self.dead.insert(node);
        self.tasks.retain(|(n, _), _| *n != node);
        self.command(Command::SetNodeDown { node, down: true });
    }

    pub(super) fn revive(&mut self, node: u64) {
        let node = NodeId(node);
        self.dead.remove(&node);
        self.command(Command::SetNodeDown { node, down: false });
    }

    /// Another manager leads.
    pub(super) fn forget(&mut self) {
        self.leader = Rollouts::default();
    }

    /// Slots that are ready somewhere, and run `command`.
    pub(super) fn running(&self, command: &str) -> u32 {
        let ready = self.tasks.iter();
        let ready = ready.filter(|(_, t)| t.state == Life::Ready && t.command == command);
        let slots: BTreeSet<u32> = ready.map(|((_, slot), _)| *slot).collect();
        slots.len() as u32
    }

    /// Processes that are ready and run `command`.
    pub(super) fn tasks_of(&self, command: &str) -> BTreeSet<u64> {
        let ready = self.tasks.values();
        let ready = ready.filter(|t| t.state == Life::Ready && t.command == command);
        ready.map(|t| t.process).collect()
    }

    /// Tasks that there are.
    pub(super) fn places(&self) -> u32 {
        self.tasks.len() as u32
    }

    /// Goes on for `ms`.
    pub(super) fn run(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.now < end {
            self.tick();
        }
    }

    /// Goes on until nothing is left to do; returns how long it took, ms.
    pub(super) fn finish(&mut self, most: u64) -> u64 {
        let begin = self.now;
        while self.now < begin + most {
            self.tick();
            let i = self.intent();
            let open = self.service().rollout.is_some_and(|r| r.is_open());
            let wanted: BTreeSet<(NodeId, u32)> = i
                .nodes
                .keys()
                .flat_map(|n| i.tasks_on(*n).map(|(_, _, slot)| (*n, slot)))
                .collect();
            let there: BTreeSet<(NodeId, u32)> = self.tasks.keys().copied().collect();
            let settled = self.tasks.values().all(|t| t.state == Life::Ready);
            if !open && i.leaving.is_empty() && wanted == there && (settled || self.cursed.is_some()) {
                return self.now - begin;
            }
        }
        let s = self.service();
        if s.spec.command[0] == "broken" && s.rollout.is_none_or(|r| !r.is_open()) {
            return self.now - begin;
        }
        panic!(
            "not over after {most} ms: {:?}\nplaced {:?}\nleaving {:?}\ntasks {:?}\nleader {:?}",
            self.service(),
            self.intent().placements,
            self.intent().leaving,
            self.tasks,
            self.leader
        );
    }

    fn below(&mut self, n: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng % n
    }

    fn tick(&mut self) {
        self.now += STEP;
        self.nodes();
        self.lead();
        self.check();
    }

    /// Every node does what it is told.
    fn nodes(&mut self) {
        let intent = self.intent();
        let dead = self.dead.clone();
        for node in intent.nodes.keys().filter(|n| !dead.contains(n)) {
            let wanted: BTreeMap<u32, (u64, String)> = intent
                .tasks_on(*node)
                .map(|(_, s, slot)| {
                    let (spec, generation) = s.template(slot);
                    (slot, (generation, spec.command[0].clone()))
                })
                .collect();
            let here: Vec<u32> = self.tasks.keys().filter(|k| k.0 == *node).map(|k| k.1).collect();
            for slot in wanted.keys().copied().filter(|s| !here.contains(s)).collect::<Vec<_>>() {
                let (generation, command) = wanted[&slot].clone();
                self.processes += 1;
                let at = self.now + 50 + self.below(400);
                let process = self.processes;
                let task = Task {
                    process,
                    generation,
                    command,
                    state: Life::Starting,
                    at,
                    restarts: 0,
                };
                self.tasks.insert((*node, slot), task);
            }
            for slot in here {
                let (later, soon) = (self.now + 100 + self.below(300), self.now + 100);
                let (now, cursed) = (self.now, self.cursed == Some(slot));
                let Some(t) = self.tasks.get_mut(&(*node, slot)) else {
                    continue;
                };
                let stale = wanted.get(&slot).is_none_or(|(g, _)| *g != t.generation);
                let fails = t.command == "broken" || (cursed && t.command != "a");
                match t.state {
                    Life::Draining if t.at <= now => {
                        self.tasks.remove(&(*node, slot));
                    }
                    Life::Draining => {}
                    _ if stale => (t.state, t.at) = (Life::Draining, soon),
                    Life::Starting if t.at <= now => (t.state, t.at) = (Life::Ready, later),
                    Life::Ready if fails && t.at <= now => (t.state, t.at) = (Life::Failed, later),
                    Life::Failed if t.at <= now => {
                        t.restarts += 1;
                        (t.state, t.at) = (Life::Starting, later);
                    }
                    _ => {}
                }
            }
        }
    }

    /// The leader's loop.
    fn lead(&mut self) {
        let name = self.name();
        for _ in 0..10 {
            let intent = self.intent();
            let mut places = Vec::new();
            for (leaving, map) in [(false, &intent.placements), (true, &intent.leaving)] {
                for (node, slots) in map.get(&name).into_iter().flatten() {
                    for slot in slots.iter() {
                        let seen = self.tasks.get(&(*node, slot)).map(|t| Seen {
                            state: match t.state {
                                Life::Starting if t.at > self.now + 100 => TaskState::Preparing,
                                Life::Starting => TaskState::Starting,
                                Life::Ready | Life::Draining => TaskState::Running,
                                Life::Failed => TaskState::Failed,
                            },
                            generation: t.generation,
                            ready: t.state == Life::Ready,
                            // A replacement is counted when it is started, as netd-run does it.
                            restarts: t.restarts + u32::from(t.state != Life::Starting || t.at <= self.now + 100),
                            message: match t.state {
                                Life::Failed => "exit status 1".into(),
                                _ => String::new(),
                            },
                        });
                        places.push(Place {
                            slot,
                            node: *node,
                            leaving,
                            alive: !self.dead.contains(node),
                            seen,
                        });
                    }
                }
            }
            let now = Duration::from_millis(self.now);
            let step = self.leader.step(now, &name, &self.service(), &places);
            assert!(
                step.next.is_none_or(|at| at > now),
                "a timer in the past is a busy loop"
            );
            if step.commands.is_empty() {
                return;
            }
            for c in step.commands {
                self.command(c);
            }
        }
        panic!("the leader does not come to rest: {:?}", self.service());
    }

    fn check(&mut self) {
        let i = self.intent();
        let name = self.name();
        let mut placed = BTreeSet::new();
        for (node, slots) in i.placements.get(&name).into_iter().flatten() {
            for slot in slots.iter() {
                assert!(placed.insert(slot), "slot {slot} is placed twice");
                let left = i.leaving.get(&name).and_then(|l| l.get(node));
                assert!(
                    !left.is_some_and(|l| l.contains(slot)),
                    "slot {slot} leaves where it is placed"
                );
            }
        }
        let surge = self.service().rollout.map(|r| r.surge).unwrap_or_default();
        assert!(surge.iter().all(|s| placed.contains(&s)));
        let main = placed.len() as u32 - surge.len();
        let replicas = self.service().spec.replicas;
        assert!(main == replicas || (main < replicas && self.service().problem.is_some()));
        let slots: BTreeSet<u32> = self
            .tasks
            .iter()
            .filter(|(_, t)| t.state == Life::Ready)
            .map(|((_, slot), _)| *slot)
            .collect();
        let ready = slots.len() as u32;
        assert!(
            ready >= self.least,
            "at {} ms {ready} slots are ready, {} were promised: {:?}\n{:?}",
            self.now,
            self.least,
            self.service(),
            self.tasks
        );
        self.fewest = self.fewest.min(ready);
    }
}
