//! A CPU quota for processes: cgroup v2 where the host has its cpu controller, else v1.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Microseconds over which a quota is counted (the kernel's default).
const PERIOD: f64 = 100_000.0;

/// Quotas, one group a process; dropped, the groups are gone and the processes are free.
pub(super) struct Limits {
    root: PathBuf,
    groups: Vec<(PathBuf, u32)>,
}

impl Limits {
    /// Each process gets `share` of a CPU.
    ///
    /// # Errors
    /// This host has no cpu controller, or it refuses.
    pub(super) fn new(pids: &[u32], share: f64) -> anyhow::Result<Limits> {
        let v2 = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
        let new = controllers.split_whitespace().any(|c| c == "cpu");
        let root = if new { v2.to_owned() } else { v2.join("cpu") };
        if new {
            // May be on already.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+cpu");
        }
        let quota = PERIOD * share;
        let mut limits = Limits {
            root,
            groups: Vec::new(),
        };
        for pid in pids {
            let group = limits.root.join(format!("netd-bench-{}-{pid}", std::process::id()));
            fs::create_dir(&group)
                .with_context(|| format!("making the cgroup {}; is there a cpu controller?", group.display()))?;
            limits.groups.push((group.clone(), *pid));
            let (file, text) = if new {
                ("cpu.max", format!("{quota:.0} {PERIOD:.0}"))
            } else {
                ("cpu.cfs_quota_us", format!("{quota:.0}"))
            };
            fs::write(group.join(file), text).context("setting a CPU quota")?;
            fs::write(group.join("cgroup.procs"), pid.to_string()).context("moving a process into its cgroup")?;
        }
        Ok(limits)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for (group, pid) in &self.groups {
            // The process may have ended.
            let _ = fs::write(self.root.join("cgroup.procs"), pid.to_string());
            let _ = fs::remove_dir(group);
        }
    }
}
