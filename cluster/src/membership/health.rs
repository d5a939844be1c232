//! What becomes of SWIM's verdicts: a death is confirmed by a direct ping before it counts (CONTRACTS, Death).
//!
//! SWIM says dead -> connect to the peer's gossip port over TCP: refused = its daemon is down, its host lives; a pong =
//! SWIM was wrong; silence = the host is down. The last answer stands until the next one; what is in doubt is asked
//! again and again.

use std::{collections::BTreeMap, time::Duration};

use model::{api::NodeHealth, ids::NodeId};

/// How long one try of a direct ping may take.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(450);
/// Tries of a direct ping before it counts as silence.
pub const PROBE_TRIES: u32 = 2;
/// Pause between direct pings of a node that SWIM holds for dead.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a node that lost most of the others within this time waits before it believes that they, not it, are gone.
const DISTRUST: Duration = Duration::from_secs(15);

/// How a direct ping ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered over mutual TLS.
    Pong,
    /// The host answered, its daemon did not.
    Refused,
    /// No answer within [`PROBE_TRIES`] times [`PROBE_TIMEOUT`].
    Silent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peer {
    health: NodeHealth,
    /// SWIM holds it for dead: when to ping it directly next; none while a ping is under way.
    doubt: Option<Option<Duration>>,
    /// Since when it is silent.
    silent: Option<Duration>,
}

/// The health of all nodes as this one sees it.
#[derive(Debug, Clone)]
pub struct Watch {
    me: NodeId,
    peers: BTreeMap<NodeId, Peer>,
}

impl Watch {
    /// Begins with what was seen last: a restart withdraws nothing.
    pub fn new(me: NodeId, last: &BTreeMap<NodeId, NodeHealth>) -> Self {
        let peer = |h: &NodeHealth| Peer {
            health: *h,
            doubt: None,
            silent: None,
        };
        let peers = last.iter().filter(|(id, _)| **id != me);
        Watch {
            me,
            peers: peers.map(|(id, h)| (*id, peer(h))).collect(),
        }
    }

    /// The nodes that there are; others are forgotten, new ones are unknown until they are seen. Those that were ready
    /// or unsure before and that SWIM has not met must be handed to [`Watch::down`], to be asked directly.
    pub fn nodes(&mut self, ids: impl Fn(NodeId) -> bool, all: impl Iterator<Item = NodeId>) {
        self.peers.retain(|id, _| ids(*id));
        for id in all.filter(|id| *id != self.me) {
            self.peers.entry(id).or_insert(Peer {
                health: NodeHealth::Unknown,
                doubt: None,
                silent: None,
            });
        }
    }

    /// SWIM has heard from a node.
    pub fn up(&mut self, node: NodeId) {
        if let Some(p) = self.peers.get_mut(&node) {
            *p = Peer {
                health: NodeHealth::Ready,
                doubt: None,
                silent: None,
            };
        }
    }

    /// SWIM holds a node for dead: it will be pinged directly.
    pub fn down(&mut self, now: Duration, node: NodeId) {
        if let Some(p) = self.peers.get_mut(&node)
            && p.doubt.is_none()
        {
            p.doubt = Some(Some(now));
        }
    }

    /// Nodes to ping now; each must be followed by [`Watch::pinged`].
    pub fn due(&mut self, now: Duration) -> Vec<NodeId> {
        let due = |p: &Peer| matches!(p.doubt, Some(Some(at)) if at <= now);
        let mut out = Vec::new();
        for (id, p) in self.peers.iter_mut().filter(|(_, p)| due(p)) {
            p.doubt = Some(None);
            out.push(*id);
        }
        out
    }

    /// A node cannot be pinged now, because its address is not known yet.
    pub fn skipped(&mut self, now: Duration, node: NodeId) {
        if let Some(p) = self.peers.get_mut(&node)
            && p.doubt.is_some()
        {
            p.doubt = Some(Some(now + AGAIN));
        }
    }

    /// When a ping is due.
    pub fn next(&self) -> Option<Duration> {
        self.peers.values().filter_map(|p| p.doubt.flatten()).min()
    }

    /// How a direct ping ended.
    pub fn pinged(&mut self, now: Duration, node: NodeId, outcome: Outcome) {
        let Some(p) = self.peers.get_mut(&node) else {
            return;
        };
        if p.doubt.is_none() {
            // SWIM has heard from it meanwhile.
            return;
        }
        p.doubt = Some(Some(now + AGAIN));
        p.silent = match outcome {
            Outcome::Silent => Some(p.silent.unwrap_or(now)),
            _ => None,
        };
        match outcome {
            Outcome::Pong => p.health = NodeHealth::Ready,
            Outcome::Refused => p.health = NodeHealth::DaemonDown,
            Outcome::Silent => self.settle(now),
        }
    }

    /// Silent nodes are down, unless most of the others fell silent at once: then it is likelier that this node is cut
    /// off, and it waits.
    fn settle(&mut self, now: Duration) {
        let distrusts = self.distrusts(now);
        for p in self.peers.values_mut() {
            if let Some(since) = p.silent
                && (!distrusts || now.saturating_sub(since) >= DISTRUST)
            {
                p.health = NodeHealth::Down;
            }
        }
    }

    /// Whether most of the other nodes, and at least two, fell silent at once.
    pub fn distrusts(&self, now: Duration) -> bool {
        let fresh = |p: &&Peer| p.silent.is_some_and(|s| now.saturating_sub(s) < DISTRUST);
        let lost = self.peers.values().filter(fresh).count();
        // Nodes that have long been dead say nothing about this one.
        let answers = |p: &&Peer| p.silent.is_none() && matches!(p.health, NodeHealth::Ready | NodeHealth::DaemonDown);
        let rest = self.peers.values().filter(answers).count();
        lost >= 2 && lost > rest
    }

    /// Health of all nodes, this one included.
    pub fn health(&self) -> BTreeMap<NodeId, NodeHealth> {
        let others = self.peers.iter().map(|(id, p)| (*id, p.health));
        others.chain([(self.me, NodeHealth::Ready)]).collect()
    }

    /// Nodes that SWIM (`met`) does not hold for alive.
    pub fn unmet(&self, met: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        let ids = self.peers.keys().copied();
        ids.filter(|id| !met(*id)).collect()
    }
}
