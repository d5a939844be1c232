//! Real packets through real namespaces: every way from a client to a backend and back.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    lab::{CLIENT4, CLIENT6, HAIRPIN4, HAIRPIN6, Lab, TARGET, vip4, vip6},
    talk::{serve, tcp, udp},
    world::both_tunnels,
};

/// One way: who asks what, whom it should reach, and what that one should see.
struct Way {
    from: &'static str,
    to: (IpAddr, u16),
    reaches: &'static str,
    sees: IpAddr,
}

fn ways(lab: &Lab<'_>) -> Vec<Way> {
    let mut ways = Vec::new();
    let a = &lab.nodes[0];
    let local: IpAddr = Ipv4Addr::LOCALHOST.into();
    let of = |name: &str, v6: bool| -> IpAddr {
        let t = lab.task(name);
        if v6 { t.v6.into() } else { t.v4.into() }
    };
    for v6 in [false, true] {
        let node: IpAddr = if v6 { a.v6.into() } else { a.v4.into() };
        let client: IpAddr = if v6 { CLIENT6.into() } else { CLIENT4.into() };
        let hairpin: IpAddr = if v6 { HAIRPIN6.into() } else { HAIRPIN4.into() };
        let vip = |last: u8| if v6 { vip6(last.into()) } else { vip4(last) };
        for (port, reaches) in [(81, "a1"), (82, "b1"), (84, "a1"), (85, "b1")] {
            let mut way = |from, to, reaches, sees| {
                ways.push(Way {
                    from,
                    to: (to, port),
                    reaches,
                    sees,
                })
            };
            way("c", node, reaches, client);
            way("a", node, reaches, node);
            way("a2", node, reaches, of("a2", v6));
            // Of 85 a task of the other network is led elsewhere.
            let of_o1 = if port == 85 { "a1" } else { reaches };
            way("o1", node, of_o1, of("o1", v6));
            way(
                "a1",
                node,
                reaches,
                if reaches == "a1" { hairpin } else { of("a1", v6) },
            );
            if !v6 {
                way("a", local, reaches, node);
            }
        }
        for (last, reaches) in [(11, "a1"), (12, "b1")] {
            for from in ["a1", "a2", "b1"] {
                let sees = if from == reaches { hairpin } else { of(from, v6) };
                for port in [80, TARGET] {
                    ways.push(Way {
                        from,
                        to: (vip(last), port),
                        reaches,
                        sees,
                    });
                }
            }
        }
        for (from, reaches) in [("a1", "b1"), ("b1", "a1"), ("a2", "a1"), ("a2", "b1")] {
            ways.push(Way {
                from,
                to: (of(reaches, v6), TARGET),
                reaches,
                sees: of(from, v6),
            });
        }
    }
    ways
}

fn servers(lab: &Lab<'_>) {
    for name in ["a1", "b1"] {
        serve(lab.world, name, TARGET);
    }
}

#[test]
fn every_way_works_by_tcp() {
    both_tunnels(|w| {
        let lab = Lab::new(w);
        servers(&lab);
        let mut wrong = Vec::new();
        for way in ways(&lab) {
            match tcp(w, way.from, way.to, 300_000) {
                Ok(h) if h.who == way.reaches && h.saw.ip() == way.sees => {}
                other => wrong.push(format!("{} -> {}:{}: {other:?}", way.from, way.to.0, way.to.1)),
            }
        }
        assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), lab.said());
    });
}

#[test]
fn every_way_works_by_udp() {
    both_tunnels(|w| {
        let lab = Lab::new(w);
        servers(&lab);
        let mut wrong = Vec::new();
        for way in ways(&lab) {
            for octets in [0, 11, 4_000] {
                match udp(w, way.from, way.to, octets) {
                    Ok(h) if h.who == way.reaches && h.saw.ip() == way.sees => {}
                    other => wrong.push(format!(
                        "{octets} octets {} -> {}:{}: {other:?}",
                        way.from, way.to.0, way.to.1
                    )),
                }
            }
        }
        assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), lab.said());
    });
}

#[test]
fn without_a_backend_clients_are_refused_at_once() {
    both_tunnels(|w| {
        let lab = Lab::new(w);
        let a = &lab.nodes[0];
        for (from, to) in [
            ("c", (a.v4.into(), 83)),
            ("c", (a.v6.into(), 83)),
            ("a", (a.v4.into(), 83)),
            ("a", (a.v6.into(), 83)),
            ("a", (Ipv4Addr::LOCALHOST.into(), 83)),
            ("a2", (a.v4.into(), 83)),
            ("a2", (vip4(13), 80)),
            ("a2", (vip6(13), 4444)),
        ] {
            let refused = tcp(w, from, to, 1).unwrap_err();
            assert_eq!(
                refused.kind(),
                ErrorKind::ConnectionRefused,
                "tcp {from} {to:?}: {}",
                lab.said()
            );
            let refused = udp(w, from, to, 1).unwrap_err();
            assert_eq!(
                refused.kind(),
                ErrorKind::ConnectionRefused,
                "udp {from} {to:?}: {}",
                lab.said()
            );
        }
        assert!(lab.counter(0, "refused_without_backend") >= 16);
    });
}
