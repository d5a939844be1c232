//! Running the programs: the one place where netd runs any that is not a task.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use mesh::lower::ipvs::{
    Family,
    rules::{
        TableName,
        iptables::{Run, Saved},
    },
};

use super::lock;
use crate::firewall::FirewallError;

/// How long `iptables-legacy-restore` waits for the lock that all iptables programs take, seconds.
pub(in crate::firewall) const LOCK_SECONDS: u32 = 2;
/// The lock (`XT_LOCK_NAME` of iptables' xshared.h).
const LOCK: &str = "/run/xtables.lock";
/// Its place in the environment, if it is another.
const LOCK_VARIABLE: &str = "XTABLES_LOCKFILE";
/// Exit code for "somebody else holds the lock" (`RESOURCE_PROBLEM` of iptables' xtables.h).
const RESOURCE_PROBLEM: i32 = 4;
/// Where the programs are looked for.
const FOLDERS: [&str; 6] = [
    "/usr/sbin",
    "/sbin",
    "/usr/local/sbin",
    "/usr/bin",
    "/bin",
    "/usr/local/bin",
];

/// The programs, and the lock they take.
#[derive(Debug, Default)]
pub(super) struct Programs {
    /// Another lock than the usual.
    pub(super) lock: Option<PathBuf>,
}

/// Whether the kernel speaks a family.
pub(super) fn speaks(family: Family) -> bool {
    family == Family::V4 || Path::new("/proc/thread-self/net/if_inet6").exists()
}

fn name(family: Family, save: bool) -> &'static str {
    match (family, save) {
        (Family::V4, true) => "iptables-legacy-save",
        (Family::V4, false) => "iptables-legacy-restore",
        (Family::V6, true) => "ip6tables-legacy-save",
        (Family::V6, false) => "ip6tables-legacy-restore",
    }
}

fn find(name: &'static str) -> Result<PathBuf, FirewallError> {
    let paths = FOLDERS.iter().map(|f| Path::new(f).join(name));
    let found = paths.into_iter().find(|p| p.is_file());
    found.ok_or(FirewallError::NoTool { name })
}

impl Programs {
    fn lock(&self) -> PathBuf {
        let told = || std::env::var_os(LOCK_VARIABLE).map(PathBuf::from);
        self.lock.clone().or_else(told).unwrap_or_else(|| LOCK.into())
    }

    fn command(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        // iptables runs modprobe by the name that the kernel has for it; nothing of ours is its business.
        command.env_clear().env("PATH", FOLDERS.join(":")).env("LC_ALL", "C");
        command.env(LOCK_VARIABLE, self.lock());
        command
    }

    /// All tables of a family that there are.
    pub(super) fn save(&self, family: Family) -> Result<Saved, FirewallError> {
        let tool = name(family, true);
        let path = find(tool)?;
        let mut command = self.command(&path);
        command.stdin(Stdio::null());
        let output = command.output().map_err(|source| FirewallError::Run { path, source })?;
        if !output.status.success() {
            return Err(FirewallError::Refused {
                tool,
                table: "(all)".into(),
                said: said(&output),
            });
        }
        Ok(Saved::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    /// The changes of some tables, in their order, one program for each family that follows another. A table's change is
    /// made as a whole or not at all; after one that is refused none is made.
    pub(super) fn restore(&self, runs: &[Run]) -> Result<(), FirewallError> {
        runs.chunk_by(|a, b| a.family == b.family)
            .try_for_each(|of_family| self.restore_family(of_family))
    }

    fn restore_family(&self, runs: &[Run]) -> Result<(), FirewallError> {
        let Some(first) = runs.first() else { return Ok(()) };
        let input: String = runs.iter().map(|run| run.input.as_str()).collect();
        let tool = name(first.family, false);
        let path = find(tool)?;
        let failed = |source| FirewallError::Run {
            path: path.clone(),
            source,
        };
        let mut command = self.command(&path);
        command.arg("--noflush").arg(format!("--wait={LOCK_SECONDS}"));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        // It says no more than a line before it ends, so that neither waits for the other.
        let written = child
            .stdin
            .take()
            .map_or(Ok(()), |mut to| to.write_all(input.as_bytes()));
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return written.map_err(failed);
        }
        let mut said = said(&output);
        if output.status.code() == Some(RESOURCE_PROBLEM) && said.contains("lock") {
            let lock = self.lock();
            let holder = lock::holder(&lock).unwrap_or_else(|| "another program".into());
            return Err(FirewallError::Locked { holder, lock });
        }
        let at = number(&said).and_then(|n| n.checked_sub(1));
        let table = table(runs, at).to_string();
        if let Some(line) = at.and_then(|at| input.lines().nth(at)) {
            said = format!("{said}: `{line}`");
        }
        Err(FirewallError::Refused { tool, table, said })
    }
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with("Try `"));
    let text = lines.take(3).collect::<Vec<_>>().join("; ");
    if text.is_empty() {
        output.status.to_string()
    } else {
        text
    }
}

/// The number of the line that was refused, from 1, where it was told.
fn number(said: &str) -> Option<usize> {
    let (_, rest) = said.split_once("line ").or_else(|| said.split_once("line: "))?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The table that a line, from 0, of the changes together is about; without a line the first one's.
fn table(runs: &[Run], at: Option<usize>) -> TableName {
    let mut before = 0;
    for run in runs {
        before += run.input.lines().count();
        if at.is_none_or(|at| at < before) {
            return run.table;
        }
    }
    runs.last().map_or(TableName::Raw, |run| run.table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_that_of_its_line_and_table() {
        let run = |table, input: &str| Run {
            family: Family::V4,
            table,
            input: input.into(),
        };
        let runs = [
            run(TableName::Raw, "*raw\n-A X -j DROP\nCOMMIT\n"),
            run(TableName::Nat, "*nat\n-A Y -j NONE\nCOMMIT\n"),
        ];
        let at = |said: &str| table(&runs, number(said).and_then(|n| n.checked_sub(1)));
        assert_eq!(at("iptables-restore: line 2 failed"), TableName::Raw);
        assert_eq!(at("Error occurred at line: 5"), TableName::Nat);
        assert_eq!(at("line 99 failed"), TableName::Nat, "never past the end");
        assert_eq!(at("no such thing"), TableName::Raw);
    }
}
