//! What tasks have left that are gone.

use std::{
    collections::BTreeSet,
    fs::{self, Metadata},
    io,
    time::{Duration, SystemTime},
};

use model::{EndpointId, stamps};

use super::{Known, Logs, beside, there};

/// How long the log of a task that is gone is kept after its last line.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// Octets of them in all: the oldest go first.
const KEEP_SIZE: u64 = 256 << 20;

impl Logs {
    /// Removes logs of tasks that are neither `living` nor known. Only what has times beside it is ours: other files in
    /// the folder are left alone.
    pub(super) fn sweep(&self, living: &BTreeSet<EndpointId>) -> io::Result<usize> {
        self.sweep_to(living, SystemTime::now(), KEEP_SIZE)
    }

    pub(super) fn sweep_to(&self, living: &BTreeSet<EndpointId>, now: SystemTime, room: u64) -> io::Result<usize> {
        let known = self.known();
        let mut left: Vec<(SystemTime, u64, EndpointId)> = Vec::new();
        for entry in fs::read_dir(self.0.folder.join(stamps::FOLDER))? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|n| n.strip_suffix(".log")?.parse().ok());
            if let Some(id) = id.filter(|id| !living.contains(id) && !known.contains_key(id)) {
                let (written, size) = self.left(&id)?;
                left.push((written, size, id));
            }
        }
        left.sort_by(|a, b| b.cmp(a));
        let (mut kept, mut swept) = (0u64, 0);
        for (written, size, id) in left {
            kept = kept.saturating_add(size);
            let age = now.duration_since(written).unwrap_or_default();
            if age > KEEP || kept > room {
                self.remove(&known, &id)?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// When the last line was written, and octets of it all.
    fn left(&self, id: &EndpointId) -> io::Result<(SystemTime, u64)> {
        let (mut written, mut size) = (SystemTime::UNIX_EPOCH, 0);
        for path in self.files(id) {
            if let Some(m) = there(fs::metadata(path))? {
                written = written.max(m.modified()?);
                size += Metadata::len(&m);
            }
        }
        Ok((written, size))
    }

    /// `known` is locked: nobody begins to write one meanwhile.
    fn remove(&self, _known: &Known, id: &EndpointId) -> io::Result<()> {
        for path in self.files(id) {
            there(fs::remove_file(path))?;
        }
        Ok(())
    }

    /// All that belongs to a log, its times last: what is left of it is found by them.
    fn files(&self, id: &EndpointId) -> Vec<std::path::PathBuf> {
        let log = self.path(id);
        let times = self.0.folder.join(stamps::FOLDER).join(format!("{id}.log"));
        let ends = [".new", ".1", ""];
        let both = [log, times].into_iter();
        both.flat_map(|path| ends.map(|end| beside(&path, end))).collect()
    }
}
