//! Whether all is as it should be, once nothing happens any more.

use super::*;

impl World {
    /// Whether all agents know the same, and what the log wants is there.
    pub(crate) fn agents_agree(&self) -> Result<(), String> {
        let intent = self.oracle.state.intent();
        let mut first = None;
        for (i, h) in self.hosts.iter().enumerate() {
            let (Some(a), Some(me)) = (h.agent.as_ref(), h.node) else {
                continue;
            };
            if h.removed || !intent.nodes.contains_key(&me) {
                continue;
            }
            if let Some(id) = a.table.owners().find(|id| !intent.nodes.contains_key(id)) {
                return Err(format!("host {i} keeps rows of {id}, which was removed"));
            }
            let root = a.table.root();
            if *first.get_or_insert(root) != root {
                return Err(format!("host {i} has other rows than the first"));
            }
            let rows = a
                .table
                .rows_of(me)
                .filter(|r| matches!(r.row().body, RowBody::Endpoint(_)));
            let (rows, slots) = (rows.count(), intent.tasks_on(me).count());
            if rows != slots && !self.blocks_are_short(&intent) {
                return Err(format!("host {i} has {rows} endpoints, {slots} tasks are placed there"));
            }
        }
        Ok(())
    }

    /// Whether nothing is being replaced or moved any more.
    pub(crate) fn nothing_rolls(&self) -> Result<(), String> {
        let intent = self.oracle.state.intent();
        if !self.script.shape.agents || self.blocks_are_short(&intent) {
            return Ok(());
        }
        for (name, s) in &intent.services {
            if s.rollout.as_ref().is_some_and(|r| r.is_moving()) {
                return Err(format!("{name} is still being changed"));
            }
            let moves = intent.leaving.get(name).into_iter().flat_map(|l| l.values());
            let placed = intent.placements.get(name);
            let here = |slot: u32| placed.is_some_and(|p| p.values().any(|s| s.contains(slot)));
            if let Some(slot) = moves.flat_map(|s| s.iter()).find(|s| here(*s)) {
                return Err(format!("slot {slot} of {name} still goes on where it was"));
            }
        }
        Ok(())
    }

    /// Whether some network has no block left: then not every task gets an address.
    fn blocks_are_short(&self, intent: &Intent) -> bool {
        intent.networks.values().any(|n| {
            let given = intent.blocks.get(&n.vni).map_or(0, BTreeMap::len);
            let resting = self.oracle.resting_blocks(n.vni);
            given + resting >= n.block_numbers().len()
        })
    }
}
