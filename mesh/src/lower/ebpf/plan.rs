//! The difference between what is wanted and what is, in an order that is good at every step.

use std::collections::BTreeSet;

use ebpf_abi::{BACKEND_ACTIVE, BACKEND_DRAINING, Backend, SvcKey, SvcVal};

use super::{
    cells::{self, Cells},
    desired::{Desired, describe},
    maps::{Gone, Observed, Step},
    rows,
};
use crate::wanted::{Problem, Wanted};

/// What to write, and what could not be planned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Writes, in order.
    pub steps: Vec<Step>,
    /// What was left out. They come back with every plan until their cause is gone.
    pub problems: Vec<Problem>,
}

impl Plan {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What of it only adds to `observed`: services that are there keep their rows, and rows their backends. For a view
    /// that may be older than what the maps hold.
    pub fn additions(mut self, observed: &Observed) -> Plan {
        let held: BTreeSet<(u32, u32)> = observed
            .services
            .values()
            .filter(|s| s.lut_len > 0)
            .map(|s| (s.lut_off, s.lut_off.saturating_add(s.lut_len)))
            .collect();
        let in_held = |from: u32, to: u32| held.iter().any(|(a, b)| from < *b && *a < to);
        self.steps.retain(|step| match step {
            Step::RemoveService { .. } | Step::RemoveTarget { .. } | Step::Purge { .. } => false,
            Step::Target { key, .. } => !observed.targets.contains_key(key),
            Step::Backend { cell, value } => {
                observed.backend(*cell) == Backend::default() && *value != Backend::default()
            }
            Step::Lut { off, cells } => {
                let len = u32::try_from(cells.len()).unwrap_or(u32::MAX);
                !in_held(*off, off.saturating_add(len))
            }
            // A new one whose row would be where an old one's still is waits.
            Step::Service { key, value } => {
                let end = value.lut_off.saturating_add(value.lut_len);
                let row = (value.lut_off, end);
                !observed.services.contains_key(key)
                    && (value.lut_len == 0 || held.contains(&row) || !in_held(row.0, row.1))
            }
        });
        self
    }
}

/// Compares. The order: backends, and what their own node answers for them, before the rows that name them; rows before
/// the services that name rows; then who drains; then what nobody names any more; last the backends that are gone:
/// marked, their flows purged, their cells freed. A plan that was cut short anywhere is continued by the next one.
pub fn plan(wanted: &Wanted, observed: &Observed) -> Plan {
    let mut desired = Desired::new(wanted);
    let mut problems = std::mem::take(&mut desired.problems);
    let cells = Cells::assign(&desired, observed, &mut problems);
    let rows = rows::assign(&desired, observed, &cells, &mut problems);
    let mut steps = Vec::new();

    let mut draining = Vec::new();
    for (key, value) in &desired.backends {
        let Some(cell) = cells.at.get(key).copied() else {
            continue;
        };
        let held = observed.backend(cell);
        let step = Step::Backend { cell, value: *value };
        match (held.state, value.state) {
            _ if held == *value => {}
            // Its rows lose it first: a program that still finds it there must not refuse.
            (BACKEND_ACTIVE, BACKEND_DRAINING) => draining.push(step),
            _ => steps.push(step),
        }
    }

    let mut room = Room::new("targets", observed.sizes.targets, observed.targets.len());
    for (key, value) in &desired.targets {
        let held = observed.targets.get(key);
        if held != Some(value) && (held.is_some() || room.take(&mut problems, || "a port of a local endpoint".into())) {
            steps.push(Step::Target {
                key: *key,
                value: *value,
            });
        }
    }

    let changed = |row: &&rows::LutRow| {
        (row.off..)
            .zip(&row.cells)
            .any(|(at, cell)| observed.lut_cell(at) != *cell)
    };
    let write = |row: &rows::LutRow| Step::Lut {
        off: row.off,
        cells: row.cells.clone(),
    };
    steps.extend(rows.iter().flatten().filter(|row| !row.kept).filter(changed).map(write));

    let mut room = Room::new("services", observed.sizes.services, observed.services.len());
    for (key, row) in &desired.keys {
        let place = row.set.and_then(|at| rows.get(at)).and_then(Option::as_ref);
        let value = SvcVal {
            id: row.service,
            lut_off: place.map_or(0, |p| p.off),
            lut_len: place.map_or(0, rows::LutRow::len),
            tport: row.tport,
            flags: row.flags,
        };
        let held = observed.services.get(key);
        if held != Some(&value) && (held.is_some() || room.take(&mut problems, || describe(key))) {
            steps.push(Step::Service { key: *key, value });
        }
    }
    steps.extend(rows.iter().flatten().filter(|row| row.kept).filter(changed).map(write));
    steps.append(&mut draining);

    let unwanted = |key: &&SvcKey| !desired.keys.contains_key(key);
    steps.extend(
        observed
            .services
            .keys()
            .filter(unwanted)
            .map(|key| Step::RemoveService { key: *key }),
    );
    steps.extend(
        observed
            .targets
            .keys()
            .filter(|key| !desired.targets.contains_key(key))
            .map(|key| Step::RemoveTarget { key: *key }),
    );
    retire(&cells.gone, &mut steps);
    Plan {
        steps,
        problems: problems.into_iter().collect(),
    }
}

fn retire(gone: &[Gone], steps: &mut Vec<Step>) {
    let marked = gone.iter().map(|g| (g.cell, cells::retired(g.backend), g.backend));
    steps.extend(
        marked
            .filter(|(_, to, from)| to != from)
            .map(|(cell, value, _)| Step::Backend { cell, value }),
    );
    if !gone.is_empty() {
        steps.push(Step::Purge { gone: gone.to_vec() });
    }
    steps.extend(gone.iter().map(|g| Step::Backend {
        cell: g.cell,
        value: Backend::default(),
    }));
}

/// New entries that a map has room for. Removals come last in a plan, so what they free counts in the next one.
struct Room {
    map: &'static str,
    size: u32,
    left: u32,
}

impl Room {
    fn new(map: &'static str, size: u32, used: usize) -> Self {
        Room {
            map,
            size,
            left: size.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX)),
        }
    }

    fn take(&mut self, problems: &mut BTreeSet<Problem>, what: impl Fn() -> String) -> bool {
        if self.left == 0 {
            problems.insert(Problem::Full {
                map: self.map,
                size: self.size,
                what: what(),
            });
            return false;
        }
        self.left -= 1;
        true
    }
}
