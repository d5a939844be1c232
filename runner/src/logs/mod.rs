//! Output of tasks: a file each, bounded, with the times at which its lines were written, and swept when its task is gone.
//!
//! Tasks write to their files themselves, so that they need nobody for it. What is written when is seen from outside
//! ([`watch`]) and kept beside the log ([`model::stamps`]).

mod cut;
mod sweep;
mod times;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use anyhow::Context as _;
use model::{EndpointId, stamps};

/// The log folder.
#[derive(Debug, Clone)]
pub(crate) struct Logs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    /// Logs of tasks that there are, and how long each was when it was looked at last. Who changes a log or its times
    /// holds the lock.
    known: Mutex<Known>,
}

type Known = BTreeMap<EndpointId, u64>;

impl Logs {
    /// Opens the folder, made when missing.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder.join(stamps::FOLDER))
            .with_context(|| format!("cannot make the log folder {}; try: --log-dir", folder.display()))?;
        let logs = Logs(Arc::new(Inner {
            folder: folder.to_owned(),
            known: Mutex::default(),
        }));
        if let Err(e) = watch::start(&logs) {
            tracing::warn!(
                "log lines get times in steps of some seconds, {} cannot be watched: {e}; try: a larger \
                 fs.inotify.max_user_instances",
                folder.display()
            );
        }
        Ok(logs)
    }

    /// A task's file.
    pub(crate) fn path(&self, id: &EndpointId) -> PathBuf {
        self.0.folder.join(format!("{id}.log"))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // No code panics while it holds the lock; if one did, the lengths would be looked at anew.
        self.0.known.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A task is about to write to its log, or was met writing.
    pub(crate) fn begin(&self, id: &EndpointId) {
        let mut known = self.known();
        match times::begin(&self.path(id)) {
            Ok(length) => drop(known.insert(id.clone(), length)),
            Err(e) => tracing::warn!("{id}: its log has no times: {e}"),
        }
    }

    /// A task is gone: nothing writes to its log any more.
    pub(crate) fn end(&self, id: &EndpointId) {
        let mut known = self.known();
        self.look(&mut known, id);
        known.remove(id);
    }

    /// Looks how long a log is by now.
    fn see(&self, id: &EndpointId) {
        self.look(&mut self.known(), id);
    }

    fn see_all(&self) {
        let mut known = self.known();
        let ids: Vec<EndpointId> = known.keys().cloned().collect();
        ids.iter().for_each(|id| self.look(&mut known, id));
    }

    fn look(&self, known: &mut Known, id: &EndpointId) {
        let Some(length) = known.get_mut(id) else { return };
        match times::see(&self.path(id), *length) {
            Ok(now) => *length = now,
            Err(e) => tracing::debug!("{id}: a time is not kept: {e}"),
        }
    }

    /// Cuts a log that is too long.
    pub(crate) fn trim(&self, id: &EndpointId) {
        let mut known = self.known();
        self.look(&mut known, id);
        match cut::trim(&self.path(id), cut::MAX) {
            Ok(cut) => {
                if let Some(length) = known.get_mut(id).filter(|_| cut) {
                    *length = 0;
                }
            }
            Err(e) => tracing::warn!("{id}: its log cannot be cut: {e}"),
        }
    }

    /// Looks after all of it, from time to time: cuts what is too long, and sweeps what tasks have left that are not among
    /// the `living`.
    pub(crate) fn tend(&self, living: &BTreeSet<EndpointId>) {
        self.see_all();
        for id in living {
            self.trim(id);
        }
        match self.sweep(living) {
            Ok(0) => {}
            Ok(logs) => tracing::info!(logs, "logs of tasks that are gone are swept"),
            Err(e) => tracing::warn!("old logs cannot be swept from {}: {e}", self.0.folder.display()),
        }
    }
}

/// What a call came to, if the file was not simply absent.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(v) => Ok(Some(v)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// `FILE` with something at the end of its name.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

#[cfg(test)]
mod tests;
