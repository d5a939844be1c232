pub(crate) mod kernel;
mod properties;
mod tables;

use std::{net::IpAddr, path::PathBuf};

use model::{EndpointId, Mac, NodeId, Vni};

use crate::*;

pub(crate) fn vni(n: u32) -> Vni {
    Vni::try_from(n).unwrap()
}
pub(crate) fn id(s: &str) -> EndpointId {
    s.parse().unwrap()
}
pub(crate) fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// A node with two networks (one IPv4 and internal, one dual), one peer and no endpoint.
pub(crate) fn cluster() -> Desired {
    let node = Node {
        vtep: "198.18.0.1".parse().unwrap(),
        own4: Some("198.18.0.1".parse().unwrap()),
        vxlan_port: 4789,
        mtu: 1450,
        mac: Mac([6, 0x6e, 0, 0, 0, 1]),
        hairpin4: "169.254.1.2".parse().unwrap(),
        hairpin6: "fd00::2".parse().unwrap(),
        uplinks: ["up0".to_owned()].into(),
        blocks: [
            (vni(4096), "10.77.16.0/28".parse().unwrap()),
            (vni(4097), "10.78.16.0/28".parse().unwrap()),
        ]
        .into(),
        flags: 0,
    };
    let network = |subnet: &str, subnet6: Option<&str>, vip: &str| Network {
        subnet: subnet.parse().unwrap(),
        subnet6: subnet6.map(|s| s.parse().unwrap()),
        internal: subnet6.is_none(),
        mtu: None,
        vips: [ip(vip)].into(),
    };
    let remote = Remote {
        vtep: "198.18.0.2".parse().unwrap(),
        mac: Mac([6, 0x6e, 0, 0, 0, 2]),
        blocks: [(vni(4096), "10.77.16.16/28".parse().unwrap())].into(),
        singles: [(vni(4096), ip("10.77.99.9"))].into(),
    };
    Desired {
        node: Some(node),
        networks: [
            (vni(4096), network("10.77.0.0/16", Some("fd00:77::/64"), "10.77.0.1")),
            (vni(4097), network("10.78.0.0/16", None, "10.78.0.1")),
        ]
        .into(),
        endpoints: Default::default(),
        remotes: [(NodeId(2), remote)].into(),
    }
}

/// Endpoint number `n` of a network, in a namespace and on an interface.
pub(crate) fn endpoint(net: u32, n: u8, netns: &str, interface: &str) -> Endpoint {
    Endpoint {
        vni: vni(net),
        netns: PathBuf::from(netns),
        interface: interface.to_owned(),
        mac: Mac([2, 0x6e, 10, net as u8, 16, n]),
        v4: Some(if net == 4096 {
            [10, 77, 16, n].into()
        } else {
            [10, 78, 16, n].into()
        }),
        v6: (net == 4096).then(|| format!("fd00:77::10{n:02x}").parse().unwrap()),
        extra: Default::default(),
        backend: true,
    }
}
