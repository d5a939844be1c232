//! Plain data for what rtnetlink knows: one struct a kind of object, with the fields that netd looks at.

use std::net::IpAddr;

use ipnet::IpNet;
use model::Mac;

/// Routing protocol number that marks routes, rules and neighbours as netd's (`rtm_protocol`, linux/rtnetlink.h; free
/// for user space from 4 on, registered by nobody in rt_protos).
pub const PROTOCOL: u8 = 110;

/// `RT_TABLE_MAIN`.
pub const TABLE_MAIN: u32 = 254;

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name, 1-15 octets.
    pub name: String,
    /// `veth`, `vxlan`, `bridge`, ...; `None` for hardware and `lo`.
    pub kind: Option<String>,
    /// Alias, the owner's mark (`netd:<kind>:<id>`).
    pub alias: Option<String>,
    /// Index of the bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// Index of the lower device; for a veth its peer's, in the peer's namespace.
    pub lower: Option<u32>,
    /// The lower device (or peer) lies in another namespace; likewise the socket of a VXLAN device that was moved.
    pub lower_elsewhere: bool,
    /// Number of that namespace in this one (`IFLA_LINK_NETNSID`).
    pub elsewhere: Option<i32>,
    /// MAC address, where it has one of six octets.
    pub mac: Option<Mac>,
    /// Octets.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// There is a carrier: of a veth, its other end is up too (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// It sends: the kernel has taken note of the carrier (`IFF_RUNNING`).
    pub running: bool,
    /// It is the loopback.
    pub loopback: bool,
    /// IPv6 addresses are made by the kernel (`addrgenmode` is not `none`).
    pub generates_addresses: bool,
    /// Settings of a VXLAN device.
    pub vxlan: Option<Vxlan>,
}

/// Settings of a VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vxlan {
    /// Collect-metadata mode: VNI and remote are set for each packet.
    pub external: bool,
    /// UDP port.
    pub port: u16,
    /// Learns MAC addresses from packets.
    pub learning: bool,
    /// Network; 0 in collect-metadata mode.
    pub vni: u32,
    /// Source of the outer packets.
    pub local: Option<IpAddr>,
}

/// Where a VXLAN device sends the frames to a MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fdb {
    /// Device.
    pub index: u32,
    /// Inner destination.
    pub mac: Mac,
    /// Outer destination.
    pub to: IpAddr,
}

/// An address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Device.
    pub index: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// The kernel made no route to the prefix.
    pub no_prefix_route: bool,
    /// Still being checked for a duplicate, or found to be one (IPv6): not usable.
    pub tentative: bool,
}

/// What a route does, `RTN_*` of linux/rtnetlink.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum RouteKind {
    /// Sends on.
    #[default]
    Unicast,
    /// Takes in.
    Local,
    /// Answers "unreachable". It has no device; IPv6 shows `lo`.
    Unreachable,
}

/// A route with one next hop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// What it does.
    pub kind: RouteKind,
    /// Table.
    pub table: u32,
    /// Destination.
    pub to: IpNet,
    /// Gateway; an IPv4 route may have an IPv6 one (`RTA_VIA`).
    pub via: Option<IpAddr>,
    /// Device.
    pub index: u32,
    /// Preferred source.
    pub source: Option<IpAddr>,
    /// The gateway is on the link, whatever the other routes say.
    pub onlink: bool,
    /// `rtm_protocol`.
    pub protocol: u8,
    /// Metric; IPv6 turns 0 into 1024 (`IP6_RT_PRIO_USER`).
    pub metric: u32,
    /// MTU metric, octets.
    pub mtu: Option<u32>,
}

/// An entry of the neighbour table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// Device.
    pub index: u32,
    /// Address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: Mac,
    /// Never expires.
    pub permanent: bool,
    /// Who made it (`NDA_PROTOCOL`), 0: not told.
    pub protocol: u8,
}

/// A policy rule: packets that match look into a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Source; a prefix of no bits: any of the family.
    pub from: IpNet,
    /// Mark and mask (`FRA_FWMARK`, `FRA_FWMASK`); a mask of 0: any.
    pub mark: (u32, u32),
    /// Only packets of the namespace itself (`iif lo`).
    pub own: bool,
    /// Table.
    pub table: u32,
    /// Place among the rules; lower comes first.
    pub priority: u32,
    /// `FRA_PROTOCOL`.
    pub protocol: u8,
}

/// Where the kernel would send a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Device.
    pub link: Link,
    /// Gateway, `None`: on the link.
    pub via: Option<IpAddr>,
    /// Source address that it would choose.
    pub source: Option<IpAddr>,
    /// Largest IP packet, octets: a learned path MTU or the route's, else the device's.
    pub mtu: u32,
    /// The destination is this host.
    pub local: bool,
}
