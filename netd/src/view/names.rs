//! Names as this node answers them.

use std::{collections::BTreeMap, path::PathBuf};

use model::{EndpointId, Intent};

use super::{endpoints, forwards};
use crate::{endpoints::Endpoint, gossip::Facts};

/// Every name of the cluster: endpoints of dead nodes have none (stale DNS is what people left Swarm for).
pub fn names(intent: &Intent, facts: &Facts) -> dns::Table {
    dns::Table::new(
        intent,
        endpoints(intent, facts)
            .filter(|e| forwards(facts, e.node))
            .map(|e| e.row),
    )
}

/// Which namespaces are answered, and what each may see: the networks of its endpoints, the first interface's first.
pub fn views(endpoints: &BTreeMap<EndpointId, Endpoint>) -> BTreeMap<PathBuf, dns::View> {
    let mut sorted: Vec<&Endpoint> = endpoints.values().filter(|e| e.attached).collect();
    sorted.sort_by_key(|e| (e.interface.len(), &e.interface));
    let mut out: BTreeMap<PathBuf, dns::View> = BTreeMap::new();
    for e in sorted {
        out.entry(e.netns.clone()).or_default().networks.push(e.vni);
    }
    out
}
