//! What Raft says and writes, in types of our own: no octet from the network or the disk ever reaches the library's
//! protobuf parser (RUSTSEC-2024-0437), and another library can take its place.

use serde::{Deserialize, Serialize};

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Term of the leader that made it.
    pub term: u64,
    /// Place in the log, from 1.
    pub index: u64,
    /// What it holds.
    pub body: Body,
}

/// Body of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// A new leader's first entry.
    Empty,
    /// A command of the state machine, encoded.
    Command(Vec<u8>),
    /// A change of voters.
    Conf(ConfChange),
}

/// A change of voters. More than one step goes through joint consensus; none leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfChange {
    /// Steps, carried out at once.
    pub steps: Vec<(ConfStep, u64)>,
}

/// What becomes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfStep {
    /// It votes.
    Voter,
    /// It gets the log and does not vote.
    Learner,
    /// It is gone.
    Remove,
}

/// Who votes: the first record of a log, and part of every snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Conf {
    /// Voters.
    pub voters: Vec<u64>,
    /// Learners.
    pub learners: Vec<u64>,
    /// Voters of the configuration that is being left (joint consensus).
    pub outgoing: Vec<u64>,
    /// Outgoing voters that become learners.
    pub learners_next: Vec<u64>,
    /// The leader leaves the joint configuration by itself.
    pub auto_leave: bool,
}

impl Conf {
    /// The one voter of a new cluster.
    pub fn single(id: u64) -> Conf {
        Conf {
            voters: vec![id],
            ..Conf::default()
        }
    }

    /// Whether the library can take it: it panics on what contradicts itself.
    pub(super) fn is_sound(&self) -> bool {
        let distinct = |ids: &[u64]| {
            let mut sorted = ids.to_vec();
            sorted.sort_unstable();
            sorted.windows(2).all(|w| w[0] != w[1]) && !ids.contains(&0)
        };
        let apart = |a: &[u64], b: &[u64]| a.iter().all(|id| !b.contains(id));
        let joint = !self.outgoing.is_empty();
        !self.voters.is_empty()
            && [&self.voters, &self.learners, &self.outgoing, &self.learners_next]
                .into_iter()
                .all(|ids| distinct(ids))
            && apart(&self.learners, &self.voters)
            && apart(&self.learners, &self.outgoing)
            && apart(&self.learners_next, &self.voters)
            && self.learners_next.iter().all(|id| self.outgoing.contains(id))
            && (joint || (self.learners_next.is_empty() && !self.auto_leave))
    }

    /// Whether a node is in it.
    pub fn contains(&self, id: u64) -> bool {
        [&self.voters, &self.learners, &self.outgoing]
            .into_iter()
            .any(|ids| ids.contains(&id))
    }
}

/// What a voter must not forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HardState {
    /// Newest term seen.
    pub term: u64,
    /// Whom it voted for in that term; 0: nobody.
    pub vote: u64,
    /// Highest index known to be committed.
    pub commit: u64,
}

/// The state after an entry, instead of the entries up to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Index of the last entry in it.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Who votes after it.
    pub conf: Conf,
    /// The state machine, encoded.
    pub data: Vec<u8>,
}

/// Kinds of messages that managers send each other. The library's others are local, or (proposals) go another way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Entries.
    Append,
    /// Answer to it.
    AppendReply,
    /// Asks for a vote.
    Vote,
    /// Answer to it.
    VoteReply,
    /// Asks whether a vote would be given.
    PreVote,
    /// Answer to it.
    PreVoteReply,
    /// A snapshot.
    Snapshot,
    /// The leader lives.
    Heartbeat,
    /// Answer to it.
    HeartbeatReply,
    /// Please make me, or another, leader.
    TransferLeader,
    /// Stand for election now.
    TimeoutNow,
    /// Asks for an index that a linearizable read must wait for.
    ReadIndex,
    /// Answer to it.
    ReadIndexReply,
}

/// A message between managers. Which fields count depends on the kind (Ongaro, Raft thesis, figure 3.1 and 6.4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Kind.
    pub kind: Kind,
    /// Sender.
    pub from: u64,
    /// Receiver.
    pub to: u64,
    /// Sender's term.
    pub term: u64,
    /// Term of the entry at `index`.
    pub log_term: u64,
    /// The entry before `entries`, or the one that is meant.
    pub index: u64,
    /// Sender's commit index.
    pub commit: u64,
    /// Term of the entry at `commit`.
    pub commit_term: u64,
    /// Entries, contiguous.
    pub entries: Vec<Entry>,
    /// Snapshot.
    pub snapshot: Option<Snapshot>,
    /// Index from which a snapshot is wanted; 0: none is.
    pub request_snapshot: u64,
    /// Refused.
    pub reject: bool,
    /// Where to try next.
    pub reject_hint: u64,
    /// Carried back to the asker.
    pub context: Vec<u8>,
}

/// First octet of an encoded [`Message`].
const FORMAT: u8 = 1;

/// Why octets are no [`Message`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Sent by a newer netd.
    #[error("a manager sent format {0}, this netd knows {FORMAT}; try: upgrade this node")]
    Newer(u8),
    /// Not what was sent.
    #[error("a manager's message cannot be read: {0}; try: the same netd on all managers")]
    Malformed(String),
}

impl Message {
    /// As octets for the wire.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        postcard::to_extend(self, vec![FORMAT]).map_err(|e| MessageError::Malformed(e.to_string()))
    }

    /// Reads [`Message::encode`]. What it says is checked when it is handled.
    pub fn decode(bytes: &[u8]) -> Result<Message, MessageError> {
        match bytes.split_first() {
            Some((&FORMAT, body)) => match postcard::take_from_bytes(body) {
                Ok((message, [])) => Ok(message),
                Ok((_, rest)) => Err(MessageError::Malformed(format!("{} octets too many", rest.len()))),
                Err(e) => Err(MessageError::Malformed(e.to_string())),
            },
            Some((&f, _)) if f > FORMAT => Err(MessageError::Newer(f)),
            Some((&f, _)) => Err(MessageError::Malformed(format!("format {f}"))),
            None => Err(MessageError::Malformed("empty".into())),
        }
    }
}
