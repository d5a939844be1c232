//! The managers' view: where each slot is, how its task is there, and how earlier ones ended. It costs by what happened,
//! not by how many slots there are.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use model::{
    EndpointId, Intent, Name, NodeId, RowBody, RowKey,
    api::{TaskState, TaskStatus, TaskView},
    intent::SlotSet,
};

use super::{Past, unix_s};
use crate::gossip::Facts;

/// Ends that are made up for slots in one change of the placement at most.
const MADE: usize = 10_000;
/// Slots of one service that ends are kept of, the ones with the newest.
const SLOTS: usize = 10_000;

/// What nodes have reported of their tasks.
pub type Reported = BTreeMap<NodeId, BTreeMap<EndpointId, TaskStatus>>;

/// The end of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    node: NodeId,
    hostname: String,
    status: TaskStatus,
    /// The board's own word, until the node says how it was.
    made: bool,
}

/// The board.
#[derive(Debug, Default)]
pub struct TaskBoard {
    seen: Arc<Intent>,
    /// When each service's placement changed last.
    placed: BTreeMap<Name, Instant>,
    past: BTreeMap<Name, BTreeMap<u32, Vec<Line>>>,
    /// Why slots whose restarts are used up stay where they are.
    stuck: BTreeMap<(Name, NodeId), String>,
}

impl TaskBoard {
    /// Follows the placement: what is no longer where it was has ended there.
    pub fn place(&mut self, intent: &Arc<Intent>, now: Instant) {
        if self.seen.revision == intent.revision {
            return;
        }
        let before = std::mem::replace(&mut self.seen, intent.clone());
        self.past.retain(|name, _| intent.services.contains_key(name));
        self.placed.retain(|name, _| intent.services.contains_key(name));
        self.stuck.retain(|(name, node), _| intent.slots(name, *node).is_some());
        let mut left = MADE;
        for name in intent.services.keys() {
            let (old, new) = (before.placements.get(name), intent.placements.get(name));
            let (left_before, leaving) = (before.leaving.get(name), intent.leaving.get(name));
            if old != new {
                self.placed.insert(name.clone(), now);
            } else if left_before == leaving {
                continue;
            }
            // What went on at its old place has ended there when it leaves no more.
            for (node, slots) in old.into_iter().chain(left_before).flatten() {
                let stays = new.and_then(|n| n.get(node));
                let leaves = leaving.and_then(|n| n.get(node));
                let gone = slots.iter().filter(|s| {
                    let has = |set: Option<&SlotSet>| set.is_some_and(|set| set.contains(*s));
                    !has(stays) && !has(leaves)
                });
                for slot in gone.take(left) {
                    left -= 1;
                    self.moved(&before, name, slot, *node);
                }
            }
        }
    }

    fn moved(&mut self, before: &Intent, name: &Name, slot: u32, from: NodeId) {
        let intent = self.seen.clone();
        let mut to = intent.placements.get(name).into_iter().flat_map(|p| p.iter());
        let to = to.find(|(_, s)| s.contains(slot)).map(|(n, _)| n);
        let lost = intent.nodes.get(&from).is_none_or(|n| n.down);
        let (state, message) = match (lost, to) {
            (true, Some(to)) => (TaskState::Orphaned, format!("its node is lost; placed on {to}")),
            (true, None) => (TaskState::Orphaned, "its node is lost".to_owned()),
            (false, Some(to)) => (TaskState::Shutdown, format!("moved to {to}")),
            (false, None) => (TaskState::Shutdown, "no longer wanted".to_owned()),
        };
        let host = |i: &Intent| i.nodes.get(&from).map(|n| n.hostname.clone());
        let line = Line {
            node: from,
            hostname: host(&intent).or_else(|| host(before)).unwrap_or_default(),
            status: TaskStatus {
                message,
                at: unix_s(),
                ..TaskStatus::of(state)
            },
            made: true,
        };
        self.keep(name, slot, line);
    }

    /// Takes the ends that a node tells of.
    pub fn ended(&mut self, node: NodeId, past: &Past) {
        let hostname = self
            .seen
            .nodes
            .get(&node)
            .map(|n| n.hostname.clone())
            .unwrap_or_default();
        for (id, ends) in past {
            let Some((name, slot)) = id.slot().filter(|(n, _)| self.seen.services.contains_key(n)) else {
                continue;
            };
            // The oldest first: so the newest stands in front.
            for status in ends
                .iter()
                .rev()
                .filter(|s| s.state.is_end() && s.state.is_told_by_nodes())
            {
                let line = Line {
                    node,
                    hostname: hostname.clone(),
                    status: status.clone(),
                    made: false,
                };
                self.keep(&name, slot, line);
            }
        }
    }

    fn keep(&mut self, name: &Name, slot: u32, line: Line) {
        let limit = usize::try_from(self.seen.settings.task_history_limit).unwrap_or(usize::MAX);
        let slots = self.past.entry(name.clone()).or_default();
        let lines = slots.entry(slot).or_default();
        let same = |l: &Line| {
            (l.made, l.node, l.status.restarts, l.status.at)
                == (line.made, line.node, line.status.restarts, line.status.at)
        };
        if let Some(known) = lines.iter_mut().find(|l| same(l)) {
            *known = line;
            return;
        }
        if !line.made {
            // The node tells how that ended which the board has only seen to go.
            let (node, at) = (line.node, line.status.at);
            lines.retain(|l| !(l.made && l.node == node && l.status.at <= at.saturating_add(1)));
        }
        let at = lines.partition_point(|l| l.status.at > line.status.at);
        lines.insert(at, line);
        lines.truncate(limit);
        if slots.len() > SLOTS
            && let Some(oldest) = slots
                .iter()
                .min_by_key(|(_, l)| l.first().map_or(0, |l| l.status.at))
                .map(|(slot, _)| *slot)
        {
            slots.remove(&oldest);
        }
    }

    /// Slots whose restarts are used up where they are: by service and node.
    pub fn used_up(&self, reported: &Reported) -> BTreeMap<(Name, NodeId), SlotSet> {
        let mut out: BTreeMap<(Name, NodeId), Vec<u32>> = BTreeMap::new();
        for (node, tasks) in reported {
            for (id, _) in tasks.iter().filter(|(_, t)| t.exhausted) {
                if let Some((name, slot)) = id.slot()
                    && self.seen.slots(&name, *node).is_some_and(|s| s.contains(slot))
                {
                    out.entry((name, *node)).or_default().push(slot);
                }
            }
        }
        out.into_iter()
            .map(|(k, slots)| (k, slots.into_iter().collect()))
            .collect()
    }

    /// Remembers why slots of a service whose restarts are used up on a node stay there; none: they do not.
    pub fn stays(&mut self, name: &Name, node: NodeId, why: Option<String>) {
        match why {
            Some(why) => self.stuck.insert((name.clone(), node), why),
            None => self.stuck.remove(&(name.clone(), node)),
        };
    }

    /// Lines of a service: by slot, the one that is wanted first, then the newest.
    pub fn view(&self, name: &Name, reported: &Reported, facts: &Facts, now: Instant) -> Vec<TaskView> {
        let intent = &self.seen;
        let mut lines: BTreeMap<u32, Vec<TaskView>> = BTreeMap::new();
        let placed_s = self
            .placed
            .get(name)
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(*at));
        let places = [(&intent.placements, true), (&intent.leaving, false)];
        for (map, desired) in places {
            for (node, slots) in map.get(name).into_iter().flatten() {
                let hostname = intent.nodes.get(node).map(|n| n.hostname.clone()).unwrap_or_default();
                for slot in slots.iter() {
                    let id = EndpointId::task(name, slot);
                    let told = reported.get(node).and_then(|r| r.get(&id)).cloned();
                    let mut status = told.unwrap_or_else(|| TaskStatus {
                        at: unix_s().saturating_sub(placed_s.as_secs()),
                        ..TaskStatus::of(TaskState::Assigned)
                    });
                    if status.exhausted
                        && let Some(why) = self.stuck.get(&(name.clone(), *node))
                    {
                        status.message = format!("{}; {why}", status.message);
                    }
                    if !desired && status.message.is_empty() {
                        status.message = "goes on until it is ready elsewhere".to_owned();
                    }
                    let mut line = shown(name, slot, *node, &hostname, &status, desired);
                    line.addresses = addresses(facts, *node, &id);
                    lines.entry(slot).or_default().push(line);
                }
            }
        }
        let limit = usize::try_from(intent.settings.task_history_limit).unwrap_or(usize::MAX);
        for (slot, past) in self.past.get(name).into_iter().flatten() {
            let lines = lines.entry(*slot).or_default();
            for line in past {
                let known = |t: &TaskView| {
                    t.state.is_end()
                        && (t.node, t.state, t.restarts) == (line.node, line.status.state, line.status.restarts)
                };
                // What has ended and is not started again is its slot's present line.
                if lines.len() < limit && !lines.iter().any(|t| t.desired && known(t)) {
                    lines.push(shown(name, *slot, line.node, &line.hostname, &line.status, false));
                }
            }
        }
        lines.into_values().flatten().collect()
    }
}

fn shown(name: &Name, slot: u32, node: NodeId, hostname: &str, s: &TaskStatus, desired: bool) -> TaskView {
    TaskView {
        id: EndpointId::task(name, slot),
        service: name.clone(),
        slot,
        node,
        hostname: hostname.to_owned(),
        desired,
        state: s.state,
        since_s: match s.at {
            0 => 0,
            at => unix_s().saturating_sub(at),
        },
        message: s.message.clone(),
        addresses: Vec::new(),
        restarts: s.restarts,
        generation: s.generation,
        health: s.health,
        pid: s.pid,
        exhausted: s.exhausted,
    }
}

/// Addresses of a task, those on its first network first.
fn addresses(facts: &Facts, node: NodeId, id: &EndpointId) -> Vec<String> {
    let Some(rows) = facts.rows.get(&node) else {
        return Vec::new();
    };
    let first = RowKey::Endpoint(id.clone());
    let further = format!("{id}.");
    let of_task = |key: &RowKey| matches!(key, RowKey::Endpoint(e) if e == id || e.as_str().starts_with(&further));
    // `web.1`, `web.1.app` and `web.1.db` stand side by side.
    rows.range(first..)
        .take_while(|(key, _)| of_task(key))
        .filter_map(|(_, row)| match &row.body {
            RowBody::Endpoint(e) => Some([e.v4.map(IpAddr::V4), e.v6.map(IpAddr::V6)]),
            _ => None,
        })
        .flatten()
        .flatten()
        .map(|a| a.to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use model::intent::{Availability, Node, Role, Service};

    use super::*;

    fn intent(revision: u64, on: u64, down: bool) -> Arc<Intent> {
        let mut i = Intent {
            revision,
            ..Intent::default()
        };
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
            generation: 1,
            ..Service::default()
        };
        i.services.insert(web.clone(), service);
        i.placements
            .insert(web, BTreeMap::from([(NodeId(on), SlotSet::from_iter([1]))]).into());
        Arc::new(i)
    }

    fn status(state: TaskState, restarts: u32, at: u64) -> TaskStatus {
        TaskStatus {
            restarts,
            at,
            ..TaskStatus::of(state)
        }
    }

    fn told(b: &TaskBoard, reported: &Reported) -> Vec<(u64, bool, TaskState, u32)> {
        let lines = b.view(&"web".parse().unwrap(), reported, &Facts::default(), Instant::now());
        lines
            .iter()
            .map(|l| (l.node.0, l.desired, l.state, l.restarts))
            .collect()
    }

    fn report(node: u64, status: TaskStatus) -> Reported {
        BTreeMap::from([(NodeId(node), BTreeMap::from([("web.1".parse().unwrap(), status)]))])
    }

    use TaskState::*;

    #[test]
    fn a_slot_that_moves_leaves_its_story() {
        let (t0, mut b) = (Instant::now(), TaskBoard::default());
        b.place(&intent(1, 1, false), t0);
        assert_eq!(told(&b, &Reported::new()), [(1, true, Assigned, 0)]);
        // A node that does not hold the slot is not asked.
        let mut reported = report(2, status(Failed, 0, 5));
        assert_eq!(told(&b, &reported), [(1, true, Assigned, 0)]);
        reported.extend(report(1, status(Running, 0, 5)));
        assert_eq!(told(&b, &reported), [(1, true, Running, 0)]);
        b.place(&intent(2, 2, true), t0);
        let reported = Reported::new();
        assert_eq!(told(&b, &reported), [(2, true, Assigned, 0), (1, false, Orphaned, 0)]);
        // It was only thought lost, and tells how it ended.
        let past = |s: TaskStatus| Past::from([("web.1".parse().unwrap(), vec![s])]);
        b.ended(NodeId(1), &past(status(Shutdown, 0, unix_s() + 1)));
        assert_eq!(told(&b, &reported), [(2, true, Assigned, 0), (1, false, Shutdown, 0)]);
        b.place(
            &Arc::new(Intent {
                revision: 3,
                ..Intent::default()
            }),
            t0,
        );
        assert_eq!(told(&b, &reported), []);
    }

    #[test]
    fn a_new_leader_hears_the_story_again_and_keeps_as_much_as_is_wanted() {
        let mut b = TaskBoard::default();
        b.place(&intent(1, 1, false), Instant::now());
        let ends: Vec<TaskStatus> = (0..8).rev().map(|n| status(Failed, n, 100 + u64::from(n))).collect();
        let past = Past::from([("web.1".parse().unwrap(), ends), ("nope.1".parse().unwrap(), vec![])]);
        let reported = report(1, status(Running, 8, 200));
        for _ in 0..2 {
            b.ended(NodeId(1), &past);
            let lines = told(&b, &reported);
            assert_eq!(
                lines,
                [
                    (1, true, Running, 8),
                    (1, false, Failed, 7),
                    (1, false, Failed, 6),
                    (1, false, Failed, 5),
                    (1, false, Failed, 4)
                ]
            );
        }
        // One that ended and is not started again is told once.
        let done = status(Complete, 8, 300);
        b.ended(NodeId(1), &Past::from([("web.1".parse().unwrap(), vec![done.clone()])]));
        let lines = told(&b, &report(1, done));
        assert_eq!(lines[..2], [(1, true, Complete, 8), (1, false, Failed, 7)]);
        // What nodes may not say is not taken from them.
        b.ended(
            NodeId(1),
            &Past::from([("web.1".parse().unwrap(), vec![status(Orphaned, 9, 400)])]),
        );
        assert_eq!(told(&b, &Reported::new())[1].2, Complete);
    }

    #[test]
    fn slots_whose_restarts_are_used_up() {
        let mut b = TaskBoard::default();
        b.place(&intent(1, 1, false), Instant::now());
        let mut gone = status(Failed, 3, 5);
        gone.exhausted = true;
        let mut reported = report(1, gone.clone());
        // Of a slot that is elsewhere it does not count.
        reported.extend(report(2, gone));
        let web: Name = "web".parse().unwrap();
        let used: Vec<_> = b.used_up(&reported).into_iter().collect();
        assert_eq!(used, [((web.clone(), NodeId(1)), SlotSet::from_iter([1]))]);
        b.stays(&web, NodeId(1), Some("no other node may take it".into()));
        let lines = b.view(&web, &reported, &Facts::default(), Instant::now());
        assert!(lines[0].message.ends_with("no other node may take it"), "{lines:?}");
    }
}
