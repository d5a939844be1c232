//! Who leads, and how the lead is handed over.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use cluster::manager::Input;
use model::{ApiError, Code, Intent, NodeId, intent::Node};
use tokio::sync::watch;

use super::Manager;
use crate::rpc::Leader;

/// Longest wait for another manager to lead.
const HAND_OVER: Duration = Duration::from_secs(5);
/// Until the heir is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// The same when netd stops: somebody will be elected anyway.
const IN_PASSING: Duration = Duration::from_millis(1500);

/// `reach`: the intent, with managers where they can be reached.
pub(super) async fn follow(m: Weak<Manager>, mut reach: watch::Receiver<Arc<Intent>>) {
    let Some(mut status) = m.upgrade().map(|m| m.store.watch_status()) else {
        return;
    };
    loop {
        let r = tokio::select! {
            r = status.changed() => r,
            r = reach.changed() => r,
        };
        let Some(m) = m.upgrade().filter(|_| r.is_ok()) else {
            return;
        };
        status.mark_unchanged();
        let now = reach.borrow_and_update().clone();
        m.look_who_leads(&now);
    }
}

/// The manager with an id in Raft.
pub(super) fn by_raft(intent: &Intent, raft: u64) -> Option<(NodeId, &Node)> {
    let found = intent.nodes.iter().find(|(_, n)| n.raft == Some(raft));
    found.map(|(id, n)| (*id, n))
}

impl Manager {
    pub(super) fn look_who_leads(&self, intent: &Intent) {
        let status = self.store.status();
        let other = || {
            let (node, n) = by_raft(intent, status.leader?)?;
            let addr = n.rpc.clone()?;
            Some(Leader::Other { node, addr })
        };
        let now = match status.leads {
            true => Leader::Me,
            false => other().unwrap_or_default(),
        };
        self.leader.send_if_modified(|old| {
            let changed = *old != now;
            *old = now;
            changed
        });
    }

    /// Who leads; its changes.
    pub fn leader(&self) -> watch::Receiver<Leader> {
        self.leader.subscribe()
    }

    /// Whether this manager leads.
    pub fn leads(&self) -> bool {
        *self.leader.borrow() == Leader::Me
    }

    /// Hands the lead to a manager, or to the one that is nearest to having everything. Returns who leads.
    pub async fn transfer(&self, intent: &Intent, to: Option<NodeId>) -> Result<NodeId, ApiError> {
        let raft = match to {
            Some(node) => Some(self.voter(intent, node)?),
            None => None,
        };
        if raft.is_some_and(|r| r == self.raft()) {
            return to.ok_or_else(|| ApiError::new(Code::Internal, "the leader cannot succeed itself", ""));
        }
        if raft.or_else(|| self.heir()).is_none() {
            return Err(ApiError::new(
                Code::Conflict,
                "there is no other manager that could lead",
                "netctl cluster members, and start the others; or netctl node promote another one",
            ));
        }
        if !self.hand_over(raft, Instant::now() + HAND_OVER).await {
            return Err(ApiError::new(
                Code::Unavailable,
                format!("the lead was not taken over within {} s", HAND_OVER.as_secs()),
                "netctl cluster members (is it reached, has it the whole log?)",
            ));
        }
        let leader = self.store.status().leader;
        let node = leader.and_then(|l| by_raft(intent, l)).map(|(id, _)| id);
        node.ok_or_else(|| {
            ApiError::new(
                Code::Unavailable,
                "the lead was given away, and nobody is known to have it yet",
                "netctl cluster members",
            )
        })
    }

    fn voter(&self, intent: &Intent, node: NodeId) -> Result<u64, ApiError> {
        let raft = intent.nodes.get(&node).and_then(|n| n.raft);
        raft.filter(|r| self.store.status().conf.voters.contains(r))
            .ok_or_else(|| {
                ApiError::new(
                    Code::Conflict,
                    format!("{node} is no manager with a vote"),
                    format!("netctl node promote {node}"),
                )
            })
    }

    /// The voter that is heard and has most of the log.
    fn heir(&self) -> Option<u64> {
        let status = self.store.status();
        let able = status.members.iter().filter(|m| m.voter && m.heard);
        able.max_by_key(|m| m.matched).map(|m| m.id)
    }

    /// Hands over to one manager, or to whoever can take it.
    async fn hand_over(&self, to: Option<u64>, until: Instant) -> bool {
        let mut status = self.store.watch_status();
        loop {
            // Raft gives up after an election timeout, e.g. when the heir was busy writing, or is dead and not missed yet:
            // then one is asked again.
            if let Some(to) = to.or_else(|| self.heir()) {
                self.store.input(Input::Transfer { to });
            }
            let left = until.saturating_duration_since(Instant::now());
            let done = status.wait_for(|s| !s.leads && s.leader.is_some());
            match tokio::time::timeout(left.min(ASK_AGAIN), done).await {
                Ok(done) => return done.is_ok(),
                Err(_) if left > ASK_AGAIN => {}
                Err(_) => return false,
            }
        }
    }

    /// Why nothing can be changed now. `last`: what the last try came to.
    pub fn no_leader(&self, last: &str) -> ApiError {
        let (status, peers) = (self.store.status(), self.peers.views());
        let heard = |id: &&u64| **id == status.id || peers.get(id).is_some_and(|p| p.reached);
        let (voters, quorum) = (status.conf.voters.len(), status.conf.quorum());
        let reached = status.conf.voters.iter().filter(heard).count();
        let mut message =
            format!("the managers have no leader: {reached} of {voters} voters can be reached, {quorum} must agree");
        if !last.is_empty() {
            message.push_str(&format!(" (last tried: {last})"));
        }
        let hint = match reached < quorum {
            true => {
                "netctl cluster members, and start the managers that are away; if they are lost for good: netctl cluster init --force-new"
            }
            false => "again in a moment; netctl cluster members",
        };
        ApiError::new(Code::Unavailable, message, hint)
    }

    /// Hands the lead to whoever can take it, before this manager stops.
    pub async fn step_down(&self) {
        if self.leads() && self.heir().is_some() {
            let done = self.hand_over(None, Instant::now() + IN_PASSING).await;
            tracing::info!(done, "the lead is handed over");
        }
    }
}
