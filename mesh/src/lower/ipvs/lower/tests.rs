use std::{fmt::Write, net::Ipv4Addr};

use model::{Mac, NodeId, On, PortSpec, PublishMode, row::Datapath};

use super::*;
use crate::{
    ipvs::{MARK_BASE, plan},
    wanted::{Node, Service as WantedService},
};

const APP: u32 = 4096;
const DB: u32 = 4097;

fn vni(n: u32) -> Vni {
    Vni::try_from(n).unwrap()
}

/// Endpoint `n` of `web` on a network and a node; node 1 is this one.
fn backend(n: u8, net: u32, node: u8) -> (BackendId, Backend) {
    let tail = if net == APP { String::new() } else { ".db".to_owned() };
    let id = BackendId {
        node: NodeId(node.into()),
        endpoint: format!("web.{n}{tail}").parse().unwrap(),
    };
    let third = if net == APP { 77 } else { 78 };
    let b = Backend {
        vni: vni(net),
        v4: Some(Ipv4Addr::new(10, third, node, n)),
        v6: (net == APP).then(|| format!("fd00::{node}:{n}").parse().unwrap()),
        mac: Mac([2, 0x6e, third, 0, node, n]),
        place: match node {
            1 => Place::Local { ifindex: 7 },
            _ => Place::Remote {
                vtep: IpAddr::from([198, 18, 0, node]),
                datapath: Datapath::Ebpf,
            },
        },
        slot: Some(n.into()),
        state: BackendState::Active,
        weight: 1,
    };
    (id, b)
}

fn port(text: &str, mark: u32) -> Port {
    let spec: PortSpec = text.parse().unwrap();
    Port {
        published: spec.published,
        target: spec.target,
        proto: spec.proto,
        host: spec.mode == PublishMode::Host,
        on: match spec.on {
            On::Address(a) => Some([a].into()),
            _ => None,
        },
        mark,
    }
}

fn service(ports: &[(&str, u32)], backends: impl IntoIterator<Item = (BackendId, Backend)>) -> WantedService {
    let app = Vip {
        v4: Ipv4Addr::new(10, 77, 0, 2),
        v6: Some("fd00::2".parse().unwrap()),
    };
    WantedService {
        vips: [(vni(APP), app)].into(),
        vip_marks: [(vni(APP), 2)].into(),
        ports: ports.iter().map(|(p, mark)| port(p, *mark)).collect(),
        backends: backends.into_iter().collect(),
        ..WantedService::default()
    }
}

fn on_db(mut s: WantedService) -> WantedService {
    let db = Vip {
        v4: Ipv4Addr::new(10, 78, 0, 9),
        v6: None,
    };
    s.vips.insert(vni(DB), db);
    s.vip_marks.insert(vni(DB), 9);
    s
}

fn wanted(services: impl IntoIterator<Item = WantedService>) -> Wanted {
    Wanted {
        node: Node {
            id: NodeId(1),
            vtep: IpAddr::from([198, 18, 0, 1]),
            datapath: Datapath::Ipvs,
        },
        local: ["127.0.0.1", "198.18.0.1", "2001:db8::1", "::1", "fe80::1"]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect(),
        early: true,
        services: (7..).zip(services).collect(),
    }
}

/// All of it as lines; IPVS as `ipvsadm -Ln` shows it.
fn show(l: &Lowered) -> String {
    let mut out = String::new();
    let mark = |m: &Mark| format!("+{:x}", m - MARK_BASE);
    for (vni, sandbox) in &l.networks {
        writeln!(out, "network {vni}").unwrap();
        for (key, s) in &sandbox.table.services {
            let flags = match (s.flags.port, s.flags.fallback) {
                (true, true) => " port,fallback",
                (false, true) => " fallback",
                _ => "",
            };
            let head = format!("{} {:?} {:?}{flags}", mark(&key.mark), key.family, s.scheduler).to_lowercase();
            writeln!(out, "  fwm {head}").unwrap();
            for (at, d) in &s.dests {
                writeln!(out, "    {at} {}", d.weight).unwrap();
            }
        }
        for (vip, marks) in &sandbox.vips {
            for ((proto, port), m) in &marks.ports {
                writeln!(out, "  vip {vip} {port}/{proto} -> {}", mark(m)).unwrap();
            }
            if let Some(m) = &marks.other {
                writeln!(out, "  vip {vip} -> {}", mark(m)).unwrap();
            }
        }
        for ((address, proto, port), m) in &sandbox.near {
            writeln!(out, "  node {address} {port}/{proto} -> {}", mark(m)).unwrap();
        }
    }
    for (key, door) in &l.doors {
        let on = key.on.iter().flatten().map(|a| format!(" on {a}"));
        let to = [door.v4.map(IpAddr::V4), door.v6.map(IpAddr::V6)].into_iter().flatten();
        let to = to.map(|a| format!(" {}", std::net::SocketAddr::new(a, door.port)));
        let (on, to): (String, String) = (on.collect(), to.collect());
        writeln!(out, "door {}/{}{on} ->{to}", key.port, key.proto).unwrap();
    }
    for p in &l.problems {
        writeln!(out, "problem {p}").unwrap();
    }
    out
}

/// Indentation of the test goes, that of the text stays.
fn same(l: &Lowered, text: &str) {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let cut = lines.iter().map(|l| l.len() - l.trim_start().len()).min().unwrap_or(0);
    let want: String = lines.iter().map(|l| format!("{}\n", &l[cut..])).collect();
    assert_eq!(show(l), want);
}

#[test]
fn a_service_with_backends_here_and_there() {
    let mut leaves = backend(3, APP, 3);
    leaves.1.state = BackendState::Draining;
    let mut strong = backend(2, APP, 2);
    strong.1.weight = 3;
    let l = lower(&wanted([service(
        &[("80:8080", 1), ("53/udp", 4)],
        [backend(1, APP, 1), strong, leaves],
    )]));
    same(
        &l,
        "
        network 4096
          fwm +1 v4 mh port,fallback
            10.77.1.1:8080 1
            10.77.2.2:8080 3
            10.77.3.3:8080 0
          fwm +1 v6 mh port,fallback
            [fd00::1:1]:8080 1
            [fd00::2:2]:8080 3
            [fd00::3:3]:8080 0
          fwm +4 v4 mh port,fallback
            10.77.1.1:53 1
            10.77.2.2:53 3
            10.77.3.3:53 0
          fwm +4 v6 mh port,fallback
            [fd00::1:1]:53 1
            [fd00::2:2]:53 3
            [fd00::3:3]:53 0
          fwm +800002 v4 mh port,fallback
            10.77.1.1:0 1
            10.77.2.2:0 3
            10.77.3.3:0 0
          fwm +800002 v6 mh port,fallback
            [fd00::1:1]:0 1
            [fd00::2:2]:0 3
            [fd00::3:3]:0 0
          vip 10.77.0.2 80/tcp -> +1
          vip 10.77.0.2 53/udp -> +4
          vip 10.77.0.2 -> +800002
          vip fd00::2 80/tcp -> +1
          vip fd00::2 53/udp -> +4
          vip fd00::2 -> +800002
          node 198.18.0.1 80/tcp -> +1
          node 198.18.0.1 53/udp -> +4
          node 2001:db8::1 80/tcp -> +1
          node 2001:db8::1 53/udp -> +4
        door 80/tcp -> 10.77.0.2:80 [fd00::2]:80
        door 53/udp -> 10.77.0.2:53 [fd00::2]:53
        ",
    );
}

#[test]
fn a_service_without_backends_refuses_on_ipv4_and_leaves_ipv6_to_the_host() {
    let l = lower(&wanted([service(&[("80", 1)], [])]));
    same(
        &l,
        "
        network 4096
          fwm +1 v4 mh port,fallback
          fwm +1 v6 mh port,fallback
          fwm +800002 v4 mh port,fallback
          fwm +800002 v6 mh port,fallback
          vip 10.77.0.2 80/tcp -> +1
          vip 10.77.0.2 -> +800002
          vip fd00::2 80/tcp -> +1
          vip fd00::2 -> +800002
          node 198.18.0.1 80/tcp -> +1
        door 80/tcp -> 10.77.0.2:80
        ",
    );
}

#[test]
fn a_service_on_two_networks_is_balanced_on_each_and_entered_by_the_fuller() {
    let two = on_db(service(
        &[("80", 1)],
        [
            backend(1, APP, 1),
            backend(1, DB, 1),
            backend(2, APP, 2),
            backend(2, DB, 2),
        ],
    ));
    let l = lower(&wanted([two.clone()]));
    assert_eq!(l.problems, []);
    let to = |l: &Lowered| {
        let door = l.doors.values().next().unwrap();
        (door.v4.unwrap().to_string(), door.v6.map(|a| a.to_string()))
    };
    let app = ("10.77.0.2".to_owned(), Some("fd00::2".to_owned()));
    assert_eq!(to(&l), app, "of two equals the first");
    for (net, first) in [(APP, "10.77.1.1:80"), (DB, "10.78.1.1:80")] {
        let sandbox = &l.networks[&vni(net)];
        let key = ServiceKey {
            mark: MARK_BASE + 1,
            family: Family::V4,
        };
        let dests: Vec<String> = sandbox.table.services[&key]
            .dests
            .keys()
            .map(|d| d.to_string())
            .collect();
        assert_eq!((dests.len(), dests[0].as_str()), (2, first));
        let near = ("198.18.0.1".parse().unwrap(), Proto::Tcp, 80);
        assert_eq!(sandbox.near.get(&near), Some(&(MARK_BASE + 1)), "its tasks stay in it");
    }
    // The tasks leave the first network.
    let mut moved = two;
    moved
        .backends
        .retain(|_, b| b.vni == vni(DB) || b.place == Place::Local { ifindex: 7 });
    let l = lower(&wanted([moved]));
    assert_eq!(to(&l), ("10.78.0.9".to_owned(), app.1), "IPv6 where it is");
}

#[test]
fn ports_of_mode_host_lead_to_a_task_of_this_node() {
    let mut s = service(
        &[("80:8080,mode=host", 1)],
        [backend(1, APP, 1), backend(2, APP, 2), backend(1, DB, 1)],
    );
    // Without a virtual address: dnsrr.
    (s.vips, s.vip_marks) = Default::default();
    same(
        &lower(&wanted([s.clone()])),
        "
        network 4096
          fwm +1 v4 mh port,fallback
            10.77.1.1:8080 1
          fwm +1 v6 mh port,fallback
            [fd00::1:1]:8080 1
          node 198.18.0.1 80/tcp -> +1
          node 2001:db8::1 80/tcp -> +1
        door 80/tcp -> 10.77.1.1:8080 [fd00::1:1]:8080
        ",
    );
    let mut elsewhere = s.clone();
    elsewhere.backends.retain(|id, _| id.node != NodeId(1));
    assert_eq!(
        lower(&wanted([elsewhere.clone()])),
        Lowered::default(),
        "the port is the host's"
    );
    // Two services with one port of mode host, on different nodes.
    let l = lower(&wanted([elsewhere, s]));
    assert_eq!((l.doors.len(), l.problems.len()), (1, 0));
}

#[test]
fn ports_of_one_address_answer_there_alone() {
    let s = service(&[("198.18.0.1:80:81", 5), ("127.0.0.1:80:81", 6)], [backend(1, APP, 2)]);
    let l = lower(&wanted([s]));
    let doors = l.doors.keys().flat_map(|k| k.on.iter().flatten());
    let doors: Vec<String> = doors.map(|a| a.to_string()).collect();
    assert_eq!(doors, ["127.0.0.1", "198.18.0.1"]);
    let sandbox = &l.networks[&vni(APP)];
    let marks: BTreeSet<&Mark> = sandbox.vips.values().flat_map(|v| v.ports.values()).collect();
    assert_eq!(
        marks,
        [&(MARK_BASE + 6)].into(),
        "one port, one target, one of the marks"
    );
    assert_eq!(sandbox.near.values().collect::<Vec<_>>(), [&(MARK_BASE + 6)]);
}

#[test]
fn every_kind_of_balancing() {
    for (lb, scheduler, port, fallback) in [
        (Lb::Maglev, Scheduler::Mh, true, true),
        (Lb::Sh, Scheduler::Sh, false, true),
        (Lb::Rr, Scheduler::Rr, false, false),
        (Lb::Wrr, Scheduler::Wrr, false, false),
        (Lb::Lc, Scheduler::Lc, false, false),
        (Lb::Wlc, Scheduler::Wlc, false, false),
    ] {
        let mut s = service(&[("80", 1)], [backend(1, APP, 1)]);
        s.lb = lb;
        let l = lower(&wanted([s]));
        for s in l.networks[&vni(APP)].table.services.values() {
            assert_eq!(
                (s.scheduler, s.flags),
                (scheduler, SchedFlags { port, fallback }),
                "{lb}"
            );
            assert_eq!(s.timeout, 0);
        }
    }
}

#[test]
fn who_may_come_and_whom_backends_see_goes_with_each_door() {
    let mut some = service(&[("80", 1), ("81,mode=host", 2)], [backend(1, APP, 1)]);
    some.allow_from = ["192.0.2.0/24".parse().unwrap()].into();
    some.source_ip = SourceIp::Masquerade;
    let all = WantedService {
        vips: [].into(),
        ..service(&[("82,mode=host", 3)], [backend(2, APP, 1)])
    };
    let l = lower(&wanted([some.clone(), all]));
    let told: Vec<_> = l.doors.iter().map(|(k, d)| (k.port, &d.allow, d.masquerade)).collect();
    let only = Allow::Only(some.allow_from);
    assert_eq!(told, [(80, &only, true), (81, &only, true), (82, &Allow::All, false)]);
}

#[test]
fn the_longest_timeouts_of_a_networks_services_count_there() {
    let of = |tcp_s, udp_s| {
        let mut s = service(&[], []);
        (s.timeouts.tcp_s, s.timeouts.udp_s) = (tcp_s, udp_s);
        s
    };
    let kept = |services: Vec<WantedService>, net| {
        let t = lower(&wanted(services)).networks[&vni(net)].table.timeouts;
        (t.tcp, t.tcp_fin, t.udp)
    };
    assert_eq!(kept(vec![of(None, None)], APP), (7440, 120, 300));
    assert_eq!(
        kept(vec![of(Some(60), Some(30)), of(Some(90), Some(20))], APP),
        (90, 120, 30)
    );
    let both = vec![on_db(of(Some(60), None)), of(Some(8000), Some(9))];
    assert_eq!(kept(both.clone(), DB), (60, 120, 300), "of that network alone");
    assert_eq!(kept(both, APP), (8000, 120, 300), "who says nothing keeps the usual");
    // One without a VIP, by its backends.
    let host = WantedService {
        vips: [].into(),
        ..service(&[("80,mode=host", 1)], [backend(1, APP, 1)])
    };
    let mut long = host.clone();
    long.timeouts.tcp_s = Some(9000);
    assert_eq!(kept(vec![long], APP).0, 9000);
}

#[test]
fn what_is_left_out_is_said() {
    let mut bare = backend(1, APP, 2);
    (bare.1.v4, bare.1.v6) = (None, None);
    let mut absent = backend(2, APP, 1);
    absent.1.place = Place::Local { ifindex: 0 };
    let one = service(&[("80", VIP_MARKS)], [bare, absent, backend(3, APP, 2)]);
    let mut far = service(&[("81", 2)], [backend(4, APP, 2)]);
    far.vip_marks = [(vni(APP), VIP_MARKS)].into();
    let again = WantedService {
        vips: [(
            vni(DB),
            Vip {
                v4: Ipv4Addr::new(10, 78, 0, 3),
                v6: None,
            },
        )]
        .into(),
        ..service(&[("81", 3)], [])
    };
    let l = lower(&wanted([one, far, again]));
    let count = |f: fn(&Problem) -> bool| l.problems.iter().filter(|p| f(p)).count();
    assert_eq!(count(|p| matches!(p, Problem::Unreachable(..))), 2);
    assert_eq!(count(|p| matches!(p, Problem::NoMark(..))), 2, "{:?}", l.problems);
    assert_eq!(count(|p| matches!(p, Problem::Taken(9, _, 8))), 1);
    assert!(l.problems.iter().all(|p| p.to_string().contains("try: ")));
    let marks: Vec<Mark> = l.networks[&vni(APP)].table.services.keys().map(|k| k.mark).collect();
    assert!(marks.iter().all(|m| (MARK_BASE..MARK_BASE + (1 << 24)).contains(m)));
}

#[test]
fn without_a_match_for_sctp_all_else_is_as_it_was() {
    let with = |ports: &[(&str, u32)]| wanted([service(ports, [backend(1, APP, 1), backend(2, APP, 2)])]);
    let mut w = with(&[("80", 1), ("3868/sctp", 3), ("53/udp", 4), ("3869/sctp,mode=host", 5)]);
    assert!(lower(&w).doors.keys().any(|k| k.proto == Proto::Sctp));
    let left_out = w.without_sctp();
    assert_eq!(left_out, [3868, 3869].map(|port| Problem::NoSctpMatch(7, port)));
    assert!(left_out.iter().all(|p| p.to_string().contains("try: ")));
    assert_eq!(lower(&w), lower(&with(&[("80", 1), ("53/udp", 4)])));
    assert_eq!(w.without_sctp(), []);
}

#[test]
fn a_backend_that_leaves_is_one_step_a_mark_and_family() {
    let before = wanted([service(&[("80", 1)], [backend(1, APP, 1), backend(2, APP, 2)])]);
    let mut after = before.clone();
    let (id, _) = backend(2, APP, 2);
    after.services.get_mut(&7).unwrap().backends.get_mut(&id).unwrap().state = BackendState::Draining;
    let table = |w: &Wanted| lower(w).networks[&vni(APP)].table.clone();
    assert_eq!(plan(&table(&before), &table(&before)), []);
    let steps = plan(&table(&before), &table(&after));
    assert_eq!(steps.len(), 4, "{steps:?}");
    let zero = |s: &crate::ipvs::Step| matches!(s, crate::ipvs::Step::SetDest { value, .. } if value.weight == 0);
    assert!(steps.iter().all(zero));
    // It comes back: as soon, and nothing else changes.
    let steps = plan(&table(&after), &table(&before));
    assert_eq!(steps.len(), 4, "{steps:?}");
    let full = |s: &crate::ipvs::Step| matches!(s, crate::ipvs::Step::SetDest { value, .. } if value.weight == 1);
    assert!(steps.iter().all(full));
}

#[test]
fn backends_that_a_change_has_not_reached_are_sent_to_their_own_ports() {
    let mut s = service(
        &[("80:8081", 1)],
        [backend(1, APP, 1), backend(2, APP, 2), backend(3, APP, 3)],
    );
    let others = |n: u8, at: Option<u16>| (backend(n, APP, n).0, [(port("80:8081", 1), at)].into());
    s.others = [others(1, Some(8080)), others(3, None)].into();
    let l = lower(&wanted([s]));
    let key = ServiceKey {
        mark: MARK_BASE + 1,
        family: Family::V4,
    };
    let dests = l.networks[&vni(APP)].table.services[&key].dests.keys();
    let dests: Vec<String> = dests.map(|d| d.to_string()).collect();
    assert_eq!(dests, ["10.77.1.1:8080", "10.77.2.2:8081"]);
}

#[test]
fn a_service_alone_changes_as_it_does_among_all() {
    let other = service(&[("443", 3)], [backend(9, APP, 4)]);
    let mut before = wanted([service(&[("80", 1)], [backend(1, APP, 1), backend(2, APP, 2)]), other]);
    let vip = Vip {
        v4: Ipv4Addr::new(10, 77, 0, 3),
        v6: Some("fd00::3".parse().unwrap()),
    };
    let other = before.services.get_mut(&8).unwrap();
    (other.vips, other.vip_marks) = ([(vni(APP), vip)].into(), [(vni(APP), 3)].into());
    let alone = |w: &Wanted| {
        let mut w = w.clone();
        w.services.retain(|index, _| *index == 7);
        lower(&w)
    };
    let table = |l: &Lowered| l.networks.get(&vni(APP)).map(|s| s.table.clone()).unwrap_or_default();
    let change = |change: &dyn Fn(&mut WantedService)| {
        let mut after = before.clone();
        change(after.services.get_mut(&7).unwrap());
        let alone = (alone(&before), alone(&after));
        let all = plan(&table(&lower(&before)), &table(&lower(&after)));
        let same = plan(&table(&alone.0), &table(&alone.1)) == all;
        (alone.0.differs_in_backends_alone(&alone.1), same, all.len())
    };
    let of = |n: u8| backend(n, APP, n).0;
    let drains = |s: &mut WantedService| s.backends.get_mut(&of(2)).unwrap().state = BackendState::Draining;
    assert_eq!(change(&drains), (true, true, 4));
    assert_eq!(change(&|s| s.backends.retain(|id, _| *id != of(2))), (true, true, 4));
    assert_eq!(change(&|s| s.backends.extend([backend(3, APP, 3)])), (true, true, 4));
    // A port that leads elsewhere, at the backends that the change has reached.
    let elsewhere = |s: &mut WantedService| {
        s.ports = [port("80:8080", 1)].into();
        s.others = [(of(1), [(port("80:8080", 1), Some(80))].into())].into();
    };
    assert_eq!(change(&elsewhere), (true, true, 4));
    // What rules are about, and what stands in another's way.
    assert!(!change(&|s| s.ports = [port("81", 1)].into()).0);
    assert!(!change(&|s| s.vips.clear()).0);
    let nowhere = |s: &mut WantedService| s.backends.get_mut(&of(1)).unwrap().place = Place::Local { ifindex: 0 };
    assert!(!change(&nowhere).0);
}
