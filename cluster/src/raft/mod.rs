//! Raft: the managers agree on one log. The library (`raft` 0.7) decides, this module keeps it on a leash: our own types
//! at every door, checks before it may panic, election jitter from a seed. Sans-IO: a shell ticks it, brings messages,
//! writes what [`Peer::ready`] says and reports it by [`Peer::persisted`].

mod convert;
mod door;
mod memory;
mod message;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use raft::{RawNode, StateRole};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::mutant::{self, Mutant};
use memory::Memory;
pub use message::{Body, Conf, ConfChange, ConfStep, Entry, HardState, Kind, Message, MessageError, Snapshot};
pub use status::{Progress, Status};

/// How a peer is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// This node's id, from 1.
    pub id: u64,
    /// A follower that hears nothing for this many ticks, and up to as many more, stands for election.
    pub election_ticks: usize,
    /// The leader is heard every so many ticks.
    pub heartbeat_ticks: usize,
    /// Seed of the election jitter.
    pub seed: u64,
}

/// What was on disk.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Term, vote, commit.
    pub hard: HardState,
    /// Who votes: as of the snapshot, or as the log began.
    pub conf: Conf,
    /// Index and term of the entry before the first.
    pub base: (u64, u64),
    /// Entries, contiguous.
    pub entries: Vec<Entry>,
    /// Newest snapshot: the state machine stands there.
    pub snapshot: Option<Arc<Snapshot>>,
}

/// Why Raft did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RaftError {
    /// Another node leads, or nobody does.
    #[error("this manager does not lead{}; try: the leader", leader.map(|l| format!(" (n{l} does)")).unwrap_or_default())]
    NotLeader {
        /// Who leads, if known.
        leader: Option<u64>,
    },
    /// Too much waits to be agreed on.
    #[error("too many changes wait for a majority of the managers; try: again, or netctl cluster members")]
    Overloaded,
    /// A message that no correct manager sends.
    #[error("a message from n{from} was refused: {why}; try: the same netd on all managers")]
    BadMessage {
        /// From whom.
        from: u64,
        /// Why.
        why: &'static str,
    },
    /// What was on disk contradicts itself.
    #[error("the log cannot be used: {0}; try: netctl cluster leave --force and join again")]
    BadStart(String),
    /// A `Ready` is being written: nothing else may happen before [`Peer::persisted`].
    #[error("a write is under way; try: again when it has ended")]
    Busy,
    /// The library said no.
    #[error("Raft refused: {0}; try: netctl cluster members")]
    Refused(String),
}

/// What is to be done now, in this order: send `messages`, write `snapshot`, `entries` and `hard` (durably, if
/// `must_sync`), read `snapshot` into the state machine, call [`Peer::persisted`], apply `committed` and what came after,
/// call [`Peer::applied`].
#[derive(Debug, Default)]
pub struct Ready {
    /// May be sent before the write.
    pub messages: Vec<Message>,
    /// A leader's snapshot replaces all that was before.
    pub snapshot: Option<Snapshot>,
    /// Entries to write; what stands at the same index or behind is replaced.
    pub entries: Vec<Entry>,
    /// Hard state to write.
    pub hard: Option<HardState>,
    /// Whether the write must be durable: else only the commit index changed, which may be lost.
    pub must_sync: bool,
    /// Entries to apply.
    pub committed: Vec<Entry>,
    /// Reads that may be answered once the index is applied.
    pub reads: Vec<(u64, Vec<u8>)>,
}

/// What follows from a write that has ended.
#[derive(Debug, Default)]
pub struct After {
    /// To be sent now.
    pub messages: Vec<Message>,
    /// Entries to apply.
    pub committed: Vec<Entry>,
}

/// Most octets of entries in one message.
const MAX_MESSAGE: u64 = 1 << 20;
/// Most messages to one follower under way.
const MAX_INFLIGHT: usize = 256;
/// Most octets that wait to be agreed on; more are refused as overload.
const MAX_UNCOMMITTED: u64 = 64 << 20;

/// A voter or learner.
pub struct Peer {
    node: RawNode<Memory>,
    id: u64,
    jitter: StdRng,
    election_ticks: usize,
    timeout: usize,
    /// Term, role and leader when the timeout was drawn.
    drawn_at: (u64, StateRole, u64),
    writing: Option<raft::Ready>,
    /// A call to stand for election that came before the entries in front of it were written.
    summons: Option<Message>,
}

impl Peer {
    /// A peer that goes on from what was on disk. The shell applies what [`Peer::ready`] hands out, from the snapshot on.
    pub fn new(options: &Options, start: Start) -> Result<Peer, RaftError> {
        check_start(options, &start)?;
        let applied = start.snapshot.as_ref().map_or(start.base.0, |s| s.index);
        let config = raft::Config {
            id: options.id,
            election_tick: options.election_ticks,
            heartbeat_tick: options.heartbeat_ticks,
            applied,
            max_size_per_msg: MAX_MESSAGE,
            max_inflight_msgs: MAX_INFLIGHT,
            check_quorum: true,
            pre_vote: true,
            // Must stay off: 0.7.0 joins entries to a waiting empty append at another index (`try_batching`).
            batch_append: false,
            max_uncommitted_size: MAX_UNCOMMITTED,
            ..raft::Config::default()
        };
        let entries = start.entries.iter().map(convert::entry_in).collect();
        let mut hard = start.hard;
        if mutant::on(Mutant::ForgetVote) {
            hard.vote = 0;
        }
        // A snapshot is committed by definition, also when the crash came before the hard state that says so.
        hard.commit = hard.commit.max(applied);
        if let Some(s) = &start.snapshot {
            hard.term = hard.term.max(s.term);
        }
        let memory = Memory::new(hard, start.conf, start.base, entries, start.snapshot);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, memory, &logger).map_err(|e| RaftError::BadStart(e.to_string()))?;
        let mut peer = Peer {
            node,
            id: options.id,
            jitter: StdRng::seed_from_u64(options.seed),
            election_ticks: options.election_ticks,
            timeout: 0,
            drawn_at: (0, StateRole::Follower, 0),
            writing: None,
            summons: None,
        };
        peer.draw();
        Ok(peer)
    }

    /// A tick of the shell's clock has gone by.
    pub fn tick(&mut self) -> Result<(), RaftError> {
        self.idle()?;
        if !self.has_unwritten() {
            self.node.tick();
            self.settle();
        }
        Ok(())
    }

    /// Lets the followers know at once that the leader lives; nothing elsewhere.
    pub fn ping(&mut self) -> Result<(), RaftError> {
        self.idle()?;
        self.node.ping();
        Ok(())
    }

    /// Stands for election at once: what the only voter does at its start.
    pub fn campaign(&mut self) -> Result<(), RaftError> {
        self.idle()?;
        if self.has_unwritten() {
            return Err(RaftError::Busy);
        }
        let done = self.node.campaign();
        self.settle();
        done.map_err(|e| RaftError::Refused(e.to_string()))
    }

    /// A message from another manager, whose identity the shell has checked. One that no correct manager sends is
    /// refused and changes nothing.
    pub fn handle(&mut self, m: &Message) -> Result<(), RaftError> {
        self.idle()?;
        self.admit(m)
            .map_err(|why| RaftError::BadMessage { from: m.from, why })?;
        let log = &self.node.raft.raft_log;
        match m.kind {
            // Cannot be meant: votes are asked for after the write. As good as lost.
            Kind::VoteReply | Kind::PreVoteReply if self.has_unwritten() => return Ok(()),
            // Comes right behind the last entries; a change of voters among them would keep this node from standing until
            // it is applied.
            Kind::TimeoutNow if self.has_unwritten() || log.committed > log.applied() => {
                self.summons = Some(m.clone());
                return Ok(());
            }
            _ => {}
        }
        let message = convert::message_in(m).ok_or(RaftError::BadMessage {
            from: m.from,
            why: "unknown kind",
        })?;
        let done = self.node.step(message);
        if m.kind == Kind::VoteReply && !m.reject && mutant::on(Mutant::CountVotesTwice) {
            self.count_again(m);
        }
        self.settle();
        match done {
            // An answer from a member that was removed meanwhile, or to a proposal that is long gone.
            Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::ProposalDropped) => Ok(()),
            Err(e) => Err(RaftError::Refused(e.to_string())),
        }
    }

    /// Proposes a command. It is agreed on when it comes back among the committed entries, and not before; if leadership
    /// changes it may never come.
    pub fn propose(&mut self, command: Vec<u8>) -> Result<(), RaftError> {
        self.idle()?;
        self.leads()?;
        self.stays()?;
        self.node.propose(Vec::new(), command).map_err(|e| match e {
            raft::Error::ProposalDropped => RaftError::Overloaded,
            e => RaftError::Refused(e.to_string()),
        })
    }

    /// Proposes a change of voters; one at a time. Without steps it leaves a joint configuration. Returns the index that
    /// its entry has.
    pub fn propose_conf(&mut self, change: &ConfChange) -> Result<u64, RaftError> {
        self.idle()?;
        self.leads()?;
        self.stays()?;
        // The library would put an empty entry in its place and say nothing.
        if self.changing() || (self.conf().outgoing.is_empty() == change.steps.is_empty()) {
            return Err(RaftError::Refused("another change of the managers is under way".into()));
        }
        let context =
            convert::conf_context(change).ok_or_else(|| RaftError::Refused("the change cannot be encoded".into()))?;
        self.node
            .propose_conf_change(context, convert::conf_change(change))
            .map_err(|e| RaftError::Refused(e.to_string()))?;
        Ok(self.node.raft.raft_log.last_index())
    }

    /// Hands leadership to another voter.
    pub fn transfer(&mut self, to: u64) -> Result<(), RaftError> {
        self.idle()?;
        self.leads()?;
        self.node.transfer_leader(to);
        self.settle();
        Ok(())
    }

    /// Leads no more, and calls `heir` to stand for election: what a leader that is no voter any more must do at once,
    /// because the library panics when it goes on.
    pub fn step_down(&mut self, heir: Option<u64>) -> Result<(), RaftError> {
        self.idle()?;
        self.leads()?;
        let raft = &mut self.node.raft;
        if let Some(to) = heir {
            raft.send_timeout_now(to);
        }
        raft.become_follower(raft.term, 0);
        self.settle();
        Ok(())
    }

    /// Asks for the index that a linearizable read must wait for; it comes back in [`Ready::reads`] with `context`.
    pub fn read(&mut self, context: Vec<u8>) -> Result<(), RaftError> {
        self.idle()?;
        self.node.read_index(context);
        Ok(())
    }

    /// A message could not be sent.
    pub fn unreachable(&mut self, id: u64) -> Result<(), RaftError> {
        self.idle()?;
        self.node.report_unreachable(id);
        Ok(())
    }

    /// A snapshot arrived there, or did not.
    pub fn snapshot_sent(&mut self, id: u64, arrived: bool) -> Result<(), RaftError> {
        self.idle()?;
        let status = match arrived {
            true => raft::SnapshotStatus::Finish,
            false => raft::SnapshotStatus::Failure,
        };
        self.node.report_snapshot(id, status);
        Ok(())
    }

    /// What is to be done; `None`: nothing. After it, [`Peer::persisted`] comes before anything else.
    pub fn ready(&mut self) -> Result<Option<Ready>, RaftError> {
        self.idle()?;
        if let Some(m) = self.summons.take() {
            // All is written and applied now; one whose term is over is passed over.
            let _ = self.handle(&m);
        }
        if !self.node.has_ready() {
            return Ok(None);
        }
        let mut r = self.node.ready();
        let early = match mutant::on(Mutant::SpeakBeforeWrite) {
            true => r.take_persisted_messages(),
            false => Vec::new(),
        };
        let out = Ready {
            messages: messages(r.take_messages().into_iter().chain(early).collect()),
            snapshot: convert::snapshot_out(r.snapshot().clone()),
            entries: entries(r.entries().clone())?,
            // The library tells a commit index once, in whatever comes next: a record of entries carries it in any case,
            // or a restarted leader would not know who votes.
            hard: r
                .hs()
                .map(convert::hard_out)
                .or_else(|| (!r.entries().is_empty()).then(|| self.node.store().hard)),
            must_sync: r.must_sync(),
            committed: entries(r.take_committed_entries())?,
            reads: r
                .take_read_states()
                .into_iter()
                .map(|s| (s.index, s.request_ctx))
                .collect(),
        };
        self.writing = Some(r);
        Ok(Some(out))
    }

    /// What the last [`Ready`] said is written, durably if it asked for that.
    pub fn persisted(&mut self) -> Result<After, RaftError> {
        let Some(mut r) = self.writing.take() else {
            return Ok(After::default());
        };
        let late = messages(r.take_persisted_messages());
        let memory = self.node.mut_store();
        let mut restored = None;
        if let Some(s) = convert::snapshot_out(r.snapshot().clone()) {
            restored = Some(s.index);
            memory.install(s);
        }
        if let Some(h) = r.hs() {
            memory.hard = convert::hard_out(h);
        }
        memory.append(r.entries().clone());
        let mut light = self.node.advance_append(r);
        if let Some(commit) = light.commit_index() {
            self.node.mut_store().hard.commit = commit;
        }
        // The shell has put the snapshot into the state machine: that is applying it.
        if let Some(index) = restored {
            self.node.advance_apply_to(index);
        }
        let mut out = After {
            messages: late,
            committed: entries(light.take_committed_entries())?,
        };
        out.messages.extend(messages(light.take_messages()));
        Ok(out)
    }

    /// The state machine stands at `index`.
    pub fn applied(&mut self, index: u64) -> Result<(), RaftError> {
        self.idle()?;
        let log = &self.node.raft.raft_log;
        if index < log.applied() || index > log.committed.min(log.persisted) {
            return Err(RaftError::Refused(format!("entry {index} is not committed here")));
        }
        self.node.advance_apply_to(index);
        Ok(())
    }

    /// A committed change of voters takes effect; called when its entry is applied. Returns who votes now.
    pub fn apply_conf(&mut self, change: &ConfChange) -> Result<Conf, RaftError> {
        let conf = self
            .node
            .apply_conf_change(&convert::conf_change(change))
            .map(|c| convert::conf_out(&c))
            .map_err(|e| RaftError::Refused(e.to_string()))?;
        self.node.mut_store().conf = conf.clone();
        self.settle();
        Ok(conf)
    }

    /// A snapshot was made and written; entries up to `compact` may be forgotten.
    pub fn snapshotted(&mut self, snapshot: Arc<Snapshot>, compact: u64) {
        let memory = self.node.mut_store();
        memory.keep(snapshot);
        memory.compact(compact);
    }

    /// Whether a member waits for a snapshot newer than the last: then the shell makes one.
    pub fn wants_snapshot(&self) -> bool {
        self.node.store().wanted.get()
    }

    /// Term of an entry that is still known.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        self.node.store().term_at(index)
    }

    /// Who votes, as of the last applied entry.
    pub fn conf(&self) -> &Conf {
        &self.node.store().conf
    }

    /// A planted fault: one vote counts for two voters.
    fn count_again(&mut self, m: &Message) {
        let voters = self.conf().voters.clone();
        let other = voters.into_iter().find(|v| *v != self.id && *v != m.from);
        if let Some(mut copy) = convert::message_in(m).filter(|_| other.is_some()) {
            copy.from = other.unwrap_or_default();
            let _ = self.node.step(copy);
        }
    }

    fn idle(&self) -> Result<(), RaftError> {
        match self.writing {
            Some(_) => Err(RaftError::Busy),
            None => Ok(()),
        }
    }

    /// Whether a follower has entries that are not written yet. It must not become leader then: the library panics.
    fn has_unwritten(&self) -> bool {
        let raft = &self.node.raft;
        raft.state != StateRole::Leader && raft.raft_log.last_index() != raft.raft_log.persisted
    }

    fn leads(&self) -> Result<(), RaftError> {
        let raft = &self.node.raft;
        if raft.state == StateRole::Leader {
            return Ok(());
        }
        let leader = (raft.leader_id != 0).then_some(raft.leader_id);
        Err(RaftError::NotLeader { leader })
    }

    /// Whether leadership is not being handed over: what is proposed meanwhile would be dropped.
    fn stays(&self) -> Result<(), RaftError> {
        match self.node.raft.lead_transferee {
            Some(to) => Err(RaftError::NotLeader { leader: Some(to) }),
            None => Ok(()),
        }
    }

    /// The library draws its election timeout from the thread's own randomness at each change of term, role or leader.
    /// That draw is replaced, so that a seed decides the whole run.
    fn settle(&mut self) {
        let raft = &self.node.raft;
        if self.drawn_at != (raft.term, raft.state, raft.leader_id) {
            self.draw();
        } else {
            self.node.raft.set_randomized_election_timeout(self.timeout);
        }
    }

    fn draw(&mut self) {
        let range = self.election_ticks..2 * self.election_ticks;
        self.timeout = self.jitter.random_range(range);
        let raft = &mut self.node.raft;
        raft.set_randomized_election_timeout(self.timeout);
        self.drawn_at = (raft.term, raft.state, raft.leader_id);
    }
}

fn messages(all: Vec<raft::eraftpb::Message>) -> Vec<Message> {
    all.into_iter().filter_map(convert::message_out).collect()
}

fn entries(all: Vec<raft::eraftpb::Entry>) -> Result<Vec<Entry>, RaftError> {
    convert::entries_out(all).ok_or_else(|| RaftError::BadStart("an entry was not written by netd".into()))
}

fn check_start(options: &Options, start: &Start) -> Result<(), RaftError> {
    let bad = |why: &str| Err(RaftError::BadStart(why.into()));
    if options.id == 0 || options.heartbeat_ticks == 0 {
        return bad("the id and the heartbeat are at least 1");
    }
    if options.election_ticks <= options.heartbeat_ticks {
        return bad("an election must take longer than a heartbeat");
    }
    if !start.conf.is_sound() {
        return bad("its list of voters contradicts itself");
    }
    let mut last = start.base;
    for e in &start.entries {
        if e.index != last.0 + 1 || e.term < last.1 {
            return bad("its entries do not follow each other");
        }
        last = (e.index, e.term);
    }
    if start.hard.commit > last.0 {
        return bad("entries that were committed are missing");
    }
    if start.snapshot.is_none() && start.base.0 > 0 {
        return bad("its first entries are missing and there is no snapshot");
    }
    if let Some(s) = &start.snapshot
        && (s.index < start.base.0 || s.index > last.0)
    {
        return bad("there is a gap between its snapshot and its entries");
    }
    Ok(())
}
