//! Two nodes, a client and tasks as network namespaces, their maps filled as the reconciler would.
//!
//! | host | underlay | tasks |
//! |---|---|---|
//! | `a` | 198.18.0.1, 2001:db8:18::1 | `a1` 10.77.1.2, `a2` 10.77.1.3 (no backend), `o1` 10.88.1.2 in another network |
//! | `b` | 198.18.0.2, 2001:db8:18::2 | `b1` 10.77.2.2 |
//! | `c` | 198.18.0.9, 2001:db8:18::9 | a client |
//!
//! Tasks serve on 8080. Published: port 81 leads to `a1`, 82 to `b1`, 83 to nobody. VIPs: 10.77.0.11 to `a1`,
//! 10.77.0.12 to `b1`, port 80 on each; any other port of theirs unchanged; 10.77.0.13 to nobody. Port 84 leads to `a1`,
//! which offers another port than the service; 85 leads to `b1`, and tasks of the other network to `a1`.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::{Duration, Instant},
};

use ebpf_abi::{
    Addr, BACKEND_ACTIVE, Backend, CFG_DIRECT, EP_BACKEND, EpAddrKey, EpAddrVal, EpCfg, EpMacKey, EpMacVal, Mac,
    MemberVal, NodeCfg, PoolKey, ROUTE_LOCAL, ROUTE_NODE, ROUTE_NONE, ROUTE_VIP, RouteKey, RouteVal, SVC_NETWORKS,
    SVC_TARGETS, SvcKey, SvcVal, TARGET_HERE, TargetKey, TargetVal, mac,
};

use super::world::{World, ifindex, ip};
use crate::bpf::{DataPath, Hook};

pub(super) const VNI: u32 = 7;
pub(super) const OTHER_VNI: u32 = 8;
pub(super) const TARGET: u16 = 8080;
const WAIT: Duration = Duration::from_secs(5);

pub(super) fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(a) => Addr::v4(a.octets()),
        IpAddr::V6(a) => Addr::v6(a.octets()),
    }
}

fn word(a: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(a.octets())
}

/// A task's namespace.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) name: &'static str,
    pub(super) node: usize,
    pub(super) vni: u32,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
    pub(super) mac: Mac,
    mac_text: String,
    pub(super) ifindex: u32,
    pub(super) backend: bool,
}

fn task(name: &'static str, node: usize, vni: u32, net: u8, host: (u8, u8), backend: bool) -> Task {
    let o = [2, 0x77, net, 0, host.0, host.1];
    Task {
        name,
        node,
        vni,
        v4: Ipv4Addr::new(10, net, host.0, host.1),
        v6: Ipv6Addr::new(0xfd00, u16::from(net), 0, 0, 0, 0, u16::from(host.0), u16::from(host.1)),
        mac: mac(o),
        mac_text: o.map(|b| format!("{b:02x}")).join(":"),
        ifindex: 0,
        backend,
    }
}

/// A node.
pub(super) struct Node {
    pub(super) name: &'static str,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
    mac: Mac,
    pub(super) path: DataPath,
}

/// The whole of it.
pub(super) struct Lab<'w> {
    pub(super) world: &'w World,
    pub(super) nodes: Vec<Node>,
    pub(super) tasks: Vec<Task>,
}

pub(super) const HAIRPIN4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(super) const HAIRPIN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 77, 0, 0, 0, 0, 0, 1);
pub(super) const CLIENT4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 9);
pub(super) const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 9);

pub(super) fn vip4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, last))
}

pub(super) fn vip6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 77, 0, 0, 0, 0, 0, 0x1000 + last))
}

fn write(path: &str, text: &str) {
    fs::write(path, text).unwrap_or_else(|e| panic!("{path}: {e}"));
}

impl<'w> Lab<'w> {
    pub(super) fn new(world: &'w World) -> Self {
        ip("link add sw type bridge");
        ip("link set sw up");
        for (host, last) in [("a", 1), ("b", 2), ("c", 9)] {
            ip(&format!("netns add {host}"));
            ip(&format!(
                "link add sw{host} master sw type veth peer name eth0 netns {host}"
            ));
            ip(&format!("link set sw{host} up"));
            world.within(host, || {
                write("/proc/sys/net/ipv6/conf/all/accept_dad", "0");
                write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0");
                ip("link set lo up");
                ip("link set eth0 up");
                ip(&format!("addr add 198.18.0.{last}/24 dev eth0"));
                ip(&format!("addr add 2001:db8:18::{last}/64 dev eth0 nodad"));
            });
        }
        // 10.0.0.0/8 is behind node a for whoever asks outside: nobody has a route, as it should be.
        let mut tasks = vec![
            task("a1", 0, VNI, 77, (1, 2), true),
            task("a2", 0, VNI, 77, (1, 3), false),
            task("b1", 1, VNI, 77, (2, 2), true),
            task("o1", 0, OTHER_VNI, 88, (1, 2), false),
        ];
        let mut nodes = Vec::new();
        for (i, name) in ["a", "b"].into_iter().enumerate() {
            let path = node(world, name, i, &mut tasks);
            let last = i as u8 + 1;
            nodes.push(Node {
                name,
                v4: Ipv4Addr::new(198, 18, 0, last),
                v6: Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, last.into()),
                mac: node_mac(i),
                path,
            });
        }
        let mut lab = Lab { world, nodes, tasks };
        for i in 0..lab.nodes.len() {
            lab.fill(i);
        }
        lab
    }

    pub(super) fn task(&self, name: &str) -> &Task {
        self.tasks.iter().find(|t| t.name == name).unwrap()
    }

    /// The cell of a backend, the same on every node here.
    pub(super) fn cell(name: &str) -> u32 {
        if name == "a1" { 1 } else { 2 }
    }

    /// Fills a node's maps.
    fn fill(&mut self, n: usize) {
        let vxlan_ifindex = self.world.within(self.nodes[n].name, || ifindex("nx0"));
        let peers: Vec<(Ipv4Addr, Mac)> = self.nodes.iter().map(|x| (x.v4, x.mac)).collect();
        let (tasks, node) = (&self.tasks, &mut self.nodes[n]);
        let path = &mut node.path;
        path.set_config(NodeCfg {
            vtep: word(node.v4),
            vxlan_ifindex,
            vxlan_port: u32::from(4789_u16.to_be()),
            mac: node.mac,
            mtu: 1450,
            hairpin4: word(HAIRPIN4),
            hairpin6: Addr::v6(HAIRPIN6.octets()),
            flags: if self.world.direct { CFG_DIRECT } else { 0 },
            ..NodeCfg::default()
        })
        .unwrap();

        let mut backends = BTreeMap::new();
        let (mut by_mac, mut by_addr, mut config, mut targets) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for t in tasks {
            let local = t.node == n;
            if t.backend {
                let b = Backend {
                    addr6: Addr::v6(t.v6.octets()),
                    addr4: word(t.v4),
                    vtep: if local { 0 } else { word(peers[t.node].0) },
                    ifindex: if local { t.ifindex } else { 0 },
                    vni: t.vni,
                    mac: t.mac,
                    state: BACKEND_ACTIVE,
                };
                backends.insert(Self::cell(t.name), b);
            }
            if !local {
                continue;
            }
            let v = EpMacVal {
                addr6: Addr::v6(t.v6.octets()),
                addr4: word(t.v4),
                ifindex: t.ifindex,
            };
            by_mac.insert(
                EpMacKey {
                    vni: t.vni,
                    mac: t.mac,
                    pad: 0,
                },
                v,
            );
            for a in [IpAddr::V4(t.v4), IpAddr::V6(t.v6)] {
                for vni in [0, t.vni] {
                    let v = EpAddrVal {
                        ifindex: t.ifindex,
                        vni: t.vni,
                        mac: t.mac,
                        pad: 0,
                    };
                    by_addr.insert(EpAddrKey { addr: addr(a), vni }, v);
                }
                if t.backend {
                    let published = if t.name == "a1" { 81 } else { 82 };
                    for proto in [6, 17] {
                        for port in [published, 80, 85] {
                            let key = TargetKey {
                                addr: addr(a),
                                vni: t.vni,
                                port: u16::to_be(port),
                                proto,
                            };
                            targets.insert(
                                key,
                                TargetVal {
                                    tport: TARGET.to_be(),
                                    flags: 0,
                                },
                            );
                        }
                    }
                    for proto in [6, 17] {
                        let key = TargetKey {
                            addr: addr(a),
                            vni: t.vni,
                            port: u16::to_be(84),
                            proto: proto | TARGET_HERE,
                        };
                        let tport = TARGET.to_be();
                        targets.insert(key, TargetVal { tport, flags: 0 });
                    }
                    targets.insert(
                        TargetKey {
                            addr: addr(a),
                            vni: t.vni,
                            port: 0,
                            proto: 0,
                        },
                        TargetVal::default(),
                    );
                }
            }
            let link6 = self.world.within(t.name, || link_local("eth0"));
            let cfg = EpCfg {
                addr6: Addr::v6(t.v6.octets()),
                link6: Addr::v6(link6.octets()),
                addr4: word(t.v4),
                vni: t.vni,
                mac: t.mac,
                flags: if t.backend { EP_BACKEND } else { 0 },
            };
            config.insert(t.ifindex, cfg);
        }
        path.backends.sync(&backends).unwrap();
        path.ep_by_mac.sync(&by_mac).unwrap();
        path.ep_by_addr.sync(&by_addr).unwrap();
        path.ep_config.sync(&config).unwrap();
        path.targets.sync(&targets).unwrap();
        path.members
            .sync(&peers.iter().map(|(a, _)| (word(*a), MemberVal::default())).collect())
            .unwrap();

        let (mut routes, mut pools) = (BTreeMap::new(), BTreeMap::new());
        for (vni, net) in [(VNI, 77), (OTHER_VNI, 88)] {
            let mut route = |a: IpAddr, bits: u32, kind: u32, peer: Option<usize>| {
                let family = if a.is_ipv4() { 96 } else { 0 };
                let key = RouteKey {
                    prefix_len: 32 + family + bits,
                    vni_be: vni.to_be(),
                    addr: addr(a),
                };
                let (vtep, mac) = peer.map_or((0, [0; 3]), |p| (word(peers[p].0), peers[p].1));
                routes.insert(
                    key,
                    RouteVal {
                        kind,
                        vtep,
                        mac,
                        pad: 0,
                    },
                );
            };
            let v4 = |c, d| IpAddr::V4(Ipv4Addr::new(10, net, c, d));
            let v6 = |g, h| IpAddr::V6(Ipv6Addr::new(0xfd00, u16::from(net), 0, 0, 0, 0, g, h));
            route(v4(0, 0), 16, ROUTE_NONE, None);
            route(v6(0, 0), 64, ROUTE_NONE, None);
            for last in 11..=13 {
                route(v4(0, last), 32, ROUTE_VIP, None);
                route(v6(0, 0x1000 + u16::from(last)), 128, ROUTE_VIP, None);
            }
            for p in 0..2 {
                let (kind, peer) = if p == n {
                    (ROUTE_LOCAL, None)
                } else {
                    (ROUTE_NODE, Some(p))
                };
                route(v4(p as u8 + 1, 0), 24, kind, peer);
                route(v6(p as u16 + 1, 0), 112, kind, peer);
            }
            pools.insert(
                PoolKey {
                    prefix_len: 96 + 16,
                    addr: addr(v4(0, 0)),
                },
                vni,
            );
            pools.insert(
                PoolKey {
                    prefix_len: 64,
                    addr: addr(v6(0, 0)),
                },
                vni,
            );
        }
        path.routes.sync(&routes).unwrap();
        path.pools.sync(&pools).unwrap();

        let mut services = BTreeMap::new();
        let mut offer = |a: IpAddr, vni: u32, port: u16, backend: u32, id: u32| {
            let lut_len = if backend == 0 { 0 } else { 7 };
            let svc = SvcVal {
                id,
                lut_off: backend * 7,
                lut_len,
                tport: TARGET.to_be(),
                flags: 0,
            };
            for proto in [6, 17] {
                services.insert(
                    SvcKey {
                        addr: addr(a),
                        vni,
                        port: port.to_be(),
                        proto,
                    },
                    svc,
                );
            }
            if vni != 0 {
                services.insert(
                    SvcKey {
                        addr: addr(a),
                        vni,
                        port: 0,
                        proto: 0,
                    },
                    SvcVal { tport: 0, ..svc },
                );
            }
        };
        for (port, backend) in [(81, 1), (82, 2), (83, 0)] {
            for a in [
                IpAddr::V4(node.v4),
                IpAddr::V6(node.v6),
                IpAddr::V4(Ipv4Addr::LOCALHOST),
            ] {
                offer(a, 0, port, backend, u32::from(port));
            }
        }
        for (last, backend) in [(11, 1), (12, 2), (13, 0)] {
            offer(vip4(last), VNI, 80, backend, u32::from(last));
            offer(vip6(last.into()), VNI, 80, backend, u32::from(last));
        }
        for a in [
            IpAddr::V4(node.v4),
            IpAddr::V6(node.v6),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
        ] {
            for proto in [6, 17] {
                for (port, vni, backend, tport, flags) in [
                    (84_u16, 0, 1, 1_u16, SVC_TARGETS),
                    (85, 0, 2, TARGET, SVC_NETWORKS),
                    (85, OTHER_VNI, 1, TARGET, 0),
                ] {
                    let key = SvcKey {
                        addr: addr(a),
                        vni,
                        port: port.to_be(),
                        proto,
                    };
                    let svc = SvcVal {
                        id: u32::from(port),
                        lut_off: backend * 7,
                        lut_len: 7,
                        tport: tport.to_be(),
                        flags,
                    };
                    services.insert(key, svc);
                }
            }
        }
        path.services.sync(&services).unwrap();
        for backend in [1, 2] {
            path.lut().write_row(backend * 7, &[backend; 7]).unwrap();
        }
    }

    /// What the counters of all nodes say, for whoever reads a failure.
    pub(super) fn said(&self) -> String {
        let said = |n: &Node| {
            let counters = n.path.counters().unwrap().into_iter();
            format!(
                "\n{}: {:?}",
                n.name,
                counters.filter(|(_, v)| *v > 0).collect::<Vec<_>>()
            )
        };
        self.nodes.iter().map(said).collect()
    }

    /// A counter of a node.
    pub(super) fn counter(&self, node: usize, name: &str) -> u64 {
        self.nodes[node].path.counters().unwrap()[name]
    }
}

fn node_mac(i: usize) -> Mac {
    mac([2, 0xee, 0, 0, 0, i as u8 + 1])
}

/// Devices and tasks of a node; opens its data path.
fn node(world: &World, name: &'static str, n: usize, tasks: &mut [Task]) -> DataPath {
    for t in tasks.iter().filter(|t| t.node == n) {
        ip(&format!("netns add {}", t.name));
    }
    let folder: PathBuf = world.folder(name);
    let path = world.within(name, || {
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/lo/accept_local", "1"),
            ("ipv4/conf/lo/route_localnet", "1"),
        ] {
            write(&format!("/proc/sys/net/{key}"), value);
        }
        ip("link add nx0 type vxlan external dstport 4789 ttl 64");
        ip("link set nx0 mtu 1450 up");
        let gateway = [2, 0xee, 0, 0, 0, n as u8 + 1]
            .map(|b: u8| format!("{b:02x}"))
            .join(":");
        let mut path = DataPath::open(&folder).unwrap().0;
        for t in tasks.iter_mut().filter(|t| t.node == n) {
            ip(&format!(
                "link add nv{0} mtu 1450 address {gateway} type veth peer name eth0 netns {0}",
                t.name
            ));
            ip(&format!("link set nv{} up", t.name));
            t.ifindex = ifindex(&format!("nv{}", t.name));
            path.attach(Hook::Endpoint, t.ifindex).unwrap();
            ip(&format!("route add {} dev nv{}", t.v4, t.name));
            ip(&format!("-6 route add {} dev nv{}", t.v6, t.name));
            ip(&format!(
                "neigh add {} lladdr {} dev nv{} nud permanent",
                t.v4, t.mac_text, t.name
            ));
            ip(&format!(
                "neigh add {} lladdr {} dev nv{} nud permanent",
                t.v6, t.mac_text, t.name
            ));
        }
        path.attach(Hook::Netdev, ifindex("eth0")).unwrap();
        path.attach(Hook::Overlay, ifindex("nx0")).unwrap();
        path.attach(Hook::Host, 1).unwrap();
        path
    });
    for t in tasks.iter().filter(|t| t.node == n) {
        // Link-local addresses are there at once: no test waits a second for duplicate address detection.
        world.within(t.name, || {
            write("/proc/sys/net/ipv6/conf/all/accept_dad", "0");
            write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0");
        });
        world_task(t);
    }
    path
}

/// Inside a task: one on-link gateway for everything.
fn world_task(t: &Task) {
    let ns = t.name;
    ip(&format!("-n {ns} link set lo up"));
    ip(&format!("-n {ns} link set eth0 mtu 1450 address {} up", t.mac_text));
    ip(&format!("-n {ns} addr add {}/16 dev eth0 noprefixroute", t.v4));
    ip(&format!("-n {ns} addr add {}/64 dev eth0 nodad noprefixroute", t.v6));
    ip(&format!(
        "-n {ns} route add 169.254.1.1 dev eth0 scope link src {}",
        t.v4
    ));
    ip(&format!("-n {ns} route add default via 169.254.1.1 src {}", t.v4));
    ip(&format!(
        "-n {ns} -6 route add default via fe80::1 dev eth0 src {}",
        t.v6
    ));
}

fn link_local(device: &str) -> Ipv6Addr {
    let until = Instant::now() + WAIT;
    loop {
        let text = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        let found = text
            .lines()
            .find(|l| l.starts_with("fe80") && l.split_whitespace().last() == Some(device));
        if let Some(line) = found {
            return u128::from_str_radix(&line[..32], 16).unwrap().into();
        }
        assert!(Instant::now() < until, "no link-local address on {device}");
        std::thread::yield_now();
    }
}
