//! A node's view: intent joined with facts. Pure functions; what they yield is what names, balancing and status agree on.

mod balance;
mod changed;
mod names;
mod overlay;
mod reach;
mod rules;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use model::{
    EndpointId, EndpointRow, EndpointState, Intent, Name, NodeId, NodeRow, RowBody, RowKey,
    api::{BackendView, NodeHealth},
    row::Datapath,
};

pub use balance::{mesh_wanted, mesh_wanted_of};
pub use changed::{Basis, Chosen, Index};
pub use names::{names, views};
pub use overlay::overlay_desired;
pub use reach::unreached;
pub use rules::{host_rules, sandbox_rules};

use crate::gossip::Facts;

/// An endpoint as facts tell it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Owner.
    pub node: NodeId,
    /// Id on its owner.
    pub id: &'a EndpointId,
    /// Row.
    pub row: &'a EndpointRow,
}

/// Every endpoint of every node that is still a member, in the order of nodes and ids.
pub fn endpoints<'a>(intent: &'a Intent, facts: &'a Facts) -> impl Iterator<Item = Seen<'a>> {
    facts
        .rows
        .iter()
        .filter(|(node, _)| intent.nodes.contains_key(node))
        .flat_map(|(node, rows)| {
            rows.iter().filter_map(|(key, row)| match (key, &row.body) {
                (RowKey::Endpoint(id), RowBody::Endpoint(row)) => Some(Seen { node: *node, id, row }),
                _ => None,
            })
        })
}

/// Of these those that are there, as [`endpoints`] yields them.
pub fn endpoints_at<'a>(
    intent: &'a Intent,
    facts: &'a Facts,
    at: &'a BTreeSet<(NodeId, EndpointId)>,
) -> impl Iterator<Item = Seen<'a>> {
    at.iter().filter_map(|(node, id)| {
        let rows = facts.rows.get(node).filter(|_| intent.nodes.contains_key(node))?;
        match &rows.get(&RowKey::Endpoint(id.clone()))?.body {
            RowBody::Endpoint(row) => Some(Seen { node: *node, id, row }),
            RowBody::Node(_) | RowBody::Tombstone => None,
        }
    })
}

/// A node's own row.
pub fn node_row(facts: &Facts, node: NodeId) -> Option<&NodeRow> {
    match &facts.rows.get(&node)?.get(&RowKey::Node)?.body {
        RowBody::Node(row) => Some(row),
        _ => None,
    }
}

/// Whether a member cannot translate late: what is for its backends is translated before it is sent there.
pub fn some_translate_early(intent: &Intent, facts: &Facts) -> bool {
    let mut rows = intent.nodes.keys().filter_map(|id| node_row(facts, *id));
    rows.any(|row| row.datapath == Datapath::Ipvs)
}

/// Whether a node's endpoints may get new flows: a silent daemon on a living host keeps its data path (CONTRACTS, Death).
pub fn forwards(facts: &Facts, node: NodeId) -> bool {
    !matches!(facts.health.get(&node), Some(NodeHealth::Down))
}

/// Why an endpoint gets no new flows; `None`: it does.
pub fn out_because(intent: &Intent, facts: &Facts, e: Seen<'_>) -> Option<String> {
    if !forwards(facts, e.node) {
        return Some(format!("node {} is down", e.node));
    }
    match e.row.state {
        EndpointState::Ready => None,
        EndpointState::Draining => Some("draining".to_owned()),
        EndpointState::Starting => {
            let service = e.row.service.as_ref().and_then(|s| intent.services.get(s));
            let silent: Vec<String> = service
                .into_iter()
                .flat_map(|s| s.listened(e.row.slot))
                .filter(|port| !e.row.listening.contains(port))
                .map(|(proto, port)| format!("{port}/{proto}"))
                .collect();
            Some(if silent.is_empty() {
                "starting".to_owned()
            } else {
                format!("nothing listens on {}", silent.join(", "))
            })
        }
    }
}

/// The backends of a service as this node sees them.
pub fn backends(intent: &Intent, facts: &Facts, service: &Name) -> Vec<BackendView> {
    endpoints(intent, facts)
        .filter(|e| e.row.service.as_ref() == Some(service))
        .map(|e| {
            let why = out_because(intent, facts, e);
            BackendView {
                endpoint: e.id.clone(),
                node: e.node,
                hostname: intent
                    .nodes
                    .get(&e.node)
                    .map(|n| n.hostname.clone())
                    .unwrap_or_default(),
                slot: e.row.slot,
                vni: e.row.vni,
                v4: e.row.v4,
                v6: e.row.v6,
                state: e.row.state,
                in_use: why.is_none(),
                why,
                listening: e.row.listening.clone(),
            }
        })
        .collect()
}

/// Highest row version per owner in these facts: what this node's kernel holds once they are applied.
pub fn held(facts: &Facts) -> BTreeMap<NodeId, u64> {
    facts
        .rows
        .iter()
        .map(|(node, rows)| (*node, rows.values().map(|r| r.version).max().unwrap_or(0)))
        .collect()
}

/// What of this host the cores need to know beside intent and facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// This node.
    pub me: NodeId,
    /// Its data path.
    pub datapath: Datapath,
    /// Address of this host that VXLAN is sent from.
    pub vtep: IpAddr,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// MTU of the device that holds `vtep`, octets.
    pub underlay_mtu: u32,
    /// Devices that lead outside.
    pub uplinks: BTreeSet<String>,
    /// Programs may send and take the tunnel's packets by themselves: the host transforms none by policy.
    pub direct: bool,
    /// Every address that a packet for this host may bear.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of each device.
    pub devices: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Host side interface of each endpoint that the kernel holds.
    pub ifindex: BTreeMap<EndpointId, u32>,
}
