//! The routed shape against the real kernel: two hosts with a sandbox a network each, a third host that is no member.

use std::net::TcpStream;

use self::{
    cluster::{CLASSIFIERS, Cluster, MACS, Underlay, vtep},
    traffic::{at, frame, frame_to, ping, tcp, without_checksum},
};
use super::*;
use crate::rtnl::request::create_vxlan_at;

mod cluster;
mod led;
mod traffic;

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
