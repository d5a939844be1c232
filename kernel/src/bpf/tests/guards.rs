//! What must not pass, and what the programs say themselves.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{FromRawFd as _, OwnedFd},
    process::Command,
    time::{Duration, Instant},
};

use ebpf_abi::{BACKEND_DRAINING, BACKEND_GONE, EP_BACKEND, EP_INTERNAL};

use super::{
    lab::{Lab, TARGET, vip4, vip6},
    talk::{closed, exchange, serve, tcp, udp},
    world::both_tunnels,
};
use crate::testing::hear;

/// Whether `ping` from a namespace gets an answer.
fn ping(lab: &Lab<'_>, netns: &str, to: IpAddr, words: &[&str]) -> bool {
    lab.world.within(netns, || {
        Command::new("ping")
            .args(["-n", "-c", "1", "-W", "1"])
            .args(words)
            .arg(to.to_string())
            .output()
            .unwrap()
            .status
            .success()
    })
}

/// Waits until a counter of a node has grown by one at least.
fn grows(lab: &Lab<'_>, node: usize, name: &str, by: impl FnOnce()) {
    let before = lab.counter(node, name);
    by();
    let until = Instant::now() + Duration::from_secs(5);
    while lab.counter(node, name) == before {
        assert!(Instant::now() < until, "{name} of node {node} stays {before}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a datagram from a namespace, with a source that the sender may not have.
fn forge(lab: &Lab<'_>, netns: &str, source: IpAddr, to: SocketAddr) {
    lab.world.within(netns, || {
        let s = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).unwrap();
        drop(s);
        let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: plain system calls on a descriptor of our own.
        let fd = unsafe {
            let fd = libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0);
            let one: libc::c_int = 1;
            let (level, option) = if to.is_ipv4() {
                (libc::SOL_IP, libc::IP_TRANSPARENT)
            } else {
                (libc::SOL_IPV6, libc::IPV6_TRANSPARENT)
            };
            let r = libc::setsockopt(fd, level, option, (&raw const one).cast(), 4);
            assert_eq!(r, 0);
            OwnedFd::from_raw_fd(fd)
        };
        let address: nix::sys::socket::SockaddrStorage = SocketAddr::new(source, 5555).into();
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).unwrap();
        let s = UdpSocket::from(fd);
        s.send_to(b"forged", to).unwrap();
    });
}

#[test]
fn a_task_sends_from_its_own_addresses_alone() {
    both_tunnels(|w| {
        let lab = Lab::new(w);
        let to4 = SocketAddr::new(lab.task("b1").v4.into(), TARGET);
        let to6 = SocketAddr::new(lab.task("b1").v6.into(), TARGET);
        for (source, to) in [
            (lab.task("a1").v4.into(), to4),
            ("198.18.0.9".parse().unwrap(), to4),
            (lab.task("a1").v6.into(), to6),
        ] {
            grows(&lab, 0, "drop_task_source_not_its_own", || {
                forge(&lab, "a2", source, to)
            });
        }
    });
}

#[test]
fn a_foreign_mac_is_a_spoof() {
    both_tunnels(|w| {
        let lab = Lab::new(w);
        assert!(ping(&lab, "a2", lab.task("a1").v4.into(), &[]));
        grows(&lab, 0, "drop_task_source_not_its_own", || {
            super::world::ip("-n a2 link set eth0 address 02:00:00:00:00:66");
            ping(&lab, "a2", lab.task("a1").v4.into(), &[]);
        });
    });
}

#[test]
fn vxlan_is_taken_from_members_alone() {
    both_tunnels(|w| {
        let mut lab = Lab::new(w);
        assert!(ping(&lab, "a1", lab.task("b1").v4.into(), &[]));
        let members = lab.nodes[1].path.members.get_all().clone();
        let without: std::collections::BTreeMap<_, _> = members.into_iter().skip(2).collect();
        lab.nodes[1].path.members.sync(&without).unwrap();
        grows(&lab, 1, "drop_vxlan_from_stranger", || {
            assert!(!ping(&lab, "a1", lab.task("b1").v4.into(), &[]));
        });
    });
}

#[test]
fn a_member_speaks_for_its_own_blocks_alone() {
    both_tunnels(|w| {
        let mut lab = Lab::new(w);
        let b1 = lab.task("b1").clone();
        assert!(ping(&lab, "a1", b1.v4.into(), &[]));
        // For b the block of a belongs to a node at another address by now.
        let mut routes = lab.nodes[1].path.routes.get_all().clone();
        for r in routes.values_mut().filter(|r| r.vtep != 0) {
            r.vtep ^= 0x0100_0000_u32.to_be();
        }
        lab.nodes[1].path.routes.sync(&routes).unwrap();
        for to in [IpAddr::V4(b1.v4), IpAddr::V6(b1.v6)] {
            grows(&lab, 1, "drop_inner_source_not_of_that_node", || {
                assert!(!ping(&lab, "a1", to, &[]));
            });
        }
        // Nor through a VIP.
        serve(w, "b1", TARGET);
        grows(&lab, 1, "drop_inner_source_not_of_that_node", || {
            udp(w, "a1", (vip4(12), 80), 1).unwrap_err();
        });
    });
}

#[test]
fn a_pool_address_from_the_wire_is_dropped() {
    both_tunnels(|w| {
        let lab = Lab::new(w);
        let (a, task) = (&lab.nodes[0], lab.task("b1"));
        grows(&lab, 0, "drop_pool_source_from_wire", || {
            forge(&lab, "c", task.v4.into(), SocketAddr::new(a.v4.into(), 82))
        });
        grows(&lab, 0, "drop_pool_source_from_wire", || {
            forge(&lab, "c", task.v6.into(), SocketAddr::new(a.v6.into(), 82))
        });
    });
}

#[test]
fn pings_answer_where_they_should() {
    both_tunnels(|w| {
        let lab = Lab::new(w);
        for (from, to) in [("a1", "b1"), ("b1", "a1"), ("a2", "a1")] {
            assert!(ping(&lab, from, lab.task(to).v4.into(), &[]), "{from} {to}");
            assert!(ping(&lab, from, lab.task(to).v6.into(), &[]), "{from} {to} IPv6");
        }
        // 1,422 octets fit, one more does not: the sender learns and says so.
        assert!(ping(&lab, "a1", lab.task("b1").v4.into(), &["-M", "do", "-s", "1422"]));
        for (to, size) in [(vip4(11), "1000"), (vip6(11), "0"), (vip4(12), "0"), (vip6(12), "1400")] {
            assert!(ping(&lab, "a2", to, &["-s", size]), "{to}");
        }
        // Another network, an address that nobody has, the cloud's metadata.
        assert!(!ping(&lab, "o1", lab.task("a1").v4.into(), &[]));
        grows(&lab, 0, "drop_no_route_in_network", || {
            assert!(!ping(&lab, "a1", vip4(99), &[]))
        });
        grows(&lab, 0, "drop_no_such_endpoint", || {
            assert!(!ping(&lab, "a1", "10.77.1.99".parse().unwrap(), &[]))
        });
        grows(&lab, 0, "drop_metadata_address", || {
            assert!(!ping(&lab, "a1", "169.254.169.254".parse().unwrap(), &[]))
        });
    });
}

#[test]
fn who_is_not_there_is_said_to_be_unreachable() {
    both_tunnels(|w| {
        let _lab = Lab::new(w);
        for to in [
            vip4(99),
            vip6(99),
            "10.77.1.99".parse().unwrap(),
            "fd00:4d::1:99".parse().unwrap(),
        ] {
            let e = tcp(w, "a1", (to, 80), 1).unwrap_err();
            assert!(matches!(e.raw_os_error(), Some(libc::EHOSTUNREACH)), "{to}: {e}");
        }
    });
}

#[test]
fn an_internal_network_does_not_leave() {
    both_tunnels(|w| {
        let mut lab = Lab::new(w);
        assert!(ping(&lab, "a2", lab.nodes[0].v4.into(), &[]));
        let mut config = lab.nodes[0].path.ep_config.get_all().clone();
        for c in config.values_mut() {
            c.flags |= EP_INTERNAL;
        }
        lab.nodes[0].path.ep_config.sync(&config).unwrap();
        grows(&lab, 0, "drop_internal_network", || {
            assert!(!ping(&lab, "a2", lab.nodes[0].v4.into(), &[]))
        });
        assert!(ping(&lab, "a2", lab.task("b1").v4.into(), &[]));
    });
}

/// Connects from one local port.
fn from_port(lab: &Lab<'_>, netns: &str, port: u16, to: SocketAddr) -> std::io::Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    };
    lab.world.within(netns, || {
        let family = if to.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        let any: IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            "::".parse().unwrap()
        };
        let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
        bind(raw, &SockaddrStorage::from(SocketAddr::new(any, port)))?;
        connect(raw, &SockaddrStorage::from(to))?;
        Ok(TcpStream::from(fd))
    })
}

#[test]
fn one_client_port_to_two_addresses_stays_two_flows() {
    both_tunnels(|w| {
        let lab = Lab::new(w);
        serve(w, "b1", TARGET);
        // By node a and by node b to the same backend: one 4-tuple at the backend, were it not for the rewriting.
        for v6 in [false, true] {
            let to = |n: usize| -> SocketAddr {
                let node = &lab.nodes[n];
                (if v6 { IpAddr::V6(node.v6) } else { IpAddr::V4(node.v4) }, 82).into()
            };
            let first = from_port(&lab, "c", 40_000, to(0)).unwrap();
            let second = from_port(&lab, "c", 40_000, to(1)).unwrap();
            let second = exchange(second, 100_000).unwrap();
            let first = exchange(first, 100_000).unwrap();
            assert_eq!((first.saw.port(), second.mine.port()), (40_000, 40_000));
            assert_ne!(second.saw.port(), 40_000, "it was rewritten for the backend");
        }
        assert_eq!(lab.counter(1, "client_ports_rewritten"), 2);
    });
}

#[test]
fn errors_about_translated_flows_find_their_socket() {
    both_tunnels(|w| {
        // Nobody serves: the backend's own "port unreachable" must come back as the service's.
        let lab = Lab::new(w);
        let a = &lab.nodes[0];
        for (from, to) in [
            ("c", (IpAddr::V4(a.v4), 81)),
            ("c", (a.v4.into(), 82)),
            ("c", (a.v6.into(), 81)),
            ("c", (a.v6.into(), 82)),
            ("a", (a.v4.into(), 82)),
            ("a", (Ipv4Addr::LOCALHOST.into(), 81)),
            ("a2", (a.v4.into(), 82)),
            ("a2", (vip4(11), 80)),
            ("a2", (vip4(12), 80)),
            ("a2", (vip6(11), 80)),
            ("a2", (vip6(12), 80)),
            ("a1", (vip4(11), 80)),
        ] {
            let e = udp(w, from, to, 10).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::ConnectionRefused, "{from} {to:?}");
        }
        assert!(lab.counter(0, "icmp_errors_translated") + lab.counter(1, "icmp_errors_translated") >= 12);
    });
}

/// Binds again for a while: a process that another test forks just now may hold the socket before until it runs `exec`.
fn bind(to: (IpAddr, u16)) -> UdpSocket {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match UdpSocket::bind(to) {
            Err(e) if e.kind() == ErrorKind::AddrInUse && Instant::now() < until => std::thread::yield_now(),
            bound => return bound.unwrap(),
        }
    }
}

#[test]
fn errors_of_a_client_find_the_backend() {
    both_tunnels(|w| {
        // The client's socket is gone when the answer arrives: its "port unreachable" must reach the backend's socket.
        let lab = Lab::new(w);
        for (backend, port, from, to) in [
            ("a1", 81, "c", IpAddr::V4(lab.nodes[0].v4)),
            ("b1", 82, "c", lab.nodes[0].v4.into()),
            ("b1", 82, "c", lab.nodes[0].v6.into()),
            ("a1", 80, "a2", vip4(11)),
            ("b1", 80, "a2", vip4(12)),
            ("b1", 80, "a2", vip6(12)),
        ] {
            let any: IpAddr = if to.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                "::".parse().unwrap()
            };
            let server = w.within(backend, || bind((any, TARGET)));
            server.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            let client = w.within(from, || UdpSocket::bind((any, 0)).unwrap());
            client.send_to(b"x", (to, port)).unwrap();
            let (_, peer) = hear(&server, &mut [0; 16]).unwrap();
            drop(client);
            server.connect(peer).unwrap();
            server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            // Again for a while: a process that another test forks just now may hold the socket until it runs `exec`.
            let refused = (0..10).any(|_| {
                let sent = server.send(b"y").and_then(|_| hear(&server, &mut [0; 16]));
                sent.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
            });
            assert!(refused, "{from} {to}: {}", lab.said());
        }
    });
}

#[test]
fn a_draining_backend_keeps_its_flows_and_takes_no_new_ones() {
    both_tunnels(|w| {
        let mut lab = Lab::new(w);
        serve(w, "b1", TARGET);
        serve(w, "a1", TARGET);
        let to = SocketAddr::new(lab.nodes[0].v4.into(), 82);
        let kept = from_port(&lab, "c", 0, to).unwrap();
        let mut backends = lab.nodes[0].path.backends.get_all().clone();
        backends.get_mut(&2).unwrap().state = BACKEND_DRAINING;
        lab.nodes[0].path.backends.sync(&backends).unwrap();
        // The row still leads to it: refused rather than handed over.
        assert_eq!(
            tcp(w, "c", (to.ip(), 82), 1).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        lab.nodes[0].path.lut().write_row(14, &[1; 7]).unwrap();
        assert_eq!(tcp(w, "c", (to.ip(), 82), 1).unwrap().who, "a1");
        assert_eq!(exchange(kept, 100_000).unwrap().who, "b1");
        // A packet of the flow that came after the backend is gone would be given another one.
        closed(w, "b1", TARGET);

        backends.get_mut(&2).unwrap().state = BACKEND_GONE;
        let was = backends[&2];
        lab.nodes[0].path.backends.sync(&backends).unwrap();
        let purged = lab.nodes[0].path.purge_backend(2, &was).unwrap();
        assert_eq!((purged.affinity, purged.reverse), (1, 0));
        let was = lab.nodes[1].path.backends.get_all()[&2];
        assert_eq!(lab.nodes[1].path.purge_backend(2, &was).unwrap().reverse, 1);
    });
}

#[test]
fn flows_survive_the_replacement_of_the_programs() {
    both_tunnels(|w| {
        let mut lab = Lab::new(w);
        serve(w, "b1", TARGET);
        let to = SocketAddr::new(lab.nodes[0].v4.into(), 82);
        let talk = from_port(&lab, "c", 0, to).unwrap();
        let talking = std::thread::spawn(move || exchange(talk, 30_000_000).unwrap());
        for _ in 0..3 {
            for n in 0..2 {
                let (name, dir) = (lab.nodes[n].name, w.folder(lab.nodes[n].name));
                let mut config = *lab.nodes[n].path.config();
                config.object = [0, 1];
                super::life::overwrite_config(&dir, &config);
                let (path, report) = w.within(name, || crate::bpf::DataPath::open(&dir).unwrap());
                assert!(report.replaced_programs);
                lab.nodes[n].path = path;
            }
        }
        assert_eq!(talking.join().unwrap().who, "b1");
    });
}

#[test]
fn an_endpoint_that_is_no_backend_costs_no_reverse_entry() {
    both_tunnels(|w| {
        let lab = Lab::new(w);
        serve(w, "a2", TARGET);
        assert_eq!(
            lab.nodes[0].path.ep_config.get_all()[&lab.task("a2").ifindex].flags & EP_BACKEND,
            0
        );
        for to in [IpAddr::V4(lab.task("a2").v4), lab.task("a2").v6.into()] {
            assert_eq!(tcp(w, "b1", (to, TARGET), 10_000).unwrap().who, "a2");
        }
        assert_eq!(lab.counter(0, "reverse_entries_made"), 0);
    });
}
