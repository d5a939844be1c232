//! What exactly is wanted in this shape, told as text.

use std::path::PathBuf;

use super::*;
use crate::{
    Plan, names, plan,
    tests::{cluster, endpoint, id, kernel::Kernel, vni},
};

const FULL: Abilities = Abilities {
    ipv6: true,
    force_forwarding: false,
};

fn setting() -> Setting<'static> {
    Setting {
        folder: Path::new("/n"),
        abilities: FULL,
        ipvs: true,
        classifiers: true,
    }
}

fn texts(p: &Plan) -> Vec<String> {
    p.steps.iter().map(ToString::to_string).collect()
}

fn planned(d: &Desired, k: &mut Kernel) -> Plan {
    let wanted = want(d, &setting());
    k.look(&wanted);
    plan(&wanted, &k.seen)
}

#[test]
fn a_network_from_nothing() {
    let mut d = cluster();
    d.networks.remove(&vni(4097));
    d.endpoints.insert(id("web.1"), endpoint(4096, 5, "/t", "eth0"));
    let mut k = Kernel::new(&["/t"]);
    let p = planned(&d, &mut k);
    let nv = names::veth(&id("web.1"));
    let expected: Vec<String> = include_str!("tests/network.txt")
        .lines()
        .map(|l| l.replace("NV", &nv))
        .collect();
    assert_eq!(texts(&p), expected, "{}", texts(&p).join("\n").replace(&nv, "NV"));
    k.run(&p).unwrap();
    assert!(planned(&d, &mut k).is_empty());
}

/// A rule of one's own makes each lookup of a route dearer, so a namespace that only passes on has none.
#[test]
fn marked_packets_have_a_way_of_their_own_where_tasks_are() {
    let mut d = cluster();
    let rules = |d: &Desired| {
        let wanted = want(d, &setting());
        let of = |n| {
            wanted.sandboxes[&names::sandbox(Path::new("/n"), vni(n))]
                .space
                .rules
                .len()
        };
        [of(4096), of(4097)]
    };
    assert_eq!(rules(&d), [0, 0]);
    d.endpoints.insert(id("web.1"), endpoint(4096, 5, "/t", "eth0"));
    assert_eq!(rules(&d), [4, 0]);
}

#[test]
fn a_node_that_moves_costs_one_entry_and_one_that_leaves_takes_its_own_along() {
    let mut d = cluster();
    d.networks.remove(&vni(4097));
    let mut k = Kernel::new(&[]);
    let p = planned(&d, &mut k);
    k.run(&p).unwrap();
    let remote = d.remotes.values_mut().next().unwrap();
    remote.vtep = "198.18.0.3".parse().unwrap();
    let p = planned(&d, &mut k);
    assert_eq!(
        texts(&p),
        [
            "[/n/net-4096] set fdb 06:6e:00:00:00:02 dev nx4096 dst 198.18.0.3",
            "[/n/net-4096] delete fdb 06:6e:00:00:00:02 dev nx4096 dst 198.18.0.2",
        ]
    );
    k.run(&p).unwrap();
    // A block goes from one node to another: its packets pass from the one alone, at every moment.
    let remote = d.remotes.values_mut().next().unwrap();
    let mut other = remote.clone();
    remote.blocks.clear();
    (other.mac, other.vtep) = (Mac([6, 0x6e, 0, 0, 0, 9]), "198.18.0.9".parse().unwrap());
    other.singles.clear();
    d.remotes.insert(model::NodeId(9), other);
    let p = planned(&d, &mut k);
    k.run(&p).unwrap();
    assert_eq!(
        texts(&p)
            .iter()
            .filter(|t| t.contains("10.77.16.16/28"))
            .collect::<Vec<_>>()
            .len(),
        2,
        "a filter and a route: {:#?}",
        texts(&p)
    );
    d.remotes.clear();
    let p = planned(&d, &mut k);
    k.run(&p).unwrap();
    assert!(planned(&d, &mut k).is_empty());
    let seen = k.space(&Ns::Sandbox("/n/net-4096".into())).unwrap();
    assert!(seen.fdb.is_empty());
    assert_eq!(seen.classifiers.len(), 4, "the rest, the pools, and marks of services");
}

#[test]
fn an_underlay_of_the_other_family_is_another_device_and_what_the_host_sends_has_its_own_source() {
    let mut d = cluster();
    d.networks.remove(&vni(4097));
    let mut k = Kernel::new(&[]);
    let p = planned(&d, &mut k);
    k.run(&p).unwrap();
    let node = d.node.as_mut().unwrap();
    (node.vtep, node.own4) = ("fd18::1".parse().unwrap(), None);
    d.remotes.values_mut().for_each(|r| r.vtep = "fd18::2".parse().unwrap());
    let p = planned(&d, &mut k);
    let told = texts(&p);
    for step in [
        "create vxlan nx4096 id 4096 port 4789 local fd18::1",
        "set fdb 06:6e:00:00:00:02 dev nx4096 dst fd18::2",
        "replace route 10.77.0.0/16 via fe80::b dev nvh4096",
    ] {
        assert!(told.iter().any(|t| t.contains(step)), "{step}: {told:#?}");
    }
    assert!(!told.iter().any(|t| t.contains(" src ")), "{told:#?}");
    k.run(&p).unwrap();
    assert!(planned(&d, &mut k).is_empty());
    // It gets an IPv4 address.
    d.node.as_mut().unwrap().own4 = Some("10.0.0.7".parse().unwrap());
    let told = texts(&planned(&d, &mut k));
    assert!(told.len() == 1 && told[0].contains("src 10.0.0.7"), "{told:#?}");
}

#[test]
fn an_endpoint_in_a_sandbox_of_ours_is_refused_and_a_small_mtu_keeps_the_gateways() {
    let mut d = cluster();
    d.endpoints.insert(id("x"), endpoint(4096, 5, "/n/net-4097", "eth0"));
    d.node.as_mut().unwrap().mtu = 1000;
    d.endpoints.insert(id("y"), endpoint(4097, 6, "/t", "eth0"));
    let w = want(&d, &setting());
    assert!(w.refused[&id("x")].contains("namespace"), "{:?}", w.refused);
    assert_eq!(w.tasks.keys().collect::<Vec<_>>(), [&PathBuf::from("/t")]);
    let space = &w.sandboxes[&PathBuf::from("/n/net-4097")].space;
    assert_eq!(space.links["nx4097"].mtu, 1280, "a gateway is an IPv6 address");
    assert_eq!(space.links[&names::veth(&id("y"))].mtu, 1000);
    // A network without IPv6 has nothing of it but gateways.
    let six = |net: &IpNet| net.addr().is_ipv6();
    assert!(!space.routes.keys().any(|k| six(&k.to)) && !space.rules.iter().any(|r| six(&r.from)));
}

#[test]
fn somebody_elses_namespace_or_device_is_named_and_left() {
    use crate::objects::SeenSandbox;
    let d = cluster();
    let mut k = Kernel::new(&[]);
    let foreign = PathBuf::from("/n/net-4096");
    k.seen.sandboxes.insert(foreign.clone(), SeenSandbox::Foreign);
    k.link(&Ns::Host, "nx4097", Some("somebody's"));
    k.link(&Ns::Host, "nvh4097", None);
    let p = planned(&d, &mut k);
    k.run(&p).unwrap();
    let told: Vec<String> = p.conflicts.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(
        told.iter()
            .any(|t| t.contains("/n/net-4096") && t.contains("netd:net:4096")),
        "{told:#?}"
    );
    assert_eq!(k.seen.sandboxes[&foreign], SeenSandbox::Foreign);
    assert_eq!(k.seen.host.links["nx4097"].alias.as_deref(), Some("somebody's"));
    assert!(!k.seen.host.links.contains_key("nvh4096"));
    assert!(planned(&d, &mut k).is_empty());
}

#[test]
fn a_view_that_may_be_old_takes_nothing_away() {
    let mut d = cluster();
    let mut k = Kernel::new(&[]);
    let p = planned(&d, &mut k);
    k.run(&p).unwrap();
    let before = k.seen.clone();
    d.remotes
        .values_mut()
        .for_each(|r| r.vtep = "198.18.0.3".parse().unwrap());
    d.networks.remove(&vni(4097));
    d.node.as_mut().unwrap().vxlan_port = 4790;
    let p = planned(&d, &mut k);
    assert!(!p.is_empty());
    let p = p.additions(&k.seen);
    k.run(&p).unwrap();
    assert_eq!(k.seen.sandboxes, before.sandboxes);
}
