//! Published ports inside the host's ephemeral range are kept from being handed to the host's own connections
//! (`net.ipv4.ip_local_reserved_ports`): their replies would be taken for the published port's.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use kernel::sysctl::{self, SysctlError};

const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
const RANGE: &str = "net/ipv4/ip_local_port_range";

/// What netd added to the list, kept beside the state so that the operator's own entries are told from ours after a
/// restart.
#[derive(Debug)]
pub(super) struct Reserve {
    file: PathBuf,
    ours: BTreeSet<u16>,
}

impl Reserve {
    pub(super) fn open(state_dir: &Path) -> Reserve {
        let file = state_dir.join("reserved-ports");
        let ours = std::fs::read_to_string(&file).map(|t| parse(&t)).unwrap_or_default();
        Reserve { file, ours }
    }

    /// What netd has in the list.
    pub(super) fn held(&self) -> BTreeSet<u16> {
        self.ours.clone()
    }

    /// Makes the list hold these ports beside what others put there; the number of writes.
    pub(super) fn sync(&mut self, published: &BTreeSet<u16>) -> Result<u64, SysctlError> {
        let Some(range) = sysctl::read(RANGE)? else {
            return Ok(0);
        };
        let mut ends = range.split_whitespace().filter_map(|n| n.parse::<u16>().ok());
        let (Some(low), Some(high)) = (ends.next(), ends.next()) else {
            return Ok(0);
        };
        let want: BTreeSet<u16> = published.iter().copied().filter(|p| (low..=high).contains(p)).collect();
        if want.is_empty() && self.ours.is_empty() {
            return Ok(0);
        }
        let now = parse(&sysctl::read(RESERVED)?.unwrap_or_default());
        let (list, ours) = merge(&now, &self.ours, &want);
        if ours != self.ours {
            // First what is ours, then the list: after a crash in between nothing of the operator's is taken away.
            if let Err(e) = crate::disk::write_atomic(&self.file, print(&ours).as_bytes(), 0o600) {
                tracing::warn!("{}: {e}", self.file.display());
            }
            self.ours = ours;
        }
        if list == now {
            Ok(0)
        } else {
            Ok(u64::from(sysctl::set(RESERVED, &print(&list))?))
        }
    }
}

/// The list to write, and which of it is ours: an entry that others have is never ours.
fn merge(now: &BTreeSet<u16>, ours: &BTreeSet<u16>, want: &BTreeSet<u16>) -> (BTreeSet<u16>, BTreeSet<u16>) {
    let foreign: BTreeSet<u16> = now.difference(ours).copied().collect();
    let ours = want.difference(&foreign).copied().collect();
    (foreign.union(&ours).copied().collect(), ours)
}

/// `80,443,8000-8010`, as the kernel prints it.
fn parse(text: &str) -> BTreeSet<u16> {
    let mut out = BTreeSet::new();
    for part in text.trim().split(',') {
        let (a, b) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(a), Ok(b)) = (a.trim().parse::<u16>(), b.trim().parse::<u16>()) {
            out.extend(a..=b);
        }
    }
    out
}

fn print(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for p in ports {
        match ranges.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(*p) => *end = *p,
            _ => ranges.push((*p, *p)),
        }
    }
    let text = |(a, b): &(u16, u16)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    let text: Vec<String> = ranges.iter().map(text).collect();
    text.join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_entries_stay() {
        let set = |t: &str| parse(t);
        let (list, ours) = merge(&set("40000-40002,50000"), &set("50000"), &set("40001,45000"));
        assert_eq!(print(&list), "40000-40002,45000\n");
        assert_eq!(print(&ours), "45000\n");
        let (list, ours) = merge(&list, &ours, &set(""));
        assert_eq!(print(&list), "40000-40002\n");
        assert!(ours.is_empty());
    }
}
