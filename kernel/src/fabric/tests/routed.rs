//! The routed shape against the real kernel: two hosts with a sandbox a network each, a third host that is no member.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::LazyLock,
    thread,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, getsockopt, recv, sendto, setsockopt,
    sockopt::{ReceiveTimeout, TcpMaxSeg},
};

use super::*;
use crate::rtnl::request::create_vxlan_at;

mod led;

/// Whether the kernel has filters; without them the rows about who may send are left out, and it says so. The lane has them.
static CLASSIFIERS: LazyLock<bool> = LazyLock::new(|| {
    let lacks = routed_lacks().unwrap();
    if !lacks.is_empty() {
        assert_ne!(std::env::var("NETD_LANE").as_deref(), Ok("ipvs"), "{lacks:?}");
        eprintln!("who may send is not tried here: this kernel lacks {lacks:?}");
    }
    lacks.is_empty()
});

const MACS: [Mac; 4] = [
    Mac([0; 6]),
    Mac([6, 0x6e, 0, 0, 0, 1]),
    Mac([6, 0x6e, 0, 0, 0, 2]),
    Mac([6, 0x6e, 0, 0, 0, 3]),
];

/// The family of the addresses that tunnels are sent between.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Underlay {
    V4,
    V6,
}

/// Hosts 1, 2 and 3 at one switch.
struct Cluster {
    underlay: Underlay,
    folder: Folder,
    hosts: BTreeMap<u8, Netns>,
    _switch: Netns,
}

fn vtep(host: u8) -> IpAddr {
    [198, 18, 0, host].into()
}

impl Underlay {
    fn vtep(self, host: u8) -> IpAddr {
        match self {
            Underlay::V4 => vtep(host),
            Underlay::V6 => format!("fd18::{host}").parse().unwrap(),
        }
    }
    /// MTU of 1500 less the outer headers.
    fn mtu(self) -> u16 {
        match self {
            Underlay::V4 => 1450,
            Underlay::V6 => 1430,
        }
    }
}

impl Cluster {
    /// Hosts with addresses of both families, and tunnels over IPv4.
    fn new(test: &str) -> Self {
        Cluster::over(Underlay::V4, test, &["198.18.0.N/24", "fd18::N/64"])
    }

    /// `addresses` have a host's number for `N`.
    fn over(underlay: Underlay, test: &str, addresses: &[&str]) -> Self {
        let folder = Folder::new(test);
        let switch = netns::create(&folder.path().join("switch")).unwrap();
        let mut at_switch = Rtnl::open_in(&switch).unwrap();
        at_switch.execute_all(&[create_bridge("ul")]).unwrap();
        set_up(&switch, "ul", &[], None);
        let bridge = at_switch.link("ul").unwrap().unwrap().index;
        let hosts = (1..=3u8).map(|n| {
            let host = netns::create(&folder.path().join(format!("host{n}"))).unwrap();
            let port = format!("p{n}");
            let near = VethEnd {
                name: &port,
                mac: None,
                mtu: None,
                netns: None,
            };
            let far = VethEnd {
                name: "up0",
                netns: Some(host.as_fd()),
                ..near
            };
            let join = LinkChange {
                up: Some(true),
                master: Some(bridge),
                ..LinkChange::default()
            };
            at_switch
                .execute_all(&[create_veth(&near, &far), change_link(&Which::Name(&port), &join)])
                .unwrap();
            let addresses: Vec<String> = addresses.iter().map(|a| a.replace('N', &n.to_string())).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            set_up(&host, "up0", &addresses, None);
            (n, host)
        });
        Cluster {
            underlay,
            hosts: hosts.collect(),
            folder,
            _switch: switch,
        }
    }

    /// Where a host's sandboxes are.
    fn folder(&self, host: u8) -> PathBuf {
        self.folder.path().join(format!("n{host}"))
    }
    fn sandbox(&self, host: u8, net: u32) -> PathBuf {
        names::sandbox(&self.folder(host), vni(net))
    }
    fn task(&self, name: &str) -> Netns {
        netns::create(&self.folder.path().join(name)).unwrap()
    }
    fn in_sandbox(&self, host: u8, net: u32) -> Rtnl {
        Rtnl::open_in(&Netns::open(&self.sandbox(host, net)).unwrap()).unwrap()
    }

    /// What a host wants: networks 4096 (both families) and 4097 (IPv4), hosts 1 and 2 with a block each.
    fn desired(&self, host: u8, tasks: &[(&str, u32, u8)]) -> Desired {
        let blocks = |h: u8| {
            let base = 16 * (h - 1);
            [
                (vni(4096), format!("10.77.16.{base}/28").parse().unwrap()),
                (vni(4096), format!("fd00:77::10{base:02x}/124").parse().unwrap()),
                (vni(4097), format!("10.79.16.{base}/28").parse().unwrap()),
            ]
        };
        let network = |subnet: &str, subnet6: Option<&str>, vips: &[&str]| Network {
            subnet: subnet.parse().unwrap(),
            subnet6: subnet6.map(|s| s.parse().unwrap()),
            internal: false,
            mtu: None,
            vips: vips.iter().map(|v| v.parse().unwrap()).collect(),
        };
        let other = 3 - host;
        let remote = Remote {
            vtep: self.underlay.vtep(other),
            mac: MACS[usize::from(other)],
            blocks: blocks(other).into(),
            singles: [(vni(4096), "10.77.99.9".parse().unwrap())].into(),
        };
        let endpoints = tasks.iter().map(|(task, net, n)| {
            let v4 = if *net == 4096 {
                [10, 77, 16, *n]
            } else {
                [10, 79, 16, *n]
            };
            let ep = Endpoint {
                vni: vni(*net),
                netns: self.folder.path().join(task),
                interface: if *net == 4096 { "eth0" } else { "eth1" }.to_owned(),
                mac: Mac([2, 0x6e, v4[0], v4[1], v4[2], v4[3]]),
                v4: Some(v4.into()),
                v6: (*net == 4096).then(|| format!("fd00:77::10{n:02x}").parse().unwrap()),
                extra: Default::default(),
                backend: true,
            };
            (format!("{task}.{net}").parse().unwrap(), ep)
        });
        Desired {
            node: Some(Node {
                vtep: self.underlay.vtep(host),
                own4: (self.underlay == Underlay::V4).then(|| [198, 18, 0, host].into()),
                vxlan_port: 4789,
                mtu: self.underlay.mtu(),
                mac: MACS[usize::from(host)],
                hairpin4: "169.254.1.2".parse().unwrap(),
                hairpin6: "100::6e:6574:64:2".parse().unwrap(),
                uplinks: ["up0".to_owned()].into(),
                blocks: blocks(host).into(),
                flags: 0,
            }),
            networks: [
                (
                    vni(4096),
                    network("10.77.0.0/16", Some("fd00:77::/64"), &["10.77.0.1", "fd00:77::1"]),
                ),
                (vni(4097), network("10.79.0.0/16", None, &[])),
            ]
            .into(),
            endpoints: endpoints.collect(),
            remotes: [(NodeId(u64::from(other)), remote)].into(),
        }
    }

    fn wanted(&self, host: u8, d: &Desired) -> Wanted {
        let folder = self.folder(host);
        let shape = Shape::Routed {
            folder: &folder,
            classifiers: *CLASSIFIERS,
        };
        netns::run_in(&self.hosts[&host], || shape.want(d)).unwrap()
    }
    fn round(&self, host: u8, wanted: Wanted) -> Round {
        netns::run_in(&self.hosts[&host], || {
            reconcile_wanted(wanted, None, Extent::All).unwrap()
        })
        .unwrap()
    }
    fn settle_wanted(&self, host: u8, wanted: Wanted) -> Round {
        let round = self.round(host, wanted);
        assert!(
            round.is_clean(),
            "{:#?}",
            (&round.report, &round.plan.conflicts, &round.survey.unreadable)
        );
        let again = overlay::plan(&round.wanted, &round.survey.observed);
        assert!(again.is_empty(), "{:#?}", texts(&again));
        round
    }
    /// A round that must leave nothing to do.
    fn settle(&self, host: u8, d: &Desired) -> Round {
        self.settle_wanted(host, self.wanted(host, d))
    }
    /// Hosts 1 and 2, with tasks `a` (10.77.16.5) and `b` (10.77.16.21).
    fn two(&self) -> (Netns, Netns) {
        let tasks = (self.task("a"), self.task("b"));
        self.settle(1, &self.desired(1, &[("a", 4096, 5)]));
        self.settle(2, &self.desired(2, &[("b", 4096, 21)]));
        tasks
    }
    /// Nothing of ours is on a host.
    fn is_clean(&self, host: u8) {
        let mut rtnl = Rtnl::open_in(&self.hosts[&host]).unwrap();
        let mut left: Vec<String> = rtnl.links().unwrap().into_iter().map(|l| l.name).collect();
        left.sort_unstable();
        assert_eq!(left, ["lo", "up0"]);
        let routes = rtnl.routes_of_any_kind().unwrap();
        assert!(routes.iter().all(|r| r.protocol != crate::rtnl::PROTOCOL));
        let files = std::fs::read_dir(self.folder(host)).map_or(0, |files| files.count());
        assert_eq!(files, 0, "sandboxes are left");
    }
}

fn at(address: &str, port: u16) -> String {
    SocketAddr::new(address.parse().unwrap(), port).to_string()
}

/// Echo requests until one is answered; the answer's source, `None`: none within five seconds. (A new cable may lose the
/// first: linkwatch of the kernel wakes some of them up to a second later.)
fn ping(from: &Netns, to: &str) -> Option<IpAddr> {
    let to: IpAddr = to.parse().unwrap();
    let (family, protocol, ask, answer) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8u8, 0u8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    netns::run_in(from, || {
        let fd = nix::sys::socket::socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
        setsockopt(&fd, ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 250_000)).unwrap();
        let mut echo = [ask, 0, 0, 0, 0x6e, 0x65, 0, 1];
        // RFC 1071; of ICMPv6 the kernel fills it in.
        let sum: u32 = echo
            .chunks(2)
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
            .sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        let to_socket = SockaddrStorage::from(SocketAddr::new(to, 0));
        let start = Instant::now();
        let mut buffer = [0u8; 256];
        while start.elapsed() < Duration::from_secs(5) {
            // Refused is: not yet.
            let _ = sendto(fd.as_raw_fd(), &echo, &to_socket, MsgFlags::empty());
            let Ok(n) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) else {
                continue;
            };
            // IPv4 comes with its header.
            let icmp = if to.is_ipv4() { &buffer[20..n] } else { &buffer[..n] };
            if icmp[0] == answer && icmp[4..6] == [0x6e, 0x65] {
                return Some(if to.is_ipv4() {
                    IpAddr::from([buffer[12], buffer[13], buffer[14], buffer[15]])
                } else {
                    to
                });
            }
        }
        None
    })
    .unwrap()
}

/// A megabyte there and back; the segment size that was agreed.
fn tcp(client: &Netns, server: &Netns, address: &str, port: u16, seen: &str) -> u32 {
    let listener = netns::run_in(server, || TcpListener::bind(at(address, port)).unwrap()).unwrap();
    let echo = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
        peer
    });
    let mut stream = netns::run_in(client, || {
        TcpStream::connect_timeout(&at(address, port).parse().unwrap(), Duration::from_secs(5)).unwrap()
    })
    .unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let segment = getsockopt(&stream, TcpMaxSeg).unwrap();
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let sent = data.clone();
    let out = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    out.join().unwrap();
    assert!(back == data);
    assert_eq!(
        echo.join().unwrap().ip().to_string(),
        seen,
        "no other source on the way"
    );
    segment
}

#[test]
fn tasks_of_two_hosts_ping_and_speak_in_both_families_and_see_each_other() {
    let c = Cluster::new("routed-talk");
    let (a, _b) = talk(&c);
    // The hosts' own addresses.
    for to in ["10.77.0.1", "fd00:77::1", "10.77.16.5", "fd00:77::1005"] {
        assert_eq!(ping(&c.hosts[&1], to), Some(to.parse().unwrap()));
    }
    assert!(ping(&a, "169.254.1.1").is_some() && ping(&a, "198.18.0.1").is_some());
}

#[test]
fn the_same_between_hosts_that_have_ipv6_alone() {
    let c = Cluster::over(Underlay::V6, "routed-talk6", &["fd18::N/64"]);
    let (a, _b) = talk(&c);
    for to in ["fd00:77::1", "fd00:77::1005"] {
        assert_eq!(ping(&c.hosts[&1], to), Some(to.parse().unwrap()));
    }
    assert!(ping(&a, "169.254.1.1").is_some() && ping(&a, "fd18::1").is_some());
    // What comes over IPv6 without a checksum is not taken (RFC 8200 8.1), so what was sent above had one.
    let evil = socket(&c.hosts[&2], "[fd18::2]:4790");
    let server = socket(&a, "10.77.16.5:702");
    let send = |text, checksum: bool| {
        without_checksum(&evil, !checksum);
        let frame = frame_to(MACS[2], MACS[1], [10, 77, 16, 21], [10, 77, 16, 5], 702, text);
        evil.send_to(&frame, "[fd18::1]:4789").unwrap();
    };
    send(1, false);
    send(2, true);
    let mut text = [0; 8];
    assert_eq!(hear(&server, &mut text).unwrap().0, 1);
    assert_eq!(text[0], 2);
}

/// Whether datagrams over IPv6 leave without a checksum.
fn without_checksum(socket: &UdpSocket, on: bool) {
    /// Of linux/udp.h.
    const UDP_NO_CHECK6_TX: libc::c_int = 101;
    let on = libc::c_int::from(on);
    let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel reads `length` octets at the pointer, which are those of `on`.
    let done = unsafe { libc::setsockopt(fd, libc::SOL_UDP, UDP_NO_CHECK6_TX, (&raw const on).cast(), length) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn an_underlay_changes_its_family_and_back() {
    let c = Cluster::new("routed-family");
    let (a, _b) = c.two();
    let tasks = |host| -> &[(&str, u32, u8)] {
        match host {
            1 => &[("a", 4096, 5)],
            _ => &[("b", 4096, 21)],
        }
    };
    let before = index_of(&mut c.in_sandbox(1, 4096), &veth("a.4096"));
    for underlay in [Underlay::V6, Underlay::V4] {
        for host in [1, 2] {
            let mut d = c.desired(host, tasks(host));
            let node = d.node.as_mut().unwrap();
            (node.vtep, node.mtu) = (underlay.vtep(host), underlay.mtu());
            let other = underlay.vtep(3 - host);
            d.remotes.values_mut().for_each(|r| r.vtep = other);
            c.settle(host, &d);
            assert_eq!(c.in_sandbox(host, 4096).fdb().unwrap()[0].to, other);
        }
        assert!(ping(&a, "10.77.16.21").is_some() && ping(&a, "fd00:77::1015").is_some());
    }
    assert_eq!(before, index_of(&mut c.in_sandbox(1, 4096), &veth("a.4096")));
}

/// What tasks `a` of host 1 and `b` of host 2 say to each other.
fn talk(c: &Cluster) -> (Netns, Netns) {
    let (a, b) = c.two();
    let mtu = u32::from(c.underlay.mtu());
    for (mine, theirs, headers) in [
        ("10.77.16.5", "10.77.16.21", 40),
        ("fd00:77::1005", "fd00:77::1015", 60),
    ] {
        assert_eq!(ping(&a, theirs), Some(theirs.parse().unwrap()));
        assert_eq!(ping(&b, mine), Some(mine.parse().unwrap()));
        let server = socket(&b, &at(theirs, 700));
        assert_eq!(ask(&socket(&a, &at(mine, 0)), &server).ip().to_string(), mine);
        // Timestamps take 12 octets of each segment (RFC 7323 3).
        assert_eq!(tcp(&a, &b, theirs, 701, mine), mtu - headers - 12);
        assert_eq!(tcp(&b, &a, mine, 701, theirs), mtu - headers - 12);
        // Larger than a packet may be: in pieces.
        let client = socket(&a, &at(mine, 0));
        client.send_to(&[7; 4000], at(theirs, 700)).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // (Questions may have been heard twice.)
        let mut sizes = std::iter::from_fn(|| hear(&server, &mut [0; 5000]).ok().map(|(n, _)| n));
        assert_eq!(sizes.find(|n| *n > 1), Some(4000));
        // A VIP answers, also where nobody is behind it, and so does the other end of the task's cable.
        let vip = if mine.contains(':') { "fd00:77::1" } else { "10.77.0.1" };
        assert_eq!(ping(&a, vip), Some(vip.parse().unwrap()));
    }
    for (host, task) in [(1, "a.4096"), (2, "b.4096")] {
        let mut sandbox = c.in_sandbox(host, 4096);
        for name in ["nx4096", "nvup", &veth(task)] {
            assert_eq!(sandbox.link(name).unwrap().unwrap().mtu, mtu, "{name}");
        }
        let vxlan = sandbox.link("nx4096").unwrap().unwrap();
        assert!(!vxlan.vxlan.unwrap().learning && vxlan.lower_elsewhere);
        assert_eq!(sandbox.fdb().unwrap().len(), 1, "one entry a node");
    }
    (a, b)
}

#[test]
fn an_address_that_is_nobodys_is_unreachable_and_a_foreign_source_goes_nowhere() {
    let c = Cluster::new("routed-nobody");
    let (a, b) = c.two();
    // Of no block, of the host's own.
    let nobodies = [
        "10.77.200.1",
        "10.77.16.6",
        "fd00:77::c801",
        "fd00:77::1006",
        // Of the other host's.
        "10.77.16.22",
        "fd00:77::1016",
    ];
    for nobody in nobodies {
        let to: SocketAddr = at(nobody, 9).parse().unwrap();
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap_err();
        let error = netns::run_in(&a, connect).unwrap();
        assert!(
            matches!(error.raw_os_error(), Some(libc::EHOSTUNREACH | libc::ENETUNREACH)),
            "{nobody}: {error}"
        );
    }
    // Addresses that the task gives itself: one of its host's block, one of another network, one of the world.
    let lies = ["10.77.16.6", "10.79.16.5", "203.0.113.9"];
    let nets: Vec<String> = lies.iter().map(|l| format!("{l}/32")).collect();
    set_up(&a, "eth0", &nets.iter().map(String::as_str).collect::<Vec<_>>(), None);
    for (to, at_server) in [("10.77.16.21:700", &b), ("198.18.0.1:700", &c.hosts[&1])] {
        let server = socket(at_server, to);
        for lie in lies {
            socket(&a, &at(lie, 0)).send_to(b"a lie", to).unwrap();
        }
        let truth = socket(&a, "10.77.16.5:0");
        truth.send_to(b"truth", to).unwrap();
        let mut text = [0; 8];
        let (n, from) = hear(&server, &mut text).unwrap();
        assert_eq!((&text[..n], from), (&b"truth"[..], truth.local_addr().unwrap()));
    }
}

fn index_of(rtnl: &mut Rtnl, name: &str) -> u32 {
    rtnl.link(name).unwrap().unwrap().index
}

#[test]
fn a_second_look_finds_nothing_to_do_and_an_endpoint_that_comes_costs_its_own_alone() {
    let c = Cluster::new("routed-again");
    c.task("a");
    c.task("t");
    let d = c.desired(1, &[("a", 4096, 5)]);
    let first = c.settle(1, &d);
    assert!(first.report.done > 80, "{}", first.report.done);
    let again = c.settle(1, &d);
    assert_eq!((again.plan.steps.len(), again.report.done), (0, 0));
    // On two networks, each in its own sandbox.
    let d = c.desired(1, &[("a", 4096, 5), ("t", 4096, 6), ("t", 4097, 7)]);
    let only = [c.folder.path().join("t")].into();
    let wanted = c.wanted(1, &d);
    let round = netns::run_in(&c.hosts[&1], || {
        reconcile_wanted(wanted, Some(&only), Extent::All).unwrap()
    })
    .unwrap();
    assert!(round.is_clean(), "{:#?}", (&round.report, &round.plan.conflicts));
    let steps = texts(&round.plan);
    assert!(
        steps.len() > 20 && !steps.iter().any(|s| s.contains("/a]")),
        "{steps:#?}"
    );
    c.settle(1, &d);
    let task = Netns::open(&c.folder.path().join("t")).unwrap();
    assert!(ping(&task, "10.77.16.5").is_some() && ping(&task, "198.18.0.1").is_some());
    // It changes its network: the same interface, in another sandbox.
    let mut moved = c.desired(1, &[("a", 4096, 5), ("t", 4096, 6)]);
    let ep = moved.endpoints.get_mut(&"t.4096".parse().unwrap()).unwrap();
    (ep.vni, ep.v4, ep.v6) = (vni(4097), Some([10, 79, 16, 8].into()), None);
    c.settle(1, &moved);
    assert!(ping(&task, "198.18.0.1").is_some());
    // The network goes, with all that is in it.
    moved.endpoints.remove(&"t.4096".parse().unwrap());
    moved.networks.remove(&vni(4097));
    c.settle(1, &moved);
    assert!(!c.sandbox(1, 4097).exists());
    c.settle(1, &Desired::default());
    c.is_clean(1);
}

#[test]
fn killed_after_any_step_the_next_round_completes_it() {
    let c = Cluster::new("routed-kill");
    c.task("a");
    let mut d = c.desired(1, &[("a", 4096, 5)]);
    d.networks.remove(&vni(4097));
    let wanted = c.wanted(1, &d);
    let steps = {
        let survey = netns::run_in(&c.hosts[&1], || observe(&wanted, None).unwrap()).unwrap();
        overlay::plan(&wanted, &survey.observed).steps
    };
    for k in 1..steps.len() {
        let part = Plan {
            steps: steps[..k].to_vec(),
            ..Plan::default()
        };
        let report = netns::run_in(&c.hosts[&1], || apply(&part)).unwrap();
        assert_eq!((report.done, report.failed.len()), (k, 0), "{:?}", report.failed);
        c.settle(1, &d);
        // And on its way out.
        let nothing = c.wanted(1, &Desired::default());
        let seen = netns::run_in(&c.hosts[&1], || observe(&nothing, None).unwrap()).unwrap();
        let mut out = overlay::plan(&nothing, &seen.observed);
        out.steps.truncate(k % (out.steps.len() + 1));
        let report = netns::run_in(&c.hosts[&1], || apply(&out)).unwrap();
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        c.settle(1, &Desired::default());
    }
    c.is_clean(1);
}

#[test]
fn every_step_may_be_repeated() {
    let c = Cluster::new("routed-twice");
    c.task("a");
    let d = c.desired(1, &[("a", 4096, 5)]);
    let first = c.settle(1, &d);
    let steps = first.plan.steps.iter().filter(|s| {
        !matches!(
            s,
            Step::CreateVeth { .. } | Step::CreateTunnel { .. } | Step::AddRoute { .. }
        )
    });
    let plan = Plan {
        steps: steps.cloned().collect(),
        ..Plan::default()
    };
    let report = netns::run_in(&c.hosts[&1], || apply(&plan)).unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert!(c.settle(1, &d).plan.is_empty());
}

#[test]
fn a_vxlan_device_that_exists_already_is_found_wherever_it_is() {
    let c = Cluster::new("routed-exists");
    let a = c.task("a");
    let d = c.desired(1, &[("a", 4096, 5)]);
    // Left on its way, in the host's namespace.
    let mut host = Rtnl::open_in(&c.hosts[&1]).unwrap();
    let alias = names::tunnel_alias(vni(4096));
    let marked = LinkChange {
        alias: Some(&alias),
        ..LinkChange::default()
    };
    host.execute_all(&[
        create_vxlan_at(77, "nx4096", 4096, 4789, vtep(1), MACS[1]),
        change_link(&Which::Index(77), &marked),
    ])
    .unwrap();
    c.settle(1, &d);
    assert!(host.link("nx4096").unwrap().is_none());
    // In a namespace that somebody unmounted and something still holds.
    let held = Netns::open(&c.sandbox(1, 4096)).unwrap();
    netns::remove(&c.sandbox(1, 4096)).unwrap();
    let round = c.settle(1, &d);
    assert!(
        texts(&round.plan)
            .iter()
            .any(|s| s.contains("delete link nx4096 of namespace")),
        "{:#?}",
        texts(&round.plan)
    );
    assert!(Rtnl::open_in(&held).unwrap().link("nx4096").unwrap().is_none());
    assert!(ping(&a, "198.18.0.1").is_some(), "the task has its way again");
    // Another one's device of the same network and port is not touched; why it cannot be is told.
    c.settle(1, &Desired::default());
    host.execute_all(&[create_vxlan_at(78, "theirs", 4096, 4789, vtep(1), MACS[1])])
        .unwrap();
    let round = c.round(1, c.wanted(1, &d));
    let failed: Vec<String> = round.report.failed.iter().map(|(s, e)| format!("{s}: {e}")).collect();
    assert!(
        failed[0].contains("create vxlan nx4096") && failed[0].contains("EEXIST"),
        "{failed:#?}"
    );
    assert!(host.link("theirs").unwrap().is_some());
    host.execute_all(&[delete_link(&Which::Name("theirs"))]).unwrap();
    c.settle(1, &d);
    c.settle(1, &Desired::default());
    c.is_clean(1);
}

#[test]
fn what_is_foreign_stays_and_is_named() {
    let c = Cluster::new("routed-foreign");
    let d = c.desired(1, &[]);
    let theirs = netns::create(&c.sandbox(1, 4096)).unwrap();
    Rtnl::open_in(&theirs)
        .unwrap()
        .execute_all(&[create_bridge("br0")])
        .unwrap();
    let mut host = Rtnl::open_in(&c.hosts[&1]).unwrap();
    host.execute_all(&[create_bridge("nx4097")]).unwrap();
    let round = c.round(1, c.wanted(1, &d));
    assert!(round.report.failed.is_empty(), "{:?}", round.report.failed);
    let told: Vec<String> = round.plan.conflicts.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told.iter().any(|t| t.contains("net-4096")) && told.iter().any(|t| t.contains("nx4097")));
    assert!(Rtnl::open_in(&theirs).unwrap().link("br0").unwrap().is_some());
    assert_eq!(Netns::open(&c.sandbox(1, 4096)).unwrap().id(), theirs.id());
    // It is not taken for a leftover either.
    c.round(1, c.wanted(1, &Desired::default()));
    assert_eq!(Netns::open(&c.sandbox(1, 4096)).unwrap().id(), theirs.id());
    netns::remove(&c.sandbox(1, 4096)).unwrap();
    host.execute_all(&[delete_link(&Which::Name("nx4097"))]).unwrap();
    c.settle(1, &d);
}

#[test]
fn what_changes_is_changed_in_place_and_what_somebody_breaks_is_mended() {
    let c = Cluster::new("routed-change");
    let (a, b) = c.two();
    let mut d = c.desired(1, &[("a", 4096, 5)]);
    let mut sandbox = c.in_sandbox(1, 4096);
    let before = (
        index_of(&mut sandbox, "nx4096"),
        index_of(&mut sandbox, &veth("a.4096")),
    );
    // The remote node has moved, and come back.
    d.remotes.values_mut().for_each(|r| r.vtep = vtep(3));
    let round = c.settle(1, &d);
    assert_eq!(
        round.report.done,
        4,
        "set and delete, in two networks: {:#?}",
        texts(&round.plan)
    );
    let d = c.desired(1, &[("a", 4096, 5)]);
    c.settle(1, &d);
    // Somebody takes devices down, flushes a table and gives another address.
    let down = LinkChange {
        up: Some(false),
        ..LinkChange::default()
    };
    sandbox
        .execute_all(&[
            change_link(&Which::Name("nx4096"), &down),
            change_link(&Which::Name("nvup"), &down),
            change_link(&Which::Name(&veth("a.4096")), &down),
        ])
        .unwrap();
    c.settle(1, &d);
    assert!(ping(&a, "10.77.16.21").is_some() && ping(&b, "fd00:77::1005").is_some());
    assert!(ping(&a, "198.18.0.1").is_some());
    let now = (
        index_of(&mut sandbox, "nx4096"),
        index_of(&mut sandbox, &veth("a.4096")),
    );
    assert_eq!(before, now);
    // Another port asks for another device, and only that.
    let mut other_port = d.clone();
    other_port.node.as_mut().unwrap().vxlan_port = 4790;
    c.settle(1, &other_port);
    assert_eq!(before.1, index_of(&mut sandbox, &veth("a.4096")));
    assert!(ping(&a, "10.77.16.21").is_none());
    c.settle(1, &d);
    assert!(ping(&a, "10.77.16.21").is_some());
}

#[test]
fn one_shape_follows_the_other_and_leaves_nothing_behind() {
    let filter = netns::run_in_new(|| crate::netfilter::set(&overlay::Filter::default())).unwrap();
    if let Err(e) = filter {
        eprintln!("the other shape is not tried here: {e}");
        return;
    }
    let c = Cluster::new("routed-shapes");
    let a = c.task("a");
    let d = c.desired(1, &[("a", 4096, 5)]);
    let folder = c.folder(1);
    let programs = Shape::Programs { folder: &folder };
    let of_programs = || netns::run_in(&c.hosts[&1], || programs.want(&d)).unwrap();
    let mut host = Rtnl::open_in(&c.hosts[&1]).unwrap();
    for _ in 0..2 {
        c.settle_wanted(1, of_programs());
        assert!(host.link("nx0").unwrap().is_some() && host.link(&veth("a.4096")).unwrap().is_some());
        assert_eq!(std::fs::read_dir(&folder).map_or(0, |files| files.count()), 0);
        assert!(ping(&a, "198.18.0.1").is_some());
        c.settle(1, &d);
        assert!(host.link("nx0").unwrap().is_none() && host.link(&veth("a.4096")).unwrap().is_none());
        assert!(ping(&a, "198.18.0.1").is_some());
    }
    c.settle(1, &Desired::default());
    netns::run_in(&c.hosts[&1], || crate::netfilter::remove().unwrap()).unwrap();
    c.is_clean(1);
}

/// A frame of VXLAN: from `mac`, IPv4 UDP from `source` to port 700 of a task.
fn frame(mac: Mac, to: Mac, source: [u8; 4], task: [u8; 4], text: u8) -> Vec<u8> {
    frame_to(mac, to, source, task, 700, text)
}

fn frame_to(mac: Mac, to: Mac, source: [u8; 4], task: [u8; 4], port: u16, text: u8) -> Vec<u8> {
    let mut out = vec![8, 0, 0, 0];
    out.extend((4096u32 << 8).to_be_bytes());
    out.extend(to.0);
    out.extend(mac.0);
    out.extend([8, 0]);
    let mut ip = vec![0x45, 0, 0, 29, 0, 0, 0, 0, 9, 17, 0, 0];
    ip.extend(source);
    ip.extend(task);
    let sum: u32 = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    out.extend(ip);
    // Source and destination port, length, no checksum.
    out.extend([0x30, 0x39]);
    out.extend(port.to_be_bytes());
    out.extend([0, 9, 0, 0, text]);
    out
}

#[test]
fn marked_packets_go_where_ipvs_waits() {
    let c = Cluster::new("routed-marks");
    c.task("a");
    c.settle(1, &c.desired(1, &[("a", 4096, 5)]));
    let mut rules = c.in_sandbox(1, 4096).rules().unwrap();
    rules.retain(|r| r.protocol == crate::rtnl::PROTOCOL);
    let told = rules
        .iter()
        .map(|r| (r.priority, r.own, r.mark, r.table, r.from.addr().is_ipv4()));
    let mut told: Vec<_> = told.collect();
    told.sort();
    let both = |priority, own, mark, table| [(priority, own, mark, table, false), (priority, own, mark, table, true)];
    let expected = [
        both(890, true, (0x6e00_0000, 0xff00_0000), 254),
        both(900, false, (0x6e00_0000, 0xff00_0000), 110),
    ];
    assert_eq!(told, expected.concat());
}
