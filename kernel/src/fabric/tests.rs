//! The overlay's plans against the real kernel, in namespaces of our own: a node with an uplink, an outsider, tasks.

mod routed;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use model::{EndpointId, Mac, NodeId, Vni};
use overlay::{Endpoint, Network, Node, Remote, names};

use super::*;
use crate::{
    netns::{self, Netns},
    rtnl::{
        Address, Route, Rtnl, TABLE_MAIN,
        request::{
            LinkChange, VethEnd, Which, add_address, add_route, change_link, create_bridge, create_veth, delete_link,
        },
    },
    testing::{Folder, hear},
};

struct World {
    folder: Folder,
    node: Netns,
    outsider: Netns,
}

fn set_up(ns: &Netns, link: &str, nets: &[&str], gateway: Option<&str>) {
    let mut rtnl = Rtnl::open_in(ns).unwrap();
    let index = rtnl.link(link).unwrap().unwrap().index;
    let mut requests = vec![change_link(
        &Which::Index(index),
        &LinkChange {
            up: Some(true),
            ..LinkChange::default()
        },
    )];
    let address = |n: &&str| {
        add_address(&Address {
            index,
            net: n.parse().unwrap(),
            no_prefix_route: false,
            tentative: false,
        })
    };
    requests.extend(nets.iter().map(address));
    requests.extend(gateway.map(|g| {
        let via: IpAddr = g.parse().unwrap();
        let to = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse().unwrap();
        add_route(&Route {
            kind: Default::default(),
            table: TABLE_MAIN,
            to,
            via: Some(via),
            index,
            source: None,
            onlink: true,
            protocol: 4,
            metric: 0,
            mtu: None,
        })
    }));
    rtnl.execute_all(&requests).unwrap();
}

impl World {
    fn new(test: &str) -> Self {
        let folder = Folder::new(test);
        let node = netns::create(&folder.path().join("node")).unwrap();
        let outsider = netns::create(&folder.path().join("outsider")).unwrap();
        let near = VethEnd {
            name: "up0",
            mac: None,
            mtu: None,
            netns: None,
        };
        let far = VethEnd {
            name: "eth0",
            mac: None,
            mtu: None,
            netns: Some(outsider.as_fd()),
        };
        Rtnl::open_in(&node)
            .unwrap()
            .execute_all(&[create_veth(&near, &far)])
            .unwrap();
        set_up(&outsider, "eth0", &["198.18.0.9/24", "fd18::9/64"], None);
        set_up(&node, "up0", &["198.18.0.1/24", "fd18::1/64"], None);
        World { folder, node, outsider }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
    fn task(&self, name: &str) -> Netns {
        netns::create(&self.path(name)).unwrap()
    }
    fn round(&self, desired: &Desired) -> Round {
        netns::run_in(&self.node, || reconcile(desired).unwrap()).unwrap()
    }
    /// A round that must leave nothing to do.
    fn settle(&self, desired: &Desired) -> Round {
        settled(self.round(desired))
    }
    fn desired(&self) -> Desired {
        let node = Node {
            vtep: "198.18.0.1".parse().unwrap(),
            own4: Some("198.18.0.1".parse().unwrap()),
            vxlan_port: 4789,
            mtu: 1450,
            mac: Mac([6, 0x6e, 0, 0, 0, 1]),
            hairpin4: "169.254.1.2".parse().unwrap(),
            hairpin6: "fd00::2".parse().unwrap(),
            uplinks: ["up0".to_owned()].into(),
            blocks: [(vni(4096), "10.77.16.0/28".parse().unwrap())].into(),
            flags: 0,
        };
        let network = |subnet: &str, subnet6: Option<&str>| Network {
            subnet: subnet.parse().unwrap(),
            subnet6: subnet6.map(|s| s.parse().unwrap()),
            internal: false,
            mtu: None,
            vips: Default::default(),
        };
        let remote = Remote {
            vtep: "198.18.0.2".parse().unwrap(),
            mac: Mac([6, 0x6e, 0, 0, 0, 2]),
            blocks: Default::default(),
            singles: Default::default(),
        };
        Desired {
            node: Some(node),
            networks: [
                (vni(4096), network("10.77.0.0/16", Some("fd00:77::/64"))),
                (vni(4097), network("10.79.0.0/16", Some("fd00:79::/64"))),
            ]
            .into(),
            endpoints: Default::default(),
            remotes: [(NodeId(2), remote)].into(),
        }
    }
    fn with(&self, ids: &[(&str, u32, u8, &str, &str)]) -> Desired {
        let mut d = self.desired();
        for (id, net, n, task, interface) in ids {
            let ep = Endpoint {
                vni: vni(*net),
                netns: self.path(task),
                interface: (*interface).to_owned(),
                mac: Mac([2, 0x6e, 10, *net as u8, 16, *n]),
                v4: Some(if *net == 4096 {
                    [10, 77, 16, *n].into()
                } else {
                    [10, 79, 16, *n].into()
                }),
                v6: Some(format!("fd00:{}::10{n:02x}", 77 + 2 * (net - 4096)).parse().unwrap()),
                extra: Default::default(),
                backend: true,
            };
            d.endpoints.insert(id.parse().unwrap(), ep);
        }
        d
    }
}

fn vni(n: u32) -> Vni {
    Vni::try_from(n).unwrap()
}
fn texts(p: &Plan) -> Vec<String> {
    p.steps.iter().map(ToString::to_string).collect()
}
/// A round that must leave nothing to do.
fn settled(round: Round) -> Round {
    assert!(
        round.is_clean(),
        "{:#?}",
        (&round.report, &round.plan.conflicts, &round.survey.unreadable)
    );
    let again = overlay::plan(&round.wanted, &round.survey.observed);
    assert!(again.is_empty(), "{:#?}", texts(&again));
    round
}
fn veth(id: &str) -> String {
    names::veth(&id.parse::<EndpointId>().unwrap())
}
fn socket(ns: &Netns, at: &str) -> UdpSocket {
    let s = netns::run_in(ns, || UdpSocket::bind(at).unwrap()).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    s
}
/// Sends a question until it is heard, and takes the answer; tells the source that the server saw. (A veth whose other end
/// went down and up again may lose what is sent until the kernel's linkwatch has seen it, up to a second later.)
fn ask(client: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    server.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
    let mut questions = (0..20).filter_map(|_| {
        client.send_to(b"?", server.local_addr().unwrap()).unwrap();
        hear(server, &mut [0; 8]).ok()
    });
    let (_, seen) = questions.next().unwrap();
    server.send_to(b"!", seen).unwrap();
    assert_eq!(hear(client, &mut [0; 8]).unwrap().1, server.local_addr().unwrap());
    seen
}

#[test]
fn a_task_gets_its_network_and_a_second_look_finds_nothing_to_do() {
    let w = World::new("fabric-task");
    let (one, _two) = (w.task("one"), w.task("two"));
    let d = w.with(&[("web.1", 4096, 5, "one", "eth0"), ("web.2", 4096, 6, "two", "eth0")]);
    let round = w.settle(&d);
    assert!(round.report.done > 40, "{}", round.report.done);
    let again = w.round(&d);
    assert_eq!((again.plan.steps.len(), again.report.done), (0, 0));

    // The task talks with its node, and through it with the outside, in both families, from one neighbour entry each.
    for (task, node, outsider) in [
        ("10.77.16.5", "198.18.0.1", "198.18.0.9"),
        ("fd00:77::1005", "fd18::1", "fd18::9"),
    ] {
        let at = |ip: &str, port: u16| SocketAddr::new(ip.parse().unwrap(), port).to_string();
        let client = socket(&one, &at(task, 0));
        assert_eq!(ask(&client, &socket(&w.node, &at(node, 700))).ip().to_string(), task);
        assert_eq!(
            ask(&client, &socket(&w.outsider, &at(outsider, 700))).ip().to_string(),
            node,
            "masqueraded"
        );
    }
    let mut task = Rtnl::open_in(&one).unwrap();
    let eth0 = task.link("eth0").unwrap().unwrap();
    assert_eq!(
        (eth0.mtu, eth0.alias.as_deref(), eth0.mac),
        (1450, Some("netd:ep:web.1"), Some(Mac([2, 0x6e, 10, 0, 16, 5])))
    );
    let mut neighbours: Vec<String> = task
        .neighbours()
        .unwrap()
        .iter()
        .filter(|n| n.index == eth0.index && !n.address.is_multicast())
        .map(|n| n.address.to_string())
        .collect();
    neighbours.sort();
    assert_eq!(neighbours, ["169.254.1.1", "fe80::1"]);
    assert!(task.addresses().unwrap().iter().all(|a| !a.tentative));

    let rows = overlay::rows(&d, &round.survey.observed);
    let index = Rtnl::open_in(&w.node)
        .unwrap()
        .link(&veth("web.1"))
        .unwrap()
        .unwrap()
        .index;
    assert_eq!(rows.ep_config[&index].vni, 4096);
    assert_eq!(rows.ep_config.len(), 2);
    assert!(rows.config.is_some());
}

#[test]
fn killed_after_any_step_the_next_round_completes_it() {
    let w = World::new("fabric-kill");
    w.task("one");
    w.task("two");
    let d = w.with(&[
        ("a", 4096, 5, "one", "eth0"),
        ("b", 4097, 6, "one", "eth1"),
        ("c", 4096, 7, "two", "eth0"),
    ]);
    let steps = {
        let wanted = overlay::want(&d, abilities());
        let survey = netns::run_in(&w.node, || observe(&wanted, None).unwrap()).unwrap();
        overlay::plan(&wanted, &survey.observed).steps
    };
    // Every third point in the plan, and from each on to the whole and back to nothing.
    for k in (1..steps.len()).step_by(3) {
        let part = Plan {
            steps: steps[..k].to_vec(),
            ..Plan::default()
        };
        let report = netns::run_in(&w.node, || apply(&part)).unwrap();
        assert_eq!((report.done, report.failed.len()), (k, 0), "{:?}", report.failed);
        w.settle(&d);
        w.settle(&Desired::default());
    }
    let links = Rtnl::open_in(&w.node).unwrap().links().unwrap();
    let mut left: Vec<&str> = links.iter().map(|l| l.name.as_str()).collect();
    left.sort_unstable();
    assert_eq!(left, ["lo", "up0"]);
    let routes = Rtnl::open_in(&w.node).unwrap().routes().unwrap();
    assert!(routes.iter().all(|r| r.protocol != crate::rtnl::PROTOCOL));
}

#[test]
fn repeating_every_step_changes_nothing() {
    let w = World::new("fabric-twice");
    w.task("one");
    let d = w.with(&[("a", 4096, 5, "one", "eth0"), ("b", 4097, 6, "one", "eth1")]);
    let first = w.settle(&d);
    let repeatable = |s: &&Step| {
        !matches!(
            s,
            Step::CreateVeth { .. } | Step::CreateVxlan { .. } | Step::AddRoute { .. }
        )
    };
    let steps: Vec<Step> = first.plan.steps.iter().filter(repeatable).cloned().collect();
    let report = netns::run_in(&w.node, || {
        apply(&Plan {
            steps,
            ..Plan::default()
        })
    })
    .unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert!(w.round(&d).plan.is_empty());
}

#[test]
fn a_task_on_two_networks_answers_where_it_was_asked() {
    let w = World::new("fabric-two");
    let one = w.task("one");
    w.settle(&w.with(&[("a", 4096, 5, "one", "eth0"), ("b", 4097, 6, "one", "eth1")]));
    let mut task = Rtnl::open_in(&one).unwrap();
    assert_eq!(task.way_to("192.0.2.1".parse().unwrap()).unwrap().link.name, "eth0");
    let way = task.way_to("10.79.99.9".parse().unwrap()).unwrap();
    assert_eq!(
        (way.link.name.as_str(), way.source),
        ("eth1", Some("10.79.16.6".parse().unwrap()))
    );
    for (address, node) in [
        ("10.77.16.5", "198.18.0.1"),
        ("10.79.16.6", "198.18.0.1"),
        ("fd00:77::1005", "fd18::1"),
        ("fd00:79::1006", "fd18::1"),
    ] {
        let at = |ip: &str, port: u16| SocketAddr::new(ip.parse().unwrap(), port).to_string();
        let client = socket(&one, &at(address, 0));
        assert_eq!(ask(&client, &socket(&w.node, &at(node, 701))).ip().to_string(), address);
        // Whatever address the peer has, of its other network too: by the device of the source.
        let device = if address.contains("77") { "eth0" } else { "eth1" };
        let rules = task.rules().unwrap();
        let own = rules.iter().find(|r| r.from.addr().to_string() == address);
        assert!(own.is_some_and(|r| r.table == names::table(vni(if device == "eth0" { 4096 } else { 4097 }))));
    }
    // The first network goes: the second one has the default route now.
    w.settle(&w.with(&[("b", 4097, 6, "one", "eth1")]));
    assert_eq!(task.way_to("192.0.2.1".parse().unwrap()).unwrap().link.name, "eth1");
    assert!(
        task.rules()
            .unwrap()
            .iter()
            .all(|r| r.protocol != crate::rtnl::PROTOCOL)
    );
}

#[test]
fn tasks_that_vanish_or_are_replaced_are_followed() {
    let w = World::new("fabric-gone");
    w.task("one");
    let d = w.with(&[("a", 4096, 5, "one", "eth0")]);
    w.settle(&d);
    let before = Rtnl::open_in(&w.node).unwrap().link(&veth("a")).unwrap().unwrap().index;
    // Held open, so that the old veth does not go by itself: what leads to it is removed by us.
    let old = Netns::open(&w.path("one")).unwrap();
    netns::remove(&w.path("one")).unwrap();
    let round = w.settle(&d);
    assert_eq!(round.plan.gone, [w.path("one")].into());
    assert!(Rtnl::open_in(&w.node).unwrap().link(&veth("a")).unwrap().is_none());
    assert!(overlay::rows(&d, &round.survey.observed).ep_config.is_empty());
    // Another namespace takes the path.
    w.task("one");
    w.settle(&d);
    assert!(w.round(&d).plan.gone.is_empty());
    // And another one while the device stands.
    let second = Netns::open(&w.path("one")).unwrap();
    netns::remove(&w.path("one")).unwrap();
    w.task("one");
    w.settle(&d);
    let after = Rtnl::open_in(&w.node).unwrap().link(&veth("a")).unwrap().unwrap().index;
    assert_ne!(before, after);
    assert!(Rtnl::open_in(&second).unwrap().link("eth0").unwrap().is_none());
    drop(old);
}

#[test]
fn what_changes_is_changed_in_place() {
    let w = World::new("fabric-change");
    let one = w.task("one");
    let mut d = w.with(&[("a", 4096, 5, "one", "eth0")]);
    w.settle(&d);
    let index = |name: &str| Rtnl::open_in(&w.node).unwrap().link(name).unwrap().unwrap().index;
    let before = (index(&veth("a")), index("nx0"));
    let node = d.node.as_mut().unwrap();
    (node.mac, node.mtu) = (Mac([6, 0x6e, 0, 0, 0, 7]), 1400);
    w.settle(&d);
    assert_eq!(before, (index(&veth("a")), index("nx0")));
    let client = socket(&one, "10.77.16.5:0");
    ask(&client, &socket(&w.node, "198.18.0.1:702"));
    // Another address for the endpoint, and somebody's mischief.
    let ep = d.endpoints.get_mut(&"a".parse().unwrap()).unwrap();
    ep.v4 = Some([10, 77, 16, 9].into());
    let mut host = Rtnl::open_in(&w.node).unwrap();
    host.execute_all(&[change_link(
        &Which::Name(&veth("a")),
        &LinkChange {
            up: Some(false),
            ..LinkChange::default()
        },
    )])
    .unwrap();
    w.settle(&d);
    let client = socket(&one, "10.77.16.9:0");
    ask(&client, &socket(&w.node, "198.18.0.1:703"));
    // A new port asks for a new device, and only that.
    d.node.as_mut().unwrap().vxlan_port = 4790;
    w.settle(&d);
    assert_eq!(before.0, index(&veth("a")));
    assert_ne!(before.1, index("nx0"));
}

#[test]
fn what_is_foreign_stays_and_is_named() {
    let w = World::new("fabric-foreign");
    let (one, _two) = (w.task("one"), w.task("two"));
    let d = w.with(&[("a", 4096, 5, "one", "eth0"), ("b", 4096, 6, "two", "eth0")]);
    let mut host = Rtnl::open_in(&w.node).unwrap();
    host.execute_all(&[create_bridge("nx0"), create_bridge("docker0")])
        .unwrap();
    Rtnl::open_in(&one)
        .unwrap()
        .execute_all(&[create_bridge("eth0")])
        .unwrap();
    let nx0 = host.link("nx0").unwrap();
    let round = w.round(&d);
    assert!(round.report.failed.is_empty(), "{:?}", round.report.failed);
    assert_eq!(
        round.plan.conflicts.iter().map(|c| c.link.as_str()).collect::<Vec<_>>(),
        ["nx0", "eth0"]
    );
    assert_eq!(host.link("nx0").unwrap(), nx0);
    assert!(
        host.link(&veth("b")).unwrap().is_some(),
        "the other one is attached all the same"
    );
    // Out of the way, and it is made.
    host.execute_all(&[delete_link(&Which::Name("nx0"))]).unwrap();
    Rtnl::open_in(&one)
        .unwrap()
        .execute_all(&[delete_link(&Which::Name("eth0"))])
        .unwrap();
    w.settle(&d);
    w.settle(&Desired::default());
    assert!(host.link("docker0").unwrap().is_some());
}

#[test]
fn a_failure_stops_only_what_builds_on_it_and_is_told_once() {
    let w = World::new("fabric-fail");
    let (one, _two) = (w.task("one"), w.task("two"));
    // A default route of somebody else: the kernel refuses ours.
    Rtnl::open_in(&one)
        .unwrap()
        .execute_all(&[create_bridge("br0")])
        .unwrap();
    set_up(&one, "br0", &["10.1.1.1/24"], Some("10.1.1.254"));
    let d = w.with(&[("a", 4096, 5, "one", "eth0"), ("b", 4096, 6, "two", "eth0")]);
    let round = w.round(&d);
    let failed: Vec<String> = round.report.failed.iter().map(|(s, e)| format!("{s}: {e}")).collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert!(
        failed[0].contains("0.0.0.0/0") && failed[0].contains("EEXIST"),
        "{failed:?}"
    );
    // A namespace that goes between look and deed.
    let mut plan = overlay::plan(&round.wanted, &Default::default());
    let gone = Step::CreateVeth {
        ns: overlay::Ns::Host,
        name: "nv1".into(),
        mac: Mac([2; 6]),
        mtu: 1450,
        alias: "netd:ep:x".into(),
        far: overlay::Ns::Task(w.path("nowhere")),
        peer: "eth0".into(),
        peer_mac: Mac([2; 6]),
    };
    let after = |ns: overlay::Ns, link: &str| Step::AddAddress {
        ns,
        link: link.into(),
        net: "10.0.0.1/32".parse::<IpNet>().unwrap(),
    };
    plan.steps = vec![gone, after(overlay::Ns::Host, "nv1"), after(overlay::Ns::Host, "up0")];
    let report = netns::run_in(&w.node, || apply(&plan)).unwrap();
    assert_eq!(report.done, 1);
    assert!(
        matches!(&report.failed[..], [(_, StepError::Netns(_)), (_, StepError::Skipped(link))] if link == "nv1"),
        "{:?}",
        report.failed
    );
}

#[test]
fn what_is_attached_can_send_at_once() {
    let w = World::new("fabric-carrier");
    for n in 0..20_u8 {
        let id = format!("t{n}");
        w.task(&id);
        w.settle(&w.with(&[(&id, 4096, n, &id, "eth0")]));
        let running = |netns: &Netns, name: &str| {
            let link = netns::run_in(netns, || Rtnl::open().unwrap().link(name).unwrap()).unwrap();
            link.is_some_and(|l| l.running)
        };
        assert!(running(&Netns::open(&w.path(&id)).unwrap(), "eth0"), "{id}");
        assert!(running(&w.node, &veth(&id)), "{id}");
    }
}

/// Not a benchmark: a guard against a cost that grows with what is there already.
#[test]
fn attaching_stays_quick() {
    let w = World::new("fabric-quick");
    let names: Vec<String> = (0..40).map(|i| format!("t{i}")).collect();
    names.iter().for_each(|n| drop(w.task(n)));
    let ids: Vec<(&str, u32, u8, &str, &str)> = names
        .iter()
        .enumerate()
        .map(|(i, n)| (n.as_str(), 4096, i as u8, n.as_str(), "eth0"))
        .collect();
    w.settle(&w.with(&ids[..1]));
    let start = Instant::now();
    w.settle(&w.with(&ids[..39]));
    let batch = start.elapsed();
    let start = Instant::now();
    let last = [w.path(&names[39])].into();
    let round = netns::run_in(&w.node, || reconcile_tasks(&w.with(&ids), &last).unwrap()).unwrap();
    let single = start.elapsed();
    assert!(round.is_clean() && round.report.done > 10, "{:?}", round.report);
    assert!(
        round.plan.steps.iter().all(|s| !s.to_string().contains("t38")),
        "{:#?}",
        texts(&round.plan)
    );
    assert_eq!(overlay::rows(&w.with(&ids), &round.survey.observed).ep_config.len(), 40);
    let start = Instant::now();
    w.settle(&w.with(&ids));
    let idle = start.elapsed();
    let out = || {
        let start = Instant::now();
        w.settle(&w.with(&[]));
        start.elapsed()
    };
    let mut all_out = out();
    // What is slow by itself is so each time, a busy machine not.
    for _ in 0..2 {
        if all_out < Duration::from_millis(1000) {
            break;
        }
        w.settle(&w.with(&ids));
        all_out = out();
    }
    eprintln!(
        "38 endpoints {batch:?} ({:?} each); one more {single:?}; nothing to do {idle:?}; all removed {all_out:?}",
        batch / 38
    );
    assert!(batch / 38 < Duration::from_millis(100), "{batch:?}");
    assert!(
        all_out < Duration::from_millis(1000),
        "one by one it takes 30 ms each: {all_out:?}"
    );
}
