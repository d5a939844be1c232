//! Commands that replace what a service's tasks are made from, some slots at a time.
//!
//! The log holds ranges alone: which slots still run what. How fast it goes, and what is seen of the tasks, is the
//! leader's ([`crate::rollout`]).

use model::{
    Name, NodeId, ServiceSpec,
    intent::{Pending, Rollout, RolloutState, Service, SlotSet},
};

use super::{Applied, Refusal, RolloutEnd, State, orderly};
use crate::placement::slots::{all, minus};

/// Most kinds of tasks that wait for one rollout: as many changes in the middle of others, at most.
const MAX_PENDING: usize = 8;
/// Longest message of a rollout, characters.
const MAX_MESSAGE: usize = 1000;

impl State {
    pub(super) fn replace_service(
        &mut self,
        index: u64,
        name: &Name,
        spec: &ServiceSpec,
        seen: u64,
    ) -> Result<Applied, Refusal> {
        let old = self.service(name)?.clone();
        if old.changed != seen {
            return Err(Refusal::conflict(
                format!(
                    "{name} was changed meanwhile (revision {}, revision {seen} was looked at)",
                    old.changed
                ),
                format!("netctl service inspect {name}, and the change again"),
            ));
        }
        let applied = self.put_service(index, name, spec.clone(), Some(old))?;
        self.resume(index, name);
        Ok(applied)
    }

    /// A person has looked at a paused rollout: it goes on.
    fn resume(&mut self, index: u64, name: &Name) {
        let paused = |r: &Rollout| r.is_open() && !r.is_moving();
        let service = self.intent.services.get(name);
        if service.and_then(|s| s.rollout.as_ref()).is_some_and(paused)
            && let Some(s) = self.change(index).services.get_mut(name)
            && let Some(r) = &mut s.rollout
        {
            r.state = match r.is_rollback() {
                true => RolloutState::RollbackStarted,
                false => RolloutState::Updating,
            };
            r.message.clear();
            // Who looked at it before this has not seen it go on.
            s.changed = index;
        }
    }

    /// The generation and the rollout that lead from what is to `spec`.
    pub(super) fn rollout_to(
        &self,
        index: u64,
        name: &Name,
        old: &Service,
        spec: &ServiceSpec,
    ) -> Result<(u64, Option<Rollout>), Refusal> {
        if !old.spec.replaces(spec) {
            // How an earlier one ended is of no interest any more.
            return Ok((old.generation, old.rollout.clone().filter(Rollout::is_open)));
        }
        let maps = [&self.intent.placements, &self.intent.leaving];
        let there = all(maps.into_iter().filter_map(|m| m.get(name)).flat_map(|p| p.values()));
        let open = old.rollout.as_ref().filter(|r| r.is_open());
        let mut pending: Vec<Pending> = open.map(|r| r.pending.clone()).unwrap_or_default();
        let done = minus(&there, &all(pending.iter().map(|p| &p.slots)));
        if !done.is_empty() {
            pending.insert(
                0,
                Pending {
                    spec: Box::new(old.spec.clone()),
                    generation: old.generation,
                    slots: done,
                },
            );
        }
        // Slots that run this very thing already are not touched: a change taken back half-way is half the work.
        let same = pending.iter().position(|p| !p.spec.replaces(spec));
        let generation = same.map_or(index, |at| pending.remove(at).generation);
        if pending.len() > MAX_PENDING {
            return Err(Refusal::conflict(
                format!(
                    "tasks of {name} run {} different things already, left by changes in the middle of others",
                    pending.len()
                ),
                format!("wait for the change that is being carried out, or netctl service rollback {name}"),
            ));
        }
        let rollout = (!there.is_empty()).then(|| Rollout {
            state: RolloutState::Updating,
            pending,
            surge: open.map(|r| r.surge.clone()).unwrap_or_default(),
            message: String::new(),
        });
        Ok((generation, rollout))
    }

    pub(super) fn rollback(&mut self, index: u64, name: &Name) -> Result<Applied, Refusal> {
        let old = self.service(name)?.clone();
        let Some(target) = old.previous.clone() else {
            return Err(Refusal::conflict(
                format!("{name} has nothing to go back to: it was not changed, or has gone back already"),
                format!("netctl service inspect {name}"),
            ));
        };
        let abandoned = old.spec.clone();
        let applied = self.put_service(index, name, *target, Some(old))?;
        self.turn_back(index, name, Some(abandoned), String::new());
        Ok(applied)
    }

    /// Marks the rollout that was just begun as one that leads back.
    fn turn_back(&mut self, index: u64, name: &Name, previous: Option<ServiceSpec>, message: String) {
        let Some(s) = self.change(index).services.get_mut(name) else {
            return;
        };
        s.previous = previous.map(Box::new);
        let open = s.rollout.as_ref().is_some_and(Rollout::is_open);
        let rollout = s.rollout.get_or_insert_with(|| Rollout {
            state: RolloutState::RollbackCompleted,
            pending: Vec::new(),
            surge: SlotSet::default(),
            message: String::new(),
        });
        rollout.state = match open {
            true => RolloutState::RollbackStarted,
            false => RolloutState::RollbackCompleted,
        };
        rollout.message = message;
    }

    /// The service, if its rollout to a generation is one that `fits`.
    fn rolling(&self, name: &Name, generation: u64, fits: impl Fn(&Rollout) -> bool) -> Option<&Service> {
        let service = self.intent.services.get(name)?;
        let rollout = service.rollout.as_ref()?;
        (service.generation == generation && fits(rollout)).then_some(service)
    }

    pub(super) fn advance(
        &mut self,
        index: u64,
        name: &Name,
        generation: u64,
        slots: &SlotSet,
        surge: &SlotSet,
    ) -> Result<Applied, Refusal> {
        let Some(service) = self.rolling(name, generation, Rollout::is_moving) else {
            return Ok(Applied::Unchanged);
        };
        let Some(before) = service.rollout.clone() else {
            return Ok(Applied::Unchanged);
        };
        let mut rollout = before.clone();
        for p in &mut rollout.pending {
            p.slots = minus(&p.slots, slots);
        }
        rollout.pending.retain(|p| !p.slots.is_empty());
        // A slot that is no surge cannot become one: its task would be stopped at the end.
        let mine = self.intent.placements.get(name);
        let taken = minus(&all(mine.into_iter().flat_map(|p| p.values())), &rollout.surge);
        rollout.surge = minus(surge, &taken);
        if rollout == before {
            return Ok(Applied::Unchanged);
        }
        let dropped = minus(&before.surge, &rollout.surge);
        if let Some(s) = self.change(index).services.get_mut(name) {
            s.rollout = Some(rollout);
        }
        let freed = !dropped.is_empty();
        self.drop_surge(index, name, dropped);
        self.place(index, name);
        if freed {
            self.place_waiting(index);
        }
        Ok(Applied::Done)
    }

    pub(super) fn end_rollout(
        &mut self,
        index: u64,
        name: &Name,
        generation: u64,
        end: RolloutEnd,
        message: &str,
    ) -> Result<Applied, Refusal> {
        let Some(old) = self.rolling(name, generation, Rollout::is_moving).cloned() else {
            return Ok(Applied::Unchanged);
        };
        let back = old.rollout.as_ref().is_some_and(Rollout::is_rollback);
        let mut message: String = message.chars().take(MAX_MESSAGE).collect();
        if end == RolloutEnd::RolledBack && !back {
            let target = old.previous.clone();
            match target.map(|t| self.put_service(index, name, *t, Some(old.clone()))) {
                Some(Ok(_)) => {
                    // Gone back by itself: what failed is nothing to go back to.
                    self.turn_back(index, name, None, message);
                    return Ok(Applied::Done);
                }
                Some(Err(e)) => message.push_str(&format!("; it cannot go back: {}", e.message)),
                None => message.push_str("; there is nothing to go back to"),
            }
        }
        let Some(s) = self.change(index).services.get_mut(name) else {
            return Ok(Applied::Unchanged);
        };
        let mut dropped = SlotSet::default();
        if let Some(r) = &mut s.rollout {
            let completed = end == RolloutEnd::Completed;
            r.state = match (completed, back) {
                (true, false) => RolloutState::Completed,
                (true, true) => RolloutState::RollbackCompleted,
                (false, false) => RolloutState::Paused,
                (false, true) => RolloutState::RollbackPaused,
            };
            if completed {
                r.pending.clear();
                dropped = std::mem::take(&mut r.surge);
            }
            // Why it went back stays to be read.
            if !message.is_empty() {
                r.message = message;
            }
        }
        let freed = !dropped.is_empty();
        self.drop_surge(index, name, dropped);
        self.place(index, name);
        self.release_unused(index, name);
        if freed {
            self.place_waiting(index);
        }
        Ok(Applied::Done)
    }

    pub(super) fn release(
        &mut self,
        index: u64,
        name: &Name,
        node: NodeId,
        slots: &SlotSet,
    ) -> Result<Applied, Refusal> {
        let going = self.intent.leaving.get(name);
        let Some(has) = going.and_then(|l| l.get(&node)) else {
            return Ok(Applied::Unchanged);
        };
        // One that has no other place goes on, whatever was seen: it may have been taken from there since.
        let placed = self.intent.placements.get(name);
        let placed = all(placed.into_iter().flat_map(|p| p.values()));
        let kept = minus(has, &crate::placement::slots::common(slots, &placed));
        if kept == *has {
            return Ok(Applied::Unchanged);
        }
        let before = going.cloned().unwrap_or_default();
        let mut left = (*before).clone();
        left.insert(node, kept);
        self.count(&before, &left, self.reserve(name));
        orderly::put(self, index, |i| &i.leaving, |i| &mut i.leaving, name, left);
        // What it held there is what others may wait for.
        self.place_waiting(index);
        Ok(Applied::Done)
    }
}

/// What `rollback` goes back to after a change from `old` to `spec`: what was, and in the middle of an update, what was
/// before that: what it has not reached has proved itself, what it leads to has not.
pub(super) fn previous(old: &Service, spec: &ServiceSpec) -> ServiceSpec {
    let updating = old.rollout.as_ref().is_some_and(|r| r.is_open() && !r.is_rollback());
    let Some(before) = old.previous.as_ref().filter(|_| updating) else {
        return old.spec.clone();
    };
    let mut out = ServiceSpec::clone(before);
    if !old.spec.replaces(spec) {
        // What was changed around the tasks meanwhile stays changed.
        macro_rules! carry {
            ($($field:ident),+) => {
                $(if old.spec.$field != spec.$field {
                    out.$field.clone_from(&spec.$field);
                })+
            };
        }
        carry!(
            mode,
            replicas,
            labels,
            publish,
            endpoint_mode,
            lb,
            health,
            restart,
            update,
            rollback,
            placement,
            stop_grace_ms,
            drain_timeout_ms,
            attachable,
            source_ip,
            allow_from,
            timeouts
        );
    }
    out
}
