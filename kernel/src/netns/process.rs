//! A command inside a network namespace, and finding it again after a restart of whoever started it.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, killpg},
    unistd::{Pid, sethostname, setsid},
};

use super::{Netns, NetnsError};

/// What went wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Its output could not be opened.
    #[error("cannot open {path} for the output of a command; try: check the folder and its rights")]
    Output {
        /// Where.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The file for `/etc/resolv.conf` is missing, or the host has nothing to lay it over.
    #[error("cannot lay {path} over /etc/resolv.conf; try: touch /etc/resolv.conf")]
    ResolvConf {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It did not start.
    #[error("cannot start {program}; try: check that it exists on this node and may be executed")]
    Start {
        /// The command.
        program: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It could not be watched.
    #[error("cannot watch process {pid}; try: a kernel with pidfd_open (Linux 5.3 and newer)")]
    Watch {
        /// Process id.
        pid: u32,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It could not be signalled.
    #[error("cannot send {signal} to the processes of {pid}")]
    Signal {
        /// Signal.
        signal: &'static str,
        /// Process id of the leader.
        pid: u32,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Its namespace is not there.
    #[error("the command has no namespace to run in")]
    Netns(#[from] NetnsError),
}

/// What to start. It gets a session and process group of its own and goes on when its starter dies.
#[derive(Debug, Clone)]
pub struct Spawn<'a> {
    /// Program, looked up in PATH.
    pub program: &'a OsStr,
    /// Arguments.
    pub args: &'a [OsString],
    /// Environment, in full: nothing is inherited.
    pub env: &'a [(OsString, OsString)],
    /// Working folder; `None`: `/`.
    pub folder: Option<&'a Path>,
    /// File that takes its standard output, appended.
    pub stdout: &'a Path,
    /// File that takes its standard error, appended; may be the same.
    pub stderr: &'a Path,
    /// File that it sees as `/etc/resolv.conf`; `None`: the host's.
    pub resolv_conf: Option<&'a Path>,
    /// Its host name, at most 64 octets (`HOST_NAME_MAX`); `None`: the host's. Either way a change of it stays inside.
    pub hostname: Option<&'a OsStr>,
}

impl Spawn<'_> {
    /// Starts the command in a namespace, with host name and mounts of its own.
    pub fn start(&self, netns: &Netns) -> Result<Process, ProcessError> {
        let netns = netns.as_fd().try_clone_to_owned().map_err(NetnsError::Enter)?;
        let resolv = self.resolv_conf.map(resolv_conf).transpose()?;
        let hostname = self.hostname.map(OsStr::to_owned);
        self.run(move || enter(&netns, resolv.as_deref(), hostname.as_deref()))
    }

    /// Starts the command beside a process: in the same namespaces (network, mounts, host name). `resolv_conf` and
    /// `hostname` are not looked at.
    pub fn start_beside(&self, other: &Process) -> Result<Process, ProcessError> {
        let other = other.fd.try_clone().map_err(NetnsError::Enter)?;
        self.run(move || {
            setsid()?;
            // Of a pidfd several namespaces can be entered at once (setns(2), Linux 5.8).
            let all = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
            Ok(setns(&other, all)?)
        })
    }

    /// `enter` makes system calls alone.
    fn run(&self, enter: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Result<Process, ProcessError> {
        let output = |path: &Path| {
            let open = fs::OpenOptions::new().append(true).create(true).open(path);
            open.map_err(|source| ProcessError::Output {
                path: path.to_owned(),
                source,
            })
        };
        let mut command = Command::new(self.program);
        command
            .args(self.args)
            .env_clear()
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .current_dir(self.folder.unwrap_or(Path::new("/")))
            .stdin(Stdio::null())
            .stdout(Stdio::from(output(self.stdout)?))
            .stderr(Stdio::from(output(self.stderr)?));
        // SAFETY: between fork and exec the closure makes system calls alone (setsid, setns, unshare, mount,
        // sethostname); it allocates nothing and takes no lock: its strings were made before.
        unsafe { command.pre_exec(enter) };
        let child = command.spawn().map_err(|source| ProcessError::Start {
            program: self.program.to_string_lossy().into_owned(),
            source,
        })?;
        Process::of_child(child)
    }
}

/// Checks early what `mount` would refuse late, without a word on the cause.
fn resolv_conf(path: &Path) -> Result<CString, ProcessError> {
    let failed = |source| ProcessError::ResolvConf {
        path: path.to_owned(),
        source,
    };
    fs::metadata(path)
        .and_then(|_| fs::metadata("/etc/resolv.conf"))
        .map_err(failed)?;
    CString::new(path.as_os_str().as_bytes()).map_err(|e| failed(e.into()))
}

fn enter(netns: &OwnedFd, resolv: Option<&std::ffi::CStr>, hostname: Option<&OsStr>) -> io::Result<()> {
    setsid()?;
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    unshare(CloneFlags::CLONE_NEWUTS)?;
    if let Some(name) = hostname {
        sethostname(name)?;
    }
    if let Some(file) = resolv {
        unshare(CloneFlags::CLONE_NEWNS)?;
        // Slave, not private: what the host unmounts later is unmounted here too.
        mount(
            None::<&std::ffi::CStr>,
            c"/",
            None::<&std::ffi::CStr>,
            MsFlags::MS_REC | MsFlags::MS_SLAVE,
            None::<&std::ffi::CStr>,
        )?;
        mount(
            Some(file),
            c"/etc/resolv.conf",
            None::<&std::ffi::CStr>,
            MsFlags::MS_BIND,
            None::<&std::ffi::CStr>,
        )?;
    }
    Ok(())
}

/// A process, known by pid and start time: together they name it for as long as the machine runs.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start: u64,
    fd: OwnedFd,
    child: Option<Child>,
}

impl Process {
    fn of_child(child: Child) -> Result<Self, ProcessError> {
        let pid = child.id();
        let watch = |source| ProcessError::Watch { pid, source };
        // It cannot vanish in between: an unreaped child keeps its pid.
        let fd = pidfd(pid).map_err(watch)?;
        let start = start_time(pid).map_err(watch)?;
        Ok(Process {
            pid,
            start,
            fd,
            child: Some(child),
        })
    }

    /// Finds a process that an earlier life of this program started. `Ok(None)`: it has ended.
    pub fn find(pid: u32, start: u64) -> Result<Option<Self>, ProcessError> {
        // First the descriptor, then the check: so the descriptor is of the process that was checked.
        let fd = match pidfd(pid) {
            Ok(fd) => fd,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => return Ok(None),
            Err(source) => return Err(ProcessError::Watch { pid, source }),
        };
        match start_time(pid) {
            Ok(s) if s == start => {}
            _ => return Ok(None),
        }
        let found = Process {
            pid,
            start,
            fd,
            child: None,
        };
        Ok(if found.ended(Duration::ZERO)? {
            None
        } else {
            Some(found)
        })
    }

    /// Process id; also of its session and process group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Start time in clock ticks since boot (field 22 of `/proc/<pid>/stat`, proc(5)).
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Waits until it has ended, at most so long. The descriptor of [`AsFd`] becomes readable at the same moment.
    pub fn ended(&self, limit: Duration) -> Result<bool, ProcessError> {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, timeout) {
                Ok(n) => return Ok(n > 0),
                Err(nix::Error::EINTR) => {}
                Err(e) => {
                    return Err(ProcessError::Watch {
                        pid: self.pid,
                        source: e.into(),
                    });
                }
            }
        }
    }

    /// How it ended, once it has. `None`: still running, or not our child (found again: the system's first process
    /// knows, we do not).
    pub fn reap(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// Signals it and what it started (its process group). `Ok(false)`: nothing is left of them.
    pub fn signal(&self, signal: Signal) -> Result<bool, ProcessError> {
        // A pid is not given to another process while a group bears it, and the leader was checked; only when leader and
        // group have ended could the number be somebody else's.
        if self.child.is_none() && start_time(self.pid).ok() != Some(self.start) && self.ended(Duration::ZERO)? {
            return Ok(false);
        }
        let Ok(pid) = i32::try_from(self.pid) else {
            return Ok(false);
        };
        match killpg(Pid::from_raw(pid), signal) {
            Ok(()) => Ok(true),
            Err(nix::Error::ESRCH) => Ok(false),
            Err(e) => Err(ProcessError::Signal {
                signal: signal.as_str(),
                pid: self.pid,
                source: e.into(),
            }),
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0 as libc::c_long) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn start_time(pid: u32) -> io::Result<u64> {
    let mut text = Vec::new();
    io::Read::read_to_end(&mut File::open(format!("/proc/{pid}/stat"))?, &mut text)?;
    parse_start(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/<pid>/stat has too few fields"))
}

/// The command's name, in brackets, may hold anything, brackets too: fields are counted from the last bracket.
fn parse_start(stat: &[u8]) -> Option<u64> {
    let after = stat.iter().rposition(|b| *b == b')')? + 1;
    let fields = std::str::from_utf8(stat.get(after..)?).ok()?;
    // The first field after the name is the third.
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse_start;

    #[test]
    fn a_name_full_of_brackets_does_not_shift_the_fields() {
        let stat =
            b"42 (a) b) (c) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 987654 1000 50 18446744073709551615";
        assert_eq!(parse_start(stat), Some(987654));
        assert_eq!(parse_start(b"42 (x) S 1"), None);
        assert_eq!(parse_start(b""), None);
    }
}
