//! The log's files: real ones, in one folder that one netd at a time may open.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cluster::log::Disk;
use nix::fcntl::{Flock, FlockArg};

/// Ends the name of a file that is being made.
const UNFINISHED: &str = ".new";
/// Held as long as the folder is open.
const LOCK: &str = "lock";

/// See the module.
pub(super) struct Files {
    dir: PathBuf,
    /// Those that were written to.
    open: BTreeMap<String, File>,
    _lock: Flock<File>,
}

impl Files {
    /// Opens the folder, or makes it. [`io::ErrorKind::WouldBlock`]: another process has it open.
    pub(super) fn open(dir: &Path) -> io::Result<Files> {
        if !dir.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            if let Some(parent) = dir.parent().filter(|p| p.is_dir()) {
                File::open(parent)?.sync_all()?;
            }
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(LOCK))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| io::Error::from(e))?;
        let files = Files {
            dir: dir.to_owned(),
            open: BTreeMap::new(),
            _lock: lock,
        };
        for name in files.names()? {
            if name.ends_with(UNFINISHED) {
                fs::remove_file(files.dir.join(name))?;
            }
        }
        Ok(files)
    }

    /// Deletes every file of the log: of one that was never begun properly.
    pub(super) fn wipe(&mut self) -> io::Result<()> {
        for name in self.list()? {
            self.remove(&name)?;
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.dir)?
            .filter_map(|e| e.map(|e| e.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn file(&mut self, name: &str) -> io::Result<&File> {
        if !self.open.contains_key(name) {
            let file = OpenOptions::new().write(true).open(self.dir.join(name))?;
            // One segment is written to at a time: the others need no descriptor.
            self.open.clear();
            self.open.insert(name.to_owned(), file);
        }
        self.open.get(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for Files {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = self.names()?;
        names.retain(|n| n != LOCK && !n.ends_with(UNFINISHED));
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join(name))
    }

    fn create(&mut self, name: &str, head: &[u8], len: u64) -> io::Result<()> {
        let unfinished = self.dir.join(format!("{name}{UNFINISHED}"));
        if let Err(e) = fill(&unfinished, head, len) {
            // On a full disk its half would take the room that is missing.
            let _ = fs::remove_file(&unfinished);
            return Err(e);
        }
        fs::rename(&unfinished, self.dir.join(name))?;
        self.sync_dir()
    }

    fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all_at(bytes, at)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.open.remove(name);
        fs::remove_file(self.dir.join(name))?;
        self.sync_dir()
    }
}

/// A file of `len` octets that begins with `head`, durable.
fn fill(path: &Path, head: &[u8], len: u64) -> io::Result<()> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(head)?;
    let mut left = len.saturating_sub(head.len() as u64);
    while left > 0 {
        let n = left.min(ZEROS.len() as u64);
        file.write_all(&ZEROS[..usize::try_from(n).unwrap_or(ZEROS.len())])?;
        left -= n;
    }
    file.sync_all()
}
