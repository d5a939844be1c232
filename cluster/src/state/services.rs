//! Commands about services and their published ports.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Name, PublishMode, ServiceSpec,
    intent::{PortKey, PublishedPort, Rollout, Service, Vip},
    spec::EndpointMode,
};

use super::{Applied, Refusal, ServiceUpdate, State, nodes::listed, ports::GivenPorts, rollouts};
use crate::ipam::REST_MS;

/// Most networks of one service.
const MAX_NETWORKS: usize = 16;
/// Longest grace and drain times, ms: a day.
const MAX_WAIT_MS: u64 = 24 * 3600 * 1000;

impl State {
    pub(super) fn create_service(&mut self, index: u64, name: &Name, spec: &ServiceSpec) -> Result<Applied, Refusal> {
        if self.intent.services.contains_key(name) {
            return Err(Refusal::conflict(
                format!("the service {name} exists already"),
                format!("netctl service inspect {name}"),
            ));
        }
        self.put_service(index, name, spec.clone(), None)
    }

    pub(super) fn update_service(
        &mut self,
        index: u64,
        name: &Name,
        update: &ServiceUpdate,
    ) -> Result<Applied, Refusal> {
        let old = self.service(name)?.clone();
        let mut spec = old.spec.clone();
        let u = update.clone();
        spec.networks = u.networks.unwrap_or(spec.networks);
        spec.replicas = u.replicas.unwrap_or(spec.replicas);
        spec.command = u.command.unwrap_or(spec.command);
        spec.env = u.env.unwrap_or(spec.env);
        spec.publish = u.publish.unwrap_or(spec.publish);
        spec.stop_grace_ms = u.stop_grace_ms.unwrap_or(spec.stop_grace_ms);
        spec.drain_timeout_ms = u.drain_timeout_ms.unwrap_or(spec.drain_timeout_ms);
        spec.attachable = u.attachable.unwrap_or(spec.attachable);
        self.put_service(index, name, spec, Some(old))
    }

    pub(super) fn remove_service(&mut self, index: u64, name: &Name) -> Result<Applied, Refusal> {
        let old = self.service(name)?.clone();
        self.unplace(index, name);
        self.change(index).services.remove(name);
        self.avoided.remove(name);
        let now = self.now_ms;
        self.indices.release(old.index, now, REST_MS);
        for (net, vip) in &old.vips {
            self.release_vip(net, *vip);
        }
        for port in old.ports.values() {
            self.let_port_go(name, port, std::iter::empty());
        }
        self.place_missing(index);
        Ok(Applied::Done)
    }

    /// A service, or the refusal that lists those there are.
    pub(super) fn service(&self, name: &Name) -> Result<&Service, Refusal> {
        self.intent.services.get(name).ok_or_else(|| {
            let known = self.intent.services.keys().map(Name::to_string).collect();
            Refusal::not_found(
                format!("there is no service {name}; services: {}", listed(known)),
                format!("netctl service create {name}"),
            )
        })
    }

    /// Makes a service as `spec` says, from nothing or from `old`: all that can be refused first, then the change.
    pub(super) fn put_service(
        &mut self,
        index: u64,
        name: &Name,
        mut spec: ServiceSpec,
        old: Option<Service>,
    ) -> Result<Applied, Refusal> {
        if spec.networks.is_empty() {
            let default = self.intent.networks.keys().find(|n| n.as_str() == "default");
            spec.networks.extend(default.cloned());
        }
        self.check(name, &spec)?;
        if let Some(old) = old.as_ref().filter(|o| o.spec == spec) {
            return Ok(Applied::Service { index: old.index });
        }
        let (generation, rollout) = match &old {
            Some(old) => self.rollout_to(index, name, old, &spec)?,
            None => (index, None),
        };
        let mut given = Given::default();
        let networks: BTreeSet<Name> = networks(&spec, rollout.as_ref());
        let (number, vips, ports) = match self.give(&spec, &networks, old.as_ref(), &mut given) {
            Ok(got) => got,
            Err(refusal) => {
                self.take_back(&given);
                return Err(refusal);
            }
        };
        let previous = old.as_ref().map(|o| rollouts::previous(o, &spec));
        let old_spec = old.as_ref().map(|o| &o.spec);
        let placing = |s: &ServiceSpec| (s.mode, s.replicas, s.command.is_empty(), s.placement.clone());
        let hosts_change = old.as_ref().is_some_and(|o| host_ports(&o.ports) != host_ports(&ports));
        let replan = rollout.is_some() || hosts_change || old_spec.is_none_or(|o| placing(o) != placing(&spec));
        let reserve = old_spec.map_or(spec.placement.reserve, |o| o.placement.reserve);
        if let Some(old) = &old {
            for (net, vip) in old.vips.iter().filter(|(n, _)| !vips.contains_key(*n)) {
                self.release_vip(net, *vip);
            }
            for (_, port) in old.ports.iter().filter(|(k, p)| ports.get(*k) != Some(p)) {
                self.let_port_go(name, port, ports.values());
            }
        }
        for port in ports.values() {
            self.hold_port(name, &port.spec);
        }
        let service = Service {
            index: number,
            spec,
            vips,
            ports,
            generation,
            changed: index,
            previous: previous.map(Box::new),
            rollout,
            problem: old.and_then(|o| o.problem),
        };
        self.weigh(name, reserve, service.spec.placement.reserve);
        self.change(index).services.insert(name.clone(), service);
        if replan {
            let tasks = |s: &State| -> u64 {
                let placed = s.intent.placements.get(name);
                placed.map_or(0, |p| p.values().map(|slots| u64::from(slots.len())).sum())
            };
            let before = tasks(self);
            self.place_all(index, [name.clone()]);
            if hosts_change || tasks(self) < before || reserve != self.service(name)?.spec.placement.reserve {
                self.place_missing(index);
            }
        }
        Ok(Applied::Service { index: number })
    }

    /// Releases what a service has only for tasks that are replaced by now.
    pub(super) fn release_unused(&mut self, index: u64, name: &Name) {
        let Some(service) = self.intent.services.get(name) else {
            return;
        };
        let used: BTreeSet<&Name> = service.networks().collect();
        let gone = service.vips.iter().filter(|(n, _)| !used.contains(n));
        let gone: Vec<(Name, Vip)> = gone.map(|(n, v)| (n.clone(), *v)).collect();
        for (net, vip) in gone {
            self.release_vip(&net, vip);
            if let Some(s) = self.change(index).services.get_mut(name) {
                s.vips.remove(&net);
            }
        }
    }

    /// What is wrong with a spec, by itself or beside the others.
    fn check(&self, name: &Name, spec: &ServiceSpec) -> Result<(), Refusal> {
        if spec.replicas > ServiceSpec::MAX_REPLICAS {
            return Err(Refusal::invalid(
                format!(
                    "{} replicas are more than {}, the most of one service",
                    spec.replicas,
                    ServiceSpec::MAX_REPLICAS
                ),
                format!("netctl service scale {name}={}", ServiceSpec::MAX_REPLICAS),
            ));
        }
        if spec.networks.len() > MAX_NETWORKS {
            return Err(Refusal::invalid(
                format!("a service may be on {MAX_NETWORKS} networks at most"),
                "fewer --network",
            ));
        }
        let mut seen = BTreeSet::new();
        for net in &spec.networks {
            self.network(net)?;
            if !seen.insert(net) {
                return Err(Refusal::invalid(
                    format!("the network {net} is named twice"),
                    format!("--network {net} once"),
                ));
            }
        }
        let text = spec.command.iter().chain(spec.env.values());
        if text.chain(spec.env.keys()).any(|s| s.contains('\0')) {
            return Err(Refusal::invalid(
                "the command or the environment has a NUL character",
                "text without it",
            ));
        }
        if spec.command.first().is_some_and(String::is_empty) {
            return Err(Refusal::invalid(
                "the command is an empty word",
                format!("netctl service create {name} -- COMMAND"),
            ));
        }
        if let Some(key) = spec.env.keys().find(|k| k.is_empty() || k.contains('=')) {
            return Err(Refusal::invalid(
                format!("{key:?} is no name of an environment variable"),
                "--env NAME=VALUE",
            ));
        }
        if spec.stop_grace_ms > MAX_WAIT_MS || spec.drain_timeout_ms > MAX_WAIT_MS {
            return Err(Refusal::invalid("a grace or drain time is longer than a day", "10s"));
        }
        super::traffic::check(name, spec)?;
        super::task::check(name, spec)?;
        self.check_placement(name, &spec.placement)?;
        self.check_ports(name, spec)
    }

    /// Gives out what a service needs beyond what it has. On a refusal, `given` says what to take back.
    #[allow(clippy::type_complexity, reason = "the three parts of a service, used once")]
    fn give(
        &mut self,
        spec: &ServiceSpec,
        networks: &BTreeSet<Name>,
        old: Option<&Service>,
        given: &mut Given,
    ) -> Result<(u32, BTreeMap<Name, Vip>, BTreeMap<String, PublishedPort>), Refusal> {
        let now = self.now_ms;
        let number = match old {
            Some(old) => old.index,
            None => {
                let n = self
                    .indices
                    .take(now)
                    .ok_or_else(|| Refusal::conflict("all service indices are in use", "netctl service ls"))?;
                given.index = Some(n);
                n
            }
        };
        let mut vips = BTreeMap::new();
        for name in networks {
            if spec.endpoint_mode == EndpointMode::Dnsrr {
                break;
            }
            if let Some(vip) = old.and_then(|o| o.vips.get(name)) {
                vips.insert(name.clone(), *vip);
                continue;
            }
            let network = self.network(name)?.clone();
            let pool = self.nets.get_mut(&network.vni).map(|n| &mut n.vips);
            let Some(offset) = pool.and_then(|p| p.take(now)) else {
                return Err(Refusal::conflict(
                    format!(
                        "the network {name} has no free VIP: its {} are in use or rest for 10 minutes after use",
                        network.vip_pool() - 1
                    ),
                    "netctl network create with a larger --subnet (a sixteenth of it are VIPs)",
                ));
            };
            given.vips.push((network.vni, offset));
            vips.insert(
                name.clone(),
                Vip {
                    v4: network.v4(offset),
                    v6: network.v6(offset),
                },
            );
        }
        let ports = self.give_ports(spec, old, &mut given.ports)?;
        Ok((number, vips, ports))
    }

    fn take_back(&mut self, given: &Given) {
        if let Some(n) = given.index {
            self.indices.give_back(n);
        }
        for (vni, offset) in &given.vips {
            if let Some(net) = self.nets.get_mut(vni) {
                net.vips.give_back(*offset);
            }
        }
        self.take_ports_back(&given.ports);
    }

    fn release_vip(&mut self, network: &Name, vip: Vip) {
        let now = self.now_ms;
        let Some(network) = self.intent.networks.get(network) else {
            return;
        };
        let offset = network.offset(vip.v4);
        if let (Some(offset), Some(net)) = (offset, self.nets.get_mut(&network.vni)) {
            net.vips.release(offset, now, REST_MS);
        }
    }
}

/// Ports of their nodes that tasks hold, which others may wait for.
fn host_ports(ports: &BTreeMap<PortKey, PublishedPort>) -> Vec<&PortKey> {
    let held = ports.iter().filter(|(_, p)| p.spec.mode == PublishMode::Host);
    held.map(|(key, _)| key).collect()
}

/// Networks that a service is on once `rollout` is begun: those asked for, and those of tasks that are replaced.
fn networks(spec: &ServiceSpec, rollout: Option<&Rollout>) -> BTreeSet<Name> {
    let was = rollout.into_iter().flat_map(|r| &r.pending);
    let all = spec.networks.iter().chain(was.flat_map(|p| &p.spec.networks));
    all.cloned().collect()
}

/// What was given out for a command that may still be refused.
#[derive(Default)]
struct Given {
    index: Option<u32>,
    vips: Vec<(model::Vni, u32)>,
    ports: GivenPorts,
}
