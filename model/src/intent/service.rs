//! A service as the log knows it, and a change of it that is being carried out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use super::SlotSet;
use crate::{
    ids::{Name, Proto},
    spec::{PortSpec, ServiceSpec},
};

/// A service as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Service {
    /// Given out by the log, unique among the living; from 1.
    pub index: u32,
    /// As asked for, with `networks` filled in.
    pub spec: ServiceSpec,
    /// Virtual addresses, one a network.
    pub vips: BTreeMap<Name, Vip>,
    /// Published ports with their fwmark index (CONTRACTS, IPVS numbers).
    pub ports: BTreeMap<PortKey, PublishedPort>,
    /// Revision at which what tasks are made from last changed: a running task of another one is replaced.
    pub generation: u64,
    /// Revision at which a person changed it last: who changes it again says which one was seen.
    #[serde(default)]
    pub changed: u64,
    /// What `rollback` goes back to.
    #[serde(default)]
    pub previous: Option<Box<ServiceSpec>>,
    /// The change that is being carried out, or how the last one ended.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// What the log could not give it (an address pool used up, no node to place on), for the user's eyes.
    pub problem: Option<String>,
}

impl Service {
    /// What a slot's task is made from now, and its generation: while a change is carried out, slots that it has not
    /// reached stay with what was.
    pub fn template(&self, slot: u32) -> (&ServiceSpec, u64) {
        let open = self.rollout.iter().flat_map(|r| &r.pending);
        match open.into_iter().find(|p| p.slots.contains(slot)) {
            Some(p) => (&p.spec, p.generation),
            None => (&self.spec, self.generation),
        }
    }

    /// The port of a slot's task that a published one leads to: while a change is carried out, of slots that it has not
    /// reached what it was. None: such a task was made before the port was published, and need not know it.
    pub fn target(&self, slot: Option<u32>, port: &PublishedPort) -> Option<u16> {
        match slot.map(|slot| self.template(slot)) {
            Some((spec, generation)) => self.target_of(generation, &spec.publish, port),
            None => Some(port.spec.target),
        }
    }

    /// The same of a task of a generation, with what was published then.
    pub fn target_of(&self, generation: u64, publish: &[PortSpec], port: &PublishedPort) -> Option<u16> {
        if generation == self.generation {
            return Some(port.spec.target);
        }
        let mut known = publish.iter();
        let known = known.find(|p| **p == port.asked() || p.same_place(&port.spec));
        known.map(|p| p.target)
    }

    /// Where a published port led before the change that is carried out, or the last one.
    pub fn targets_before<'s>(&'s self, port: &'s PublishedPort) -> impl Iterator<Item = u16> + 's {
        let pending = self.rollout.iter().flat_map(|r| &r.pending).map(|p| &*p.spec);
        let before = pending.chain(self.previous.as_deref());
        let same = move |spec: &'s ServiceSpec| spec.publish.iter().find(|p| p.same_place(&port.spec));
        before.filter_map(same).map(|p| p.target)
    }

    /// Ports that a slot's task listens on once it is ready.
    pub fn listened(&self, slot: Option<u32>) -> impl Iterator<Item = (Proto, u16)> + '_ {
        let ports = self.ports.values();
        ports.filter_map(move |p| Some((p.spec.proto, self.target(slot, p)?)))
    }

    /// Every network that a task of it may be on: those asked for, and those of tasks that are to be replaced.
    pub fn networks(&self) -> impl Iterator<Item = &Name> {
        let was = self.rollout.iter().flat_map(|r| &r.pending);
        let all: BTreeSet<&Name> = self
            .spec
            .networks
            .iter()
            .chain(was.flat_map(|p| &p.spec.networks))
            .collect();
        all.into_iter()
    }
}

/// A change of what tasks are made from, carried out some slots at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// How far it is.
    pub state: RolloutState,
    /// Slots that still run what was, by what that is: one entry, or more after a change in the middle of another one.
    /// A slot that is in none of them runs what is asked for now.
    pub pending: Vec<Pending>,
    /// Slots beyond those asked for, that take over while others are replaced (start-first).
    pub surge: SlotSet,
    /// Why it is paused or was rolled back; empty: nothing to say.
    pub message: String,
}

/// Slots that a change has not reached yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What they run.
    pub spec: Box<ServiceSpec>,
    /// Its generation.
    pub generation: u64,
    /// Which.
    pub slots: SlotSet,
}

impl Rollout {
    /// Whether it is not over: it is carried out, or paused.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, RolloutState::Completed | RolloutState::RollbackCompleted)
    }

    /// Whether slots are being replaced now.
    pub fn is_moving(&self) -> bool {
        matches!(self.state, RolloutState::Updating | RolloutState::RollbackStarted)
    }

    /// Whether it leads back to what was.
    pub fn is_rollback(&self) -> bool {
        matches!(
            self.state,
            RolloutState::RollbackStarted | RolloutState::RollbackPaused | RolloutState::RollbackCompleted
        )
    }

    /// Whether a slot still runs what was.
    pub fn is_pending(&self, slot: u32) -> bool {
        self.pending.iter().any(|p| p.slots.contains(slot))
    }
}

/// How far a change is (Swarm's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// Slots are being replaced.
    Updating,
    /// Stopped by failures; `service update` or `rollback` goes on.
    Paused,
    /// Every slot runs the new one.
    Completed,
    /// Slots go back to what was.
    RollbackStarted,
    /// Stopped by failures on the way back.
    RollbackPaused,
    /// Every slot runs what was.
    RollbackCompleted,
}

/// `80/tcp`, `192.0.2.1:80/tcp`, `eth0:80/tcp`: a published port is unique in its service, and of the mesh in the
/// cluster ([`PortSpec::meets`]).
pub type PortKey = String;

/// A published port as the log knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// As asked for, with the port that the log gave.
    pub spec: PortSpec,
    /// The log gave it.
    #[serde(default)]
    pub auto: bool,
    /// Index of its fwmark, the same on every node.
    pub mark: u32,
}

impl PublishedPort {
    /// As asked for: what stands in [`ServiceSpec::publish`].
    pub fn asked(&self) -> PortSpec {
        PortSpec {
            published: if self.auto { 0 } else { self.spec.published },
            ..self.spec
        }
    }
}

/// A VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Vip {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6, where the network has it.
    pub v6: Option<Ipv6Addr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_leads_where_a_task_was_made_for() {
        let published = |text: &str, port: u16| {
            let asked: PortSpec = text.parse().unwrap();
            let spec = PortSpec {
                published: port,
                ..asked
            };
            let auto = asked.is_auto();
            PublishedPort { spec, auto, mark: 1 }
        };
        let spec = |ports: &[&str]| ServiceSpec {
            publish: ports.iter().map(|p| p.parse().unwrap()).collect(),
            ..ServiceSpec::default()
        };
        let pending = |generation, slots, ports: &[&str]| Pending {
            spec: Box::new(spec(ports)),
            generation,
            slots: SlotSet(vec![slots]),
        };
        let s = Service {
            spec: spec(&["80:9090", "443", "auto:70"]),
            generation: 9,
            rollout: Some(Rollout {
                state: RolloutState::Updating,
                pending: vec![
                    pending(7, (1, 2), &["80:8080", "auto:70"]),
                    pending(8, (3, 3), &["80:7070,mode=host", "443", "auto:71"]),
                ],
                surge: SlotSet::default(),
                message: String::new(),
            }),
            ..Service::default()
        };
        let ports = [
            published("80:9090", 80),
            published("443", 443),
            published("auto:70", 30_000),
        ];
        for (slot, want) in [
            (Some(1), [Some(8080), None, Some(70)]),
            (Some(3), [None, Some(443), None]),
            (Some(4), [Some(9090), Some(443), Some(70)]),
            (None, [Some(9090), Some(443), Some(70)]),
        ] {
            assert_eq!(ports.map(|p| s.target(slot, &p)), want, "{slot:?}");
        }
    }

    #[test]
    fn a_task_is_replaced_when_a_port_leads_elsewhere() {
        let with = |ports: &[&str]| ServiceSpec {
            publish: ports.iter().map(|p| p.parse().unwrap()).collect(),
            ..ServiceSpec::default()
        };
        let one = with(&["80:8080", "53/udp"]);
        assert!(one.replaces(&with(&["80:9090", "53/udp"])));
        // What comes and goes does so around the tasks.
        for around in [
            &["80:8080"][..],
            &["80:8080", "53/udp", "81:9090", "auto:70"],
            &["81:9090"],
            &["80:8080,mode=host"],
            &["192.0.2.1:80:9090"],
        ] {
            assert!(!one.replaces(&with(around)), "{around:?}");
        }
    }
}
