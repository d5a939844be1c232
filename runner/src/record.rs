//! What must survive a restart: a file a task in the state folder.

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use model::{EndpointId, api::TaskStatus};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{process::Marks, task::Order};

/// Largest record that is read, octets; commands and environments are at most a request's 1 MiB.
const MAX: u64 = 4 << 20;

/// How long the lock of another one is waited for.
const LOCK: Duration = Duration::from_secs(2);

/// A task as it was last known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What it runs for.
    pub(crate) order: Order,
    /// Namespace that netd gave it.
    pub(crate) netns: PathBuf,
    /// Text of its `/etc/resolv.conf`.
    pub(crate) resolv_conf: String,
    /// Its process; none: it was about to be started.
    pub(crate) process: Option<Marks>,
    /// Restarts so far.
    pub(crate) restarts: u32,
    /// Those that count for the restart policy.
    #[serde(default)]
    pub(crate) recent: u32,
    /// Its addresses, for health checks.
    #[serde(default)]
    pub(crate) addresses: Vec<IpAddr>,
    /// Its health, as last told.
    #[serde(default)]
    pub(crate) health: Option<bool>,
    /// It is not started again here: what was told last.
    #[serde(default)]
    pub(crate) done: Option<TaskStatus>,
}

/// The state folder.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    folder: PathBuf,
    // Held for as long as we live: two netd-run on one folder would start every task twice.
    _lock: std::sync::Arc<Flock<fs::File>>,
}

impl Store {
    /// Opens the folder, made when missing, for this process alone.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        // Environments of tasks may hold secrets.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot make the state folder {}; try: --state-dir", folder.display()))?;
        let path = folder.join("lock");
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}; try: --state-dir", path.display()))?;
        let lock = lock(file).with_context(|| {
            format!(
                "another netd-run works on {}; try: --state-dir with another folder",
                folder.display()
            )
        })?;
        Ok(Store {
            folder: folder.to_owned(),
            _lock: std::sync::Arc::new(lock),
        })
    }

    fn path(&self, id: &EndpointId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    /// Where a task's resolv.conf lies.
    pub(crate) fn resolv_conf(&self, id: &EndpointId) -> PathBuf {
        self.folder.join(format!("{id}.resolv.conf"))
    }

    /// Where the output of a task's health command goes.
    pub(crate) fn health_output(&self, id: &EndpointId) -> PathBuf {
        self.folder.join(format!("{id}.health"))
    }

    /// Every record. One that cannot be read is told and left where it is: its task is met again in its namespace.
    pub(crate) fn load(&self) -> anyhow::Result<Vec<Record>> {
        let list = fs::read_dir(&self.folder).with_context(|| format!("cannot read {}", self.folder.display()))?;
        let mut records = Vec::new();
        for entry in list {
            let path = entry
                .with_context(|| format!("cannot read {}", self.folder.display()))?
                .path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => records.push(record),
                Err(e) => tracing::warn!("{} is left alone: {e}", path.display()),
            }
        }
        Ok(records)
    }

    /// Keeps a record: whole or not at all, also over a crash.
    pub(crate) fn save(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        let id = &record.order.task.id;
        let fresh = self.folder.join(format!("{id}.new"));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        io::Write::write_all(&mut file, &text)?;
        fs::rename(&fresh, self.path(id))
    }

    /// Writes a task's resolv.conf, in place: tasks that run see the file through a bind mount of it.
    pub(crate) fn save_resolv_conf(&self, id: &EndpointId, text: &str) -> io::Result<PathBuf> {
        let path = self.resolv_conf(id);
        if fs::read_to_string(&path).ok().as_deref() != Some(text) {
            fs::write(&path, text)?;
        }
        Ok(path)
    }

    /// Drops what is kept of a task.
    pub(crate) fn forget(&self, id: &EndpointId) {
        for path in [self.path(id), self.resolv_conf(id), self.health_output(id)] {
            if let Err(e) = fs::remove_file(&path)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!("cannot remove {}: {e}", path.display());
            }
        }
    }
}

/// Waits a little: one that was killed holds its lock until the kernel has taken it apart.
fn lock(mut file: fs::File) -> nix::Result<Flock<fs::File>> {
    let end = Instant::now() + LOCK;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::Error::EWOULDBLOCK)) if Instant::now() < end => file = back,
            Err((_, e)) => return Err(e),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let size = fs::metadata(path)?.len();
    if size > MAX {
        return Err(io::Error::other(format!("it has {size} octets")));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}
