//! Placements after a command, recomputed only where it can have changed them.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Name, NodeId, PortSpec, PublishMode,
    intent::{Availability, SlotSet},
};

use super::State;
use crate::mutant::{self, Mutant};
use crate::placement::{self, Host};

impl State {
    /// Every node as `service`'s placement sees it, by id. Both maps are walked once: a million tasks are a few thousand
    /// steps here.
    fn hosts(&self, placed: &BTreeMap<NodeId, SlotSet>) -> Vec<Host> {
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
                    takes: !node.down && node.availability == Availability::Active,
                    others: all.saturating_sub(u64::from(mine)),
                }
            })
            .collect()
    }

    /// Places one service anew.
    pub(super) fn place(&mut self, index: u64, name: &Name) {
        let before = self.intent.placements.get(name);
        let mut placed = before.cloned().unwrap_or_default();
        let (replicas, problem) = match self.intent.services.get(name) {
            // Without a command there is nothing that netd could start: an orchestrator attaches the endpoints.
            Some(s) if s.spec.command.is_empty() => (0, s.problem.clone()),
            Some(s) => (s.spec.replicas, s.problem.clone()),
            None => (0, None),
        };
        let mut hosts = self.hosts(&placed);
        let ports = self.host_ports(name);
        let room = match ports.is_empty() {
            true => replicas,
            false => self.one_each(name, &ports, &mut placed, &mut hosts),
        };
        let unplaced = placement::spread(&mut placed, &hosts, replicas.min(room)) + replicas.saturating_sub(room);
        if mutant::on(Mutant::PlaceTwice)
            && let Some(slots) = placed.values().next().cloned()
            && let Some(last) = placed.values_mut().next_back()
        {
            *last = slots;
        }
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
        if before.is_none_or(|b| *b != placed) {
            self.count(name, &placed);
            let placements = &mut self.change(index).placements;
            if placed.is_empty() {
                placements.remove(name);
            } else {
                placements.insert(name.clone(), placed);
            }
        }
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

    /// Moves what a node may no longer keep.
    pub(super) fn place_off(&mut self, index: u64, node: NodeId) {
        let placements = self.intent.placements.iter();
        let there: Vec<Name> = placements
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
    fn count(&mut self, name: &Name, now: &BTreeMap<NodeId, SlotSet>) {
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
        if self.intent.placements.contains_key(name) {
            self.change(index).placements.remove(name);
        }
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
