//! What managers remember of tasks, in memory alone: the last states of every slot, as nodes reported them.
//!
//! Runtime status never enters the log (DESIGN, Three kinds of state): after a restart the board is filled again by the
//! nodes' reports.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use model::{
    EndpointId, EndpointRow, Intent, Name, NodeId, RowBody, RowKey,
    api::{TaskState, TaskStatus, TaskView},
};

use crate::gossip::Facts;

#[derive(Debug, Clone)]
struct Entry {
    node: NodeId,
    hostname: String,
    state: TaskState,
    message: String,
    restarts: u32,
    since: Instant,
    desired: bool,
    /// It goes on until its successor elsewhere is ready.
    leaving: bool,
    generation: u64,
}

/// The board.
#[derive(Debug, Default)]
pub struct TaskBoard {
    slots: BTreeMap<(Name, u32), VecDeque<Entry>>,
}

impl TaskBoard {
    /// Follows the placement: a slot that moved gets a new line, a slot that is gone is closed. A service that was removed
    /// is forgotten.
    pub fn place(&mut self, intent: &Intent, now: Instant) {
        self.slots
            .retain(|(service, _), _| intent.services.contains_key(service));
        let mut wanted: BTreeMap<(Name, u32), NodeId> = BTreeMap::new();
        for (service, nodes) in &intent.placements {
            for (node, slots) in nodes {
                wanted.extend(slots.iter().map(|s| ((service.clone(), s), *node)));
            }
        }
        for (key, entries) in &mut self.slots {
            let goes_to = wanted.get(key);
            let elsewhere = |e: &&mut Entry| e.leaving || (e.desired && goes_to != Some(&e.node));
            for e in entries.iter_mut().filter(elsewhere) {
                let left = intent.leaving.get(&key.0).and_then(|l| l.get(&e.node));
                e.desired = false;
                e.leaving = left.is_some_and(|l| l.contains(key.1));
                if e.leaving {
                    continue;
                }
                e.since = now;
                let lost = intent.nodes.get(&e.node).is_none_or(|n| n.down);
                (e.state, e.message) = match (lost, goes_to) {
                    (true, Some(to)) => (TaskState::Orphaned, format!("its node is lost; placed on {to}")),
                    (true, None) => (TaskState::Orphaned, "its node is lost".to_owned()),
                    (false, Some(to)) => (TaskState::Shutdown, format!("moved to {to}")),
                    (false, None) => (TaskState::Shutdown, "no longer wanted".to_owned()),
                };
            }
        }
        let history = usize::try_from(intent.settings.task_history_limit).unwrap_or(usize::MAX);
        for entries in self.slots.values_mut() {
            entries.truncate(history);
        }
        for (key, node) in wanted {
            let entries = self.slots.entry(key).or_default();
            if entries.front().is_some_and(|e| e.desired) {
                continue;
            }
            let hostname = intent.nodes.get(&node).map(|n| n.hostname.clone()).unwrap_or_default();
            entries.push_front(Entry {
                node,
                hostname,
                state: TaskState::Assigned,
                message: String::new(),
                restarts: 0,
                since: now,
                desired: true,
                leaving: false,
                generation: 0,
            });
            entries.truncate(history);
        }
    }

    /// Takes what a node says of its tasks. What it says of slots placed elsewhere is not believed.
    pub fn reported(&mut self, node: NodeId, tasks: &BTreeMap<EndpointId, TaskStatus>, now: Instant) {
        for (id, status) in tasks {
            let Some((service, slot)) = id.as_str().rsplit_once('.') else {
                continue;
            };
            let (Ok(service), Ok(slot)) = (service.parse::<Name>(), slot.parse::<u32>()) else {
                continue;
            };
            let entries = self.slots.get_mut(&(service, slot)).into_iter().flatten();
            let mut here = entries.filter(|e| e.node == node && (e.desired || e.leaving));
            let Some(e) = here.next() else {
                continue;
            };
            if e.state != status.state {
                e.since = now;
            }
            e.state = status.state;
            e.message = status.message.chars().take(300).collect();
            e.restarts = status.restarts;
            e.generation = status.generation;
        }
    }

    /// Lines of a service: by slot, newest first.
    pub fn view(&self, service: &Name, facts: &Facts, now: Instant) -> Vec<TaskView> {
        let slots = self.slots.range((service.clone(), 0)..=(service.clone(), u32::MAX));
        slots
            .flat_map(|((name, slot), entries)| {
                entries.iter().map(move |e| {
                    let id = EndpointId::task(name, *slot);
                    let row = endpoint(facts, e.node, &id).filter(|_| e.desired || e.leaving);
                    TaskView {
                        addresses: row.map(addresses).unwrap_or_default(),
                        id,
                        service: name.clone(),
                        slot: *slot,
                        node: e.node,
                        hostname: e.hostname.clone(),
                        desired: e.desired,
                        state: e.state,
                        since_s: now.saturating_duration_since(e.since).max(Duration::ZERO).as_secs(),
                        message: match e.leaving && e.message.is_empty() {
                            true => "goes on until it is ready elsewhere".to_owned(),
                            false => e.message.clone(),
                        },
                        restarts: e.restarts,
                        generation: e.generation,
                    }
                })
            })
            .collect()
    }
}

/// The row of an endpoint.
pub fn endpoint<'a>(facts: &'a Facts, node: NodeId, id: &EndpointId) -> Option<&'a EndpointRow> {
    match &facts.rows.get(&node)?.get(&RowKey::Endpoint(id.clone()))?.body {
        RowBody::Endpoint(e) => Some(e),
        _ => None,
    }
}

fn addresses(e: &EndpointRow) -> Vec<String> {
    e.v4.map(|a| a.to_string())
        .into_iter()
        .chain(e.v6.map(|a| a.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use model::intent::{Availability, Node, Role, Service, SlotSet};

    use super::*;

    fn intent(on: u64, down: bool) -> Intent {
        let mut i = Intent::default();
        for n in 1..=2 {
            let node = Node {
                hostname: format!("host{n}"),
                role: Role::Worker,
                availability: Availability::Active,
                key: Vec::new(),
                down: down && n != on,
                rpc: None,
                raft: None,
                labels: Default::default(),
                max_tasks: None,
                machine: Default::default(),
            };
            i.nodes.insert(NodeId(n), node);
        }
        let web: Name = "web".parse().unwrap();
        let service = Service {
            index: 1,
            spec: Default::default(),
            vips: BTreeMap::new(),
            ports: BTreeMap::new(),
            generation: 1,
            changed: 0,
            previous: None,
            rollout: None,
            problem: None,
        };
        i.services.insert(web.clone(), service);
        i.placements
            .insert(web, BTreeMap::from([(NodeId(on), SlotSet::from_iter([1]))]).into());
        i
    }

    #[test]
    fn a_slot_that_moves_leaves_its_story() {
        let t0 = Instant::now();
        let mut b = TaskBoard::default();
        b.place(&intent(1, false), t0);
        let running = TaskStatus {
            pid: Some(7),
            generation: 1,
            ..TaskStatus::of(TaskState::Running)
        };
        let web1: EndpointId = "web.1".parse().unwrap();
        b.reported(NodeId(1), &BTreeMap::from([(web1.clone(), running.clone())]), t0);
        // A node that does not hold the slot is not believed.
        b.reported(
            NodeId(2),
            &BTreeMap::from([(
                web1,
                TaskStatus {
                    state: TaskState::Failed,
                    ..running
                },
            )]),
            t0,
        );
        b.place(&intent(2, true), t0 + Duration::from_secs(9));
        let lines = b.view(&"web".parse().unwrap(), &Facts::default(), t0 + Duration::from_secs(10));
        let told: Vec<_> = lines
            .iter()
            .map(|l| (l.node.0, l.desired, l.state, l.since_s))
            .collect();
        assert_eq!(
            told,
            [(2, true, TaskState::Assigned, 1), (1, false, TaskState::Orphaned, 1)]
        );
        b.place(&Intent::default(), t0);
        assert!(b.view(&"web".parse().unwrap(), &Facts::default(), t0).is_empty());
    }
}
