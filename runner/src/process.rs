//! Processes of tasks: started, found again, looked for in their namespace, ended.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{ffi::OsStrExt, process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
};

use kernel::netns::{Netns, NetnsId, Process, ProcessError, Spawn};
use model::EndpointId;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::task::{End, Order};

/// Where commands are looked for when the service's environment has no PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names a process for as long as the machine runs, and tells one boot from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marks {
    /// Process id; also of its session.
    pub(crate) pid: u32,
    /// Start time, clock ticks since boot.
    pub(crate) start: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub(crate) boot: String,
}

/// This boot of the machine.
pub(crate) fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|t| t.trim().to_owned())
}

/// A task's environment, as its command and its health checks have it.
pub(crate) fn environment(order: &Order) -> Vec<(OsString, OsString)> {
    let task = &order.task;
    let mut env = task.env.clone();
    env.entry("PATH".into()).or_insert_with(|| PATH.into());
    env.insert("NETD_SERVICE".into(), task.service.to_string());
    env.insert("NETD_SLOT".into(), task.slot.to_string());
    env.insert("NETD_NODE".into(), order.node.to_string());
    env.insert("NETD_TASK".into(), task.id.to_string());
    env.into_iter().map(|(k, v)| (k.into(), v.into())).collect()
}

/// Starts a task's command in a namespace.
pub(crate) fn start(order: &Order, netns: &Path, resolv_conf: &Path, log: &Path) -> Result<Process, ProcessError> {
    let (task, env) = (&order.task, environment(order));
    let mut words = task.command.iter().map(OsString::from);
    let program = words.next().unwrap_or_default();
    let args: Vec<OsString> = words.collect();
    let netns = Netns::open(netns)?;
    let spawn = Spawn {
        program: &program,
        args: &args,
        env: &env,
        folder: None,
        stdout: log,
        stderr: log,
        resolv_conf: Some(resolv_conf),
        hostname: task.hostname.as_deref().map(OsStr::new),
    };
    spawn.start(&netns)
}

/// An error with its causes on one line, what to try at its end.
pub(crate) fn why(e: &dyn std::error::Error) -> String {
    let (mut whats, mut hints) = (Vec::new(), String::new());
    let mut next = Some(e);
    while let Some(e) = next {
        let text = e.to_string();
        let (what, hint) = text.split_once("; try: ").unwrap_or((&text, ""));
        whats.push(what.to_owned());
        if !hint.is_empty() {
            hints.push_str(&format!("; try: {hint}"));
        }
        next = e.source();
    }
    whats.join(": ") + &hints
}

/// Finds the process of an earlier life: by its marks, else as the session leader in the namespace that bears the task's
/// name (a life that ended between start and record).
pub(crate) fn find(marks: Option<&Marks>, netns: &Path, id: &EndpointId) -> Option<Process> {
    if let Some(m) = marks {
        if boot_id().ok().as_ref() != Some(&m.boot) {
            return None;
        }
        return Process::find(m.pid, m.start).unwrap_or_else(|e| {
            tracing::warn!("{id}: {}", why(&e));
            None
        });
    }
    let netns = Netns::open(netns).ok()?.id();
    let leader = members(netns, id, None).into_iter().find(|m| m.session == m.pid)?;
    Process::find(leader.pid, leader.start).ok().flatten()
}

/// Whether a process lives in the namespace at `netns`.
pub(crate) fn lives_in(pid: u32, netns: &Path) -> bool {
    match (Netns::of_process(pid), Netns::open(netns)) {
        (Ok(a), Ok(b)) => a.id() == b.id(),
        _ => false,
    }
}

/// A process of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pid: u32,
    session: u32,
    start: u64,
}

/// Living processes in a namespace that belong to a task: of its session, or with its name in their environment. Others,
/// such as an administrator's shell in the namespace, are none of ours.
pub(crate) fn members(netns: NetnsId, id: &EndpointId, session: Option<u32>) -> Vec<Member> {
    let Ok(list) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = list
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| member(pid, netns, id, session)).collect()
}

fn member(pid: u32, netns: NetnsId, id: &EndpointId, session: Option<u32>) -> Option<Member> {
    // Most processes are elsewhere: that is told by one system call.
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    if link.as_os_str().as_bytes() != format!("net:[{}]", netns.inode).as_bytes() {
        return None;
    }
    let stat = Stat::read(pid).ok()?;
    if stat.dead {
        return None;
    }
    let mark = format!("NETD_TASK={id}");
    let named = || {
        let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        env.split(|b| *b == 0).any(|v| v == mark.as_bytes())
    };
    (session == Some(stat.session) || named()).then_some(Member {
        pid,
        session: stat.session,
        start: stat.start,
    })
}

/// SIGKILL to each.
pub(crate) fn kill_all(members: &[Member]) {
    for m in members {
        if let Ok(pid) = i32::try_from(m.pid) {
            // It may have ended meanwhile; whoever is still there is met at the next look.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

struct Stat {
    dead: bool,
    session: u32,
    start: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Stat> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        Stat::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "too few fields"))
    }

    /// Fields 3, 6 and 22 of proc(5). The name before them, in brackets, may hold anything, brackets too.
    fn parse(text: &[u8]) -> Option<Stat> {
        let after = text.iter().rposition(|b| *b == b')')? + 1;
        let rest = std::str::from_utf8(text.get(after..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let session = fields.nth(2)?.parse().ok()?;
        let start = fields.nth(15)?.parse().ok()?;
        Some(Stat {
            dead: matches!(state, "Z" | "X" | "x"),
            session,
            start,
        })
    }
}

/// How a process ended. An unknown end counts as a bad one: to start once too often is better than not to.
pub(crate) fn ending(status: Option<ExitStatus>) -> End {
    let Some(status) = status else {
        let how = "ended (it was started by an earlier netd-run, so its exit status is not known)".into();
        return End { how, well: false };
    };
    let number = status.signal().unwrap_or_default();
    let how = match (status.code(), Signal::try_from(number)) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Ok(signal)) => format!("killed by {signal}"),
        (None, Err(_)) => format!("killed by signal {number}"),
    };
    End {
        how,
        well: status.success(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let line = b"42 (a) b) (c) S 1 40 41 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 987654 1000 50";
        let s = Stat::parse(line).unwrap();
        assert_eq!((s.dead, s.session, s.start), (false, 41, 987_654));
        assert!(Stat::parse(b"42 (x) Z 1 2 3").is_none());
        assert!(Stat::parse(b"").is_none());
        let me = Stat::read(std::process::id()).unwrap();
        assert!(!me.dead && me.start > 0);
    }

    #[test]
    fn endings() {
        let told = |raw| {
            let end = ending(Some(ExitStatus::from_raw(raw)));
            (end.how, end.well)
        };
        assert_eq!(told(0), ("exit status 0".into(), true));
        assert_eq!(told(3 << 8), ("exit status 3".into(), false));
        assert_eq!(told(9), ("killed by SIGKILL".into(), false));
        assert!(ending(None).how.contains("not known"));
    }

    #[test]
    fn causes_come_before_what_to_try() {
        let e = ProcessError::Start {
            program: "srv".into(),
            source: io::Error::other("no such file"),
        };
        let text = why(&e);
        assert!(text.starts_with("cannot start srv: no such file; try: "), "{text}");
    }

    #[test]
    fn a_stranger_is_no_member() {
        let here = Netns::current().unwrap().id();
        let id = "no-such-task.1".parse().unwrap();
        assert_eq!(members(here, &id, None), []);
        assert!(lives_in(std::process::id(), Path::new("/proc/self/ns/net")));
        assert!(!lives_in(std::process::id(), Path::new("/nonexistent")));
    }
}
