//! What gossip keeps on disk, in `<state_dir>/gossip`: the last view, and counters that must never go back.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use cluster::membership::MemberState;
use model::{api::NodeHealth, ids::NodeId};
use serde::{Deserialize, Serialize};

use super::GossipError;
use crate::disk::write_atomic;

const FOLDER: &str = "gossip";
const VIEW: &str = "view";
const COUNTERS: &str = "counters.json";
/// Versions reserved on disk at a time: one write for so many changes of rows.
const RESERVE: u64 = 4096;

/// The last view.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct View {
    /// Members that SWIM held for alive.
    pub(super) members: Vec<MemberState>,
    /// Health of nodes.
    pub(super) health: BTreeMap<NodeId, NodeHealth>,
    /// Encoded rows, tombstones included.
    pub(super) rows: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Counters {
    /// No row was given a higher version than this.
    version: u64,
    /// SWIM's generation of the daemon that runs or ran last.
    generation: u64,
}

/// The files.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    counters: Counters,
    next: u64,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> GossipError {
    let path = path.to_owned();
    move |source| GossipError::Disk { path, source }
}

/// A task of ours that panicked.
pub(super) fn joined(e: &tokio::task::JoinError) -> GossipError {
    GossipError::Disk {
        path: VIEW.into(),
        source: std::io::Error::other(e.to_string()),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, GossipError> {
    match fs::read(path) {
        Ok(b) => Ok(Some(b)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(path)(e)),
    }
}

impl Disk {
    /// Opens the folder, takes a new generation, and reads the last view; one that does not read counts as none.
    pub(super) fn open(state_dir: &Path) -> Result<(Disk, View), GossipError> {
        let dir = state_dir.join(FOLDER);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(failed(&dir))?;
        let spoilt = |what: &str| tracing::warn!(dir = %dir.display(), "gossip's {what} does not read and is left out");
        let counters = match read(&dir.join(COUNTERS))? {
            None => Counters::default(),
            Some(b) => serde_json::from_slice(&b).unwrap_or_else(|_| {
                spoilt("counters");
                Counters::default()
            }),
        };
        let view = match read(&dir.join(VIEW))? {
            None => View::default(),
            Some(b) => postcard::from_bytes(&b).unwrap_or_else(|_| {
                spoilt("last view");
                View::default()
            }),
        };
        // The clock only helps when the disk was lost: peers would take a low generation for an old one.
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let clock = clock.map_or(0, |d| d.as_secs());
        let mut disk = Disk {
            dir,
            counters,
            next: counters.version + 1,
        };
        disk.counters.generation = (counters.generation + 1).max(clock);
        disk.counters.version += RESERVE;
        disk.keep()?;
        Ok((disk, view))
    }

    /// Counters that nothing keeps.
    pub(super) fn nowhere() -> Disk {
        Disk {
            // No folder, so nothing can be written there.
            dir: "/dev/null".into(),
            counters: Counters::default(),
            next: 1,
        }
    }

    fn keep(&self) -> Result<(), GossipError> {
        let path = self.dir.join(COUNTERS);
        let json = serde_json::to_vec(&self.counters).unwrap_or_default();
        write_atomic(&path, &json, 0o600).map_err(failed(&path))
    }

    /// The generation to run with.
    pub(super) fn generation(&self) -> u64 {
        self.counters.generation
    }

    /// SWIM has taken a higher one.
    pub(super) fn set_generation(&mut self, generation: u64) {
        self.counters.generation = self.counters.generation.max(generation);
        if let Err(e) = self.keep() {
            tracing::warn!(error = %e, "the gossip generation was not kept");
        }
    }

    /// A version for a row: never given before, also not before a restart.
    pub(super) fn version(&mut self) -> u64 {
        let version = self.next;
        self.next += 1;
        if version > self.counters.version {
            self.counters.version = version + RESERVE;
            if let Err(e) = self.keep() {
                // Peers hold the higher versions and give them back after a restart.
                tracing::warn!(error = %e, "the version of rows was not kept");
            }
        }
        version
    }

    /// A view on its way to the disk.
    pub(super) fn save(&self, view: View) -> Save {
        Save {
            path: self.dir.join(VIEW),
            view,
        }
    }

    /// Forgets the view: this node will be another one.
    pub(super) fn forget(&self) {
        let _ = fs::remove_file(self.dir.join(VIEW));
    }
}

/// See [`Disk::save`]. Writing takes time, so it is done off the lock.
pub(super) struct Save {
    path: PathBuf,
    view: View,
}

impl Save {
    /// Octets of its rows, which are nearly all of it.
    pub(super) fn len(&self) -> usize {
        self.view.rows.len()
    }

    /// Writes it.
    pub(super) fn write(self) -> Result<(), GossipError> {
        let bytes =
            postcard::to_allocvec(&self.view).map_err(|e| failed(&self.path)(std::io::Error::other(e.to_string())))?;
        write_atomic(&self.path, &bytes, 0o600).map_err(failed(&self.path))
    }
}
