//! The next step of a rollout, from what is seen of every slot.

use std::time::Duration;

use model::{
    Name,
    intent::{Rollout, Service, SlotSet},
    spec::{FailureAction, Mode, Order, RollingUpdate},
};

use super::{Memory, Slot, Step, patience};
use crate::{
    mutant::{self, Mutant},
    placement::slots::union,
    state::{Command, RolloutEnd, SURGE_OF_NODE},
};

/// The rules that a rollout goes by.
pub(super) fn rules<'a>(service: &'a Service, rollout: &Rollout) -> &'a RollingUpdate {
    match rollout.is_rollback() {
        true => &service.spec.rollback,
        false => &service.spec.update,
    }
}

/// Decides the next step.
pub(super) fn plan(
    memory: &mut Memory,
    now: Duration,
    name: &Name,
    service: &Service,
    rollout: &Rollout,
    slots: &[Slot],
    step: &mut Step,
) {
    let rules = rules(service, rollout);
    let mut end = |end, message| {
        step.commands.push(Command::EndRollout {
            service: name.clone(),
            generation: service.generation,
            end,
            message,
        });
    };
    let main = || slots.iter().filter(|s| !s.surge);
    let asked = main().count();
    let failed = slots.iter().filter(|s| s.failed).count();
    if failed * 1000 > usize::from(rules.max_failure_permille) * asked.max(1) {
        let message = told(memory, asked);
        match rules.failure_action {
            FailureAction::Continue => {}
            FailureAction::Rollback if !rollout.is_rollback() => return end(RolloutEnd::RolledBack, message),
            FailureAction::Pause | FailureAction::Rollback => return end(RolloutEnd::Paused, message),
        }
    }
    // What failed and is let pass holds nobody up.
    let waits = |s: &&Slot| !s.pending && !s.settled && !s.failed;
    let waiting = slots.iter().filter(waits).count();
    if !main().any(|s| s.pending) && main().filter(waits).count() == 0 {
        let message = if memory.failed.is_empty() {
            String::new()
        } else {
            told(memory, asked)
        };
        return end(RolloutEnd::Completed, message);
    }
    step.next = timer(memory, now, service, rules);
    if waiting > 0 {
        memory.idle_since = None;
    } else {
        memory.idle_since.get_or_insert(now);
    }
    let at_once = match rules.parallelism {
        0 => asked,
        n => usize::try_from(n).unwrap_or(usize::MAX),
    };
    let surge = surge(memory, service, rules, slots, at_once);
    let mut batch = Vec::new();
    if waiting == 0 || mutant::on(Mutant::RollAll) {
        let due = memory.idle_since.unwrap_or(now) + Duration::from_millis(rules.delay_ms);
        if memory.began && now < due {
            step.next = Some(step.next.map_or(due, |at| at.min(due)));
        } else {
            batch = next_batch(slots, rules, memory.no_room, at_once);
        }
    }
    if !batch.is_empty() || surge != rollout.surge {
        memory.began |= !batch.is_empty();
        step.commands.push(Command::Advance {
            service: name.clone(),
            generation: service.generation,
            slots: SlotSet::from_iter(batch),
            surge,
        });
    }
}

/// Slots that get the new one now. Those that serve nobody go first: they cost nothing.
fn next_batch(slots: &[Slot], rules: &RollingUpdate, no_room: bool, at_once: usize) -> Vec<u32> {
    let main = || slots.iter().filter(|s| !s.surge);
    // Those that run the new one; one that failed for good is no help.
    let helps = slots.iter().any(|s| s.surge && !s.pending && (s.ready || !s.failed));
    let tried = no_room || slots.iter().any(|s| s.surge && !s.pending);
    let start_first = rules.order == Order::StartFirst && (helps || !tried);
    if start_first && !helps {
        // They are asked for first.
        return Vec::new();
    }
    // Never fewer ready tasks than asked for, less those that were let fail.
    let needed = main().filter(|s| !s.failed).count();
    let mut spare = match start_first {
        true => slots.iter().filter(|s| s.ready).count().saturating_sub(needed),
        false => usize::MAX,
    };
    // One that moves is not replaced at two places at once; on a dead node nothing can be replaced.
    let mut open: Vec<&Slot> = main().filter(|s| s.pending && !s.leaving && s.alive).collect();
    open.sort_by_key(|s| (s.ready, s.slot));
    let mut batch = Vec::new();
    for s in open {
        if batch.len() == at_once {
            break;
        }
        if s.ready {
            match spare.checked_sub(1) {
                Some(left) => spare = left,
                None => continue,
            }
        }
        batch.push(s.slot);
    }
    batch
}

/// All slots beyond those asked for that there should be now.
fn surge(memory: &mut Memory, service: &Service, rules: &RollingUpdate, slots: &[Slot], at_once: usize) -> SlotSet {
    let open: Vec<u32> = slots.iter().filter(|s| !s.surge && s.pending).map(|s| s.slot).collect();
    let new = slots.iter().filter(|s| s.surge && !s.pending).count();
    let needed = slots.iter().filter(|s| !s.surge && !s.failed).count();
    let mut ready = slots.iter().filter(|s| s.ready).count();
    // Those of a change that was given up go as soon as they are not needed.
    let mut kept = Vec::new();
    for s in slots.iter().filter(|s| s.surge) {
        let useful = !s.pending || (s.ready && ready <= needed);
        match useful {
            true => kept.push(s.slot),
            false => ready -= usize::from(s.ready),
        }
    }
    let mut out = SlotSet::from_iter(kept);
    if rules.order == Order::StopFirst {
        return out;
    }
    let wanted = at_once.min(open.len());
    if new >= wanted {
        memory.asked = false;
        return out;
    }
    if std::mem::replace(&mut memory.asked, true) {
        // There was no room for all of them: it goes on with those that there are.
        memory.no_room = true;
    }
    if memory.no_room {
        return out;
    }
    let more: Vec<u32> = match service.spec.mode {
        Mode::Global => {
            let of_node = open.iter().filter_map(|s| SURGE_OF_NODE.checked_add(*s));
            of_node.filter(|s| !out.contains(*s)).take(wanted - new).collect()
        }
        Mode::Replicated => {
            let used = slots
                .iter()
                .map(|s| s.slot)
                .max()
                .unwrap_or(0)
                .max(service.spec.replicas);
            let free = (used.saturating_add(1)..u32::MAX).take(wanted - new);
            free.collect()
        }
    };
    out = union(&out, &SlotSet::from_iter(more));
    out
}

/// When something that is waited for is due.
fn timer(memory: &Memory, now: Duration, service: &Service, rules: &RollingUpdate) -> Option<Duration> {
    let monitor = Duration::from_millis(rules.monitor_ms);
    let due = memory.watched.values().map(|w| match w.ready_since {
        Some(at) => at + monitor,
        None => w.since + patience(service),
    });
    let moved = memory.moving.values().map(|at| *at + patience(service));
    due.chain(moved).filter(|at| *at > now).min()
}

/// What failed, for people.
fn told(memory: &Memory, of: usize) -> String {
    const SHOWN: usize = 3;
    let mut text = format!("{} of {of} tasks failed: ", memory.failed.len());
    let shown: Vec<&str> = memory.failed.values().take(SHOWN).map(String::as_str).collect();
    text.push_str(&shown.join("; "));
    if memory.failed.len() > SHOWN {
        text.push_str("; and more");
    }
    text
}
