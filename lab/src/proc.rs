//! What /proc tells about processes.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;

/// A process that is told from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// Clock ticks after boot (`/proc/PID/stat`, field 22; proc(5)).
    pub(crate) start: u64,
}

impl Identity {
    /// `None` when there is no such process, or when it is a zombie.
    pub(crate) fn of(pid: u32) -> Option<Identity> {
        let stat = Stat::read(pid)?;
        (stat.state != 'Z' && stat.state != 'X').then_some(Identity { pid, start: stat.start })
    }

    pub(crate) fn alive(self) -> bool {
        Identity::of(self.pid) == Some(self)
    }

    pub(crate) fn parse(text: &str) -> Option<Identity> {
        let (pid, start) = text.trim().split_once(' ')?;
        Some(Identity {
            pid: pid.parse().ok()?,
            start: start.parse().ok()?,
        })
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.start)
    }
}

struct Stat {
    state: char,
    parent: u32,
    start: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        let text = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).ok()?;
        // The command stands in parentheses and may hold anything: what follows the last one is plain.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        Some(Stat {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            start: fields.nth(17)?.parse().ok()?,
        })
    }
}

/// The living children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|candidate| Stat::read(*candidate).is_some_and(|s| s.parent == pid && s.state != 'Z'))
        .collect()
}

/// Resident memory of a process (`VmRSS` of proc(5)), octets.
///
/// # Errors
///
/// When there is no such process.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading a process's memory")?;
    let kib: u64 = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("process {pid} tells no VmRSS: it has ended"))?;
    Ok(kib * 1024)
}

/// The short name of a process (`/proc/PID/comm`), at most 15 octets.
pub(crate) fn comm(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_itself_and_alive() {
        let me = Identity::of(std::process::id()).unwrap();
        assert!(me.alive());
        assert!(resident(me.pid).unwrap() > 0);
        assert_eq!(Identity::parse(&me.to_string()), Some(me));
        assert!(
            !Identity {
                start: me.start + 1,
                ..me
            }
            .alive(),
            "another process with the same number"
        );
    }

    #[test]
    fn a_child_is_found_and_named() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(children(std::process::id()).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children(std::process::id()).contains(&child.id()));
    }
}
