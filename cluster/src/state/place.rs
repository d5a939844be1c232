//! Placements after a command, recomputed only where it can have changed them.

use std::collections::{BTreeSet, VecDeque};

use model::{
    Name, NodeId, Shared,
    intent::{Placed, Service, SlotSet},
    spec::{Mode, Resources},
};

use super::{Applied, Refusal, State};
use crate::mutant::{self, Mutant};
use crate::placement::{self, Host, Load, Other, Plan, Request};

/// A plan, and what it lacks in words.
type Planned = (Plan, Option<String>);

impl State {
    /// Every node as `service`'s placement sees it, by id. All maps are walked once: a million tasks are a few thousand
    /// steps here.
    fn hosts(&self, placed: &Placed, each: Resources) -> Vec<Host<'_>> {
        let mut placed = placed.iter().peekable();
        let mut loads = self.loads.iter().peekable();
        let nodes = self.intent.nodes.iter();
        nodes
            .map(|(id, node)| {
                while placed.next_if(|p| p.0 < id).is_some() {}
                while loads.next_if(|l| l.0 < id).is_some() {}
                let mine = placed.next_if(|p| p.0 == id).map_or(0, |p| p.1.len());
                let mut others = loads.next_if(|l| l.0 == id).map_or(Load::default(), |l| *l.1);
                others.sub(mine, each);
                Host {
                    id: *id,
                    node,
                    others,
                    avoid: false,
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

    fn request<'a>(&'a self, name: &'a Name, service: &'a Service) -> Request<'a> {
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
        ask
    }

    /// What is to become of a service's placement: by `how`, from what is placed, the nodes and what is asked for.
    fn plan(&self, name: &Name, how: impl FnOnce(&Placed, &[Host<'_>], &Request<'_>) -> Plan) -> Planned {
        let nothing = Placed::new();
        let before = self.intent.placements.get(name).map_or(&nothing, |p| &**p);
        let Some(service) = self.intent.services.get(name) else {
            return Planned::default();
        };
        let ask = self.request(name, service);
        let hosts = self.hosts(before, service.spec.placement.reserve);
        let plan = how(before, &hosts, &ask);
        let problem = placement::problem(&plan, &ask);
        (plan, problem)
    }

    /// Places one service anew. Returns whether it is on nodes on which it was not before.
    pub(super) fn place(&mut self, index: u64, name: &Name) -> bool {
        let planned = self.plan(name, placement::place);
        self.carry_out(index, name, planned)
    }

    fn carry_out(&mut self, index: u64, name: &Name, (plan, problem): Planned) -> bool {
        let mut placed = plan.placed;
        if mutant::on(Mutant::PlaceTwice)
            && let Some(slots) = placed.values().next().cloned()
            && let Some(last) = placed.values_mut().next_back()
        {
            *last = slots;
        }
        let before = self.intent.placements.get(name).cloned().unwrap_or_default();
        let gained = placed.keys().any(|id| !before.contains_key(id));
        if *before != placed {
            let each = self.reserve(name);
            self.count(&before, &placed, each);
            let placements = &mut self.change(index).placements;
            if placed.is_empty() {
                placements.remove(name);
            } else {
                placements.insert(name.clone(), Shared::new(placed));
            }
        }
        let said = self.intent.services.get(name).map(|s| &s.problem);
        if said.is_some_and(|said| *said != problem)
            && let Some(s) = self.change(index).services.get_mut(name)
        {
            s.problem = problem;
        }
        gained
    }

    /// Places services anew, and after them those that wait for one of them.
    pub(super) fn place_all(&mut self, index: u64, names: impl IntoIterator<Item = Name>) {
        let mut queue: VecDeque<Name> = names.into_iter().collect();
        // Whoever gains nodes lacks fewer from then on: this ends.
        while let Some(name) = queue.pop_front() {
            if !self.place(index, &name) {
                continue;
            }
            let services = self.intent.services.iter().filter(|(_, s)| s.problem.is_some());
            let waits = services.filter(|(_, s)| {
                let p = &s.spec.placement;
                p.near.contains(&name) || p.after.contains(&name)
            });
            let waits: Vec<Name> = waits.map(|(n, _)| n.clone()).filter(|n| !queue.contains(n)).collect();
            queue.extend(waits);
        }
    }

    /// After a change of a node: moves what it may no longer keep, and places what had no node until now.
    pub(super) fn place_around(&mut self, index: u64, node: NodeId) {
        let placements = self.intent.placements.iter();
        let there: Vec<Name> = placements
            .filter(|(_, p)| p.contains_key(&node))
            .map(|(name, _)| name.clone())
            .collect();
        let short = self.short();
        let more = short.into_iter().filter(|n| there.binary_search(n).is_err());
        let names: Vec<Name> = there.iter().cloned().chain(more).collect();
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
        let planned = self.plan(name, |before, hosts, ask| {
            placement::rebalance(before, hosts, ask, budget)
        });
        let moved = planned.0.moves.iter().map(|m| m.slots.len()).sum();
        self.carry_out(index, name, planned);
        Ok(Applied::Moved(moved))
    }

    /// What each task of a service reserves.
    fn reserve(&self, name: &Name) -> Resources {
        let service = self.intent.services.get(name);
        service.map(|s| s.spec.placement.reserve).unwrap_or_default()
    }

    /// Brings what is on each node up to date with a new placement of a service.
    fn count(&mut self, before: &Placed, now: &Placed, each: Resources) {
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

    /// Counts what a service's tasks reserve as something else from now on.
    pub(super) fn weigh(&mut self, name: &Name, old: Resources, new: Resources) {
        if old == new {
            return;
        }
        if let Some(placed) = self.intent.placements.get(name).cloned() {
            let nothing = Placed::new();
            self.count(&placed, &nothing, old);
            self.count(&nothing, &placed, new);
        }
    }

    /// Takes a service's tasks away.
    pub(super) fn unplace(&mut self, index: u64, name: &Name) {
        if let Some(placed) = self.intent.placements.get(name).cloned() {
            let each = self.reserve(name);
            self.count(&placed, &Placed::new(), each);
            self.change(index).placements.remove(name);
        }
    }

    /// Computes what is derived, after the state was read from a snapshot.
    pub(super) fn derive(&mut self) {
        self.loads.clear();
        let intent = self.intent();
        for (name, placed) in &intent.placements {
            self.count(&Placed::new(), placed, self.reserve(name));
        }
        let services = self.intent.services.iter();
        self.ports = services
            .flat_map(|(name, s)| s.ports.keys().map(|k| (k.clone(), name.clone())))
            .collect();
    }
}
