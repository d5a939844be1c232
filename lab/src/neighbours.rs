//! The kernel's table of neighbours: one for all namespaces of a machine, IPv4 and IPv6 each. What finds no room in it loses
//! packets, with hardly a word ("neighbour table overflow" in the kernel's log).

use std::fs;
use std::path::PathBuf;

use anyhow::Context;

/// Entries that something else on the machine may need.
const OTHERS: usize = 200;
/// What is asked for where there is too little: the kernel reserves nothing for it.
const PLENTY: usize = 16_384;

/// So many entries are had by hosts of which each speaks to each other one, and by their switch.
pub fn needed(hosts: usize) -> usize {
    hosts * (hosts + 1) + OTHERS
}

/// A limit of this machine (`net.<family>.neigh.default.gc_thresh3`, arp(7)), to be read and raised. It is one for all
/// namespaces, and only the first one has the setting.
#[derive(Debug, Clone)]
pub struct Limit(PathBuf);

impl Limit {
    /// The limit for IPv4.
    pub fn v4() -> Limit {
        Limit("/proc/sys/net/ipv4/neigh/default/gc_thresh3".into())
    }

    /// The limit for IPv6.
    pub fn v6() -> Limit {
        Limit("/proc/sys/net/ipv6/neigh/default/gc_thresh3".into())
    }

    /// Entries that there may be.
    ///
    /// # Errors
    ///
    /// When it cannot be read, as in any namespace but the machine's own.
    pub fn entries(&self) -> anyhow::Result<usize> {
        let text = fs::read_to_string(&self.0).with_context(|| format!("reading {}", self.0.display()))?;
        let number = text.trim().parse();
        number.with_context(|| format!("{} holds no number", self.0.display()))
    }

    /// Sets it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: only root of the machine itself may.
    pub fn set(&self, entries: usize) -> anyhow::Result<()> {
        fs::write(&self.0, entries.to_string()).with_context(|| format!("setting {}", self.0.display()))
    }

    /// What to say when there is too little room; `None`: there is enough, or it cannot be told.
    pub fn warning(&self, hosts: usize) -> Option<String> {
        let (room, needed) = (self.entries().ok()?, needed(hosts));
        (room < needed).then(|| {
            format!(
                "this machine keeps {room} neighbours for all its namespaces together, and {hosts} hosts that speak to each \
                 other have up to {needed}: packets will be lost\ntry: {}",
                self.command(needed)
            )
        })
    }

    /// What a person types to have room.
    pub fn command(&self, needed: usize) -> String {
        let path = self.0.to_string_lossy();
        let name = path.trim_start_matches("/proc/sys/").replace('/', ".");
        format!("sysctl -w {name}={}", needed.max(PLENTY))
    }

    /// Makes room for so many entries until the answer is dropped.
    ///
    /// # Errors
    ///
    /// As [`Limit::entries`] and [`Limit::set`].
    pub fn raise(self, needed: usize) -> anyhow::Result<Raised> {
        let before = self.entries()?;
        let new = (before < needed).then(|| needed.max(PLENTY));
        if let Some(new) = new {
            self.set(new)
                .with_context(|| format!("try: {}", self.command(needed)))?;
        }
        Ok(Raised {
            limit: self,
            before,
            new,
        })
    }
}

/// A limit that was raised; dropped, it is what it was before, unless somebody else has changed it meanwhile.
#[derive(Debug)]
pub struct Raised {
    limit: Limit,
    before: usize,
    /// None: it was high enough.
    new: Option<usize>,
}

impl Raised {
    /// Whether it had to be raised, and from what to what.
    pub fn change(&self) -> Option<(usize, usize)> {
        Some((self.before, self.new?))
    }

    /// Puts it back now, as dropping does: for a process that is about to exit.
    pub fn put_back(&self) {
        if self.new.is_some() && self.limit.entries().ok() == self.new {
            // Nobody is left to be told.
            let _ = self.limit.set(self.before);
        }
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.put_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, entries: usize) -> Limit {
        let path = std::env::temp_dir().join(format!("netd-neighbours-{}-{name}", std::process::id()));
        let limit = Limit(path);
        limit.set(entries).unwrap();
        limit
    }

    #[test]
    fn it_is_put_back() {
        let limit = limit("back", 1024);
        let raised = limit.clone().raise(needed(50)).unwrap();
        assert_eq!(raised.change(), Some((1024, PLENTY)));
        assert_eq!(limit.entries().unwrap(), PLENTY);
        drop(raised);
        assert_eq!(limit.entries().unwrap(), 1024);
        // Enough is left alone.
        let raised = limit.clone().raise(needed(10)).unwrap();
        assert_eq!((raised.change(), limit.entries().unwrap()), (None, 1024));
        drop(raised);
        // And so is what somebody else has set meanwhile.
        let raised = limit.clone().raise(5000).unwrap();
        limit.set(9999).unwrap();
        drop(raised);
        assert_eq!(limit.entries().unwrap(), 9999);
        fs::remove_file(&limit.0).unwrap();
    }

    #[test]
    fn too_little_is_said() {
        let limit = limit("said", 1024);
        assert_eq!(limit.warning(5), None);
        let text = limit.warning(40).unwrap();
        assert!(
            text.contains("keeps 1024 neighbours") && text.contains("40 hosts"),
            "{text}"
        );
        assert!(
            Limit::v4()
                .command(0)
                .ends_with("sysctl -w net.ipv4.neigh.default.gc_thresh3=16384")
        );
        fs::remove_file(&limit.0).unwrap();
    }
}
