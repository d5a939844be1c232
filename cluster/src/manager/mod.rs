//! A manager: the log, Raft and the state machine as one machine without a clock, a thread or a socket.
//!
//! A shell hands in what happens ([`Manager::handle`], any number of times), then lets it work ([`Manager::work`]): all
//! that came in shares one durable write per round of Raft. What comes out is to be done in its order: messages that may
//! go before the write come out before it, the others and every answer after it. [`Manager::next`] tells when to come
//! back. The same inputs and the same disk give the same outputs; netd's `store` and the simulator drive exactly this.
//!
//! ```text
//! handle(Propose) -> Raft -> work: write + fsync -> Send(Append) .. handle(Message) -> committed -> apply -> Answer
//! ```

mod ask;
mod members;
mod pace;
mod salvage;
#[cfg(test)]
mod tests;
mod types;
mod work;

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock, RwLockReadGuard},
    time::Duration,
};

use crate::{
    log::{self, Disk, Log},
    mutant::{self, Mutant},
    raft::{self, Conf, HardState, Peer, RaftError, Ready, Snapshot, Start},
    state::State,
};
use ask::Asked;
pub use members::MAX_LAG;
use pace::Pace;
pub use pace::{ELECTION_TICKS, HEARTBEAT, MAX_TICK, MIN_TICK};
pub use salvage::salvage;
pub use types::{Input, Limits, ManagerError, MemberStatus, Options, Output, Status, Unanswered};

/// Raft id of the manager that begins a cluster: the first that the log gives out. A log that begins with index 1 began
/// with this one as its only voter.
pub const FOUNDER: u64 = 1;

/// How long a snapshot may be under way when the shell does not tell what became of it.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(120);
/// Until a snapshot that found no room is tried again.
const SNAPSHOT_AGAIN: Duration = Duration::from_secs(10);

/// One manager. See the module.
pub struct Manager<D> {
    peer: Peer,
    log: Log<D>,
    /// Shared with readers in other threads; here alone it is written to.
    state: Arc<RwLock<State>>,
    limits: Limits,
    pace: Pace,
    asked: Asked,
    next_tick: Duration,
    next_beat: Duration,
    /// Log time, and the moment when it was that.
    anchor: (u64, Duration),
    /// Term in which it led when it last looked.
    led: Option<u64>,
    /// When another manager was last heard.
    heard: BTreeMap<u64, Duration>,
    /// Snapshots under way.
    sending: BTreeMap<u64, Sending>,
    entries_since: u64,
    octets_since: usize,
    /// A write that found no room on the disk.
    stalled: Option<Ready>,
    /// The last snapshot found no room: when to try again.
    no_room: Option<Duration>,
    failed: bool,
    /// For a planted fault: the state before the last command.
    #[cfg(feature = "mutants")]
    before: State,
}

/// A snapshot under way to another manager.
struct Sending {
    since: Duration,
    /// What the shell told while nothing could be taken in: whether it arrived.
    told: Option<bool>,
}

/// What [`Manager::open`] found.
pub struct Opened<D> {
    /// The manager.
    pub manager: Manager<D>,
    /// Octets of a write that had not ended, and were cut off: it was never acknowledged.
    pub cut: u64,
}

impl<D: Disk> Manager<D> {
    /// A manager of a new cluster, alone: it leads at once. `seed` is fresh entropy, for the log's seals and for the
    /// jitter of elections.
    pub fn create(
        now: Duration,
        disk: D,
        key: &[u8; 32],
        seed: [u8; 32],
        options: Options,
    ) -> Result<Manager<D>, ManagerError> {
        Manager::begin(now, disk, key, seed, options, FOUNDER)
    }

    /// A manager with an empty log that joins others under the Raft id that the log gave it. It waits: the leader makes it
    /// a learner and sends it what it lacks. An id must never be used with a second empty log.
    pub fn join(
        now: Duration,
        disk: D,
        key: &[u8; 32],
        seed: [u8; 32],
        options: Options,
        id: u64,
    ) -> Result<Manager<D>, ManagerError> {
        if id == FOUNDER {
            return Err(RaftError::BadStart("the founder of a cluster does not join it".into()).into());
        }
        Manager::begin(now, disk, key, seed, options, id)
    }

    fn begin(
        now: Duration,
        disk: D,
        key: &[u8; 32],
        seed: [u8; 32],
        options: Options,
        id: u64,
    ) -> Result<Manager<D>, ManagerError> {
        let conf = Conf::single(FOUNDER);
        let owned = log::Options {
            owner: id,
            ..options.log
        };
        let log = Log::create(disk, key, seed, owned, &conf)?;
        let start = Start {
            conf,
            ..Start::default()
        };
        Manager::start(now, log, start, seed, options.limits, id)
    }

    /// A manager alone with a state from elsewhere (a backup, or what survived of a cluster that lost its majority: see
    /// [`State::alone`]). The folder must be empty, `id` one that nobody had.
    pub fn restore(
        now: Duration,
        disk: D,
        key: &[u8; 32],
        seed: [u8; 32],
        options: Options,
        id: u64,
        state: &State,
    ) -> Result<Manager<D>, ManagerError> {
        let conf = Conf::single(id);
        let owned = log::Options {
            owner: id,
            ..options.log
        };
        let snapshot = Snapshot {
            index: state.applied(),
            term: 1,
            conf: conf.clone(),
            data: state.encode()?,
        };
        let hard = HardState {
            term: 1,
            vote: 0,
            commit: snapshot.index,
        };
        let mut log = Log::create(disk, key, seed, owned, &conf)?;
        log.install(&snapshot, Some(hard))?;
        let start = Start {
            hard,
            conf,
            base: (snapshot.index, snapshot.term),
            entries: Vec::new(),
            snapshot: Some(Arc::new(snapshot)),
        };
        Manager::start(now, log, start, seed, options.limits, id)
    }

    /// Goes on from what is on the disk. `None`: nothing is.
    pub fn open(
        now: Duration,
        disk: D,
        key: &[u8; 32],
        seed: [u8; 32],
        options: Options,
    ) -> Result<Option<Opened<D>>, ManagerError> {
        let Some((log, found)) = Log::open(disk, key, seed, options.log)? else {
            return Ok(None);
        };
        // Logs of netd 0.1 do not tell, and have one voter.
        let id = match found.owner {
            0 => found.start.conf.voters.first().copied().unwrap_or(0),
            id => id,
        };
        let manager = Manager::start(now, log, found.start, seed, options.limits, id)?;
        Ok(Some(Opened {
            manager,
            cut: found.cut,
        }))
    }

    fn start(
        now: Duration,
        log: Log<D>,
        start: Start,
        seed: [u8; 32],
        limits: Limits,
        id: u64,
    ) -> Result<Manager<D>, ManagerError> {
        let state = match &start.snapshot {
            Some(s) => State::decode(&s.data)?,
            None => State::default(),
        };
        let [a, b, c, d, e, f, g, h, ..] = seed;
        let options = raft::Options {
            id,
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: 1,
            seed: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        };
        let alone = start.conf.voters == [id] && start.conf.outgoing.is_empty();
        let mut pace = Pace::new(!options.seed);
        let mut manager = Manager {
            peer: Peer::new(&options, start)?,
            log,
            state: Arc::new(RwLock::new(state)),
            limits,
            asked: Asked::default(),
            next_tick: now + pace.draw(),
            next_beat: now + HEARTBEAT,
            pace,
            anchor: (0, now),
            led: None,
            heard: BTreeMap::new(),
            sending: BTreeMap::new(),
            entries_since: 0,
            octets_since: 0,
            stalled: None,
            no_room: None,
            failed: false,
            #[cfg(feature = "mutants")]
            before: State::default(),
        };
        if alone {
            // Nobody else could be elected: no need to wait for a timeout.
            manager.peer.campaign()?;
        }
        Ok(manager)
    }

    /// Raft id.
    pub fn id(&self) -> u64 {
        self.peer.id()
    }

    /// When [`Input::Tick`] is due.
    pub fn next(&self) -> Duration {
        match self.peer.is_leader() && !self.leads_alone() {
            true => self.next_tick.min(self.next_beat),
            false => self.next_tick,
        }
    }

    /// The replicated state. Readers may hold the lock for a moment; nothing is applied meanwhile.
    pub fn state(&self) -> Arc<RwLock<State>> {
        Arc::clone(&self.state)
    }

    /// Looks at the replicated state.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|e| e.into_inner())
    }

    /// Sets when snapshots are made, from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The disk, to look at.
    pub fn disk(&self) -> &D {
        self.log.disk()
    }

    /// What Raft knows, for whoever checks it.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Takes in what happened. An error concerns a message alone: it was not taken, and nothing has changed.
    pub fn handle(&mut self, now: Duration, input: Input) -> Result<(), RaftError> {
        match input {
            Input::Tick => self.tick(now),
            Input::Message { from, message } => self.message(now, from, &message),
            Input::Propose { request, command } => {
                self.propose(now, request, *command);
                Ok(())
            }
            Input::Read { id } => {
                self.read_later(id);
                Ok(())
            }
            Input::Change { request, change, force } => {
                self.change(now, request, &change, force);
                Ok(())
            }
            Input::Transfer { to } => match self.is_stalled() || !self.peer.conf().voters.contains(&to) {
                true => Ok(()),
                false => self.peer.transfer(to).or(Ok(())),
            },
            Input::Unreachable { id } => match self.is_stalled() {
                true => Ok(()),
                false => self.peer.unreachable(id),
            },
            Input::SnapshotSent { id, arrived } => self.snapshot_sent(id, arrived),
            Input::RoundTrip { id, took } => {
                self.measured(id, took);
                Ok(())
            }
        }
    }

    /// Whether its last write waits for room on the disk: until then it takes nothing in.
    pub fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// It leads, and there is nobody whom it has to tell so.
    fn leads_alone(&self) -> bool {
        let conf = self.peer.conf();
        let alone = conf.voters == [self.peer.id()] && conf.learners.is_empty() && conf.outgoing.is_empty();
        alone && self.peer.is_leader()
    }

    fn tick(&mut self, now: Duration) -> Result<(), RaftError> {
        let due = now >= self.next_tick;
        if due {
            // Ticks that a slow disk swallowed are not made up for: they would look like a leader's silence.
            let tick = if self.leads_alone() { MAX_TICK } else { self.pace.draw() };
            self.next_tick = now + tick;
        } else if now < self.next_beat {
            return Ok(());
        }
        self.next_beat = now + HEARTBEAT;
        if self.is_stalled() {
            return Ok(());
        }
        self.settle_snapshots(now)?;
        match due {
            true => self.peer.tick(),
            false => self.peer.ping(),
        }
    }

    fn message(&mut self, now: Duration, from: u64, message: &raft::Message) -> Result<(), RaftError> {
        let refused = |why| Err(RaftError::BadMessage { from, why });
        if message.from != from {
            return refused("it names another manager as its sender");
        }
        if self.read().raft_is_gone(from) && !mutant::on(Mutant::HearRemoved) {
            return refused("its sender was removed");
        }
        if self.is_stalled() {
            // As good as lost: nothing can be written, so nothing may be promised.
            return Ok(());
        }
        self.peer.handle(message)?;
        if self.peer.conf().contains(from) {
            self.heard.insert(from, now);
        }
        Ok(())
    }
}
