//! The file system that keeps maps, programs and links while no process holds them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::BpfError;

/// Makes sure that `dir` exists in a bpffs. Where its parent is in none, one is mounted there (`/sys/fs/bpf` of a host
/// that has none yet); an own mount namespace keeps it to itself.
pub(super) fn ensure(dir: &Path) -> Result<(), BpfError> {
    let parent = dir.parent().unwrap_or(dir);
    fs::create_dir_all(parent).map_err(|e| path("create", parent, e))?;
    if !is_bpffs(parent)? {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        match mount(Some("bpf"), parent, Some("bpf"), flags, Some("mode=0700")) {
            Ok(()) => {}
            Err(Errno::ENODEV) => {
                return Err(BpfError::Missing {
                    feature: "bpffs",
                    config: "CONFIG_BPF_SYSCALL=y",
                    source: Errno::ENODEV.into(),
                });
            }
            Err(Errno::EPERM) => {
                return Err(BpfError::Denied {
                    what: "mount a bpffs",
                    source: Errno::EPERM.into(),
                });
            }
            Err(e) => return Err(path("mount a bpffs at", parent, e.into())),
        }
    }
    match fs::create_dir(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(path("create", dir, e)),
    }
}

fn is_bpffs(dir: &Path) -> Result<bool, BpfError> {
    let found = statfs(dir).map_err(|e| path("examine", dir, e.into()))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

/// Names in a folder.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, BpfError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| path("list", dir, e))? {
        let entry = entry.map_err(|e| path("list", dir, e))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Removes a pin; one that is gone is fine.
pub(super) fn unpin(at: &Path) -> Result<(), BpfError> {
    match fs::remove_file(at) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(path("remove", at, e)),
    }
}

pub(super) fn path(what: &'static str, at: &Path, source: io::Error) -> BpfError {
    BpfError::Path {
        what,
        path: PathBuf::from(at),
        source,
    }
}
