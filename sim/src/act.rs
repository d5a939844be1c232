//! The acts of a script, carried out.

use cluster::{manager::Input, state::Command};
use model::{NodeId, intent::Role};

use crate::{
    client::{ADMIN, Job, Purpose},
    disk::Keep,
    event::Event,
    host::Host,
    oracle::Check,
    script::Act,
    world::World,
};

impl World {
    pub(crate) fn act(&mut self, act: &Act) -> Check {
        let ok = |host: u8| usize::from(host) < self.hosts.len();
        let count = self.hosts.len();
        match act.clone() {
            Act::Want { client, want, twice } => {
                if let Some(ask) = self.asked(&want) {
                    let purpose = Purpose::Script;
                    self.ask(usize::from(client), Job { ask, purpose, twice });
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

    pub(crate) fn demote(&mut self, host: usize) {
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
    pub(crate) fn has_log(&self, raft: u64) -> bool {
        let home = self.homes.get(&raft).map(|i| &self.hosts[*i]);
        home.is_some_and(|h| h.has_log(raft))
    }

    pub(crate) fn remove_demoted(&mut self) {
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
    pub(crate) fn may_wipe(&self, host: usize) -> bool {
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
}
