//! Each program on packets by hand (`BPF_PROG_TEST_RUN`): what goes in, what comes out, octet for octet.

use std::{net::IpAddr, os::fd::AsFd as _};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{
    bench::{NEXT, NODE_MAC, REDIRECT, REMOTE_MAC, SHOT, TASK_MAC, bench},
    packets::{ACK, Read, Spec, TCP, UDP, checksum, pseudo},
    world::isolated,
};
use crate::bpf::{
    Hook,
    test_run::{self, Came},
};

/// Client and node by family.
const FAMILIES: [(&str, &str, &str); 2] = [
    ("203.0.113.9:40000", "198.18.0.1", "10.77.1.2:8080"),
    ("[2001:db8:9::9]:40000", "[2001:db8::1]", "[fd00::1:2]:8080"),
];

#[test]
fn to_a_backend_here_and_back() {
    isolated(|w| {
        let b = bench(w);
        for (client, node, backend) in FAMILIES {
            for proto in [TCP, UDP] {
                let published = format!("{node}:80");
                let p = Spec::new(proto, client, &published).build();
                let (verdict, out) = b.run(Hook::Netdev, &p);
                assert_eq!(verdict, REDIRECT);
                let out = Read::new(&out);
                assert_eq!(out.ends(), (client.parse().unwrap(), backend.parse().unwrap()));
                assert_eq!((out.dst_mac, out.src_mac), (TASK_MAC, NODE_MAC));
                let back = b.reply(&out, proto);
                assert_eq!(back.ends(), (published.parse().unwrap(), client.parse().unwrap()));
            }
        }
        assert_eq!(b.count("reverse_entries_made"), 4);
    });
}

#[test]
fn to_a_backend_elsewhere_only_the_macs_change() {
    isolated(|w| {
        let b = bench(w);
        for (client, node, _) in FAMILIES {
            for proto in [TCP, UDP] {
                let p = Spec::new(proto, client, &format!("{node}:81")).build();
                let (verdict, out) = b.run(Hook::Netdev, &p);
                assert_eq!(verdict, REDIRECT);
                assert_eq!(out[..12], [REMOTE_MAC, NODE_MAC].concat());
                assert_eq!(out[12..], p[12..]);
            }
        }
    });
}

#[test]
fn what_is_no_service_passes_untouched() {
    isolated(|w| {
        let b = bench(w);
        for (client, node, _) in FAMILIES {
            for (proto, port) in [(TCP, 22), (UDP, 53), (UDP, 4789), (132, 80)] {
                let p = Spec::new(proto, client, &format!("{node}:{port}")).build();
                assert_eq!(b.run(Hook::Netdev, &p), (NEXT, p.clone()));
                assert_eq!(b.run(Hook::Host, &p), (NEXT, p.clone()));
            }
        }
        let arp = [&[0xff; 6][..], &[2; 6], &[8, 6], &[0; 28]].concat();
        assert_eq!(b.run(Hook::Netdev, &arp), (NEXT, arp.clone()));
    });
}

#[test]
fn options_extension_headers_and_missing_checksums_are_followed() {
    isolated(|w| {
        let b = bench(w);
        for (client, node, backend) in FAMILIES {
            for (proto, options, bare) in [(TCP, 8, false), (UDP, 40, false), (UDP, 0, true), (TCP, 16, false)] {
                let spec = Spec {
                    options,
                    bare,
                    ..Spec::new(proto, client, &format!("{node}:80"))
                };
                let (verdict, out) = b.run(Hook::Netdev, &spec.build());
                assert_eq!(verdict, REDIRECT, "{spec:?}");
                let out = Read::new(&out);
                assert_eq!(out.ends(), (client.parse().unwrap(), backend.parse().unwrap()));
                assert_eq!(bare, proto == UDP && out.rest[6..8] == [0, 0], "no checksum stays none");
            }
        }
    });
}

#[test]
fn later_fragments_follow_the_first() {
    isolated(|w| {
        let b = bench(w);
        for (client, node, backend) in FAMILIES {
            let spec = Spec {
                payload: 200,
                ..Spec::new(UDP, client, &format!("{node}:80"))
            };
            let later = Spec {
                fragment: Some((64, false)),
                ..spec.clone()
            }
            .build();
            assert_eq!(
                b.run(Hook::Netdev, &later),
                (NEXT, later.clone()),
                "its ports are not known yet"
            );
            let first = Spec {
                fragment: Some((0, true)),
                ..spec.clone()
            }
            .build();
            let (verdict, first) = b.run(Hook::Netdev, &first);
            assert_eq!(verdict, REDIRECT);
            let (verdict, later) = b.run(Hook::Netdev, &later);
            assert_eq!(verdict, REDIRECT);
            // Put together they are what the whole would have become.
            let (_, whole) = b.run(Hook::Netdev, &spec.build());
            let whole = Read::new(&whole);
            let head = if spec.from.is_ipv4() { 34 } else { 62 };
            assert_eq!([&first[head..], &later[head..]].concat(), whole.rest);
            let at = if spec.from.is_ipv4() { 30..34 } else { 38..54 };
            assert_eq!(first[at.clone()], later[at]);
            assert_eq!(whole.ends().1, backend.parse().unwrap());
        }
        assert_eq!(b.count("first_fragments_seen"), 2);
    });
}

#[test]
fn what_does_not_fit_the_tunnel_is_said() {
    isolated(|w| {
        let b = bench(w);
        for (client, node, _) in FAMILIES {
            let v6 = client.starts_with('[');
            let head = if v6 { 48 } else { 28 };
            let fits = Spec {
                payload: 1450 - head,
                ..Spec::new(UDP, client, &format!("{node}:81"))
            };
            let (_, out) = b.run(Hook::Netdev, &fits.build());
            assert_eq!(out.len(), 1464, "goes as it is");
            let big = Spec {
                payload: 1451 - head,
                ..fits.clone()
            };
            let (verdict, out) = b.run(Hook::Netdev, &big.build());
            assert_eq!(verdict, REDIRECT);
            let out = Read::new(&out);
            assert_eq!((out.src, out.dst), (big.to.ip(), big.from.ip()));
            assert_eq!((out.dst_mac, out.src_mac), (big.src_mac, big.dst_mac));
            if v6 {
                assert_eq!(
                    (out.proto, &out.rest[..2], &out.rest[4..8]),
                    (58, &[2, 0][..], &1450_u32.to_be_bytes()[..])
                );
            } else {
                assert_eq!(
                    (out.proto, &out.rest[..2], &out.rest[6..8]),
                    (1, &[3, 4][..], &1450_u16.to_be_bytes()[..])
                );
                let free = Spec {
                    dont_fragment: false,
                    ..big.clone()
                };
                assert_eq!(
                    b.run(Hook::Netdev, &free.build()).1.len(),
                    1465,
                    "may be fragmented: goes"
                );
            }
            assert_eq!(
                out.rest[8..],
                big.build()[14..14 + out.rest.len() - 8],
                "quotes what it is about"
            );
        }
        assert_eq!(b.count("packet_too_big_answers"), 2);
    });
}

#[test]
fn nobody_there_is_refused_in_words() {
    isolated(|w| {
        let b = bench(w);
        for (client, node, _) in FAMILIES {
            // From the shortest packet on; on `lo`, where a process is the client, too.
            for (proto, payload, options) in [(UDP, 0, 0), (TCP, 0, 0), (TCP, 1000, 0), (UDP, 100, 16)] {
                for hook in [Hook::Netdev, Hook::Host] {
                    let p = Spec {
                        payload,
                        options,
                        ..Spec::new(proto, client, &format!("{node}:82"))
                    };
                    let (verdict, out) = b.run(hook, &p.build());
                    assert_eq!(verdict, REDIRECT);
                    let out = Read::new(&out);
                    assert_eq!((out.src, out.dst), (p.to.ip(), p.from.ip()));
                    let kind: &[u8] = if out.proto == 58 { &[1, 4] } else { &[3, 3] };
                    assert_eq!(&out.rest[..2], kind);
                    assert_eq!(out.rest[8..], p.build()[14..14 + out.rest.len() - 8]);
                }
            }
        }
    });
}

#[test]
fn a_process_on_127_0_0_1_is_seen_as_its_node() {
    isolated(|w| {
        let b = bench(w);
        for proto in [TCP, UDP] {
            let p = Spec::new(proto, "127.0.0.1:40000", "127.0.0.1:81");
            let (_, out) = b.run(Hook::Host, &p.build());
            let out = Read::new(&out);
            assert_eq!(
                out.ends(),
                ("198.18.0.1:40000".parse().unwrap(), "127.0.0.1:81".parse().unwrap())
            );
            let p = Spec::new(proto, "127.0.0.1:40000", "127.0.0.1:80");
            let (_, out) = b.run(Hook::Host, &p.build());
            let out = Read::new(&out);
            assert_eq!(
                out.ends(),
                ("198.18.0.1:40000".parse().unwrap(), "10.77.1.2:8080".parse().unwrap())
            );
            let back = b.reply(&out, proto);
            assert_eq!(
                back.ends(),
                ("127.0.0.1:80".parse().unwrap(), "127.0.0.1:40000".parse().unwrap())
            );
            assert_eq!(back.dst_mac, [0; 6], "lo knows no other address");
        }
    });
}

#[test]
fn a_task_reaches_itself_through_its_vip() {
    isolated(|w| {
        let b = bench(w);
        for (own, vip, hairpin) in [
            ("10.77.1.2:41000", "10.77.0.10:80", "10.77.0.1"),
            ("[fd00::1:2]:41000", "[fd00::10]:80", "fd00::1"),
        ] {
            for proto in [TCP, UDP] {
                let p = Spec {
                    src_mac: TASK_MAC,
                    dst_mac: NODE_MAC,
                    ..Spec::new(proto, own, vip)
                };
                let (verdict, out) = b.run(Hook::Endpoint, &p.build());
                assert_eq!(verdict, REDIRECT);
                let out = Read::new(&out);
                assert_eq!((out.src, out.dst), (hairpin.parse().unwrap(), p.from.ip()));
                assert_eq!(out.ports(), (41_000, 80));
                let back = b.reply(&out, proto);
                assert_eq!(back.ends(), (vip.parse().unwrap(), own.parse().unwrap()));
                assert_eq!(back.dst_mac, TASK_MAC);
            }
        }
    });
}

#[test]
fn packets_without_a_tunnel_do_not_pass_for_the_overlay() {
    isolated(|w| {
        let b = bench(w);
        let p = Spec::new(UDP, "10.77.2.2:1", "10.77.1.2:2").build();
        assert_eq!(b.run(Hook::Overlay, &p).0, SHOT);
        assert_eq!(b.count("drop_tunnel_key_failed"), 1);
    });
}

fn arp(kind: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut p = [[0xff; 6], TASK_MAC].concat();
    p.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, kind]);
    p.extend(TASK_MAC);
    p.extend(sender);
    p.extend([0; 6]);
    p.extend(target);
    p
}

#[test]
fn every_address_but_its_own_is_behind_the_node() {
    isolated(|w| {
        let b = bench(w);
        let own = [10, 77, 1, 2];
        let (verdict, out) = b.run(Hook::Endpoint, &arp(1, own, [169, 254, 1, 1]));
        assert_eq!(verdict, REDIRECT);
        let mut wanted = [TASK_MAC, NODE_MAC].concat();
        wanted.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        wanted.extend(NODE_MAC);
        wanted.extend([169, 254, 1, 1]);
        wanted.extend(TASK_MAC);
        wanted.extend(own);
        assert_eq!(out, wanted);
        // A probe for its own address, a gratuitous request, an answer.
        for p in [arp(1, [0; 4], own), arp(1, own, own), arp(2, own, [10, 77, 1, 3])] {
            assert_eq!(b.run(Hook::Endpoint, &p).0, SHOT);
        }

        let (verdict, out) = b.run(Hook::Endpoint, &solicit(135, "fd00::1:2", "fe80::1", true));
        assert_eq!(verdict, REDIRECT);
        let read = Read::new(&out);
        assert_eq!((read.dst_mac, read.src_mac), (TASK_MAC, NODE_MAC));
        assert_eq!(
            (read.src, read.dst),
            ("fe80::1".parse().unwrap(), "fd00::1:2".parse().unwrap())
        );
        assert_eq!(out[21], 255, "hop limit");
        assert_eq!(
            (read.rest[0], &read.rest[24..26], &read.rest[26..32]),
            (136, &[2, 1][..], &NODE_MAC[..])
        );
        // Without the option that names the asking address, too.
        assert_eq!(b.run(Hook::Endpoint, &solicit(135, "fe80::2", "fd00::77", false)), {
            let (verdict, out) = b.run(Hook::Endpoint, &solicit(135, "fe80::2", "fd00::77", true));
            (verdict, out)
        });
        for p in [
            solicit(135, "::", "fd00::1:2", false),
            solicit(135, "fd00::1:2", "fd00::1:2", true),
            solicit(135, "fd00::66", "fe80::1", true),
            solicit(134, "fe80::2", "fe80::1", true),
            solicit(136, "fd00::1:2", "fe80::1", true),
            solicit(137, "fd00::1:2", "fe80::1", true),
        ] {
            assert_eq!(b.run(Hook::Endpoint, &p).0, SHOT);
        }
        assert_eq!(b.count("neighbour_answers"), 4);
    });
}

/// An ICMPv6 message of the neighbour discovery's form.
fn solicit(kind: u8, from: &str, target: &str, option: bool) -> Vec<u8> {
    let (s, d): (IpAddr, IpAddr) = (from.parse().unwrap(), "ff02::1:ff00:1".parse().unwrap());
    let octets = |a: &IpAddr| match a {
        IpAddr::V6(a) => a.octets(),
        IpAddr::V4(_) => panic!("IPv6 alone"),
    };
    let mut icmp = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    icmp.extend(octets(&target.parse().unwrap()));
    if option {
        icmp.extend([1, 1]);
        icmp.extend(TASK_MAC);
    }
    let sum = checksum(&icmp, pseudo(s, d, 58, icmp.len()));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut p = [[0x33, 0x33, 0xff, 0, 0, 1], TASK_MAC].concat();
    p.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 255]);
    p.extend(octets(&s));
    p.extend(octets(&d));
    p.extend(icmp);
    p
}

#[test]
fn dhcp_servers_and_router_tricks_stay_at_home() {
    isolated(|w| {
        let b = bench(w);
        for (from, to) in [("10.77.1.2:67", "10.77.2.2:68"), ("[fd00::1:2]:547", "[fd00::2:2]:546")] {
            let p = Spec {
                src_mac: TASK_MAC,
                ..Spec::new(UDP, from, to)
            };
            assert_eq!(b.run(Hook::Endpoint, &p.build()).0, SHOT);
        }
        for (from, to) in [
            ("10.77.1.2:9", "224.0.0.251:5353"),
            ("10.77.1.2:9", "255.255.255.255:9"),
            ("10.77.1.2:9", "127.0.0.1:9"),
            ("10.77.1.2:9", "169.254.7.7:9"),
            ("[fd00::1:2]:9", "[ff02::fb]:5353"),
            ("[fd00::1:2]:9", "[fe80::9]:9"),
            ("[fd00::1:2]:9", "[::1]:9"),
        ] {
            let p = Spec {
                src_mac: TASK_MAC,
                ..Spec::new(UDP, from, to)
            };
            assert_eq!(b.run(Hook::Endpoint, &p.build()).0, SHOT, "{to}");
        }
    });
}

#[test]
fn no_packet_confuses_a_program() {
    isolated(|w| {
        let b = bench(w);
        let ends = prop_oneof![
            Just(("203.0.113.9:40000", "198.18.0.1:80")),
            Just(("203.0.113.9:40000", "198.18.0.1:82")),
            Just(("[2001:db8:9::9]:40000", "[2001:db8::1]:80")),
            Just(("[2001:db8:9::9]:40000", "[2001:db8::1]:81")),
            Just(("10.77.1.2:41000", "10.77.0.10:80")),
            Just(("[fd00::1:2]:41000", "[fd00::10]:80")),
            Just(("10.77.1.2:41000", "10.77.2.2:80")),
        ];
        let proto = prop_oneof![Just(TCP), Just(UDP), Just(1), Just(58), any::<u8>()];
        let edits = proptest::collection::vec((12..90_usize, any::<u8>()), 0..6);
        let case = (ends, proto, 0..100_usize, 0..5_usize, 14..200_usize, edits);
        let mut runner = TestRunner::new(Config {
            cases: 4000,
            failure_persistence: None,
            ..Config::default()
        });
        runner
            .run(&case, |((from, to), proto, payload, options, len, edits)| {
                let spec = Spec {
                    src_mac: TASK_MAC,
                    payload,
                    options: options * 8,
                    ..Spec::new(proto, from, to)
                };
                let mut p = spec.build();
                let whole = edits.is_empty() && len >= p.len();
                p.truncate(len);
                for (at, octet) in edits {
                    if let Some(o) = p.get_mut(at) {
                        *o = octet;
                    }
                }
                for hook in Hook::ALL {
                    // `BPF_PROG_TEST_RUN` itself takes no packet that is shorter than its IP header.
                    let Ok((verdict, out)) = b.try_run(hook, &p) else {
                        prop_assert!(p.len() < 54);
                        continue;
                    };
                    prop_assert!([NEXT, SHOT, REDIRECT].contains(&verdict), "{hook:?} {verdict}");
                    if verdict == NEXT {
                        prop_assert_eq!(&out, &p, "what passes is untouched");
                    }
                    if whole && verdict == REDIRECT && matches!(proto, TCP | UDP) {
                        // Panics on any wrong checksum or length.
                        Read::new(&out);
                    }
                }
                Ok(())
            })
            .unwrap();
    });
}

/// ns per packet, for whoever changes the programs: `cargo test -p kernel costs -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a test"]
fn costs() {
    isolated(|w| {
        let b = bench(w);
        for (name, hook, from, to) in [
            (
                "published, backend elsewhere",
                Hook::Netdev,
                "203.0.113.9:40000",
                "198.18.0.1:81",
            ),
            (
                "published, backend elsewhere, IPv6",
                Hook::Netdev,
                "[2001:db8:9::9]:40000",
                "[2001:db8::1]:81",
            ),
            ("not ours", Hook::Netdev, "203.0.113.9:40000", "198.18.0.1:22"),
            ("VXLAN", Hook::Netdev, "198.18.0.2:40000", "198.18.0.1:4789"),
            ("task to node", Hook::Endpoint, "10.77.1.2:41000", "10.77.2.2:80"),
            (
                "task to node, IPv6",
                Hook::Endpoint,
                "[fd00::1:2]:41000",
                "[fd00::2:2]:80",
            ),
            ("lo, not ours", Hook::Host, "127.0.0.1:40000", "127.0.0.1:22"),
        ] {
            let spec = Spec {
                src_mac: TASK_MAC,
                flags: ACK,
                payload: 64,
                ..Spec::new(UDP, from, to)
            };
            let device = if hook == Hook::Endpoint { b.task } else { 1 };
            let program = b.path.programs[&hook].fd().unwrap();
            let came = Came {
                ifindex: device,
                gso_size: 0,
            };
            let ns = test_run::run(program.as_fd(), &spec.build(), came, 1_000_000)
                .unwrap()
                .2;
            println!("{name}: {ns} ns");
        }
    });
}
