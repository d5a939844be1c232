//! Which netd is asked: a Unix socket here, or one on another host through `ssh`.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process::Stdio,
    str::FromStr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::UnixStream,
    process::{Child, Command},
    task::JoinHandle,
};

use super::DEFAULT_SOCKET;
use crate::BadValue;

/// Octets of what `ssh` complains about that are kept for the error.
const MAX_COMPLAINT: usize = 2048;

/// A netd: the path of its Unix socket, `unix://PATH`, or `ssh://[user@]host[:port][/path]`.
///
/// By `ssh` the request goes through `ssh HOST netctl dial-stdio` on the user's own ssh program with its keys and settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// On this host.
    Unix(PathBuf),
    /// On another one.
    Ssh(Ssh),
}

/// A host behind `ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssh {
    /// User there; none: as ssh decides.
    pub user: Option<String>,
    /// Host.
    pub host: String,
    /// Port; none: as ssh decides.
    pub port: Option<u16>,
    /// Socket there; none: netctl's default there.
    pub path: Option<String>,
}

impl Default for Target {
    fn default() -> Self {
        Target::Unix(DEFAULT_SOCKET.into())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ssh { user, host, port, path } = match self {
            Target::Unix(path) => return write!(f, "{}", path.display()),
            Target::Ssh(ssh) => ssh,
        };
        f.write_str("ssh://")?;
        user.iter().try_for_each(|u| write!(f, "{u}@"))?;
        match host.contains(':') {
            true => write!(f, "[{host}]")?,
            false => f.write_str(host)?,
        }
        port.iter().try_for_each(|p| write!(f, ":{p}"))?;
        path.iter().try_for_each(|p| f.write_str(p))
    }
}

impl FromStr for Target {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        let bad = |why| BadValue::new("socket", s, why, "/run/netd/netd.sock or ssh://root@198.51.100.1");
        let Some(rest) = s.strip_prefix("ssh://") else {
            let path = s.strip_prefix("unix://").unwrap_or(s);
            return match path.contains("://") || path.is_empty() {
                true => Err(bad("is neither a path nor ssh://HOST")),
                false => Ok(Target::Unix(path.into())),
            };
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (user, at) = match authority.rsplit_once('@') {
            Some((user, at)) => (Some(user), at),
            None => (None, authority),
        };
        let (host, port) = match at.strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((ip, "")) => (ip, None),
            Some((ip, port)) => (
                ip,
                Some(
                    port.strip_prefix(':')
                        .ok_or_else(|| bad("has something behind its bracket"))?,
                ),
            ),
            None => match at.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (at, None),
            },
        };
        // They become arguments of ssh and, the path, of a shell there: nothing that either could take for more.
        let word = |w: &str, more: &str| {
            !w.is_empty() && !w.starts_with('-') && w.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if !word(host, "-._:") || user.is_some_and(|u| !word(u, "-._")) {
            return Err(bad("has no host or user of letters, digits and -._"));
        }
        if !path.is_empty() && path != "/" && !word(path, "-._/") {
            return Err(bad("has a path with other characters than letters, digits and -._/"));
        }
        let port = match port {
            None => None,
            Some(p) => Some(
                p.parse()
                    .ok()
                    .filter(|p| *p > 0)
                    .ok_or_else(|| bad("has no port between 1 and 65535"))?,
            ),
        };
        Ok(Target::Ssh(Ssh {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
            path: (path.len() > 1).then(|| path.to_owned()),
        }))
    }
}

impl Ssh {
    /// The program and its arguments.
    fn command(&self) -> Command {
        let mut c = Command::new("ssh");
        c.args(["-T"]);
        self.user.iter().for_each(|u| {
            c.args(["-l", u]);
        });
        self.port.iter().for_each(|p| {
            c.args(["-p", &p.to_string()]);
        });
        c.args(["--", &self.host, "netctl"]);
        self.path.iter().for_each(|p| {
            c.args(["--socket", p]);
        });
        c.arg("dial-stdio");
        c
    }
}

/// What a request is written to.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The helper behind a connection: ends with it.
#[derive(Debug, Default)]
pub(super) struct Helper {
    child: Option<Child>,
    complaint: Arc<Mutex<VecDeque<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Helper {
    /// What it has complained about, once it has ended. Empty: nothing, or it is no helper's fault.
    pub(super) async fn complaint(&mut self) -> String {
        let Some(child) = &mut self.child else {
            return String::new();
        };
        // It has closed the connection, so it is about to end; if it hangs, what it said so far must do.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), child.wait()).await;
        if let Some(reader) = self.reader.take() {
            let _ = tokio::time::timeout(std::time::Duration::from_secs(1), reader).await;
        }
        let said: Vec<u8> = match self.complaint.lock() {
            Ok(c) => c.iter().copied().collect(),
            Err(_) => Vec::new(),
        };
        String::from_utf8_lossy(&said).trim().to_owned()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(r) = &self.reader {
            r.abort();
        }
    }
}

pub(super) async fn connect(target: &Target) -> io::Result<(Box<dyn Stream>, Helper)> {
    match target {
        Target::Unix(path) => Ok((Box::new(unix(path).await?), Helper::default())),
        Target::Ssh(ssh) => through(ssh),
    }
}

async fn unix(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).await
}

fn through(ssh: &Ssh) -> io::Result<(Box<dyn Stream>, Helper)> {
    let mut child = ssh
        .command()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let pipe = |what| io::Error::new(ErrorKind::BrokenPipe, what);
    let stdin = child.stdin.take().ok_or_else(|| pipe("ssh has no input"))?;
    let stdout = child.stdout.take().ok_or_else(|| pipe("ssh has no output"))?;
    let complaint: Arc<Mutex<VecDeque<u8>>> = Arc::default();
    let reader = child.stderr.take().map(|mut from| {
        let complaint = complaint.clone();
        tokio::spawn(async move {
            let mut buf = [0; 512];
            while let Ok(n) = from.read(&mut buf).await
                && n > 0
            {
                if let Ok(mut c) = complaint.lock() {
                    c.extend(buf.iter().take(n));
                    // The end of what it says is the reason.
                    let over = c.len().saturating_sub(MAX_COMPLAINT);
                    c.drain(..over);
                }
            }
        })
    });
    let helper = Helper {
        child: Some(child),
        complaint,
        reader,
    };
    Ok((Box::new(tokio::io::join(stdout, stdin)), helper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_or_refused() {
        for (text, want) in [
            ("/run/netd/netd.sock", "unix /run/netd/netd.sock"),
            ("unix:///x.sock", "unix /x.sock"),
            ("relative.sock", "unix relative.sock"),
            ("ssh://h", "-T -- h netctl dial-stdio"),
            (
                "ssh://root@h.example.net:2222",
                "-T -l root -p 2222 -- h.example.net netctl dial-stdio",
            ),
            ("ssh://h/run/x.sock", "-T -- h netctl --socket /run/x.sock dial-stdio"),
            ("ssh://h/", "-T -- h netctl dial-stdio"),
            ("ssh://[2001:db8::1]:22", "-T -p 22 -- 2001:db8::1 netctl dial-stdio"),
            ("ssh://", "no host"),
            ("ssh://-oProxyCommand=x", "no host"),
            ("ssh://-l@h", "no host or user"),
            ("ssh://h:0", "no port"),
            ("ssh://h:x", "no port"),
            ("ssh://h/a;reboot", "path with other"),
            ("ssh://h/$(x)", "path with other"),
            ("tcp://h:1", "neither a path nor"),
            ("", "neither a path nor"),
        ] {
            let got = match text.parse::<Target>() {
                Ok(Target::Unix(p)) => format!("unix {}", p.display()),
                Ok(t @ Target::Ssh(_)) => {
                    assert_eq!(t.to_string().parse(), Ok(t.clone()), "{text}");
                    let Target::Ssh(ssh) = t else { continue };
                    let command = ssh.command();
                    let args = command.as_std().get_args().map(|a| a.to_string_lossy().into_owned());
                    args.collect::<Vec<_>>().join(" ")
                }
                Err(e) => e.why.to_owned(),
            };
            assert!(got.contains(want), "{text}: {got}");
        }
    }
}
