use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ebpf_abi::{
    Addr, BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_EARLY, BACKEND_GONE, Backend as Cell, SVC_NETWORKS, SVC_TARGETS,
    SvcKey, SvcVal, TARGET_EARLY, TARGET_HERE, TargetKey,
};
use model::{Mac, NodeId, On, PortSpec, PublishMode, Vni, intent::Vip, row::Datapath};
use proptest::prelude::*;

use super::*;
use crate::wanted::{Backend, BackendId, BackendState, Node, Place, Port, Problem, Service, Wanted};

const ME: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));

fn vni(n: u32) -> Vni {
    Vni::try_from(n).unwrap()
}

fn nothing() -> Wanted {
    Wanted {
        node: Node {
            id: NodeId(1),
            vtep: ME,
            datapath: Datapath::Ebpf,
        },
        local: ["127.0.0.1", "198.18.0.1", "2001:db8::1", "::1", "fe80::1"]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect(),
        early: false,
        services: BTreeMap::new(),
    }
}

/// Endpoint `n` of network 4096, on node `node`; node 1 is this one.
fn backend(n: u8, node: u8) -> (BackendId, Backend) {
    let id = BackendId {
        node: NodeId(node.into()),
        endpoint: format!("web.{n}").parse().unwrap(),
    };
    let place = match node {
        1 => Place::Local {
            ifindex: 100 + u32::from(n),
        },
        _ => Place::Remote {
            vtep: IpAddr::from([198, 18, 0, node]),
            datapath: Datapath::Ebpf,
        },
    };
    let b = Backend {
        vni: vni(4096),
        v4: Some(Ipv4Addr::new(10, 77, 1, n)),
        v6: Some(Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, n.into())),
        mac: Mac([2, 0x6e, 0, 0, node, n]),
        place,
        slot: Some(n.into()),
        state: BackendState::Active,
        weight: 1,
    };
    (id, b)
}

fn service(ports: &[&str], backends: impl IntoIterator<Item = (BackendId, Backend)>) -> Service {
    let vip = Vip {
        v4: Ipv4Addr::new(10, 77, 0, 2),
        v6: Some("fd00:0:0:1::ffff".parse().unwrap()),
    };
    Service {
        vips: BTreeMap::from([(vni(4096), vip)]),
        ports: ports.iter().map(|p| port(p)).collect(),
        backends: backends.into_iter().collect(),
        ..Service::default()
    }
}

/// A published port as a view tells it; `eth0` has 198.18.0.1.
fn port(text: &str) -> Port {
    let spec: PortSpec = text.parse().unwrap();
    Port {
        published: spec.published,
        target: spec.target,
        proto: spec.proto,
        host: spec.mode == PublishMode::Host,
        on: match spec.on {
            On::All => None,
            On::Address(a) => Some([a].into()),
            On::Device(_) => Some(["198.18.0.1".parse().unwrap()].into()),
        },
        mark: 1,
    }
}

fn web(ports: &[&str], backends: impl IntoIterator<Item = (BackendId, Backend)>) -> Wanted {
    Wanted {
        services: BTreeMap::from([(7, service(ports, backends))]),
        ..nothing()
    }
}

fn key(ip: &str, net: u32, port: u16, proto: u16) -> SvcKey {
    SvcKey {
        addr: desired::addr(ip.parse().unwrap()),
        vni: net,
        port: port.to_be(),
        proto,
    }
}

fn small() -> Observed {
    Observed {
        sizes: Sizes {
            services: 1000,
            backends: 64,
            lut: 40_000,
            targets: 1000,
        },
        ..Observed::default()
    }
}

/// No entry names a row out of bounds, overlapping another service's, or a backend that is gone.
fn check(o: &Observed) {
    let mut rows: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    for val in o.services.values().filter(|v| v.lut_len > 0) {
        let owner = *rows.entry((val.lut_off, val.lut_len)).or_insert(val.id);
        assert_eq!(owner, val.id, "a row of two services");
    }
    let mut end = 0;
    for ((off, len), owner) in &rows {
        assert!(*off >= end, "rows overlap");
        end = off + len;
        assert!(end <= o.sizes.lut);
        let gone = (*off..end).find(|at| o.backend(o.lut_cell(*at)).state == BACKEND_GONE);
        assert_eq!(gone, None, "service {owner} leads to a backend that is gone");
    }
}

/// Carries a plan out and looks at each step; the flows that name a cell are purged before it is given away.
fn apply(o: &mut Observed, plan: &Plan) {
    let mut purged = BTreeSet::new();
    for step in &plan.steps {
        match step {
            Step::Purge { gone } => purged.extend(gone.iter().map(|g| g.cell)),
            Step::Backend { cell, value } => {
                let held = o.backend(*cell);
                let same = (held.vni, held.mac) == (value.vni, value.mac);
                assert!(*cell > 0);
                assert!(
                    same || held == Cell::default() || purged.contains(cell),
                    "cell {cell} changes hands unpurged"
                );
            }
            _ => {}
        }
        o.apply(step);
        check(o);
    }
}

fn settle(w: &Wanted, o: &mut Observed) -> Plan {
    let p = plan(w, o);
    apply(o, &p);
    assert_eq!(plan(w, o).steps, [], "planning again must be empty");
    p
}

/// Which endpoints (last octet of their MACs) a key leads to; none: no such key.
fn leads_to(o: &Observed, key: &SvcKey) -> Option<BTreeSet<u8>> {
    let val = o.services.get(key)?;
    let macs = (val.lut_off..val.lut_off + val.lut_len).map(|at| o.backend(o.lut_cell(at)).mac[2].to_ne_bytes()[1]);
    Some(macs.collect())
}

/// Endpoint `n` on network 5000, of the task whose first endpoint is `backend(n, node)`.
fn further(n: u8, node: u8) -> (BackendId, Backend) {
    let (mut id, mut b) = backend(n, node);
    id.endpoint = id.endpoint.on(&"db".parse().unwrap());
    (b.vni, b.v4) = (vni(5000), Some(Ipv4Addr::new(10, 78, 1, n)));
    b.mac = Mac([2, 0x6e, 1, 0, node, 100 + n]);
    (id, b)
}

#[test]
fn a_task_on_two_networks_is_one_door_and_two_vips() {
    let (one, two) = (backend(1, 1), backend(2, 2));
    let mut w = web(&["80:8080", "53/udp"], [one, further(1, 1), two, further(2, 2)]);
    let vip = Vip {
        v4: Ipv4Addr::new(10, 78, 0, 2),
        v6: None,
    };
    let s = w.services.get_mut(&7).unwrap();
    s.vips.insert(vni(5000), vip);
    let mut o = small();
    assert_eq!(settle(&w, &mut o).problems, []);
    for (ip, port, proto) in [
        ("198.18.0.1", 80, 6),
        ("198.18.0.1", 53, 17),
        ("2001:db8::1", 80, 6),
        ("2001:db8::1", 53, 17),
    ] {
        assert_eq!(leads_to(&o, &key(ip, 0, port, proto)), Some([1, 2].into()), "{ip}");
    }
    assert_eq!(leads_to(&o, &key("10.77.0.2", 4096, 80, 6)), Some([1, 2].into()));
    assert_eq!(leads_to(&o, &key("10.78.0.2", 5000, 80, 6)), Some([101, 102].into()));
    // A task of the second network that asks a node is led there; every other one as anybody.
    let flags = |o: &Observed, ip: &str, net| o.services.get(&key(ip, net, 80, 6)).map(|v| v.flags);
    for ip in ["198.18.0.1", "2001:db8::1"] {
        for (port, proto) in [(80, 6), (53, 17)] {
            assert_eq!(
                leads_to(&o, &key(ip, 5000, port, proto)),
                Some([101, 102].into()),
                "{ip}"
            );
        }
        assert_eq!(flags(&o, ip, 0), Some(SVC_NETWORKS), "{ip}");
        assert_eq!(flags(&o, ip, 4096), None, "{ip}");
    }
    assert_eq!(leads_to(&o, &key("127.0.0.1", 5000, 80, 6)), None, "no task reaches it");
    // A task that is not there yet is asked on its own network all the same.
    let mut some = w.clone();
    let s = some.services.get_mut(&7).unwrap();
    s.backends.remove(&further(2, 2).0);
    settle(&some, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 5000, 80, 6)), Some([101, 2].into()));
    settle(&w, &mut o);
    // Where the first network is IPv4 alone, the second one is the way in for IPv6.
    let s = w.services.get_mut(&7).unwrap();
    for b in s.backends.values_mut().filter(|b| b.vni == vni(4096)) {
        b.v6 = None;
    }
    settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([1, 2].into()));
    assert_eq!(leads_to(&o, &key("2001:db8::1", 0, 80, 6)), Some([101, 102].into()));
    assert_eq!(flags(&o, "2001:db8::1", 0), Some(0));
    assert_eq!(flags(&o, "2001:db8::1", 5000), None, "the way in is there already");
}

#[test]
fn a_port_of_the_node_leads_to_its_own_task() {
    let spec = ["80:8080,mode=host", "53/udp,mode=host", "90"];
    let mut w = web(&spec, [backend(1, 1), backend(2, 2)]);
    let mut o = small();
    assert_eq!(settle(&w, &mut o).problems, []);
    for ip in ["127.0.0.1", "198.18.0.1", "2001:db8::1"] {
        for (number, proto) in [(80, 6), (53, 17)] {
            assert_eq!(leads_to(&o, &key(ip, 0, number, proto)), Some([1].into()), "{ip}");
        }
        assert_eq!(leads_to(&o, &key(ip, 0, 90, 6)), Some([1, 2].into()), "{ip}");
    }
    assert_eq!(
        leads_to(&o, &key("10.77.0.2", 4096, 80, 6)),
        None,
        "VIPs have every port unchanged"
    );
    assert!(
        o.targets.keys().all(|t| t.port == 90u16.to_be() || t.port == 0),
        "nobody sends it from elsewhere"
    );
    // It drains: new flows are refused here, none is sent to another node.
    let s = w.services.get_mut(&7).unwrap();
    s.backends.values_mut().next().unwrap().state = BackendState::Draining;
    settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some(BTreeSet::new()));
    // It is gone: the port is the host's again.
    w.services.get_mut(&7).unwrap().backends.pop_first();
    settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), None);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 90, 6)), Some([2].into()));
}

#[test]
fn a_port_of_one_address_is_the_hosts_on_others() {
    let spec = [
        "198.18.0.1:80:8080",
        "[2001:db8::1]:53/udp",
        "eth0:90,mode=host",
        "192.0.2.9:70",
    ];
    let w = web(&spec, [backend(1, 1), backend(2, 2)]);
    let mut o = small();
    assert_eq!(settle(&w, &mut o).problems, []);
    let both: Option<BTreeSet<u8>> = Some([1, 2].into());
    for (ip, number, proto, leads) in [
        ("198.18.0.1", 80, 6, both.clone()),
        ("127.0.0.1", 80, 6, None),
        ("2001:db8::1", 80, 6, None),
        ("2001:db8::1", 53, 17, both.clone()),
        ("198.18.0.1", 53, 17, None),
        ("198.18.0.1", 90, 6, Some([1].into())),
        ("127.0.0.1", 90, 6, None),
        ("192.0.2.9", 70, 6, None),
    ] {
        assert_eq!(leads_to(&o, &key(ip, 0, number, proto)), leads, "{ip} {number}");
    }
    assert_eq!(
        leads_to(&o, &key("10.77.0.2", 4096, 80, 6)),
        both,
        "the VIP has it all the same"
    );
    // Two services on one port of two addresses.
    let mut two = web(&["198.18.0.1:80"], [backend(1, 1)]);
    let mut other = service(&["127.0.0.1:80"], [backend(3, 1)]);
    other.vips.clear();
    two.services.insert(8, other);
    let mut o = small();
    assert_eq!(settle(&two, &mut o).problems, []);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([1].into()));
    assert_eq!(leads_to(&o, &key("127.0.0.1", 0, 80, 6)), Some([3].into()));
}

#[test]
fn a_changed_target_holds_where_the_change_has_come() {
    // Two here, two elsewhere; 1 and 3 are not reached yet.
    let all = [backend(1, 1), backend(2, 1), backend(3, 2), backend(4, 2)];
    let ids: Vec<BackendId> = all.iter().map(|b| b.0.clone()).collect();
    let mut w = web(&["80:9090", "53/udp"], all);
    let old = |at: Option<u16>| BTreeMap::from([(port("80:9090"), at)]);
    let s = w.services.get_mut(&7).unwrap();
    s.others = BTreeMap::from([(ids[0].clone(), old(Some(8080))), (ids[2].clone(), old(Some(8080)))]);
    let mut o = small();
    assert_eq!(settle(&w, &mut o).problems, []);
    let seen = |o: &Observed| {
        let keys = [
            key("198.18.0.1", 0, 80, 6),
            key("2001:db8::1", 0, 80, 6),
            key("10.77.0.2", 4096, 80, 6),
        ];
        let told = keys.map(|k| {
            (
                leads_to(o, &k).unwrap(),
                u16::from_be(o.services[&k].tport),
                o.services[&k].flags,
            )
        });
        assert!(told.iter().all(|t| *t == told[0]), "{told:?}");
        let dns = leads_to(o, &key("198.18.0.1", 0, 53, 17)).unwrap();
        assert_eq!(dns.len(), w_active(o), "others' ports are as ever");
        assert_eq!(o.services[&key("198.18.0.1", 0, 53, 17)].flags, 0);
        told[0].clone()
    };
    fn w_active(o: &Observed) -> usize {
        leads_to(o, &key("10.77.0.2", 4096, 0, 0)).unwrap().len()
    }
    let at = |o: &Observed, n: u8, proto: u16| {
        let v4 = Addr::v4([10, 77, 1, n]);
        let wanted = |k: &TargetKey| k.addr == v4 && (k.port, k.proto) == (80u16.to_be(), proto);
        let found = o.targets.iter().find(|(k, _)| wanted(k));
        found.map(|(_, v)| u16::from_be(v.tport))
    };
    // All take new flows; the programs look up the port of the one that the change has not reached.
    assert_eq!(seen(&o), ([1, 2, 3, 4].into(), 9090, SVC_TARGETS));
    assert_eq!(
        [at(&o, 1, 6), at(&o, 2, 6)],
        [Some(8080), Some(9090)],
        "each as its task was made"
    );
    let here = 6 | TARGET_HERE;
    assert_eq!([at(&o, 1, here), at(&o, 2, here)], [Some(8080), None]);
    // It drains: its flows go on, where it listens, also when all others of the old port are gone.
    let state = |w: &mut Wanted, n: usize, state| {
        w.services.get_mut(&7).unwrap().backends.get_mut(&ids[n]).unwrap().state = state;
    };
    state(&mut w, 0, BackendState::Draining);
    for n in [2, 3] {
        state(&mut w, n, BackendState::Draining);
    }
    settle(&w, &mut o);
    assert_eq!(seen(&o), ([2].into(), 9090, SVC_TARGETS));
    assert_eq!(at(&o, 1, here), Some(8080));
    // It has come.
    for n in [2, 3] {
        state(&mut w, n, BackendState::Active);
    }
    let s = w.services.get_mut(&7).unwrap();
    s.backends.remove(&ids[0]);
    s.others.remove(&ids[0]);
    settle(&w, &mut o);
    assert_eq!(seen(&o), ([2, 3, 4].into(), 9090, 0), "the other node knows its own");
    assert!(
        o.targets.keys().all(|k| k.proto & TARGET_HERE == 0),
        "nothing is looked up any more"
    );
    // A port of single nodes as well.
    let host = |at: u16| BTreeMap::from([(port("80:9090,mode=host"), Some(at))]);
    let mut own = web(&["80:9090,mode=host"], [backend(1, 1)]);
    own.services.get_mut(&7).unwrap().others = BTreeMap::from([(ids[0].clone(), host(8080))]);
    let mut o2 = small();
    settle(&own, &mut o2);
    assert_eq!(o2.services[&key("198.18.0.1", 0, 80, 6)].flags, SVC_TARGETS);
    assert_eq!(
        [at(&o2, 1, 6), at(&o2, 1, here)],
        [None, Some(8080)],
        "nobody sends it from elsewhere"
    );
    // What a node that balances by IPVS has is translated to here, so its ports are looked up here.
    let far = |n: u8| {
        let mut b = backend(n, 2);
        b.1.place = Place::Remote {
            vtep: IpAddr::from([198, 18, 0, 2]),
            datapath: Datapath::Ipvs,
        };
        b
    };
    let mut early = web(&["80:9090"], [far(3), far(4)]);
    early.services.get_mut(&7).unwrap().others = BTreeMap::from([(ids[2].clone(), old(Some(8080)))]);
    let mut o3 = small();
    settle(&early, &mut o3);
    assert_eq!(o3.services[&key("198.18.0.1", 0, 80, 6)].flags, SVC_TARGETS);
    assert_eq!([at(&o3, 3, here), at(&o3, 4, here)], [Some(8080), None]);
    assert_eq!(
        [at(&o3, 3, 6), at(&o3, 4, 6)],
        [None, None],
        "that node's packets are not told so"
    );
    // A task from before the port was published has none for it.
    w.services.get_mut(&7).unwrap().others = BTreeMap::from([(ids[2].clone(), old(None)), (ids[1].clone(), old(None))]);
    settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([4].into()));
    let here = Addr::v4([10, 77, 1, 2]);
    assert!(!o.targets.keys().any(|k| k.addr == here && k.port == 80u16.to_be()));
}

#[test]
fn a_service_becomes_rows() {
    let w = web(&["80:8080", "53/udp"], [backend(1, 1), backend(2, 2)]);
    let mut o = small();
    assert_eq!(settle(&w, &mut o).problems, []);
    let all = Some(BTreeSet::from([1, 2]));
    let table = [
        ("127.0.0.1", 0, 80, 6, 8080),
        ("198.18.0.1", 0, 80, 6, 8080),
        ("2001:db8::1", 0, 80, 6, 8080),
        ("198.18.0.1", 0, 53, 17, 53),
        ("10.77.0.2", 4096, 80, 6, 8080),
        ("10.77.0.2", 4096, 53, 17, 53),
        ("10.77.0.2", 4096, 0, 0, 0),
        ("fd00:0:0:1::ffff", 4096, 80, 6, 8080),
        ("fd00:0:0:1::ffff", 4096, 0, 0, 0),
    ];
    for (ip, net, port, proto, target) in table {
        let k = key(ip, net, port, proto);
        assert_eq!(leads_to(&o, &k), all, "{ip} {port}");
        let val = o.services[&k];
        assert_eq!(
            (val.id, u16::from_be(val.tport), val.lut_len),
            (7, target, 1021),
            "{ip} {port}"
        );
    }
    assert_eq!(o.services.len(), 3 * 2 + 2 * 3, "::1 and fe80:: get no keys");
    let rows: BTreeSet<u32> = o.services.values().map(|v| v.lut_off).collect();
    assert_eq!(rows.len(), 1, "equal sets share a row");

    // Targets of the local backend alone.
    let targets: BTreeMap<TargetKey, u16> = o.targets.iter().map(|(k, v)| (*k, u16::from_be(v.tport))).collect();
    let t = |addr: Addr, port: u16, proto| TargetKey {
        addr,
        vni: 4096,
        port: port.to_be(),
        proto,
    };
    let (v4, v6) = (
        Addr::v4([10, 77, 1, 1]),
        desired::addr("fd00:0:0:1::1".parse().unwrap()),
    );
    let expected = [v4, v6]
        .into_iter()
        .flat_map(|a| [(t(a, 80, 6), 8080), (t(a, 53, 17), 53), (t(a, 0, 0), 0)]);
    assert_eq!(targets, expected.collect());

    // Cells say where the backends are.
    let local = o.backends.iter().find(|b| b.ifindex == 101).unwrap();
    assert_eq!((local.vtep, local.vni, local.state), (0, 4096, BACKEND_ACTIVE));
    let remote = o.backends.iter().find(|b| b.vtep != 0).unwrap();
    assert_eq!(
        (remote.vtep.to_ne_bytes(), remote.addr4.to_ne_bytes(), remote.ifindex),
        ([198, 18, 0, 2], [10, 77, 1, 2], 0)
    );
}

#[test]
fn without_backends_the_client_is_refused_at_once() {
    let mut o = small();
    settle(&web(&["80"], []), &mut o);
    for (ip, net) in [("198.18.0.1", 0), ("10.77.0.2", 4096), ("fd00:0:0:1::ffff", 4096)] {
        assert_eq!(leads_to(&o, &key(ip, net, 80, 6)), Some(BTreeSet::new()), "{ip}");
    }
    assert_eq!(
        leads_to(&o, &key("2001:db8::1", 0, 80, 6)),
        None,
        "the host itself refuses IPv6"
    );
}

#[test]
fn ipv6_leads_to_backends_that_speak_it() {
    let mut two = backend(2, 2);
    two.1.v6 = None;
    let mut o = small();
    settle(&web(&["80"], [backend(1, 1), two.clone()]), &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([1, 2].into()));
    assert_eq!(leads_to(&o, &key("2001:db8::1", 0, 80, 6)), Some([1].into()));
    settle(&web(&["80"], [two]), &mut o);
    assert_eq!(leads_to(&o, &key("2001:db8::1", 0, 80, 6)), None);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([2].into()));
}

#[test]
fn a_vip_leads_to_its_own_network() {
    let mut other = backend(2, 2);
    other.1.vni = vni(5000);
    let mut w = web(&["80"], [backend(1, 1), other]);
    let vip = Vip {
        v4: Ipv4Addr::new(10, 88, 0, 2),
        v6: None,
    };
    w.services.get_mut(&7).unwrap().vips.insert(vni(5000), vip);
    let mut o = small();
    settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("10.77.0.2", 4096, 80, 6)), Some([1].into()));
    assert_eq!(leads_to(&o, &key("10.88.0.2", 5000, 0, 0)), Some([2].into()));
    assert_eq!(leads_to(&o, &key("127.0.0.1", 0, 80, 6)), Some([1, 2].into()));
}

#[test]
fn a_draining_backend_keeps_its_flows_and_gets_no_new_ones() {
    let mut o = small();
    settle(&web(&["80"], [backend(1, 1), backend(2, 2)]), &mut o);
    let mut one = backend(1, 1);
    one.1.state = BackendState::Draining;
    let p = settle(&web(&["80"], [one, backend(2, 2)]), &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([2].into()));
    assert_eq!(
        o.backends.iter().find(|b| b.ifindex == 101).unwrap().state,
        BACKEND_DRAINING
    );
    assert!(!o.targets.is_empty(), "established flows still need its targets");
    let lut = p.steps.iter().position(|s| matches!(s, Step::Lut { .. })).unwrap();
    let state = p.steps.iter().position(|s| matches!(s, Step::Backend { .. })).unwrap();
    assert!(lut < state, "out of the row before it is marked");
    assert_eq!(p.steps.len(), 2, "{:?}", p.steps);
}

#[test]
fn a_backend_that_leaves_is_purged_before_its_cell_is_free() {
    let mut o = small();
    settle(&web(&["80"], [backend(1, 1), backend(2, 2)]), &mut o);
    let cell = o.backends.iter().position(|b| b.vtep != 0).unwrap() as u32;
    let w = web(&["80"], [backend(1, 1), backend(3, 3)]);
    let p = plan(&w, &o);
    let held = o.backend(cell);
    let tail = &p.steps[p.steps.len() - 3..];
    assert_eq!(
        tail,
        [
            Step::Backend {
                cell,
                value: Cell {
                    state: BACKEND_GONE,
                    ..held
                }
            },
            Step::Purge {
                gone: vec![Gone { cell, backend: held }]
            },
            Step::Backend {
                cell,
                value: Cell::default()
            },
        ]
    );
    // Cut short before the purge: the next plan goes on with it.
    let cut = Plan {
        steps: p.steps[..p.steps.len() - 2].to_vec(),
        problems: vec![],
    };
    apply(&mut o, &cut);
    let p = plan(&w, &o);
    assert!(
        matches!(p.steps.as_slice(), [Step::Purge { .. }, Step::Backend { .. }]),
        "{:?}",
        p.steps
    );
    // Back before the purge: the same cell, and nothing is purged.
    let back = plan(&web(&["80"], [backend(1, 1), backend(2, 2), backend(3, 3)]), &o);
    assert!(back.steps.contains(&Step::Backend { cell, value: held }));
    assert!(!back.steps.iter().any(|s| matches!(s, Step::Purge { .. })));
}

#[test]
fn a_change_of_one_service_touches_its_own_cells() {
    let mut w = web(&["80"], (1..=4).map(|n| backend(n, 1)));
    w.services.insert(
        8,
        Service {
            vips: BTreeMap::new(),
            ..service(&["81"], (5..=8).map(|n| backend(n, 2)))
        },
    );
    let mut o = small();
    settle(&w, &mut o);
    let own = o.services[&key("127.0.0.1", 0, 81, 6)];
    w.services.get_mut(&8).unwrap().backends.extend([backend(9, 2)]);
    let p = settle(&w, &mut o);
    assert_eq!(p.steps.len(), 2, "{:?}", p.steps);
    assert!(matches!(&p.steps[0], Step::Backend { value, .. } if value.mac == ebpf_abi::mac([2, 0x6e, 0, 0, 2, 9])));
    assert!(matches!(&p.steps[1], Step::Lut { off, cells } if *off == own.lut_off && cells.len() == 1021));
    // A longer row moves; the other service stays.
    w.services
        .get_mut(&8)
        .unwrap()
        .backends
        .extend((10..=20).map(|n| backend(n, 2)));
    let p = settle(&w, &mut o);
    assert!(
        p.steps
            .iter()
            .all(|s| !matches!(s, Step::Service { value, .. } if value.id != 8))
    );
    assert_eq!(o.services[&key("127.0.0.1", 0, 81, 6)].lut_len, 4093);
    // What it freed is used again.
    w.services.insert(
        9,
        Service {
            vips: BTreeMap::new(),
            ..service(&["82"], [backend(30, 2)])
        },
    );
    settle(&w, &mut o);
    assert_eq!(o.services[&key("127.0.0.1", 0, 82, 6)].lut_off, own.lut_off);
}

#[test]
fn what_cannot_be_used_is_named() {
    let mut bare = backend(2, 2);
    (bare.1.v4, bare.1.v6) = (None, None);
    let mut absent = backend(3, 1);
    absent.1.place = Place::Local { ifindex: 0 };
    let mut ours = backend(4, 2);
    ours.1.place = Place::Remote {
        vtep: ME,
        datapath: Datapath::Ebpf,
    };
    let mut six = backend(8, 2);
    six.1.place = Place::Remote {
        vtep: "fd18::2".parse().unwrap(),
        datapath: Datapath::Ipvs,
    };
    let mut twin = backend(6, 3);
    twin.1.mac = backend(5, 2).1.mac;
    let mut w = web(&["80"], [bare, absent, ours, six, backend(5, 2), twin]);
    w.services.get_mut(&7).unwrap().lb = model::spec::Lb::Rr;
    w.services.insert(
        9,
        Service {
            vips: BTreeMap::new(),
            ..service(&["80"], [backend(7, 2)])
        },
    );
    let mut o = small();
    let p = settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([5].into()));
    let count = |f: fn(&Problem) -> bool| p.problems.iter().filter(|p| f(p)).count();
    assert_eq!(count(|p| matches!(p, Problem::OnlyMaglev(7, _))), 1);
    assert_eq!(count(|p| matches!(p, Problem::Unreachable(..))), 4);
    assert_eq!(count(|p| matches!(p, Problem::DuplicateMac(..))), 1);
    assert_eq!(count(|p| matches!(p, Problem::Taken(9, _, 7))), 3, "{:?}", p.problems);
    assert!(p.problems.iter().all(|p| p.to_string().contains("try: ")));
}

#[test]
fn what_this_data_path_does_not_know_is_said_and_an_allow_list_closes_the_ports() {
    let mut w = web(&["80", "81,mode=host"], [backend(1, 1), backend(2, 2)]);
    let s = w.services.get_mut(&7).unwrap();
    s.allow_from = ["192.0.2.0/24".parse().unwrap()].into();
    s.source_ip = model::spec::SourceIp::Masquerade;
    s.timeouts.udp_s = Some(9);
    let mut o = small();
    let p = settle(&w, &mut o);
    let expected = [
        Problem::NoAllowFrom(7),
        Problem::NoMasquerade(7),
        Problem::NoTimeouts(7),
    ];
    assert_eq!(p.problems, expected);
    assert!(p.problems.iter().all(|p| p.to_string().contains("try: ")));
    let doors = o.services.keys().filter(|k| k.vni == 0).count();
    assert_eq!(doors, 0, "nobody is let in by a published port");
    let vip = key("10.77.0.2", 4096, 80, 6);
    assert_eq!(
        leads_to(&o, &vip),
        Some([1, 2].into()),
        "the service goes on within its networks"
    );
    // Open again as soon as everybody may come; a protocol that is not carried stays the host's.
    let s = w.services.get_mut(&7).unwrap();
    s.allow_from.clear();
    s.ports.insert(port("3868/sctp"));
    assert!(plan(&w, &o).problems.contains(&Problem::NoSctp(7, 3868)));
    settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([1, 2].into()));
    assert!(o.services.keys().all(|k| k.proto != 132));
}

#[test]
fn what_nodes_that_balance_by_ipvs_are_sent_and_send() {
    let mut far = backend(1, 2);
    far.1.place = Place::Remote {
        vtep: IpAddr::from([198, 18, 0, 2]),
        datapath: Datapath::Ipvs,
    };
    let mut w = web(&["80:8080", "53/udp"], [far, backend(2, 1)]);
    w.early = true;
    let mut o = small();
    assert_eq!(settle(&w, &mut o).problems, []);
    let ifindex = |n: u8, node: u8| {
        let mac = ebpf_abi::mac(backend(n, node).1.mac.0);
        o.backends.iter().find(|b| b.mac == mac).unwrap().ifindex
    };
    assert_eq!((ifindex(1, 2), ifindex(2, 1)), (BACKEND_EARLY, 102));
    let mut early: Vec<(u16, u16)> = o
        .targets
        .keys()
        .filter(|k| k.proto & TARGET_EARLY != 0 && k.addr.is_v4())
        .map(|k| (u16::from_be(k.port), k.proto & 0xff))
        .collect();
    early.sort_unstable();
    assert_eq!(early, [(53, 17), (8080, 6)], "the ports of the endpoint itself");
    w.early = false;
    settle(&w, &mut o);
    assert!(o.targets.keys().all(|k| k.proto & TARGET_EARLY == 0));
}

#[test]
fn full_maps_are_said_and_do_not_stop_the_rest() {
    let mut o = small();
    o.sizes = Sizes {
        services: 4,
        backends: 3,
        lut: 1100,
        targets: 1,
    };
    let mut w = web(&["80"], [backend(1, 1), backend(2, 2), backend(3, 3)]);
    w.services.insert(8, service(&["81"], [backend(1, 1)]));
    let p = settle(&w, &mut o);
    let full: BTreeSet<&str> = p
        .problems
        .iter()
        .filter_map(|p| {
            if let Problem::Full { map, .. } = p {
                Some(*map)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(full, ["backends", "services", "targets"].into());
    assert!(p.problems.contains(&Problem::ShortRow {
        service: 8,
        wanted: 1021,
        got: 0
    }));
    assert_eq!(o.services.len(), 4);
    // A row that should grow but cannot keeps its place.
    let mut o = small();
    o.sizes.lut = 3000;
    settle(&web(&["80"], (1..=10).map(|n| backend(n, 2))), &mut o);
    let p = settle(&web(&["80"], (1..=11).map(|n| backend(n, 2))), &mut o);
    assert_eq!(
        p.problems,
        [Problem::ShortRow {
            service: 7,
            wanted: 4093,
            got: 1021
        }]
    );
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some((1..=11).collect()));
}

#[test]
fn foreign_content_does_not_confuse() {
    let w = web(&["80"], [backend(1, 1)]);
    let mut o = small();
    // Rows out of bounds, overlapping, of unknown services; a backend in cell 0.
    let row = |off, len, id| SvcVal {
        id,
        lut_off: off,
        lut_len: len,
        tport: 1,
        flags: 9,
    };
    o.services.insert(key("198.18.0.1", 0, 80, 6), row(u32::MAX, 1021, 7));
    o.services.insert(key("127.0.0.1", 0, 80, 6), row(39_999, 1021, 7));
    o.services.insert(key("10.77.0.2", 4096, 80, 6), row(10, 0, 3));
    o.services.insert(key("10.9.9.9", 4096, 80, 6), row(5, 1021, 3));
    let b = Cell {
        vni: 1,
        state: BACKEND_ACTIVE,
        ..Cell::default()
    };
    o.backends = vec![b, Cell { vni: 2, ..b }, Cell { vni: 2, ..b }];
    o.lut = vec![1; 2000];
    for step in plan(&w, &o).steps {
        o.apply(&step);
    }
    check(&o);
    assert!(plan(&w, &o).is_empty());
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([1].into()));
}

#[test]
fn equal_services_are_balanced_alike_on_two_nodes() {
    // Node 2 sees the same two endpoints, the other way round, and has met others before: its cells differ.
    let (mut a, mut b) = (small(), small());
    let here = web(&["80"], [backend(1, 1), backend(2, 2)]);
    let mut there = here.clone();
    there.node = Node {
        id: NodeId(2),
        vtep: IpAddr::from([198, 18, 0, 2]),
        datapath: Datapath::Ebpf,
    };
    for (id, back) in &mut there.services.get_mut(&7).unwrap().backends {
        back.place = match id.node.0 {
            2 => Place::Local { ifindex: 5 },
            _ => Place::Remote {
                vtep: ME,
                datapath: Datapath::Ebpf,
            },
        };
    }
    settle(&web(&["80"], [backend(9, 3)]), &mut b);
    settle(&here, &mut a);
    settle(&there, &mut b);
    let macs = |o: &Observed| -> Vec<_> {
        let v = o.services[&key("127.0.0.1", 0, 80, 6)];
        (v.lut_off..v.lut_off + v.lut_len)
            .map(|at| o.backend(o.lut_cell(at)).mac)
            .collect()
    };
    assert_eq!(macs(&a), macs(&b));
}

#[test]
fn an_old_view_adds_and_takes_nothing_away() {
    let mut o = small();
    settle(&web(&["80", "443"], [backend(1, 1), backend(2, 2)]), &mut o);
    let before = o.clone();
    // It knows one backend less, has one that is gone by now, does not know the second port, and knows another service.
    let mut old = web(&["80"], [backend(1, 1), backend(3, 2)]);
    let mut other = service(&["90"], [backend(4, 2)]);
    other.vips.clear();
    old.services.insert(8, other);
    let all = plan(&old, &o);
    let removes = |s: &Step| matches!(s, Step::RemoveService { .. } | Step::Purge { .. });
    assert!(all.steps.iter().any(removes), "{all:?}");
    let added = all.additions(&o);
    apply(&mut o, &added);
    for (key, value) in &before.services {
        assert_eq!(o.services.get(key), Some(value));
    }
    for port in [80, 443] {
        assert_eq!(leads_to(&o, &key("198.18.0.1", 0, port, 6)), Some([1, 2].into()));
    }
    assert_eq!(
        leads_to(&o, &key("198.18.0.1", 0, 90, 6)),
        Some([4].into()),
        "what is missing comes"
    );
    for (key, value) in &before.targets {
        assert_eq!(o.targets.get(key), Some(value));
    }
    assert!(
        plan(&old, &o).additions(&o).is_empty(),
        "and a second time is no change"
    );
}

fn any_backend() -> impl Strategy<Value = (BackendId, Backend)> {
    (1u8..30, 1u8..4, 0u8..4, any::<bool>(), any::<bool>()).prop_map(|(n, node, family, draining, other)| {
        let (id, mut b) = backend(n, node);
        if family == 1 {
            b.v6 = None;
        }
        if family == 2 {
            b.v4 = None;
        }
        if draining {
            b.state = BackendState::Draining;
        }
        if other && n % 5 == 0 {
            b.vni = vni(5000);
        }
        (id, b)
    })
}

fn any_wanted() -> impl Strategy<Value = Wanted> {
    let service = (
        proptest::collection::vec(any_backend(), 0..15),
        proptest::collection::btree_set(1u16..20, 0..4),
        any::<bool>(),
    );
    proptest::collection::btree_map(1u32..6, service, 0..5).prop_map(|services| {
        let services = services.into_iter().map(|(index, (backends, ports, vip))| {
            let ports: Vec<String> = ports
                .iter()
                .map(|p| {
                    let on = if p % 3 == 0 { "198.18.0.1:" } else { "" };
                    let mode = if p % 4 == 0 { ",mode=host" } else { "" };
                    format!("{on}{p}:{}/{}{mode}", p + 1, if p % 2 == 0 { "udp" } else { "tcp" })
                })
                .collect();
            let mut s = service_of(&ports, backends);
            s.vips
                .values_mut()
                .for_each(|v| v.v4 = Ipv4Addr::new(10, 77, 0, index as u8));
            if !vip {
                s.vips.clear();
            }
            (index, s)
        });
        let mut w = Wanted {
            services: services.collect(),
            ..nothing()
        };
        if w.services.contains_key(&3) {
            w.local.insert(IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1)));
        }
        w
    })
}

fn service_of(ports: &[String], backends: Vec<(BackendId, Backend)>) -> Service {
    service(&ports.iter().map(String::as_str).collect::<Vec<_>>(), backends)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Whatever is wanted one after the other: it is reached, by good steps alone, and then there is nothing left to do.
    #[test]
    fn any_history_converges(history in proptest::collection::vec(any_wanted(), 1..6), cut in any::<proptest::sample::Index>()) {
        let mut o = small();
        for w in &history {
            let p = plan(w, &o);
            // Killed somewhere in the middle, the daemon plans anew.
            let at = cut.index(p.steps.len() + 1);
            apply(&mut o, &Plan { steps: p.steps[..at].to_vec(), problems: vec![] });
            let p = plan(w, &o);
            apply(&mut o, &p);
            prop_assert_eq!(plan(w, &o).steps, vec![]);
            // Keys lead to the active backends, and to nobody else.
            let mut fresh = small();
            for step in plan(w, &fresh).steps { fresh.apply(&step) }
            prop_assert_eq!(o.services.keys().collect::<Vec<_>>(), fresh.services.keys().collect::<Vec<_>>());
            for k in o.services.keys() {
                prop_assert_eq!(leads_to(&o, k), leads_to(&fresh, k));
            }
            prop_assert_eq!(&o.targets, &fresh.targets);
        }
        let p = plan(&nothing(), &o);
        apply(&mut o, &p);
        prop_assert!(o.services.is_empty() && o.targets.is_empty() && o.backends.iter().all(|b| *b == Cell::default()));
    }
}
