//! When the leader takes the next step of a change of the CA or of the gossip keys: what is to be done, from what nodes
//! have reported. Nothing here has a clock.

use std::{collections::BTreeMap, time::Duration};

use model::{api::NodeHealth, ids::NodeId};
use serde::{Deserialize, Serialize};

use super::{CaPhase, ClusterSecrets, GossipPhase, IdentityError};

/// Gossip keys are changed this often when nothing else is set (Swarm's figure).
pub const GOSSIP_EVERY: Duration = Duration::from_secs(12 * 3600);
/// A phase of a change of the CA does not wait longer for nodes that should answer and do not: they come back by trading
/// in their old certificate.
pub const CA_DEADLINE: Duration = Duration::from_secs(3600);
/// The same for gossip keys. A node that lacks the new one gets it with its next stream.
pub const GOSSIP_DEADLINE: Duration = Duration::from_secs(30);

/// What a node has reported that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Holding {
    /// Fingerprints of the roots that it trusts.
    pub roots: Vec<String>,
    /// Fingerprint of the root that its certificate is from.
    pub issuer: String,
    /// End of its certificate, seconds since 1970.
    pub until: u64,
    /// Numbers of its gossip keys, the one that it seals with first.
    pub gossip: Vec<u32>,
}

/// A node as the leader sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// By gossip. A node that the log holds for dead counts as [`NodeHealth::Down`].
    pub health: NodeHealth,
    /// Its last report.
    pub holds: Option<Holding>,
}

/// How often, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Gossip keys are changed this often.
    pub gossip_every: Duration,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The new root signs.
    CaRenew,
    /// The old root counts for nothing.
    CaFinish,
    /// A new gossip key, for all to open with.
    GossipReceive,
    /// The new gossip key seals.
    GossipSend,
    /// The change of gossip keys is over.
    GossipFinish,
}

fn passed(now_ms: u64, since_ms: u64, limit: Duration) -> bool {
    u128::from(now_ms.saturating_sub(since_ms)) >= limit.as_millis()
}

/// Nodes that a change of the CA waits for.
pub fn ca_waits(s: &ClusterSecrets, nodes: &BTreeMap<NodeId, Seen>) -> Vec<NodeId> {
    let Some(change) = &s.ca.change else {
        return Vec::new();
    };
    let wanted = s.ca.coming().fingerprint();
    let done = |h: &Holding| match change.phase {
        CaPhase::Trust => h.roots.contains(&wanted),
        CaPhase::Renew => h.issuer == wanted,
    };
    // A daemon that is silent on a living host is restarted soon: it is waited for.
    let waits = |s: &Seen| s.health != NodeHealth::Down && !s.holds.as_ref().is_some_and(done);
    nodes.iter().filter(|(_, s)| waits(s)).map(|(id, _)| *id).collect()
}

/// Nodes that a change of the gossip keys waits for.
pub fn gossip_waits(s: &ClusterSecrets, nodes: &BTreeMap<NodeId, Seen>) -> Vec<NodeId> {
    let newest = s.gossip.newest();
    let done = |h: &Holding| match s.gossip.phase {
        Some(GossipPhase::Receive) => h.gossip.contains(&newest),
        Some(GossipPhase::Send) => h.gossip.first() == Some(&newest),
        None => true,
    };
    let living = |h| matches!(h, NodeHealth::Ready | NodeHealth::Unknown);
    let waits = |s: &Seen| living(s.health) && !s.holds.as_ref().is_some_and(done);
    nodes.iter().filter(|(_, s)| waits(s)).map(|(id, _)| *id).collect()
}

/// The next step, if one is due. `removed_at`: the last removal of a node; `now_ms`: log time.
pub fn next(
    s: &ClusterSecrets,
    removed_at: u64,
    now_ms: u64,
    nodes: &BTreeMap<NodeId, Seen>,
    policy: &Policy,
) -> Option<Step> {
    let g = &s.gossip;
    let gossip_ready = || gossip_waits(s, nodes).is_empty() || passed(now_ms, g.since_ms, GOSSIP_DEADLINE);
    let gossip = match g.phase {
        None if removed_at > g.after => Some(Step::GossipReceive),
        None if passed(now_ms, g.made_ms, policy.gossip_every) => Some(Step::GossipReceive),
        None => None,
        Some(GossipPhase::Receive) => gossip_ready().then_some(Step::GossipSend),
        Some(GossipPhase::Send) => gossip_ready().then_some(Step::GossipFinish),
    };
    if gossip.is_some() {
        return gossip;
    }
    let change = s.ca.change.as_ref()?;
    let ready = ca_waits(s, nodes).is_empty() || passed(now_ms, change.since_ms, CA_DEADLINE);
    ready.then_some(match change.phase {
        CaPhase::Trust => Step::CaRenew,
        CaPhase::Renew => Step::CaFinish,
    })
}

impl ClusterSecrets {
    /// Takes a step that [`next`] has named.
    pub fn step(&mut self, step: Step, removed_at: u64, now_ms: u64) -> Result<(), IdentityError> {
        match step {
            Step::CaRenew => self.ca.renew(now_ms),
            Step::CaFinish => self.ca.finish(),
            Step::GossipReceive => self.gossip.receive(removed_at, now_ms)?,
            Step::GossipSend => self.gossip.send(now_ms),
            Step::GossipFinish => self.gossip.finish(),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
