//! What the mesh should do on this node.

use std::{collections::BTreeMap, net::IpAddr};

use mesh::{Backend, BackendId, BackendState, Place};
use model::{EndpointState, Intent, row::Datapath};

use super::{Here, Seen, endpoints, forwards, node_row, out_because};
use crate::gossip::Facts;

/// What the mesh should do here.
pub fn mesh_wanted(intent: &Intent, facts: &Facts, here: &Here) -> mesh::Wanted {
    let mut services: BTreeMap<u32, mesh::Service> = BTreeMap::new();
    for service in intent.services.values() {
        let vips = service
            .vips
            .iter()
            .filter_map(|(net, vip)| Some((intent.networks.get(net)?.vni, *vip)))
            .collect();
        let ports = service.ports.values().map(|p| p.spec).collect();
        services.insert(
            service.index,
            mesh::Service {
                vips,
                ports,
                backends: BTreeMap::new(),
            },
        );
    }
    for e in endpoints(intent, facts) {
        let Some(service) = e.row.service.as_ref().and_then(|s| intent.services.get(s)) else {
            continue;
        };
        let Some(wanted) = services.get_mut(&service.index) else {
            continue;
        };
        let state = match (out_because(intent, facts, e), e.row.state) {
            (None, _) => BackendState::Active,
            (Some(_), EndpointState::Draining) if forwards(facts, e.node) => BackendState::Draining,
            _ => continue,
        };
        let Some(place) = place(facts, here, e) else { continue };
        let backend = Backend {
            vni: e.row.vni,
            v4: e.row.v4,
            v6: e.row.v6,
            mac: e.row.mac,
            place,
            state,
        };
        wanted.backends.insert(
            BackendId {
                node: e.node,
                endpoint: e.id.clone(),
            },
            backend,
        );
    }
    let node = mesh::Node {
        id: here.me,
        vtep: here.vtep,
        datapath: Datapath::Ebpf,
    };
    mesh::Wanted {
        node,
        local: here.addresses.clone(),
        services,
    }
}

/// Where an endpoint is, seen from here; `None`: not reachable yet (its interface or its node's row is still on its way).
fn place(facts: &Facts, here: &Here, e: Seen<'_>) -> Option<Place> {
    if e.node == here.me {
        return here.ifindex.get(e.id).map(|i| Place::Local { ifindex: *i });
    }
    let row = node_row(facts, e.node)?;
    match row.datapath_addr {
        IpAddr::V4(vtep) => Some(Place::Remote {
            vtep,
            datapath: row.datapath,
        }),
        // The underlay is IPv4 in this version.
        IpAddr::V6(_) => None,
    }
}
