//! What of a view may have changed since another one: with ten thousand services a row must not cost a look at all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use model::{EndpointId, Intent, Name, NodeId, Row, RowBody, RowKey};

use super::{Here, mesh_wanted_of};
use crate::{endpoints::Endpoint, gossip::Facts};

/// What a view is made of.
#[derive(Debug, Clone)]
pub struct Basis {
    /// Intent.
    pub intent: Arc<Intent>,
    /// Facts.
    pub facts: Arc<Facts>,
    /// This host.
    pub here: Here,
    /// Endpoints of this node.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
}

/// Some services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chosen {
    /// Which.
    pub services: BTreeSet<Name>,
    /// Rows among which are all those of their endpoints.
    pub rows: BTreeSet<(NodeId, EndpointId)>,
}

/// Where the rows of each service's endpoints are: one is found without a look at all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index(BTreeMap<Name, BTreeSet<(NodeId, EndpointId)>>);

impl Index {
    /// That of some facts.
    pub fn new(facts: &Facts) -> Index {
        let mut out = Index::default();
        for (node, rows) in &facts.rows {
            for (key, row) in rows.iter() {
                out.set(*node, key, service_of(row), true);
            }
        }
        out
    }

    fn set(&mut self, node: NodeId, key: &RowKey, service: Option<&Name>, there: bool) {
        let (Some(service), RowKey::Endpoint(id)) = (service, key) else {
            return;
        };
        let at = (node, id.clone());
        match self.0.get_mut(service) {
            Some(rows) if there => {
                rows.insert(at);
            }
            Some(rows) => {
                rows.remove(&at);
                if rows.is_empty() {
                    self.0.remove(service);
                }
            }
            None if there => {
                self.0.insert(service.clone(), BTreeSet::from([at]));
            }
            None => {}
        }
    }

    /// Follows from one state of facts to another, of the same nodes; services with the rows that they have or had.
    pub fn follow(&mut self, before: &Facts, now: &Facts, services: BTreeSet<Name>) -> Chosen {
        let of = |index: &Index| -> Vec<(NodeId, EndpointId)> {
            let rows = services.iter().filter_map(|name| index.0.get(name));
            rows.flatten().cloned().collect()
        };
        let mut rows: BTreeSet<_> = of(self).into_iter().collect();
        each_row(before, now, |node, key, a, b| {
            self.set(node, key, a.and_then(service_of), false);
            self.set(node, key, b.and_then(service_of), true);
        });
        rows.extend(of(self));
        Chosen { services, rows }
    }
}

fn service_of(row: &Row) -> Option<&Name> {
    match &row.body {
        RowBody::Endpoint(e) => e.service.as_ref(),
        RowBody::Node(_) | RowBody::Tombstone => None,
    }
}

/// Shows every row that differs, of nodes that both have.
fn each_row(a: &Facts, b: &Facts, mut show: impl FnMut(NodeId, &RowKey, Option<&Row>, Option<&Row>)) {
    for (node, now) in &b.rows {
        if let Some(was) = a.rows.get(node).filter(|was| !Arc::ptr_eq(was, now)) {
            each_difference(was, now, |key, a, b| show(*node, key, a, b));
        }
    }
}

impl Basis {
    /// What the mesh should do for some services alone.
    pub fn mesh_wanted_of(&self, some: &Chosen) -> mesh::Wanted {
        mesh_wanted_of(&self.intent, &self.facts, &self.here, &self.endpoints, Some(some))
    }

    /// Whether the overlay is surely the same: [`overlay_desired`](super::overlay_desired) would yield what it did. The
    /// indices of interfaces play no part in it.
    pub fn has_overlay_of(&self, before: &Basis) -> bool {
        let (a, b) = (&before.intent, &self.intent);
        self.has_host_of(before)
            && self.endpoints == before.endpoints
            && (Arc::ptr_eq(a, b) || (a.services.same(&b.services) || a.services == b.services) && a.blocks == b.blocks)
            && nodes_told(&before.facts, &self.facts)
    }

    /// Host, nodes and networks.
    fn has_host_of(&self, before: &Basis) -> bool {
        let (a, b) = (&before.intent, &self.intent);
        let bare = |here: &Here| Here {
            ifindex: BTreeMap::new(),
            ..here.clone()
        };
        bare(&self.here) == bare(&before.here) && (Arc::ptr_eq(a, b) || a.nodes == b.nodes && a.networks == b.networks)
    }

    /// Services for which the mesh may do something else than before; `None`: any.
    pub fn services_changed(&self, before: &Basis) -> Option<BTreeSet<Name>> {
        if !self.has_host_of(before)
            || self.facts.health != before.facts.health
            || !nodes_told(&before.facts, &self.facts)
        {
            return None;
        }
        let mut out = BTreeSet::new();
        if !Arc::ptr_eq(&before.intent, &self.intent) && !before.intent.services.same(&self.intent.services) {
            each_difference(&before.intent.services, &self.intent.services, |name, _, _| {
                out.insert(name.clone());
            });
        }
        // Which nodes there are is the same: [`nodes_told`].
        each_row(&before.facts, &self.facts, |_, _, a, b| {
            out.extend([a, b].into_iter().flatten().filter_map(service_of).cloned());
        });
        if self.endpoints != before.endpoints {
            each_difference(&before.endpoints, &self.endpoints, |_, a, b| {
                out.extend([a, b].into_iter().flatten().filter_map(|e| e.service.clone()));
            });
        }
        each_difference(&before.here.ifindex, &self.here.ifindex, |id, _, _| {
            let own = [before, self]
                .into_iter()
                .filter_map(|b| b.endpoints.get(id)?.service.clone());
            out.extend(own);
            let rows = self.facts.rows.get(&self.here.me);
            let row = rows.and_then(|rows| rows.get(&RowKey::Endpoint(id.clone())));
            out.extend(row.and_then(service_of).cloned());
        });
        Some(out)
    }
}

/// Whether the same nodes tell the same of themselves.
fn nodes_told(a: &Arc<Facts>, b: &Arc<Facts>) -> bool {
    if Arc::ptr_eq(a, b) {
        return true;
    }
    a.rows.len() == b.rows.len()
        && a.rows.iter().zip(&b.rows).all(|((n, a), (m, b))| {
            let body = |rows: &BTreeMap<RowKey, Row>| rows.get(&RowKey::Node).map(|r| r.body.clone());
            n == m && (Arc::ptr_eq(a, b) || body(a) == body(b))
        })
}

/// Shows every key whose values differ, or that only one of the two has.
fn each_difference<K: Ord, V: PartialEq>(
    a: &BTreeMap<K, V>,
    b: &BTreeMap<K, V>,
    mut show: impl FnMut(&K, Option<&V>, Option<&V>),
) {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        match (a.peek().copied(), b.peek().copied()) {
            (None, None) => return,
            (Some((k, v)), other) if other.is_none_or(|(l, _)| k < l) => {
                show(k, Some(v), None);
                a.next();
            }
            (other, Some((l, w))) if other.is_none_or(|(k, _)| l < k) => {
                show(l, None, Some(w));
                b.next();
            }
            (Some((k, v)), Some((_, w))) => {
                if v != w {
                    show(k, Some(v), Some(w));
                }
                a.next();
                b.next();
            }
            // The arms above take every pair of which one is missing.
            (Some(_), None) | (None, Some(_)) => return,
        }
    }
}

#[cfg(test)]
mod tests;
