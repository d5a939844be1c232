//! Placements after a command, recomputed only where it can have changed them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::{
    Name, NodeId, PublishMode, Shared,
    intent::{Placed, Rollout, Service, SlotSet},
    spec::{Mode, Resources},
};

use super::{Applied, Refusal, State, orderly};
use crate::mutant::{self, Mutant};
use crate::placement::{self, Board, Host, Load, Other, Plan, Request, slots};

/// A global service's surge slot on node `n` is `SURGE_OF_NODE + n`: its slots are the nodes' numbers.
pub const SURGE_OF_NODE: u32 = 1_000_000_000;

/// What becomes of a service.
struct Outcome {
    /// It is on nodes on which it was not before.
    gained: bool,
    /// Slots that go on on another node.
    moved: u32,
}

impl State {
    /// Every node as `service`'s placement sees it, by id; `beside` are slots of its own that have room there whatever
    /// is placed: those placed apart, and those that go on there until they run elsewhere. All maps are walked once: a
    /// million tasks are a few thousand steps here.
    fn hosts(&self, name: &Name, own: [&Placed; 2], beside: &Placed, each: Resources) -> Vec<Host<'_>> {
        let mut own = own.map(|placed| placed.iter().peekable());
        let mut loads = self.loads.iter().peekable();
        let nodes = self.intent.nodes.iter();
        nodes
            .map(|(id, node)| {
                while loads.next_if(|l| l.0 < id).is_some() {}
                let mut others = loads.next_if(|l| l.0 == id).map_or(Load::default(), |l| *l.1);
                for placed in &mut own {
                    while placed.next_if(|p| p.0 < id).is_some() {}
                    others.sub(placed.next_if(|p| p.0 == id).map_or(0, |p| p.1.len()), each);
                }
                others.add(beside.get(id).map_or(0, SlotSet::len), each);
                Host {
                    id: *id,
                    node,
                    others,
                    avoid: self.avoids(name, *id),
                }
            })
            .collect()
    }

    fn other<'a>(&'a self, name: &'a Name) -> Other<'a> {
        Other {
            name,
            exists: self.intent.services.contains_key(name),
            placed: self.intent.placements.get(name).map(|p| &**p),
        }
    }

    pub(super) fn request<'a>(&'a self, name: &'a Name, service: &'a Service) -> Request<'a> {
        let spec = &service.spec;
        let mut ask = Request::new(name, &spec.placement, spec.replicas);
        ask.mode = spec.mode;
        if spec.command.is_empty() {
            // There is nothing that netd could start: an orchestrator attaches the endpoints.
            (ask.mode, ask.replicas) = (Mode::Replicated, 0);
        }
        let others = |names: &'a [Name]| names.iter().map(|n| self.other(n)).collect();
        ask.near = others(&spec.placement.near);
        ask.apart = others(&spec.placement.apart);
        ask.after = others(&spec.placement.after);
        if !spec.command.is_empty() {
            self.host_ports(&mut ask, service);
        }
        ask
    }

    /// Ports that each task holds on its node, and the nodes on which other services hold one of them.
    fn host_ports(&self, ask: &mut Request<'_>, service: &Service) {
        let ports = service.ports.values().filter(|p| p.spec.mode == PublishMode::Host);
        for port in ports.map(|p| &p.spec) {
            let key = port.key();
            let holders = self.ports.get(&(port.published, port.proto)).into_iter().flatten();
            for (_, who) in holders.filter(|(other, who)| who != ask.service && other.meets(port)) {
                let maps = [self.intent.placements.get(who), self.intent.leaving.get(who)];
                for node in maps.into_iter().flatten().flat_map(|p| p.keys()) {
                    ask.taken.entry(*node).or_default().insert(key.clone());
                }
            }
            ask.host_ports.insert(key);
        }
    }

    /// Places one service anew. Returns whether it is on nodes on which it was not before.
    pub(super) fn place(&mut self, index: u64, name: &Name) -> bool {
        self.place_by(index, name, placement::place).gained
    }

    /// Places one service by `how`. Slots beyond those asked for (a rollout's surge) are placed apart from the others, and
    /// what moves off a living node goes on there too ([`orderly`]).
    fn place_by(
        &mut self,
        index: u64,
        name: &Name,
        how: impl FnOnce(&Placed, &[Host<'_>], &Request<'_>) -> Plan,
    ) -> Outcome {
        let before = self.intent.placements.get(name).cloned().unwrap_or_default();
        let left = self.intent.leaving.get(name).cloned().unwrap_or_default();
        let Some(service) = self.intent.services.get(name) else {
            let gained = false;
            return Outcome { gained, moved: 0 };
        };
        let ask = self.request(name, service);
        let open = service.rollout.as_ref().filter(|r| r.is_open());
        let asked_for = open.map(|r| r.surge.clone()).unwrap_or_default();
        // After a change between replicated and global, some have numbers that are no surge's.
        let high = SlotSet(vec![(SURGE_OF_NODE, u32::MAX)]);
        let mut surge = match ask.mode {
            Mode::Replicated => slots::minus(&asked_for, &high),
            Mode::Global => slots::common(&asked_for, &high),
        };
        let alive = |id: &NodeId| self.intent.nodes.get(id).is_some_and(|n| !n.down);
        let mut placed = orderly::with_homeless(&before, &left, alive);
        let mut extra = orderly::take(&mut placed, &asked_for);
        let mut extra = orderly::take(&mut extra, &surge);
        if ask.mode == Mode::Replicated {
            orderly::promote(&mut placed, &mut extra, ask.replicas);
        }
        surge = slots::minus(&surge, &slots::all(placed.values()));
        let each = service.spec.placement.reserve;
        let own = [&*before, &*left];
        let mut beside = orderly::apart(&left, &placed);
        orderly::join(&mut beside, extra.clone());
        let plan = how(&placed, &self.hosts(name, own, &beside, each), &ask);
        let problem = placement::problem(&plan, &ask);
        let moved = plan.moves.iter().filter(|m| m.to.is_some_and(|to| to != m.from));
        let moved = moved.map(|m| m.slots.len()).sum();
        // A global service's slot has no other node that it could wait for.
        let missing = match ask.mode {
            Mode::Replicated => plan.unplaced,
            Mode::Global => 0,
        };
        let mut placed = plan.placed;
        let going = |placed: &Placed| match mutant::on(Mutant::CutMoved) {
            true => BTreeMap::new(),
            false => {
                let apart = slots::minus(&asked_for, &slots::all(placed.values()));
                orderly::leaving(&before, &left, placed, &apart, missing, alive)
            }
        };
        if !surge.is_empty() {
            let mut all = placed.clone();
            orderly::join(&mut all, extra.clone());
            let hosts = self.hosts(name, own, &going(&all), each);
            match ask.mode {
                Mode::Replicated => place_surge(&mut placed, extra, &surge, &hosts, &ask),
                Mode::Global => place_fixed(&mut placed, &extra, &surge, &hosts, &ask),
            }
        }
        if mutant::on(Mutant::PlaceTwice)
            && let Some(slots) = placed.values().next().cloned()
            && let Some(last) = placed.values_mut().next_back()
        {
            *last = slots;
        }
        let leaving = going(&placed);
        let gained = placed.keys().any(|id| !before.contains_key(id));
        let said = service.problem != problem;
        self.count(&before, &placed, each);
        self.count(&left, &leaving, each);
        self.keep_placed(index, name, placed, leaving, &surge);
        if said && let Some(s) = self.change(index).services.get_mut(name) {
            s.problem = problem;
        }
        Outcome { gained, moved }
    }

    /// Ends slots beyond those asked for that are wanted no more, as far as the service has enough without them.
    pub(super) fn drop_surge(&mut self, index: u64, name: &Name, mut dropped: SlotSet) {
        let Some(service) = self.intent.services.get(name) else {
            return;
        };
        let before = self.intent.placements.get(name).cloned().unwrap_or_default();
        let surge = service.rollout.as_ref().map(|r| r.surge.clone()).unwrap_or_default();
        let others = slots::minus(&slots::minus(&slots::all(before.values()), &surge), &dropped);
        if service.spec.mode == Mode::Replicated {
            slots::take_lowest(&mut dropped, service.spec.replicas.saturating_sub(others.len()));
        }
        let mut placed = (*before).clone();
        orderly::take(&mut placed, &dropped);
        self.count(&before, &placed, self.reserve(name));
        // One that was on the move goes on at its old place no more either: it would come back as one that was asked for.
        let before = self.intent.leaving.get(name).cloned().unwrap_or_default();
        let mut left = (*before).clone();
        orderly::take(&mut left, &dropped);
        self.count(&before, &left, self.reserve(name));
        orderly::put(self, index, |i| &i.placements, |i| &mut i.placements, name, placed);
        orderly::put(self, index, |i| &i.leaving, |i| &mut i.leaving, name, left);
    }

    /// Puts a placement into the intent, and what it means for a rollout: what is placed nowhere is not waited for.
    fn keep_placed(&mut self, index: u64, name: &Name, placed: Placed, leaving: Placed, surge: &SlotSet) {
        let surge = slots::common(surge, &slots::all(placed.values()));
        let there = slots::all(placed.values().chain(leaving.values()));
        orderly::put(self, index, |i| &i.placements, |i| &mut i.placements, name, placed);
        orderly::put(self, index, |i| &i.leaving, |i| &mut i.leaving, name, leaving);
        let Some(rollout) = self.intent.services.get(name).and_then(|s| s.rollout.as_ref()) else {
            return;
        };
        let mut now = Rollout {
            surge,
            ..rollout.clone()
        };
        for p in &mut now.pending {
            p.slots = slots::common(&p.slots, &there);
        }
        now.pending.retain(|p| !p.slots.is_empty());
        if now != *rollout
            && let Some(s) = self.change(index).services.get_mut(name)
        {
            s.rollout = Some(now);
        }
    }

    /// Places services anew, and after them those that wait for one of them.
    pub(super) fn place_all(&mut self, index: u64, names: impl IntoIterator<Item = Name>) {
        self.in_turn(names, |state, name| state.place(index, name));
    }

    /// Does `place` to services, and after one that gained nodes to those that wait for it.
    fn in_turn(&mut self, names: impl IntoIterator<Item = Name>, mut place: impl FnMut(&mut State, &Name) -> bool) {
        let mut queue: VecDeque<Name> = names.into_iter().collect();
        let services = self.intent.services.iter();
        let follow = services.filter(|(_, s)| !s.spec.placement.near.is_empty() || !s.spec.placement.after.is_empty());
        let follow: Vec<Name> = follow.map(|(n, _)| n.clone()).collect();
        // Whoever gains nodes lacks fewer from then on: this ends.
        while let Some(name) = queue.pop_front() {
            if !place(self, &name) {
                continue;
            }
            let waits = follow.iter().filter(|n| {
                self.intent.services.get(*n).is_some_and(|s| {
                    let p = &s.spec.placement;
                    s.problem.is_some() && (p.near.contains(&name) || p.after.contains(&name))
                })
            });
            let waits: Vec<Name> = waits.filter(|n| !queue.contains(n)).cloned().collect();
            queue.extend(waits);
        }
    }

    /// Services that a change of a node concerns: what is there, and what had no node until now.
    pub(super) fn around(&self, node: NodeId) -> Vec<Name> {
        let both = self.intent.placements.iter().chain(&self.intent.leaving);
        let there: BTreeSet<Name> = both
            .filter(|(_, p)| p.contains_key(&node))
            .map(|(name, _)| name.clone())
            .collect();
        let short = self.short();
        let more = short.into_iter().filter(|n| !there.contains(n));
        there.iter().cloned().chain(more).collect()
    }

    /// After a change of a node: moves what it may no longer keep, and places what had no node until now.
    pub(super) fn place_around(&mut self, index: u64, node: NodeId) {
        let names = self.around(node);
        if self.intent.nodes.get(&node).is_some_and(|n| !n.down) {
            return self.place_all(index, names);
        }
        // All that is lost is known: hundreds of services get it back without a picture of the nodes for each.
        let mut board = None;
        self.in_turn(names, |state, name| {
            let drawn = board.get_or_insert_with(|| Board::new(&state.intent.nodes, &state.loads));
            state.refill(index, name, drawn).unwrap_or_else(|| {
                // What this changes is not on the board.
                board = None;
                state.place(index, name)
            })
        });
    }

    /// After something has ended on a node: places what had no node until now.
    pub(super) fn place_waiting(&mut self, index: u64) {
        let services = self.intent.services.iter().filter(|(_, s)| s.problem.is_some());
        let names: Vec<Name> = services.map(|(name, _)| name.clone()).collect();
        self.place_all(index, names);
    }

    /// Places what had no node until now, and what belongs on every node.
    pub(super) fn place_missing(&mut self, index: u64) {
        let short = self.short();
        self.place_all(index, short);
    }

    fn short(&self) -> Vec<Name> {
        let services = self.intent.services.iter();
        services
            .filter(|(_, s)| s.problem.is_some() || s.spec.mode == Mode::Global)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Moves running slots, so many at most, to where they would be if all were placed anew.
    pub(super) fn rebalance(&mut self, index: u64, name: &Name, budget: u32) -> Result<Applied, Refusal> {
        self.service(name)?;
        let how =
            |before: &Placed, hosts: &[Host<'_>], ask: &Request<'_>| placement::rebalance(before, hosts, ask, budget);
        Ok(Applied::Moved(self.place_by(index, name, how).moved))
    }

    /// What each task of a service reserves.
    pub(super) fn reserve(&self, name: &Name) -> Resources {
        let service = self.intent.services.get(name);
        service.map(|s| s.spec.placement.reserve).unwrap_or_default()
    }

    /// Brings what is on each node up to date with a new placement of a service.
    pub(super) fn count(&mut self, before: &Placed, now: &Placed, each: Resources) {
        let changed: BTreeSet<&NodeId> = before
            .iter()
            .filter(|(id, slots)| now.get(id).map(SlotSet::len) != Some(slots.len()))
            .map(|(id, _)| id)
            .chain(now.keys().filter(|id| !before.contains_key(id)))
            .collect();
        for id in changed {
            let load = self.loads.entry(*id).or_default();
            load.sub(before.get(id).map_or(0, SlotSet::len), each);
            load.add(now.get(id).map_or(0, SlotSet::len), each);
            if load.tasks == 0 {
                self.loads.remove(id);
            }
        }
    }

    /// Where a service's tasks are: where they are placed, and where they go on until then.
    fn there(&self, name: &Name) -> Vec<Shared<Placed>> {
        let maps = [&self.intent.placements, &self.intent.leaving];
        maps.into_iter().filter_map(|m| m.get(name).cloned()).collect()
    }

    /// Counts what a service's tasks reserve as something else from now on.
    pub(super) fn weigh(&mut self, name: &Name, old: Resources, new: Resources) {
        if old == new {
            return;
        }
        let nothing = Placed::new();
        for placed in self.there(name) {
            self.count(&placed, &nothing, old);
            self.count(&nothing, &placed, new);
        }
    }

    /// Takes a service's tasks away.
    pub(super) fn unplace(&mut self, index: u64, name: &Name) {
        let (each, nothing) = (self.reserve(name), Placed::new);
        for placed in self.there(name) {
            self.count(&placed, &nothing(), each);
        }
        orderly::put(self, index, |i| &i.placements, |i| &mut i.placements, name, nothing());
        orderly::put(self, index, |i| &i.leaving, |i| &mut i.leaving, name, nothing());
    }

    /// Computes what is derived, after the state was read from a snapshot.
    pub(super) fn derive(&mut self) {
        self.loads.clear();
        let intent = self.intent();
        for (name, placed) in intent.placements.iter().chain(&intent.leaving) {
            self.count(&Placed::new(), placed, self.reserve(name));
        }
        self.ports.clear();
        for (name, service) in &intent.services {
            for port in service.ports.values() {
                self.hold_port(name, &port.spec);
            }
        }
    }
}

/// Adds a replicated service's slots beyond those asked for, by the rules that it is placed by: `extra` are those that
/// are there. They stay, those that lost their node move, and what no node takes is left out.
fn place_surge(placed: &mut Placed, extra: Placed, surge: &SlotSet, hosts: &[Host<'_>], ask: &Request<'_>) {
    let main = slots::all(placed.values());
    let mut before = placed.clone();
    orderly::join(&mut before, extra);
    let had = slots::all(before.values());
    let new = slots::minus(surge, &had);
    let mut ask = ask.clone();
    ask.replicas = had.len().saturating_add(new.len());
    let mut plan = placement::place(&before, hosts, &ask).placed;
    // New slots get the lowest free numbers: they are the surge's all the same.
    let got = slots::minus(&slots::all(plan.values()), &had);
    let named: BTreeMap<u32, u32> = got.iter().zip(new.iter()).collect();
    for set in plan.values_mut() {
        let more = slots::minus(set, &had);
        let more: SlotSet = more.iter().filter_map(|s| named.get(&s).copied()).collect();
        *set = slots::union(&slots::minus(&slots::common(set, &had), &main), &more);
    }
    // What was asked for lies where it lies, whatever is added.
    orderly::join(placed, plan);
}

/// Adds a global service's slots beyond those asked for, each on the node that its number names: `extra` are those that
/// are there.
fn place_fixed(placed: &mut Placed, extra: &Placed, surge: &SlotSet, hosts: &[Host<'_>], ask: &Request<'_>) {
    for slot in surge.iter() {
        let node = NodeId(u64::from(slot.saturating_sub(SURGE_OF_NODE)));
        let at = hosts.binary_search_by_key(&node, |h| h.id);
        let want = placed.get(&node).map_or(0, SlotSet::len) + 1;
        let had = match extra.get(&node).is_some_and(|s| s.contains(slot)) {
            true => want,
            false => want - 1,
        };
        let host = at.ok().and_then(|at| hosts.get(at));
        if host.is_some_and(|h| placement::may_have(h, ask, had, want)) {
            let set = placed.entry(node).or_default();
            *set = slots::union(set, &SlotSet(vec![(slot, slot)]));
        }
    }
}
