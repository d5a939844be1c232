//! Hosts at a switch, and what each of them wants.

use std::{collections::BTreeMap, sync::LazyLock};

use super::*;

/// Whether the kernel has filters; without them the rows about who may send are left out, and it says so. The lane has them.
pub(super) static CLASSIFIERS: LazyLock<bool> = LazyLock::new(|| {
    let lacks = routed_lacks().unwrap();
    if !lacks.is_empty() {
        assert_ne!(std::env::var("NETD_LANE").as_deref(), Ok("ipvs"), "{lacks:?}");
        eprintln!("who may send is not tried here: this kernel lacks {lacks:?}");
    }
    lacks.is_empty()
});

pub(super) const MACS: [Mac; 4] = [
    Mac([0; 6]),
    Mac([6, 0x6e, 0, 0, 0, 1]),
    Mac([6, 0x6e, 0, 0, 0, 2]),
    Mac([6, 0x6e, 0, 0, 0, 3]),
];

/// The family of the addresses that tunnels are sent between.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Underlay {
    V4,
    V6,
}

/// Hosts 1, 2 and 3 at one switch.
pub(super) struct Cluster {
    pub(super) underlay: Underlay,
    pub(super) folder: Folder,
    pub(super) hosts: BTreeMap<u8, Netns>,
    _switch: Netns,
}

pub(super) fn vtep(host: u8) -> IpAddr {
    [198, 18, 0, host].into()
}

impl Underlay {
    pub(super) fn vtep(self, host: u8) -> IpAddr {
        match self {
            Underlay::V4 => vtep(host),
            Underlay::V6 => format!("fd18::{host}").parse().unwrap(),
        }
    }
    /// MTU of 1500 less the outer headers.
    pub(super) fn mtu(self) -> u16 {
        match self {
            Underlay::V4 => 1450,
            Underlay::V6 => 1430,
        }
    }
}

impl Cluster {
    /// Hosts with addresses of both families, and tunnels over IPv4.
    pub(super) fn new(test: &str) -> Self {
        Cluster::over(Underlay::V4, test, &["198.18.0.N/24", "fd18::N/64"])
    }

    /// `addresses` have a host's number for `N`.
    pub(super) fn over(underlay: Underlay, test: &str, addresses: &[&str]) -> Self {
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
    pub(super) fn folder(&self, host: u8) -> PathBuf {
        self.folder.path().join(format!("n{host}"))
    }
    pub(super) fn sandbox(&self, host: u8, net: u32) -> PathBuf {
        names::sandbox(&self.folder(host), vni(net))
    }
    pub(super) fn task(&self, name: &str) -> Netns {
        netns::create(&self.folder.path().join(name)).unwrap()
    }
    pub(super) fn in_sandbox(&self, host: u8, net: u32) -> Rtnl {
        Rtnl::open_in(&Netns::open(&self.sandbox(host, net)).unwrap()).unwrap()
    }

    /// What a host wants: networks 4096 (both families) and 4097 (IPv4), hosts 1 and 2 with a block each.
    pub(super) fn desired(&self, host: u8, tasks: &[(&str, u32, u8)]) -> Desired {
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

    pub(super) fn wanted(&self, host: u8, d: &Desired) -> Wanted {
        let folder = self.folder(host);
        let shape = Shape::Routed {
            folder: &folder,
            classifiers: *CLASSIFIERS,
        };
        netns::run_in(&self.hosts[&host], || shape.want(d)).unwrap()
    }
    pub(super) fn round(&self, host: u8, wanted: Wanted) -> Round {
        netns::run_in(&self.hosts[&host], || {
            reconcile_wanted(wanted, None, Extent::All).unwrap()
        })
        .unwrap()
    }
    pub(super) fn settle_wanted(&self, host: u8, wanted: Wanted) -> Round {
        settled(self.round(host, wanted))
    }
    /// A round that must leave nothing to do.
    pub(super) fn settle(&self, host: u8, d: &Desired) -> Round {
        self.settle_wanted(host, self.wanted(host, d))
    }
    /// Hosts 1 and 2, with tasks `a` (10.77.16.5) and `b` (10.77.16.21).
    pub(super) fn two(&self) -> (Netns, Netns) {
        let tasks = (self.task("a"), self.task("b"));
        self.settle(1, &self.desired(1, &[("a", 4096, 5)]));
        self.settle(2, &self.desired(2, &[("b", 4096, 21)]));
        tasks
    }
    /// Nothing of ours is on a host.
    pub(super) fn is_clean(&self, host: u8) {
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
