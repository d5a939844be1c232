//! Which ports are listened on, and by whom (`NETLINK_SOCK_DIAG`, linux/inet_diag.h).

mod sctp;

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

/// TCP connections that would be cut if their process ended now: `TCP_ESTABLISHED`, `TCP_SYN_RECV`, `TCP_FIN_WAIT1`,
/// `TCP_CLOSE_WAIT`, `TCP_LAST_ACK`, `TCP_CLOSING`. In the others the near end has said all, and the far end has it.
const UNDER_WAY: u32 = ESTABLISHED | 1 << 3 | 1 << 4 | 1 << 8 | 1 << 9 | 1 << 11;

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

/// Everything that listens (TCP, SCTP) or is bound without being connected (UDP) in the calling thread's namespace.
pub fn listeners() -> Result<BTreeSet<Listener>, SockDiagError> {
    let mut out = sockets(LISTEN, UNCONNECTED)?;
    out.extend(sctp::listeners());
    Ok(out)
}

/// Everything that uses a port.
fn users() -> Result<BTreeSet<Listener>, SockDiagError> {
    let mut out = sockets(LISTEN | LIVING, UNCONNECTED | ESTABLISHED)?;
    out.extend(sctp::listeners());
    out.extend(sctp::associations().iter().map(|a| a.holder()));
    Ok(out)
}

fn sockets(tcp: u32, udp: u32) -> Result<BTreeSet<Listener>, SockDiagError> {
    let mut socket = Socket::open(NETLINK_SOCK_DIAG)?;
    let mut out = BTreeSet::new();
    for (proto, states) in [(Proto::Tcp, tcp), (Proto::Udp, udp)] {
        dump(&mut socket, proto, states, |body| out.extend(parse(proto, body)))?;
    }
    Ok(out)
}

/// Hands every socket's message to `take`.
fn dump(socket: &mut Socket, proto: Proto, states: u32, mut take: impl FnMut(&[u8])) -> Result<(), SockDiagError> {
    let option = match proto {
        Proto::Tcp => "CONFIG_INET_TCP_DIAG",
        Proto::Udp => "CONFIG_INET_UDP_DIAG",
        Proto::Sctp => "CONFIG_INET_SCTP_DIAG",
    };
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
        answers.iter().for_each(|a| take(&a.body));
    }
    Ok(())
}

/// Connections (TCP, SCTP) of the calling thread's namespace whose near end is one of `ports` and that have more to say;
/// those within the namespace are not counted.
pub fn connections(ports: &BTreeSet<(Proto, u16)>) -> Result<usize, SockDiagError> {
    let mut socket = Socket::open(NETLINK_SOCK_DIAG)?;
    let mut ends = Vec::new();
    dump(&mut socket, Proto::Tcp, UNDER_WAY, |body| {
        ends.extend(parse(Proto::Tcp, body).and_then(|near| Some((near.at, far(body)?))));
    })?;
    // Both ends of a connection within the namespace are in the list; of an address mapped into IPv6 too.
    let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    let near: BTreeSet<SocketAddr> = ends.iter().map(|(near, _)| plain(*near)).collect();
    let from_outside = ends
        .iter()
        .filter(|(at, far)| ports.contains(&(Proto::Tcp, at.port())) && !near.contains(&plain(*far)));
    Ok(from_outside.count() + associations(ports))
}

fn associations(ports: &BTreeSet<(Proto, u16)>) -> usize {
    let all = sctp::associations();
    let within = |a: &sctp::Association| all.iter().any(|b| (b.port, b.far) == (a.far, a.port));
    let of = |a: &&sctp::Association| ports.contains(&(Proto::Sctp, a.port)) && a.is_living() && !within(a);
    all.iter().filter(of).count()
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

/// The far end in the same message.
fn far(body: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*body.get(6..)?.first_chunk()?);
    let address: &[u8; 16] = body.get(24..)?.first_chunk()?;
    Some(SocketAddr::new(ip(*body.first()?, address)?, port))
}

fn ip(family: u8, address: &[u8; 16]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(IpAddr::V4(Ipv4Addr::from(*address.first_chunk::<4>()?))),
        libc::AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(*address))),
        _ => None,
    }
}

/// `struct inet_diag_msg`: family, state, timer, retransmissions, then the id (ports, addresses, ...), ..., inode last.
fn parse(proto: Proto, body: &[u8]) -> Option<Listener> {
    let body = body.get(..MESSAGE)?;
    let port = u16::from_be_bytes(*body.get(4..)?.first_chunk()?);
    let address: &[u8; 16] = body.get(8..)?.first_chunk()?;
    let ip = ip(*body.first()?, address)?;
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
    named(users()?, proto, port)
}

/// Every port that something in the calling thread's namespace uses, as [`holders`] means it.
pub fn ports_in_use() -> Result<BTreeSet<u16>, SockDiagError> {
    Ok(users()?.into_iter().map(|l| l.at.port()).collect())
}

/// Who listens on a port (TCP, SCTP), or is bound to it without being connected (UDP; a socket of the kernel's, such as a VXLAN
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
    fn connections_from_outside_are_counted_until_all_is_said() {
        use crate::rtnl::{
            Rtnl,
            request::{VethEnd, create_veth},
        };
        let folder = Folder::new("sockdiag-flows");
        let task = netns::create(&folder.path().join("task")).unwrap();
        let client = netns::create(&folder.path().join("client")).unwrap();
        let mut rtnl = Rtnl::open_in(&task).unwrap();
        let near = VethEnd {
            name: "near",
            mac: None,
            mtu: None,
            netns: None,
        };
        let far = VethEnd {
            name: "far",
            netns: Some(std::os::fd::AsFd::as_fd(&client)),
            ..near
        };
        rtnl.execute_all(&[create_veth(&near, &far)]).unwrap();
        for (ns, name, address) in [(&task, "near", "192.0.2.1/24"), (&client, "far", "192.0.2.2/24")] {
            let done = netns::run_in(ns, || {
                std::process::Command::new("sh")
                    .args([
                        "-c",
                        &format!("ip addr add {address} dev {name} && ip link set {name} up"),
                    ])
                    .status()
            });
            assert!(done.unwrap().unwrap().success());
        }
        let ports = BTreeSet::from([(Proto::Tcp, 8080)]);
        let count = || netns::run_in(&task, || connections(&ports)).unwrap().unwrap();
        let (server, other) = netns::run_in(&task, || {
            (
                TcpListener::bind("[::]:8080").unwrap(),
                TcpListener::bind("0.0.0.0:9090").unwrap(),
            )
        })
        .unwrap();
        assert_eq!(count(), 0);
        let connect = |port: u16| TcpStream::connect(("192.0.2.1", port)).unwrap();
        let (long, elsewhere) = netns::run_in(&client, || (connect(8080), connect(9090))).unwrap();
        let accepted = server.accept().unwrap().0;
        assert_eq!(count(), 1, "one on the port, one on another");
        let inside = netns::run_in(&task, || connect(8080)).unwrap();
        let inside_accepted = server.accept().unwrap().0;
        assert_eq!(count(), 1, "a health check is nobody's flow");
        drop(long);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        // The client has closed, the server may still answer: it counts until it has closed too.
        assert_eq!(count(), 1);
        drop(accepted);
        while count() > 0 {
            assert!(std::time::Instant::now() < until);
        }
        drop((server, other, elsewhere, inside, inside_accepted));
    }

    #[test]
    fn short_messages_are_no_sockets() {
        assert_eq!(parse(Proto::Tcp, &[2; 71]), None);
        assert_eq!(parse(Proto::Tcp, &[99; 72]), None);
    }
}
