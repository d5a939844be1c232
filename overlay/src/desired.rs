//! What the view asks for: addresses, networks, endpoints and nodes; nothing of the kernel yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{EndpointId, Mac, NodeId, Vni};

/// A node's overlay as it should be. The default is that of a node in no cluster: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// This node; `None`: in no cluster, and what exists of ours is removed.
    pub node: Option<Node>,
    /// Networks that this node takes part in, or must know to protect.
    pub networks: BTreeMap<Vni, Network>,
    /// Endpoints of this node.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
    /// The other members.
    pub remotes: BTreeMap<NodeId, Remote>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Data-path address. Of either family in the routed shape, IPv4 in the other.
    pub vtep: IpAddr,
    /// Address of this host that is the source of what it sends into networks by IPv4; none: it has none.
    pub own4: Option<Ipv4Addr>,
    /// UDP port of VXLAN; IANA's is 4789.
    pub vxlan_port: u16,
    /// Largest inner IP packet, octets: the underlay's MTU less 50, on an IPv6 underlay 70.
    pub mtu: u16,
    /// Its MAC on every network, and that of every task's gateway.
    pub mac: Mac,
    /// Source of flows of a task to itself through its VIP.
    pub hairpin4: Ipv4Addr,
    /// The same for IPv6.
    pub hairpin6: Ipv6Addr,
    /// Devices that lead outside (those of the default routes, and the underlay's): they forward replies to tasks.
    pub uplinks: BTreeSet<String>,
    /// Blocks of this node.
    pub blocks: BTreeSet<(Vni, IpNet)>,
    /// `ebpf_abi::CFG_*`.
    pub flags: u32,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// IPv4 subnet.
    pub subnet: Ipv4Net,
    /// IPv6 subnet.
    pub subnet6: Option<Ipv6Net>,
    /// Nothing leaves it.
    pub internal: bool,
    /// MTU asked for, octets; what is more than the node's is cut.
    pub mtu: Option<u16>,
    /// Virtual addresses in it.
    pub vips: BTreeSet<IpAddr>,
}

impl Network {
    /// Both subnets.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> + use<> {
        [Some(IpNet::V4(self.subnet)), self.subnet6.map(IpNet::V6)]
            .into_iter()
            .flatten()
    }
}

/// An endpoint of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Network.
    pub vni: Vni,
    /// Where its namespace is found.
    pub netns: PathBuf,
    /// Interface in it. Of several in one namespace the first (`eth0` before `eth1` before `eth10`) that has a family has
    /// its default route.
    pub interface: String,
    /// MAC, unique in the cluster.
    pub mac: Mac,
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Further addresses that it may use.
    pub extra: BTreeSet<IpAddr>,
    /// May be a backend: replies are looked up for translation.
    pub backend: bool,
}

impl Endpoint {
    /// Its own addresses, without the extra ones.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [self.v4.map(IpAddr::V4), self.v6.map(IpAddr::V6)].into_iter().flatten()
    }
    /// Link-local address of its interface, made from its MAC (RFC 4291 2.5.6, modified EUI-64).
    pub fn link_local(&self) -> Ipv6Addr {
        crate::names::link_local(self.mac)
    }
}

/// Another member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Where VXLAN is sent to; of the family of [`Node::vtep`].
    pub vtep: IpAddr,
    /// Its MAC on every network.
    pub mac: Mac,
    /// Its blocks.
    pub blocks: BTreeSet<(Vni, IpNet)>,
    /// Single addresses outside its blocks.
    pub singles: BTreeSet<(Vni, IpAddr)>,
}
