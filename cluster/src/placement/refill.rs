//! What dead nodes had, given to others without every node being looked at closely for each service.
//!
//! [`place`](super::place) pictures all nodes for one service. When a node dies, hundreds of services lose a slot or two
//! at once, and the picture is the same for all of them but for what they have themselves: the [`Board`] is drawn once.
//! What comes of it is what `place` would say; where that is not cheap to know, it is left to `place`.

use std::collections::BTreeMap;

use model::{
    NodeId,
    intent::{Availability, Node, Placed, SlotSet},
    spec::{Mode, Strategy},
};

use super::{Host, Load, Request, filter::Filters, slots};
use crate::mutant::{self, Mutant};

/// Slots that are given one by one; for more of them [`place`](super::place) is quicker.
const FEW: u32 = 8;

/// All nodes and what is on them, for as long as only placements change.
#[derive(Debug)]
pub struct Board {
    nodes: Vec<Seen>,
    /// Of constraints that services have in common: on which of the nodes all hold.
    holds: BTreeMap<Vec<String>, Vec<bool>>,
}

#[derive(Debug)]
struct Seen {
    id: NodeId,
    down: bool,
    /// What runs there may stay, for all that the node itself says.
    stays: bool,
    /// It takes more, for all that the node itself says.
    takes: bool,
    load: Load,
}

/// What is to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refill {
    /// Dead nodes that had slots.
    pub gone: Vec<NodeId>,
    /// Who gets which, by id.
    pub given: Vec<(NodeId, SlotSet)>,
}

impl Board {
    /// As things are.
    pub fn new(nodes: &BTreeMap<NodeId, Node>, loads: &BTreeMap<NodeId, Load>) -> Board {
        let mut loads = loads.iter().peekable();
        let seen = nodes.iter().map(|(id, node)| {
            while loads.next_if(|l| l.0 < id).is_some() {}
            let drained = node.availability == Availability::Drain && !mutant::on(Mutant::IgnoreDrain);
            Seen {
                id: *id,
                down: node.down,
                stays: !node.down && !drained,
                takes: !node.down && node.availability == Availability::Active,
                load: loads.next_if(|l| l.0 == id).map_or(Load::default(), |l| *l.1),
            }
        });
        Board {
            nodes: seen.collect(),
            holds: BTreeMap::new(),
        }
    }

    /// What is on a node has changed.
    pub fn set(&mut self, node: NodeId, load: Load) {
        if let Ok(at) = self.nodes.binary_search_by_key(&node, |s| s.id) {
            self.nodes[at].load = load;
        }
    }

    /// Gives a service's slots on dead nodes to others. `None`: that is not all that is to be done, or it is not simple.
    ///
    /// `nodes` are those that the board was drawn of; `avoid` are nodes where the service's restarts are used up.
    pub fn refill(
        &mut self,
        nodes: &BTreeMap<NodeId, Node>,
        before: &Placed,
        ask: &Request<'_>,
        avoid: impl Fn(NodeId) -> bool,
    ) -> Option<Refill> {
        let spec = ask.spec;
        let tied = !ask.near.is_empty() || !ask.apart.is_empty() || !ask.after.is_empty() || !ask.host_ports.is_empty();
        let even = spec.strategy == Strategy::Spread && spec.spread.is_empty();
        if ask.mode != Mode::Replicated || tied || !even {
            return None;
        }
        let filters = Filters::new(ask);
        let holds = self.holds.entry(spec.constraints.clone());
        let holds = &*holds.or_insert_with(|| nodes.iter().map(|(id, n)| filters.holds(*id, n)).collect());

        let (mut own, mut lost, mut gone) = (vec![0; self.nodes.len()], Vec::new(), Vec::new());
        let (mut kept, most) = (0u32, spec.max_per_node.unwrap_or(u32::MAX));
        let mut olds = before.iter().peekable();
        for (at, seen) in self.nodes.iter().enumerate() {
            while let Some((id, slots)) = olds.next_if(|o| *o.0 < seen.id) {
                gone.push(*id);
                lost.extend_from_slice(&slots.0);
            }
            let Some((id, slots)) = olds.next_if(|o| *o.0 == seen.id) else {
                continue;
            };
            if seen.down {
                gone.push(*id);
                lost.extend_from_slice(&slots.0);
                continue;
            }
            let n = slots.len();
            if !seen.stays || !*holds.get(at)? || n > most {
                return None;
            }
            own[at] = n;
            kept = kept.checked_add(n)?;
        }
        for (id, slots) in olds {
            gone.push(*id);
            lost.extend_from_slice(&slots.0);
        }
        lost.sort_unstable();
        let lost = slots::normal(lost);
        if lost.len() > FEW || kept.checked_add(lost.len()) != Some(ask.replicas) {
            return None;
        }

        let mut has = own.clone();
        let mut takers = Vec::new();
        for _ in 0..lost.len() {
            // The fewest of this service, then in all, then the lowest id.
            let mut best: Option<(u32, u64, usize)> = None;
            for (at, seen) in self.nodes.iter().enumerate() {
                if !seen.takes || !*holds.get(at)? {
                    continue;
                }
                let key = (has[at], seen.load.tasks.saturating_sub(u64::from(own[at])), at);
                if best.is_some_and(|b| b < key) {
                    continue;
                }
                let mut others = seen.load;
                others.sub(own[at], spec.reserve);
                let host = Host {
                    id: seen.id,
                    node: nodes.get(&seen.id)?,
                    others,
                    avoid: avoid(seen.id),
                };
                if filters.look(&host, own[at]).cap > has[at] {
                    best = Some(key);
                }
            }
            let (_, _, at) = best?;
            has[at] += 1;
            takers.push(at);
        }
        takers.sort_unstable();
        takers.dedup();
        let mut queue = slots::Queue::new(lost);
        let given = takers
            .into_iter()
            .map(|at| (self.nodes[at].id, queue.take(has[at] - own[at])));
        Some(Refill {
            gone,
            given: given.collect(),
        })
    }
}
