//! Over which underlay nodes reach each other. Tunnels of both families would need addresses of both on each node; one
//! address a node is told, so nodes of two families are apart, and say so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::{Intent, NodeRow, row::Datapath};

use super::{Here, node_row};
use crate::gossip::Facts;

/// Nodes that are named one by one.
const NAMED: usize = 3;

/// Where VXLAN to a node goes to.
///
/// # Errors
/// From here it does not: why, and what to try.
pub(super) fn way(here: &Here, to: &NodeRow) -> Result<IpAddr, (String, &'static str)> {
    let there = to.datapath_addr;
    match (here.datapath, here.vtep.is_ipv4() == there.is_ipv4()) {
        (Datapath::Ebpf, _) if there.is_ipv6() => Err((
            format!("its data-path address {there} is IPv6, and this node's data path, eBPF, sends to IPv4 alone"),
            "an IPv4 [datapath] address there, or datapath.mode = \"ipvs\" and an IPv6 address here",
        )),
        (_, false) => Err((
            format!("its data-path address is {there}, and this node's {}", here.vtep),
            "[datapath] address of one family on all nodes",
        )),
        (_, true) => Ok(there),
    }
}

/// What is to be told of members that this node's tunnels do not lead to. Their blocks are unreachable here, and their
/// endpoints no backends.
pub fn unreached(intent: &Intent, facts: &Facts, here: &Here) -> Vec<String> {
    let others = intent.nodes.iter().filter(|(id, _)| **id != here.me);
    let mut all: Vec<(String, &'static str)> = others
        .filter_map(|(id, node)| {
            let (why, hint) = way(here, node_row(facts, *id)?).err()?;
            Some((
                format!("node {} ({id}) is not reached through networks: {why}", node.hostname),
                hint,
            ))
        })
        .collect();
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    if let (Some((last, _)), 1..) = (all.last_mut(), more) {
        last.push_str(&format!(" (and so with {more} more)"));
    }
    all.into_iter()
        .map(|(what, hint)| format!("{what}; try: {hint}"))
        .collect()
}

fn outside(here: &Here) -> impl Iterator<Item = IpAddr> {
    let devices = here.uplinks.iter().filter_map(|d| here.devices.get(d));
    [here.vtep].into_iter().chain(devices.flatten().copied())
}

/// The IPv4 address that stands for this host: where its tunnels begin, or of a device that leads outside.
pub(super) fn own4(here: &Here) -> Option<Ipv4Addr> {
    outside(here).find_map(|a| match a {
        IpAddr::V4(a) if !a.is_loopback() => Some(a),
        _ => None,
    })
}

/// The same for IPv6.
pub(super) fn own6(here: &Here) -> Option<Ipv6Addr> {
    outside(here).find_map(|a| match a {
        IpAddr::V6(a) if !a.is_loopback() => Some(a),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use model::{Mac, NodeId, Row, RowBody, RowKey, intent};

    use super::*;

    fn here(vtep: &str, datapath: Datapath, eth0: &[&str]) -> Here {
        Here {
            me: NodeId(1),
            datapath,
            vtep: vtep.parse().unwrap(),
            vxlan_port: 4789,
            underlay_mtu: 1500,
            uplinks: ["eth0".to_owned()].into(),
            direct: false,
            addresses: Default::default(),
            devices: [("eth0".to_owned(), eth0.iter().map(|a| a.parse().unwrap()).collect())].into(),
            ifindex: BTreeMap::new(),
        }
    }

    /// Members at these addresses, from node 1 on; what each tells of itself.
    fn members(at: &[&str]) -> (Intent, Facts) {
        let (mut intent, mut facts) = (Intent::default(), Facts::default());
        for (id, at) in (1..).map(NodeId).zip(at) {
            let node = intent::Node {
                hostname: format!("h{}", id.0),
                role: intent::Role::Worker,
                availability: intent::Availability::Active,
                key: Vec::new(),
                down: false,
                rpc: None,
                raft: None,
                labels: BTreeMap::new(),
                max_tasks: None,
                machine: intent::Machine::default(),
            };
            intent.nodes.insert(id, node);
            let body = RowBody::Node(NodeRow {
                hostname: format!("h{}", id.0),
                datapath_addr: at.parse().unwrap(),
                datapath_port: 4789,
                gossip: "[fd18::1]:7946".parse().unwrap(),
                mac: Mac([6, 0x6e, 0, 0, 0, id.0 as u8]),
                datapath: Datapath::Ipvs,
                version: "0.1.0".into(),
            });
            let row = Row {
                owner: id,
                key: RowKey::Node,
                version: 1,
                body,
            };
            facts.rows.insert(id, Arc::new(BTreeMap::from([(RowKey::Node, row)])));
        }
        (intent, facts)
    }

    #[test]
    fn nodes_of_one_family_reach_each_other_and_the_others_are_named() {
        let (intent, facts) = members(&["fd18::1", "fd18::2", "198.18.0.3"]);
        let remotes = |here: &Here| {
            let desired = super::super::overlay_desired(&intent, &facts, here, &BTreeMap::new());
            let at = |(id, r): (&NodeId, &overlay::Remote)| (id.0, r.vtep.to_string());
            desired.remotes.iter().map(at).collect::<Vec<_>>()
        };
        let six = here("fd18::1", Datapath::Ipvs, &["fd18::1"]);
        assert_eq!(remotes(&six), [(2, "fd18::2".to_owned())]);
        let told = unreached(&intent, &facts, &six);
        assert_eq!(
            told,
            [
                "node h3 (n3) is not reached through networks: its data-path address is 198.18.0.3, and this node's fd18::1; try: [datapath] address of one family on all nodes"
            ]
        );
        let four = here("198.18.0.1", Datapath::Ipvs, &["198.18.0.1"]);
        assert_eq!(remotes(&four), [(3, "198.18.0.3".to_owned())]);
        assert!(unreached(&intent, &facts, &four)[0].starts_with("node h2 (n2)"));
        let programs = here("198.18.0.1", Datapath::Ebpf, &["198.18.0.1"]);
        assert_eq!(remotes(&programs), [(3, "198.18.0.3".to_owned())]);
        let told = unreached(&intent, &facts, &programs);
        assert!(
            told.len() == 1 && told[0].contains("fd18::2 is IPv6") && told[0].contains("try: "),
            "{told:?}"
        );
    }

    #[test]
    fn of_many_some_are_named_and_the_rest_is_counted() {
        let at = [
            "fd18::1",
            "198.18.0.2",
            "198.18.0.3",
            "198.18.0.4",
            "198.18.0.5",
            "198.18.0.6",
        ];
        let (intent, facts) = members(&at);
        let told = unreached(&intent, &facts, &here("fd18::1", Datapath::Ipvs, &[]));
        assert_eq!(told.len(), NAMED);
        assert!(told[2].contains("h4") && told[2].contains("2 more"), "{told:?}");
    }

    #[test]
    fn tasks_have_what_the_outer_headers_leave() {
        let (intent, facts) = members(&["fd18::1"]);
        let mtu = |vtep: &str, underlay_mtu| {
            let here = Here {
                underlay_mtu,
                ..here(vtep, Datapath::Ipvs, &[])
            };
            let desired = super::super::overlay_desired(&intent, &facts, &here, &BTreeMap::new());
            desired.node.unwrap().mtu
        };
        assert_eq!((mtu("198.18.0.1", 1500), mtu("fd18::1", 1500)), (1450, 1430));
        assert_eq!((mtu("198.18.0.1", 68), mtu("fd18::1", 68)), (576, 576));
        assert_eq!((mtu("198.18.0.1", 9000), mtu("fd18::1", 9000)), (8950, 8930));
    }

    #[test]
    fn what_a_host_sends_into_networks_comes_from_an_address_of_its_own() {
        let own = |vtep: &str, eth0: &[&str]| {
            let here = here(vtep, Datapath::Ipvs, eth0);
            let text = |a: Option<IpAddr>| a.map(|a| a.to_string()).unwrap_or_default();
            (text(own4(&here).map(IpAddr::V4)), text(own6(&here).map(IpAddr::V6)))
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(own("198.18.0.1", &["198.18.0.1"]), pair("198.18.0.1", ""));
        // The underlay's first, though another one is smaller.
        let both = ["10.0.0.1", "198.18.0.1", "2001:db8::1", "fd18::1"];
        assert_eq!(own("198.18.0.1", &both), pair("198.18.0.1", "2001:db8::1"));
        assert_eq!(own("fd18::1", &both), pair("10.0.0.1", "fd18::1"));
        assert_eq!(own("fd18::1", &["fd18::1"]), pair("", "fd18::1"));
    }
}
