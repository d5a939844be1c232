//! How a change of what tasks are made from is carried out, and when a task that moved may end at its earlier place: the
//! leader's decisions, pure. [`Rollouts::step`] takes the time and what is seen of a service's tasks, and says which
//! commands go into the log and when to look again.
//!
//! - **stop-first**: so many slots at a time get what is new; when all of them are ready and were watched, and the delay
//!   is over, the next ones do.
//! - **start-first**: as many slots more run what is new first; when they are ready and were watched, as many others are
//!   replaced as there are more ready tasks than asked for.
//!
//! What is decided lies in the log; what is seen lies in this memory alone. A new leader begins with nothing and goes on
//! from what is: it watches once more what is new already.

mod plan;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use model::{
    Name, NodeId,
    api::TaskState,
    intent::{Service, SlotSet},
};

use crate::state::Command;

/// Beyond the times that a service gives for draining, stopping and starting, a new task is given so long until it is
/// ready, or has failed.
pub const READY_WITHIN: Duration = Duration::from_secs(60);

/// A place of a slot: a node that has its task, or should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which slot.
    pub slot: u32,
    /// Where.
    pub node: NodeId,
    /// An earlier place, where it goes on until it is ready at the other one.
    pub leaving: bool,
    /// Whether the node and its daemon are there: nothing happens on others.
    pub alive: bool,
    /// What the node says of the task; none: nothing yet.
    pub seen: Option<Seen>,
}

/// What is seen of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// As reported.
    pub state: TaskState,
    /// Of what it is made from.
    pub generation: u64,
    /// Its endpoint takes new flows.
    pub ready: bool,
    /// Restarts so far.
    pub restarts: u32,
    /// What its node says of it, for people.
    pub message: String,
}

/// What to do now, and when to look again at the latest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// For the log, in this order. When one is refused or lost, [`Rollouts::forget`] the service.
    pub commands: Vec<Command>,
    /// If nothing happens before that.
    pub next: Option<Duration>,
}

/// The leader's memory of all rollouts.
#[derive(Debug, Default)]
pub struct Rollouts {
    services: BTreeMap<Name, Memory>,
}

/// Of one rollout.
#[derive(Debug, Default)]
struct Memory {
    /// Which one: revision of the last change by a person, generation, whether it leads back.
    of: (u64, u64, bool),
    /// Slots that are to run the new one.
    watched: BTreeMap<u32, Watch>,
    /// Those that have failed, and how.
    failed: BTreeMap<u32, String>,
    /// Since when slots are seen at an earlier place.
    moving: BTreeMap<u32, Duration>,
    /// When the last batch was done, once there was one.
    idle_since: Option<Duration>,
    began: bool,
    /// More slots were asked for, and whether there was no room for them.
    asked: bool,
    no_room: bool,
}

/// A slot that is to run the new one.
#[derive(Debug)]
struct Watch {
    node: NodeId,
    /// Since it should be ready and is not.
    since: Duration,
    ready_since: Option<Duration>,
    /// Restarts when the new one was seen started first.
    restarts: Option<u32>,
    /// It was ready for long enough: what happens now is no failure of the change.
    proven: bool,
}

impl Rollouts {
    /// Forgets what is remembered of a service: it goes on from what is.
    pub fn forget(&mut self, name: &Name) {
        self.services.remove(name);
    }

    /// Forgets services that are no more.
    pub fn retain(&mut self, names: &BTreeMap<Name, Service>) {
        self.services.retain(|n, _| names.contains_key(n));
    }

    /// Whether there is anything to decide for a service.
    pub fn concerns(service: &Service, leaving: bool) -> bool {
        leaving || service.rollout.as_ref().is_some_and(|r| r.is_moving())
    }

    /// What to do for a service. `now`: any monotonic clock; `places`: every place of its slots, also those beyond the
    /// ones asked for.
    pub fn step(&mut self, now: Duration, name: &Name, service: &Service, places: &[Place]) -> Step {
        let mut step = Step {
            commands: released(name, service, places),
            next: None,
        };
        let Some(rollout) = service.rollout.as_ref().filter(|r| r.is_moving()) else {
            self.services.remove(name);
            return step;
        };
        let memory = self.services.entry(name.clone()).or_default();
        let of = (service.changed, service.generation, rollout.is_rollback());
        if memory.of != of {
            *memory = Memory {
                of,
                ..Memory::default()
            };
        }
        let slots = memory.look(now, name, service, rollout, places);
        plan::plan(memory, now, name, service, rollout, &slots, &mut step);
        step
    }
}

/// A slot as it is seen now.
#[derive(Debug)]
struct Slot {
    slot: u32,
    /// Beyond those asked for.
    surge: bool,
    /// It still runs what was.
    pending: bool,
    /// It goes on at an earlier place, and not for too long.
    leaving: bool,
    alive: bool,
    /// Some place of it takes new flows.
    ready: bool,
    /// It runs the new one, is ready, and was watched.
    settled: bool,
    /// It was to run the new one and failed.
    failed: bool,
}

impl Memory {
    fn look(
        &mut self,
        now: Duration,
        name: &Name,
        service: &Service,
        rollout: &model::intent::Rollout,
        places: &[Place],
    ) -> Vec<Slot> {
        let mut earlier: BTreeMap<u32, bool> = BTreeMap::new();
        let placed: BTreeSet<u32> = places.iter().filter(|p| !p.leaving).map(|p| p.slot).collect();
        for p in places.iter().filter(|p| p.leaving && placed.contains(&p.slot)) {
            let ready = p.alive && p.seen.as_ref().is_some_and(|s| s.ready);
            *earlier.entry(p.slot).or_default() |= ready;
        }
        self.moving.retain(|s, _| earlier.contains_key(s));
        for slot in earlier.keys() {
            self.moving.entry(*slot).or_insert(now);
        }
        let rules = plan::rules(service, rollout);
        let monitor = Duration::from_millis(rules.monitor_ms);
        let mut there = BTreeSet::new();
        let mut out = Vec::new();
        // A slot that found no other node is where it goes on.
        for p in places.iter().filter(|p| !p.leaving || !placed.contains(&p.slot)) {
            if !there.insert(p.slot) {
                continue;
            }
            let pending = rollout.is_pending(p.slot);
            let (_, generation) = service.template(p.slot);
            let current = p.seen.as_ref().filter(|s| s.generation == generation);
            let here = current.is_some_and(|s| s.ready && s.state == TaskState::Running) && p.alive;
            let mut slot = Slot {
                slot: p.slot,
                surge: rollout.surge.contains(p.slot),
                pending,
                // What cannot get ready at its new place may be what is to be replaced.
                leaving: self
                    .moving
                    .get(&p.slot)
                    .is_some_and(|at| now.saturating_sub(*at) < patience(service)),
                alive: p.alive,
                // While it is being replaced, what runs may still take flows.
                ready: here || earlier.get(&p.slot).copied().unwrap_or(false),
                settled: false,
                failed: false,
            };
            if !pending {
                let done = current.is_some_and(|s| s.state == TaskState::Complete);
                let watch = self.watch(now, p, current, here);
                let long = watch.ready_since.is_some_and(|at| now.saturating_sub(at) >= monitor);
                watch.proven |= long || done;
                slot.settled = long || done;
                let late = now.saturating_sub(watch.since) >= patience(service);
                let why = failure(watch, current).or_else(|| {
                    (late && watch.ready_since.is_none() && !done && p.alive).then(|| {
                        let told = p.seen.as_ref().map(|s| s.message.as_str()).filter(|m| !m.is_empty());
                        format!(
                            "not ready: {}",
                            told.unwrap_or("nothing listens on its published ports yet")
                        )
                    })
                });
                if let Some(why) = why {
                    let told = format!("{name}.{} on {}: {why}", p.slot, p.node);
                    self.failed.entry(p.slot).or_insert(told);
                }
                slot.failed = self.failed.contains_key(&p.slot);
            }
            out.push(slot);
        }
        self.watched.retain(|s, _| there.contains(s) && !rollout.is_pending(*s));
        out
    }

    /// What is remembered of a slot that is to run the new one.
    fn watch(&mut self, now: Duration, p: &Place, current: Option<&Seen>, ready: bool) -> &mut Watch {
        let fresh = || Watch {
            node: p.node,
            since: now,
            ready_since: None,
            restarts: None,
            proven: false,
        };
        let watch = self.watched.entry(p.slot).or_insert_with(fresh);
        // At another place it begins anew, and on a dead node its time does not run.
        if watch.node != p.node || !p.alive {
            *watch = fresh();
        }
        // The first start of the new one may be counted like any other.
        if let Some(s) = current.filter(|s| s.state >= TaskState::Starting) {
            watch.restarts.get_or_insert(s.restarts);
        }
        if ready {
            watch.ready_since.get_or_insert(now);
        } else if watch.ready_since.take().is_some() {
            watch.since = now;
        }
        watch
    }
}

/// How a task of the new generation has failed, if it has.
fn failure(watch: &Watch, current: Option<&Seen>) -> Option<String> {
    let seen = current.filter(|_| !watch.proven)?;
    let again = watch.restarts.is_some_and(|before| seen.restarts > before);
    let told = |otherwise: &str| match seen.message.is_empty() {
        true => otherwise.to_owned(),
        false => seen.message.clone(),
    };
    match seen.state {
        state if state.is_failure() => Some(told("it failed")),
        _ if again => Some(told("it ended and was started again")),
        _ => None,
    }
}

/// How long a new task has until it is ready.
fn patience(service: &Service) -> Duration {
    let spec = &service.spec;
    let start = spec.health.as_ref().map_or(0, |h| h.start_period_ms);
    let given = [spec.drain_timeout_ms, spec.stop_grace_ms, start];
    READY_WITHIN + given.into_iter().map(Duration::from_millis).sum::<Duration>()
}

/// Slots that are ready where they are placed end at their earlier places.
fn released(name: &Name, service: &Service, places: &[Place]) -> Vec<Command> {
    let ready = |p: &&Place| {
        let current = |s: &Seen| s.generation == service.template(p.slot).1;
        let seen = p.seen.as_ref().filter(|_| p.alive && !p.leaving);
        seen.is_some_and(|s| s.ready && s.state == TaskState::Running && current(s))
    };
    let moves: BTreeSet<u32> = places.iter().filter(|p| p.leaving).map(|p| p.slot).collect();
    let candidates = places.iter().filter(|p| moves.contains(&p.slot));
    let ready: BTreeSet<u32> = candidates.filter(ready).map(|p| p.slot).collect();
    let mut out: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
    for p in places.iter().filter(|p| p.leaving && ready.contains(&p.slot)) {
        out.entry(p.node).or_default().push(p.slot);
    }
    let release = |(node, slots): (NodeId, Vec<u32>)| Command::Release {
        service: name.clone(),
        node,
        slots: SlotSet::from_iter(slots),
    };
    out.into_iter().map(release).collect()
}
