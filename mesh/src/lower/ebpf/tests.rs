use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ebpf_abi::{Addr, BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_GONE, Backend as Cell, SvcKey, TargetKey};
use model::{Mac, NodeId, On, PortSpec, PublishMode, Vni, intent::Vip, row::Datapath};

use super::*;
use crate::wanted::{Backend, BackendId, BackendState, Node, Place, Port, Service, Wanted};

mod early;
mod histories;
mod limits;
mod ports;

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
