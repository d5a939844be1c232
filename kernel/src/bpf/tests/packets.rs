//! Packets by hand, with right checksums, and the check that they are right.

use std::net::{IpAddr, SocketAddr};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 0x10;

/// What to build.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) dst_mac: [u8; 6],
    pub(super) src_mac: [u8; 6],
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) proto: u8,
    /// TCP flags.
    pub(super) flags: u8,
    pub(super) payload: usize,
    /// IPv4: octets of options (multiple of 4). IPv6: octets of a destination options header (multiple of 8).
    pub(super) options: usize,
    /// Offset in octets (multiple of 8), more follow.
    pub(super) fragment: Option<(u16, bool)>,
    /// UDP without a checksum.
    pub(super) bare: bool,
    pub(super) dont_fragment: bool,
}

impl Spec {
    pub(super) fn new(proto: u8, from: &str, to: &str) -> Self {
        Spec {
            dst_mac: [2, 0, 0, 0, 0, 1],
            src_mac: [2, 0, 0, 0, 0, 2],
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            proto,
            flags: SYN,
            payload: 32,
            options: 0,
            fragment: None,
            bare: false,
            dont_fragment: true,
        }
    }

    /// The transport header and payload of the whole datagram, summed.
    fn transport(&self) -> Vec<u8> {
        let mut t = Vec::new();
        t.extend(self.from.port().to_be_bytes());
        t.extend(self.to.port().to_be_bytes());
        if self.proto == TCP {
            t.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            t.extend(((8 + self.payload) as u16).to_be_bytes());
            t.extend([0, 0]);
        }
        t.extend((0..self.payload).map(|i| (i * 31) as u8));
        if !self.bare {
            let at = if self.proto == TCP { 16 } else { 6 };
            let sum = checksum(&t, pseudo(self.from.ip(), self.to.ip(), self.proto, t.len()));
            t[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        t
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let mut payload = self.transport();
        let mut more = 0;
        if let Some((offset, follows)) = self.fragment {
            // A fragment of 64 octets, or what is left.
            payload = payload.split_off(offset.into());
            if follows {
                payload.truncate(64);
                more = 1;
            }
        }
        let mut p = [self.dst_mac, self.src_mac].concat();
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                p.extend([8, 0]);
                let hl = 20 + self.options;
                let field = self
                    .fragment
                    .map_or(u16::from(self.dont_fragment) << 14, |(o, _)| (more << 13) | (o / 8));
                let mut ip = vec![0x40 | (hl / 4) as u8, 0];
                ip.extend(((hl + payload.len()) as u16).to_be_bytes());
                ip.extend([0x12, 0x34]);
                ip.extend(field.to_be_bytes());
                ip.extend([64, self.proto, 0, 0]);
                ip.extend(s.octets());
                ip.extend(d.octets());
                ip.extend(vec![1; self.options]);
                let sum = checksum(&ip, 0);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                p.extend(ip);
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                p.extend([0x86, 0xdd]);
                let mut headers = Vec::new();
                let mut next = self.proto;
                if let Some((offset, _)) = self.fragment {
                    headers.extend([next, 0]);
                    headers.extend((offset | more).to_be_bytes());
                    headers.extend([9, 8, 7, 6]);
                    next = 44;
                }
                if self.options > 0 {
                    let mut options = vec![0; self.options];
                    options[..4].copy_from_slice(&[next, (self.options / 8 - 1) as u8, 1, (self.options - 4) as u8]);
                    headers = [options, headers].concat();
                    next = 60;
                }
                p.extend([0x60, 0, 0, 0]);
                p.extend(((headers.len() + payload.len()) as u16).to_be_bytes());
                p.extend([next, 64]);
                p.extend(s.octets());
                p.extend(d.octets());
                p.extend(headers);
            }
            _ => panic!("one family"),
        }
        p.extend(payload);
        p
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)))
        .sum()
}

pub(super) fn checksum(bytes: &[u8], seed: u32) -> u16 {
    let mut s = seed + sum(bytes);
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    !(s as u16)
}

pub(super) fn pseudo(s: IpAddr, d: IpAddr, proto: u8, len: usize) -> u32 {
    let ends = match (s, d) {
        (IpAddr::V4(s), IpAddr::V4(d)) => sum(&s.octets()) + sum(&d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => sum(&s.octets()) + sum(&d.octets()),
        _ => panic!("one family"),
    };
    ends + u32::from(proto) + len as u32
}

/// What a packet is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Read {
    pub(super) dst_mac: [u8; 6],
    pub(super) src_mac: [u8; 6],
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) proto: u8,
    /// From the transport header on.
    pub(super) rest: Vec<u8>,
}

impl Read {
    /// Reads a packet without extension headers and checks every checksum.
    pub(super) fn new(p: &[u8]) -> Read {
        let (src, dst, proto, rest): (IpAddr, IpAddr, u8, &[u8]) = match p[12..14] {
            [8, 0] => {
                let hl = usize::from(p[14] & 15) * 4;
                assert_eq!(checksum(&p[14..14 + hl], 0), 0, "IPv4 header checksum");
                let len = usize::from(u16::from_be_bytes([p[16], p[17]]));
                assert_eq!(p.len(), 14 + len, "IPv4 length");
                let (s, d): ([u8; 4], [u8; 4]) = (p[26..30].try_into().unwrap(), p[30..34].try_into().unwrap());
                (s.into(), d.into(), p[23], &p[14 + hl..])
            }
            [0x86, 0xdd] => {
                let len = usize::from(u16::from_be_bytes([p[18], p[19]]));
                assert_eq!(p.len(), 54 + len, "IPv6 length");
                let (s, d): ([u8; 16], [u8; 16]) = (p[22..38].try_into().unwrap(), p[38..54].try_into().unwrap());
                let (mut next, mut at) = (p[20], 54);
                while next == 60 {
                    next = p[at];
                    at += 8 + usize::from(p[at + 1]) * 8;
                }
                (s.into(), d.into(), next, &p[at..])
            }
            ref other => panic!("ethertype {other:x?}"),
        };
        let bare = proto == UDP && rest[6..8] == [0, 0];
        if matches!(proto, TCP | UDP | 58) && !bare {
            assert_eq!(
                checksum(rest, pseudo(src, dst, proto, rest.len())),
                0,
                "transport checksum"
            );
        } else if proto == 1 {
            assert_eq!(checksum(rest, 0), 0, "ICMP checksum");
        }
        Read {
            dst_mac: p[..6].try_into().unwrap(),
            src_mac: p[6..12].try_into().unwrap(),
            src,
            dst,
            proto,
            rest: rest.to_vec(),
        }
    }

    pub(super) fn ports(&self) -> (u16, u16) {
        (
            u16::from_be_bytes([self.rest[0], self.rest[1]]),
            u16::from_be_bytes([self.rest[2], self.rest[3]]),
        )
    }

    /// Both ends, for TCP and UDP.
    pub(super) fn ends(&self) -> (SocketAddr, SocketAddr) {
        let (s, d) = self.ports();
        (SocketAddr::new(self.src, s), SocketAddr::new(self.dst, d))
    }
}
