//! Tasks of this node, as their runner told them.

use std::collections::{BTreeMap, VecDeque};

use model::{
    ApiError, Code, EndpointId, Intent, NodeId, Shared,
    api::{TaskState, TaskStatus},
    intent::Placed,
};

use super::{follows, unix_s};

/// Ended tasks that a report to the managers tells of at most, the newest.
const TOLD: usize = 256;
/// Longest message that is kept, characters.
const MESSAGE: usize = 300;

/// What this node knows of its tasks; in memory alone, the runner tells it again.
#[derive(Debug, Default)]
pub struct OwnTasks {
    now: BTreeMap<EndpointId, TaskStatus>,
    past: BTreeMap<EndpointId, VecDeque<TaskStatus>>,
}

impl OwnTasks {
    /// As last told.
    pub fn get(&self, id: &EndpointId) -> Option<&TaskStatus> {
        self.now.get(id)
    }

    /// The file with a task's output, also of one that has ended.
    pub fn log(&self, id: &EndpointId) -> Option<&str> {
        let past = self.past.get(id).into_iter().flatten();
        self.now.get(id).into_iter().chain(past).find_map(|t| t.log.as_deref())
    }

    /// Takes what a runner tells; `keep` ended ones are kept of a slot. One that makes no sense after the last one is
    /// refused.
    pub fn take(&mut self, id: &EndpointId, mut status: TaskStatus, keep: usize) -> Result<(), ApiError> {
        if !status.state.is_told_by_nodes() {
            return Err(ApiError::new(
                Code::Invalid,
                format!("{id}: that a task is {:?} is for managers to say", status.state),
                "accepted, preparing, ready, starting, running, complete, shutdown, failed or rejected",
            ));
        }
        status.message = status.message.chars().take(MESSAGE).collect();
        status.at = unix_s();
        let before = self.now.get(id);
        if let Some(before) = before {
            if !follows(before, &status) {
                return Err(ApiError::new(
                    Code::Conflict,
                    format!("{id} was {:?}: it cannot be {:?} now", before.state, status.state),
                    "another number of restarts, when it is another task in the same slot",
                ));
            }
            if (before.state, before.restarts) == (status.state, status.restarts) {
                status.at = before.at;
            }
        }
        if status.state.is_end() {
            let past = self.past.entry(id.clone()).or_default();
            if before.is_some_and(|b| b.at == status.at && b.state == status.state) {
                past.pop_front();
            }
            past.push_front(status.clone());
            past.truncate(keep);
        }
        self.now.insert(id.clone(), status);
        Ok(())
    }

    /// Drops what belongs to services that are gone, and what was last told of slots that are elsewhere by now.
    pub fn prune(&mut self, intent: &Intent, me: NodeId) {
        let service = |id: &EndpointId| id.slot().is_some_and(|(s, _)| intent.services.contains_key(&s));
        self.past.retain(|id, _| service(id));
        self.now
            .retain(|id, t| service(id) && (!t.state.is_end() || here(intent, me, id)));
    }

    /// What managers are told: every task placed here, also those that no runner has taken yet, and those that ended.
    pub fn report(&self, intent: &Intent, me: NodeId) -> (BTreeMap<EndpointId, TaskStatus>, Past) {
        let mut now = BTreeMap::new();
        for (name, nodes) in intent.placements.iter().chain(&intent.leaving) {
            let slots = nodes.get(&me).into_iter().flat_map(|s| s.iter());
            for id in slots.map(|slot| EndpointId::task(name, slot)) {
                let status = self.now.get(&id).cloned().unwrap_or_else(|| TaskStatus {
                    message: "no netd-run has taken it yet".to_owned(),
                    ..TaskStatus::of(TaskState::Accepted)
                });
                now.insert(id, status);
            }
        }
        let mut past: Vec<(&EndpointId, &TaskStatus)> = self
            .past
            .iter()
            .flat_map(|(id, p)| p.iter().map(move |s| (id, s)))
            .collect();
        past.sort_by_key(|(_, s)| std::cmp::Reverse(s.at));
        let mut told = Past::new();
        for (id, status) in past.into_iter().take(TOLD) {
            told.entry(id.clone()).or_default().push(status.clone());
        }
        (now, told)
    }
}

/// Ended tasks by slot, the newest first.
pub type Past = BTreeMap<EndpointId, Vec<TaskStatus>>;

fn here(intent: &Intent, me: NodeId, id: &EndpointId) -> bool {
    let placed = |map: &BTreeMap<model::Name, Shared<Placed>>| {
        let (name, slot) = id.slot()?;
        map.get(&name)?.get(&me).map(|s| s.contains(slot))
    };
    placed(&intent.placements) == Some(true) || placed(&intent.leaving) == Some(true)
}

#[cfg(test)]
mod tests {
    use model::api::TaskState::*;

    use super::*;

    fn status(state: TaskState, restarts: u32, message: &str) -> TaskStatus {
        TaskStatus {
            restarts,
            message: message.to_owned(),
            ..TaskStatus::of(state)
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let id: EndpointId = "web.1".parse().unwrap();
        let mut own = OwnTasks::default();
        let mut take = |state, restarts| own.take(&id, status(state, restarts, ""), 5).map_err(|e| e.code);
        assert_eq!(take(Orphaned, 0), Err(Code::Invalid));
        assert_eq!(take(Assigned, 0), Err(Code::Invalid));
        for state in [Preparing, Starting, Running, Running] {
            assert_eq!(take(state, 0), Ok(()), "{state:?}");
        }
        assert_eq!(take(Starting, 0), Err(Code::Conflict), "it runs already");
        assert_eq!(take(Failed, 0), Ok(()));
        assert_eq!(take(Running, 0), Err(Code::Conflict), "it has ended");
        assert_eq!(take(Complete, 0), Err(Code::Conflict));
        assert_eq!(take(Starting, 1), Ok(()), "another one");
        assert_eq!(take(Complete, 1), Ok(()));
        assert_eq!(take(Preparing, 0), Ok(()), "a new beginning");
    }

    #[test]
    fn ends_are_kept_as_many_as_are_wanted() {
        let id: EndpointId = "web.1".parse().unwrap();
        let mut own = OwnTasks::default();
        for n in 0..9 {
            own.take(&id, status(Running, n, ""), 3).unwrap();
            own.take(&id, status(Failed, n, "first"), 3).unwrap();
            own.take(&id, status(Failed, n, "again"), 3).unwrap();
        }
        let mut intent = Intent::default();
        let (now, past) = own.report(&intent, NodeId(1));
        assert!(now.is_empty(), "nothing is placed here");
        let told: Vec<(u32, &str)> = past[&id].iter().map(|s| (s.restarts, s.message.as_str())).collect();
        assert_eq!(told, [(8, "again"), (7, "again"), (6, "again")]);
        let slots = model::intent::SlotSet::from_iter([1, 2]);
        let web: model::Name = "web".parse().unwrap();
        intent
            .placements
            .insert(web, BTreeMap::from([(NodeId(1), slots)]).into());
        let (now, _) = own.report(&intent, NodeId(1));
        let told: Vec<_> = now.values().map(|s| s.state).collect();
        assert_eq!(told, [Failed, Accepted]);
        own.prune(&intent, NodeId(1));
        assert!(own.report(&intent, NodeId(1)).1.is_empty(), "its service is gone");
    }
}
