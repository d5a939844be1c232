//! Names and marks of netd's objects in the kernel (DESIGN, Names of things in the kernel).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use model::{EndpointId, Mac, Vni};

/// The external VXLAN device.
pub const VXLAN: &str = "nx0";
/// What the name of each endpoint's host side begins with; the packet filter knows tasks' devices by it.
pub const VETH_PREFIX: &str = "nv";
/// What every alias of ours begins with.
pub const MARK: &str = "netd:";
/// Alias of [`VXLAN`].
pub const VXLAN_ALIAS: &str = "netd:vxlan:nx0";
/// A task's IPv4 gateway: link-local (RFC 3927), so no network's.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// A task's IPv6 gateway.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Priority of the rules of tasks with several networks: before `main` (32766), after `local` (0).
pub const RULE_PRIORITY: u32 = 1100;
/// Tables of tasks with several networks: this and the VNI (24 bits).
const TABLE: u32 = 0x6e00_0000;

/// The gateway of an address' family.
pub fn gateway(family_of: IpAddr) -> IpAddr {
    if family_of.is_ipv4() {
        GATEWAY4.into()
    } else {
        GATEWAY6.into()
    }
}

/// Routing table, within a task, of a network that is not its first.
pub fn table(vni: Vni) -> u32 {
    TABLE | vni.get()
}

/// Host side device of an endpoint: `nv` and ten hexadecimal digits (FNV-1a of the id, folded to 40 bits), 12 of the 15
/// octets that a name may have. Two of 16,384 endpoints share a name once in 8,000 nodes; then the second is refused.
pub fn veth(id: &EndpointId) -> String {
    // FNV-1a, 64 bits (draft-eastlake-fnv): fixed for ever, unlike the standard library's hashes.
    let hash = id.as_str().bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{VETH_PREFIX}{:010x}", (hash ^ (hash >> 40)) & 0xff_ffff_ffff)
}

/// Alias of an endpoint's devices.
pub fn endpoint_alias(id: &EndpointId) -> String {
    format!("{MARK}ep:{id}")
}

/// The endpoint that an alias names.
pub fn endpoint_of(alias: &str) -> Option<EndpointId> {
    alias.strip_prefix(MARK)?.strip_prefix("ep:")?.parse().ok()
}

/// What the file name of each sandbox begins with; its VNI follows.
const SANDBOX: &str = "net-";

/// Where a network's sandbox is found, in the folder of the sandboxes.
pub fn sandbox(folder: &Path, vni: Vni) -> PathBuf {
    folder.join(format!("{SANDBOX}{vni}"))
}

/// The network whose sandbox a file is by its name.
pub fn sandbox_of(path: &Path) -> Option<Vni> {
    let number = path.file_name()?.to_str()?.strip_prefix(SANDBOX)?;
    let vni = Vni::try_from(number.parse::<u32>().ok()?).ok()?;
    (vni.to_string() == number).then_some(vni)
}

/// Alias of a sandbox's `lo`, and of both ends of the veth between it and the host.
pub fn sandbox_alias(vni: Vni) -> String {
    format!("{MARK}net:{vni}")
}

/// Whether an alias is one of those.
pub(crate) fn is_sandbox(alias: &str) -> bool {
    alias.strip_prefix(MARK).is_some_and(|rest| rest.starts_with("net:"))
}

/// VXLAN device of a network, in its sandbox.
pub fn tunnel(vni: Vni) -> String {
    format!("nx{vni}")
}

/// The network whose [`tunnel`] has this name.
pub fn network_of_tunnel(name: &str) -> Option<Vni> {
    let vni = Vni::try_from(name.strip_prefix("nx")?.parse::<u32>().ok()?).ok()?;
    (tunnel(vni) == name).then_some(vni)
}

/// Alias of [`tunnel`].
pub fn tunnel_alias(vni: Vni) -> String {
    format!("{MARK}vxlan:{vni}")
}

/// What the names of the host's ends of the veths to sandboxes begin with.
pub const HOST_PREFIX: &str = "nvh";

/// The host's end of the veth between it and a sandbox.
pub fn host_end(vni: Vni) -> String {
    format!("{HOST_PREFIX}{vni}")
}

/// The sandbox's end of it.
pub const SANDBOX_END: &str = "nvup";

/// The link-local address that belongs to a MAC (RFC 4291 2.5.6, modified EUI-64).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let word = |x: u8, y: u8| u16::from_be_bytes([x, y]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        word(a ^ 2, b),
        word(c, 0xff),
        word(0xfe, d),
        word(e, f),
    )
}

/// Whether an alias is ours.
pub fn is_ours(alias: Option<&str>) -> bool {
    alias.is_some_and(|a| a.starts_with(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_stay() {
        let id: EndpointId = "web.1".parse().unwrap();
        assert_eq!(veth(&id).len(), 12);
        assert_eq!(veth(&id), veth(&id));
        assert_ne!(veth(&id), veth(&"web.2".parse().unwrap()));
        assert_eq!(endpoint_of(&endpoint_alias(&id)), Some(id));
        assert_eq!(endpoint_of("netd:vxlan:nx0"), None);
        assert_eq!(endpoint_of("netd:ep:../x"), None);
        let vni = Vni::try_from(16_777_215).unwrap();
        let path = sandbox(Path::new("/run/netd/netns"), vni);
        assert_eq!(
            (tunnel(vni).as_str(), host_end(vni).as_str()),
            ("nx16777215", "nvh16777215")
        );
        assert_eq!(sandbox_of(&path), Some(vni));
        for other in ["net-", "net-x", "net-007", "net-16777216", "web.1"] {
            assert_eq!(sandbox_of(Path::new(other)), None, "{other}");
        }
        assert!(is_ours(Some(VXLAN_ALIAS)) && !is_ours(Some("net")) && !is_ours(None));
    }
}
