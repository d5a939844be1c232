use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Why a subnet cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Prefix too short or too long.
    #[error("its prefix is not between /{min} and /{max}")]
    Prefix {
        /// Shortest allowed.
        min: u8,
        /// Longest allowed.
        max: u8,
    },
    /// Bits are set behind the prefix.
    #[error("it has host bits set: the subnet is {0}")]
    HostBits(IpNet),
    /// Not for workloads: loopback, link-local, multicast, unspecified, broadcast.
    #[error("{0} is reserved")]
    Reserved(IpNet),
}

/// Blocks of IPv4 that mean something else everywhere (RFC 6890, RFC 5771).
const RESERVED4: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The same of IPv6 (RFC 6890, RFC 4291): what is not unicast, link-local, IPv4-mapped, NAT64.
const RESERVED6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 8),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// Whether two subnets of one family share an address.
fn overlap4(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn overlap6(a: Ipv6Net, b: Ipv6Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Checks the form of an IPv4 subnet: prefix `min..=max`, no host bits, not reserved.
pub fn check_v4(n: Ipv4Net, min: u8, max: u8) -> Result<(), SubnetError> {
    if !(min..=max).contains(&n.prefix_len()) {
        return Err(SubnetError::Prefix { min, max });
    }
    if n.trunc() != n {
        return Err(SubnetError::HostBits(n.trunc().into()));
    }
    for r in RESERVED4.map(|(a, p)| Ipv4Net::new_assert(a, p)) {
        if overlap4(n, r) {
            return Err(SubnetError::Reserved(r.into()));
        }
    }
    Ok(())
}

/// Checks the form of an IPv6 subnet.
pub fn check_v6(n: Ipv6Net, min: u8, max: u8) -> Result<(), SubnetError> {
    if !(min..=max).contains(&n.prefix_len()) {
        return Err(SubnetError::Prefix { min, max });
    }
    if n.trunc() != n {
        return Err(SubnetError::HostBits(n.trunc().into()));
    }
    for r in RESERVED6.map(|(a, p)| Ipv6Net::new_assert(a, p)) {
        if overlap6(n, r) {
            return Err(SubnetError::Reserved(r.into()));
        }
    }
    Ok(())
}

/// The next free slice of a pool with prefix length `mask` (or the whole pool, if it is smaller), counted in a circle from
/// slice `from`, that touches none of `taken`. Also tells the slice after it.
pub fn pick_v4(pool: Ipv4Net, mask: u8, from: u32, taken: &[Ipv4Net]) -> Option<(Ipv4Net, u32)> {
    let prefix = mask.clamp(pool.prefix_len(), 32);
    let slices = 1u32.checked_shl(u32::from(prefix - pool.prefix_len()))?;
    (0..slices).find_map(|i| {
        let at = (from % slices + i) % slices;
        let base = u32::from(pool.network()).checked_add(at.checked_shl(32 - u32::from(prefix))?)?;
        let net = Ipv4Net::new(base.into(), prefix).ok()?;
        (!taken.iter().any(|t| overlap4(*t, net))).then_some((net, (at + 1) % slices))
    })
}

/// The next free /64 of a ULA prefix (/48: 65,536 of them), as [`pick_v4`].
pub fn pick_v6(ula: Ipv6Net, from: u32, taken: &[Ipv6Net]) -> Option<(Ipv6Net, u32)> {
    let bits = 64u8.checked_sub(ula.prefix_len())?.min(16);
    let slices = 1u32 << bits;
    (0..slices).find_map(|i| {
        let at = (from % slices + i) % slices;
        let base = u128::from(ula.network()) | (u128::from(at) << 64);
        let net = Ipv6Net::new(base.into(), 64).ok()?;
        (!taken.iter().any(|t| overlap6(*t, net))).then_some((net, (at + 1) % slices))
    })
}
