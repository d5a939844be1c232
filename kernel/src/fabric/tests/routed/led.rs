//! Who may send by a network's VXLAN device, and which way replies go.

use mesh::{
    ipvs::{
        Dest, DestKey, Family, Forward, SchedFlags, Scheduler, Service, ServiceKey, Table, Timeouts, mark_of, plan,
    },
    lower::ipvs::rules::{Destination, Host, HostNetwork, Sandbox, Transport},
};

use super::*;
use crate::{firewall::Firewall, ipvs::Ipvs};

#[test]
fn members_alone_may_send() {
    if !*CLASSIFIERS {
        return;
    }
    let c = Cluster::new("routed-members");
    let a = c.task("a");
    // Host 3 is no machine of ours in this story: it says what the test wants it to say.
    let mut d = c.desired(1, &[("a", 4096, 5)]);
    c.settle(1, &d);
    let evil = socket(&c.hosts[&3], "198.18.0.3:4789");
    let server = socket(&a, "10.77.16.5:700");
    let (me, task) = (MACS[1], [10, 77, 16, 5]);
    let send = |mac, source, text| {
        evil.send_to(&frame(mac, me, source, task, text), "198.18.0.1:4789")
            .unwrap()
    };
    let theirs = [10, 77, 16, 21];
    // No member; a member with another one's address, with its network's, and with its own.
    send(MACS[3], theirs, 1);
    send(MACS[2], [10, 77, 16, 6], 2);
    send(MACS[2], [10, 77, 0, 1], 3);
    send(MACS[2], theirs, 4);
    let mut text = [0; 8];
    let (n, from) = hear(&server, &mut text).unwrap();
    assert_eq!(
        (&text[..n], from.ip().to_string().as_str()),
        (&[4u8][..], "10.77.16.21")
    );
    send(MACS[2], [10, 77, 99, 9], 5);
    assert_eq!(hear(&server, &mut text).unwrap().0, 1);
    assert_eq!(text[0], 5, "a single address of its own");
    // It becomes a member: what comes in by it from outside is let in.
    d.remotes.insert(NodeId(3), third());
    c.settle(1, &d);
    send(MACS[3], [203, 0, 113, 9], 6);
    let (_, from) = hear(&server, &mut text).unwrap();
    assert_eq!((text[0], from), (6, "203.0.113.9:12345".parse().unwrap()));
    // And is one no more.
    d.remotes.remove(&NodeId(3));
    c.settle(1, &d);
    send(MACS[3], [203, 0, 113, 9], 7);
    send(MACS[2], theirs, 8);
    assert_eq!(hear(&server, &mut text).unwrap().0, 1);
    assert_eq!(text[0], 8);
    // Somebody takes the filters away: they are back with the next look.
    let mut sandbox = c.in_sandbox(1, 4096);
    let index = index_of(&mut sandbox, "nx4096");
    let seen = sandbox.classifiers(index, &|_| None).unwrap();
    let removals: Vec<_> = seen
        .iter()
        .map(|s| crate::rtnl::tc::delete(index, s.hook, s.priority, s.handle))
        .collect();
    sandbox.execute_all(&removals).unwrap();
    let round = c.settle(1, &d);
    assert_eq!(round.report.done, seen.len());
}

/// A member without a task.
fn third() -> Remote {
    Remote {
        vtep: vtep(3),
        mac: MACS[3],
        blocks: Default::default(),
        singles: Default::default(),
    }
}

/// A node that the test plays: what it sends by the tunnel, and what comes back to it.
struct Member {
    mac: Mac,
    at: UdpSocket,
}

impl Member {
    fn new(c: &Cluster, n: u8) -> Self {
        let at = socket(&c.hosts[&n], &format!("198.18.0.{n}:4789"));
        at.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mac = MACS[usize::from(n)];
        Member { mac, at }
    }

    /// Brings in what the client sends, and takes the answer that is led back: its text, after a look at the addresses.
    fn brings(&self, server: &UdpSocket, text: u8) -> u8 {
        let packet = frame(self.mac, MACS[1], [203, 0, 113, 9], [10, 77, 16, 5], text);
        self.at.send_to(&packet, "198.18.0.1:4789").unwrap();
        answer(server, text);
        let mut back = [0; 256];
        let (n, _) = hear(&self.at, &mut back).unwrap();
        let inner = &back[8..n];
        assert_eq!((&inner[..6], &inner[6..12]), (&self.mac.0[..], &MACS[1].0[..]));
        // From the task itself, untranslated: that is for the node that the client asked.
        assert_eq!(
            (&inner[26..30], &inner[30..34]),
            (&[10, 77, 16, 5][..], &[203, 0, 113, 9][..])
        );
        assert_eq!(inner[34..38], [0x02, 0xbc, 0x30, 0x39]);
        inner[42]
    }
}

/// The task hears the client's text and says it again, and 100 more.
fn answer(server: &UdpSocket, text: u8) {
    let mut heard = [0; 8];
    let (n, from) = hear(server, &mut heard).unwrap();
    assert_eq!((&heard[..n], from), (&[text][..], "203.0.113.9:12345".parse().unwrap()));
    server.send_to(&[text + 100], from).unwrap();
}

/// A client uses one port through a node that has no task, through another one, and through the task's own node, whose
/// IPVS takes all of them for one flow.
#[test]
fn a_reply_goes_to_the_node_that_the_client_asked_last() {
    if !*CLASSIFIERS {
        return;
    }
    let c = Cluster::new("routed-last");
    let a = c.task("a");
    let mut d = c.desired(1, &[("a", 4096, 5)]);
    d.remotes.insert(NodeId(3), third());
    c.settle(1, &d);
    let sandbox = Netns::open(&c.sandbox(1, 4096)).unwrap();
    let (vip, mark) = (ip("10.77.0.1"), mark_of(1).unwrap());
    let destination = Destination {
        address: vip,
        transport: Transport::Udp,
        port: Some(80),
    };
    let rules = Sandbox {
        tunnel: "nx4096".to_owned(),
        prefix: "nv".to_owned(),
        up: "nvup".to_owned(),
        marks: [(destination, mark)].into(),
    };
    Firewall::open(&sandbox).unwrap().apply(&rules.rules()).unwrap();
    let server = socket(&a, "10.77.16.5:700");
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (second, third) = (Member::new(&c, 2), Member::new(&c, 3));
    for (text, by) in (1..).zip([&second, &third, &second]) {
        assert_eq!(by.brings(&server, text), text + 100);
    }

    let balanced = netns::run_in(&sandbox, || {
        let mut ipvs = Ipvs::open().ok()?;
        let key = ServiceKey {
            mark,
            family: Family::V4,
        };
        let dest = DestKey {
            address: ip("10.77.16.5"),
            port: 700,
        };
        let weight = Dest {
            weight: 1,
            forward: Forward::Masquerade,
        };
        let service = Service {
            scheduler: Scheduler::Rr,
            flags: SchedFlags::default(),
            timeout: 0,
            dests: [(dest, weight)].into(),
        };
        let wanted = Table {
            services: [(key, service)].into(),
            timeouts: Timeouts::default(),
        };
        let seen = ipvs.observe().unwrap();
        let report = ipvs.apply(&plan(&seen, &wanted));
        assert!(report.failed.is_empty(), "{:?}", report.failed.first());
        Some(())
    })
    .unwrap();
    if balanced.is_none() {
        eprintln!("the task's own node is not asked here: this kernel lacks IPVS");
        return;
    }
    set_up(&c.hosts[&1], "lo", &["203.0.113.9/32"], None);
    let client = socket(&c.hosts[&1], "203.0.113.9:12345");
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for text in [10, 20, 30] {
        client.send_to(&[text], "10.77.0.1:80").unwrap();
        answer(&server, text);
        let mut back = [0; 8];
        let (n, from) = hear(&client, &mut back).unwrap();
        assert_eq!((&back[..n], from), (&[text + 100][..], "10.77.0.1:80".parse().unwrap()));
        for (more, by) in (1..).zip([&third, &second]) {
            assert_eq!(by.brings(&server, text + more), text + more + 100);
        }
    }

    // What the service leads back to the task that it came from goes by the host, which gives it another source.
    let host = Host {
        tunnel: Some((ip("198.18.0.1"), 4789)),
        members: [ip("198.18.0.2"), ip("198.18.0.3")].into(),
        prefix: "nvh".to_owned(),
        networks: [HostNetwork {
            device: "nvh4096".to_owned(),
            pools: vec!["10.77.0.0/16".parse().unwrap()],
            outside: true,
        }]
        .into(),
        v4: Some([198, 18, 0, 1].into()),
        v6: None,
        published: Default::default(),
    };
    Firewall::open(&c.hosts[&1]).unwrap().apply(&host.rules()).unwrap();
    let own = socket(&a, "10.77.16.5:888");
    own.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    own.send_to(&[40], "10.77.0.1:80").unwrap();
    let mut heard = [0; 8];
    let (n, from) = hear(&server, &mut heard).unwrap();
    assert_eq!((&heard[..n], from.ip()), (&[40][..], ip("198.18.0.1")));
    server.send_to(&[140], from).unwrap();
    let (n, from) = hear(&own, &mut heard).unwrap();
    assert_eq!((&heard[..n], from), (&[140][..], "10.77.0.1:80".parse().unwrap()));

    // In fragments, there and back. (They do not take a connection back.)
    let fresh = socket(&c.hosts[&1], "203.0.113.9:12346");
    for (text, by) in [(1, None), (2, Some(&third)), (3, None)] {
        let large = [text; 3000];
        let mut whole = [0; 4000];
        let Some(by) = by else {
            fresh.send_to(&large, "10.77.0.1:80").unwrap();
            let (n, from) = hear(&server, &mut whole).unwrap();
            assert_eq!((n, from), (3000, fresh.local_addr().unwrap()));
            server.send_to(&large, from).unwrap();
            let (n, from) = hear(&fresh, &mut whole).unwrap();
            assert_eq!((&whole[..n], from), (&large[..], "10.77.0.1:80".parse().unwrap()));
            continue;
        };
        let packet = frame(by.mac, MACS[1], [203, 0, 113, 9], [10, 77, 16, 5], text);
        by.at.send_to(&packet, "198.18.0.1:4789").unwrap();
        let (_, from) = hear(&server, &mut whole).unwrap();
        server.send_to(&large, from).unwrap();
        // 8 octets of UDP and 20 of IP in each: 1450 is the MTU.
        let mut came = 0;
        while came < 3008 {
            let (n, _) = hear(&by.at, &mut whole).unwrap();
            assert_eq!(&whole[8..14], &by.mac.0[..]);
            came += n - 8 - 14 - 20;
        }
        assert_eq!(came, 3008);
    }

    // Another source than its own is not led back, whatever its connection is.
    set_up(&a, "eth0", &["10.77.16.6/32"], None);
    let liar = socket(&a, "10.77.16.6:700");
    liar.send_to(b"a lie", "203.0.113.9:12345").unwrap();
    assert_eq!(second.brings(&server, 77), 177, "the lie was not heard");
}

fn ip(a: &str) -> IpAddr {
    a.parse().unwrap()
}
