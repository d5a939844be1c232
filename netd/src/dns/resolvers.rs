//! The host's resolvers, as resolv.conf(5) names them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{ADDRESS, DOCKER_ADDRESS};

/// Most resolvers that are used (`MAXNS` of resolv.h).
const MAX: usize = 3;
/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What tells one version of the file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    dev: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
}

#[derive(Debug)]
struct State {
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    servers: Vec<SocketAddr>,
}

/// The resolvers of a file that is read again when it has changed.
#[derive(Debug)]
pub(super) struct Resolvers {
    path: PathBuf,
    state: Mutex<State>,
}

impl Resolvers {
    pub(super) fn new(path: PathBuf) -> Self {
        Resolvers {
            path,
            state: Mutex::new(State {
                looked: None,
                stamp: None,
                servers: Vec::new(),
            }),
        }
    }

    /// The resolvers to ask, in order. A file that cannot be read leaves those that were known.
    pub(super) fn get(&self, now: Instant) -> Vec<SocketAddr> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK) {
            return state.servers.clone();
        }
        let first = state.looked.is_none();
        state.looked = Some(now);
        let stamp = fs::metadata(&self.path).ok().map(|m| Stamp {
            dev: m.dev(),
            inode: m.ino(),
            size: m.len(),
            mtime: (m.mtime(), m.mtime_nsec()),
        });
        if !first && stamp == state.stamp {
            return state.servers.clone();
        }
        match fs::read(&self.path) {
            Ok(text) => state.servers = parse(&String::from_utf8_lossy(&text)),
            Err(e) if first => {
                tracing::warn!(path = %self.path.display(), error = %e, "cannot read the host's resolvers; asking 127.0.0.1");
                state.servers = parse("");
            }
            Err(e) => {
                tracing::warn!(path = %self.path.display(), error = %e, "cannot read the host's resolvers; keeping the old ones")
            }
        }
        state.stamp = stamp;
        state.servers.clone()
    }
}

/// The `nameserver` lines; none at all stands for the local machine (resolv.conf(5)). Our own addresses are left out:
/// asking them would go round in a circle.
fn parse(text: &str) -> Vec<SocketAddr> {
    let named: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        })
        .filter_map(address)
        .collect();
    if named.is_empty() {
        return vec![(Ipv4Addr::LOCALHOST, 53).into()];
    }
    let own = |s: &SocketAddr| s.ip() == IpAddr::V4(ADDRESS) || s.ip() == IpAddr::V4(DOCKER_ADDRESS);
    named.into_iter().filter(|s| !own(s)).take(MAX).collect()
}

/// An address, IPv6 also with its interface: `fe80::1%eth0`.
fn address(text: &str) -> Option<SocketAddr> {
    let Some((ip, scope)) = text.split_once('%') else {
        return text.parse::<IpAddr>().ok().map(|ip| (ip, 53).into());
    };
    let scope = scope
        .parse()
        .ok()
        .or_else(|| nix::net::if_::if_nametoindex(scope).ok())?;
    Some(SocketAddrV6::new(ip.parse().ok()?, 53, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let table: &[(&str, &[&str])] = &[
            ("", &["127.0.0.1:53"]),
            ("# nothing\nsearch example.com\n", &["127.0.0.1:53"]),
            (
                "nameserver 192.0.2.1\n nameserver\t2001:db8::1 # two\n;nameserver 192.0.2.9\n",
                &["192.0.2.1:53", "[2001:db8::1]:53"],
            ),
            ("nameserver 127.0.0.11\nnameserver 127.0.0.12\n", &[]),
            ("nameserver 127.0.0.11\nnameserver 127.0.0.53\n", &["127.0.0.53:53"]),
            (
                "nameserver fe80::1%7\nnameserver fe80::1%no-such-link\nnameserver x\nnameserver\n",
                &["[fe80::1%7]:53"],
            ),
            (
                "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n",
                &["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"],
            ),
        ];
        for (text, expected) in table {
            assert_eq!(
                parse(text).iter().map(ToString::to_string).collect::<Vec<_>>(),
                *expected,
                "{text:?}"
            );
        }
    }

    #[test]
    fn the_file_is_read_again_when_it_changed() {
        let path = std::env::temp_dir().join(format!("netd-resolv-{}", std::process::id()));
        let t0 = Instant::now();
        let r = Resolvers::new(path.clone());
        let mut now = t0;
        let mut ask = || {
            now += LOOK;
            r.get(now).iter().map(|s| s.ip().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(ask(), ["127.0.0.1"], "no file");
        fs::write(&path, "nameserver 192.0.2.1").unwrap();
        assert_eq!(ask(), ["192.0.2.1"]);
        fs::write(&path, "nameserver 192.0.2.22").unwrap();
        assert_eq!(ask(), ["192.0.2.22"]);
        fs::remove_file(&path).unwrap();
        assert_eq!(ask(), ["192.0.2.22"], "kept");
    }
}
