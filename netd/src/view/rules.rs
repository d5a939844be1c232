//! What the packet filter of the IPVS data path is about.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mesh::ipvs::{Lowered, Sandbox, rules};
use model::{NodeId, Proto, Vni};
use overlay::names;

use super::{Here, reach};

/// The rules' inputs of the host's namespace.
pub fn host_rules(desired: &overlay::Desired, lowered: &Lowered, here: &Here) -> rules::Host {
    let networks = desired.networks.iter().map(|(vni, n)| rules::HostNetwork {
        device: names::host_end(*vni),
        pools: n.subnets().map(|s| s.trunc()).collect(),
        outside: !n.internal,
    });
    let published = lowered.doors.iter().map(|(key, door)| rules::Published {
        transport: key.proto.into(),
        port: key.port,
        on: key.on.clone(),
        v4: door.v4,
        v6: door.v6,
        target: door.port,
        allow: door.allow.clone(),
        masquerade: door.masquerade,
    });
    rules::Host {
        tunnel: desired.node.as_ref().map(|n| (n.vtep, n.vxlan_port)),
        members: desired.remotes.values().map(|r| r.vtep).collect(),
        prefix: names::HOST_PREFIX.to_owned(),
        networks: networks.collect(),
        v4: Some(reach::own4(here).unwrap_or(stand_in4(here.me))),
        v6: Some(reach::own6(here).unwrap_or(stand_in6(here.me))),
        published: published.collect(),
    }
}

/// Stands for a host that has no IPv4 address, among those in its networks: what a service leads back to the task that
/// asked, and what the host asks at 127.0.0.1, needs a source that is answered by way of the host. Of the range that
/// RFC 1112 4 reserves; one for each node, as two with the same port would not be told apart at a backend.
fn stand_in4(me: NodeId) -> Ipv4Addr {
    let [.., a, b, c] = me.0.to_be_bytes();
    Ipv4Addr::new(240, a, b, c)
}

/// The same for IPv6, of the range that RFC 6666 gave to nothing that answers.
fn stand_in6(me: NodeId) -> Ipv6Addr {
    let [.., a, b, c, d] = me.0.to_be_bytes().map(u16::from);
    Ipv6Addr::new(0x100, 0, 0, 0, 0x6e, 0x6574, a << 8 | b, c << 8 | d)
}

/// The rules' inputs of each network's namespace.
pub fn sandbox_rules(desired: &overlay::Desired, lowered: &Lowered) -> BTreeMap<Vni, rules::Sandbox> {
    let of = |vni: &Vni| {
        let sandbox = rules::Sandbox {
            tunnel: names::tunnel(*vni),
            prefix: names::VETH_PREFIX.to_owned(),
            up: names::SANDBOX_END.to_owned(),
            marks: lowered.networks.get(vni).map(marks).unwrap_or_default(),
        };
        (*vni, sandbox)
    };
    desired.networks.keys().map(of).collect()
}

/// Which packets bear which mark.
fn marks(sandbox: &Sandbox) -> BTreeMap<rules::Destination, u32> {
    let to = |address: IpAddr, proto: Proto, port: Option<u16>| rules::Destination {
        address,
        transport: proto.into(),
        port,
    };
    let mut out = BTreeMap::new();
    for (vip, marks) in &sandbox.vips {
        out.extend(
            marks
                .ports
                .iter()
                .map(|((proto, port), m)| (to(*vip, *proto, Some(*port)), *m)),
        );
        for proto in [Proto::Tcp, Proto::Udp] {
            out.extend(marks.other.map(|m| (to(*vip, proto, None), m)));
        }
    }
    let near = sandbox.near.iter();
    out.extend(near.map(|((address, proto, port), m)| (to(*address, *proto, Some(*port)), *m)));
    out
}

#[cfg(test)]
mod tests {
    use mesh::ipvs::{Door, DoorKey, MARK_BASE, VIP_MARKS, VipMarks};
    use model::row::Datapath;

    use super::*;

    fn here(uplink: &[&str]) -> Here {
        let uplink = uplink.iter().map(|a| a.parse().unwrap()).collect();
        Here {
            me: NodeId(1),
            datapath: Datapath::Ipvs,
            vtep: [198, 18, 0, 11].into(),
            vxlan_port: 4789,
            underlay_mtu: 1500,
            uplinks: ["eth0".to_owned()].into(),
            direct: false,
            addresses: Default::default(),
            devices: [("eth0".to_owned(), uplink)].into(),
            ifindex: BTreeMap::new(),
        }
    }

    fn desired(internal: bool) -> overlay::Desired {
        let network = overlay::Network {
            subnet: "10.77.0.0/16".parse().unwrap(),
            subnet6: Some("fd77::/64".parse().unwrap()),
            internal,
            mtu: None,
            vips: Default::default(),
        };
        overlay::Desired {
            networks: [(Vni::try_from(4097).unwrap(), network)].into(),
            ..overlay::Desired::default()
        }
    }

    #[test]
    fn a_published_port_leads_to_its_vip_and_a_network_outside_unless_it_is_internal() {
        let key = DoorKey {
            proto: Proto::Tcp,
            port: 80,
            on: None,
        };
        let vip: Ipv4Addr = "10.77.0.1".parse().unwrap();
        let door = Door {
            v4: Some(vip),
            v6: None,
            port: 80,
            allow: rules::Allow::Only(["192.0.2.0/24".parse().unwrap()].into()),
            masquerade: true,
        };
        let lowered = Lowered {
            doors: [(key, door)].into(),
            ..Lowered::default()
        };
        for internal in [false, true] {
            let host = host_rules(&desired(internal), &lowered, &here(&["198.18.0.11"]));
            let network = host.networks.first().unwrap();
            assert_eq!(
                (network.device.as_str(), network.outside, network.pools.len()),
                ("nvh4097", !internal, 2)
            );
            let port = host.published.first().unwrap();
            assert_eq!((port.port, port.v4, port.v6, port.target), (80, Some(vip), None, 80));
            assert!(port.masquerade && matches!(&port.allow, rules::Allow::Only(nets) if nets.len() == 1));
        }
    }

    #[test]
    fn a_host_without_an_address_of_a_family_has_one_that_stands_for_it() {
        let told = |here: &Here| {
            let rules = host_rules(&desired(false), &Lowered::default(), here);
            (rules.v4.unwrap().to_string(), rules.v6.unwrap().to_string())
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let mut four = here(&["198.18.0.11"]);
        assert_eq!(told(&four), pair("198.18.0.11", "100::6e:6574:0:1"));
        assert_eq!(
            told(&here(&["198.18.0.11", "fd18::11"])),
            pair("198.18.0.11", "fd18::11")
        );
        let mut six = here(&["fd18::11"]);
        six.vtep = "fd18::11".parse().unwrap();
        assert_eq!(told(&six), pair("240.0.0.1", "fd18::11"));
        // Each node has one of its own.
        (four.me, six.me) = (NodeId(0x12_3456), NodeId(0x12_3456));
        assert_eq!(told(&four).1, "100::6e:6574:12:3456");
        assert_eq!(told(&six).0, "240.18.52.86");
    }

    #[test]
    fn the_tunnel_is_that_of_the_underlay() {
        let mut desired = desired(false);
        for vtep in ["198.18.0.11", "fd18::11"] {
            let mut here = here(&[vtep]);
            here.vtep = vtep.parse().unwrap();
            desired.node = Some(overlay::Node {
                vtep: here.vtep,
                own4: None,
                vxlan_port: 4790,
                mtu: 1430,
                mac: model::Mac([6, 0x6e, 0, 0, 0, 1]),
                hairpin4: Ipv4Addr::new(169, 254, 1, 2),
                hairpin6: Ipv6Addr::LOCALHOST,
                uplinks: Default::default(),
                blocks: Default::default(),
                flags: 0,
            });
            let rules = host_rules(&desired, &Lowered::default(), &here);
            assert_eq!(rules.tunnel, Some((here.vtep, 4790)));
        }
    }

    #[test]
    fn a_vip_has_marks_for_its_ports_and_one_for_all_others() {
        let vni = Vni::try_from(4097).unwrap();
        let vip: IpAddr = "10.77.0.1".parse().unwrap();
        let node: IpAddr = "198.18.0.11".parse().unwrap();
        let marks = VipMarks {
            ports: [((Proto::Tcp, 80), MARK_BASE + 1)].into(),
            other: Some(MARK_BASE + VIP_MARKS),
        };
        let sandbox = Sandbox {
            vips: [(vip, marks)].into(),
            near: [((node, Proto::Tcp, 80), MARK_BASE + 1)].into(),
            ..Sandbox::default()
        };
        let lowered = Lowered {
            networks: [(vni, sandbox)].into(),
            ..Lowered::default()
        };
        let told: Vec<_> = sandbox_rules(&desired(false), &lowered)[&vni]
            .marks
            .iter()
            .map(|(to, mark)| (to.address, to.transport.number(), to.port, mark - MARK_BASE))
            .collect();
        let wanted = [
            (vip, 6, None, VIP_MARKS),
            (vip, 6, Some(80), 1),
            (vip, 17, None, VIP_MARKS),
            (node, 6, Some(80), 1),
        ];
        assert_eq!(told.len(), wanted.len());
        assert!(wanted.iter().all(|w| told.contains(w)), "{told:?}");
    }
}
