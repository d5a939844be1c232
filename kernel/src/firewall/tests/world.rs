//! A node between an outsider and a network: outsider [198.18.0.9] eth0 - up0 [198.18.0.1] node nvh100 - nvup network
//! [10.128.0.2, and a task's 10.128.1.3], IPv4 and IPv6.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use super::*;
use crate::{
    rtnl::{
        Address, Route, Rtnl, TABLE_MAIN,
        request::{LinkChange, VethEnd, Which, add_address, add_route, change_link, create_veth},
    },
    sysctl,
};

pub(super) struct World {
    pub(super) folder: Folder,
    pub(super) outsider: Netns,
    pub(super) node: Netns,
    pub(super) network: Netns,
}

pub(super) fn set_up(ns: &Netns, link: &str, nets: &[&str], gateways: &[&str]) {
    let mut rtnl = Rtnl::open_in(ns).unwrap();
    let index = rtnl.link(link).unwrap().unwrap().index;
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    let mut requests = vec![change_link(&Which::Index(index), &up)];
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
        let to = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        add_route(&Route {
            table: TABLE_MAIN,
            to: to.parse().unwrap(),
            via: Some(via),
            index,
            source: None,
            onlink: true,
            protocol: 4,
            metric: 0,
            mtu: None,
            kind: Default::default(),
        })
    }));
    rtnl.execute_all(&requests).unwrap();
}

/// Connects two namespaces.
pub(super) fn wire((a, device): (&Netns, &str), (b, peer): (&Netns, &str)) {
    let end = |name, netns| VethEnd {
        name,
        mac: None,
        mtu: None,
        netns,
    };
    let veth = create_veth(&end(device, None), &end(peer, Some(b.as_fd())));
    Rtnl::open_in(a).unwrap().execute_all(&[veth]).unwrap();
}

pub(super) fn world(name: &str) -> World {
    let folder = Folder::new(name);
    let [outsider, node, network] =
        ["outsider", "node", "network"].map(|n| netns::create(&folder.path().join(n)).unwrap());
    wire((&node, "up0"), (&outsider, "eth0"));
    wire((&node, "nvh100"), (&network, "nvup"));
    set_up(&node, "up0", &["198.18.0.1/24", "fd18::1/64"], &[]);
    set_up(&node, "nvh100", &["10.128.255.254/16", "fd00:80::ffff/64"], &[]);
    set_up(
        &outsider,
        "eth0",
        &["198.18.0.9/24", "198.18.0.10/24", "fd18::9/64", "fd18::10/64"],
        &["198.18.0.1", "fd18::1"],
    );
    set_up(
        &network,
        "nvup",
        &["10.128.0.2/16", "10.128.1.3/16", "fd00:80::2/64", "fd00:80::1:3/64"],
        &["10.128.255.254", "fd00:80::ffff"],
    );
    netns::run_in(&node, || {
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/nvh100/route_localnet", "1"),
        ] {
            sysctl::set(key, value).unwrap();
        }
    })
    .unwrap();
    World {
        folder,
        outsider,
        node,
        network,
    }
}

pub(super) fn at(a: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(a), port)
}

pub(super) fn udp(ns: &Netns, at: SocketAddr) -> UdpSocket {
    let s = netns::run_in(ns, || UdpSocket::bind(at).unwrap()).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    s
}

pub(super) fn listen(ns: &Netns, at: SocketAddr) -> TcpListener {
    netns::run_in(ns, || TcpListener::bind(at).unwrap()).unwrap()
}

pub(super) fn connect(ns: &Netns, to: SocketAddr) -> std::io::Result<TcpStream> {
    netns::run_in(ns, || TcpStream::connect_timeout(&to, Duration::from_secs(20))).unwrap()
}

/// Takes a datagram: its text and source.
pub(super) fn take(at: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 64];
    let (n, from) = hear(at, &mut buffer).unwrap();
    (String::from_utf8_lossy(&buffer[..n]).into_owned(), from)
}
