//! The outer headers that the programs read and write themselves, octet for octet.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ebpf_abi::{CFG_DIRECT, MemberVal, NodeCfg};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{
    bench::{Bench, NEXT, NODE_MAC, REDIRECT, REMOTE_MAC, SHOT, TASK_MAC, VNI, bench},
    packets::{ACK, Read, Spec, TCP, UDP, checksum},
    probe,
    world::{World, ifindex, ip, isolated},
};
use crate::bpf::Hook;

/// The other node's MAC on the wire.
const WIRE_MAC: [u8; 6] = [2, 0x55, 0, 0, 0, 2];
const HEADERS: usize = 14 + 20 + 8 + 8;
const PUBLISHED: [(&str, &str); 2] = [
    ("203.0.113.9:40000", "198.18.0.1:81"),
    ("[2001:db8:9::9]:40000", "[2001:db8::1]:81"),
];

/// The bench with a wire to 198.18.0.2, which is a member.
fn wired(w: &World) -> Bench {
    let mut b = bench(w);
    ip("link add up0 type veth peer name up1");
    ip("link set up1 up");
    ip("link set up0 address 02:55:00:00:00:01 up");
    ip("addr add 198.18.0.1/24 dev up0");
    ip("neigh add 198.18.0.2 lladdr 02:55:00:00:00:02 dev up0 nud permanent");
    std::fs::write("/proc/sys/net/ipv4/conf/up0/forwarding", "1").unwrap();
    let config = NodeCfg {
        vxlan_ifindex: ifindex("up0"),
        flags: CFG_DIRECT,
        ..*b.path.config()
    };
    b.path.set_config(config).unwrap();
    member(&mut b, [198, 18, 0, 2]);
    b
}

fn member(b: &mut Bench, vtep: [u8; 4]) {
    let value = MemberVal { node: 2, flags: 0 };
    b.path
        .members
        .sync(&BTreeMap::from([(u32::from_ne_bytes(vtep), value)]))
        .unwrap();
}

/// Sets the traffic class of a packet.
fn with_class(mut p: Vec<u8>, class: u8) -> Vec<u8> {
    if p[14] >> 4 == 6 {
        p[14] = 0x60 | class >> 4;
        p[15] = class << 4;
    } else {
        p[15] = class;
        resum(&mut p);
    }
    p
}

/// Makes the checksum of the first IPv4 header anew.
fn resum(p: &mut [u8]) {
    p[24..26].fill(0);
    let sum = checksum(&p[14..34], 0);
    p[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// A VXLAN packet from 198.18.0.2 to this node, as a device on `lo` (whose MAC is zeros) gets it.
fn tunnelled(inner: &[u8]) -> Vec<u8> {
    let mut p = [&[0; 6][..], &WIRE_MAC, &[8, 0]].concat();
    let total = (inner.len() + 36) as u16;
    p.extend([0x45, 0]);
    p.extend(total.to_be_bytes());
    p.extend([7, 7, 0, 0, 64, UDP, 0, 0, 198, 18, 0, 2, 198, 18, 0, 1]);
    resum(&mut p);
    p.extend(50_000_u16.to_be_bytes());
    p.extend(4789_u16.to_be_bytes());
    p.extend((total - 20).to_be_bytes());
    p.extend([0, 0, 8, 0, 0, 0]);
    p.extend((VNI << 8).to_be_bytes());
    p.extend(inner);
    p
}

/// What a task of the other node sends to the one here.
fn plain(payload: usize, v6: bool) -> Vec<u8> {
    let (from, to) = if v6 {
        ("[fd00::2:9]:41000", "[fd00::1:2]:8080")
    } else {
        ("10.77.2.9:41000", "10.77.1.2:8080")
    };
    Spec {
        dst_mac: NODE_MAC,
        src_mac: REMOTE_MAC,
        flags: ACK,
        payload,
        ..Spec::new(TCP, from, to)
    }
    .build()
}

/// Whether this kernel lets the programs take the headers off IPv6; else the VXLAN device does.
fn unwraps_ipv6() -> bool {
    probe::unwraps_ipv6(&tunnelled(&plain(0, true)), HEADERS)
}

#[test]
fn wraps_a_packet_for_the_wire() {
    isolated(|w| {
        let b = wired(w);
        for (client, node) in PUBLISHED {
            for proto in [TCP, UDP] {
                let p = Spec::new(proto, client, node).build();
                let (verdict, out) = b.run(Hook::Netdev, &p);
                assert_eq!(verdict, REDIRECT);
                assert_eq!(out.len(), p.len() + HEADERS);
                // Checks the checksum and the lengths too.
                let outer = Read::new(&out);
                assert_eq!((outer.dst_mac, outer.src_mac), (WIRE_MAC, [2, 0x55, 0, 0, 0, 1]));
                assert_eq!(
                    outer.src.to_string() + " " + &outer.dst.to_string(),
                    "198.18.0.1 198.18.0.2"
                );
                assert_eq!((outer.proto, outer.ports().1), (UDP, 4789));
                assert!(outer.ports().0 >= 0x8000, "{}", outer.ports().0);
                assert_eq!(outer.rest[4..6], (p.len() as u16 + 16).to_be_bytes());
                assert_eq!(outer.rest[6..16], [0, 0, 8, 0, 0, 0, 0, 0, VNI as u8, 0]);
                assert_eq!((out[15], out[20], out[22]), (0, 0, 64), "class, fragment field, TTL");
                let inner = &out[HEADERS..];
                assert_eq!(inner[..12], [REMOTE_MAC, NODE_MAC].concat());
                assert_eq!(inner[12..], p[12..]);
            }
        }
    });
}

#[test]
fn a_flow_keeps_its_outer_port() {
    isolated(|w| {
        let b = wired(w);
        let port = |client: &str| {
            let p = Spec::new(UDP, client, "198.18.0.1:81").build();
            Read::new(&b.run(Hook::Netdev, &p).1).ports().0
        };
        let one = port("203.0.113.9:40000");
        assert_eq!(port("203.0.113.9:40000"), one);
        let others: std::collections::BTreeSet<u16> =
            (0..32).map(|n| port(&format!("203.0.113.9:{}", 41_000 + n))).collect();
        assert!(others.len() > 16, "spread over the receiver's queues: {others:?}");
    });
}

#[test]
fn congestion_marks_go_along() {
    isolated(|w| {
        let b = wired(w);
        for (client, node) in PUBLISHED {
            // Not capable, ECT(1), ECT(0), and CE, which an outer header must not claim to have met itself.
            for (inner, outer) in [(0, 0), (1, 1), (2, 2), (3, 2), (0xb8, 0)] {
                let p = with_class(Spec::new(UDP, client, node).build(), inner);
                let (verdict, out) = b.run(Hook::Netdev, &p);
                assert_eq!((verdict, out[15]), (REDIRECT, outer), "{inner}");
                assert_eq!(out[HEADERS + 12..], p[12..]);
            }
        }
    });
}

#[test]
fn what_the_wire_cannot_take_goes_by_the_device() {
    isolated(|w| {
        let b = wired(w);
        let (client, node) = PUBLISHED[0];
        let p = Spec {
            payload: 1300,
            ..Spec::new(UDP, client, node)
        }
        .build();
        let by_device = |why: &str| {
            let (verdict, out) = b.run(Hook::Netdev, &p);
            assert_eq!((verdict, out.len()), (REDIRECT, p.len()), "{why}");
            assert_eq!(out[12..], p[12..], "{why}");
        };
        assert_eq!(b.run(Hook::Netdev, &p).1.len(), p.len() + HEADERS);
        ip("link set up0 mtu 1300");
        by_device("it would have to be fragmented");
        ip("link set up0 mtu 1500");
        ip("neigh del 198.18.0.2 dev up0");
        by_device("the neighbour is not known");
        ip("addr del 198.18.0.1/24 dev up0");
        by_device("there is no route");
    });
}

#[test]
fn takes_what_a_member_sent() {
    isolated(|w| {
        let b = wired(w);
        let ipv6 = unwraps_ipv6();
        for v6 in [false, true] {
            for payload in [0, 1, 1000] {
                let inner = plain(payload, v6);
                let p = tunnelled(&inner);
                let (verdict, out) = b.run(Hook::Netdev, &p);
                if v6 && !ipv6 {
                    assert_eq!((verdict, out), (NEXT, p), "left to the device");
                    continue;
                }
                assert_eq!(verdict, REDIRECT);
                assert_eq!(out[..12], [TASK_MAC, NODE_MAC].concat());
                assert_eq!(out[12..], inner[12..]);
            }
        }
        assert_eq!(b.count("overlay_delivered"), if ipv6 { 6 } else { 3 });
    });
}

#[test]
fn what_a_member_may_not_say_is_dropped_here_too() {
    isolated(|w| {
        let b = wired(w);
        let inner = Spec {
            dst_mac: NODE_MAC,
            // An address of this node's own block.
            ..Spec::new(TCP, "10.77.1.9:41000", "10.77.1.2:8080")
        };
        assert_eq!(b.run(Hook::Netdev, &tunnelled(&inner.build())).0, SHOT);
        assert_eq!(b.count("drop_inner_source_not_of_that_node"), 1);
    });
}

/// Makes a packet something else.
type Change = fn(&mut Vec<u8>);

#[test]
fn whatever_is_not_plain_is_left_to_the_device() {
    isolated(|w| {
        let mut b = wired(w);
        let good = tunnelled(&plain(100, false));
        let changes: [(&str, Change); 15] = [
            ("another host's MAC", |p| p[0] = 2),
            ("padding behind it", |p| p.push(0)),
            ("a wrong checksum", |p| p[25] ^= 1),
            ("congestion was met", |p| {
                p[15] = 3;
                resum(p);
            }),
            ("more fragments", |p| {
                p[20] = 0x20;
                resum(p);
            }),
            ("a later fragment", |p| {
                p[21] = 1;
                resum(p);
            }),
            ("IP options", |p| {
                p[14] = 0x46;
                p.splice(34..34, [1; 4]);
                let total = (p.len() - 14) as u16;
                p[16..18].copy_from_slice(&total.to_be_bytes());
                p[24..26].fill(0);
                let sum = checksum(&p[14..38], 0);
                p[24..26].copy_from_slice(&sum.to_be_bytes());
            }),
            ("to another address", |p| {
                p[33] = 9;
                resum(p);
            }),
            ("from a stranger", |p| {
                p[29] = 9;
                resum(p);
            }),
            ("another UDP length", |p| p[39] ^= 1),
            ("an outer checksum", |p| p[40] = 1),
            ("no VNI", |p| p[42] = 0),
            ("a flag that means something else", |p| p[42] = 0x88),
            ("reserved octets", |p| p[49] = 1),
            ("neither IPv4 nor IPv6 inside", |p| p[62..64].copy_from_slice(&[8, 6])),
        ];
        for (what, change) in changes {
            let mut p = good.clone();
            change(&mut p);
            assert_eq!(b.run(Hook::Netdev, &p), (NEXT, p.clone()), "{what}");
        }
        let short = good[..60].to_vec();
        assert_eq!(b.run(Hook::Netdev, &short), (NEXT, short.clone()));
        assert_eq!(b.run(Hook::Netdev, &good).0, REDIRECT);
        let config = NodeCfg {
            flags: 0,
            ..*b.path.config()
        };
        b.path.set_config(config).unwrap();
        assert_eq!(b.run(Hook::Netdev, &good), (NEXT, good.clone()), "not allowed");
    });
}

#[test]
fn no_packet_overtakes_a_burst_of_its_flow() {
    isolated(|w| {
        let b = wired(w);
        let one = tunnelled(&plain(100, false));
        let mut other = one.clone();
        other[34] ^= 1;
        assert_eq!(b.run(Hook::Netdev, &one).0, REDIRECT);
        let burst = tunnelled(&plain(2800, false));
        assert_eq!(
            b.run_segments(Hook::Netdev, &burst, 1400).unwrap(),
            (NEXT, burst.clone())
        );
        assert_eq!(b.run(Hook::Netdev, &one), (NEXT, one.clone()), "it keeps behind");
        assert_eq!(b.run(Hook::Netdev, &other).0, REDIRECT, "another flow");
        let until = Instant::now() + Duration::from_secs(10);
        while b.run(Hook::Netdev, &one).0 != REDIRECT {
            assert!(Instant::now() < until, "the burst is long over");
            std::thread::yield_now();
        }
    });
}

/// Whatever one node wraps another one unwraps to the same octets.
#[test]
fn there_and_out_again() {
    isolated(|w| {
        let b = wired(w);
        let here = *b.path.config();
        let there = NodeCfg {
            vtep: u32::from_ne_bytes([198, 18, 0, 2]),
            ..here
        };
        let b = std::cell::RefCell::new(b);
        let ipv6 = unwraps_ipv6();
        let case = (0..2usize, any::<bool>(), 0..1300usize, 0..255u8, 1024..65_535u16);
        TestRunner::new(Config::with_cases(256))
            .run(&case, |(family, tcp, payload, class, port)| {
                let (client, node) = PUBLISHED[family];
                let spec = Spec {
                    payload,
                    ..Spec::new(
                        if tcp { TCP } else { UDP },
                        &client.replace("40000", &port.to_string()),
                        node,
                    )
                };
                let p = with_class(spec.build(), class);
                let mut b = b.borrow_mut();
                b.path.set_config(here).unwrap();
                member(&mut b, [198, 18, 0, 2]);
                let (verdict, mut wrapped) = b.run(Hook::Netdev, &p);
                prop_assert_eq!((verdict, wrapped.len()), (REDIRECT, p.len() + HEADERS));
                wrapped[..6].fill(0);
                b.path.set_config(there).unwrap();
                member(&mut b, [198, 18, 0, 1]);
                let (verdict, out) = b.run(Hook::Netdev, &wrapped);
                if family == 1 && !ipv6 {
                    // The device takes it there.
                    prop_assert_eq!((verdict, out), (NEXT, wrapped));
                    return Ok(());
                }
                // Nobody there has that MAC: the headers are off, and the packet ends.
                prop_assert_eq!(verdict, SHOT);
                prop_assert_eq!(&out[12..], &p[12..]);
                Ok(())
            })
            .unwrap();
    });
}
