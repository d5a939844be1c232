//! What the machine itself holds, before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use lab::eventually;

use super::show::Show;

/// Objects of this machine that a lab could have left.
pub(super) struct Machine {
    links: BTreeSet<String>,
    mounts: BTreeSet<String>,
    pins: BTreeSet<String>,
}

impl Machine {
    pub(super) fn look() -> anyhow::Result<Machine> {
        Ok(Machine {
            links: names("/sys/class/net"),
            mounts: fs::read_to_string("/proc/self/mounts")?
                .lines()
                .filter_map(|l| l.split(' ').nth(1).map(str::to_owned))
                .collect(),
            pins: names("/sys/fs/bpf"),
        })
    }

    /// Says what there is more than before, and whether a process or a file of the lab is left.
    pub(super) fn compare(&self, folder: &Path, show: &mut Show) {
        // The kernel takes namespaces apart in the background.
        let left = |now: &Machine| -> Vec<String> {
            let more = |what: &str, now: &BTreeSet<String>, before: &BTreeSet<String>| -> Vec<String> {
                now.difference(before).map(|name| format!("{what} {name}")).collect()
            };
            [
                more("link", &now.links, &self.links),
                more("mount", &now.mounts, &self.mounts),
                more("pin", &now.pins, &self.pins),
                processes(folder),
                if folder.exists() {
                    vec![format!("folder {}", folder.display())]
                } else {
                    Vec::new()
                },
            ]
            .concat()
        };
        let mut last = Vec::new();
        let _ = eventually("everything to be gone", Duration::from_secs(5), || {
            last = left(&Machine::look()?);
            Ok(last.is_empty())
        });
        let text = if last.is_empty() {
            "none".to_owned()
        } else {
            last.join(", ")
        };
        show.expect(
            "links, mounts, pins, processes, files left",
            "none",
            text,
            last.is_empty(),
        );
    }
}

fn names(folder: &str) -> BTreeSet<String> {
    fs::read_dir(folder)
        .map(|all| {
            all.flatten()
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect()
        })
        .unwrap_or_default()
}

/// Processes whose command line names the lab's folder, or that were started by its hosts.
fn processes(folder: &Path) -> Vec<String> {
    let mention = folder.display().to_string();
    let Ok(all) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    all.flatten()
        .filter_map(|e| {
            let line = String::from_utf8_lossy(&fs::read(e.path().join("cmdline")).ok()?).replace('\0', " ");
            line.contains(&mention)
                .then(|| format!("process {} {line}", e.file_name().display()))
        })
        .collect()
}
