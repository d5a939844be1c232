//! Which ports are listened on, and by whom (`NETLINK_SOCK_DIAG`, linux/inet_diag.h).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use model::Proto;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;

use crate::netlink::{NetlinkError, Request, Socket};

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `TCP_LISTEN` as a bit of `idiag_states` (include/net/tcp_states.h).
const LISTEN: u32 = 1 << 10;
/// `TCP_CLOSE`: a UDP socket that is bound and not connected.
const UNCONNECTED: u32 = 1 << 7;
/// `TCP_ESTABLISHED`; of UDP: connected.
const ESTABLISHED: u32 = 1 << 1;
/// `TCP_ESTABLISHED`, `TCP_SYN_SENT`, `TCP_SYN_RECV`, `TCP_CLOSE_WAIT`. What only waits to be forgotten does not count.
const LIVING: u32 = ESTABLISHED | 1 << 2 | 1 << 3 | 1 << 8;
/// Octets of `struct inet_diag_msg`.
const MESSAGE: usize = 72;

/// The sockets could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum SockDiagError {
    /// The kernel lacks it.
    #[error("the kernel cannot list {proto} sockets; try: a kernel with {option}")]
    Missing {
        /// Which.
        proto: Proto,
        /// What it was built without.
        option: &'static str,
    },
    /// The exchange failed.
    #[error("cannot list sockets")]
    Netlink(#[from] NetlinkError),
}

/// A socket that waits for others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// Protocol.
    pub proto: Proto,
    /// Where; the unspecified address: all of the family, and an unspecified IPv6 one mostly takes IPv4 too.
    pub at: SocketAddr,
    /// Inode of the socket, 0: none (a request in the kernel).
    pub inode: u32,
}

/// Everything that listens (TCP) or is bound without being connected (UDP) in the calling thread's namespace.
pub fn listeners() -> Result<BTreeSet<Listener>, SockDiagError> {
    sockets(LISTEN, UNCONNECTED)
}

fn sockets(tcp: u32, udp: u32) -> Result<BTreeSet<Listener>, SockDiagError> {
    let mut socket = Socket::open(NETLINK_SOCK_DIAG)?;
    let mut out = BTreeSet::new();
    for (proto, states, option) in [
        (Proto::Tcp, tcp, "CONFIG_INET_TCP_DIAG"),
        (Proto::Udp, udp, "CONFIG_INET_UDP_DIAG"),
    ] {
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            // struct inet_diag_req_v2: family, protocol, extensions, padding, states, and an id of zeros.
            let mut body = vec![family, proto.number(), 0, 0];
            body.extend_from_slice(&states.to_ne_bytes());
            body.resize(body.len() + 48, 0);
            let answers = match socket.dump(&Request {
                kind: SOCK_DIAG_BY_FAMILY,
                flags: 0,
                body,
            }) {
                Err(e) if e.is(Errno::ENOENT) || e.is(Errno::EINVAL) => {
                    return Err(SockDiagError::Missing { proto, option });
                }
                other => other?,
            };
            out.extend(answers.iter().filter_map(|a| parse(proto, &a.body)));
        }
    }
    Ok(out)
}

/// The ports among them: what an endpoint offers (run in its namespace).
pub fn listening_ports() -> Result<BTreeSet<(Proto, u16)>, SockDiagError> {
    let usable = |l: &Listener| !l.at.ip().is_loopback();
    Ok(listeners()?
        .iter()
        .filter(|l| usable(l))
        .map(|l| (l.proto, l.at.port()))
        .collect())
}

/// `struct inet_diag_msg`: family, state, timer, retransmissions, then the id (ports, addresses, ...), ..., inode last.
fn parse(proto: Proto, body: &[u8]) -> Option<Listener> {
    let body = body.get(..MESSAGE)?;
    let port = u16::from_be_bytes(*body.get(4..)?.first_chunk()?);
    let address: &[u8; 16] = body.get(8..)?.first_chunk()?;
    let ip = match i32::from(*body.first()?) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(*address.first_chunk::<4>()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(*address)),
        _ => return None,
    };
    let inode = u32::from_ne_bytes(*body.get(MESSAGE - 4..)?.first_chunk()?);
    Some(Listener {
        proto,
        at: SocketAddr::new(ip, port),
        inode,
    })
}

/// Who holds a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Where it listens.
    pub at: SocketAddr,
    /// Process; `None`: not to be found (of another pid namespace, or in the kernel).
    pub pid: Option<u32>,
    /// Its name (`/proc/<pid>/comm`, at most 15 characters).
    pub command: Option<String>,
}

impl std::fmt::Display for Holder {
    /// `nginx (pid 123) on 0.0.0.0:80`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.command, self.pid) {
            (Some(command), Some(pid)) => write!(f, "{command} (pid {pid}) on {}", self.at),
            (None, Some(pid)) => write!(f, "pid {pid} on {}", self.at),
            _ => write!(f, "an unknown process on {}", self.at),
        }
    }
}

/// Who uses a port in the calling thread's namespace, as a listener or as the near end of a living connection: its packets
/// would be taken for a published port's. Looking for processes costs one directory each, so it is done
/// only when something does.
pub fn holders(proto: Proto, port: u16) -> Result<Vec<Holder>, SockDiagError> {
    named(sockets(LISTEN | LIVING, UNCONNECTED | ESTABLISHED)?, proto, port)
}

/// Every port that something in the calling thread's namespace uses, as [`holders`] means it.
pub fn ports_in_use() -> Result<BTreeSet<u16>, SockDiagError> {
    let all = sockets(LISTEN | LIVING, UNCONNECTED | ESTABLISHED)?;
    Ok(all.into_iter().map(|l| l.at.port()).collect())
}

/// Who listens on a port (TCP), or is bound to it without being connected (UDP; a socket of the kernel's, such as a VXLAN
/// device's, has no process).
pub fn listening(proto: Proto, port: u16) -> Result<Vec<Holder>, SockDiagError> {
    named(listeners()?, proto, port)
}

fn named(all: BTreeSet<Listener>, proto: Proto, port: u16) -> Result<Vec<Holder>, SockDiagError> {
    let found: Vec<Listener> = all
        .into_iter()
        .filter(|l| l.proto == proto && l.at.port() == port)
        .collect();
    let owners = if found.is_empty() {
        BTreeMap::new()
    } else {
        owners(&found.iter().map(|l| l.inode).collect())
    };
    let holder = |l: Listener| {
        let pid = owners.get(&l.inode).copied();
        let command = pid
            .and_then(|p| fs::read_to_string(format!("/proc/{p}/comm")).ok())
            .map(|c| c.trim_end().to_owned());
        Holder { at: l.at, pid, command }
    };
    Ok(found.into_iter().map(holder).collect())
}

/// Processes that have sockets open: inode -> lowest pid (a master comes before its workers). Processes that end
/// meanwhile, or may not be read, are passed over.
fn owners(inodes: &BTreeSet<u32>) -> BTreeMap<u32, u32> {
    let mut out = BTreeMap::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for link in fds.filter_map(|fd| fs::read_link(fd.path()).ok()) {
            let inode = link
                .to_str()
                .and_then(|l| l.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u32>().ok());
            if let Some(inode) = inode.filter(|i| inodes.contains(i)) {
                let lowest = out.entry(inode).or_insert(pid);
                *lowest = pid.min(*lowest);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::{netns, testing::Folder};

    #[test]
    fn what_listens_in_a_namespace_is_told_with_its_owner() {
        let folder = Folder::new("sockdiag");
        let ns = netns::create(&folder.path().join("a")).unwrap();
        netns::run_in(&ns, || {
            assert_eq!(listeners().unwrap(), BTreeSet::new());
            let all = TcpListener::bind("0.0.0.0:8080").unwrap();
            let six = TcpListener::bind("[::]:8081").unwrap();
            let own = TcpListener::bind("127.0.0.1:8082").unwrap();
            let udp = UdpSocket::bind("0.0.0.0:5353").unwrap();
            let connected = UdpSocket::bind("127.0.0.1:9999").unwrap();
            connected.connect("127.0.0.1:5353").unwrap();
            let client = TcpStream::connect("127.0.0.1:8080").unwrap();
            let ports = listening_ports().unwrap();
            assert_eq!(
                ports,
                [(Proto::Tcp, 8080), (Proto::Tcp, 8081), (Proto::Udp, 5353)].into()
            );
            let holder = holders(Proto::Tcp, 8082).unwrap();
            assert_eq!(holder.len(), 1);
            assert_eq!(
                (holder[0].at, holder[0].pid),
                ("127.0.0.1:8082".parse().unwrap(), Some(std::process::id()))
            );
            assert!(
                holder[0]
                    .to_string()
                    .contains(&format!("(pid {}) on 127.0.0.1:8082", std::process::id())),
                "{}",
                holder[0]
            );
            assert_eq!(holders(Proto::Udp, 8082).unwrap(), []);
            let near = client.local_addr().unwrap().port();
            assert_eq!(
                ports_in_use().unwrap(),
                [5353, 8080, 8081, 8082, 9999, near].into(),
                "also the near ends of connections"
            );
            drop((all, six, own, udp, connected, client));
            assert_eq!(listening_ports().unwrap(), BTreeSet::new());
        })
        .unwrap();
    }

    #[test]
    fn short_messages_are_no_sockets() {
        assert_eq!(parse(Proto::Tcp, &[2; 71]), None);
        assert_eq!(parse(Proto::Tcp, &[99; 72]), None);
    }
}
