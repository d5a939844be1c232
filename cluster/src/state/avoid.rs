//! Nodes that a service is not given, because its tasks fail there again and again.

use std::sync::Arc;

use model::{Name, NodeId, Shared, intent::SlotSet};

use super::{Applied, Refusal, State};

/// How long a node is avoided, ms of log time.
pub(crate) const AVOID_MS: u64 = 10 * 60 * 1000;

impl State {
    /// Gives slots of a service whose restarts on a node are used up to other nodes. Refused, and nothing changed, when one
    /// of them has nowhere else to go.
    pub(super) fn avoid(&mut self, index: u64, name: &Name, node: NodeId, slots: &SlotSet) -> Result<Applied, Refusal> {
        self.service(name)?;
        let Some(there) = self.intent.slots(name, node) else {
            return Ok(Applied::Unchanged);
        };
        let stays: SlotSet = there.iter().filter(|s| !slots.contains(*s)).collect();
        let moves: Vec<u32> = there.iter().filter(|s| slots.contains(*s)).collect();
        if moves.is_empty() {
            return Ok(Applied::Unchanged);
        }
        let (intent, loads, avoided) = (Arc::clone(&self.intent), self.loads.clone(), self.avoided.clone());
        let now = self.now_ms;
        self.avoided
            .values_mut()
            .for_each(|n| n.retain(|_, until| *until > now));
        self.avoided.retain(|_, n| !n.is_empty());
        let until = now.saturating_add(AVOID_MS);
        self.avoided.entry(name.clone()).or_default().insert(node, until);
        let before = self.intent.placements.get(name).cloned().unwrap_or_default();
        let mut placed = (*before).clone();
        match stays.is_empty() {
            true => placed.remove(&node),
            false => placed.insert(node, stays),
        };
        let each = self.reserve(name);
        self.count(&before, &placed, each);
        let placed = Shared::new(placed);
        self.change(index).placements.insert(name.clone(), placed);
        self.place(index, name);
        let homeless = |s: &u32| {
            let placed = self.intent.placements.get(name);
            let mut nodes = placed.into_iter().flat_map(|p| p.iter());
            nodes.all(|(n, set)| *n == node || !set.contains(*s))
        };
        if !moves.iter().any(homeless) {
            return Ok(Applied::Done);
        }
        (self.intent, self.loads, self.avoided) = (intent, loads, avoided);
        Err(Refusal::conflict(
            format!("no other node may take what fails on {node}"),
            format!("netctl service ps {name}, then another command, constraint or node"),
        ))
    }

    /// Whether a service is given no slot on a node at present.
    pub(super) fn avoids(&self, name: &Name, node: NodeId) -> bool {
        let until = self.avoided.get(name).and_then(|n| n.get(&node));
        until.is_some_and(|until| *until > self.now_ms)
    }
}
