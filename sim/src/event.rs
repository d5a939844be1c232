//! What happens next.

use std::{cmp::Ordering, rc::Rc};

use cluster::{
    manager::Unanswered,
    raft::Message,
    rows::{Page, Summary},
    state::{Command, Outcome},
};
use model::{NodeId, intent::IntentDelta, row::RowKey};

/// What a client sends.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    /// A command.
    Propose(Box<Command>),
    /// A read of a register.
    Read(u8),
    /// Under which id in Raft a node is now.
    Raft(NodeId),
}

/// What a client is told.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    /// What became of its command.
    Done(Outcome),
    /// What it read, and where in the log.
    Read(u64, u64),
    /// Why there is no answer.
    Not(Unanswered),
    /// The host is no manager.
    Nobody,
}

/// What agents send each other.
#[derive(Debug, Clone)]
pub(crate) enum Packet {
    /// SWIM.
    Swim(Rc<[u8]>),
    /// Rows.
    Rows(Rc<[u8]>),
    /// Begins a comparison (over a stream).
    Compare(Summary),
    /// What the other one holds of the owners that differ.
    Pages(Vec<Page>),
    /// Rows that the other one lacks, and those wanted of it.
    Lacks(Rc<[u8]>, Vec<(NodeId, RowKey)>),
    /// The rest.
    Rest(Rc<[u8]>),
    /// Has the intent changed since this revision?
    Pull(u64),
    /// It has.
    View(Box<IntentDelta>),
}

/// See the module.
#[derive(Debug)]
pub(crate) enum Event {
    /// The script's next act.
    Act(usize),
    /// A manager's thread goes round.
    Run { host: usize, boot: u32 },
    /// A message of Raft comes.
    Raft { to: usize, message: Box<Message> },
    /// What became of a snapshot.
    Sent {
        host: usize,
        boot: u32,
        id: u64,
        arrived: bool,
    },
    /// A client's request comes.
    Ask {
        host: usize,
        client: usize,
        request: u128,
        ask: Ask,
    },
    /// Its answer comes.
    Told { client: usize, request: u128, told: Told },
    /// A client tries (again).
    Try { client: usize, request: u128, turn: u32 },
    /// A host is switched on.
    Boot { host: usize, boot: u32 },
    /// An agent goes round.
    Agent { host: usize, boot: u32 },
    /// An agent's packet comes.
    Packet { from: usize, to: usize, packet: Packet },
}

/// An event and its time; those of one time in the order in which they were planned.
#[derive(Debug)]
pub(crate) struct Planned {
    /// µs.
    pub at: u64,
    /// Order.
    pub seq: u64,
    /// What.
    pub event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    /// The earliest is the greatest: for a heap.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}
