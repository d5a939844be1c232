//! What a host makes of the intent: a manager under some id, a worker, or nothing any more; and what a leader's daemon does
//! besides, so that the members follow the intent.

use std::{sync::Arc, time::Duration};

use cluster::{
    manager::{Input, Manager},
    raft::{ConfChange, ConfStep},
    rollout::Rollouts,
    state::Command,
};
use model::{
    Intent, NodeId,
    intent::{IntentDelta, Role},
};

use crate::{
    client::{Job, Purpose, of_host},
    event::{Ask, Packet},
    host::KEY,
    oracle::{Check, broken},
    world::World,
};

/// Between two looks of a leader at what is to be done, µs.
const DUTY: u64 = 100_000;

impl World {
    /// An agent asks a manager for what is new.
    pub(crate) fn pull(&mut self, host: usize) {
        let managers: Vec<usize> = self.managers().filter(|m| *m != host).collect();
        if let Some(&to) = self.rng.pick(&managers) {
            let have = self.hosts[host].view.revision;
            self.packet(host, to, Packet::Pull(have));
        }
    }

    /// A manager tells what is new.
    pub(crate) fn on_pull(&mut self, from: usize, host: usize, have: u64) {
        let h = &self.hosts[host];
        let Some(m) = &h.manager else { return };
        let intent = m.read().intent();
        if intent.revision <= have {
            return;
        }
        let empty = Intent::default();
        let old = h.recent.iter().find(|i| i.revision == have).map_or(&empty, |i| i);
        let delta = Box::new(old.delta_to(&intent));
        self.packet(host, from, Packet::View(delta));
    }

    /// An increment has come.
    pub(crate) fn on_view(&mut self, host: usize, delta: IntentDelta) -> Check {
        if self.hosts[host].removed || delta.to <= self.hosts[host].view.revision {
            return Ok(());
        }
        let mut view = Intent::clone(&self.hosts[host].view);
        if !view.apply(delta) {
            return Ok(());
        }
        match self.oracle.intent(view.revision) {
            Some(i) if **i == view => {}
            _ => {
                return broken(
                    2,
                    format!(
                        "increments lead host {host} elsewhere than the log at {}",
                        view.revision
                    ),
                );
            }
        }
        self.hosts[host].view = Arc::new(view);
        self.view_changed(host);
        self.role(host)
    }

    /// What the intent says of this host: a manager under an id, a worker, or removed.
    pub(crate) fn role(&mut self, host: usize) -> Check {
        let h = &mut self.hosts[host];
        let Some(me) = h.node else { return Ok(()) };
        let view = Arc::clone(&h.view);
        let Some(node) = view.nodes.get(&me) else {
            if view.revision >= h.joined_at {
                h.stop();
                h.removed = true;
                h.disk.wipe();
                let gone = std::mem::take(&mut h.kept);
                for e in gone.endpoints.values() {
                    self.addresses.retain(|at, _| *at != e.place());
                }
            }
            return Ok(());
        };
        let id = h.manager.as_ref().map_or(0, Manager::id);
        let Some(raft) = node.raft else {
            if id != 0 {
                // Demoted: the log goes, and with it the secrets.
                h.manager = None;
                h.disk.wipe();
            }
            return Ok(());
        };
        if raft <= id {
            return Ok(());
        }
        let unused = match h.tainted {
            Some(used) => raft > used,
            None => !h.amnesia && raft > h.used,
        };
        if unused {
            h.manager = None;
            h.disk.wipe();
            (h.used, h.amnesia, h.tainted) = (raft, false, None);
            let (entropy, options) = (self.entropy(), self.options());
            let (now, disk) = (self.local(host), self.hosts[host].disk.clone());
            let h = &mut self.hosts[host];
            h.inbox.clear();
            (h.seen, h.checked, h.changing) = ((0, 0, 0), 0, false);
            h.recent.clear();
            let made = Manager::join(now, disk, &KEY, entropy, options, raft);
            return self.opened(host, made);
        }
        self.lost_log(host, me);
        Ok(())
    }

    /// A manager without its log asks for another id in Raft: one that was used must never vote again.
    pub(crate) fn lost_log(&mut self, host: usize, me: NodeId) {
        let h = &mut self.hosts[host];
        let idle = self.clients[of_host(host)].is_idle();
        match h.tainted {
            None if idle => {
                h.asked_with = h.used;
                let job = Job {
                    ask: Ask::Raft(me),
                    purpose: Purpose::WhoAmI,
                    twice: false,
                };
                self.ask(of_host(host), job);
            }
            Some(old) if idle && !h.renewing && old > 0 => {
                h.renewing = true;
                self.order(of_host(host), Command::RenewRaft { node: me, old }, Purpose::Renew);
            }
            _ => {}
        }
    }

    /// What a leader's daemon does besides: the members follow the intent.
    pub(crate) fn duties(&mut self, host: usize) -> Check {
        let now = self.now;
        let h = &mut self.hosts[host];
        if now < h.duty_at {
            return Ok(());
        }
        h.duty_at = now + DUTY;
        let Some(m) = h.manager.as_ref() else { return Ok(()) };
        let trip = Duration::from_micros(self.net.weather.near_us + self.net.weather.far_us);
        let conf = m.peer().conf().clone();
        let id = m.id();
        let others: Vec<u64> = conf
            .voters
            .iter()
            .chain(&conf.learners)
            .copied()
            .filter(|o| *o != id)
            .collect();
        let leads = m.peer().is_settled();
        if leads {
            self.roll(host)?;
        } else {
            self.hosts[host].rollouts = Rollouts::default();
        }
        for other in others {
            self.input(host, Input::RoundTrip { id: other, took: trip });
        }
        let h = &self.hosts[host];
        let Some(m) = h.manager.as_ref() else { return Ok(()) };
        if !leads || h.changing || !conf.outgoing.is_empty() {
            return Ok(());
        }
        let intent = m.read().intent();
        let (mut wanted, mut leaving) = (Vec::new(), Vec::new());
        for (node, n) in &intent.nodes {
            let Some(raft) = n.raft else { continue };
            match self.demoting.contains(node) {
                true => leaving.push((*node, raft)),
                false => wanted.push(raft),
            }
        }
        let leaving_ids: Vec<u64> = leaving.iter().map(|l| l.1).collect();
        let all: Vec<u64> = conf.voters.iter().chain(&conf.learners).copied().collect();
        // Ids that nobody has any more go first, as in the daemon: without them there may be a majority for the others.
        let unwanted = || all.iter().copied().filter(|r| !wanted.contains(r));
        let gone = unwanted()
            .find(|r| !leaving_ids.contains(r))
            .or_else(|| unwanted().next());
        let learner = conf.learners.iter().copied().find(|l| wanted.contains(l));
        let missing = wanted.iter().copied().find(|r| !all.contains(r));
        let grow = missing
            .map(|r| (ConfStep::Learner, r))
            .or(learner.map(|l| (ConfStep::Voter, l)));
        // Neither holds up the other: who is to go may be safe to lose only when somebody else has come.
        let gone =
            gone.filter(|r| grow.is_none() || !leaving_ids.contains(r) || self.rng.pick(&[true, false]) == Some(&true));
        let step = if let Some(raft) = gone {
            if raft == id {
                let heir = conf.voters.iter().copied().filter(|v| *v != id && wanted.contains(v));
                let heirs: Vec<u64> = heir.collect();
                if let Some(&to) = self.rng.pick(&heirs) {
                    self.input(host, Input::Transfer { to });
                }
                None
            } else if wanted.is_empty() && !leaving_ids.is_empty() {
                None
            } else {
                Some((ConfStep::Remove, raft))
            }
        } else {
            grow
        };
        if let Some((node, _)) = leaving.into_iter().find(|l| !all.contains(&l.1)) {
            let (role, rpc) = (Role::Worker, None);
            if self.clients[of_host(host)].is_idle() {
                self.order(of_host(host), Command::SetRole { node, role, rpc }, Purpose::Other);
            }
        }
        if let Some(step) = step {
            self.hosts[host].changing = true;
            let change = ConfChange { steps: vec![step] };
            let request = self.new_request();
            let force = false;
            self.input(host, Input::Change { request, change, force });
        }
        Ok(())
    }
}
