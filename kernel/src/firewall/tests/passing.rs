//! Real packets.

use super::{world::*, *};
use crate::sysctl;

const FAMILIES: [(&str, &str, &str, &str); 2] = [
    ("10.128.0.2", "10.128.1.3", "198.18.0.1", "198.18.0.9"),
    ("fd00:80::2", "fd00:80::1:3", "fd18::1", "fd18::9"),
];

#[test]
fn a_published_port_leads_to_its_vip_and_keeps_the_client() {
    for kind in kinds() {
        let w = world(&format!("fw-pub-{kind}"));
        let mut fw = firewall(&w.node, kind, &w.folder);
        let ports = [published(Transport::Udp, 8080), published(Transport::Tcp, 8080)];
        fw.apply(&host(ports).rules()).unwrap();
        for (vip, task, node, client) in FAMILIES {
            let backend = udp(&w.network, at(vip, 80));
            let outside = udp(&w.outsider, at(client, 0));
            outside.send_to(b"hello", at(node, 8080)).unwrap();
            let (text, from) = take(&backend);
            assert_eq!(
                (text.as_str(), from),
                ("hello", outside.local_addr().unwrap()),
                "{kind}"
            );
            backend.send_to(b"back", from).unwrap();
            assert_eq!(take(&outside), ("back".into(), at(node, 8080)), "{kind}");

            let listener = listen(&w.network, at(vip, 80));
            let stream = connect(&w.outsider, at(node, 8080)).unwrap();
            assert_eq!(listener.accept().unwrap().1, stream.local_addr().unwrap());

            // Out of the network and back into it: as the node, else the answer would not come this way.
            let inside = udp(&w.network, at(task, 0));
            inside.send_to(b"itself", at(node, 8080)).unwrap();
            let (text, from) = take(&backend);
            assert_eq!((text.as_str(), from.ip()), ("itself", ip(node)), "{kind}");
            backend.send_to(b"back", from).unwrap();
            assert_eq!(take(&inside), ("back".into(), at(node, 8080)), "{kind}");

            // From the node itself: by its address, and by 127.0.0.1, which the network sees as the node.
            let own: &[&str] = if node == "198.18.0.1" {
                &[node, "127.0.0.1"]
            } else {
                &[node]
            };
            for own in own {
                let stream = connect(&w.node, at(own, 8080)).unwrap();
                assert_eq!(listener.accept().unwrap().1.ip(), ip(node), "{kind} {own}");
                drop(stream);
            }
        }
        // [::1] is not offered: it is refused, so that a client falls back to 127.0.0.1.
        let refused = connect(&w.node, at("::1", 8080)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        // The port is the node's again.
        fw.apply(&host([]).rules()).unwrap();
        let refused = connect(&w.outsider, at("198.18.0.1", 8080)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_port_is_for_those_who_are_allowed_and_masquerade_hides_the_client() {
    for kind in kinds() {
        let w = world(&format!("fw-allow-{kind}"));
        let mut fw = firewall(&w.node, kind, &w.folder);
        let guarded = Published {
            allow: Allow::Only(nets(&["198.18.0.10/32", "fd18::10/128"])),
            ..published(Transport::Udp, 8080)
        };
        let masked = Published {
            masquerade: true,
            target: 81,
            ..published(Transport::Udp, 8081)
        };
        fw.apply(&host([guarded, masked]).rules()).unwrap();
        for (vip, _, node, client) in FAMILIES {
            let allowed = if client == "198.18.0.9" {
                "198.18.0.10"
            } else {
                "fd18::10"
            };
            let backend = udp(&w.network, at(vip, 80));
            // Something of the node's own on that port does not answer in its place.
            let own = udp(&w.node, at(node, 8080));
            udp(&w.outsider, at(client, 0)).send_to(b"no", at(node, 8080)).unwrap();
            // What must not arrive is followed by what must: no time is waited for.
            udp(&w.outsider, at(allowed, 0))
                .send_to(b"yes", at(node, 8080))
                .unwrap();
            let (text, from) = take(&backend);
            assert_eq!((text.as_str(), from.ip()), ("yes", ip(allowed)), "{kind}");
            for silent in [&own, &backend] {
                silent.set_nonblocking(true).unwrap();
                assert!(silent.recv_from(&mut [0; 64]).is_err(), "{kind}");
            }
            let backend = udp(&w.network, at(vip, 81));
            let outside = udp(&w.outsider, at(client, 0));
            outside.send_to(b"who", at(node, 8081)).unwrap();
            let (text, from) = take(&backend);
            assert_eq!((text.as_str(), from.ip()), ("who", ip(node)), "{kind}");
            backend.send_to(b"back", from).unwrap();
            assert_eq!(take(&outside), ("back".into(), at(node, 8081)), "{kind}");
        }
    }
}

#[test]
fn tasks_reach_the_outside_and_are_not_reached_unasked() {
    for kind in kinds() {
        let w = world(&format!("fw-out-{kind}"));
        let mut fw = firewall(&w.node, kind, &w.folder);
        // Also where the node forwards nothing by itself.
        if kind == Kind::Iptables {
            for of in ["iptables-legacy", "ip6tables-legacy"] {
                iptables(&w.node, &w.folder, &format!("{of} -P FORWARD DROP"));
            }
        }
        fw.apply(&host([]).rules()).unwrap();
        for (_, task, node, client) in FAMILIES {
            let (inside, outside) = (udp(&w.network, at(task, 1000)), udp(&w.outsider, at(client, 2000)));
            inside.send_to(b"out", outside.local_addr().unwrap()).unwrap();
            let (_, seen) = take(&outside);
            assert_eq!(seen.ip(), ip(node), "{kind}: by the node's address");
            // Unasked first: it ends at the node. Then the answer, which arrives.
            let stranger = udp(&w.outsider, at(client, 3000));
            stranger.send_to(b"unasked", inside.local_addr().unwrap()).unwrap();
            outside.send_to(b"answer", seen).unwrap();
            assert_eq!(take(&inside), ("answer".into(), at(client, 2000)), "{kind}");
            inside.set_nonblocking(true).unwrap();
            assert!(inside.recv_from(&mut [0; 64]).is_err(), "{kind}");
            inside.set_nonblocking(false).unwrap();
        }
    }
}

pub(super) fn tracked(ns: &Netns) -> u32 {
    let count = netns::run_in(ns, || sysctl::read("net/netfilter/nf_conntrack_count")).unwrap();
    count.unwrap().unwrap().trim().parse().unwrap()
}

#[test]
fn the_tunnel_is_for_members_and_not_tracked_and_everything_else_is() {
    for kind in kinds() {
        let w = world(&format!("fw-track-{kind}"));
        let mut fw = firewall(&w.node, kind, &w.folder);
        fw.apply(&host([published(Transport::Udp, 8080)]).rules()).unwrap();
        let (tunnel, other) = (
            udp(&w.node, at("198.18.0.1", 4789)),
            udp(&w.node, at("198.18.0.1", 4790)),
        );
        let before = tracked(&w.node);
        for i in 0..20 {
            // A member: of others nothing is taken.
            let stranger = udp(&w.outsider, at("198.18.0.9", 40_000 + i));
            stranger.send_to(b"a lie", at("198.18.0.1", 4789)).unwrap();
            let outside = udp(&w.outsider, at("198.18.0.10", 40_000 + i));
            outside.send_to(b"in", at("198.18.0.1", 4789)).unwrap();
            assert_eq!(take(&tunnel).0, "in", "{kind}");
            tunnel.send_to(b"out", at("198.18.0.9", 4789)).unwrap();
        }
        assert_eq!(tracked(&w.node), before, "{kind}");
        udp(&w.outsider, at("198.18.0.9", 0))
            .send_to(b"x", at("198.18.0.1", 4790))
            .unwrap();
        take(&other);
        assert!(tracked(&w.node) > before, "{kind}");
    }
}
