//! Types shared between the kernel programs (`ebpf/prog`) and user space.
//!
//! Rules: `repr(C)`, fixed layout, no implicit padding, no `bool`, no `Option`. Addresses, ports and MACs hold the bytes
//! as on the wire, in whatever integer makes the programs fast; everything else is in the host's order.
#![no_std]

/// Version of every layout below. A daemon that finds another number in a pinned map does not touch it.
pub const ABI: u32 = 1;

/// An IPv4 or IPv6 address: 16 octets as on the wire; IPv4 is IPv4-mapped (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Addr {
    /// Four words, each read from the wire without swapping.
    pub w: [u32; 4],
}

/// Third word of an IPv4-mapped address.
pub const V4_MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    /// An IPv4 address from its octets.
    #[inline(always)]
    pub const fn v4(o: [u8; 4]) -> Self {
        Self::v4_word(u32::from_ne_bytes(o))
    }
    /// An IPv4 address from the word as read from the wire.
    #[inline(always)]
    pub const fn v4_word(w: u32) -> Self {
        Addr {
            w: [0, 0, V4_MAPPED, w],
        }
    }
    /// An IPv6 address from its octets.
    #[inline(always)]
    pub const fn v6(o: [u8; 16]) -> Self {
        Addr {
            w: [
                u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
                u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
                u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
                u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
            ],
        }
    }
    /// Whether it is IPv4-mapped.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.w[0] == 0 && self.w[1] == 0 && self.w[2] == V4_MAPPED
    }
    /// The sixteen octets.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let (a, b, c, d) = (
            self.w[0].to_ne_bytes(),
            self.w[1].to_ne_bytes(),
            self.w[2].to_ne_bytes(),
            self.w[3].to_ne_bytes(),
        );
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
        ]
    }
}

/// A MAC address: three half words as on the wire.
pub type Mac = [u16; 3];

/// `Mac` from its octets.
pub const fn mac(o: [u8; 6]) -> Mac {
    [
        u16::from_ne_bytes([o[0], o[1]]),
        u16::from_ne_bytes([o[2], o[3]]),
        u16::from_ne_bytes([o[4], o[5]]),
    ]
}

/// What a node's programs need to know of the node; the single entry of map `config`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeCfg {
    /// [`ABI`].
    pub abi: u32,
    /// Data-path address of this node, IPv4, as on the wire.
    pub vtep: u32,
    /// Interface index of the external VXLAN device.
    pub vxlan_ifindex: u32,
    /// UDP port of VXLAN, as on the wire, in the low half.
    pub vxlan_port: u32,
    /// The node's MAC on every network: source of what it sends, and the MAC of every task's gateway.
    pub mac: Mac,
    /// Largest inner IP packet that fits the tunnel, octets.
    pub mtu: u16,
    /// `CFG_*`.
    pub flags: u32,
    /// Address that hairpin flows (a task that reaches itself through its VIP) come from, IPv4, as on the wire.
    pub hairpin4: u32,
    /// The same for IPv6.
    pub hairpin6: Addr,
    /// First eight octets of the SHA-256 of the object whose programs are attached.
    pub object: [u32; 2],
}

/// The programs read and write the outer headers of the tunnel themselves, at the devices of the host, instead of
/// sending every packet through the host's stack to the VXLAN device and back. Not where the host transforms packets by
/// policy (IPsec): that must see them.
pub const CFG_DIRECT: u32 = 1;

/// A member balances by IPVS: what is for its backends is translated here, and what it sends to ours comes translated.
pub const CFG_EARLY: u32 = 2;

/// Key of map `services`: where a client connects to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct SvcKey {
    /// A VIP, or an address of this node (127.0.0.1 among them).
    pub addr: Addr,
    /// Network of the VIP; 0 for a published port on a node's address. Such a port may stand a second time under the
    /// network of the task that asks ([`SVC_NETWORKS`]).
    pub vni: u32,
    /// Port as on the wire; 0 with `proto` 0: every port of a VIP that has no entry of its own.
    pub port: u16,
    /// IP protocol number (6, 17).
    pub proto: u16,
}

/// Value of map `services`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SvcVal {
    /// Index of the service, given out by the log (`Service::index`).
    pub id: u32,
    /// First cell of its row in `lut`.
    pub lut_off: u32,
    /// Cells of the row, a prime; 0: no backend, the client is refused.
    pub lut_len: u32,
    /// Port of the backends as on the wire; 0: the client's own destination port.
    pub tport: u16,
    /// `SVC_*`.
    pub flags: u16,
}

/// The published port has entries of their own for tasks of some networks: a backend is asked on the network that it
/// shares with its client, since its answer to that client leaves there.
pub const SVC_NETWORKS: u16 = 1;
/// Some backends that are translated to here offer another port than `tport`: `targets` has it, under [`TARGET_HERE`].
/// So while a change of the port is under way.
pub const SVC_TARGETS: u16 = 2;

/// A cell of array `backends`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backend {
    /// IPv6 address of the endpoint, or zeros.
    pub addr6: Addr,
    /// IPv4 address of the endpoint as on the wire, or 0.
    pub addr4: u32,
    /// Data-path address of its node as on the wire; 0: on this node.
    pub vtep: u32,
    /// Host side veth, when on this node; else 0, or [`BACKEND_EARLY`].
    pub ifindex: u32,
    /// Network of the endpoint.
    pub vni: u32,
    /// MAC of the endpoint: names the backend in a packet that is translated late.
    pub mac: Mac,
    /// `BACKEND_*`.
    pub state: u16,
}

/// In place of a veth, for a backend of a node that cannot translate late (IPVS): it is translated where it enters.
pub const BACKEND_EARLY: u32 = 1;

/// Cell unused, or the backend is gone.
pub const BACKEND_GONE: u16 = 0;
/// Takes new flows.
pub const BACKEND_ACTIVE: u16 = 1;
/// Keeps established flows, takes no new ones.
pub const BACKEND_DRAINING: u16 = 2;

/// Key of map `ep_by_mac`: a local endpoint named by the MAC of a late-translated packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct EpMacKey {
    /// Network.
    pub vni: u32,
    /// Endpoint's MAC.
    pub mac: Mac,
    /// Zero.
    pub pad: u16,
}

/// Value of map `ep_by_mac`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EpMacVal {
    /// IPv6 address or zeros.
    pub addr6: Addr,
    /// IPv4 address as on the wire, or 0.
    pub addr4: u32,
    /// Host side veth.
    pub ifindex: u32,
}

/// Key of map `ep_by_addr`. Each local endpoint address stands twice: with its network, and with `vni` 0 (subnets do
/// not overlap within a cluster), for replies to a task that used a published port of another network.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct EpAddrKey {
    /// Endpoint's address.
    pub addr: Addr,
    /// Network or 0.
    pub vni: u32,
}

/// Value of map `ep_by_addr`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EpAddrVal {
    /// Host side veth.
    pub ifindex: u32,
    /// Its network (also where the key says 0).
    pub vni: u32,
    /// Endpoint's MAC.
    pub mac: Mac,
    /// Zero.
    pub pad: u16,
}

/// Value of map `ep_config`, by interface index of the host side veth: who may send what here.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EpCfg {
    /// IPv6 address or zeros.
    pub addr6: Addr,
    /// Link-local address of the task's interface.
    pub link6: Addr,
    /// IPv4 address as on the wire, or 0.
    pub addr4: u32,
    /// Network.
    pub vni: u32,
    /// Endpoint's MAC: the only source MAC accepted.
    pub mac: Mac,
    /// `EP_*`.
    pub flags: u16,
}

/// Nothing leaves the network (`--internal`).
pub const EP_INTERNAL: u16 = 1;
/// May be the target of translated flows: replies are looked up in `reverse`.
pub const EP_BACKEND: u16 = 2;
/// Has entries in `ep_extra`.
pub const EP_EXTRA: u16 = 4;

/// Key of map `ep_extra`: a further source address that an interface may use. Value: `u32` 1.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct EpExtraKey {
    /// Address.
    pub addr: Addr,
    /// Host side veth.
    pub ifindex: u32,
}

/// Key of LPM trie `routes`: `prefix_len` counts from the start of `vni` (32 + the address's prefix; an IPv4 /28 is
/// 32 + 96 + 28).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct RouteKey {
    /// Significant bits of what follows, 0-160.
    pub prefix_len: u32,
    /// Network, in network byte order (the trie compares octets).
    pub vni_be: u32,
    /// Address.
    pub addr: Addr,
}

/// Value of `routes`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RouteVal {
    /// `ROUTE_*`.
    pub kind: u32,
    /// Data-path address of the node as on the wire (`ROUTE_NODE`).
    pub vtep: u32,
    /// That node's MAC on the network.
    pub mac: Mac,
    /// Zero.
    pub pad: u16,
}

/// The subnet itself: no such address now; the sender is told "unreachable".
pub const ROUTE_NONE: u32 = 0;
/// A block (or single address) of another node.
pub const ROUTE_NODE: u32 = 1;
/// A block of this node: look in `ep_by_addr`.
pub const ROUTE_LOCAL: u32 = 2;
/// A VIP: look in `services`.
pub const ROUTE_VIP: u32 = 3;

/// Value of map `members`, by data-path address as on the wire: who may send VXLAN to us.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemberVal {
    /// Node id, low 32 bits.
    pub node: u32,
    /// Zero.
    pub flags: u32,
}

/// Key of LPM trie `pools`: the subnets of all networks; a packet from the wire with such a source is dropped. Value:
/// `u32` VNI.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct PoolKey {
    /// Significant bits of `addr`, 0-128 (IPv4: 96 + its own).
    pub prefix_len: u32,
    /// Address.
    pub addr: Addr,
}

/// A flow, as some hook sees it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Flow {
    /// Source.
    pub saddr: Addr,
    /// Destination.
    pub daddr: Addr,
    /// Source port as on the wire.
    pub sport: u16,
    /// Destination port as on the wire.
    pub dport: u16,
    /// `vni << 8 | protocol`.
    pub net_proto: u32,
}

/// Value of LRU map `affinity`, by the client's flow as the balancer sees it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AffVal {
    /// Cell of `backends`.
    pub backend: u32,
    /// Coarse seconds since boot (units of 2^30 ns).
    pub ts: u32,
}

/// Value of LRU map `reverse`, by the flow of the backend's replies (backend -> client as the backend sees it).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RevVal {
    /// Address that the client connected to.
    pub oaddr: Addr,
    /// The client's own address (differs from the key's for hairpin flows and for 127.0.0.1).
    pub caddr: Addr,
    /// Port that the client connected to, as on the wire.
    pub oport: u16,
    /// The client's own port (differs from the key's where it was rewritten, CONTRACTS "On the wire").
    pub cport: u16,
    /// Ingress node's data-path address as on the wire; 0: this node.
    pub vtep: u32,
    /// Where the client is attached: a task's host side veth; 0 with `REV_OUTSIDE` or `REV_HOST`.
    pub ifindex: u32,
    /// As in [`AffVal`].
    pub ts: u32,
    /// Destination MAC of replies.
    pub cmac: Mac,
    /// `REV_*`.
    pub flags: u16,
}

/// A task that reaches itself through its VIP: both ends translated.
pub const REV_HAIRPIN: u16 = 1;
/// The client is outside: routed by the host's tables.
pub const REV_OUTSIDE: u16 = 2;
/// The client is a process of this node.
pub const REV_HOST: u16 = 4;
/// The client's port was rewritten; `forward` holds the way in.
pub const REV_PORT: u16 = 8;

/// Key of LRU map `forward`: a flow whose client port had to be rewritten, as it arrived, and by which node.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct FwdKey {
    /// The flow as it arrived (not yet translated).
    pub flow: Flow,
    /// Ingress node as on the wire; 0: this node.
    pub vtep: u32,
}

/// Value of `forward`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FwdVal {
    /// As in [`AffVal`].
    pub ts: u32,
    /// Client port that the backend sees, as on the wire.
    pub sport: u16,
    /// Zero.
    pub pad: u16,
}

/// Key of LRU map `fragments`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct FragKey {
    /// Source.
    pub saddr: Addr,
    /// Destination.
    pub daddr: Addr,
    /// Identification, as on the wire (16 bits of IPv4, 32 of IPv6).
    pub id: u32,
    /// `vni << 8 | protocol`.
    pub net_proto: u32,
}

/// Value of `fragments`: the ports of the first fragment.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FragVal {
    /// Source port as on the wire.
    pub sport: u16,
    /// Destination port as on the wire.
    pub dport: u16,
}

/// Key of map `targets`: what an endpoint of this node offers through the mesh.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct TargetKey {
    /// Endpoint's address.
    pub addr: Addr,
    /// Its network.
    pub vni: u32,
    /// Published port (or VIP's port) as on the wire; 0 with `proto` 0: every port, for packets to a VIP alone.
    pub port: u16,
    /// IP protocol number; with [`TARGET_HERE`] for what this node's own clients asked, with [`TARGET_EARLY`] for what
    /// comes translated.
    pub proto: u16,
}

/// Beside the protocol in [`TargetKey`]: the port of a backend that is translated to here (one of this node, or
/// [`BACKEND_EARLY`]) for a client that this node balances, where it is not the service's ([`SVC_TARGETS`]). Also for
/// ports of single nodes, which nobody sends from elsewhere.
pub const TARGET_HERE: u16 = 0x100;

/// Beside the protocol in [`TargetKey`], whose port is then the endpoint's own: it is offered to packets that come
/// translated, from nodes that balance by IPVS.
pub const TARGET_EARLY: u16 = 0x200;

/// Value of map `targets`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TargetVal {
    /// Port of the endpoint as on the wire; 0: unchanged.
    pub tport: u16,
    /// Zero.
    pub flags: u16,
}

/// Cell of array `bursts`: when a packet of several segments last came through the tunnel from that UDP source port, as
/// in [`AffVal::ts`].
pub type BurstVal = u32;

macro_rules! counters {
    ($($name:ident = $n:literal, $text:literal;)*) => {
        $(#[doc = $text] pub const $name: u32 = $n;)*
        /// Name of each counter, as metrics and status print it; drops begin with `drop_`.
        pub const COUNTERS: &[(u32, &str)] = &[$(($n, $text)),*];
    };
}

counters! {
    C_TO_LOCAL = 0, "service_to_local_backend";
    C_TO_REMOTE = 1, "service_to_remote_backend";
    C_OVERLAY_PLAIN = 2, "overlay_delivered";
    C_OVERLAY_SERVICE = 3, "overlay_service_delivered";
    C_OVERLAY_RETURN = 4, "overlay_returned_to_client";
    C_EP_REPLY = 5, "endpoint_reply_translated";
    C_EP_SERVICE = 6, "endpoint_to_service";
    C_EP_ROUTED = 7, "endpoint_to_node";
    C_EP_OUTSIDE = 8, "endpoint_to_outside";
    C_REVERSE_NEW = 9, "reverse_entries_made";
    C_PORT_REWRITTEN = 10, "client_ports_rewritten";
    C_ICMP_TRANSLATED = 11, "icmp_errors_translated";
    C_TOO_BIG = 12, "packet_too_big_answers";
    C_REFUSED = 13, "refused_without_backend";
    C_FRAGMENTS = 14, "first_fragments_seen";
    C_NEIGHBOUR = 15, "neighbour_answers";
    C_VIP_PING = 16, "vip_echo_answers";
    C_EARLY = 17, "service_translated_early";
    C_EARLY_RETURN = 18, "overlay_return_translated";
    C_OVERLAY_EARLY = 19, "overlay_translated_delivered";
    D_NOT_MEMBER = 32, "drop_vxlan_from_stranger";
    D_SPOOF = 33, "drop_task_source_not_its_own";
    D_SPOOF_MEMBER = 34, "drop_inner_source_not_of_that_node";
    D_SPOOF_WIRE = 35, "drop_pool_source_from_wire";
    D_NO_ENDPOINT = 36, "drop_no_such_endpoint";
    D_NO_TARGET = 37, "drop_no_such_target";
    D_MALFORMED = 38, "drop_malformed";
    D_NO_ROUTE = 39, "drop_no_route_in_network";
    D_INTERNAL = 40, "drop_internal_network";
    D_METADATA = 41, "drop_metadata_address";
    D_NO_PORT = 42, "drop_no_free_client_port";
    D_CHECKSUM = 43, "drop_checksum_update_failed";
    D_TUNNEL = 44, "drop_tunnel_key_failed";
}

/// Cells of the counter array.
pub const COUNTER_CELLS: u32 = 64;

/// Default sizes of the maps, entries. User space may raise them when it makes the maps.
pub mod size {
    /// `services`.
    pub const SERVICES: u32 = 65_536;
    /// `backends`.
    pub const BACKENDS: u32 = 65_536;
    /// `lut`, cells of 4 octets (mapped into user space; the kernel gives each cell 8).
    pub const LUT: u32 = 4 << 20;
    /// Endpoint maps.
    pub const ENDPOINTS: u32 = 16_384;
    /// `routes`.
    pub const ROUTES: u32 = 131_072;
    /// `members`.
    pub const MEMBERS: u32 = 16_384;
    /// `pools`.
    pub const POOLS: u32 = 8_192;
    /// `affinity`, `reverse`.
    pub const FLOWS: u32 = 262_144;
    /// `forward`.
    pub const REWRITTEN: u32 = 65_536;
    /// `fragments`.
    pub const FRAGMENTS: u32 = 8_192;
    /// `targets`.
    pub const TARGETS: u32 = 65_536;
    /// `bursts`: a cell for each UDP source port of the tunnel.
    pub const BURSTS: u32 = 65_536;
}

/// Octets of every layout, checked at compile time: a change of layout is a change of [`ABI`].
const _: () = {
    assert!(size_of::<NodeCfg>() == 56);
    assert!(size_of::<SvcKey>() == 24 && size_of::<SvcVal>() == 16);
    assert!(size_of::<Backend>() == 40);
    assert!(size_of::<EpMacKey>() == 12 && size_of::<EpMacVal>() == 24);
    assert!(size_of::<EpAddrKey>() == 20 && size_of::<EpAddrVal>() == 16);
    assert!(size_of::<EpCfg>() == 48 && size_of::<EpExtraKey>() == 20);
    assert!(size_of::<RouteKey>() == 24 && size_of::<RouteVal>() == 16);
    assert!(size_of::<MemberVal>() == 8 && size_of::<PoolKey>() == 20);
    assert!(size_of::<Flow>() == 40 && size_of::<AffVal>() == 8);
    assert!(size_of::<RevVal>() == 56);
    assert!(size_of::<FwdKey>() == 44 && size_of::<FwdVal>() == 8);
    assert!(size_of::<FragKey>() == 40 && size_of::<FragVal>() == 4);
    assert!(size_of::<TargetKey>() == 24 && size_of::<TargetVal>() == 4);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_cells_of_their_own() {
        for (i, (n, name)) in COUNTERS.iter().enumerate() {
            assert!(*n < COUNTER_CELLS, "{name}");
            assert!(COUNTERS[..i].iter().all(|(m, _)| m != n), "{name}");
        }
    }

    #[test]
    fn v4_is_mapped() {
        let a = Addr::v4([198, 18, 0, 1]);
        assert!(a.is_v4());
        assert_eq!(a.octets()[10..], [0xff, 0xff, 198, 18, 0, 1]);
        assert_eq!(Addr::v6(a.octets()), a);
    }
}
