//! The folder of a run: logs and state of its hosts, and who it belongs to.
//!
//! `<base>/<name>-<pid>-<n>/` holds `owner` (the process that made the lab), `anchors` (one line a host), `kept` when
//! the lab shall outlive its maker, and a folder per host. The maker removes it; when the maker is dead, the last
//! anchor to end does; what still stays (a machine that lost power) the next lab sweeps.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::proc::Identity;
use crate::wait::{eventually, until};

/// Where the folders of runs lie; `NETD_LAB_DIR` chooses another place.
const BASE: &str = "/run/netd-lab";

static NEXT: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    pub(crate) fn create(name: &str) -> anyhow::Result<RunFolder> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base().join(format!("{name}-{}-{number}", std::process::id()));
        // Another run that ends removes the base when it is empty, perhaps between our two steps.
        until("the run folder", Duration::from_secs(2), || {
            fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
            Ok(Some(()))
        })?;
        let me = Identity::of(std::process::id()).context("reading /proc/self/stat")?;
        fs::write(path.join("owner"), format!("{me}\n")).context("writing the owner of the run folder")?;
        Ok(RunFolder { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn add_anchor(&self, pid: u32) -> anyhow::Result<()> {
        let anchor = Identity::of(pid).context("the anchor of a host ended at once")?;
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path.join("anchors"))
            .context("recording an anchor")?;
        writeln!(file, "{anchor}").context("recording an anchor")
    }

    pub(crate) fn mark_kept(&self) -> anyhow::Result<()> {
        fs::write(self.path.join("kept"), "").context("marking the lab as kept")
    }

    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.path);
        remove_base_if_empty();
    }
}

fn base() -> PathBuf {
    std::env::var_os("NETD_LAB_DIR").map_or_else(|| PathBuf::from(BASE), PathBuf::from)
}

/// rmdir(2) refuses a folder that still holds another run, which is what is wanted.
fn remove_base_if_empty() {
    let _ = fs::remove_dir(base());
}

fn identities(file: &Path) -> Vec<Identity> {
    fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .filter_map(Identity::parse)
        .collect()
}

fn folders() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(base()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.join("owner").is_file())
        .collect();
    found.sort();
    found
}

/// For an anchor at its end: takes itself off the list, and removes the folder when it was the last and the owner is
/// dead too. So a lab whose owner was killed leaves not even its logs.
pub fn leave(folder: &Path) {
    let Ok(list) = File::options().read(true).write(true).open(folder.join("anchors")) else {
        return;
    };
    // Two anchors that end together must not each take the other for alive.
    let Ok(_lock) = Flock::lock(list, FlockArg::LockExclusive) else {
        return;
    };
    let others: Vec<Identity> = identities(&folder.join("anchors"))
        .into_iter()
        .filter(|a| a.pid != std::process::id())
        .collect();
    let lines: String = others.iter().map(|a| format!("{a}\n")).collect();
    let _ = fs::write(folder.join("anchors"), lines);
    let owners = identities(&folder.join("owner"));
    if !owners.iter().chain(&others).any(|p| p.alive()) {
        let _ = fs::remove_dir_all(folder);
        if let Some(base) = folder.parent() {
            let _ = fs::remove_dir(base);
        }
    }
}

/// Removes the folders of runs that are over. Answers their names.
pub fn sweep() -> Vec<String> {
    let mut swept = Vec::new();
    for folder in folders() {
        let owners = identities(&folder.join("owner"));
        let anchors = identities(&folder.join("anchors"));
        // A folder in the middle of being made has an empty owner file: left alone.
        if owners.is_empty() || owners.iter().chain(&anchors).any(|p| p.alive()) {
            continue;
        }
        if fs::remove_dir_all(&folder).is_ok() {
            swept.extend(folder.file_name().map(|n| n.to_string_lossy().into_owned()));
        }
    }
    remove_base_if_empty();
    swept
}

/// The folders of labs that were told to outlive their maker.
pub fn kept() -> Vec<PathBuf> {
    folders().into_iter().filter(|f| f.join("kept").is_file()).collect()
}

/// Ends every kept lab and removes its folder. Answers how many there were.
///
/// # Errors
///
/// When a host does not end within 10 s.
pub fn end_kept() -> anyhow::Result<usize> {
    let labs = kept();
    for lab in &labs {
        let anchors = identities(&lab.join("anchors"));
        for anchor in anchors.iter().filter(|a| a.alive()) {
            // The identity was compared a moment ago; PID 1 of the host ends with its anchor.
            let _ = kill(Pid::from_raw(i32::try_from(anchor.pid)?), Signal::SIGKILL);
        }
        eventually("the kept hosts to end", Duration::from_secs(10), || {
            Ok(anchors.iter().all(|a| !a.alive()))
        })?;
        fs::remove_dir_all(lab).with_context(|| format!("removing {}", lab.display()))?;
    }
    remove_base_if_empty();
    Ok(labs.len())
}
