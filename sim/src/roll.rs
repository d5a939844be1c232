//! What a leader's daemon does for rollouts and moves: the core decides, from what the agents' hosts have now; and whether
//! it may.

use std::{collections::BTreeSet, sync::Arc};

use cluster::{
    rollout::{Place, Rollouts, Seen},
    state::Command,
};
use model::{Name, NodeId, api::TaskState};

use crate::{
    client::{Purpose, of_host},
    oracle::{Check, broken},
    world::World,
};

impl World {
    /// One round of a leader.
    pub(crate) fn roll(&mut self, host: usize) -> Check {
        let Some(m) = self.hosts[host].manager.as_ref().filter(|_| self.script.shape.agents) else {
            return Ok(());
        };
        // What was ordered is waited for: the next step is decided from what has become of it.
        if !self.clients[of_host(host)].is_idle() {
            return Ok(());
        }
        let intent = m.read().intent();
        let now = self.local(host);
        let mut rollouts = std::mem::take(&mut self.hosts[host].rollouts);
        let mut orders = Vec::new();
        rollouts.retain(&intent.services);
        for (name, service) in &intent.services {
            if !Rollouts::concerns(service, intent.leaving.contains_key(name)) {
                rollouts.forget(name);
                continue;
            }
            let mut places = Vec::new();
            for (leaving, map) in [(false, &intent.placements), (true, &intent.leaving)] {
                for (node, slots) in map.get(name).into_iter().flatten() {
                    places.extend(slots.iter().map(|slot| self.place(host, name, *node, slot, leaving)));
                }
            }
            let step = rollouts.step(now, name, service, &places);
            for command in step.commands {
                allowed(name, service, &places, &command)?;
                orders.push(command);
            }
        }
        self.hosts[host].rollouts = rollouts;
        for command in orders {
            self.order(of_host(host), command, Purpose::Other);
        }
        Ok(())
    }

    /// What a leader sees of a slot at a place: what is there now, if its host is reached.
    fn place(&self, leader: usize, name: &Name, node: NodeId, slot: u32, leaving: bool) -> Place {
        let at = self.host_of(node).filter(|at| {
            let h = &self.hosts[*at];
            h.up && !h.removed && (*at == leader || (self.net.open(*at, leader) && self.net.open(leader, *at)))
        });
        let endpoint = at.and_then(|at| self.hosts[at].kept.endpoints.get(&(name.clone(), slot)));
        Place {
            slot,
            node,
            leaving,
            alive: at.is_some(),
            seen: endpoint.map(|e| Seen {
                state: TaskState::Running,
                generation: e.generation(),
                ready: true,
                restarts: 0,
                message: String::new(),
            }),
        }
    }
}

/// Whether what the leader decided is right, whatever led it there.
fn allowed(name: &Name, service: &model::intent::Service, places: &[Place], command: &Command) -> Check {
    let runs = |slot: u32| {
        let place = places.iter().find(|p| p.slot == slot && !p.leaving);
        let seen = place.filter(|p| p.alive).and_then(|p| p.seen.as_ref());
        seen.is_some_and(|s| s.ready && s.generation == service.template(slot).1)
    };
    match command {
        Command::Advance { slots, .. } if !slots.is_empty() => {
            let rollout = service.rollout.as_ref();
            let new = places.iter().filter(|p| !p.leaving);
            let mut new = new.filter(|p| rollout.is_some_and(|r| !r.is_pending(p.slot)));
            match new.find(|p| !runs(p.slot)) {
                Some(p) => broken(
                    10,
                    format!(
                        "slots of {name} are replaced while {} of the last ones is not ready",
                        p.slot
                    ),
                ),
                None => Ok(()),
            }
        }
        Command::Release { slots, node, .. } => match slots.iter().find(|s| !runs(*s)) {
            Some(slot) => broken(
                10,
                format!("slot {slot} of {name} ends on {node} and is ready nowhere else"),
            ),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Whether every slot that moved off a living node goes on there.
pub(crate) fn moved(old: &model::Intent, new: &Arc<model::Intent>) -> Check {
    for (name, was) in &old.placements {
        let (Some(is), Some(_)) = (new.placements.get(name), new.services.get(name)) else {
            continue;
        };
        if was == is {
            continue;
        }
        let placed: BTreeSet<u32> = is.values().flat_map(|s| s.iter()).collect();
        for (node, slots) in was {
            if new.nodes.get(node).is_none_or(|n| n.down) {
                continue;
            }
            let lost = slots.iter().find(|s| placed.contains(s) && !new.holds(name, *node, *s));
            if let Some(slot) = lost {
                return broken(
                    10,
                    format!("slot {slot} of {name} moved off {node}, which lives, and does not go on"),
                );
            }
        }
    }
    Ok(())
}
