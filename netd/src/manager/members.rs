//! Raft's members follow the log: who is a manager there becomes a learner, then a voter; who is none any more goes. The
//! leader alone does that, one step at a time, from what is, not from what was asked: so a change of leader loses nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Weak,
    time::{Duration, Instant},
};

use cluster::{
    manager::{MAX_LAG, Status},
    raft::{Conf, ConfChange, ConfStep},
    state::{Applied, Command},
};
use model::{ApiError, Code, Intent, NodeId, api::NodeHealth, intent::Role};

use super::{ASK, Manager};
use crate::{
    daemon::{Cluster, internal},
    known::Known,
    rpc::{Answer, Ask},
    store::ProposeError,
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// After a step that was not taken.
const AGAIN: Duration = Duration::from_millis(200);
/// Longest wait for a step that another one is in the way of.
const PATIENCE: Duration = Duration::from_secs(10);

/// The next step, if there is one. `reached`: managers that answer on Raft's streams. `leaving`: those on their way out.
fn next(intent: &Intent, status: &Status, reached: &BTreeSet<u64>, leaving: &BTreeSet<u64>) -> Option<ConfChange> {
    let Conf { voters, learners, .. } = &status.conf;
    let wanted: BTreeSet<u64> = intent.nodes.values().filter_map(|n| n.raft).collect();
    let step = |step, id: &u64| {
        Some(ConfChange {
            steps: vec![(step, *id)],
        })
    };
    if !status.conf.outgoing.is_empty() {
        // On its way from one configuration to the next.
        return None;
    }
    let gone = |id: &&u64| !wanted.contains(id) && **id != status.id;
    if let Some(id) = voters.iter().chain(learners).find(gone) {
        return step(ConfStep::Remove, id);
    }
    // A learner that cannot be reached would only be a name on a list.
    let may_come = |id: &&u64| reached.contains(id) && !leaving.contains(id);
    let new = |id: &&u64| !status.conf.contains(**id) && may_come(id);
    if let Some(id) = wanted.iter().find(new) {
        return step(ConfStep::Learner, id);
    }
    let lag: BTreeMap<u64, u64> = status.members.iter().filter_map(|m| Some((m.id, m.matched?))).collect();
    let ready = |id: &&u64| {
        let has = lag.get(id).copied().unwrap_or(0);
        may_come(id) && wanted.contains(id) && has > 0 && has + MAX_LAG >= status.last_index
    };
    step(ConfStep::Voter, learners.iter().find(ready)?)
}

pub(super) async fn keep(m: Weak<Manager>, known: Known) {
    let Some((mut status, mut peers)) = m.upgrade().map(|m| (m.store.watch_status(), m.peers.changed())) else {
        return;
    };
    let mut intent = known.watch();
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            r = status.changed() => if r.is_err() { return },
            r = intent.changed() => if r.is_err() { return },
            r = peers.changed() => if r.is_err() { return },
            _ = tick.tick() => {}
        }
        let Some(m) = m.upgrade() else { return };
        if !m.leads() {
            continue;
        }
        // What the log says, not what this node has heard: they are the same at the leader, and this is never behind.
        let wanted = m.store.intent().borrow().clone();
        let now = m.store.status();
        let Some(change) = next(&wanted, &now, &m.reached(), &m.leaving()) else {
            continue;
        };
        match m.store.change(change.clone(), false).await {
            Ok(conf) => {
                tracing::info!(?change, voters = ?conf.voters, learners = ?conf.learners, "the managers changed")
            }
            Err(e) => {
                tracing::debug!(?change, "the managers cannot change yet: {e}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

impl Manager {
    fn reached(&self) -> BTreeSet<u64> {
        let views = self.peers.views();
        views.into_iter().filter(|(_, v)| v.reached).map(|(id, _)| id).collect()
    }

    fn leaving(&self) -> BTreeSet<u64> {
        self.leaving.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Makes a manager of a node: the log gives it an id in Raft, the rest follows. Returns the revision.
    pub async fn promote(&self, c: &Cluster, node: NodeId) -> Result<u64, ApiError> {
        let intent = c.intent();
        let n = known_node(&intent, node)?;
        if n.role == Role::Manager {
            return Ok(intent.revision);
        }
        if c.facts().health.get(&node) != Some(&NodeHealth::Ready) {
            return Err(ApiError::new(
                Code::Conflict,
                format!(
                    "{node} ({}) is not ready: a manager that is away only makes a majority harder to reach",
                    n.hostname
                ),
                "netctl node ls",
            ));
        }
        let rpc = match self.hub.ask(node, Ask::ManagerAddress, ASK).await {
            Ok(Answer::Address { addr }) => addr.to_string(),
            Ok(Answer::Failed { why }) => {
                return Err(ApiError::new(
                    Code::Conflict,
                    format!("{node} ({}) cannot be a manager: {why}", n.hostname),
                    "ss -ltnp there, or another [cluster] listen",
                ));
            }
            Ok(_) => return Err(internal("promoting", format!("{node} gave an odd answer"))),
            Err(e) => return Err(ApiError::new(Code::Unavailable, e.to_string(), "netctl node ls")),
        };
        let command = Command::SetRole {
            node,
            role: Role::Manager,
            rpc: Some(rpc),
        };
        Ok(self.propose(command).await?.0)
    }

    /// Makes a worker of a manager other than this one: out of Raft's voters first, then out of the log's managers.
    pub async fn demote(&self, intent: &Intent, node: NodeId, force: bool) -> Result<u64, ApiError> {
        let n = known_node(intent, node)?;
        let Some(raft) = n.raft else {
            return Ok(intent.revision);
        };
        let managers = intent.nodes.values().filter(|n| n.role == Role::Manager).count();
        if managers == 1 {
            return Err(ApiError::new(
                Code::Conflict,
                format!("{node} ({}) is the last manager: the cluster would end", n.hostname),
                "netctl node promote another one first",
            ));
        }
        if !force && let Some(why) = self.too_few_without(raft) {
            return Err(would_break(node, &n.hostname, &why, FORCE));
        }
        let _out = Leaving::new(self, raft);
        let until = Instant::now() + PATIENCE;
        while self.store.status().conf.contains(raft) {
            let change = ConfChange {
                steps: vec![(ConfStep::Remove, raft)],
            };
            match self.store.change(change, force).await {
                Ok(conf) => tracing::info!(%node, voters = ?conf.voters, "a manager is out of the voters"),
                // Another change is under way, or its outcome is not known yet.
                Err(ProposeError::Unavailable(_) | ProposeError::Unknown(_))
                    if Instant::now() < until && self.leads() =>
                {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(ProposeError::Refused(r)) => return Err(would_break(node, &n.hostname, &r.message, &r.hint)),
                Err(e) => return Err(e.into()),
            }
        }
        let command = Command::SetRole {
            node,
            role: Role::Worker,
            rpc: None,
        };
        Ok(self.propose(command).await?.0)
    }

    /// Why the managers that would be left without one could not agree on anything. Raft itself misses a manager only after
    /// an election timeout; a stream that broke tells at once.
    fn too_few_without(&self, raft: u64) -> Option<String> {
        let (status, reached) = (self.store.status(), self.reached());
        let left: Vec<u64> = status.conf.voters.iter().copied().filter(|v| *v != raft).collect();
        let can = left.iter().filter(|v| **v == status.id || reached.contains(v)).count();
        let quorum = left.len() / 2 + 1;
        (!left.is_empty() && can < quorum).then(|| {
            format!(
                "of {} managers that would be left {can} can be reached, {quorum} must agree: nothing could be changed any more",
                left.len()
            )
        })
    }

    /// A manager has no log: it is to begin one under an id that has never voted.
    pub(super) async fn raft_id(&self, node: NodeId, old: u64) -> Result<u64, ApiError> {
        // The members that are asked for below are those that were agreed on last.
        self.store.settle().await?;
        if !self.leads() {
            return Err(ApiError::new(
                Code::Unavailable,
                "this manager does not lead",
                "netctl cluster members",
            ));
        }
        let mine = self.store.intent().borrow().nodes.get(&node).and_then(|n| n.raft);
        let unused = self.store.with(|state| state.raft_is_unused(old));
        if mine == Some(old) && unused && !self.store.status().conf.contains(old) {
            return Ok(old);
        }
        match self.propose(Command::RenewRaft { node, old }).await? {
            (_, Applied::Raft(id)) => Ok(id),
            (_, other) => Err(internal("an id in Raft", format!("the log answered {other:?}"))),
        }
    }
}

/// How a refusal is overruled, and what that means.
const FORCE: &str = "start the others first; --force does it all the same, and the cluster waits until they are back";

fn would_break(node: NodeId, hostname: &str, why: &str, hint: &str) -> ApiError {
    ApiError::new(
        Code::Conflict,
        format!("demoting {node} ({hostname}) would break the quorum: {why}"),
        hint,
    )
}

/// Keeps a manager from being let in again while it is taken out.
struct Leaving<'a>(&'a Manager, u64);

impl<'a> Leaving<'a> {
    fn new(m: &'a Manager, raft: u64) -> Leaving<'a> {
        m.leaving.lock().unwrap_or_else(|e| e.into_inner()).insert(raft);
        Leaving(m, raft)
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.leaving.lock().unwrap_or_else(|e| e.into_inner()).remove(&self.1);
    }
}

fn known_node(intent: &Intent, node: NodeId) -> Result<&model::intent::Node, ApiError> {
    let found = intent.nodes.get(&node);
    found.ok_or_else(|| ApiError::new(Code::NotFound, format!("there is no node {node}"), "netctl node ls"))
}

#[cfg(test)]
mod tests {
    use cluster::manager::MemberStatus;
    use model::intent::{Availability, Node};

    use super::*;

    fn intent(raft: &[u64]) -> Intent {
        let mut i = Intent::default();
        for (n, raft) in (1u64..).zip(raft) {
            let node = Node {
                hostname: format!("host{n}"),
                role: Role::Manager,
                availability: Availability::Active,
                key: Vec::new(),
                down: false,
                rpc: None,
                raft: Some(*raft),
                labels: Default::default(),
                max_tasks: None,
                machine: Default::default(),
            };
            i.nodes.insert(NodeId(n), node);
        }
        i
    }

    fn status(voters: &[u64], learners: &[u64], matched: u64) -> Status {
        let members = voters.iter().chain(learners).map(|id| MemberStatus {
            id: *id,
            voter: voters.contains(id),
            heard: true,
            round_trip: None,
            matched: Some(matched),
            snapshot: false,
        });
        Status {
            id: 1,
            leads: true,
            last_index: 5_000,
            members: members.collect(),
            conf: Conf {
                voters: voters.to_vec(),
                learners: learners.to_vec(),
                ..Conf::default()
            },
            ..Status::default()
        }
    }

    #[test]
    fn one_step_at_a_time() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let (all, none) = (set(&[1, 2, 3, 4]), set(&[]));
        let is = |got: Option<ConfChange>, want: Option<(ConfStep, u64)>| {
            assert_eq!(got.map(|c| c.steps), want.map(|w| vec![w]));
        };
        let three = intent(&[1, 2, 3]);
        is(next(&three, &status(&[1, 2, 3], &[], 5_000), &all, &none), None);
        is(
            next(&three, &status(&[1], &[], 0), &all, &none),
            Some((ConfStep::Learner, 2)),
        );
        // Who cannot be reached waits, and holds nobody up.
        is(
            next(&three, &status(&[1], &[], 0), &set(&[3]), &none),
            Some((ConfStep::Learner, 3)),
        );
        is(next(&three, &status(&[1], &[], 0), &none, &none), None);
        is(
            next(&three, &status(&[1, 2], &[3], 4_900), &all, &none),
            Some((ConfStep::Voter, 3)),
        );
        is(next(&three, &status(&[1, 2], &[3], 3_000), &all, &none), None);
        is(next(&three, &status(&[1, 2], &[3], 0), &all, &none), None);
        // Who is on the way out is not let in again, who is gone from the log goes, also as a learner.
        is(next(&three, &status(&[1, 2], &[], 5_000), &all, &set(&[3])), None);
        is(
            next(&three, &status(&[1, 2, 4], &[], 5_000), &all, &none),
            Some((ConfStep::Remove, 4)),
        );
        is(
            next(&three, &status(&[1, 2], &[4], 0), &all, &none),
            Some((ConfStep::Remove, 4)),
        );
        // A manager with a new log: the old id goes, the new one comes.
        let renewed = intent(&[1, 2, 4]);
        is(
            next(&renewed, &status(&[1, 2, 3], &[], 5_000), &all, &none),
            Some((ConfStep::Remove, 3)),
        );
        is(
            next(&renewed, &status(&[1, 2], &[], 5_000), &all, &none),
            Some((ConfStep::Learner, 4)),
        );
    }
}
