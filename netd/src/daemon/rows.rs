//! This node's own rows: kept equal to what is attached here and what listens there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use kernel::{
    netns::{self, Netns},
    sockdiag,
};
use model::{EndpointId, EndpointRow, EndpointState, NodeRow, Proto, RowBody, RowKey};

use super::Cluster;
use crate::endpoints::{Endpoint, Endpoints, endpoint_mac, node_mac};

/// Between two looks at who listens, while an endpoint waits to become ready.
const SOON: Duration = Duration::from_millis(100);
/// The same when all are ready: what stops listening is out of new flows that much later.
const CALM: Duration = Duration::from_millis(500);

impl Cluster {
    /// Tells the others about this node.
    pub(super) fn publish_node(&self) {
        let now = self.addresses();
        let row = NodeRow {
            hostname: self.hostname.clone(),
            datapath_addr: now.data_path,
            datapath_port: self.intent().settings.data_path_port,
            gossip: now.gossip,
            mac: node_mac(self.me),
            datapath: self.reconciler.chosen().datapath,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        if let Err(e) = self.gossip.put(RowKey::Node, RowBody::Node(row)) {
            tracing::error!("this node's own row: {e}");
        }
    }

    /// Tells the others about an endpoint; the version that says so, 0: there is none.
    pub(super) fn publish_row(&self, id: &EndpointId) -> u64 {
        let endpoint = self.endpoints().get(id).cloned();
        match endpoint.and_then(|e| self.row(&e)) {
            Some(row) => match self.gossip.put(RowKey::Endpoint(id.clone()), RowBody::Endpoint(row)) {
                Ok(version) => version,
                Err(e) => {
                    tracing::error!(endpoint = %id, "its row: {e}");
                    0
                }
            },
            None => 0,
        }
    }

    fn row(&self, e: &Endpoint) -> Option<EndpointRow> {
        let intent = self.intent();
        let (_, network) = intent.network_by_vni(e.vni)?;
        Some(EndpointRow {
            vni: e.vni,
            v4: Some(network.v4(e.offset)),
            v6: network.v6(e.offset),
            mac: endpoint_mac(network, e.offset),
            service: e.service.clone(),
            slot: e.slot,
            state: e.state(&intent),
            listening: e.listening.iter().copied().take(EndpointRow::MAX_LISTENING).collect(),
        })
    }

    /// Keeps the rows, until the cluster is left. It begins when the kernel has been looked at once: a restart withdraws
    /// nothing.
    pub(super) async fn keep_rows(self: Arc<Self>) {
        let mut reconciled = self.reconcile_changes();
        if reconciled.wait_for(|s| s.writes.runs > 0).await.is_err() {
            return;
        }
        let mut intent = self.intent_changes();
        let mut endpoints = self.endpoint_changes();
        loop {
            // Before the look: what changes during it is looked at again.
            let now = intent.borrow_and_update().clone();
            endpoints.mark_unchanged();
            reconciled.mark_unchanged();
            self.endpoints().follow(&now);
            self.look_who_listens().await;
            self.publish_all();
            let again = {
                let here = self.endpoints();
                let waits = here.all().values().any(|e| e.state(&now) == EndpointState::Starting);
                // Without endpoints there is nobody who could begin or end to listen.
                (!here.all().is_empty()).then_some(if waits { SOON } else { CALM })
            };
            tokio::select! {
                () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
                r = intent.changed() => if r.is_err() { return },
                r = endpoints.changed() => if r.is_err() { return },
                r = reconciled.changed() => if r.is_err() { return },
            }
        }
    }

    fn publish_all(&self) {
        let ids: BTreeSet<EndpointId> = self.endpoints().all().keys().cloned().collect();
        for id in &ids {
            self.publish_row(id);
        }
        for key in self.gossip.own() {
            if matches!(&key, RowKey::Endpoint(id) if !ids.contains(id)) {
                self.gossip.remove(key);
            }
        }
    }

    async fn look_who_listens(&self) {
        look_who_listens(&self.endpoints).await;
    }
}

/// Asks every namespace which ports are listened on.
pub(super) async fn look_who_listens(endpoints: &Mutex<Endpoints>) {
    let table = || endpoints.lock().unwrap_or_else(|e| e.into_inner());
    let mut by_path: BTreeMap<PathBuf, Vec<EndpointId>> = BTreeMap::new();
    for (id, e) in table().all() {
        by_path.entry(e.netns.clone()).or_default().push(id.clone());
    }
    let looked = tokio::task::spawn_blocking(move || {
        let see = |path: &PathBuf| {
            netns::run_in(&Netns::open(path).ok()?, sockdiag::listening_ports)
                .ok()?
                .ok()
        };
        by_path
            .into_iter()
            .filter_map(|(path, ids)| Some((ids, see(&path)?)))
            .collect::<Vec<(Vec<EndpointId>, BTreeSet<(Proto, u16)>)>>()
    });
    let Ok(looked) = looked.await else { return };
    let mut table = table();
    for (ids, ports) in looked {
        for id in ids {
            table.note(&id, |e| e.listening = ports.clone());
        }
    }
}
