//! The difference between two tables, in an order that is good at every step.

use super::table::{Dest, DestKey, Scheduler, Service, ServiceKey, Settings, Table, Timeouts};

/// One write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Timeouts of the namespace.
    SetTimeouts(Timeouts),
    /// A service, made or changed; its backends stay.
    SetService {
        /// Which.
        key: ServiceKey,
        /// What it is told.
        settings: Settings,
        /// It is not there yet.
        new: bool,
    },
    /// A service and its backends go.
    RemoveService {
        /// Which.
        key: ServiceKey,
    },
    /// A backend, added or changed.
    SetDest {
        /// Its service.
        service: ServiceKey,
        /// Which.
        dest: DestKey,
        /// What it is told.
        value: Dest,
        /// It is not there yet.
        new: bool,
    },
    /// A backend goes, and the flows to it.
    RemoveDest {
        /// Its service.
        service: ServiceKey,
        /// Which.
        dest: DestKey,
    },
}

/// Steps from what is seen to what is wanted; none when they are the same.
///
/// 1. Timeouts, of which 0 is no wish, and which a kernel without the protocol does not have.
/// 2. Backends that drain, where another of the service's takes new flows already.
/// 3. Service by service: what it is told, backends that come or change, those that drain, those that go. A new one that
///    needs a table is filled first and gets its scheduler last: `mh` then builds one table, not one for each backend.
/// 4. Services that go.
///
/// A plan that was cut short anywhere is continued by the next one. A service that had a backend for new flows and goes on
/// to have one has one at every step; but the kernel itself is without a scheduler for a moment (one RCU grace period)
/// when a service changes from one to another.
pub fn plan(seen: &Table, wanted: &Table) -> Vec<Step> {
    let mut steps = Vec::new();
    let timeouts = merge(seen.timeouts, wanted.timeouts);
    if timeouts != seen.timeouts {
        steps.push(Step::SetTimeouts(timeouts));
    }
    for (key, new) in &wanted.services {
        if let Some(old) = seen.services.get(key).filter(|old| has_other(old, new)) {
            steps.extend(draining(*key, old, new));
        }
    }
    for (key, new) in &wanted.services {
        match seen.services.get(key) {
            None => create(*key, new, &mut steps),
            Some(old) => change(*key, old, new, &mut steps),
        }
    }
    let gone = seen.services.keys().filter(|key| !wanted.services.contains_key(key));
    steps.extend(gone.map(|key| Step::RemoveService { key: *key }));
    steps
}

/// The timeouts to have.
fn merge(seen: Timeouts, wanted: Timeouts) -> Timeouts {
    let pick = |seen, wanted| if seen == 0 || wanted == 0 { seen } else { wanted };
    Timeouts {
        tcp: pick(seen.tcp, wanted.tcp),
        tcp_fin: pick(seen.tcp_fin, wanted.tcp_fin),
        udp: pick(seen.udp, wanted.udp),
    }
}

fn create(key: ServiceKey, new: &Service, steps: &mut Vec<Step>) {
    let settings = new.settings();
    let late = settings.scheduler == Scheduler::Mh && new.dests.len() > 1;
    let first = if late {
        Settings {
            scheduler: Scheduler::None,
            ..settings
        }
    } else {
        settings
    };
    steps.push(Step::SetService {
        key,
        settings: first,
        new: true,
    });
    steps.extend(new.dests.iter().map(|(dest, value)| Step::SetDest {
        service: key,
        dest: *dest,
        value: *value,
        new: true,
    }));
    if late {
        steps.push(Step::SetService {
            key,
            settings,
            new: false,
        });
    }
}

fn change(key: ServiceKey, old: &Service, new: &Service, steps: &mut Vec<Step>) {
    // One that was cut short while it was filled: the rest first, then its scheduler.
    let late = old.scheduler == Scheduler::None;
    let settings = (old.settings() != new.settings()).then_some(Step::SetService {
        key,
        settings: new.settings(),
        new: false,
    });
    steps.extend(settings.filter(|_| !late));
    for (dest, value) in &new.dests {
        let held = old.dests.get(dest);
        if held != Some(value) && !held.is_some_and(|held| drains(held, value)) {
            steps.push(Step::SetDest {
                service: key,
                dest: *dest,
                value: *value,
                new: held.is_none(),
            });
        }
    }
    if !has_other(old, new) {
        steps.extend(draining(key, old, new));
    }
    steps.extend(settings.filter(|_| late));
    let gone = old.dests.keys().filter(|dest| !new.dests.contains_key(dest));
    steps.extend(gone.map(|dest| Step::RemoveDest {
        service: key,
        dest: *dest,
    }));
}

/// A backend of both that takes new flows now and goes on to.
fn has_other(old: &Service, new: &Service) -> bool {
    let takes = |d: &Dest| d.weight > 0;
    old.dests
        .iter()
        .any(|(dest, held)| takes(held) && new.dests.get(dest).is_some_and(takes))
}

/// It stops taking new flows.
fn drains(held: &Dest, value: &Dest) -> bool {
    held.weight > 0 && value.weight == 0
}

fn draining<'a>(key: ServiceKey, old: &'a Service, new: &'a Service) -> impl Iterator<Item = Step> + 'a {
    new.dests.iter().filter_map(move |(dest, value)| {
        old.dests
            .get(dest)
            .filter(|held| drains(held, value))
            .map(|_| Step::SetDest {
                service: key,
                dest: *dest,
                value: *value,
                new: false,
            })
    })
}
