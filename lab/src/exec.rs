//! Running commands inside a host.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use crate::proc::{Identity, children, comm, resident};
use crate::wait::until;

/// A command that has not ended after this time is killed: a test shall fail, not hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a command that has ended is listened to when its pipe stays open: on a machine that stands still for a while
/// the thread that reads it may come to its turn late.
const SAID: Duration = Duration::from_secs(5);

/// What a command said and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Host and command line, as a person would type it.
    pub command: String,
    /// Exit code; 128 + N after signal N.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Wall time.
    pub took: Duration,
}

impl Output {
    /// Whether it ended with 0.
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// The output of a command that had to succeed.
    ///
    /// # Errors
    ///
    /// With the command, its exit code and what it wrote, when it did not.
    pub fn ok(self) -> anyhow::Result<Output> {
        if self.success() {
            return Ok(self);
        }
        bail!(
            "{}\n  ended with {} after {:.1} s\n  stdout: {}\n  stderr: {}",
            self.command,
            self.code,
            self.took.as_secs_f64(),
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }

    /// The JSON that a successful command printed.
    ///
    /// # Errors
    ///
    /// As [`Output::ok`], and when the output is not the JSON of a `T`.
    pub fn json<T: DeserializeOwned>(self) -> anyhow::Result<T> {
        let done = self.ok()?;
        serde_json::from_str(&done.stdout).with_context(|| {
            format!(
                "{} printed what cannot be read: {}",
                done.command,
                done.stdout.trim_end()
            )
        })
    }

    /// Both streams, for a search that does not care which.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// How to get into a host.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    pub(crate) host: String,
    pub(crate) init: u32,
    /// Folder of the binaries under test: first in PATH.
    pub(crate) bin_dir: PathBuf,
    /// For logs of background processes.
    pub(crate) folder: PathBuf,
}

impl Door {
    fn command(&self, argv: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.init.to_string(), "-m", "-u", "-i", "-n", "-p", "-w/", "--"])
            .args(argv)
            // A group of its own: one signal reaches all of it, and Ctrl-C at the terminal does not.
            .process_group(0);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", self.bin_dir.display()));
        for (key, _) in std::env::vars_os() {
            // Settings of the person's shell must not reach the daemon under test.
            if key.to_string_lossy().starts_with("NETD_") || key == "NOTIFY_SOCKET" {
                command.env_remove(key);
            }
        }
        command
    }

    pub(crate) fn run(&self, argv: &[&str], patience: Option<Duration>) -> anyhow::Result<Output> {
        let patience = patience.unwrap_or(PATIENCE);
        let shown = self.shown(argv);
        let start = Instant::now();
        let mut child = self
            .command(argv)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("running {shown}; try: install util-linux (nsenter)"))?;
        let out = drain(child.stdout.take());
        let err = drain(child.stderr.take());
        let status = match wait_at_most(&mut child, patience)? {
            Some(status) => status,
            None => {
                signal_group(&child, Signal::SIGKILL);
                let _ = child.wait();
                bail!("{shown} had not ended after {} s and was killed", patience.as_secs());
            }
        };
        // A process left in the background may hold the pipe: what was said so far counts.
        let said = |from: mpsc::Receiver<Vec<u8>>| {
            let mut all = Vec::new();
            while let Ok(part) = from.recv_timeout(SAID) {
                all.extend(part);
            }
            String::from_utf8_lossy(&all).into_owned()
        };
        Ok(Output {
            command: shown,
            code: code_of(status),
            stdout: said(out),
            stderr: said(err),
            took: start.elapsed(),
        })
    }

    pub(crate) fn spawn(&self, name: &str, argv: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Process> {
        let log = self.folder.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening the log {}", log.display()))?;
        let from = file.metadata().context("reading the size of a log")?.len();
        let shown = self.shown(argv);
        let mut command = self.command(argv);
        for (key, value) in env {
            command.env(key, value);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("sharing a log")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {shown}; try: install util-linux (nsenter)"))?;
        Ok(Process {
            child,
            shown,
            log,
            from,
            ended: None,
            detached: false,
        })
    }

    fn shown(&self, argv: &[&str]) -> String {
        let words: Vec<String> = argv.iter().map(|word| quoted(word)).collect();
        format!("{}# {}", self.host, words.join(" "))
    }
}

fn quoted(word: &str) -> String {
    let word = word
        .rsplit_once("/target/")
        .map_or(word, |(_, rest)| rest.rsplit('/').next().unwrap_or(rest));
    if word.is_empty() || word.contains(|c: char| c.is_whitespace() || "'\"$&|<>;()*".contains(c)) {
        return format!("'{}'", word.replace('\'', r"'\''"));
    }
    word.to_owned()
}

fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn drain(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    if let Some(mut stream) = stream {
        std::thread::spawn(move || {
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                if send.send(buffer.iter().take(n).copied().collect()).is_err() {
                    break;
                }
            }
        });
    }
    receive
}

/// std has no wait with a limit: short looks, with little cost beside the start of a process.
fn wait_at_most(child: &mut Child, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait().context("waiting for a command")? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Every process below another one.
fn below(pid: u32) -> Vec<u32> {
    let mut all = children(pid);
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        all.extend(children(pid));
        next += 1;
    }
    all
}

/// Whether a process is in a group: one that left it was not meant by a signal to the group.
fn in_group(pid: u32, group: u32) -> bool {
    let pid = i32::try_from(pid).ok().map(Pid::from_raw);
    nix::unistd::getpgid(pid).is_ok_and(|found| u32::try_from(found.as_raw()).is_ok_and(|found| found == group))
}

fn signal_group(child: &Child, signal: Signal) {
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), signal);
    }
}

/// A command in the background of a host; it is killed when this value is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    shown: String,
    log: PathBuf,
    /// Where its own lines begin in the log.
    from: u64,
    ended: Option<i32>,
    detached: bool,
}

impl Process {
    /// What it has written so far, both streams.
    pub fn output(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.from))?;
            file.read_to_end(&mut text)
        });
        match read {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("(cannot read {}: {error})", self.log.display()),
        }
    }

    /// The file with its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its exit code, when it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten().map(code_of);
        }
        self.ended
    }

    /// Waits for a line that contains `text`, and answers it.
    ///
    /// # Errors
    ///
    /// When the process ends first, or the time is over; with what it wrote.
    pub fn line(&mut self, text: &str, limit: Duration) -> anyhow::Result<String> {
        let what = format!("{:?} from {}", text, self.shown);
        let found = until(&what, limit, || {
            let ended = self.ended();
            let output = self.output();
            let line = output.lines().find(|l| l.contains(text)).map(str::to_owned);
            match (line, ended) {
                (Some(line), _) => Ok(Some(Ok(line))),
                (None, Some(code)) => Ok(Some(Err(code))),
                (None, None) => Ok(None),
            }
        });
        match found {
            Ok((Ok(line), _)) => Ok(line),
            Ok((Err(code), _)) => bail!("{} ended with {code}: {}", self.shown, self.output().trim_end()),
            Err(error) => Err(error.context(format!("it wrote: {}", self.output().trim_end()))),
        }
    }

    /// Waits until it has ended by itself; answers exit code and output.
    ///
    /// # Errors
    ///
    /// When the time is over.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<Output> {
        let start = Instant::now();
        if self.ended.is_none() {
            let status = wait_at_most(&mut self.child, limit)?
                .with_context(|| format!("{} had not ended after {} s", self.shown, limit.as_secs()))?;
            self.ended = Some(code_of(status));
        }
        Ok(Output {
            command: self.shown.clone(),
            code: self.ended.unwrap_or(-1),
            stdout: self.output(),
            stderr: String::new(),
            took: start.elapsed(),
        })
    }

    /// `kill -9` for it and what it has in its process group; returns when all of it is dead.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            // nsenter ends at once; the program inside may take a while to let go of its sockets and maps.
            let inside: Vec<Identity> = below(self.child.id()).into_iter().filter_map(Identity::of).collect();
            signal_group(&self.child, Signal::SIGKILL);
            self.ended = self.child.wait().ok().map(code_of);
            let group = |p: &Identity| in_group(p.pid, self.child.id());
            let _ = until("a killed process to end", Duration::from_secs(10), || {
                Ok(inside.iter().all(|p| !p.alive() || !group(p)).then_some(()))
            });
        }
    }

    /// A signal to the program itself (not to `nsenter` or `strace` around it).
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid()?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("sending {signal} to {}", self.shown))
    }

    /// Number of the program itself, as the owner of the lab sees it.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let (pid, _) = until("a process to be there", Duration::from_secs(5), || {
            let mut pid = children(self.child.id()).first().copied();
            while let Some(tracer) = pid.filter(|p| comm(*p).as_deref() == Some("strace")) {
                pid = children(tracer).first().copied();
            }
            Ok(pid.filter(|p| comm(*p).as_deref() != Some("nsenter")))
        })
        .with_context(|| format!("{} does not run: {}", self.shown, self.output().trim_end()))?;
        Ok(pid)
    }

    /// Resident memory in octets.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn resident(&self) -> anyhow::Result<u64> {
        resident(self.pid()?)
    }

    /// Lets it run on after this value is gone, for a lab that is kept.
    pub fn detach(&mut self) {
        self.detached = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.detached {
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_they_would_be_typed() {
        assert_eq!(quoted("web"), "web");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("/x/target/release/lab-tool"), "lab-tool");
    }

    #[test]
    fn an_exit_code_is_named_in_the_error() {
        let out = Output {
            command: "n1# false".into(),
            code: 3,
            stdout: String::new(),
            stderr: "why".into(),
            took: Duration::ZERO,
        };
        let text = out.ok().unwrap_err().to_string();
        assert!(
            text.contains("n1# false") && text.contains("ended with 3") && text.contains("why"),
            "{text}"
        );
    }
}
