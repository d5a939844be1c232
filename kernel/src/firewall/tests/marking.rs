//! What bears which mark in a network's namespace: a task - nv1 [network: 10.128.255.1] nx100 - another node.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{passing::tracked, world::*, *};
use crate::sysctl;

struct Place {
    folder: Folder,
    network: Netns,
    task: Netns,
    far: Netns,
}

fn place(name: &str) -> Place {
    let folder = Folder::new(name);
    let [network, task, far] = ["network", "task", "far"].map(|n| netns::create(&folder.path().join(n)).unwrap());
    netns::run_in(&network, || {
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            sysctl::set(key, value).unwrap();
        }
    })
    .unwrap();
    wire((&network, "nv1"), (&task, "eth0"));
    wire((&network, "nx100"), (&far, "eth0"));
    set_up(&network, "nv1", &["10.128.255.1/16", "fd00:80::ff/64"], &[]);
    set_up(&network, "nx100", &["198.18.7.1/24", "fd18:7::1/64"], &[]);
    set_up(
        &far,
        "eth0",
        &["198.18.7.2/24", "fd18:7::2/64", "10.128.2.2/32", "fd00:80::2:2/128"],
        &["198.18.7.1", "fd18:7::1"],
    );
    set_up(
        &task,
        "eth0",
        &["10.128.1.3/16", "fd00:80::1:3/64"],
        &["10.128.255.1", "fd00:80::ff"],
    );
    Place {
        folder,
        network,
        task,
        far,
    }
}

/// Rules of iptables' that count, behind ours: at the hooks that follow, because who comes last is first at one hook.
struct Counter<'a> {
    place: &'a Place,
    save: &'static str,
    name: String,
}

fn tool(address: &str) -> (&'static str, &'static str) {
    if ip(address).is_ipv4() {
        ("iptables-legacy", "iptables-legacy-save")
    } else {
        ("ip6tables-legacy", "ip6tables-legacy-save")
    }
}

impl Place {
    /// Counts UDP packets with a mark and a destination port, of an address' family.
    fn count(&self, mark: u32, family_of: &str, port: u16) -> Counter<'_> {
        self.count_those(&format!("-m mark --mark {mark}"), family_of, port)
    }

    fn count_those(&self, which: &str, family_of: &str, port: u16) -> Counter<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("count-{}-", NEXT.fetch_add(1, Ordering::Relaxed));
        let (tool, save) = tool(family_of);
        for chain in ["INPUT", "FORWARD"] {
            let command =
                format!("{tool} -t mangle -A {chain} -p udp --dport {port} {which} -m comment --comment {name}");
            iptables(&self.network, &self.folder, &command);
        }
        Counter {
            place: self,
            save,
            name,
        }
    }
}

impl Counter<'_> {
    fn packets(&self) -> u64 {
        let saved = iptables(
            &self.place.network,
            &self.place.folder,
            &format!("{} -c -t mangle", self.save),
        );
        let lines: Vec<&str> = saved.lines().filter(|l| l.contains(&self.name)).collect();
        assert_eq!(lines.len(), 2, "{saved}");
        let packets = |l: &&str| -> u64 {
            let number = l.strip_prefix('[').and_then(|l| l.split(':').next());
            number.unwrap().parse().unwrap()
        };
        lines.iter().map(packets).sum()
    }
}

#[test]
fn a_packet_is_marked_by_its_vip_and_port() {
    for kind in kinds() {
        let p = place(&format!("fw-mark-{kind}"));
        let mut to = sandbox(0);
        to.marks.clear();
        // The node's end stands for VIPs: what is sent there arrives by nv1 in any case.
        let cases: [(&str, u16, u32); 6] = [
            ("10.128.255.1", 80, MARK_BASE + 1),
            ("10.128.255.1", 81, MARK_BASE + 2),
            ("10.128.255.1", 82, MARK_BASE + 9),
            ("fd00:80::ff", 80, MARK_BASE + 3),
            ("fd00:80::ff", 81, 0),
            ("198.18.7.1", 8080, MARK_BASE + 4),
        ];
        for (address, port, mark) in cases {
            let destination = Destination {
                address: ip(address),
                transport: Transport::Udp,
                // Any port that has none of its own.
                port: (mark != MARK_BASE + 9).then_some(port),
            };
            if mark != 0 {
                to.marks.insert(destination, mark);
            }
        }
        let mut fw = firewall(&p.network, kind, &p.folder);
        fw.apply(&to.rules()).unwrap();
        for (address, port, mark) in cases {
            let counter = p.count(mark, address, port);
            let listener = udp(&p.network, at(address, port));
            let from = if ip(address).is_ipv4() {
                "10.128.1.3"
            } else {
                "fd00:80::1:3"
            };
            udp(&p.task, at(from, 0)).send_to(b"x", at(address, port)).unwrap();
            take(&listener);
            assert_eq!(counter.packets(), 1, "{kind} {address}:{port} {mark:#x}");
        }
    }
}

#[test]
fn nothing_is_tracked() {
    for kind in kinds() {
        let p = place(&format!("fw-untracked-{kind}"));
        let mut fw = firewall(&p.network, kind, &p.folder);
        fw.apply(&sandbox(3).rules()).unwrap();
        let pairs = [
            ("10.128.255.1", "10.128.1.3", "10.128.2.2"),
            ("fd00:80::ff", "fd00:80::1:3", "fd00:80::2:2"),
        ];
        for (here, task, elsewhere) in pairs {
            let before = tracked(&p.network);
            // From a task, to a VIP or another task.
            let listener = udp(&p.network, at(here, 99));
            udp(&p.task, at(task, 0)).send_to(b"x", at(here, 99)).unwrap();
            take(&listener);
            // From a task on another node.
            let listener = udp(&p.task, at(task, 98));
            udp(&p.far, at(elsewhere, 0)).send_to(b"x", at(task, 98)).unwrap();
            take(&listener);
            assert_eq!(tracked(&p.network), before, "{kind} {here}");
        }
        // From outside.
        let before = tracked(&p.network);
        let listener = udp(&p.task, at("10.128.1.3", 97));
        udp(&p.far, at("198.18.7.2", 0))
            .send_to(b"x", at("10.128.1.3", 97))
            .unwrap();
        take(&listener);
        assert_eq!(tracked(&p.network), before, "{kind}");
    }
}

#[test]
fn a_task_does_not_take_anothers_address() {
    for kind in kinds() {
        let p = place(&format!("fw-spoof-{kind}"));
        let mut fw = firewall(&p.network, kind, &p.folder);
        fw.apply(&sandbox(0).rules()).unwrap();
        // IPv6 alone: rp_filter of the device does it for IPv4.
        set_up(&p.task, "lo", &["fd18:7::66/128"], &[]);
        let listener = udp(&p.network, at("fd00:80::ff", 94));
        udp(&p.task, at("fd18:7::66", 0))
            .send_to(b"lie", at("fd00:80::ff", 94))
            .unwrap();
        udp(&p.task, at("fd00:80::1:3", 0))
            .send_to(b"truth", at("fd00:80::ff", 94))
            .unwrap();
        assert_eq!(take(&listener).0, "truth", "{kind}");
    }
}
