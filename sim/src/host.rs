//! A host: a manager's thread around the core, power, disk, and the duties of a leader's daemon.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use cluster::rollout::Rollouts;
use cluster::{
    log::{self, LogError},
    manager::{Input, Limits, Manager, ManagerError, Options, Output},
    raft::Kind,
};
use model::{Intent, NodeId};

use crate::{
    agent::{Agent, Kept},
    client::of_host,
    disk::{Keep, SimDisk},
    event::{Ask, Event, Told},
    oracle::{Check, broken, digest},
    world::World,
};

pub(crate) const KEY: [u8; 32] = [7; 32];
/// Intents that a manager remembers, for increments.
const RECENT: usize = 8;
/// Inputs that wait for a thread that stands still.
const MAX_INBOX: usize = 4096;

/// See the module.
#[derive(Default)]
pub(crate) struct Host {
    /// Id, once it has joined.
    pub(crate) node: Option<NodeId>,
    /// Place in the log at which it is known to be a member.
    pub(crate) joined_at: u64,
    /// It has power.
    pub(crate) up: bool,
    /// It has learned that it was removed.
    pub(crate) removed: bool,
    /// How often it was started.
    pub(crate) boot: u32,
    pub(crate) disk: SimDisk,
    pub(crate) manager: Option<Manager<SimDisk>>,
    pub(crate) run_at: Option<u64>,
    pub(crate) busy_until: u64,
    /// The daemon stands still until then.
    pub(crate) stopped_until: u64,
    /// Its clock is so much before the simulation's, µs.
    pub(crate) offset: u64,
    pub(crate) inbox: Vec<Input>,
    pub(crate) proposals: BTreeMap<u128, Vec<usize>>,
    pub(crate) reads: BTreeMap<u64, (usize, u128, Ask)>,
    pub(crate) next_read: u64,
    pub(crate) checked: u64,
    pub(crate) seen: (u64, u64, u64),
    /// Highest id in Raft that it has begun a log for; on its disk before the log is.
    pub(crate) used: u64,
    /// It lost its disk, and does not know which ids it has used.
    pub(crate) amnesia: bool,
    /// The highest id that it may have used as of when it asked, after it lost its log.
    pub(crate) tainted: Option<u64>,
    /// The highest id that it knew to be used when it asked: an answer from before it began another log is none.
    pub(crate) asked_with: u64,
    pub(crate) renewing: bool,
    pub(crate) changing: bool,
    pub(crate) duty_at: u64,
    /// What it knows of the intent, on its disk.
    pub(crate) view: Arc<Intent>,
    pub(crate) recent: VecDeque<Arc<Intent>>,
    pub(crate) agent: Option<Agent>,
    pub(crate) kept: Kept,
    pub(crate) rounds: u32,
    /// As a leader: what it remembers of rollouts.
    pub(crate) rollouts: Rollouts,
    /// What its disk keeps when its next write is torn.
    pub(crate) keep: Option<Keep>,
}

impl Host {
    /// Whether the log of an id in Raft is on its disk.
    pub(crate) fn has_log(&self, raft: u64) -> bool {
        !self.removed && !self.amnesia && self.used == raft
    }

    pub(crate) fn stop(&mut self) {
        self.up = false;
        self.boot += 1;
        self.manager = None;
        self.agent = None;
        self.run_at = None;
        self.inbox.clear();
        self.proposals.clear();
        self.reads.clear();
        (self.busy_until, self.stopped_until) = (0, 0);
        (self.changing, self.seen, self.checked) = (false, (0, 0, 0), 0);
        self.recent.clear();
        self.rollouts = Rollouts::default();
    }
}

impl World {
    pub(crate) fn options(&self) -> Options {
        Options {
            limits: Limits {
                entries: self.script.shape.entries,
                octets: 1 << 20,
                retain: self.script.shape.retain,
            },
            log: log::Options {
                segment: 4096,
                ..log::Options::default()
            },
        }
    }

    pub(crate) fn entropy(&mut self) -> [u8; 32] {
        let mut out = [0; 32];
        for part in out.chunks_exact_mut(8) {
            part.copy_from_slice(&self.rng.word().to_le_bytes());
        }
        out
    }

    /// The first host begins the cluster.
    pub(crate) fn found(&mut self) -> Check {
        let (entropy, options) = (self.entropy(), self.options());
        let now = self.local(0);
        let disk = self.hosts[0].disk.clone();
        let made = Manager::create(now, disk, &KEY, entropy, options);
        self.hosts[0].used = 1;
        self.opened(0, made)
    }

    pub(crate) fn opened(&mut self, host: usize, made: Result<Manager<SimDisk>, ManagerError>) -> Check {
        let manager = match made {
            Ok(m) => m,
            Err(ManagerError::Log(LogError::Full { .. } | LogError::Io { .. })) => {
                self.crash(host, Keep::All, 300_000);
                return Ok(());
            }
            Err(e) => return broken(3, format!("host {host} cannot open what it has acknowledged: {e}")),
        };
        let id = manager.id();
        self.oracle.starts(id, manager.peer().term())?;
        if self.told {
            let s = manager.peer().status();
            eprintln!("       host {host} begins as {id}: {s:?} {:?}", manager.peer().conf());
        }
        self.homes.insert(id, host);
        self.hosts[host].checked = manager.read().applied();
        if let Some(d) = self.oracle.digest_at(manager.read().applied())
            && d != digest(&manager.read())
        {
            return broken(
                2,
                format!("manager {id} starts with a state that the log does not lead to"),
            );
        }
        self.hosts[host].manager = Some(manager);
        self.wake(host, self.now);
        Ok(())
    }

    /// A host's power goes, and comes back.
    pub(crate) fn crash(&mut self, host: usize, keep: Keep, back: u64) {
        let h = &mut self.hosts[host];
        h.stop();
        h.disk.crash(keep);
        let boot = h.boot;
        self.plan(back, Event::Boot { host, boot });
    }

    /// A host has power again.
    pub(crate) fn boot(&mut self, host: usize) -> Check {
        self.hosts[host].up = true;
        if self.hosts[host].removed {
            return Ok(());
        }
        let (entropy, options) = (self.entropy(), self.options());
        let (now, disk) = (self.local(host), self.hosts[host].disk.clone());
        match Manager::open(now, disk, &KEY, entropy, options) {
            Ok(None) => {}
            Ok(Some(found)) => self.opened(host, Ok(found.manager))?,
            Err(e) => self.opened(host, Err(e))?,
        }
        if self.hosts[host].up && self.hosts[host].node.is_some() {
            self.start_agent(host);
            self.view_changed(host);
        }
        Ok(())
    }

    /// Another disk is in the machine: all is forgotten but who it is.
    pub(crate) fn wipe(&mut self, host: usize, back: u64) {
        self.crash(host, Keep::Nothing, back);
        let h = &mut self.hosts[host];
        h.disk.wipe();
        let lost = std::mem::take(&mut h.kept);
        h.kept.forgetful = true;
        h.view = Arc::default();
        (h.used, h.amnesia, h.tainted, h.renewing) = (0, true, None, false);
        for e in lost.endpoints.values() {
            self.addresses.retain(|at, _| *at != e.place());
        }
        self.clients[of_host(host)] = crate::client::Client::default();
    }

    /// Makes a host's manager go round at a time, or before.
    pub(crate) fn wake(&mut self, host: usize, at: u64) {
        let h = &mut self.hosts[host];
        let at = at.max(h.busy_until).max(h.stopped_until).max(self.now);
        if h.manager.is_some() && h.run_at.is_none_or(|r| r > at) {
            h.run_at = Some(at);
            let boot = h.boot;
            self.plan(at - self.now, Event::Run { host, boot });
        }
    }

    /// Something for a host's manager.
    pub(crate) fn input(&mut self, host: usize, input: Input) {
        if self.hosts[host].inbox.len() < MAX_INBOX {
            self.hosts[host].inbox.push(input);
        }
        self.wake(host, self.now);
    }

    /// A client's request comes to a host.
    pub(crate) fn on_ask(&mut self, host: usize, client: usize, request: u128, ask: Ask) {
        let h = &mut self.hosts[host];
        if !h.up || h.manager.is_none() {
            let way = self.net.way(&mut self.rng);
            let told = Told::Nobody;
            return self.plan(way, Event::Told { client, request, told });
        }
        let input = match ask {
            Ask::Propose(command) => {
                h.proposals.entry(request).or_default().push(client);
                Input::Propose { request, command }
            }
            read => {
                h.next_read += 1;
                h.reads.insert(h.next_read, (client, request, read));
                Input::Read { id: h.next_read }
            }
        };
        self.input(host, input);
    }

    /// A manager's thread goes round.
    pub(crate) fn run_manager(&mut self, host: usize) -> Check {
        let now = self.now;
        let h = &mut self.hosts[host];
        if h.run_at != Some(now) {
            return Ok(());
        }
        h.run_at = None;
        if now < h.stopped_until.max(h.busy_until) {
            self.wake(host, now);
            return Ok(());
        }
        let local = Duration::from_micros(now + h.offset);
        let inbox = std::mem::take(&mut h.inbox);
        let Some(m) = h.manager.as_mut() else { return Ok(()) };
        let id = m.id();
        for input in inbox {
            let sender = match &input {
                Input::Message { from, message } => Some((*from, message.kind)),
                _ => None,
            };
            let gone = sender.is_some_and(|(from, _)| m.read().raft_is_gone(from));
            match (m.handle(local, input), sender) {
                (Ok(()), _) if gone => {
                    return broken(
                        17,
                        format!("manager {id} listens to manager {sender:?}, which was removed"),
                    );
                }
                (Err(e), Some((from, kind))) if !gone => {
                    return broken(2, format!("manager {id} refuses {kind:?} of manager {from}: {e}"));
                }
                _ => {}
            }
        }
        // It ticks by itself when it is time.
        let _ = m.handle(local, Input::Tick);
        let disk = h.disk.clone();
        disk.clear_spent();
        let mut out: Vec<(u64, Output)> = Vec::new();
        let done = m.work(local, &mut |o| out.push((disk.spent(), o)));
        let spent = disk.spent();
        h.busy_until = now + spent;
        let gives = |o: &Output| matches!(o, Output::Send(m) if m.kind == Kind::VoteReply && !m.reject);
        let voted = out.iter().any(|(_, o)| gives(o));
        for (late, output) in out {
            self.output(host, late, output)?;
        }
        if done.is_err() {
            self.last_words(host)?;
            let keep = self.hosts[host].keep.take().unwrap_or(Keep::All);
            let back = self.rng.range(100_000, 600_000);
            self.crash(host, keep, back);
            return Ok(());
        }
        self.check_manager(host)?;
        if let Some((keep, back)) = self.voter.filter(|_| voted) {
            self.voter = None;
            self.crash(host, keep, back * 1000);
            return Ok(());
        }
        self.duties(host)?;
        let h = &self.hosts[host];
        if let Some(m) = &h.manager {
            let next = m.next().as_micros() as u64;
            self.wake(host, next.saturating_sub(h.offset).max(now + spent));
        }
        Ok(())
    }

    pub(crate) fn output(&mut self, host: usize, late: u64, output: Output) -> Check {
        match output {
            Output::Send(m) => {
                self.oracle.says(&m)?;
                let Some(&to) = self.homes.get(&m.to) else {
                    return Ok(());
                };
                let fate = self.net.fate(&mut self.rng, host, to);
                let (id, boot) = (m.to, self.hosts[host].boot);
                let first = fate[0];
                if m.kind == Kind::Snapshot {
                    let (arrived, after) = (first.is_some(), late + first.unwrap_or(100_000) + 1_000);
                    self.plan(
                        after,
                        Event::Sent {
                            host,
                            boot,
                            id,
                            arrived,
                        },
                    );
                } else if first.is_none() && self.rng.chance(300) {
                    self.input(host, Input::Unreachable { id });
                }
                for way in fate.into_iter().flatten() {
                    let message = Box::new(m.clone());
                    self.plan(late + way, Event::Raft { to, message });
                }
            }
            Output::Answer { request, answer } => {
                let told = match answer {
                    Ok(outcome) => Told::Done(outcome),
                    Err(why) => Told::Not(why),
                };
                for client in self.hosts[host].proposals.remove(&request).unwrap_or_default() {
                    self.tell(late, client, request, told.clone());
                }
            }
            Output::Read { id, answer } => {
                let Some((client, request, ask)) = self.hosts[host].reads.remove(&id) else {
                    return broken(0, "a read is answered that was not asked");
                };
                let told = match answer {
                    Ok(index) => Told::Read(index, self.look(host, &ask)),
                    Err(why) => Told::Not(why),
                };
                self.tell(late, client, request, told);
            }
            Output::Changed { .. } => self.hosts[host].changing = false,
        }
        Ok(())
    }

    fn tell(&mut self, late: u64, client: usize, request: u128, told: Told) {
        let way = self.net.way(&mut self.rng);
        if !self.rng.chance(self.net.weather.loss) {
            self.plan(late + way, Event::Told { client, request, told });
        }
    }

    fn look(&self, host: usize, ask: &Ask) -> u64 {
        let Some(m) = &self.hosts[host].manager else { return 0 };
        let state = m.read();
        match ask {
            Ask::Read(register) => {
                let value = state.secret(&format!("r{register}"));
                value.and_then(|v| v.try_into().ok()).map_or(0, u64::from_le_bytes)
            }
            Ask::Raft(node) => {
                let raft = state.intent().nodes.get(node).and_then(|n| n.raft).unwrap_or(0);
                // The highest that it may have used.
                match state.raft_is_unused(raft) {
                    true => raft - 1,
                    false => raft,
                }
            }
            Ask::Propose(_) => 0,
        }
    }

    /// What a manager has applied was agreed on, also if it dies of a later write: its disk may begin with a snapshot of it.
    fn last_words(&mut self, host: usize) -> Check {
        let h = &self.hosts[host];
        let Some(m) = h.manager.as_ref() else { return Ok(()) };
        for index in h.checked + 1..=m.read().applied() {
            if let Some(e) = m.peer().entry(index) {
                self.oracle.commits(m.id(), &e)?;
            }
        }
        Ok(())
    }

    /// What must be true of a manager by itself and beside the others.
    fn check_manager(&mut self, host: usize) -> Check {
        let h = &mut self.hosts[host];
        let Some(m) = h.manager.as_ref() else { return Ok(()) };
        if m.is_stalled() {
            // What Raft believes is not written yet, and nobody was told.
            return Ok(());
        }
        let (peer, id) = (m.peer(), m.id());
        let applied = m.read().applied();
        let now = (peer.term(), peer.commit(), applied);
        if now.0 < h.seen.0 || now.1 < h.seen.1 || now.2 < h.seen.2 {
            return broken(6, format!("manager {id} went back from {:?} to {now:?}", h.seen));
        }
        let moved = now != h.seen;
        h.seen = now;
        if peer.is_leader() {
            self.oracle.leads(now.0, id)?;
        }
        if !moved {
            return Ok(());
        }
        for index in h.checked + 1..=now.1 {
            match peer.entry(index) {
                Some(e) => self.oracle.commits(id, &e)?,
                None if index <= self.oracle.committed() => {}
                None => {
                    return broken(
                        0,
                        format!("manager {id} has forgotten entry {index} before anybody saw it"),
                    );
                }
            }
        }
        h.checked = now.1;
        if applied > now.1 {
            return broken(
                3,
                format!("manager {id} has applied entry {applied}, {} is committed", now.1),
            );
        }
        let (proposals, reads) = m.waiting();
        if proposals > 2_000 || reads > 2_000 {
            return broken(
                18,
                format!("{proposals} proposals and {reads} reads wait at manager {id}"),
            );
        }
        self.looked += 1;
        if self.looked.is_multiple_of(16) {
            self.oracle.applied(id, &m.read())?;
        }
        let intent = m.read().intent();
        let newest = h.recent.back().map_or(0, |i| i.revision);
        if intent.revision > newest {
            h.recent.push_back(Arc::clone(&intent));
            if h.recent.len() > RECENT {
                h.recent.pop_front();
            }
        }
        if intent.revision > h.view.revision {
            h.view = intent;
            self.view_changed(host);
            self.role(host)?;
        }
        Ok(())
    }

    /// Hosts that run a manager.
    pub(crate) fn managers(&self) -> impl Iterator<Item = usize> + '_ {
        let hosts = self.hosts.iter().enumerate();
        hosts.filter(|(_, h)| h.up && h.manager.is_some()).map(|(i, _)| i)
    }
}
