//! What becomes of flows. Clients mark their packets themselves (`SO_MARK`), so that no rule is needed, and everything is
//! in one namespace: what a client sends is at its backend when `poll` says so.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mesh::ipvs::plan;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt},
        time::TimeVal,
    },
};

use super::{super::Ipvs, *};
use crate::{
    netns,
    rtnl::{Address, Rtnl, request},
    sysctl,
};

/// The longest that an event is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// New flows of one look: that chance keeps them all from one of two backends happens once in 2^64.
const FLOWS: usize = 64;
const MARK: u32 = 0x6e00_0001;

/// The address that clients ask for; nobody listens there.
fn vip(family: Family) -> SocketAddr {
    SocketAddr::new(dest(family, 99).address, 80)
}

/// A namespace with the VIP and the backends 1 and 2 on its loopback.
fn world(test: impl FnOnce(&mut Ipvs) + Send) {
    netns::run_in_new(|| {
        let address = |(family, n)| {
            request::add_address(&Address {
                index: 1,
                net: IpNet::from(dest(family, n).address),
                no_prefix_route: false,
                tentative: false,
            })
        };
        let all = FAMILIES.iter().flat_map(|family| [1, 2, 99].map(|n| (*family, n)));
        Rtnl::open()
            .unwrap()
            .execute_all(&all.map(address).collect::<Vec<_>>())
            .unwrap();
        let mut ipvs = Ipvs::open().unwrap();
        sysctl::set("net/ipv4/vs/expire_nodest_conn", "1").unwrap();
        test(&mut ipvs);
    })
    .unwrap();
}

/// Backends 1 and 2 with these weights, `None`: not there.
fn bring(ipvs: &mut Ipvs, family: Family, (scheduler, flags): (Scheduler, SchedFlags), weights: [Option<u32>; 2]) {
    let dests = (1..)
        .zip(weights)
        .filter_map(|(n, w)| Some((dest(family, n), weight(w?))));
    let wanted = table([(
        key(1, family),
        Service {
            flags,
            ..service(scheduler, dests)
        },
    )]);
    let seen = ipvs.observe().unwrap();
    let report = ipvs.apply(&plan(&seen, &wanted));
    assert!(report.failed.is_empty(), "{:?}", report.failed);
}

const MAGLEV: (Scheduler, SchedFlags) = (Scheduler::Mh, SchedFlags::MAGLEV);
const ROUND_ROBIN: (Scheduler, SchedFlags) = (
    Scheduler::Rr,
    SchedFlags {
        port: false,
        fallback: false,
    },
);

/// A marked socket that is connected to the VIP.
fn client(family: Family, kind: SockType) -> nix::Result<OwnedFd> {
    let af = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let fd = socket(af, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::Mark, &MARK)?;
    let patience = TimeVal::new(PATIENCE.as_secs() as i64, 0);
    setsockopt(&fd, sockopt::SendTimeout, &patience)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(vip(family)))?;
    Ok(fd)
}

/// Which of two sockets has something to take.
fn ready(sockets: [&dyn AsFd; 2], patience: Duration) -> Option<usize> {
    let mut fds = sockets.map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN));
    // The end of a program that another test runs interrupts who waits.
    while let Err(e) = poll(&mut fds, PollTimeout::try_from(patience).unwrap()) {
        assert_eq!(e, Errno::EINTR);
    }
    fds.iter().position(|fd| fd.any().unwrap())
}

/// Listening backends of TCP.
struct Tcp {
    family: Family,
    listeners: [TcpListener; 2],
}

/// A connection: the client's end, the backend's end, and which backend (0 or 1).
struct Flow(TcpStream, TcpStream, usize);

impl Tcp {
    fn new(family: Family) -> Self {
        let listen = |n| {
            let DestKey { address, port } = dest(family, n);
            TcpListener::bind((address, port)).unwrap()
        };
        Tcp {
            family,
            listeners: [1, 2].map(listen),
        }
    }

    /// A new flow; an error is that of `connect`.
    fn flow(&self) -> nix::Result<Flow> {
        let near = TcpStream::from(client(self.family, SockType::Stream)?);
        let [a, b] = &self.listeners;
        let at = ready([a, b], PATIENCE).expect("a connection that is made is accepted by someone");
        let (far, peer) = self.listeners[at].accept().unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(peer, near.local_addr().unwrap(), "the client's address is kept");
        Ok(Flow(near, far, at))
    }

    /// How many of [`FLOWS`] new flows each backend gets, and how many nobody.
    fn spread(&self) -> ([usize; 2], usize) {
        let mut got = ([0; 2], 0);
        for _ in 0..FLOWS {
            match self.flow() {
                Ok(Flow(.., at)) => got.0[at] += 1,
                Err(_) => got.1 += 1,
            }
        }
        got
    }
}

impl Flow {
    /// The client says something and waits for an answer that nobody gives.
    fn ask(&mut self) -> io::Result<()> {
        self.0.write_all(&[7])?;
        self.0.read_exact(&mut [0])
    }

    fn echo(&mut self) -> io::Result<()> {
        let mut octet = [0];
        self.0.write_all(&[7])?;
        self.1.read_exact(&mut octet)?;
        self.1.write_all(&octet)?;
        self.0.read_exact(&mut octet)
    }
}

/// What is remembered of flows to a backend: `DestIP` of /proc/net/ip_vs_conn, which has IPv4 as one hexadecimal number.
fn remembered(family: Family, n: u16) -> usize {
    let text = std::fs::read_to_string("/proc/thread-self/net/ip_vs_conn").unwrap();
    let address = |word: &str| {
        let v4 = || u32::from_str_radix(word, 16).ok().map(|n| IpAddr::V4(n.into()));
        word.parse().ok().or_else(v4)
    };
    let to = text.lines().filter_map(|l| address(l.split_whitespace().nth(5)?));
    to.filter(|to| *to == dest(family, n).address).count()
}

/// The kernel forgets flows to a backend that is gone by itself, a moment later (Linux 5.9, `expire_nodest_conn`), without
/// a packet of theirs and without an event.
fn forgotten(family: Family, n: u16) {
    let start = Instant::now();
    while remembered(family, n) > 0 {
        assert!(start.elapsed() < PATIENCE, "{} flows are left", remembered(family, n));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn a_backend_that_drains_takes_no_new_flow_keeps_its_own_and_costs_none() {
    for family in FAMILIES {
        for scheduler in [MAGLEV, ROUND_ROBIN] {
            world(|ipvs| {
                let tcp = Tcp::new(family);
                bring(ipvs, family, scheduler, [Some(1), Some(1)]);
                let (both, none) = tcp.spread();
                assert!(both[0] > 0 && both[1] > 0 && none == 0, "{both:?} {none}");
                let mut held = std::iter::repeat_with(|| tcp.flow().unwrap())
                    .find(|f| f.2 == 0)
                    .unwrap();

                bring(ipvs, family, scheduler, [Some(0), Some(1)]);
                assert_eq!(tcp.spread(), ([0, FLOWS], 0));
                held.echo().unwrap();

                // Each flow and its packets are counted.
                let start = Instant::now();
                let counted = std::iter::repeat_with(|| {
                    std::thread::sleep(Duration::from_millis(50));
                    ipvs.counted().unwrap()
                })
                .find(|c| c.flows > 2 * FLOWS as u64 || start.elapsed() > PATIENCE)
                .unwrap();
                assert!(counted.flows > 2 * FLOWS as u64, "{counted:?}");
                assert!(counted.packets_in > counted.flows && counted.octets_in > 40 * counted.packets_in);

                // It comes back.
                bring(ipvs, family, scheduler, [Some(1), Some(1)]);
                let (both, none) = tcp.spread();
                assert!(both[0] > 0 && both[1] > 0 && none == 0, "{both:?} {none}");
                held.echo().unwrap();

                // It goes: its flow is cut, and the client hears of it.
                assert!(remembered(family, 1) > 0);
                bring(ipvs, family, scheduler, [None, Some(1)]);
                forgotten(family, 1);
                assert!(remembered(family, 2) > 0, "of the other all are");
                assert_eq!(tcp.spread(), ([0, FLOWS], 0));
                let cut = held.ask().unwrap_err();
                assert_eq!(cut.kind(), ErrorKind::ConnectionReset, "{cut}");

                // And it comes back again.
                bring(ipvs, family, scheduler, [Some(1), Some(1)]);
                let (both, none) = tcp.spread();
                assert!(both[0] > 0 && both[1] > 0 && none == 0, "{both:?} {none}");
            });
        }
    }
}

/// Why [`SchedFlags::MAGLEV`] has it.
#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn maglev_without_the_fallback_refuses_flows_while_a_backend_drains() {
    world(|ipvs| {
        let alone = SchedFlags {
            fallback: false,
            ..SchedFlags::MAGLEV
        };
        let tcp = Tcp::new(Family::V4);
        bring(ipvs, Family::V4, (Scheduler::Mh, alone), [Some(1), Some(1)]);
        bring(ipvs, Family::V4, (Scheduler::Mh, alone), [Some(0), Some(1)]);
        let refused = (0..FLOWS).find_map(|_| tcp.flow().err());
        assert_eq!(refused, Some(Errno::ECONNREFUSED));
    });
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn udp_stays_while_its_backend_drains_and_moves_when_it_goes() {
    for family in FAMILIES {
        for scheduler in [MAGLEV, ROUND_ROBIN] {
            world(|ipvs| {
                let bind = |n| {
                    let DestKey { address, port } = dest(family, n);
                    UdpSocket::bind((address, port)).unwrap()
                };
                let backends = [1, 2].map(bind);
                let take = |patience| {
                    let [a, b] = &backends;
                    let at = ready([a, b], patience)?;
                    backends[at].recv(&mut [0; 8]).unwrap();
                    Some(at)
                };
                bring(ipvs, family, scheduler, [Some(1), Some(1)]);
                let new = || UdpSocket::from(client(family, SockType::Datagram).unwrap());
                let held = std::iter::repeat_with(new)
                    .find(|c| {
                        c.send(&[7]).unwrap();
                        take(PATIENCE) == Some(0)
                    })
                    .unwrap();

                bring(ipvs, family, scheduler, [Some(0), Some(1)]);
                held.send(&[7]).unwrap();
                assert_eq!(take(PATIENCE), Some(0), "an established flow");
                for _ in 0..FLOWS {
                    new().send(&[7]).unwrap();
                    assert_eq!(take(PATIENCE), Some(1), "a new flow");
                }

                assert!(remembered(family, 1) > 0);
                bring(ipvs, family, scheduler, [None, Some(1)]);
                forgotten(family, 1);
                // The first packet may be the one by which the kernel finds out; it may also be refused.
                let moved = (0..20).find_map(|_| {
                    let _ = held.send(&[7]);
                    take(Duration::from_millis(200))
                });
                assert_eq!(moved, Some(1));

                // It comes back, and gets new flows at once.
                bring(ipvs, family, scheduler, [Some(1), Some(1)]);
                let back = (0..FLOWS).any(|_| {
                    new().send(&[7]).unwrap();
                    take(PATIENCE) == Some(0)
                });
                assert!(back);
                held.send(&[7]).unwrap();
                assert_eq!(take(PATIENCE), Some(1), "what has moved stays");
            });
        }
    }
}
