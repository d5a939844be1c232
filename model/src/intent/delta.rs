//! What leads from one intent to another.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Intent, Network, Node, Placed, Service, Trust};
use crate::{
    ids::{Name, NodeId, Vni},
    settings::ClusterSettings,
    shared::Shared,
};

/// The difference between two intents. Applying it to `from` gives `to`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IntentDelta {
    /// Revision that it applies to; a receiver at another one asks for a snapshot (a delta from 0).
    pub from: u64,
    /// Revision that it leads to.
    pub to: u64,
    /// Id of the cluster.
    pub cluster: String,
    /// Changed or new (`Some`) and gone (`None`).
    pub nodes: BTreeMap<NodeId, Option<Node>>,
    /// As above.
    pub networks: BTreeMap<Name, Option<Network>>,
    /// As above.
    pub services: BTreeMap<Name, Option<Service>>,
    /// As above, per network.
    pub blocks: BTreeMap<Vni, Option<BTreeMap<u32, NodeId>>>,
    /// As above, per service.
    pub placements: BTreeMap<Name, Option<Shared<Placed>>>,
    /// As above, per service.
    #[serde(default)]
    pub leaving: BTreeMap<Name, Option<Shared<Placed>>>,
    /// If it has changed.
    #[serde(default)]
    pub trust: Option<Trust>,
    /// All settings, when one of them changed; always there in a snapshot.
    #[serde(default)]
    pub settings: Option<ClusterSettings>,
}

fn diff<K: Ord + Clone, V: PartialEq + Clone>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> BTreeMap<K, Option<V>> {
    let gone = old.keys().filter(|k| !new.contains_key(k)).map(|k| (k.clone(), None));
    let changed = new
        .iter()
        .filter(|(k, v)| old.get(k) != Some(v))
        .map(|(k, v)| (k.clone(), Some(v.clone())));
    gone.chain(changed).collect()
}

/// As [`diff`], of what is most often one and the same.
fn diff_shared<K: Ord + Clone, V: PartialEq + Clone>(
    old: &Shared<BTreeMap<K, V>>,
    new: &Shared<BTreeMap<K, V>>,
) -> BTreeMap<K, Option<V>> {
    match old.same(new) {
        true => BTreeMap::new(),
        false => diff(old, new),
    }
}

fn patch_shared<K: Ord + Clone, V: Clone>(map: &mut Shared<BTreeMap<K, V>>, delta: BTreeMap<K, Option<V>>) {
    if !delta.is_empty() {
        patch(map, delta);
    }
}

fn patch<K: Ord, V>(map: &mut BTreeMap<K, V>, delta: BTreeMap<K, Option<V>>) {
    for (k, v) in delta {
        match v {
            Some(v) => map.insert(k, v),
            None => map.remove(&k),
        };
    }
}

impl Intent {
    /// What leads from `self` to `new`.
    pub fn delta_to(&self, new: &Intent) -> IntentDelta {
        IntentDelta {
            from: self.revision,
            to: new.revision,
            cluster: new.cluster.clone(),
            nodes: diff_shared(&self.nodes, &new.nodes),
            networks: diff_shared(&self.networks, &new.networks),
            services: diff_shared(&self.services, &new.services),
            blocks: diff_shared(&self.blocks, &new.blocks),
            placements: diff(&self.placements, &new.placements),
            leaving: diff(&self.leaving, &new.leaving),
            trust: (self.trust != new.trust).then(|| new.trust.clone()),
            // Also the defaults are told once: another version may have others.
            settings: (self.revision == 0 || self.settings != new.settings).then(|| new.settings.clone()),
        }
    }

    /// Applies a delta that was made from this very revision (or from 0, a snapshot: what was known before is dropped).
    /// `false`: it was made from another one, nothing was changed.
    pub fn apply(&mut self, delta: IntentDelta) -> bool {
        if delta.from == 0 {
            *self = Intent::default();
        }
        if delta.from != self.revision {
            return false;
        }
        self.revision = delta.to;
        self.cluster = delta.cluster;
        patch_shared(&mut self.nodes, delta.nodes);
        patch_shared(&mut self.networks, delta.networks);
        patch_shared(&mut self.services, delta.services);
        patch_shared(&mut self.blocks, delta.blocks);
        patch(&mut self.placements, delta.placements);
        patch(&mut self.leaving, delta.leaving);
        if let Some(trust) = delta.trust {
            self.trust = trust;
        }
        if let Some(settings) = delta.settings {
            self.settings = settings;
        }
        true
    }
}
