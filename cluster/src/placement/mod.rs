//! Where the slots of a service go: a pure function of what runs and of the nodes there are.
//!
//! **Filters**, in this order; a node that has no place for a slot is told of by the first one that says no:
//!
//! 1. *health*: not down. What runs there moves.
//! 2. *availability*: active. Of a drained node what runs moves, a paused one keeps it.
//! 3. *avoid*: the service's restarts there are not used up. Looked at for new slots.
//! 4. *constraints*: all hold ([`expr`]). What runs where one does not hold any more moves.
//! 5. *near* and *apart*: tasks of the services named there, or none. Looked at for new slots; a service that is apart
//!    from itself has one slot a node.
//! 6. *host ports*: free of other services, or what runs there moves; one slot a node.
//! 7. *slots*: `max_per_node` of this service (what is above it moves), `max_tasks` of the node (for new slots).
//! 8. *after*: each service named there is placed. Looked at for new slots.
//! 9. *reservations*: the node has told its capacity, and enough is left, also by what goes on there until it runs
//!    elsewhere. Looked at for new slots.
//!
//! **Strategies** choose among what is left. *Spread*: the node with the fewest tasks of this service, then the fewest in
//! all, then the lowest id. *Binpack*: the fullest with room: by its reserved share, then its tasks, then the lowest id.
//! *Random*: by a number drawn from the service's name. Before any of them, slots are spread over the values of the
//! labels in `spread`, the first label first; nodes without the label are one more value.
//!
//! What runs stays where it is: a change moves only slots that may not stay; a smaller service gives up the highest slots
//! of the fullest nodes (*binpack*: of the emptiest; *random*: the highest of all). The cost counts nodes and ranges, not
//! tasks (but for drawing *random* numbers).

pub mod expr;
mod filter;
mod level;
mod rebalance;
mod refill;
pub mod slots;
mod strategy;
#[cfg(test)]
pub(crate) mod tests;
mod why;

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Name, NodeId,
    intent::{Node, Placed, PortKey, SlotSet},
    spec::{Mode, PlacementSpec, Resources},
};

pub use filter::Filter;
pub use rebalance::rebalance;
pub use refill::{Board, Refill};
pub use why::problem;

/// Highest number of a node that can have slots of global services: numbers above are of tasks that take over during
/// updates.
pub const MAX_GLOBAL: u64 = 999_999_999;

/// What is on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Tasks.
    pub tasks: u64,
    /// What they reserve.
    pub reserved: Resources,
}

impl Load {
    /// So many more tasks that reserve so much each.
    pub fn add(&mut self, tasks: u32, each: Resources) {
        let n = u64::from(tasks);
        self.tasks = self.tasks.saturating_add(n);
        let sum = |a: u64, b: u64| a.saturating_add(b.saturating_mul(n));
        self.reserved.cpu_milli = sum(self.reserved.cpu_milli, each.cpu_milli);
        self.reserved.memory = sum(self.reserved.memory, each.memory);
    }

    /// So many fewer.
    pub fn sub(&mut self, tasks: u32, each: Resources) {
        let n = u64::from(tasks);
        self.tasks = self.tasks.saturating_sub(n);
        let less = |a: u64, b: u64| a.saturating_sub(b.saturating_mul(n));
        self.reserved.cpu_milli = less(self.reserved.cpu_milli, each.cpu_milli);
        self.reserved.memory = less(self.reserved.memory, each.memory);
    }
}

/// A node as placement sees it.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// Which.
    pub id: NodeId,
    /// As the log knows it.
    pub node: &'a Node,
    /// Tasks of other services on it, and of this one those that go on there until they run elsewhere.
    pub others: Load,
    /// Restarts of this service there are used up for now.
    pub avoid: bool,
}

/// Another service, as placement looks at it.
#[derive(Debug, Clone, Copy)]
pub struct Other<'a> {
    /// Which.
    pub name: &'a Name,
    /// Whether there is one.
    pub exists: bool,
    /// Where its slots are; `None`: nowhere.
    pub placed: Option<&'a Placed>,
}

/// What is to be placed.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Service.
    pub service: &'a Name,
    /// Replicated or global.
    pub mode: Mode,
    /// Slots, if it is replicated.
    pub replicas: u32,
    /// Which nodes.
    pub spec: &'a PlacementSpec,
    /// The services of `spec.near`.
    pub near: Vec<Other<'a>>,
    /// The services of `spec.apart`.
    pub apart: Vec<Other<'a>>,
    /// The services of `spec.after`.
    pub after: Vec<Other<'a>>,
    /// Ports that each task holds on its node itself.
    pub host_ports: BTreeSet<PortKey>,
    /// Ports that other services hold on nodes.
    pub taken: BTreeMap<NodeId, BTreeSet<PortKey>>,
}

impl<'a> Request<'a> {
    /// So many slots of a service, on any node.
    pub fn new(service: &'a Name, spec: &'a PlacementSpec, replicas: u32) -> Request<'a> {
        Request {
            service,
            mode: Mode::Replicated,
            replicas,
            spec,
            near: Vec::new(),
            apart: Vec::new(),
            after: Vec::new(),
            host_ports: BTreeSet::new(),
            taken: BTreeMap::new(),
        }
    }
}

/// Slots that go on elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Where they were.
    pub from: NodeId,
    /// Where they are to be; `None`: no node has a place for them.
    pub to: Option<NodeId>,
    /// Which.
    pub slots: SlotSet,
}

impl Move {
    /// What lies between two placements of one service.
    pub fn between(before: &Placed, after: &Placed) -> Vec<Move> {
        let flat = |placed: &Placed| {
            let mut all: Vec<((u32, u32), NodeId)> = placed
                .iter()
                .flat_map(|(id, s)| s.0.iter().map(|r| (*r, *id)))
                .collect();
            all.sort_unstable();
            all
        };
        let mut out = Vec::new();
        for m in moves(&flat(before), &flat(after), u32::MAX) {
            if m.to.is_some_and(|to| to != m.from) {
                tell(&mut out, m);
            }
        }
        out
    }
}

/// Adds a move; to the last one, if it goes the same way.
fn tell(out: &mut Vec<Move>, more: Move) {
    match out.last_mut() {
        Some(m) if m.from == more.from && m.to == more.to => m.slots = slots::union(&m.slots, &more.slots),
        _ => out.push(more),
    }
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Where the slots are to be.
    pub placed: Placed,
    /// Slots that ran and are not given up, but may not stay where they are; by slot.
    pub moves: Vec<Move>,
    /// Slots that there should be.
    pub wanted: u32,
    /// Slots without a node.
    pub unplaced: u32,
    /// If there are some, or nothing at all is wanted of a global service: nodes that each filter excluded, in the
    /// filters' order.
    pub excluded: Vec<(Filter, u32)>,
}

/// A node while it is filled.
#[derive(Debug, Clone, Copy)]
struct Fill<'a> {
    host: &'a Host<'a>,
    /// Slots that stay.
    has: u32,
    /// The most that it may have in all.
    cap: u32,
    /// What it is to have.
    want: u32,
    /// What it had, if all is placed anew: of equals, who had more gets first, so that less moves.
    liked: u32,
    /// What keeps it from having more than `cap`.
    limit: Filter,
}

/// Places a service anew; `before` is where its slots are.
///
/// `hosts` is sorted by id and names every node; what is placed on others is moved.
pub fn place(before: &Placed, hosts: &[Host<'_>], ask: &Request<'_>) -> Plan {
    let filters = filter::Filters::new(ask);
    if ask.mode == Mode::Global {
        return global(before, hosts, &filters);
    }
    let replicas = ask.replicas;
    let (mut placed, mut lost) = (Placed::new(), Vec::new());
    let mut fills = Vec::with_capacity(hosts.len());
    let mut olds = before.iter().peekable();
    for host in hosts {
        while let Some((gone, slots)) = olds.next_if(|o| *o.0 < host.id) {
            lost.extend(slots.0.iter().map(|r| (*r, *gone)));
        }
        let slots = olds.next_if(|o| *o.0 == host.id).map(|o| o.1);
        let had = slots.map_or(0, SlotSet::len);
        let verdict = filters.look(host, had);
        if let Some(slots) = slots.filter(|s| !s.is_empty()) {
            let (stay, go) = slots::split_highest(slots, had - verdict.keeps);
            lost.extend(go.0.iter().map(|r| (*r, host.id)));
            if !stay.is_empty() {
                placed.insert(host.id, stay);
            }
        }
        fills.push(Fill {
            host,
            has: verdict.keeps,
            cap: verdict.cap,
            want: verdict.keeps,
            liked: 0,
            limit: verdict.limit,
        });
    }
    lost.extend(olds.flat_map(|(gone, slots)| slots.0.iter().map(|r| (*r, *gone))));

    let kept: u32 = fills.iter().map(|f| f.has).sum();
    let mut plan = Plan {
        wanted: replicas,
        ..Plan::default()
    };
    if kept >= replicas {
        strategy::drain(&mut fills, ask, &placed, kept - replicas);
        for f in fills.iter().filter(|f| f.want < f.has) {
            if let Some(slots) = placed.get_mut(&f.host.id) {
                slots::drop_highest(slots, f.has - f.want);
            }
        }
        placed.retain(|_, slots| !slots.is_empty());
        plan.placed = placed;
        return plan;
    }

    let missing = replicas - kept;
    // A slot that loses its node keeps its number; the highest are given up, if there are too many.
    lost.sort_unstable();
    let mut moving = slots::normal(lost.iter().map(|l| l.0).collect());
    let surplus = moving.len().saturating_sub(missing);
    slots::drop_highest(&mut moving, surplus);
    let last = moving.0.last().map_or(0, |r| r.1);
    let new = missing - moving.len();
    if new > 0 {
        let mut used: Vec<(u32, u32)> = placed.values().flat_map(|s| s.0.iter().copied()).collect();
        used.extend_from_slice(&moving.0);
        used.sort_unstable();
        moving = slots::union(&moving, &slots::lowest_free(&slots::normal(used), new));
    }
    plan.unplaced = strategy::fill(&mut fills, ask, missing);
    let mut queue = slots::Queue::new(moving);
    let mut given: Vec<((u32, u32), NodeId)> = Vec::new();
    for f in fills.iter().filter(|f| f.want > f.has) {
        let more = queue.take(f.want - f.has);
        given.extend(more.0.iter().map(|r| (*r, f.host.id)));
        let set = placed.entry(f.host.id).or_default();
        *set = slots::union(set, &more);
    }
    plan.placed = placed;
    plan.moves = moves(&lost, &given, last);
    if plan.unplaced > 0 {
        plan.excluded = filter::tally(fills.iter().map(|f| f.limit));
    }
    plan
}

/// Whether a node that has `had` slots of a service may have `want`.
pub fn may_have(host: &Host<'_>, ask: &Request<'_>, had: u32, want: u32) -> bool {
    let verdict = filter::Filters::new(ask).look(host, had);
    verdict.keeps.max(verdict.cap) >= want
}

/// One slot on each node that may have one: its number is the node's.
fn global(before: &Placed, hosts: &[Host<'_>], filters: &filter::Filters<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut limits = Vec::new();
    for host in hosts {
        let number = Some(host.id.0).filter(|n| *n <= MAX_GLOBAL);
        let Some(slot) = number.and_then(|n| u32::try_from(n).ok()) else {
            continue;
        };
        let had = before.get(&host.id).is_some_and(|s| s.contains(slot));
        let verdict = filters.look(host, u32::from(had));
        if verdict.cap.max(verdict.keeps) > 0 {
            plan.placed.insert(host.id, SlotSet(vec![(slot, slot)]));
            continue;
        }
        // A node that it is not meant for lacks nothing.
        if !verdict.limit.is_meant() {
            plan.unplaced += 1;
        }
        limits.push(verdict.limit);
    }
    plan.wanted = u32::try_from(plan.placed.len()).unwrap_or(u32::MAX) + plan.unplaced;
    if plan.wanted == 0 {
        plan.excluded = filter::tally(limits.into_iter());
    } else {
        plan.excluded = filter::tally(limits.into_iter().filter(|l| !l.is_meant()));
    }
    plan
}

/// From where to where: `lost` (sorted by slot, up to slot `last`) meets `given` (ascending).
fn moves(lost: &[((u32, u32), NodeId)], given: &[((u32, u32), NodeId)], last: u32) -> Vec<Move> {
    let mut out: Vec<Move> = Vec::new();
    let mut at = 0;
    for ((mut low, high), from) in lost.iter().copied() {
        let high = high.min(last);
        while low <= high {
            while given.get(at).is_some_and(|g| g.0.1 < low) {
                at += 1;
            }
            let (upto, to) = match given.get(at) {
                Some((g, to)) if g.0 <= low => (high.min(g.1), Some(*to)),
                Some((g, _)) => (high.min(g.0 - 1), None),
                None => (high, None),
            };
            let slots = SlotSet(vec![(low, upto)]);
            tell(&mut out, Move { from, to, slots });
            low = upto + 1;
        }
    }
    out
}
