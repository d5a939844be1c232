//! Against the real kernel, in namespaces of our own.

use std::{net::IpAddr, os::fd::AsFd};

use ipnet::IpNet;
use model::Mac;
use nix::errno::Errno;

use super::{request::*, *};
use crate::{
    netns::{self, Netns},
    testing::Folder,
};

fn net(s: &str) -> IpNet {
    s.parse().unwrap()
}
fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}
fn namespace(folder: &Folder, name: &str) -> (Netns, Rtnl) {
    let netns = netns::create(&folder.path().join(name)).unwrap();
    let rtnl = Rtnl::open_in(&netns).unwrap();
    (netns, rtnl)
}
fn pair(near: &str, mac: Mac, mtu: u32, far: &str, netns: &Netns) -> Request {
    let a = VethEnd {
        name: near,
        mac: Some(mac),
        mtu: Some(mtu),
        netns: None,
    };
    let b = VethEnd {
        name: far,
        mac: None,
        mtu: Some(mtu),
        netns: Some(netns.as_fd()),
    };
    create_veth(&a, &b)
}

#[test]
fn a_veth_reaches_into_another_namespace_and_says_so() {
    let folder = Folder::new("rtnl-veth");
    let ((_, mut host), (task_ns, mut task)) = (namespace(&folder, "host"), namespace(&folder, "task"));
    let mac = Mac([2, 0x6e, 0, 0, 0, 1]);
    let change = LinkChange {
        up: Some(true),
        alias: Some("netd:ep:web.1"),
        generates_addresses: Some(false),
        ..LinkChange::default()
    };
    host.execute_all(&[
        pair("nv1", mac, 1450, "eth0", &task_ns),
        change_link(&Which::Name("nv1"), &change),
    ])
    .unwrap();
    let near = host.link("nv1").unwrap().unwrap();
    let far = task.link("eth0").unwrap().unwrap();
    assert_eq!(
        (near.kind.as_deref(), near.alias.as_deref(), near.mac, near.mtu),
        (Some("veth"), Some("netd:ep:web.1"), Some(mac), 1450)
    );
    assert!(near.up && !near.generates_addresses && near.lower_elsewhere);
    assert!(!far.up && far.generates_addresses);
    assert_eq!((near.lower, far.lower), (Some(far.index), Some(near.index)));
    assert_eq!(host.links().unwrap().len(), 2);
    // Again: refused, with the kernel's reason, and what follows is carried out all the same.
    let results = host
        .execute(&[
            pair("nv1", mac, 1450, "eth0", &task_ns),
            delete_link(&Which::Name("nv1")),
            delete_link(&Which::Name("nv1")),
        ])
        .unwrap();
    assert_eq!(results[0].as_ref().unwrap_err().errno, Errno::EEXIST);
    assert!(results[1].is_ok());
    assert!(results[2].as_ref().unwrap_err().is_absent());
    assert!(task.link("eth0").unwrap().is_none());
}

#[test]
fn an_external_vxlan_is_as_asked_for() {
    let folder = Folder::new("rtnl-vxlan");
    let (_ns, mut host) = namespace(&folder, "host");
    let mac = Mac([2, 0x6e, 0, 0, 0, 1]);
    host.execute_all(&[create_external_vxlan("nx0", 4790, mac, 65_000)])
        .unwrap();
    let nx0 = host.link("nx0").unwrap().unwrap();
    assert_eq!(
        nx0.vxlan,
        Some(Vxlan {
            external: true,
            port: 4790,
            learning: false,
            vni: 0,
            local: None,
        })
    );
    assert_eq!((nx0.mtu, nx0.mac), (65_000, Some(mac)));
    host.execute_all(&[create_vxlan(
        "vx",
        7,
        4791,
        ip("198.18.0.1"),
        Some(ip("198.18.0.2")),
        None,
    )])
    .unwrap();
    assert_eq!(
        host.link("vx").unwrap().unwrap().vxlan,
        Some(Vxlan {
            external: false,
            port: 4791,
            learning: false,
            vni: 7,
            local: Some(ip("198.18.0.1")),
        })
    );
}

#[test]
fn addresses_routes_neighbours_and_rules_come_back_as_they_were_given() {
    let folder = Folder::new("rtnl-route");
    let ((_, mut host), (task_ns, mut task)) = (namespace(&folder, "host"), namespace(&folder, "task"));
    host.execute_all(&[pair("nv1", Mac([2, 0, 0, 0, 0, 1]), 1500, "eth0", &task_ns)])
        .unwrap();
    task.execute_all(&[change_link(
        &Which::Name("eth0"),
        &LinkChange {
            up: Some(true),
            ..LinkChange::default()
        },
    )])
    .unwrap();
    let index = host.link("nv1").unwrap().unwrap().index;
    let up = LinkChange {
        up: Some(true),
        generates_addresses: Some(false),
        ..LinkChange::default()
    };
    for change in [
        up,
        LinkChange {
            up: Some(true),
            ..LinkChange::default()
        },
    ] {
        host.execute_all(&[
            change_link(&Which::Index(index), &change),
            change_link(&Which::Index(1), &up),
        ])
        .unwrap();
    }
    let (v4, v6) = (net("10.77.0.5/16"), net("fd00:77::5/64"));
    let wanted: Vec<Address> = [v4, v6]
        .into_iter()
        .map(|net| Address {
            index,
            net,
            no_prefix_route: true,
            tentative: false,
        })
        .collect();
    let adds: Vec<Request> = wanted.iter().map(add_address).collect();
    host.execute_all(&adds).unwrap();
    host.execute_all(&adds).unwrap();
    let ours = |l: Vec<Address>| l.into_iter().filter(|a| a.index == index).collect::<Vec<_>>();
    assert_eq!(ours(host.addresses().unwrap()), wanted);

    let route = |to, via: Option<&str>, source: Option<IpAddr>, table| Route {
        kind: Default::default(),
        table,
        to: net(to),
        via: via.map(ip),
        index,
        source,
        onlink: via.is_some(),
        protocol: PROTOCOL,
        metric: if net(to).addr().is_ipv6() { 1024 } else { 0 },
        mtu: None,
    };
    let mut routes = vec![
        route("0.0.0.0/0", Some("169.254.1.1"), Some(v4.addr()), TABLE_MAIN),
        route("::/0", Some("fe80::1"), Some(v6.addr()), TABLE_MAIN),
        route("10.9.0.7/32", None, None, TABLE_MAIN),
        route("fd00:9::7/128", None, None, TABLE_MAIN),
        Route {
            mtu: Some(1300),
            ..route("10.10.0.0/16", Some("169.254.1.1"), None, 0x6e00_1000)
        },
        route("fd00:10::/64", Some("fe80::1"), None, 0x6e00_1000),
        // IPv4 by an IPv6 gateway, and routes that end here or nowhere.
        route("10.11.0.0/16", Some("fe80::1"), None, TABLE_MAIN),
        Route {
            kind: RouteKind::Local,
            index: 1,
            ..route("10.12.0.1/32", None, None, 255)
        },
        Route {
            kind: RouteKind::Local,
            index: 1,
            ..route("fd00:12::1/128", None, None, 255)
        },
        Route {
            kind: RouteKind::Unreachable,
            index: 0,
            ..route("10.12.0.0/16", None, None, TABLE_MAIN)
        },
        Route {
            kind: RouteKind::Unreachable,
            index: 0,
            ..route("fd00:12::/64", None, None, TABLE_MAIN)
        },
    ];
    let adds: Vec<Request> = routes.iter().map(add_route).collect();
    host.execute_all(&adds).unwrap();
    assert!(
        host.execute(&adds)
            .unwrap()
            .iter()
            .all(|r| r.as_ref().unwrap_err().errno == Errno::EEXIST)
    );
    let ours = |l: Vec<Route>| {
        let mut l: Vec<Route> = l.into_iter().filter(|r| r.protocol == PROTOCOL).collect();
        l.sort();
        l
    };
    routes.sort();
    assert_eq!(ours(host.routes_of_any_kind().unwrap()), routes);
    assert_eq!(ours(host.routes().unwrap()).len(), routes.len() - 4);
    let moved = Route {
        source: Some(v4.addr()),
        ..route("10.9.0.7/32", None, None, TABLE_MAIN)
    };
    host.execute_all(&[replace_route(&moved)]).unwrap();
    assert!(ours(host.routes().unwrap()).contains(&moved));
    assert_eq!(ours(host.routes_of_any_kind().unwrap()).len(), routes.len());

    let mac = Mac([2, 0x6e, 0, 0, 0, 9]);
    let mut neighbours: Vec<Neighbour> = ["169.254.1.1", "fe80::1"]
        .iter()
        .map(|a| Neighbour {
            index,
            address: ip(a),
            mac,
            permanent: true,
            protocol: PROTOCOL,
        })
        .collect();
    host.execute_all(&neighbours.iter().map(set_neighbour).collect::<Vec<_>>())
        .unwrap();
    let ours = |l: Vec<Neighbour>| l.into_iter().filter(|n| n.protocol == PROTOCOL).collect::<Vec<_>>();
    let mut seen = ours(host.neighbours().unwrap());
    seen.sort();
    neighbours.sort();
    assert_eq!(seen, neighbours);

    let mut rules: Vec<Rule> = ["10.77.0.5/32", "fd00:77::5/128"]
        .iter()
        .map(|f| Rule {
            from: net(f),
            mark: (0x6e00_0000, 0xff00_0000),
            own: true,
            table: 0x6e00_1000,
            priority: 1100,
            protocol: PROTOCOL,
        })
        .collect();
    host.execute_all(&rules.iter().map(add_rule).collect::<Vec<_>>())
        .unwrap();
    let ours = |l: Vec<Rule>| l.into_iter().filter(|r| r.protocol == PROTOCOL).collect::<Vec<_>>();
    let mut seen = ours(host.rules().unwrap());
    seen.sort();
    rules.sort();
    assert_eq!(seen, rules);

    let way = host.way_to(ip("192.0.2.1")).unwrap();
    assert_eq!(
        (way.link.name.as_str(), way.via, way.source, way.mtu, way.local),
        ("nv1", Some(ip("169.254.1.1")), Some(v4.addr()), 1500, false)
    );
    // The kernel makes the local route of a new IPv6 address a little later (addrconf_dad_work): that of ::1 is there.
    assert!(host.way_to(v4.addr()).unwrap().local && host.way_to(ip("::1")).unwrap().local);
    assert_eq!(
        host.default_links()
            .unwrap()
            .iter()
            .map(|l| l.name.as_str())
            .collect::<Vec<_>>(),
        ["nv1"]
    );

    let mut removals: Vec<Request> = rules.iter().map(delete_rule).collect();
    removals.extend(routes.iter().map(delete_route));
    removals.extend(neighbours.iter().map(delete_neighbour));
    removals.extend(wanted.iter().map(delete_address));
    host.execute_all(&removals).unwrap();
    assert!(
        host.execute(&removals)
            .unwrap()
            .iter()
            .all(|r| r.as_ref().unwrap_err().is_absent()),
        "{:?}",
        host.execute(&removals)
    );
    let error = host.way_to(ip("192.0.2.1")).unwrap_err();
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
}

#[test]
fn long_chains_are_split_and_every_request_has_its_own_answer() {
    let folder = Folder::new("rtnl-chain");
    let (_ns, mut host) = namespace(&folder, "host");
    host.execute_all(&[create_bridge("d0")]).unwrap();
    let index = host.link("d0").unwrap().unwrap().index;
    let address = |i: u32| Address {
        index,
        net: IpNet::new(std::net::Ipv4Addr::from(0x0a00_0000 + i).into(), 32).unwrap(),
        no_prefix_route: true,
        tentative: false,
    };
    let requests: Vec<Request> = (1..1000)
        .map(|i| {
            if i % 3 == 0 {
                delete_address(&address(i))
            } else {
                add_address(&address(i))
            }
        })
        .collect();
    let results = host.execute(&requests).unwrap();
    for (i, r) in (1..1000).zip(&results) {
        assert_eq!(r.is_err(), i % 3 == 0, "{i}: {r:?}");
    }
    assert_eq!(
        host.addresses().unwrap().iter().filter(|a| a.index == index).count(),
        666
    );
}

#[test]
fn events_tell_what_others_do() {
    let folder = Folder::new("rtnl-events");
    let (ns, mut host) = namespace(&folder, "host");
    let mut events = netns::run_in(&ns, Events::open).unwrap().unwrap();
    assert_eq!(events.ready().unwrap(), []);
    host.execute_all(&[create_bridge("d0")]).unwrap();
    let index = host.link("d0").unwrap().unwrap().index;
    let a = Address {
        index,
        net: net("10.1.0.1/24"),
        no_prefix_route: true,
        tentative: false,
    };
    host.execute_all(&[
        add_address(&a),
        change_link(
            &Which::Index(index),
            &LinkChange {
                up: Some(true),
                ..LinkChange::default()
            },
        ),
    ])
    .unwrap();
    host.execute_all(&[delete_link(&Which::Index(index))]).unwrap();
    // The kernel queues events before it answers the change: all are there.
    let mut seen = Vec::new();
    loop {
        let batch = events.ready().unwrap();
        if batch.is_empty() {
            break;
        }
        seen.extend(batch);
    }
    assert!(matches!(&seen[0], Event::Link(l) if l.name == "d0"), "{seen:?}");
    assert!(seen.contains(&Event::Address { index }));
    assert!(seen.iter().any(|e| matches!(e, Event::LinkGone(l) if l.name == "d0")));
}

#[test]
fn a_default_route_over_two_devices_names_both() {
    use netlink_packet_route::{
        AddressFamily,
        route::{RouteAddress, RouteNextHop, RouteScope, RouteType},
    };
    let folder = Folder::new("rtnl-multipath");
    let (_ns, mut host) = namespace(&folder, "host");
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    let mut hops = Vec::new();
    for (name, near, gateway) in [
        ("a0", "198.18.1.1/24", "198.18.1.254"),
        ("a1", "198.18.2.1/24", "198.18.2.254"),
    ] {
        host.execute_all(&[create_bridge(name), change_link(&Which::Name(name), &up)])
            .unwrap();
        let index = host.link(name).unwrap().unwrap().index;
        let address = Address {
            index,
            net: net(near),
            no_prefix_route: false,
            tentative: false,
        };
        host.execute_all(&[add_address(&address)]).unwrap();
        let mut hop = RouteNextHop::default();
        hop.interface_index = index;
        hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::from(ip(gateway)))];
        hops.push(hop);
    }
    let mut m = RouteMessage::default();
    m.header.address_family = AddressFamily::Inet;
    m.header.table = TABLE_MAIN as u8;
    m.header.kind = RouteType::Unicast;
    m.header.scope = RouteScope::Universe;
    m.attributes = vec![RouteAttribute::MultiPath(hops)];
    host.execute_all(&[request::request(Message::NewRoute(m), 1024)])
        .unwrap();
    let names: Vec<String> = host.default_links().unwrap().into_iter().map(|l| l.name).collect();
    assert_eq!(names, ["a0", "a1"]);
    let defaults: Vec<Option<IpAddr>> = host
        .routes()
        .unwrap()
        .into_iter()
        .filter(|r| r.to.prefix_len() == 0)
        .map(|r| r.via)
        .collect();
    assert_eq!(defaults, [Some(ip("198.18.1.254")), Some(ip("198.18.2.254"))]);
}
