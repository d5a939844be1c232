//! The managers' log: intent as it was agreed on, on disk before anybody is told.
//!
//! The shell around `cluster::raft`, `cluster::log` and `cluster::state`: [`files`](self::files) is the disk, one thread
//! (`driver`) ticks Raft, writes and syncs, applies, and answers. A [`Store`] is a cheap handle. What [`Store::propose`]
//! returned survives `kill -9` and a power cut. When a write fails nothing is acknowledged any more: the thread ends,
//! [`Store::fatal`] says why, and netd must exit at once, because after a failed fsync nobody knows what is on disk.

mod driver;
mod files;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use cluster::{
    log::Disk,
    manager::{Input, ManagerError, Status, salvage},
    raft::{Conf, ConfChange, Message},
    state::{Applied, CodecError, Command, InitCluster, NewNode, Outcome, Refusal, State},
};
use model::{Code, Intent};
use tokio::sync::{oneshot, watch};

pub use driver::Transport;
use driver::{Ask, Driver, Shared};
use files::Files;

/// Longest wait for a proposal. Afterwards its outcome is unknown; the same request id may be sent again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most proposals that wait for the thread; more are refused as overload.
const MAX_QUEUED: usize = 4096;

/// Octets of other managers' messages that wait for the thread; what comes on top is dropped.
const MAX_INBOUND: usize = 64 << 20;

/// Why the log cannot be opened, or can no longer be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder.
    #[error("cannot open the log's folder {dir}: {source}; try: check its owner and the disk")]
    Folder {
        /// Which.
        dir: String,
        /// Cause.
        source: io::Error,
    },
    /// Another netd has it open.
    #[error("the log in {0} is open in another process; try: stop the other netd, or set another state folder")]
    Locked(String),
    /// There is no log.
    #[error("there is no log in {0}; try: netctl cluster restore FILE")]
    Missing(String),
    /// [`Store::create`] where there is a cluster.
    #[error("there is a cluster in {0} already; try: netctl status")]
    Exists(String),
    /// The first command was refused; nothing was left behind.
    #[error("the cluster cannot begin: {0}")]
    Refused(Refusal),
    /// The manager: its log, Raft, or the state machine.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// The kernel gave no entropy.
    #[error("the kernel gives no random octets; try: a kernel with getrandom(2)")]
    Random,
    /// No thread.
    #[error("cannot start the log's thread: {0}; try: a higher limit of processes")]
    Thread(io::Error),
}

/// Why a proposal has no answer of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The state machine, or its codec, refused it. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another manager leads, or nobody does. Nothing was changed.
    #[error("this manager does not lead{}; try: the leader (netctl cluster members)", leader.map(|l| format!(", n{l} does")).unwrap_or_default())]
    NotLeader {
        /// Who does, if known.
        leader: Option<u64>,
    },
    /// The leader changed, or went, while it was under way: it may or may not come true. The same request may be sent again.
    #[error("the change may have been made or not: {0}; try: again, and netctl cluster members")]
    Unknown(String),
    /// It may or may not come true: no majority in time, overload, or the log has failed.
    #[error("the change was not agreed on: {0}; try: again, and netctl cluster members")]
    Unavailable(String),
}

impl From<CodecError> for ProposeError {
    fn from(e: CodecError) -> Self {
        ProposeError::Refused(Refusal {
            code: Code::Invalid,
            message: e.to_string(),
            hint: "a shorter command, environment or list".into(),
        })
    }
}

/// The log of this manager; clones are handles of the same. The thread ends with [`Store::shutdown`] or the last handle.
#[derive(Clone)]
pub struct Store {
    asks: mpsc::Sender<Ask>,
    shared: Arc<Shared>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Store {
    /// Begins a cluster of which this node is the only manager, and carries `init` out. Blocks on the disk.
    ///
    /// What an earlier attempt left that died before its first command was acknowledged is swept.
    pub fn create(dir: &Path, log_key: [u8; 32], init: InitCluster, transport: Transport) -> Result<Store, StoreError> {
        if Store::opened(dir, &log_key, nobody())?.is_some() {
            return Err(StoreError::Exists(dir.display().to_string()));
        }
        let mut driver = Driver::create(Store::files(dir)?, &log_key, transport)?;
        let (answer, mut answered) = oneshot::channel();
        driver.shared().queued.fetch_add(1, Ordering::Relaxed);
        driver.take(Ask::Propose {
            request: request()?,
            command: Box::new(Command::InitCluster(init)),
            answer,
        });
        driver.work()?;
        let refused = match answered.try_recv() {
            Ok(Ok(Ok(_))) => return Store::spawn(driver),
            Ok(Ok(Err(refusal)) | Err(ProposeError::Refused(refusal))) => refusal,
            Ok(Err(e)) => Refusal {
                code: Code::Internal,
                message: e.to_string(),
                hint: "netctl cluster init again".into(),
            },
            Err(_) => Refusal {
                code: Code::Internal,
                message: "the first command was not applied".into(),
                hint: "netctl cluster init again".into(),
            },
        };
        drop(driver);
        let mut files = Store::files(dir)?;
        files.wipe().map_err(|e| folder(dir, e))?;
        Err(StoreError::Refused(refused))
    }

    /// Opens the log that is there. `None`: this node is no manager of a cluster. Blocks on the disk.
    pub fn open(dir: &Path, log_key: [u8; 32], transport: Transport) -> Result<Option<Store>, StoreError> {
        match Store::opened(dir, &log_key, transport)? {
            Some(driver) => Store::spawn(driver).map(Some),
            None => Ok(None),
        }
    }

    /// An empty log under the Raft id that the managers' log gave this node; theirs comes over the network. `id` must not
    /// have been used before. Blocks on the disk.
    pub fn join(dir: &Path, log_key: [u8; 32], id: u64, transport: Transport) -> Result<Store, StoreError> {
        Store::spawn(Driver::join(Store::files(dir)?, &log_key, id, transport)?)
    }

    /// A log that begins with a state from elsewhere, with this manager alone. The folder must be empty. Blocks on the disk.
    pub fn restore(dir: &Path, log_key: [u8; 32], id: u64, state: &State) -> Result<(), StoreError> {
        Driver::restore(Store::files(dir)?, &log_key, id, state)
    }

    /// Replaces the log in a folder by one that holds all that it held, with this manager alone: see [`State::alone`]. A
    /// crash leaves the one or the other. Blocks on the disk.
    pub fn recover(dir: &Path, log_key: [u8; 32], me: &NewNode) -> Result<(), StoreError> {
        let found = salvage(Store::files(dir)?, &log_key, driver::random()?)?;
        let mut state = found.ok_or_else(|| StoreError::Missing(dir.display().to_string()))?;
        let (_, id) = state.alone(me).map_err(StoreError::Refused)?;
        let mut beside = dir.as_os_str().to_owned();
        beside.push(".anew");
        let beside = std::path::PathBuf::from(beside);
        match std::fs::remove_dir_all(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(folder(&beside, e)),
            _ => {}
        }
        Store::restore(&beside, log_key, id, &state)?;
        nix::fcntl::renameat2(
            nix::fcntl::AT_FDCWD,
            &beside,
            nix::fcntl::AT_FDCWD,
            dir,
            nix::fcntl::RenameFlags::RENAME_EXCHANGE,
        )
        .map_err(|e| folder(dir, e.into()))?;
        // What is beside now is the old log: of no use, and full of secrets.
        let gone = std::fs::remove_dir_all(&beside);
        gone.map_err(|e| folder(&beside, e))
    }

    /// Deletes the log in a folder, if there is one. Blocks on the disk.
    pub fn wipe(dir: &Path) -> Result<(), StoreError> {
        if !dir.is_dir() {
            return Ok(());
        }
        Store::files(dir)?.wipe().map_err(|e| folder(dir, e))
    }

    fn opened(dir: &Path, key: &[u8; 32], transport: Transport) -> Result<Option<Driver<Files>>, StoreError> {
        if !dir.is_dir() {
            return Ok(None);
        }
        let Some(driver) = Driver::open(Store::files(dir)?, key, transport)? else {
            return Ok(None);
        };
        // One that joins others has no state before it hears of theirs.
        if driver.read(State::is_initialised) || driver.joins() {
            return Ok(Some(driver));
        }
        drop(driver);
        tracing::info!("sweeping a cluster that had not begun");
        Store::files(dir)?.wipe().map_err(|e| folder(dir, e))?;
        Ok(None)
    }

    fn files(dir: &Path) -> Result<Files, StoreError> {
        Files::open(dir).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => StoreError::Locked(dir.display().to_string()),
            _ => folder(dir, e),
        })
    }

    fn spawn<D: Disk + Send + 'static>(driver: Driver<D>) -> Result<Store, StoreError> {
        let (asks, queue) = mpsc::channel();
        let shared = driver.shared();
        let thread = std::thread::Builder::new()
            .name("raft".into())
            .spawn(move || driver.run(&queue))
            .map_err(StoreError::Thread)?;
        Ok(Store {
            asks,
            shared,
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// Puts a command into the log, and waits until it is applied here. Returns the revision that holds it, and what it
    /// gave out.
    pub async fn propose(&self, command: Command) -> Result<(u64, Applied), ProposeError> {
        let request = request().map_err(|e| ProposeError::Unavailable(e.to_string()))?;
        self.propose_as(request, command).await
    }

    /// As [`Store::propose`], under an id chosen by the caller: a second time it is not carried out again, and the answer
    /// is the first one.
    pub async fn propose_as(&self, request: u128, command: Command) -> Result<(u64, Applied), ProposeError> {
        if self.shared.queued.fetch_add(1, Ordering::Relaxed) >= MAX_QUEUED {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(ProposeError::Unavailable("too many changes wait".into()));
        }
        let (answer, answered) = oneshot::channel();
        let ask = Ask::Propose {
            request,
            command: Box::new(command),
            answer,
        };
        let outcome: Outcome = self.ask(ask, answered).await?;
        Ok(outcome?)
    }

    /// Waits until the state here holds all that was acknowledged before the call, by whatever manager. Returns the index
    /// of the last entry in it.
    pub async fn settle(&self) -> Result<u64, ProposeError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::Read(answer), answered).await
    }

    /// Changes who is a member; returns who is.
    pub async fn change(&self, change: ConfChange, force: bool) -> Result<Conf, ProposeError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::Change { change, force, answer }, answered).await
    }

    /// Brings in what the network did: messages, what became of those sent, round trips, a wish to hand over.
    pub fn input(&self, input: Input) {
        // A store that has ended is told by [`Store::fatal`].
        let _ = self.asks.send(Ask::Input(input));
    }

    /// Brings in another manager's message. `false`: too many wait, it is dropped; Raft sends it again.
    pub fn message(&self, message: Message) -> bool {
        let octets = crate::peers::octets(&message);
        if self.shared.inbound.fetch_add(octets, Ordering::Relaxed) > MAX_INBOUND {
            self.shared.inbound.fetch_sub(octets, Ordering::Relaxed);
            return false;
        }
        let message = Box::new(message);
        self.asks.send(Ask::Message { message, octets }).is_ok()
    }

    async fn ask<T>(&self, ask: Ask, answered: oneshot::Receiver<Result<T, ProposeError>>) -> Result<T, ProposeError> {
        let unavailable = |why: &str| Err(ProposeError::Unavailable(why.into()));
        if self.asks.send(ask).is_err() {
            return unavailable(&self.why_gone());
        }
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => unavailable(&self.why_gone()),
            Err(_) if self.status().disk_full => unavailable("the disk of this manager's log is full"),
            Err(_) => unavailable("no majority of the managers agreed in time"),
        }
    }

    fn why_gone(&self) -> String {
        let why = self.shared.fatal.borrow().clone();
        why.unwrap_or_else(|| "this manager's log is closed".into())
    }

    /// The intent as of the last applied entry. Changes once for all entries that were applied together. Who is answered
    /// finds in it what the answer is about; those who wait for its changes are told after that.
    pub fn intent(&self) -> watch::Receiver<Arc<Intent>> {
        self.shared.intent.subscribe()
    }

    /// Looks at the whole state, secrets included. `f` must be short: nothing is applied meanwhile.
    pub fn with<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.shared.state.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// Term, leader, indices, voters.
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// As [`Store::status`], to be waited on. Tells who leads, who is a member and how a learner comes on, and not of each
    /// entry: for that there is [`Store::reached`].
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Waits until the entry at an index is applied here; for ever, once the thread has ended.
    pub async fn reached(&self, index: u64) {
        if self.shared.applied.subscribe().wait_for(|a| *a >= index).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Becomes `Some(why)` when the log can no longer be written: netd must exit at once.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.shared.fatal.subscribe()
    }

    /// Ends the thread and closes the files. What was acknowledged is on disk already; what waits is not answered.
    pub async fn shutdown(&self) {
        let _ = self.asks.send(Ask::Stop);
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

fn folder(dir: &Path, source: io::Error) -> StoreError {
    StoreError::Folder {
        dir: dir.display().to_string(),
        source,
    }
}

/// For a manager that is alone.
pub fn nobody() -> Transport {
    Box::new(|_| {})
}

fn request() -> Result<u128, StoreError> {
    Ok(u128::from_le_bytes(driver::random()?))
}
