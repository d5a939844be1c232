//! Settings of the host that one data path wants and the other does not: they get back what they were before.
//!
//! Of what makes a router of the host (`forwarding`, `accept_ra`) nothing is taken back: others may have come to rely on it
//! without a word, and both data paths want it. Settings of our own devices go with these.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use kernel::sysctl::{self, SysctlError};
use overlay::Sysctl;

/// Which ones, by the last part of their key.
const OWN: [&str; 3] = ["accept_local", "route_localnet", "send_redirects"];

/// What they were. Kept beside the state: it is known after a restart, too.
#[derive(Debug)]
pub(super) struct Former {
    file: PathBuf,
    was: BTreeMap<String, Was>,
}

/// A setting that netd has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Was {
    before: String,
    ours: String,
}

impl Former {
    pub(super) fn open(state_dir: &Path) -> Former {
        let file = state_dir.join("former-settings");
        let was = std::fs::read_to_string(&file).map(|t| parse(&t)).unwrap_or_default();
        Former { file, was }
    }

    /// To be told what a pass will set, before it does.
    pub(super) fn note(&mut self, wanted: &BTreeMap<String, Sysctl>) -> Result<(), SysctlError> {
        let before = self.was.clone();
        for (key, sysctl) in wanted.iter().filter(|(key, _)| is_own(key)) {
            let now = sysctl::read(key)?;
            note(&mut self.was, key, now.as_deref(), sysctl.value);
        }
        if self.was != before {
            self.write();
        }
        Ok(())
    }

    /// Gives back those that are not wanted any more; the number of writes.
    pub(super) fn give_back(&mut self, wanted: &BTreeMap<String, Sysctl>) -> Result<u64, SysctlError> {
        let due: Vec<String> = self.was.keys().filter(|k| !wanted.contains_key(*k)).cloned().collect();
        let mut writes = 0;
        for key in &due {
            let Some(was) = self.was.get(key) else { continue };
            // Whoever changed it after us is left alone.
            if sysctl::read(key)?.as_ref() == Some(&was.ours) {
                writes += u64::from(sysctl::set(key, &was.before)?);
            }
            self.was.remove(key);
        }
        if !due.is_empty() {
            self.write();
        }
        Ok(writes)
    }

    fn write(&self) {
        let lines: String = self
            .was
            .iter()
            .map(|(k, w)| format!("{k} {} {}\n", w.before, w.ours))
            .collect();
        if let Err(e) = crate::disk::write_atomic(&self.file, lines.as_bytes(), 0o600) {
            tracing::warn!("{}: {e}", self.file.display());
        }
    }
}

fn is_own(key: &str) -> bool {
    let mut parts = key.split('/').rev();
    let (last, device) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    OWN.contains(&last) && matches!(device, "lo" | "all")
}

/// What is to be remembered of a setting that is `now` and will be `ours`.
fn note(was: &mut BTreeMap<String, Was>, key: &str, now: Option<&str>, ours: &str) {
    // Ours already, or always so; or somebody else's since we set it, which is then what it was before.
    if let Some(now) = now.filter(|now| *now != ours) {
        let (before, ours) = (now.to_owned(), ours.to_owned());
        was.insert(key.to_owned(), Was { before, ours });
    }
}

/// Lines of a key, what it was and what we made of it. One that is none is left out: the file was damaged.
fn parse(text: &str) -> BTreeMap<String, Was> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        let (key, before, ours) = (words.next()?, words.next()?, words.next()?);
        is_own(&key).then_some((key, Was { before, ours }))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "net/ipv4/conf/lo/accept_local";

    fn wanted() -> BTreeMap<String, Sysctl> {
        [KEY, "net/ipv4/conf/eth0/forwarding"]
            .map(|k| (k.to_owned(), Sysctl::is("1")))
            .into()
    }

    /// In a network namespace of its own, whose settings begin as a host's do.
    fn alone(f: impl FnOnce(&Path) + Send) {
        let dir = std::env::temp_dir().join(format!("netd-former-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        kernel::netns::run_in_new(|| f(&dir)).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_setting_is_given_back_also_after_a_restart() {
        alone(|dir| {
            let mut former = Former::open(dir);
            former.note(&wanted()).unwrap();
            assert!(sysctl::set(KEY, "1").unwrap());
            // A pass more, and another netd.
            former.note(&wanted()).unwrap();
            let mut former = Former::open(dir);
            assert_eq!(former.give_back(&wanted()).unwrap(), 0, "it is still wanted");
            assert_eq!(former.give_back(&BTreeMap::new()).unwrap(), 1);
            assert_eq!(sysctl::read(KEY).unwrap().as_deref(), Some("0"));
            assert_eq!(Former::open(dir).was, BTreeMap::new());
        });
    }

    #[test]
    fn what_others_set_stays() {
        let mut was = BTreeMap::new();
        note(&mut was, KEY, Some("1"), "1");
        assert!(was.is_empty(), "the operator had it so");
        note(&mut was, KEY, Some("0"), "1");
        note(&mut was, KEY, Some("1"), "1");
        assert_eq!(was.get(KEY).map(|w| w.before.as_str()), Some("0"));
        note(&mut was, KEY, None, "1");
        assert_eq!(was.len(), 1, "a kernel without it");
        assert_eq!(
            parse("net/ipv4/conf/lo/accept_local 0\nnet/core/x 0 1\n"),
            BTreeMap::new()
        );
        assert!(!is_own("net/ipv4/conf/nvh7/route_localnet") && !is_own("net/ipv4/conf/all/forwarding"));
    }
}
