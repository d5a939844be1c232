//! The thread that drives Raft: takes proposals, writes and syncs what a `Ready` says, applies, and only then answers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, RwLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use cluster::{
    log::{Disk, Log, Options},
    raft::{self, Body, Conf, Entry, Peer, RaftError, Snapshot, Start},
    state::{Command, Envelope, Outcome, State},
};
use model::Intent;
use tokio::sync::{oneshot, watch};

use super::{ProposeError, RaftStatus, StoreError};

/// Between two ticks of Raft's clock.
const TICK: Duration = Duration::from_millis(100);
/// Ticks without a word from the leader before an election.
const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 1;
/// Proposals that share one write.
const BATCH: usize = 512;
/// A snapshot is made after so many entries, or so many octets of them.
const SNAPSHOT_ENTRIES: u64 = 10_000;
const SNAPSHOT_OCTETS: usize = 16 << 20;
/// Entries kept behind a snapshot, for managers that lag a little.
const RETAIN: u64 = 5_000;

/// What is asked of the thread.
pub(super) enum Ask {
    Propose {
        request: u128,
        command: Box<Command>,
        answer: oneshot::Sender<Result<Outcome, ProposeError>>,
    },
    Stop,
}

/// What the thread shares with the handles.
pub(super) struct Shared {
    pub(super) state: RwLock<State>,
    pub(super) intent: watch::Sender<Arc<Intent>>,
    pub(super) status: watch::Sender<RaftStatus>,
    pub(super) fatal: watch::Sender<Option<String>>,
    /// Proposals that wait for the thread.
    pub(super) queued: AtomicUsize,
}

impl Shared {
    fn new(state: State) -> Shared {
        Shared {
            intent: watch::Sender::new(state.intent()),
            state: RwLock::new(state),
            status: watch::Sender::new(RaftStatus::default()),
            fatal: watch::Sender::new(None),
            queued: AtomicUsize::new(0),
        }
    }
}

pub(super) struct Driver<D> {
    peer: Peer,
    log: Log<D>,
    shared: Arc<Shared>,
    waiting: BTreeMap<u128, Vec<oneshot::Sender<Result<Outcome, ProposeError>>>>,
    /// Log time when this manager started, ms.
    base_ms: u64,
    started: Instant,
    entries_since: u64,
    octets_since: usize,
}

impl<D: Disk> Driver<D> {
    /// A new cluster of which node `id` is the only manager. What follows must be `init`'s proposal.
    pub(super) fn create(disk: D, key: &[u8; 32], id: u64) -> Result<Driver<D>, StoreError> {
        let conf = Conf::single(id);
        let log = Log::create(disk, key, random()?, Options::default(), &conf)?;
        let start = Start {
            conf,
            ..Start::default()
        };
        Driver::start(log, start)
    }

    /// Goes on from what is on disk. `None`: nothing is.
    pub(super) fn open(disk: D, key: &[u8; 32]) -> Result<Option<Driver<D>>, StoreError> {
        let Some((log, found)) = Log::open(disk, key, random()?, Options::default())? else {
            return Ok(None);
        };
        if found.cut > 0 {
            tracing::info!(
                octets = found.cut,
                "cut off a write that had not ended: nobody was told that it had"
            );
        }
        Driver::start(log, found.start).map(Some)
    }

    fn start(log: Log<D>, start: Start) -> Result<Driver<D>, StoreError> {
        let state = match &start.snapshot {
            Some(s) => State::decode(&s.data)?,
            None => State::default(),
        };
        // Managers come with a later issue; until then the one that wrote the log is its only voter.
        let id = start.conf.voters.first().copied().unwrap_or(0);
        let options = raft::Options {
            id,
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: HEARTBEAT_TICKS,
            seed: u64::from_le_bytes(random()?),
        };
        let alone = start.conf.voters.len() == 1 && start.conf.outgoing.is_empty();
        let mut driver = Driver {
            peer: Peer::new(&options, start)?,
            log,
            shared: Arc::new(Shared::new(state)),
            waiting: BTreeMap::new(),
            base_ms: 0,
            started: Instant::now(),
            entries_since: 0,
            octets_since: 0,
        };
        if alone {
            // Nobody else could be elected: no need to wait for a timeout.
            driver.peer.campaign()?;
        }
        driver.work()?;
        driver.base_ms = driver.read(State::now_ms);
        Ok(driver)
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(super) fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.shared.state.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// Runs until it is told to stop, every handle is gone, or nothing can be acknowledged any more.
    pub(super) fn run(mut self, asks: &Receiver<Ask>) {
        if let Err(e) = self.serve(asks) {
            tracing::error!("this manager stops: {e}");
            self.shared.fatal.send_replace(Some(e.to_string()));
        }
    }

    fn serve(&mut self, asks: &Receiver<Ask>) -> Result<(), StoreError> {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let mut ask = asks.recv_timeout(next_tick.saturating_duration_since(Instant::now()));
            for _ in 0..BATCH {
                match ask {
                    Ok(Ask::Propose {
                        request,
                        command,
                        answer,
                    }) => {
                        self.shared.queued.fetch_sub(1, Ordering::Relaxed);
                        self.propose(request, *command, answer);
                    }
                    Ok(Ask::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    Err(RecvTimeoutError::Timeout) => break,
                }
                ask = asks.try_recv().map_err(|_| RecvTimeoutError::Timeout);
            }
            let now = Instant::now();
            if now >= next_tick {
                // Ticks that a slow disk swallowed are not made up for: they would look like a leader's silence.
                next_tick = now + TICK;
                self.peer.tick()?;
            }
            self.work()?;
        }
    }

    /// Puts a command on its way. It is answered when it was applied.
    pub(super) fn propose(
        &mut self,
        request: u128,
        command: Command,
        answer: oneshot::Sender<Result<Outcome, ProposeError>>,
    ) {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let envelope = Envelope {
            request,
            time_ms: self.base_ms.saturating_add(elapsed),
            command,
        };
        let proposed = envelope
            .encode()
            .map_err(ProposeError::from)
            .and_then(|bytes| Ok(self.peer.propose(bytes)?));
        match proposed {
            Ok(()) => self.waiting.entry(request).or_default().push(answer),
            Err(e) => drop(answer.send(Err(e))),
        }
    }

    /// Does all that Raft wants done, then tells the readers and the askers.
    pub(super) fn work(&mut self) -> Result<(), StoreError> {
        let mut done = Vec::new();
        while let Some(ready) = self.peer.ready()? {
            if let Some(s) = &ready.snapshot {
                let state = State::decode(&s.data)?;
                self.log.install(s, ready.hard)?;
                *self.shared.state.write().unwrap_or_else(|e| e.into_inner()) = state;
            }
            self.log.append(ready.hard, &ready.entries, ready.must_sync)?;
            let early = self.apply(&ready.committed, &mut done)?;
            let after = self.peer.persisted()?;
            let late = self.apply(&after.committed, &mut done)?;
            if let Some(index) = late.or(early) {
                self.peer.applied(index)?;
            }
        }
        if self.entries_since >= SNAPSHOT_ENTRIES || self.octets_since >= SNAPSHOT_OCTETS || self.peer.wants_snapshot()
        {
            self.snapshot()?;
        }
        self.publish();
        for (request, outcome) in done {
            for answer in self.waiting.remove(&request).unwrap_or_default() {
                // Who asked may have given up: what was decided stands all the same.
                let _ = answer.send(Ok(outcome.clone()));
            }
        }
        if !self.waiting.is_empty() && !self.peer.status().leads {
            let leader = self.peer.status().leader;
            for answer in std::mem::take(&mut self.waiting).into_values().flatten() {
                let _ = answer.send(Err(ProposeError::NotLeader { leader }));
            }
        }
        Ok(())
    }

    /// Applies committed entries. Returns the index of the last one.
    fn apply(&mut self, entries: &[Entry], done: &mut Vec<(u128, Outcome)>) -> Result<Option<u64>, StoreError> {
        if entries.is_empty() {
            return Ok(None);
        }
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.write().unwrap_or_else(|e| e.into_inner());
        for e in entries {
            match &e.body {
                Body::Command(bytes) => {
                    let envelope = Envelope::decode(bytes)?;
                    done.push((envelope.request, state.apply(e.index, &envelope)));
                    self.octets_since += bytes.len();
                }
                Body::Empty => state.pass(e.index),
                Body::Conf(change) => {
                    state.pass(e.index);
                    match self.peer.apply_conf(change) {
                        Ok(conf) => tracing::info!(?conf, "the voters changed"),
                        Err(e) => tracing::warn!("a change of voters was passed over: {e}"),
                    }
                }
            }
        }
        self.entries_since += entries.len() as u64;
        Ok(entries.last().map(|e| e.index))
    }

    fn publish(&self) {
        let intent = self.read(State::intent);
        self.shared.intent.send_if_modified(|old| {
            let changed = old.revision != intent.revision;
            *old = intent;
            changed
        });
        let s = self.peer.status();
        let status = RaftStatus {
            term: s.term,
            leader: s.leader,
            last_index: s.last_index,
            applied: s.applied,
            voters: s.voters,
        };
        self.shared.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }

    /// Writes a snapshot of what is applied, and forgets entries that it covers.
    pub(super) fn snapshot(&mut self) -> Result<(), StoreError> {
        let (index, data) = self.read(|s| (s.applied(), s.encode()));
        let term = self
            .peer
            .term_at(index)
            .ok_or_else(|| RaftError::Refused(format!("entry {index} is gone")))?;
        let snapshot = Arc::new(Snapshot {
            index,
            term,
            conf: self.peer.conf().clone(),
            data: data?,
        });
        let begun = Instant::now();
        self.log.save(&snapshot)?;
        let octets = snapshot.data.len();
        let keep_from = index.saturating_sub(RETAIN);
        self.peer.snapshotted(snapshot, keep_from);
        self.log.compact(keep_from)?;
        (self.entries_since, self.octets_since) = (0, 0);
        tracing::info!(index, octets, took = ?begun.elapsed(), "snapshot written");
        Ok(())
    }
}

/// Octets from the kernel's generator.
pub(super) fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut out = [0; N];
    SystemRandom::new().fill(&mut out).map_err(|_| StoreError::Random)?;
    Ok(out)
}
