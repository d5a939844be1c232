//! Against the real kernel, in namespaces of our own.

use std::{
    io::ErrorKind,
    net::{IpAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use ipnet::IpNet;

use super::*;
use crate::{
    netns::{self, Netns},
    rtnl::{
        Address, Rtnl,
        request::{LinkChange, VethEnd, Which, add_address, change_link, create_veth},
    },
    sysctl,
    testing::{Folder, hear},
};

fn filter(pools: &[&str], outside: &[&str]) -> Filter {
    let nets = |l: &[&str]| overlay::ranges(l.iter().map(|n| n.parse::<IpNet>().unwrap()));
    Filter {
        pools: nets(pools),
        tunnel: Some(("198.18.0.1".parse().unwrap(), 4789)),
        outside: nets(outside),
    }
}

fn generation() -> u32 {
    read::table(&mut open().unwrap()).unwrap().0
}

#[test]
fn it_is_written_once_read_back_and_repaired() {
    let folder = Folder::new("nft");
    let ns = netns::create(&folder.path().join("a")).unwrap();
    netns::run_in(&ns, || {
        assert_eq!(observe().unwrap(), Seen::Absent);
        assert!(!remove().unwrap());
        let one = filter(
            &[
                "10.77.0.0/16",
                "10.78.0.0/16",
                "10.99.0.0/16",
                "255.255.255.0/24",
                "fd00:77::/64",
            ],
            &["10.77.0.0/16", "fd00:77::/64"],
        );
        assert!(set(&one).unwrap());
        assert_eq!(observe().unwrap(), Seen::Ours(one.clone()));
        let at = generation();
        assert!(!set(&one).unwrap());
        assert_eq!(generation(), at, "nothing was written");

        let two = filter(&["10.77.0.0/17", "10.99.0.0/16", "fd00:78::/64", "ffff::/16"], &[]);
        assert!(set(&two).unwrap());
        assert_eq!(observe().unwrap(), Seen::Ours(two.clone()));

        // A foreign flush: elements, rules, a chain more, the table.
        let mut socket = open().unwrap();
        for damage in [
            message::request(message::kind::DEL_ELEMENT, 4, |w| {
                w.string(1, TABLE).string(2, "pools4");
            }),
            // NFT_MSG_DELRULE of a chain.
            message::request(8, 4, |w| {
                w.string(1, TABLE).string(2, "spoof");
            }),
            message::request(message::kind::NEW_CHAIN, 4 | 1024, |w| {
                w.string(1, TABLE).string(3, "foreign");
            }),
            message::request(message::kind::DEL_TABLE, 4, |w| {
                w.string(1, TABLE);
            }),
        ] {
            let mut batch = message::batch(generation(), vec![]);
            batch.insert(1, damage);
            socket.transaction(&batch).unwrap();
            assert_ne!(observe().unwrap(), Seen::Ours(two.clone()));
            assert!(set(&two).unwrap());
            assert_eq!(observe().unwrap(), Seen::Ours(two.clone()));
        }
        // Another port of the tunnel is another set of rules, and is read back.
        let moved = Filter {
            tunnel: Some(("198.18.0.1".parse().unwrap(), 4790)),
            ..two.clone()
        };
        assert!(set(&moved).unwrap());
        assert_eq!(observe().unwrap(), Seen::Ours(moved));
        // Many ranges, over several messages.
        let many = Filter {
            pools: overlay::ranges(
                (0..3000u32).map(|i| IpNet::new(IpAddr::V4((0x0a00_0000 + i * 512).into()), 24).unwrap()),
            ),
            ..two
        };
        assert!(set(&many).unwrap());
        assert_eq!(observe().unwrap(), Seen::Ours(many.clone()));
        assert_eq!(many.pools.len(), 3000);
        assert!(remove().unwrap());
        assert_eq!(observe().unwrap(), Seen::Absent);
    })
    .unwrap();
}

#[test]
fn a_stale_generation_is_refused_and_what_is_missing_has_a_name() {
    let folder = Folder::new("nft-stale");
    let ns = netns::create(&folder.path().join("a")).unwrap();
    netns::run_in(&ns, || {
        let mut socket = open().unwrap();
        let old = generation();
        set(&filter(&["10.0.0.0/8"], &[])).unwrap();
        assert!(!commit(&mut socket, old, message::rebuild(&Filter::default())).unwrap());
        assert_eq!(observe().unwrap(), Seen::Ours(filter(&["10.0.0.0/8"], &[])));
        // An expression that no kernel has stands for one that this kernel lacks.
        let refused = message::request(message::kind::NEW_RULE, 4 | 1024 | 2048, |w| {
            w.string(1, TABLE).string(2, "guard").nest(4, |w| {
                w.nest(1, |w| {
                    w.string(1, "nosuch");
                });
            });
        });
        let mut batch = message::batch(generation(), vec![]);
        batch.insert(1, refused);
        let (at, source) = socket.transaction(&batch).unwrap_err();
        assert_eq!(at, Some(1));
        let text = missing("a rule", "CONFIG_NFT_MASQ", "nft_masq", source).to_string();
        assert!(text.contains("CONFIG_NFT_MASQ") && text.contains("try:"), "{text}");
        assert!(!set(&filter(&["10.0.0.0/8"], &[])).unwrap(), "nothing half-made");
    })
    .unwrap();
}

const TASK: &str = "10.77.0.5";
const NODE: &str = "198.18.0.1";
const OUTSIDER: &str = "198.18.0.9";

/// task (10.77.0.5) - nv1 [node: 198.18.0.1] up0 - eth0 [outsider: 198.18.0.9], IPv4 and IPv6, all routed.
fn world(folder: &Folder) -> (Netns, Netns, Netns) {
    let [task, node, outsider] = ["task", "node", "outsider"].map(|n| netns::create(&folder.path().join(n)).unwrap());
    let end = |name, netns| VethEnd {
        name,
        mac: None,
        mtu: None,
        netns,
    };
    let veths = [
        create_veth(&end("nv1", None), &end("eth0", Some(task.as_fd()))),
        create_veth(&end("up0", None), &end("eth0", Some(outsider.as_fd()))),
    ];
    Rtnl::open_in(&node).unwrap().execute_all(&veths).unwrap();
    let set_up = |ns: &Netns, link: &str, nets: &[&str], gateways: &[&str]| {
        let mut rtnl = Rtnl::open_in(ns).unwrap();
        let index = rtnl.link(link).unwrap().unwrap().index;
        let mut requests = vec![change_link(
            &Which::Index(index),
            &LinkChange {
                up: Some(true),
                ..LinkChange::default()
            },
        )];
        requests.extend(nets.iter().map(|n| {
            add_address(&Address {
                index,
                net: n.parse().unwrap(),
                no_prefix_route: false,
                tentative: false,
            })
        }));
        requests.extend(gateways.iter().map(|g| {
            let via: IpAddr = g.parse().unwrap();
            let to = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse().unwrap();
            crate::rtnl::request::add_route(&crate::rtnl::Route {
                kind: Default::default(),
                table: crate::rtnl::TABLE_MAIN,
                to,
                via: Some(via),
                index,
                source: None,
                onlink: true,
                protocol: 4,
                metric: 0,
                mtu: None,
            })
        }));
        rtnl.execute_all(&requests).unwrap();
    };
    set_up(&node, "nv1", &["10.77.0.1/24", "fd00:77::1/64"], &[]);
    set_up(&node, "up0", &["198.18.0.1/24", "fd18::1/64"], &[]);
    set_up(
        &task,
        "eth0",
        &["10.77.0.5/24", "fd00:77::5/64"],
        &["10.77.0.1", "fd00:77::1"],
    );
    set_up(
        &outsider,
        "eth0",
        &["198.18.0.9/24", "fd18::9/64", "10.77.0.66/32"],
        &["198.18.0.1", "fd18::1"],
    );
    netns::run_in(&node, || {
        sysctl::set("net/ipv4/ip_forward", "1").unwrap();
        sysctl::set("net/ipv6/conf/all/forwarding", "1").unwrap();
        sysctl::set("net/ipv4/conf/all/rp_filter", "0").unwrap();
        sysctl::set("net/ipv4/conf/up0/rp_filter", "0").unwrap();
    })
    .unwrap();
    (task, node, outsider)
}

fn socket(ns: &Netns, at: &str) -> UdpSocket {
    let s = netns::run_in(ns, || UdpSocket::bind(at).unwrap()).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    s
}

/// Sends, and tells the source that the receiver saw.
fn pass(from: &UdpSocket, to: &UdpSocket, text: &str) -> String {
    from.send_to(text.as_bytes(), to.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 64];
    let (n, source) = hear(to, &mut buffer).unwrap();
    assert_eq!(&buffer[..n], text.as_bytes());
    source.ip().to_string()
}

/// What must not arrive is followed by what must: no time is waited for.
fn nothing_arrived(at: &UdpSocket) {
    at.set_nonblocking(true).unwrap();
    assert_eq!(at.recv_from(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
    at.set_nonblocking(false).unwrap();
}

#[test]
fn tasks_reach_the_outside_by_their_nodes_address_and_are_not_reached_unasked() {
    let folder = Folder::new("nft-path");
    let (task, node, outsider) = world(&folder);
    for (t, n, o, spoofed) in [
        (TASK, NODE, OUTSIDER, Some("10.77.0.66")),
        ("fd00:77::5", "fd18::1", "fd18::9", None),
    ] {
        let at = |a: &str, port: u16| std::net::SocketAddr::new(a.parse().unwrap(), port).to_string();
        let (inside, outside) = (socket(&task, &at(t, 1000)), socket(&outsider, &at(o, 2000)));
        let open = Filter {
            pools: overlay::ranges(["10.77.0.0/16", "fd00:77::/64"].map(|n| n.parse().unwrap())),
            ..Filter::default()
        };
        // Before: routed plainly, both ways. The first packet also resolves the neighbours.
        netns::run_in(&node, remove).unwrap().unwrap();
        assert_eq!(pass(&inside, &outside, "before"), t);
        assert_eq!(pass(&outside, &inside, "unasked"), o);
        // Internal: not masqueraded.
        netns::run_in(&node, || set(&open)).unwrap().unwrap();
        let third = socket(&outsider, &at(o, 2001));
        assert_eq!(pass(&inside, &third, "internal"), t);
        // Reaching outside: by the node's address, and the answer comes back.
        netns::run_in(&node, || {
            set(&Filter {
                outside: open.pools.clone(),
                ..open.clone()
            })
        })
        .unwrap()
        .unwrap();
        let fourth = socket(&outsider, &at(o, 2002));
        inside.send_to(b"out", fourth.local_addr().unwrap()).unwrap();
        let (_, seen) = hear(&fourth, &mut [0; 64]).unwrap();
        assert_eq!(seen.ip().to_string(), n, "masqueraded");
        // Nobody's packet to the task first: it is dropped. Then the answer, which arrives.
        let stranger = socket(&outsider, &at(o, 3000));
        stranger.send_to(b"unasked", inside.local_addr().unwrap()).unwrap();
        fourth.send_to(b"answer", seen).unwrap();
        let mut buffer = [0; 64];
        let (length, source) = hear(&inside, &mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], source.ip().to_string().as_str()),
            (&b"answer"[..], o)
        );
        nothing_arrived(&inside);
        // A source in our pools that comes from the wire.
        if let Some(spoofed) = spoofed {
            let (liar, honest, host) = (
                socket(&outsider, &at(spoofed, 4000)),
                socket(&outsider, &at(o, 4001)),
                socket(&node, &at(n, 5000)),
            );
            liar.send_to(b"lie", host.local_addr().unwrap()).unwrap();
            assert_eq!(pass(&honest, &host, "truth"), o);
            nothing_arrived(&host);
        }
    }
}

#[test]
fn other_tables_are_not_touched() {
    let folder = Folder::new("nft-other");
    let ns = netns::create(&folder.path().join("a")).unwrap();
    netns::run_in(&ns, || {
        let mut socket = open().unwrap();
        let named = |w: &mut crate::netlink::Writer| {
            w.string(1, "foreign");
        };
        let mut batch = message::batch(generation(), vec![]);
        batch.insert(1, message::request(message::kind::NEW_TABLE, 4 | 1024, named));
        socket.transaction(&batch).unwrap();
        set(&filter(&["10.0.0.0/8"], &[])).unwrap();
        remove().unwrap();
        assert!(
            socket
                .get(&message::request(message::kind::GET_TABLE, 0, named))
                .is_ok()
        );
    })
    .unwrap();
}
