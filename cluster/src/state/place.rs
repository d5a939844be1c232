//! Placements after a command, recomputed only where it can have changed them.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Name, NodeId, PortSpec, PublishMode,
    intent::{Availability, SlotSet},
    spec::Mode,
};

use super::{State, orderly};
use crate::mutant::{self, Mutant};
use crate::placement::{self, Host, slots};

/// A global service's surge slot on node `n` is `SURGE_OF_NODE + n`: its slots are the nodes' numbers.
pub const SURGE_OF_NODE: u32 = 1_000_000_000;

impl State {
    /// Every node as `service`'s placement sees it, by id. Both maps are walked once: a million tasks are a few thousand
    /// steps here.
    fn hosts(&self, name: &Name, placed: &BTreeMap<NodeId, SlotSet>) -> Vec<Host> {
        let mut placed = placed.iter().peekable();
        let mut loads = self.loads.iter().peekable();
        let nodes = self.intent.nodes.iter();
        nodes
            .map(|(id, node)| {
                while placed.next_if(|p| p.0 < id).is_some() {}
                while loads.next_if(|l| l.0 < id).is_some() {}
                let mine = placed.next_if(|p| p.0 == id).map_or(0, |p| p.1.len());
                let all = loads.next_if(|l| l.0 == id).map_or(0, |l| *l.1);
                Host {
                    id: *id,
                    keeps: !node.down && (node.availability != Availability::Drain || mutant::on(Mutant::IgnoreDrain)),
                    takes: !node.down && node.availability == Availability::Active && !self.avoids(name, *id),
                    others: all.saturating_sub(u64::from(mine)),
                }
            })
            .collect()
    }

    /// Places one service anew. Slots beyond those asked for (a rollout's surge) are placed apart from the others, and
    /// what moves off a living node goes on there too ([`orderly`]).
    pub(super) fn place(&mut self, index: u64, name: &Name) {
        let none = BTreeMap::new();
        let before = self.intent.placements.get(name).unwrap_or(&none).clone();
        let left = self.intent.leaving.get(name).unwrap_or(&none).clone();
        let (replicas, problem, surge) = match self.intent.services.get(name) {
            Some(s) => {
                let surge = s.rollout.as_ref().filter(|r| r.is_open()).map(|r| r.surge.clone());
                // Without a command there is nothing that netd could start: an orchestrator attaches the endpoints.
                let replicas = if s.spec.command.is_empty() { 0 } else { s.spec.replicas };
                (replicas, s.problem.clone(), surge.unwrap_or_default())
            }
            None => (0, None, SlotSet::default()),
        };
        let mut placed = orderly::with_homeless(&before, &left);
        let mut extra = orderly::take(&mut placed, &surge);
        orderly::promote(&mut placed, &mut extra, replicas);
        let surge = slots::minus(&surge, &slots::all(placed.values()));
        let mut hosts = self.hosts(name, &placed);
        let ports = self.host_ports(name);
        let room = match ports.is_empty() {
            true => replicas,
            false => self.one_each(name, &ports, &mut placed, &mut hosts),
        };
        let unplaced = placement::spread(&mut placed, &hosts, replicas.min(room)) + replicas.saturating_sub(room);
        let wanted = orderly::unplaced(&surge, &placed, &extra);
        orderly::join(&mut placed, extra);
        if !surge.is_empty() {
            self.place_surge(name, &mut placed, &wanted);
        }
        if mutant::on(Mutant::PlaceTwice)
            && let Some(slots) = placed.values().next().cloned()
            && let Some(last) = placed.values_mut().next_back()
        {
            *last = slots;
        }
        let alive = |id: &NodeId| self.intent.nodes.get(id).is_some_and(|n| !n.down);
        let leaving = match mutant::on(Mutant::CutMoved) {
            true => BTreeMap::new(),
            false => orderly::leaving(&before, &left, &placed, &surge, unplaced, alive),
        };
        let now = (unplaced > 0).then(|| {
            let keys: Vec<String> = ports.iter().map(PortSpec::key).collect();
            match keys.is_empty() {
                true => format!("{unplaced} of {replicas} tasks have no node: none is active and up; try: netctl node ls"),
                false => format!(
                    "{unplaced} of {replicas} tasks have no node: each node has room for one task with the host port {}, \
                     and none is left that is active and up; try: netctl node ls, or fewer tasks",
                    keys.join(", ")
                ),
            }
        });
        if before != placed {
            self.count(name, &placed);
        }
        self.keep_placed(index, name, placed, leaving, &surge);
        if now != problem
            && let Some(s) = self.change(index).services.get_mut(name)
        {
            s.problem = now;
        }
    }

    /// Ports that each task of a service holds on its node.
    fn host_ports(&self, name: &Name) -> Vec<PortSpec> {
        let service = self.intent.services.get(name).filter(|s| !s.spec.command.is_empty());
        let ports = service.into_iter().flat_map(|s| s.ports.values());
        let held = ports.filter(|p| p.spec.mode == PublishMode::Host);
        held.map(|p| p.spec).collect()
    }

    /// One task a node with such ports, and none beside another service's that has them. Says how many there may be.
    fn one_each(
        &self,
        name: &Name,
        ports: &[PortSpec],
        placed: &mut BTreeMap<NodeId, SlotSet>,
        hosts: &mut [Host],
    ) -> u32 {
        let mut held: BTreeSet<NodeId> = BTreeSet::new();
        for port in ports {
            let holders = self.ports.get(&(port.published, port.proto));
            for (other, who) in holders.into_iter().flatten() {
                if who != name && other.meets(port) {
                    let nodes = [self.intent.placements.get(who), self.intent.leaving.get(who)];
                    held.extend(nodes.into_iter().flatten().flat_map(|p| p.keys().copied()));
                }
            }
        }
        for slots in placed.values_mut() {
            placement::slots::drop_highest(slots, slots.len().saturating_sub(1));
        }
        let mut room = 0;
        for host in hosts {
            let free = !held.contains(&host.id);
            (host.keeps, host.takes) = (host.keeps && free, host.takes && free);
            let has = placed.contains_key(&host.id);
            room += u32::from(if has { host.keeps } else { host.takes });
        }
        room
    }

    /// Adds slots beyond those asked for: of a replicated service to the nodes that suit it, of a global one to the node
    /// that the number names. Those that are there stay, those that lost their node move.
    fn place_surge(&self, name: &Name, placed: &mut BTreeMap<NodeId, SlotSet>, wanted: &SlotSet) {
        let (fixed, free): (Vec<u32>, Vec<u32>) = wanted.iter().partition(|s| *s >= SURGE_OF_NODE);
        let hosts = self.hosts(name, placed);
        for slot in fixed {
            let node = NodeId(u64::from(slot - SURGE_OF_NODE));
            if hosts.iter().any(|h| h.id == node && h.takes) {
                let set = placed.entry(node).or_default();
                *set = slots::union(set, &SlotSet(vec![(slot, slot)]));
            }
        }
        let had = slots::all(placed.values());
        let total = had.len() + u32::try_from(free.len()).unwrap_or(u32::MAX);
        placement::spread(placed, &hosts, total);
        // Placement gives new slots the lowest free numbers: they are the surge's all the same.
        let new = slots::minus(&slots::all(placed.values()), &had);
        let named: BTreeMap<u32, u32> = new.iter().zip(free).collect();
        for set in placed.values_mut() {
            *set = set.iter().map(|s| named.get(&s).copied().unwrap_or(s)).collect();
        }
    }

    /// Ends slots beyond those asked for that are wanted no more, as far as the service has enough without them.
    pub(super) fn drop_surge(&mut self, index: u64, name: &Name, mut dropped: SlotSet) {
        let Some(service) = self.intent.services.get(name) else {
            return;
        };
        let mut placed = self.intent.placements.get(name).cloned().unwrap_or_default();
        let surge = service.rollout.as_ref().map(|r| r.surge.clone()).unwrap_or_default();
        let others = slots::minus(&slots::minus(&slots::all(placed.values()), &surge), &dropped);
        if service.spec.mode == Mode::Replicated {
            slots::take_lowest(&mut dropped, service.spec.replicas.saturating_sub(others.len()));
        }
        if orderly::take(&mut placed, &dropped).is_empty() {
            return;
        }
        self.count(name, &placed);
        orderly::put(self, index, |i| &i.placements, |i| &mut i.placements, name, placed);
    }

    /// Puts a placement into the intent, and what it means for a rollout: what is placed nowhere is not waited for.
    fn keep_placed(
        &mut self,
        index: u64,
        name: &Name,
        placed: BTreeMap<NodeId, SlotSet>,
        leaving: BTreeMap<NodeId, SlotSet>,
        surge: &SlotSet,
    ) {
        let there = slots::all(placed.values().chain(leaving.values()));
        orderly::put(self, index, |i| &i.placements, |i| &mut i.placements, name, placed);
        orderly::put(self, index, |i| &i.leaving, |i| &mut i.leaving, name, leaving);
        let Some(rollout) = self.intent.services.get(name).and_then(|s| s.rollout.clone()) else {
            return;
        };
        let mut now = rollout.clone();
        now.surge = slots::common(surge, &there);
        for p in &mut now.pending {
            p.slots = slots::common(&p.slots, &there);
        }
        now.pending.retain(|p| !p.slots.is_empty());
        if now != rollout
            && let Some(s) = self.change(index).services.get_mut(name)
        {
            s.rollout = Some(now);
        }
    }

    /// Moves what a node may no longer keep.
    pub(super) fn place_off(&mut self, index: u64, node: NodeId) {
        let both = self.intent.placements.iter().chain(&self.intent.leaving);
        let there: BTreeSet<Name> = both
            .filter(|(_, p)| p.contains_key(&node))
            .map(|(name, _)| name.clone())
            .collect();
        for name in there {
            self.place(index, &name);
        }
    }

    /// Places what had no node until now.
    pub(super) fn place_missing(&mut self, index: u64) {
        let services = self.intent.services.iter();
        let short: Vec<Name> = services
            .filter(|(_, s)| s.problem.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        for name in short {
            self.place(index, &name);
        }
    }

    /// Brings the tasks per node up to date with a new placement of a service.
    pub(super) fn count(&mut self, name: &Name, now: &BTreeMap<NodeId, SlotSet>) {
        if let Some(old) = self.intent.placements.get(name) {
            for (id, slots) in old {
                if let Some(n) = self.loads.get_mut(id) {
                    *n = n.saturating_sub(u64::from(slots.len()));
                    if *n == 0 {
                        self.loads.remove(id);
                    }
                }
            }
        }
        for (id, slots) in now {
            *self.loads.entry(*id).or_default() += u64::from(slots.len());
        }
    }

    /// Takes a service's tasks away.
    pub(super) fn unplace(&mut self, index: u64, name: &Name) {
        self.count(name, &BTreeMap::new());
        orderly::put(
            self,
            index,
            |i| &i.placements,
            |i| &mut i.placements,
            name,
            BTreeMap::new(),
        );
        orderly::put(self, index, |i| &i.leaving, |i| &mut i.leaving, name, BTreeMap::new());
    }

    /// Computes what is derived, after the state was read from a snapshot.
    pub(super) fn derive(&mut self) {
        self.loads.clear();
        for slots in self.intent.placements.values().flatten() {
            *self.loads.entry(*slots.0).or_default() += u64::from(slots.1.len());
        }
        self.ports.clear();
        let intent = self.intent();
        for (name, service) in &intent.services {
            for port in service.ports.values() {
                self.hold_port(name, &port.spec);
            }
        }
    }
}
