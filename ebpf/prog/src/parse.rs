//! What a packet is: addresses, ports, fragment, options. IPv4 and IPv6 in one shape.

use ebpf_abi::{Addr, C_FRAGMENTS, Flow, FragKey, FragVal};

use crate::{
    count::count,
    maps::FRAGMENTS,
    skb::{ETH, Skb},
};

pub(crate) const TCP: u32 = 6;
pub(crate) const UDP: u32 = 17;
pub(crate) const ICMP: u32 = 1;
pub(crate) const ICMPV6: u32 = 58;

/// Ethernet protocols, as on the wire.
pub(crate) const IPV4: u16 = 0x0800_u16.to_be();
pub(crate) const IPV6: u16 = 0x86dd_u16.to_be();
/// Ethernet protocol of ARP, as on the wire.
pub(crate) const ARP: u16 = 0x0806_u16.to_be();

/// Octets that hold every header of the usual packet: Ethernet, IPv6, TCP without options.
const HEADS: usize = ETH + 40 + 20;
/// IPv6 extension headers followed before a packet counts as something without ports.
const MAX_EXTENSIONS: u32 = 6;

/// A packet, parsed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Packet {
    /// Addresses, ports (0 where there are none), network and protocol.
    pub(crate) flow: Flow,
    /// Offset of the transport header.
    pub(crate) l4: u32,
    /// Ethernet protocol as on the wire.
    pub(crate) ethertype: u16,
    /// IPv6.
    pub(crate) v6: bool,
    /// TCP with SYN and without ACK.
    pub(crate) syn: bool,
    /// May not be fragmented on its way (IPv4 DF; IPv6 always).
    pub(crate) df: bool,
    /// Not the first fragment: has no transport header.
    pub(crate) later: bool,
}

impl Packet {
    /// IP protocol.
    #[inline(always)]
    pub(crate) fn proto(&self) -> u32 {
        self.flow.net_proto & 0xff
    }

    /// Protocol and family, as `fib::route` takes them.
    #[inline(always)]
    pub(crate) fn kind(&self) -> u32 {
        self.proto() | if self.v6 { crate::fib::V6 } else { 0 }
    }
}

/// What [`parse`] saw.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// TCP or UDP with ports.
    Ports,
    /// ICMP or ICMPv6, the header at `l4`.
    Icmp,
    /// IP without ports that we know: another protocol, or a fragment whose first was not seen.
    Plain,
    /// No IP.
    NotIp,
    /// Shorter than it says.
    Bad,
}

/// Whether two addresses are the same, without a call to memcmp.
#[inline(always)]
pub(crate) fn same(a: &Addr, b: &Addr) -> bool {
    (a.w[0] ^ b.w[0]) | (a.w[1] ^ b.w[1]) | (a.w[2] ^ b.w[2]) | (a.w[3] ^ b.w[3]) == 0
}

/// The address of the packet's family out of a pair.
#[inline(always)]
pub(crate) fn of_family(v6: bool, addr4: u32, addr6: &Addr) -> Addr {
    if v6 { *addr6 } else { Addr::v4_word(addr4) }
}

/// Reads the headers; `vni` goes into the flow.
#[inline(always)]
pub(crate) fn parse(skb: Skb, vni: u32, p: &mut Packet) -> Seen {
    let linear = skb.linear();
    if linear < HEADS && (linear as u32) < skb.len() {
        let want = if skb.len() < HEADS as u32 {
            skb.len()
        } else {
            HEADS as u32
        };
        if !skb.pull(want) {
            return Seen::Bad;
        }
    }
    let Some(ethertype) = skb.at::<u16>(12) else {
        return Seen::Bad;
    };
    // SAFETY: within the packet, by `at`; so are all reads below.
    p.ethertype = unsafe { *ethertype };
    let proto;
    let fragment;
    if p.ethertype == IPV4 {
        let Some(ip) = skb.at::<[u32; 5]>(ETH) else {
            return Seen::Bad;
        };
        // SAFETY: see above.
        let (w0, w1, w2, saddr, daddr) = unsafe { ((*ip)[0], (*ip)[1], (*ip)[2], (*ip)[3], (*ip)[4]) };
        let hl = (u32::from_be(w0) >> 24 & 15) * 4;
        if hl < 20 {
            return Seen::Bad;
        }
        p.v6 = false;
        p.l4 = ETH as u32 + hl;
        proto = u32::from_be(w2) >> 16 & 0xff;
        p.flow.saddr = Addr::v4_word(saddr);
        p.flow.daddr = Addr::v4_word(daddr);
        let w1 = u32::from_be(w1);
        p.df = w1 & 0x4000 != 0;
        p.later = w1 & 0x1fff != 0;
        fragment = if w1 & 0x3fff != 0 { Some(w1 >> 16) } else { None };
    } else if p.ethertype == IPV6 {
        let Some(ip) = skb.at::<[u32; 10]>(ETH) else {
            return Seen::Bad;
        };
        // SAFETY: see above.
        let ip = unsafe { &*ip };
        p.v6 = true;
        p.df = true;
        p.later = false;
        p.flow.saddr = Addr {
            w: [ip[2], ip[3], ip[4], ip[5]],
        };
        p.flow.daddr = Addr {
            w: [ip[6], ip[7], ip[8], ip[9]],
        };
        let next = u32::from_be(ip[1]) >> 8 & 0xff;
        p.l4 = ETH as u32 + 40;
        if next == TCP || next == UDP || next == ICMPV6 {
            proto = next;
            fragment = None;
        } else {
            let mut w = Walk {
                next,
                l4: p.l4,
                id: 0,
                fragmented: 0,
                later: 0,
            };
            if !extensions(skb, &mut w) {
                p.flow.net_proto = vni << 8 | w.next;
                return Seen::Plain;
            }
            p.l4 = w.l4;
            p.later = w.later != 0;
            proto = w.next;
            fragment = if w.fragmented != 0 { Some(w.id) } else { None };
        }
    } else {
        return Seen::NotIp;
    }
    p.flow.net_proto = vni << 8 | proto;
    if proto != TCP && proto != UDP {
        let icmp = proto == if p.v6 { ICMPV6 } else { ICMP };
        return if icmp && !p.later { Seen::Icmp } else { Seen::Plain };
    }
    if let Some(id) = fragment {
        if p.later {
            return if later_ports(&mut p.flow, id) {
                Seen::Ports
            } else {
                Seen::Plain
            };
        }
    }
    if !transport(skb, p, proto) {
        // Options or extension headers pushed the transport header out of the linear part.
        let want = if skb.len() < p.l4 + 20 { skb.len() } else { p.l4 + 20 };
        if !skb.pull(want) || !transport(skb, p, proto) {
            return Seen::Bad;
        }
    }
    if let Some(id) = fragment {
        first_fragment(&p.flow, id);
    }
    Seen::Ports
}

/// Ports and, for TCP, the SYN flag.
#[inline(always)]
fn transport(skb: Skb, p: &mut Packet, proto: u32) -> bool {
    if proto == TCP {
        let Some(l4) = skb.at_l4::<[u16; 10]>(p.l4) else {
            return false;
        };
        // SAFETY: within the packet.
        let (sport, dport, flags) = unsafe { ((*l4)[0], (*l4)[1], (*l4)[6]) };
        (p.flow.sport, p.flow.dport) = (sport, dport);
        p.syn = u16::from_be(flags) & 0x12 == 2;
    } else {
        let Some(l4) = skb.at_l4::<[u16; 4]>(p.l4) else {
            return false;
        };
        // SAFETY: within the packet.
        let (sport, dport) = unsafe { ((*l4)[0], (*l4)[1]) };
        (p.flow.sport, p.flow.dport) = (sport, dport);
        p.syn = false;
    }
    true
}

/// State of the walk along extension headers.
struct Walk {
    next: u32,
    l4: u32,
    id: u32,
    fragmented: u32,
    later: u32,
}

/// Follows IPv6 extension headers (RFC 8200 4) to a transport header; false: there is none that we know.
#[inline(never)]
fn extensions(skb: Skb, w: &mut Walk) -> bool {
    let mut n = 0;
    while n < MAX_EXTENSIONS {
        n += 1;
        let mut h = [0u8; 8];
        match w.next {
            TCP | UDP | ICMPV6 => return true,
            // Hop-by-hop, routing, destination options: length in units of 8 octets, the first not counted.
            0 | 43 | 60 => {
                if !skb.load(w.l4, &mut h) {
                    return false;
                }
                w.l4 += 8 + u32::from(h[1]) * 8;
            }
            44 => {
                if !skb.load(w.l4, &mut h) {
                    return false;
                }
                w.l4 += 8;
                w.fragmented = 1;
                w.id = u32::from_ne_bytes([h[4], h[5], h[6], h[7]]);
                if u16::from_be_bytes([h[2], h[3]]) & 0xfff8 != 0 {
                    w.later = 1;
                    w.next = u32::from(h[0]);
                    return true;
                }
            }
            _ => return false,
        }
        w.next = u32::from(h[0]);
        // Beyond what `Skb::at_l4` reaches with a TCP header.
        if w.l4 > 0x1ff - 20 {
            return false;
        }
    }
    matches!(w.next, TCP | UDP | ICMPV6)
}

#[inline(always)]
fn frag_key(f: &Flow, id: u32) -> FragKey {
    FragKey {
        saddr: f.saddr,
        daddr: f.daddr,
        id,
        net_proto: f.net_proto,
    }
}

/// The ports of a later fragment, if its first was seen.
#[inline(never)]
fn later_ports(f: &mut Flow, id: u32) -> bool {
    let Some(v) = FRAGMENTS.get_ptr(frag_key(f, id)) else {
        return false;
    };
    // SAFETY: an entry of an LRU map stays readable during the run.
    unsafe { (f.sport, f.dport) = ((*v).sport, (*v).dport) };
    true
}

/// Remembers the ports of a first fragment.
#[inline(never)]
fn first_fragment(f: &Flow, id: u32) {
    count(C_FRAGMENTS);
    let _ = FRAGMENTS.insert(
        frag_key(f, id),
        FragVal {
            sport: f.sport,
            dport: f.dport,
        },
        0,
    );
}
