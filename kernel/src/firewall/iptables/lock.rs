//! Who holds iptables' lock.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// The process that holds a lock on a file, as `name (pid N)`; `None`: it cannot be told (any more).
pub(super) fn holder(lock: &Path) -> Option<String> {
    let inode = fs::metadata(lock).ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|l| of_line(l, inode))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} (pid {pid})", name.trim()))
}

/// A line is `N: FLOCK ADVISORY WRITE pid major:minor:inode start end`; one with `->` waits.
fn of_line(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    words.next().filter(|kind| *kind == "FLOCK")?;
    let pid = words.nth(2)?.parse().ok()?;
    let file = words.next()?.rsplit(':').next()?;
    (file.parse() == Ok(inode)).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::of_line;

    #[test]
    fn a_lock_has_a_holder() {
        let line = "12: FLOCK  ADVISORY  WRITE 4711 00:1a:2417 0 EOF";
        assert_eq!(of_line(line, 2417), Some(4711));
        assert_eq!(of_line(line, 17), None);
        assert_eq!(
            of_line("12: -> FLOCK  ADVISORY  WRITE 4711 00:1a:2417 0 EOF", 2417),
            None
        );
        assert_eq!(of_line("12: POSIX  ADVISORY  WRITE 4711 00:1a:2417 0 EOF", 2417), None);
        assert_eq!(of_line("", 2417), None);
    }
}
