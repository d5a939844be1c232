//! Carries rollouts and moves on: what is seen of the tasks goes into [`cluster::rollout`], what it decides into the log.
//! The leader alone does that.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, Weak},
    time::{Duration, Instant},
};

use cluster::rollout::{Place, Rollouts, Seen};
use model::{
    ApiError, EndpointId, EndpointState, Intent, Name, NodeId, RowBody,
    api::{NodeHealth, TaskStatus},
    intent::Service,
};
use tokio::time::sleep_until;

use super::Manager;
use crate::{daemon::Cluster, gossip::Facts, rpc::Leader};

/// Between two rounds: under many changes a round sees all that came by then.
const ROUNDS_APART: Duration = Duration::from_millis(20);
/// After a command that could not be put into the log.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn run(m: Weak<Manager>, c: Weak<Cluster>) {
    let Some((mut intents, mut reports, mut leader)) =
        m.upgrade().map(|m| (m.store.intent(), m.hub.changed(), m.leader()))
    else {
        return;
    };
    let Some(mut facts) = c.upgrade().map(|c| c.facts_changes()) else {
        return;
    };
    let (began, mut rollouts, mut due) = (Instant::now(), Rollouts::default(), None::<Duration>);
    loop {
        let timer = began + due.unwrap_or_default();
        tokio::select! {
            r = intents.changed() => if r.is_err() { return },
            r = reports.changed() => if r.is_err() { return },
            r = facts.changed() => if r.is_err() { return },
            r = leader.changed() => if r.is_err() { return },
            () = sleep_until(timer.into()), if due.is_some() => {}
        }
        let (Some(m), Some(c)) = (m.upgrade(), c.upgrade()) else {
            return;
        };
        due = None;
        if *leader.borrow_and_update() != Leader::Me {
            // Who leads next goes on from what is.
            rollouts = Rollouts::default();
            m.stuck.lock().clear();
            continue;
        }
        let intent = intents.borrow_and_update().clone();
        let (known, now) = (c.facts(), began.elapsed());
        rollouts.retain(&intent.services);
        m.stuck.lock().retain(|name, _| intent.services.contains_key(name));
        for (name, service) in &intent.services {
            if !Rollouts::concerns(service, intent.leaving.contains_key(name)) {
                rollouts.forget(name);
                m.stuck.lock().remove(name);
                continue;
            }
            let places = places(&m, c.me, &intent, &known, name);
            let step = rollouts.step(now, name, service, &places);
            due = [due, step.next].into_iter().flatten().min();
            for command in step.commands {
                tracing::info!(service = %name, ?command, "rolling");
                let outcome = m.propose(command).await;
                m.stuck.note(name, service, outcome.as_ref().err());
                if outcome.is_err() {
                    rollouts.forget(name);
                    due = Some(due.map_or(now + AGAIN, |at| at.min(now + AGAIN)));
                    break;
                }
            }
        }
        drop((m, c));
        tokio::time::sleep(ROUNDS_APART).await;
    }
}

/// Services whose next step the log did not take, and why.
#[derive(Default)]
pub(super) struct Stuck(Mutex<BTreeMap<Name, String>>);

impl Stuck {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, String>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A step was tried.
    fn note(&self, name: &Name, service: &Service, failed: Option<&ApiError>) {
        let Some(e) = failed else {
            self.lock().remove(name);
            return;
        };
        let moving = service.rollout.as_ref().filter(|r| r.is_moving());
        let what = match moving.map(|r| r.is_rollback()) {
            Some(false) => "the update",
            Some(true) => "the rollback",
            None => "a move of its tasks",
        };
        let why = format!("{what} is held up: {}; try: {}", e.message, e.hint);
        tracing::warn!(service = %name, "{why}");
        self.lock().insert(name.clone(), why);
    }
}

impl Manager {
    /// Services whose change, or a move of whose tasks, does not get on, and why.
    pub fn stuck(&self) -> BTreeMap<Name, String> {
        self.stuck.lock().clone()
    }
}

/// Every place of a service's slots, and what is seen there.
fn places(m: &Manager, me: NodeId, intent: &Intent, facts: &Facts, name: &Name) -> Vec<Place> {
    let mut out = Vec::new();
    let mut ready: BTreeMap<NodeId, BTreeMap<u32, bool>> = BTreeMap::new();
    let reports = m.hub.snapshot();
    for (leaving, map) in [(false, &intent.placements), (true, &intent.leaving)] {
        for (node, slots) in map.get(name).into_iter().flatten() {
            let ready = ready.entry(*node).or_insert_with(|| ready_slots(facts, *node, name));
            let health = facts.health.get(node);
            let alive = *node == me || health == Some(&NodeHealth::Ready);
            let told = reports.get(node).map(|r| &r.report.tasks);
            out.extend(slots.iter().map(|slot| {
                let status = told.and_then(|t| t.get(&EndpointId::task(name, slot)));
                let ready = ready.get(&slot).copied().unwrap_or(false);
                Place {
                    slot,
                    node: *node,
                    leaving,
                    alive,
                    seen: status.map(|s| seen(s, ready)),
                }
            }));
        }
    }
    out
}

fn seen(status: &TaskStatus, ready: bool) -> Seen {
    Seen {
        state: status.state,
        generation: status.generation,
        ready,
        restarts: status.restarts,
        message: status.message.chars().take(300).collect(),
    }
}

/// Slots of a service that have endpoints on a node, and whether all of them take new flows.
fn ready_slots(facts: &Facts, node: NodeId, name: &Name) -> BTreeMap<u32, bool> {
    let mut out = BTreeMap::new();
    for row in facts.rows.get(&node).into_iter().flat_map(|rows| rows.values()) {
        if let RowBody::Endpoint(e) = &row.body
            && e.service.as_ref() == Some(name)
            && let Some(slot) = e.slot
        {
            *out.entry(slot).or_insert(true) &= e.state == EndpointState::Ready;
        }
    }
    out
}
