use std::time::Duration;

use crate::{
    log::{self, LogError},
    raft::{Conf, ConfChange, Message, RaftError},
    state::{CodecError, Command, Outcome, SnapshotError},
};

/// Settings of a manager.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// When snapshots are made.
    pub limits: Limits,
    /// The log's.
    pub log: log::Options,
}

/// When a snapshot is made, and what is kept behind it. May change while the manager runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// After so many entries, from 1. Default 10,000.
    pub entries: u64,
    /// Or so many octets of commands, from 1. Default 16 MiB.
    pub octets: usize,
    /// Entries kept behind a snapshot, for managers that lag a little; who lags more gets the snapshot. Default 5,000.
    pub retain: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entries: 10_000,
            octets: 16 << 20,
            retain: 5_000,
        }
    }
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// The time that [`Manager::next`](super::Manager::next) told has come.
    Tick,
    /// A message of another manager.
    Message {
        /// Raft id that its certificate stands for.
        from: u64,
        /// What it says.
        message: Box<Message>,
    },
    /// A command is to be agreed on; answered by [`Output::Answer`].
    Propose {
        /// Random id: the same one sent again, here or to another manager, is applied once.
        request: u128,
        /// What to do.
        command: Box<Command>,
    },
    /// A read wants to see all that was acknowledged until now; answered by [`Output::Read`].
    Read {
        /// Chosen by the asker.
        id: u64,
    },
    /// The members are to change; answered by [`Output::Changed`].
    Change {
        /// Chosen by the asker.
        request: u128,
        /// How. One step changes it at once, several go through joint consensus.
        change: ConfChange,
        /// Also if too few of the voters that would be left can be heard.
        force: bool,
    },
    /// Leadership is to be handed to another voter. Succeeds or not within an election timeout: the status tells.
    Transfer {
        /// Raft id.
        to: u64,
    },
    /// A message to another manager was lost.
    Unreachable {
        /// Raft id.
        id: u64,
    },
    /// A snapshot was brought to another manager, or could not be.
    SnapshotSent {
        /// Raft id.
        id: u64,
        /// It has it.
        arrived: bool,
    },
    /// A round trip to another manager was measured.
    RoundTrip {
        /// Raft id.
        id: u64,
        /// How long it took.
        took: Duration,
    },
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send this, after all that was handed out before it. It may be lost, and may be sent at once: what must be durable
    /// before it is.
    Send(Message),
    /// What became of a request.
    Answer {
        /// Which.
        request: u128,
        /// What was agreed on, durable and applied; or why there is none.
        answer: Result<Outcome, Unanswered>,
    },
    /// A read may be answered from the state as it is now.
    Read {
        /// Which.
        id: u64,
        /// Index of the last entry in the state.
        answer: Result<u64, Unanswered>,
    },
    /// What became of a change of the members.
    Changed {
        /// Which.
        request: u128,
        /// Who is a member now.
        answer: Result<Conf, Unanswered>,
    },
}

/// Why something that was asked for has no answer of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Another manager leads, or nobody does. Nothing was changed.
    #[error("this manager does not lead; try: the leader (netctl cluster members)")]
    NotLeader {
        /// Raft id of the one that does, if known.
        leader: Option<u64>,
    },
    /// Leadership changed while it was under way: it may come true or not. The same request may be sent again.
    #[error("the leader changed while the change was under way, it may have been made; try: again")]
    Unknown {
        /// Raft id of the one that leads now, if known.
        leader: Option<u64>,
    },
    /// Too much waits. Nothing was changed.
    #[error("too many changes wait for a majority of the managers; try: again, or netctl cluster members")]
    Overloaded,
    /// This manager's disk is full. Nothing was changed.
    #[error("the disk of the leader is full; try: free some space there")]
    DiskFull,
    /// The command is too long. Nothing was changed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The members cannot change so. Nothing was changed.
    #[error("{why}; try: {hint}")]
    Members {
        /// What and why.
        why: String,
        /// What to try.
        hint: String,
    },
}

/// Why a manager cannot go on. After an error of [`Manager::work`](super::Manager::work) nothing is known about what is on
/// its disk: the process must exit.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Raft.
    #[error(transparent)]
    Raft(#[from] RaftError),
    /// The state machine's snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// An entry of the log.
    #[error(transparent)]
    Command(#[from] CodecError),
    /// It failed before.
    #[error("this manager has failed before; try: start netd again")]
    Failed,
}

/// What a manager knows of itself and the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Its own Raft id.
    pub id: u64,
    /// Term.
    pub term: u64,
    /// Raft id of the leader, if known.
    pub leader: Option<u64>,
    /// Whether it leads.
    pub leads: bool,
    /// Last entry, committed or not.
    pub last_index: u64,
    /// Last entry that is known to be committed.
    pub commit: u64,
    /// Last entry that the state contains.
    pub applied: u64,
    /// Who is a member.
    pub conf: Conf,
    /// The other members, by Raft id.
    pub members: Vec<MemberStatus>,
    /// Its disk is full: nothing can be changed through it until there is room.
    pub disk_full: bool,
    /// Length of a tick, ms: an election comes after [`ELECTION_TICKS`](super::ELECTION_TICKS) to twice as many of them
    /// without a leader.
    pub tick_ms: u64,
}

/// Another member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Raft id.
    pub id: u64,
    /// It votes.
    pub voter: bool,
    /// It was heard within the last election timeout. Followers hear from their leader alone.
    pub heard: bool,
    /// Median of the last round trips, if measured.
    pub round_trip: Option<Duration>,
    /// Last entry that it is known to have written; leaders alone know.
    pub matched: Option<u64>,
    /// It waits for a snapshot that is under way; leaders alone know.
    pub snapshot: bool,
}

impl Conf {
    /// How many voters must agree. While the members change through joint consensus: of the new ones.
    pub fn quorum(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// How many voters may be lost before nothing can be agreed on.
    pub fn tolerated(&self) -> usize {
        self.voters.len().saturating_sub(self.quorum())
    }
}
