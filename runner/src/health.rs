//! Asks a task how it is: by HTTP or a connection inside its network namespace, or by a command in all its namespaces.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use kernel::netns::{self, Netns, Process, Spawn};
use model::spec::{Health, Probe};
use nix::{
    fcntl::OFlag,
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use crate::{
    process::{environment, why},
    task::Order,
};

/// Health commands at once; each keeps a thread busy. The others queue, and the time that they wait is not theirs.
const COMMANDS: usize = 64;
/// What of a command's output is told, octets.
const TOLD: usize = 200;
/// Longest status line of an HTTP answer that is read, octets.
const STATUS_LINE: usize = 1024;
/// Between two looks at what a command says.
const LISTEN: Duration = Duration::from_millis(10);
/// After SIGKILL, until a command is given up.
const KILLED: Duration = Duration::from_secs(2);

/// Whom to ask.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// Its network namespace.
    pub(crate) netns: PathBuf,
    /// Its addresses, the one to try first in front.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its process: pid and start time.
    pub(crate) leader: Option<(u32, u64)>,
    /// For its environment.
    pub(crate) order: Option<Order>,
    /// Where a pipe for a command's output may be made.
    pub(crate) output: PathBuf,
}

/// Asks, with a bound on commands at once.
#[derive(Debug, Clone)]
pub(crate) struct Checker {
    commands: Arc<Semaphore>,
}

impl Default for Checker {
    fn default() -> Self {
        Checker {
            commands: Arc::new(Semaphore::new(COMMANDS)),
        }
    }
}

impl Checker {
    /// Well, or how it failed.
    pub(crate) async fn ask(&self, health: &Health, at: Subject) -> Result<(), String> {
        let limit = Duration::from_millis(health.timeout_ms);
        let late = || format!("no answer within {} s", limit.as_secs_f64());
        match &health.probe {
            Probe::Tcp { port } => timeout(limit, connect(&at, *port))
                .await
                .unwrap_or_else(|_| Err(late()))
                .map(drop),
            Probe::Http { port, path } => timeout(limit, http(&at, *port, path))
                .await
                .unwrap_or_else(|_| Err(late())),
            Probe::Command(words) => {
                let permit = self.commands.clone().acquire_owned().await;
                let words = words.clone();
                let ran = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    command(&words, &at, limit)
                });
                ran.await.unwrap_or_else(|e| Err(e.to_string()))
            }
        }
    }
}

/// A connection to the first of a task's addresses that takes one. The socket is made in the task's namespace; the rest
/// is the same from anywhere.
async fn connect(at: &Subject, port: u16) -> Result<TcpStream, String> {
    let mut last = "it has no address".to_owned();
    for ip in &at.addresses {
        let (netns, v4) = (at.netns.clone(), ip.is_ipv4());
        let made = tokio::task::spawn_blocking(move || socket(&netns, v4)).await;
        let socket = made.map_err(|e| e.to_string())??;
        let to = SocketAddr::new(*ip, port);
        match socket.connect(to).await {
            Ok(stream) => return Ok(stream),
            // The address that is tried first is the one that is told: the other is seldom listened on.
            Err(e) if last == "it has no address" => last = format!("{to}: {e}"),
            Err(_) => {}
        }
    }
    Err(last)
}

fn socket(netns: &Path, v4: bool) -> Result<TcpSocket, String> {
    let netns = Netns::open(netns).map_err(|e| why(&e))?;
    let make = || match v4 {
        true => TcpSocket::new_v4(),
        false => TcpSocket::new_v6(),
    };
    netns::run_in(&netns, make)
        .map_err(|e| why(&e))?
        .map_err(|e| e.to_string())
}

async fn http(at: &Subject, port: u16, path: &str) -> Result<(), String> {
    let mut stream = connect(at, port).await?;
    let host = stream.peer_addr().map_err(|e| e.to_string())?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: netd-run\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|e| format!("{host}: {e}"))?;
    let mut line = Vec::new();
    let mut buffer = [0; STATUS_LINE];
    while !line.contains(&b'\n') && line.len() < STATUS_LINE {
        let n = stream.read(&mut buffer).await.map_err(|e| format!("{host}: {e}"))?;
        if n == 0 {
            break;
        }
        line.extend_from_slice(buffer.get(..n).unwrap_or_default());
    }
    match status(&line) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("{path} answers {code}")),
        None => Err(format!("{host} does not answer by HTTP")),
    }
}

/// The number in `HTTP/1.1 200 OK` (RFC 9112 4).
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|b| *b == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|w| w.starts_with("HTTP/1."))?;
    words
        .next()
        .filter(|w| w.len() == 3)?
        .parse()
        .ok()
        .filter(|c| *c >= 100)
}

/// Runs a command beside the task; what hangs is killed with all of its process group.
fn command(words: &[String], at: &Subject, limit: Duration) -> Result<(), String> {
    let (Some((pid, start)), Some(order)) = (at.leader, &at.order) else {
        return Err("its process is not known".into());
    };
    let leader = Process::find(pid, start).map_err(|e| why(&e))?;
    let leader = leader.ok_or("its process has ended")?;
    let mut words = words.iter().map(OsString::from);
    let program = words.next().unwrap_or_default();
    let args: Vec<OsString> = words.collect();
    let env = environment(order);
    let mut said = Said::open(&at.output).map_err(|e| format!("{}: {e}", at.output.display()))?;
    let spawn = Spawn {
        program: &program,
        args: &args,
        env: &env,
        folder: None,
        stdout: &at.output,
        stderr: &at.output,
        resolv_conf: None,
        hostname: None,
    };
    let mut process = spawn.start_beside(&leader).map_err(|e| why(&e))?;
    let end = Instant::now() + limit;
    let in_time = loop {
        said.listen();
        let left = end.saturating_duration_since(Instant::now());
        if process.ended(left.min(LISTEN)).map_err(|e| why(&e))? {
            break true;
        }
        if left.is_zero() {
            break false;
        }
    };
    // Also what it left in the background: that is not to pile up. Before it is reaped, its number is its own.
    process.signal(Signal::SIGKILL).map_err(|e| why(&e))?;
    process.ended(KILLED).map_err(|e| why(&e))?;
    let status = process.reap();
    if !in_time {
        return Err(format!(
            "it did not end within {} s and was killed",
            limit.as_secs_f64()
        ));
    }
    let end = crate::process::ending(status);
    match (end.well, said.last_line()) {
        (true, _) => Ok(()),
        (false, said) if said.is_empty() => Err(end.how),
        (false, said) => Err(format!("{}: {said}", end.how)),
    }
}

/// What a command says: a pipe with a name, so that it fills no disk; the end of it is kept.
struct Said {
    pipe: File,
    kept: Vec<u8>,
}

impl Said {
    fn open(path: &Path) -> io::Result<Said> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Also for writing: so it neither waits for a writer nor ends with one (fifo(7), Linux).
        let pipe = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)?;
        Ok(Said { pipe, kept: Vec::new() })
    }

    /// Takes what there is.
    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        // A pipe holds 64 KiB: who writes faster than is read is not waited for.
        for _ in 0..16 {
            match self.pipe.read(&mut buffer) {
                Ok(n) if n > 0 => self.kept.extend_from_slice(buffer.get(..n).unwrap_or_default()),
                _ => break,
            }
        }
        let more = self.kept.len().saturating_sub(TOLD);
        self.kept.drain(..more);
    }

    fn last_line(mut self) -> String {
        self.listen();
        let text = String::from_utf8_lossy(&self.kept);
        text.trim_end().lines().last().unwrap_or_default().trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        for (line, code) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 503\r\nx", Some(503)),
            ("HTTP/1.1  404 Not Found", Some(404)),
            ("HTTP/2 200\r\n", None),
            ("HTTP/1.1 20\r\n", None),
            ("HTTP/1.1 099 x\r\n", None),
            ("HTTP/1.1 +20 x\r\n", None),
            ("SSH-2.0-x\r\n", None),
            ("", None),
        ] {
            assert_eq!(status(line.as_bytes()), code, "{line:?}");
        }
        assert_eq!(status(&[0xff; 40]), None);
    }
}
