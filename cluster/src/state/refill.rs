//! What a dead node had goes to others: the quick way of [`State::place`], with the same outcome.

use model::{Name, Shared};

use super::State;
use crate::mutant::{self, Mutant};
use crate::placement::{Board, Refill, slots};

impl State {
    /// Gives what a service had on dead nodes to others and keeps the board up to date. Returns whether it is on nodes on
    /// which it was not before; `None`, and nothing is changed: [`State::place`] must look.
    pub(super) fn refill(&mut self, index: u64, name: &Name, board: &mut Board) -> Option<bool> {
        let service = self.intent.services.get(name)?;
        let rolls = |r: &model::intent::Rollout| r.is_open() || !r.surge.is_empty() || !r.pending.is_empty();
        let busy = service.problem.is_some() || service.rollout.as_ref().is_some_and(rolls);
        if busy || self.intent.leaving.contains_key(name) || mutant::on(Mutant::PlaceTwice) {
            return None;
        }
        let before = self.intent.placements.get(name)?.clone();
        let ask = self.request(name, service);
        let Refill { gone, given } = board.refill(&self.intent.nodes, &before, &ask, |id| self.avoids(name, id))?;
        let each = service.spec.placement.reserve;
        if gone.is_empty() {
            return Some(false);
        }
        let mut placed = (*before).clone();
        let mut changed = Vec::with_capacity(gone.len() + given.len());
        for id in gone {
            let slots = placed.remove(&id).unwrap_or_default();
            self.loads.entry(id).or_default().sub(slots.len(), each);
            changed.push(id);
        }
        let mut gained = false;
        for (id, slots) in given {
            self.loads.entry(id).or_default().add(slots.len(), each);
            gained |= !placed.contains_key(&id);
            let set = placed.entry(id).or_default();
            *set = slots::union(set, &slots);
            changed.push(id);
        }
        for id in changed {
            let load = self.loads.get(&id).copied().unwrap_or_default();
            board.set(id, load);
            if load.tasks == 0 {
                self.loads.remove(&id);
            }
        }
        self.change(index).placements.insert(name.clone(), Shared::new(placed));
        Some(gained)
    }
}
