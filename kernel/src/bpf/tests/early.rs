//! Beside a node that routes and balances by IPVS, which translates nothing late: node `b` of the lab becomes one, as far as
//! its peers see it. No IPVS is needed: what is for its tasks is translated on node `a`, and what it would have translated
//! is sent by a client that knows a task's address.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use ebpf_abi::{BACKEND_EARLY, CFG_EARLY, NodeCfg, ROUTE_NODE, RouteKey, RouteVal, TARGET_EARLY, TargetKey, TargetVal};

use super::{
    lab::{CLIENT4, CLIENT6, Lab, TARGET, VNI, addr, vip4, vip6},
    talk::{serve, tcp, udp},
    world::{World, both_tunnels, ip},
};

const A_MAC: &str = "02:ee:00:00:00:01";
const B_MAC: &str = "02:ee:00:00:00:02";

/// Node `b` without programs: a VXLAN device of the one network, routes, and the way back of what comes from outside.
fn routed(w: &World) -> Lab<'_> {
    let mut lab = Lab::new(w);
    w.within("b", || {
        let b = &mut lab.nodes[1].path;
        for (hook, index) in b.attached() {
            assert!(b.detach(hook, index).unwrap());
        }
        ip("link del nx0");
        ip(&format!(
            "link add nx7 address {B_MAC} mtu 1450 type vxlan id {VNI} dstport 4789 local 198.18.0.2 remote 198.18.0.1 \
             nolearning"
        ));
        ip("link set nx7 addrgenmode none");
        ip("link set nx7 up");
        ip("addr add fe80::2/64 dev nx7 nodad");
        ip(&format!("neigh replace fe80::1 lladdr {A_MAC} dev nx7 nud permanent"));
        ip("route add 10.77.1.0/24 via inet6 fe80::1 dev nx7");
        ip("-6 route add fd00:4d::1:0/112 via fe80::1 dev nx7");
        ip("addr add 169.254.1.1/32 dev lo");
        ip("addr add fe80::1/64 dev nvb1 nodad");
        // IPVS marks what it led here; all of it came by node a.
        ip("-4 rule add pref 100 iif nvb1 lookup 100");
        ip("-6 rule add pref 100 iif nvb1 lookup 100");
        ip("-4 route add default via inet6 fe80::1 dev nx7 table 100");
        ip("-6 route add default via fe80::1 dev nx7 table 100");
    });
    let a = &mut lab.nodes[0].path;
    let config = *a.config();
    a.set_config(NodeCfg {
        flags: config.flags | CFG_EARLY,
        ..config
    })
    .unwrap();
    let mut b1 = a.backends.get_all()[&Lab::cell("b1")];
    b1.ifindex = BACKEND_EARLY;
    assert!(a.backends.upsert(Lab::cell("b1"), b1).unwrap());
    let a1 = lab.task("a1").clone();
    for a in [IpAddr::V4(a1.v4), IpAddr::V6(a1.v6)] {
        for proto in [6, 17] {
            let key = TargetKey {
                addr: addr(a),
                vni: VNI,
                port: TARGET.to_be(),
                proto: proto | TARGET_EARLY,
            };
            assert!(lab.nodes[0].path.targets.upsert(key, TargetVal::default()).unwrap());
        }
    }
    lab
}

/// Who asks what, and whom `b1` should see.
fn ways(lab: &Lab<'_>) -> Vec<(&'static str, (IpAddr, u16), IpAddr)> {
    let a = &lab.nodes[0];
    let mut ways = Vec::new();
    for v6 in [false, true] {
        let of = |name: &str| -> IpAddr {
            let t = lab.task(name);
            if v6 { t.v6.into() } else { t.v4.into() }
        };
        let node: IpAddr = if v6 { a.v6.into() } else { a.v4.into() };
        let client: IpAddr = if v6 { CLIENT6.into() } else { CLIENT4.into() };
        ways.push(("c", (node, 82), client));
        ways.push(("a", (node, 82), node));
        for from in ["a1", "a2", "o1"] {
            ways.push((from, (node, 82), of(from)));
        }
        if !v6 {
            ways.push(("a", (Ipv4Addr::LOCALHOST.into(), 82), node));
        }
        let vip = if v6 { vip6(12) } else { vip4(12) };
        for from in ["a1", "a2"] {
            for port in [80, TARGET] {
                ways.push((from, (vip, port), of(from)));
            }
            ways.push((from, (of("b1"), TARGET), of(from)));
        }
    }
    ways
}

#[test]
fn what_is_for_its_tasks_is_translated_where_it_enters() {
    both_tunnels(|w| {
        let lab = routed(w);
        serve(w, "b1", TARGET);
        let mut wrong = Vec::new();
        for (from, to, sees) in ways(&lab) {
            match tcp(w, from, to, 300_000) {
                Ok(h) if h.who == "b1" && h.saw.ip() == sees => {}
                other => wrong.push(format!("tcp {from} -> {to:?}: {other:?}")),
            }
            for octets in [0, 11, 4_000] {
                match udp(w, from, to, octets) {
                    // The loopback takes a datagram whole, and a node that routes does not cut it up: that is told.
                    Err(e) if from == "a" && octets == 4_000 && e.raw_os_error() == Some(libc::EMSGSIZE) => {}
                    Ok(h) if h.who == "b1" && h.saw.ip() == sees => {}
                    other => wrong.push(format!("udp {octets} {from} -> {to:?}: {other:?}")),
                }
            }
        }
        assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), lab.said());
        assert!(lab.counter(0, "service_translated_early") > 0);
        assert!(lab.counter(0, "overlay_return_translated") > 0);
    });
}

#[test]
fn its_errors_reach_the_clients() {
    both_tunnels(|w| {
        // Nobody serves: the task's own refusals are what comes back.
        let lab = routed(w);
        for (from, to, _) in ways(&lab) {
            for error in [tcp(w, from, to, 1).unwrap_err(), udp(w, from, to, 1).unwrap_err()] {
                assert_eq!(
                    error.kind(),
                    ErrorKind::ConnectionRefused,
                    "{from} -> {to:?}: {}",
                    lab.said()
                );
            }
        }
    });
}

#[test]
fn what_comes_translated_reaches_published_ports_alone() {
    both_tunnels(|w| {
        let lab = routed(w);
        serve(w, "a1", TARGET);
        serve(w, "a1", 9999);
        // The client sends to the task's address by way of node b, as b would after IPVS.
        w.within("c", || {
            ip("route add 10.77.1.0/24 via 198.18.0.2");
            ip("-6 route add fd00:4d::1:0/112 via 2001:db8:18::2");
        });
        let a1 = lab.task("a1");
        for (to, client) in [
            (IpAddr::V4(a1.v4), CLIENT4.into()),
            (IpAddr::V6(a1.v6), IpAddr::V6(CLIENT6)),
        ] {
            let by_tcp = tcp(w, "c", (to, TARGET), 300_000).unwrap_or_else(|e| panic!("tcp {to}: {e} {}", lab.said()));
            assert_eq!((by_tcp.who.as_str(), by_tcp.saw.ip()), ("a1", client));
            for octets in [0, 11, 4_000] {
                let by_udp =
                    udp(w, "c", (to, TARGET), octets).unwrap_or_else(|e| panic!("udp {to}: {e} {}", lab.said()));
                assert_eq!((by_udp.who.as_str(), by_udp.saw.ip()), ("a1", client));
            }
            let before = lab.counter(0, "drop_no_such_target");
            udp(w, "c", (to, 9999), 1).unwrap_err();
            assert!(lab.counter(0, "drop_no_such_target") > before, "{}", lab.said());
        }
        assert!(lab.counter(0, "overlay_translated_delivered") > 0);
    });
}

#[test]
fn between_tasks_nothing_is_translated_but_by_who_balances() {
    both_tunnels(|w| {
        // What IPVS on node b has translated for a task of it, or a task sends to a task, is one and the same here.
        let lab = routed(w);
        serve(w, "a1", TARGET);
        serve(w, "a1", 9999);
        let (a1, b1) = (lab.task("a1").clone(), lab.task("b1").clone());
        for (to, from) in [
            (IpAddr::V4(a1.v4), IpAddr::V4(b1.v4)),
            (IpAddr::V6(a1.v6), IpAddr::V6(b1.v6)),
        ] {
            for port in [TARGET, 9999] {
                let by_tcp = tcp(w, "b1", (to, port), 300_000).unwrap_or_else(|e| panic!("{to}: {e} {}", lab.said()));
                assert_eq!((by_tcp.who.as_str(), by_tcp.saw.ip()), ("a1", from));
                for octets in [0, 11, 4_000] {
                    let by_udp =
                        udp(w, "b1", (to, port), octets).unwrap_or_else(|e| panic!("{to}: {e} {}", lab.said()));
                    assert_eq!((by_udp.who.as_str(), by_udp.saw.ip()), ("a1", from));
                }
            }
            assert_eq!(
                tcp(w, "b1", (to, 81), 1).unwrap_err().kind(),
                ErrorKind::ConnectionRefused
            );
        }
        for name in [
            "overlay_translated_delivered",
            "overlay_return_translated",
            "reverse_entries_made",
        ] {
            assert_eq!(lab.counter(0, name), 0, "{name}: {}", lab.said());
        }
        assert!(lab.counter(0, "overlay_delivered") > 0);
    });
}

#[test]
fn replies_of_translated_flows_come_from_the_backends_node_alone() {
    both_tunnels(|w| {
        let mut lab = routed(w);
        let (b1, node) = (lab.task("b1").v4, lab.nodes[0].v4);
        let server = w.within("b1", || UdpSocket::bind((b1, TARGET)).unwrap());
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let client = w.within("c", || UdpSocket::bind((CLIENT4, 0)).unwrap());
        client.send_to(b"who?", (node, 82)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        // Its block moves to a third node before the task answers.
        let routes = &mut lab.nodes[0].path.routes;
        let elsewhere = |(key, route): (&RouteKey, &RouteVal)| {
            let vtep = u32::from_ne_bytes([198, 18, 0, 3]);
            (route.kind == ROUTE_NODE).then_some((*key, RouteVal { vtep, ..*route }))
        };
        let moved: Vec<_> = routes.get_all().iter().filter_map(elsewhere).collect();
        for (key, route) in moved {
            assert!(routes.upsert(key, route).unwrap());
        }
        let before = lab.counter(0, "drop_inner_source_not_of_that_node");
        server.send_to(b"no reply", from).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while lab.counter(0, "drop_inner_source_not_of_that_node") == before {
            assert!(Instant::now() < until, "{}", lab.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    });
}
