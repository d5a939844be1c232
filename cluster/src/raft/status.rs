//! What a peer knows of itself and, when it leads, of the others.

use raft::{ProgressState, StateRole};

use super::{Entry, HardState, Peer, convert};

/// What a peer knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Term.
    pub term: u64,
    /// Who leads, if known.
    pub leader: Option<u64>,
    /// Whether this node does.
    pub leads: bool,
    /// Last entry, committed or not.
    pub last_index: u64,
    /// Last entry that is committed.
    pub commit: u64,
    /// Last entry that was applied.
    pub applied: u64,
    /// Voters.
    pub voters: Vec<u64>,
    /// Learners.
    pub learners: Vec<u64>,
}

/// How far another member has come, as its leader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Raft id.
    pub id: u64,
    /// Last entry that it is known to have written.
    pub matched: u64,
    /// It waits for a snapshot that is under way.
    pub snapshot: bool,
}

impl Peer {
    /// Raft id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Term, leader and so on.
    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        let conf = self.conf();
        Status {
            term: raft.term,
            leader: self.leader(),
            leads: self.is_leader(),
            last_index: raft.raft_log.last_index(),
            commit: raft.raft_log.committed,
            applied: raft.raft_log.applied(),
            voters: conf.voters.clone(),
            learners: conf.learners.clone(),
        }
    }

    /// Term.
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// Who leads, if known.
    pub fn leader(&self) -> Option<u64> {
        let id = self.node.raft.leader_id;
        (id != 0).then_some(id)
    }

    /// What must not be forgotten, as of the last write.
    pub fn hard(&self) -> HardState {
        self.node.store().hard
    }

    /// Last entry that is known to be committed.
    pub fn commit(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Last entry, committed or not.
    pub fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    /// An entry that is written and not forgotten yet; none while a leader's snapshot is on its way to the disk, because
    /// it takes the place of them all, also of what was never agreed on.
    pub fn entry(&self, index: u64) -> Option<Entry> {
        if self.node.raft.raft_log.unstable.snapshot.is_some() {
            return None;
        }
        self.node.store().entry(index).and_then(convert::entry_out)
    }

    /// Whether this node leads.
    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether this node leads and has committed an entry of its term: before that it does not know what is committed.
    pub fn is_settled(&self) -> bool {
        self.is_leader() && self.node.raft.commit_to_current_term()
    }

    /// Whether a change of voters is in the log and not applied yet, or a new leader cannot know that none is.
    pub fn changing(&self) -> bool {
        self.node.raft.has_pending_conf()
    }

    /// To whom leadership is being handed over.
    pub fn handing_to(&self) -> Option<u64> {
        self.node.raft.lead_transferee
    }

    /// Whether [`Peer::ready`] has something.
    pub fn has_ready(&self) -> bool {
        self.writing.is_none() && (self.summons.is_some() || self.node.has_ready())
    }

    /// How far the others have come, by id; only a leader knows.
    pub fn progress(&self) -> Vec<Progress> {
        if !self.is_leader() {
            return Vec::new();
        }
        let all = self.node.raft.prs().iter();
        let mut out: Vec<Progress> = all
            .filter(|(id, _)| **id != self.id)
            .map(|(id, p)| Progress {
                id: *id,
                matched: p.matched,
                snapshot: p.state == ProgressState::Snapshot,
            })
            .collect();
        out.sort_unstable_by_key(|p| p.id);
        out
    }
}
