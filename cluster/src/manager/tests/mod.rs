//! Managers on a network of the tests: what they agree on, who leads, what survives.

mod distance;
mod snapshots;
mod story;

use std::{cell::RefCell, collections::BTreeMap, io, rc::Rc};

use model::intent::Role;

use super::*;
use crate::{
    raft::{ConfChange, ConfStep, Message},
    state::{Applied, Command, InitCluster, NewNode},
};

const KEY: [u8; 32] = [9; 32];

/// Files in memory.
#[derive(Default, Clone)]
struct Files(Rc<RefCell<Content>>);

#[derive(Default)]
struct Content {
    files: BTreeMap<String, Vec<u8>>,
    full: bool,
    syncs: u64,
}

impl Disk for Files {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().files.keys().cloned().collect())
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(self.0.borrow().files[name].clone())
    }
    fn create(&mut self, name: &str, head: &[u8], len: u64) -> io::Result<()> {
        let mut c = self.0.borrow_mut();
        if c.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut bytes = head.to_vec();
        bytes.resize(len as usize, 0);
        c.files.insert(name.into(), bytes);
        Ok(())
    }
    fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut c = self.0.borrow_mut();
        c.files.get_mut(name).unwrap()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&mut self, _: &str) -> io::Result<()> {
        self.0.borrow_mut().syncs += 1;
        Ok(())
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().files.remove(name);
        Ok(())
    }
}

fn options() -> Options {
    Options {
        limits: Limits {
            entries: 1000,
            retain: 4,
            ..Limits::default()
        },
        log: log::Options {
            segment: 1 << 16,
            ..log::Options::default()
        },
    }
}

fn init() -> Command {
    Command::InitCluster(InitCluster {
        cluster: "0123456789abcdef0123456789abcdef".into(),
        node: node(1, Role::Manager),
        settings: model::ClusterSettings {
            default_addr_pool6: Some("fd12:3456:789a::/48".parse().unwrap()),
            ..model::ClusterSettings::default()
        },
        default_network: model::NetworkSpec::default(),
        avoid: vec![],
        secrets: BTreeMap::new(),
    })
}

fn node(n: u8, role: Role) -> NewNode {
    NewNode {
        hostname: format!("host{n}"),
        role,
        key: vec![n; 32],
        rpc: (role == Role::Manager).then(|| format!("198.18.0.{n}:2377")),
    }
}

/// Managers, and a network that keeps order and takes `delay` one way.
struct Net {
    now: Duration,
    delay: Duration,
    managers: BTreeMap<u64, Manager<Files>>,
    disks: BTreeMap<u64, Files>,
    wire: Vec<(Duration, Message)>,
    out: Vec<Output>,
    /// Nothing reaches these, nor comes from them.
    cut: Vec<u64>,
    elections: u64,
}

impl Net {
    fn new() -> Net {
        let mut net = Net {
            now: Duration::from_secs(5),
            delay: Duration::from_micros(100),
            managers: BTreeMap::new(),
            disks: BTreeMap::new(),
            wire: vec![],
            out: vec![],
            cut: vec![],
            elections: 0,
        };
        let disk = Files::default();
        let m = Manager::create(net.now, disk.clone(), &KEY, [1; 32], options()).unwrap();
        net.disks.insert(1, disk);
        net.managers.insert(1, m);
        net.work(1);
        assert_eq!(net.propose(1, 1, init()), Ok(Applied::Node(model::NodeId(1))));
        net
    }

    /// Three managers, the first leads.
    fn three() -> Net {
        let mut net = Net::new();
        for id in 2..=3u8 {
            let request = u128::from(id) * 100;
            net.propose(1, request, Command::AddNode(node(id, Role::Manager)))
                .unwrap();
            net.join(id.into());
            net.change(1, &[(ConfStep::Learner, id.into())]).unwrap();
            net.until("it has caught up", |n| {
                let all = n.managers[&1].status(n.now);
                all.members
                    .iter()
                    .any(|m| m.id == u64::from(id) && m.matched == Some(all.last_index))
            });
            net.change(1, &[(ConfStep::Voter, id.into())]).unwrap();
        }
        assert_eq!(net.managers[&1].status(net.now).conf.voters, [1, 2, 3]);
        net
    }

    fn join(&mut self, id: u64) {
        let disk = Files::default();
        let m = Manager::join(self.now, disk.clone(), &KEY, [id as u8; 32], options(), id).unwrap();
        self.disks.insert(id, disk);
        self.managers.insert(id, m);
    }

    fn reopen(&mut self, id: u64) {
        let disk = self.disks[&id].clone();
        let found = Manager::open(self.now, disk, &KEY, [50 + id as u8; 32], options())
            .unwrap()
            .unwrap();
        assert_eq!(found.manager.id(), id, "the log knows whose it is");
        self.managers.insert(id, found.manager);
    }

    fn work(&mut self, id: u64) {
        let (now, at) = (self.now, self.now + self.delay);
        let m = self.managers.get_mut(&id).unwrap();
        let (wire, out) = (&mut self.wire, &mut self.out);
        m.work(now, &mut |o| match o {
            Output::Send(m) => wire.push((at, m)),
            o => out.push(o),
        })
        .unwrap();
    }

    /// Goes on to the next moment at which something happens.
    fn step(&mut self) {
        let next = self.managers.values().map(Manager::next).min().unwrap();
        self.now = self.wire.iter().map(|w| w.0).chain([next]).min().unwrap().max(self.now);
        let mut touched = Vec::new();
        for (at, message) in std::mem::take(&mut self.wire) {
            if at > self.now {
                self.wire.push((at, message));
                continue;
            }
            let (from, to) = (message.from, message.to);
            if message.kind == raft::Kind::Vote {
                self.elections += 1;
            }
            if self.cut.contains(&from) || self.cut.contains(&to) {
                continue;
            }
            if let Some(m) = self.managers.get_mut(&to) {
                let message = Box::new(Message::decode(&message.encode().unwrap()).unwrap());
                m.handle(self.now, Input::Message { from, message }).unwrap();
                touched.push(to);
            }
        }
        for (id, m) in &mut self.managers {
            if m.next() <= self.now {
                m.handle(self.now, Input::Tick).unwrap();
                touched.push(*id);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for id in touched {
            self.work(id);
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Net) -> bool) {
        let end = self.now + Duration::from_secs(60);
        while !done(self) {
            assert!(self.now < end, "not in a minute: {what}");
            self.step();
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn input(&mut self, id: u64, input: Input) {
        let now = self.now;
        self.managers.get_mut(&id).unwrap().handle(now, input).unwrap();
        self.work(id);
    }

    fn ask(&mut self, id: u64, request: u128, command: Command) {
        let command = Box::new(command);
        self.input(id, Input::Propose { request, command });
    }

    fn answer(&mut self, wanted: u128) -> Option<Result<Applied, Unanswered>> {
        let at = self
            .out
            .iter()
            .position(|o| matches!(o, Output::Answer { request, .. } if *request == wanted))?;
        match self.out.remove(at) {
            Output::Answer { answer, .. } => Some(answer.map(|o| o.unwrap().1)),
            _ => None,
        }
    }

    fn propose(&mut self, id: u64, request: u128, command: Command) -> Result<Applied, Unanswered> {
        self.ask(id, request, command);
        let mut answer = None;
        self.until("an answer", |n| {
            answer = n.answer(request);
            answer.is_some()
        });
        answer.unwrap()
    }

    fn change(&mut self, id: u64, steps: &[(ConfStep, u64)]) -> Result<Conf, Unanswered> {
        let change = ConfChange { steps: steps.to_vec() };
        self.input(
            id,
            Input::Change {
                request: 7,
                change,
                force: false,
            },
        );
        let mut answer = None;
        self.until("the members change", |n| {
            let at = n.out.iter().position(|o| matches!(o, Output::Changed { .. }));
            answer = at.map(|at| n.out.remove(at));
            answer.is_some()
        });
        match answer {
            Some(Output::Changed { answer, .. }) => answer,
            _ => unreachable!(),
        }
    }

    fn read(&mut self, id: u64) -> Result<u64, Unanswered> {
        self.input(id, Input::Read { id: 5 });
        let mut answer = None;
        self.until("a read", |n| {
            let at = n.out.iter().position(|o| matches!(o, Output::Read { .. }));
            answer = at.map(|at| n.out.remove(at));
            answer.is_some()
        });
        match answer {
            Some(Output::Read { answer, .. }) => answer,
            _ => unreachable!(),
        }
    }

    fn leader(&self) -> Option<u64> {
        let living = self.managers.iter().filter(|(id, _)| !self.cut.contains(id));
        let leaders = living.filter(|(_, m)| m.peer().is_leader());
        leaders.max_by_key(|(_, m)| m.peer().term()).map(|(id, _)| *id)
    }
}

fn worker(n: u8) -> Command {
    Command::AddNode(node(n, Role::Worker))
}
