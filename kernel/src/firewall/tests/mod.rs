//! Against the real kernel, in namespaces of our own, both filters.

mod held;
mod marking;
mod matches;
mod nft;
mod passing;
mod world;

use std::{collections::BTreeSet, net::IpAddr, path::Path, process::Command};

use ipnet::IpNet;
use mesh::lower::ipvs::{
    MARK_BASE,
    rules::{Allow, Destination, Host, HostNetwork, Published, Rules, Sandbox, Transport},
};

use super::{Backend, Firewall, FirewallError, Kind, iptables::Iptables};
use crate::{
    netns::{self, Netns},
    testing::{Folder, hear},
};

const BOTH: [Kind; 2] = [Kind::Nftables, Kind::Iptables];

/// Both where the kernel has them; a kernel without nf_tables has one.
fn kinds() -> Vec<Kind> {
    let kind = Firewall::open(&Netns::current().unwrap()).unwrap().kind();
    BOTH.into_iter()
        .filter(|k| kind == Kind::Nftables || *k == Kind::Iptables)
        .collect()
}

fn has_nftables() -> bool {
    kinds().contains(&Kind::Nftables)
}

/// A firewall whose iptables takes a lock of its own: others on this machine are not waited for, nor made to wait.
fn firewall(ns: &Netns, kind: Kind, folder: &Folder) -> Firewall {
    match kind {
        Kind::Nftables => Firewall::open_as(ns, kind).unwrap(),
        Kind::Iptables => Firewall {
            netns: ns.try_clone().unwrap(),
            backend: Backend::Iptables(Iptables::with_lock(lock(folder))),
            lacks: None,
        },
    }
}

fn lock(folder: &Folder) -> std::path::PathBuf {
    folder.path().join("lock")
}

/// Somebody else's iptables command, in a namespace.
fn iptables(ns: &Netns, folder: &Folder, command: &str) -> String {
    let mut words = command.split(' ');
    let program = Path::new("/usr/sbin").join(words.next().unwrap());
    let output = netns::run_in(ns, || {
        Command::new(program)
            .args(words)
            .env("XTABLES_LOCKFILE", lock(folder))
            .output()
            .unwrap()
    })
    .unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn ip(a: &str) -> IpAddr {
    a.parse().unwrap()
}

fn nets(all: &[&str]) -> BTreeSet<IpNet> {
    all.iter().map(|n| n.parse().unwrap()).collect()
}

fn published(transport: Transport, port: u16) -> Published {
    Published {
        transport,
        port,
        on: None,
        v4: Some("10.128.0.2".parse().unwrap()),
        v6: Some("fd00:80::2".parse().unwrap()),
        target: 80,
        allow: Allow::All,
        masquerade: false,
    }
}

fn host(ports: impl IntoIterator<Item = Published>) -> Host {
    Host {
        tunnel: Some((ip("198.18.0.1"), 4789)),
        members: [ip("198.18.0.10")].into(),
        prefix: "nvh".into(),
        networks: BTreeSet::from([HostNetwork {
            device: "nvh100".into(),
            pools: nets(&["10.128.0.0/16", "fd00:80::/64"]).into_iter().collect(),
            outside: true,
        }]),
        v4: Some("198.18.0.1".parse().unwrap()),
        v6: Some("fd18::1".parse().unwrap()),
        published: ports.into_iter().collect(),
    }
}

/// Every kind of rule and list that there is.
fn everything() -> Rules {
    host([
        published(Transport::Tcp, 8080),
        published(Transport::Udp, 8080),
        published(Transport::Sctp, 3868),
        Published {
            allow: Allow::Only(nets(&["198.18.0.0/24", "0.0.0.0/1", "fd18::/64"])),
            masquerade: true,
            ..published(Transport::Tcp, 8443)
        },
        Published {
            on: Some(BTreeSet::from([ip("198.18.0.7"), ip("fd18::7")])),
            allow: Allow::Only(nets(&["198.18.9.0/24", "fd18:9::/64"])),
            ..published(Transport::Tcp, 8444)
        },
        Published {
            allow: Allow::Only(nets(&["0.0.0.0/0", "::/0"])),
            ..published(Transport::Udp, 8445)
        },
    ])
    .rules()
}

fn sandbox(services: u32) -> Sandbox {
    let mark = |i: u32| {
        let destination = Destination {
            address: IpAddr::V4((0x0a80_0002 + i).into()),
            transport: [Transport::Tcp, Transport::Udp, Transport::Sctp][(i % 3) as usize],
            port: Some(80),
        };
        (destination, MARK_BASE + 1 + i)
    };
    let any = Destination {
        address: ip("fd00:80::2"),
        transport: Transport::Tcp,
        port: None,
    };
    Sandbox {
        tunnel: "nx100".into(),
        prefix: "nv".into(),
        up: "nvup".into(),
        marks: (0..services).map(mark).chain([(any, MARK_BASE + 0x1000)]).collect(),
    }
}
