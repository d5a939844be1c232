//! The thread around a manager: brings it what is asked and what the time is, sends, and answers. What is decided is
//! decided in `cluster::manager`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, RwLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use cluster::{
    log::Disk,
    manager::{FOUNDER, Input, Limits, Manager, ManagerError, MemberStatus, Options, Output, Status, Unanswered},
    raft::{Conf, ConfChange, Kind, Message},
    state::{Command, Outcome, State},
};
use model::Intent;
use tokio::sync::{oneshot, watch};

use super::{ProposeError, StoreError};

/// What is asked before it is worked on shares one write: so many inputs at most.
const BATCH: usize = 512;

/// Where an answer goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, ProposeError>>;
/// Takes messages to other managers; must not block.
pub type Transport = Box<dyn FnMut(Message) + Send>;

/// What is asked of the thread.
pub(super) enum Ask {
    Propose {
        request: u128,
        command: Box<Command>,
        answer: Answer<Outcome>,
    },
    Read(Answer<u64>),
    Change {
        change: ConfChange,
        force: bool,
        answer: Answer<Conf>,
    },
    Input(Input),
    Message {
        message: Box<Message>,
        octets: usize,
    },
    Stop,
}

/// What the thread shares with the handles.
pub(super) struct Shared {
    pub(super) state: Arc<RwLock<State>>,
    pub(super) intent: watch::Sender<Arc<Intent>>,
    pub(super) status: watch::Sender<Status>,
    /// Index of the last entry applied.
    pub(super) applied: watch::Sender<u64>,
    pub(super) fatal: watch::Sender<Option<String>>,
    /// Proposals that wait for the thread.
    pub(super) queued: AtomicUsize,
    /// Octets of messages that wait for the thread.
    pub(super) inbound: AtomicUsize,
}

pub(super) struct Driver<D> {
    manager: Manager<D>,
    shared: Arc<Shared>,
    transport: Transport,
    proposals: BTreeMap<u128, VecDeque<Answer<Outcome>>>,
    reads: BTreeMap<u64, Answer<u64>>,
    changes: BTreeMap<u128, Answer<Conf>>,
    /// Number of the last read or change.
    count: u64,
    started: Instant,
}

impl<D: Disk> Driver<D> {
    /// A new cluster of which this node is the only manager. What follows must be `init`'s proposal.
    pub(super) fn create(disk: D, key: &[u8; 32], transport: Transport) -> Result<Driver<D>, StoreError> {
        let manager = Manager::create(Duration::ZERO, disk, key, random()?, Options::default())?;
        Driver::start(manager, transport)
    }

    /// An empty log that joins others, under a Raft id given out by theirs.
    pub(super) fn join(disk: D, key: &[u8; 32], id: u64, transport: Transport) -> Result<Driver<D>, StoreError> {
        let manager = Manager::join(Duration::ZERO, disk, key, random()?, Options::default(), id)?;
        Driver::start(manager, transport)
    }

    /// A log that begins with a state from elsewhere.
    pub(super) fn restore(disk: D, key: &[u8; 32], id: u64, state: &State) -> Result<(), StoreError> {
        Manager::restore(Duration::ZERO, disk, key, random()?, Options::default(), id, state)?;
        Ok(())
    }

    /// Goes on from what is on disk. `None`: nothing is.
    pub(super) fn open(disk: D, key: &[u8; 32], transport: Transport) -> Result<Option<Driver<D>>, StoreError> {
        let Some(found) = Manager::open(Duration::ZERO, disk, key, random()?, Options::default())? else {
            return Ok(None);
        };
        if found.cut > 0 {
            tracing::info!(
                octets = found.cut,
                "cut off a write that had not ended: nobody was told that it had"
            );
        }
        Driver::start(found.manager, transport).map(Some)
    }

    fn start(manager: Manager<D>, transport: Transport) -> Result<Driver<D>, StoreError> {
        let shared = Shared {
            state: manager.state(),
            intent: watch::Sender::new(manager.read().intent()),
            status: watch::Sender::new(Status::default()),
            applied: watch::Sender::new(0),
            fatal: watch::Sender::new(None),
            queued: AtomicUsize::new(0),
            inbound: AtomicUsize::new(0),
        };
        let mut driver = Driver {
            manager,
            shared: Arc::new(shared),
            transport,
            proposals: BTreeMap::new(),
            reads: BTreeMap::new(),
            changes: BTreeMap::new(),
            count: 0,
            started: Instant::now(),
        };
        driver.work()?;
        Ok(driver)
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(super) fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.manager.read())
    }

    /// Whether this manager did not begin its cluster.
    pub(super) fn joins(&self) -> bool {
        self.manager.id() != FOUNDER
    }

    /// Runs until it is told to stop, every handle is gone, or nothing can be acknowledged any more.
    pub(super) fn run(mut self, asks: &Receiver<Ask>) {
        if let Err(e) = self.serve(asks) {
            tracing::error!("this manager stops: {e}");
            self.shared.fatal.send_replace(Some(e.to_string()));
        }
    }

    fn serve(&mut self, asks: &Receiver<Ask>) -> Result<(), ManagerError> {
        loop {
            let wait = self.manager.next().saturating_sub(self.now());
            let mut ask = asks.recv_timeout(wait);
            for _ in 0..BATCH {
                match ask {
                    Ok(Ask::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    Ok(ask) => self.take(ask),
                    Err(RecvTimeoutError::Timeout) => break,
                }
                ask = asks.try_recv().map_err(|_| RecvTimeoutError::Timeout);
            }
            self.handle(Input::Tick);
            self.work()?;
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Propose {
                request,
                command,
                answer,
            } => {
                self.shared.queued.fetch_sub(1, Ordering::Relaxed);
                self.proposals.entry(request).or_default().push_back(answer);
                self.handle(Input::Propose { request, command });
            }
            Ask::Read(answer) => {
                self.count += 1;
                self.reads.insert(self.count, answer);
                self.handle(Input::Read { id: self.count });
            }
            Ask::Change { change, force, answer } => {
                self.count += 1;
                let request = u128::from(self.count);
                self.changes.insert(request, answer);
                self.handle(Input::Change { request, change, force });
            }
            Ask::Input(input) => self.handle(input),
            Ask::Message { message, octets } => {
                self.shared.inbound.fetch_sub(octets, Ordering::Relaxed);
                // Who sent it was checked against its certificate.
                let from = message.from;
                self.handle(Input::Message { from, message });
            }
            Ask::Stop => {}
        }
    }

    fn handle(&mut self, input: Input) {
        let now = self.now();
        if let Err(e) = self.manager.handle(now, input) {
            tracing::warn!("{e}");
        }
    }

    /// Lets the manager work, and answers: who has an answer sees what it did. What nobody waits for comes after that:
    /// word to the followers of what is agreed on, and to those who follow intent and status.
    pub(super) fn work(&mut self) -> Result<(), ManagerError> {
        let mut answers = Vec::new();
        let mut later = Vec::new();
        let now = self.now();
        let transport = &mut self.transport;
        let done = self.manager.work(now, &mut |output| match output {
            Output::Send(message) if message.kind == Kind::Append && message.entries.is_empty() => later.push(message),
            Output::Send(message) => {
                // None overtakes another one.
                later.drain(..).for_each(&mut *transport);
                transport(message);
            }
            answer => answers.push(answer),
        });
        let news = self.publish();
        for answer in answers {
            self.answer(answer);
        }
        later.into_iter().for_each(&mut self.transport);
        self.tell(news);
        done
    }

    fn answer(&mut self, output: Output) {
        // Who asked may have given up: what was decided stands all the same.
        match output {
            Output::Answer { request, answer } => {
                if let Some(all) = self.proposals.get_mut(&request) {
                    if let Some(asker) = all.pop_front() {
                        let _ = asker.send(answer.map_err(ProposeError::from));
                    }
                    if all.is_empty() {
                        self.proposals.remove(&request);
                    }
                }
            }
            Output::Read { id, answer } => {
                if let Some(asker) = self.reads.remove(&id) {
                    let _ = asker.send(answer.map_err(ProposeError::from));
                }
            }
            Output::Changed { request, answer } => {
                if let Some(asker) = self.changes.remove(&request) {
                    let _ = asker.send(answer.map_err(ProposeError::from));
                }
            }
            Output::Send(_) => {}
        }
    }

    /// Puts what is known now where handles look. Those who wait for changes are told by [`Driver::tell`].
    fn publish(&mut self) -> News {
        let intent = self.read(State::intent);
        self.manager.set_limits(Limits {
            entries: intent.settings.snapshot_interval,
            retain: intent.settings.log_retention,
            ..Limits::default()
        });
        let mut news = News::default();
        self.shared.intent.send_if_modified(|old| {
            news.intent = old.revision != intent.revision;
            *old = intent;
            false
        });
        let status = self.manager.status(self.now());
        let applied = status.applied;
        self.shared.status.send_if_modified(|old| {
            if (old.term, old.leader) != (status.term, status.leader) {
                tracing::info!(term = status.term, leader = ?status.leader, "leadership");
            }
            if old.conf != status.conf {
                tracing::info!(conf = ?status.conf, "the managers changed");
            }
            news.status = is_news(old, &status);
            *old = status;
            false
        });
        // Whoever waits for this has an asker who waits.
        self.shared
            .applied
            .send_if_modified(|old| std::mem::replace(old, applied) != applied);
        news
    }

    fn tell(&self, news: News) {
        if news.intent {
            self.shared.intent.send_modify(|_| {});
        }
        if news.status {
            self.shared.status.send_modify(|_| {});
        }
    }
}

/// What those who wait for changes are to be told of.
#[derive(Default)]
struct News {
    intent: bool,
    status: bool,
}

/// Whether a status says more than how far the log of voters has come.
fn is_news(old: &Status, new: &Status) -> bool {
    let whole = |s: &Status| (s.id, s.term, s.leader, s.leads, s.disk_full, s.tick_ms);
    let seat = |m: &MemberStatus| (m.id, m.voter, m.heard, m.snapshot, m.matched.filter(|_| !m.voter));
    whole(old) != whole(new) || old.conf != new.conf || !old.members.iter().map(seat).eq(new.members.iter().map(seat))
}

impl From<Unanswered> for ProposeError {
    fn from(e: Unanswered) -> ProposeError {
        match e {
            Unanswered::NotLeader { leader } => ProposeError::NotLeader { leader },
            Unanswered::Codec(e) => e.into(),
            Unanswered::Members { why, hint } => ProposeError::Refused(cluster::state::Refusal {
                code: model::Code::Conflict,
                message: why,
                hint,
            }),
            // While the lead is handed over nothing is taken: in a moment somebody does.
            e @ (Unanswered::Unknown { .. } | Unanswered::Overloaded) => ProposeError::Unknown(e.to_string()),
            e @ Unanswered::DiskFull => ProposeError::Unavailable(e.to_string()),
        }
    }
}

/// Octets from the kernel's generator.
pub(super) fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut out = [0; N];
    SystemRandom::new().fill(&mut out).map_err(|_| StoreError::Random)?;
    Ok(out)
}
