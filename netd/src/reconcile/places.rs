//! Where a data path is in the kernel, told so that other tools can be pointed at it.

use std::{collections::BTreeMap, path::Path};

use kernel::firewall::Kind;
use mesh::ipvs::Table;
use model::{Vni, api::KernelPlace, spec::Kept};
use overlay::names;

/// Where the data path of this node is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// In the host's namespace; none: nothing is there yet.
    pub host: Option<KernelPlace>,
    /// By network.
    pub networks: BTreeMap<Vni, KernelPlace>,
}

/// Published ports of the IPVS data path.
pub(super) fn ipvs_host(kind: Kind) -> KernelPlace {
    KernelPlace {
        rules: rules(kind),
        look: look(kind, ""),
        ..KernelPlace::default()
    }
}

/// A network's sandbox.
pub(super) fn ipvs_network(folder: &Path, vni: Vni, kind: Kind, table: Option<&Table>) -> KernelPlace {
    let path = names::sandbox(folder, vni).display().to_string();
    let enter = format!("nsenter --net={path} ");
    let kept = |t: &Table| Kept {
        tcp_s: t.timeouts.tcp,
        tcp_fin_s: t.timeouts.tcp_fin,
        udp_s: t.timeouts.udp,
    };
    let devices = [
        (names::tunnel(vni), "to the other nodes: VXLAN".to_owned()),
        (
            names::SANDBOX_END.to_owned(),
            format!("to the host: the other end is {} there", names::host_end(vni)),
        ),
        (
            format!("{}*", names::VETH_PREFIX),
            "to its tasks on this node, one each".to_owned(),
        ),
    ];
    KernelPlace {
        devices: devices.into(),
        rules: format!(
            "IPVS services by mark, marks by {}; who may send, and where replies go, by filters at the devices",
            rules(kind)
        ),
        kept: table.map(kept),
        look: [format!("{enter}ipvsadm -Ln")]
            .into_iter()
            .chain(look(kind, &enter))
            .chain([format!("{enter}tc -s filter show dev {} ingress", names::tunnel(vni))])
            .collect(),
        namespace: Some(path),
    }
}

/// What the eBPF data path has: one device and one set of maps for all networks.
pub(super) fn ebpf(bpffs: &Path) -> KernelPlace {
    let folder = bpffs.display();
    KernelPlace {
        devices: [(
            names::VXLAN.to_owned(),
            "to the other nodes: VXLAN of all networks".to_owned(),
        )]
        .into(),
        rules: format!("programs and maps below {folder}, on the devices of the host and the tasks"),
        look: vec![
            format!("bpftool map dump pinned {folder}/map_services"),
            "ip -details link show nx0".to_owned(),
        ],
        ..KernelPlace::default()
    }
}

fn rules(kind: Kind) -> String {
    match kind {
        Kind::Nftables => "nf_tables, table inet netd".to_owned(),
        Kind::Iptables => {
            "iptables-legacy and ip6tables-legacy, chains NETD-* of the tables raw, mangle, nat and filter".to_owned()
        }
    }
}

/// Each namespace has rules of both families, whatever its network has.
fn look(kind: Kind, enter: &str) -> Vec<String> {
    let commands: &[&str] = match kind {
        Kind::Nftables => &["nft list table inet netd"],
        Kind::Iptables => &["iptables-legacy-save", "ip6tables-legacy-save"],
    };
    commands.iter().map(|c| format!("{enter}{c}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_found_by_what_is_told() {
        let vni = Vni::try_from(4097).unwrap();
        let table = Table::default();
        let place = ipvs_network(Path::new("/run/netd/netns"), vni, Kind::Iptables, Some(&table));
        assert_eq!(place.namespace.as_deref(), Some("/run/netd/netns/net-4097"));
        assert_eq!(
            place.look,
            [
                "nsenter --net=/run/netd/netns/net-4097 ipvsadm -Ln",
                "nsenter --net=/run/netd/netns/net-4097 iptables-legacy-save",
                "nsenter --net=/run/netd/netns/net-4097 ip6tables-legacy-save",
                "nsenter --net=/run/netd/netns/net-4097 tc -s filter show dev nx4097 ingress"
            ]
        );
        let devices: Vec<&str> = place.devices.keys().map(String::as_str).collect();
        assert_eq!(devices, ["nv*", "nvup", "nx4097"]);
        assert!(place.devices["nvup"].contains("nvh4097"));
        assert_eq!(
            place.kept.map(|k| (k.tcp_s, k.tcp_fin_s, k.udp_s)),
            Some((900, 120, 300))
        );
        let host = ipvs_host(Kind::Iptables);
        assert_eq!(host.look, ["iptables-legacy-save", "ip6tables-legacy-save"]);
        let host = ipvs_host(Kind::Nftables);
        assert_eq!(
            (host.namespace, host.look),
            (None, vec!["nft list table inet netd".to_owned()])
        );
        assert!(ebpf(Path::new("/sys/fs/bpf/netd")).look[0].ends_with(" /sys/fs/bpf/netd/map_services"));
    }
}
