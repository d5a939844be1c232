//! Published ports: who holds which, and those that the log chooses.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Name, PortSpec, Proto, PublishMode, ServiceSpec,
    intent::{PortKey, PublishedPort, Service},
    spec::{EndpointMode, Order},
};

use super::{Applied, Refusal, State, nodes::listed};
use crate::ipam::REST_MS;

/// Most published ports of one service.
const MAX_PORTS: usize = 1024;

/// Who holds a port number: by number and protocol, since most look for that. Derived from the services.
pub(super) type Holders = BTreeMap<(u16, Proto), BTreeSet<(PortSpec, Name)>>;

/// Whether two services cannot both have these. Those of single nodes are kept apart by placement.
fn clash(a: &PortSpec, b: &PortSpec) -> bool {
    let hosts = (a.mode, b.mode) == (PublishMode::Host, PublishMode::Host);
    a.meets(b) && !hosts
}

impl State {
    pub(super) fn publish(&mut self, index: u64, name: &Name, port: PortSpec) -> Result<Applied, Refusal> {
        let old = self.service(name)?.clone();
        if let Some(has) = old.ports.values().find(|p| p.asked() == port) {
            return Ok(Applied::Published(has.spec));
        }
        if let Some(has) = old.ports.values().find(|p| p.spec.meets(&port)) {
            return Err(Refusal::conflict(
                format!("{name} publishes {} already", has.spec),
                format!("netctl service unpublish {name} {}", has.spec),
            ));
        }
        let mut spec = old.spec.clone();
        spec.publish.push(port);
        self.put_service(index, name, spec, Some(old))?;
        let given = self.service(name)?.ports.values().find(|p| p.asked() == port);
        Ok(given.map_or(Applied::Done, |p| Applied::Published(p.spec)))
    }

    pub(super) fn unpublish(&mut self, index: u64, name: &Name, port: PortSpec) -> Result<Applied, Refusal> {
        let old = self.service(name)?.clone();
        // `80` alone means the published port, whatever its target and mode.
        let vague = port.target == port.published;
        let named = |p: &&PublishedPort| p.asked() == port || p.spec == port || vague && p.spec.key() == port.key();
        let Some(has) = old.ports.values().find(named) else {
            let ports = old.ports.values().map(|p| p.spec.to_string()).collect();
            let same = |p: &PublishedPort| p.asked() == port || p.spec.key() == port.key();
            let services = self.intent.services.iter();
            let mut others = services.filter(|(n, s)| *n != name && s.ports.values().any(same));
            let holder = others.next().map(|(n, _)| n);
            return Err(match holder {
                Some(other) => Refusal::not_found(
                    format!("{name} does not publish {port}; {other} does"),
                    format!("netctl service unpublish {other} {port}"),
                ),
                None => Refusal::not_found(
                    format!("{name} does not publish {port}; it publishes: {}", listed(ports)),
                    format!("netctl service inspect {name}"),
                ),
            });
        };
        let (asked, was) = (has.asked(), has.spec);
        let mut spec = old.spec.clone();
        spec.publish.retain(|p| *p != asked);
        self.put_service(index, name, spec, Some(old))?;
        Ok(Applied::Published(was))
    }

    /// Remembers which automatic ports hosts use.
    pub(super) fn see_ports(&mut self, ports: &[u16]) -> Result<Applied, Refusal> {
        let seen: BTreeSet<u16> = ports.iter().copied().filter(|p| PortSpec::AUTO.contains(p)).collect();
        if seen == self.busy {
            return Ok(Applied::Unchanged);
        }
        self.busy = seen;
        Ok(Applied::Done)
    }

    pub(super) fn hold_port(&mut self, name: &Name, port: &PortSpec) {
        let of = self.ports.entry((port.published, port.proto)).or_default();
        of.insert((*port, name.clone()));
    }

    /// Lets go of a port, and of its mark unless one of the `others` has that now.
    pub(super) fn let_port_go<'p>(
        &mut self,
        name: &Name,
        port: &PublishedPort,
        mut others: impl Iterator<Item = &'p PublishedPort>,
    ) {
        let (spec, now) = (port.spec, self.now_ms);
        if let Some(of) = self.ports.get_mut(&(spec.published, spec.proto)) {
            of.remove(&(spec, name.clone()));
            if of.is_empty() {
                self.ports.remove(&(spec.published, spec.proto));
            }
        }
        if others.all(|other| other.mark != port.mark) {
            self.marks.release(port.mark, now, REST_MS);
        }
        if port.auto {
            self.autos.release(u32::from(spec.published), now, REST_MS);
        }
    }

    /// What is wrong with the ports of a spec, by themselves or beside those of other services.
    pub(super) fn check_ports(&self, name: &Name, spec: &ServiceSpec) -> Result<(), Refusal> {
        if spec.publish.len() > MAX_PORTS {
            return Err(Refusal::invalid(
                format!("a service may publish {MAX_PORTS} ports at most"),
                "fewer --publish",
            ));
        }
        for (at, port) in spec.publish.iter().enumerate() {
            if port.target == 0 {
                return Err(Refusal::invalid(
                    format!("{port} leads to no port: they count from 1 to 65535"),
                    "80, 80:8080, 53/udp or auto:80",
                ));
            }
            let (before, _) = spec.publish.split_at(at);
            for other in before {
                together(name, other, port)?;
            }
            self.check_port(name, port)?;
            check_mode(name, spec, port)?;
        }
        Ok(())
    }

    fn check_port(&self, name: &Name, port: &PortSpec) -> Result<(), Refusal> {
        if port.is_auto() {
            return Ok(());
        }
        let holders = self.ports.get(&(port.published, port.proto));
        let mut others = holders.into_iter().flatten().filter(|(_, n)| n != name);
        let Some((held, other)) = others.find(|(held, _)| clash(held, port)) else {
            return Ok(());
        };
        let also = match (held == port, held.key() == port.key()) {
            (true, _) | (_, true) => String::new(),
            _ => format!(" (as {held})"),
        };
        let free = if port.published < 57_000 {
            port.published + 8000
        } else {
            8080
        };
        let instead = PortSpec {
            published: free,
            ..*port
        };
        Err(Refusal::conflict(
            format!("the port {} is published by the service {other}{also}", port.key()),
            format!("netctl service unpublish {other} {held}, or another published port such as {instead}"),
        ))
    }

    /// Published ports with their marks; those that `old` has stay, the log's own choices among them.
    pub(super) fn give_ports(
        &mut self,
        spec: &ServiceSpec,
        old: Option<&Service>,
        given: &mut GivenPorts,
    ) -> Result<BTreeMap<PortKey, PublishedPort>, Refusal> {
        let mut ports: BTreeMap<PortKey, PublishedPort> = BTreeMap::new();
        // What was chosen before comes first: a number that is asked for now must not be the same.
        let autos_first = |p: &&PortSpec| !p.is_auto();
        let mut asked: Vec<&PortSpec> = spec.publish.iter().collect();
        asked.sort_by_key(autos_first);
        for port in asked {
            let has = |is: &dyn Fn(&PublishedPort) -> bool| old.and_then(|o| o.ports.values().find(|p| is(p)));
            let leads_elsewhere = |p: &PublishedPort| !p.auto && p.spec.same_place(port);
            // Where it leads to is a backend's: with another mark, the rules and the flows of the old one would go, and all
            // that is established with them.
            let published = match (has(&|p| p.asked() == *port), has(&leads_elsewhere)) {
                (Some(p), _) => *p,
                (None, Some(p)) => PublishedPort { spec: *port, ..*p },
                (None, None) => self.give_port(spec, port, given)?,
            };
            if let Some(other) = ports.values().find(|p| p.spec.meets(&published.spec)) {
                return Err(Refusal::conflict(
                    format!(
                        "the port {} was given to {} of this service",
                        published.spec,
                        other.asked()
                    ),
                    "another published port",
                ));
            }
            ports.insert(published.spec.key(), published);
        }
        Ok(ports)
    }

    fn give_port(
        &mut self,
        spec: &ServiceSpec,
        asked: &PortSpec,
        given: &mut GivenPorts,
    ) -> Result<PublishedPort, Refusal> {
        let now = self.now_ms;
        let mark = self
            .marks
            .take(now)
            .ok_or_else(|| Refusal::conflict("all marks of published ports are in use", "netctl service ls"))?;
        given.marks.push(mark);
        let mut port = *asked;
        if asked.is_auto() {
            let (held, busy) = (&self.ports, &self.busy);
            let free = |n: u32| {
                u16::try_from(n).is_ok_and(|n| {
                    let taken = |proto| held.contains_key(&(n, proto));
                    let named = spec.publish.iter().any(|p| p.published == n);
                    !busy.contains(&n) && !named && ![Proto::Tcp, Proto::Udp, Proto::Sctp].into_iter().any(taken)
                })
            };
            let got = self.autos.take_if(now, free);
            let number = got.and_then(|n| u16::try_from(n).ok()).ok_or_else(|| {
                let (first, last) = (PortSpec::AUTO.start(), PortSpec::AUTO.end());
                let minutes = REST_MS / 60_000;
                Refusal::conflict(
                    format!(
                        "no port of {first} to {last} is free: all are published, rest for {minutes} minutes after \
                         use, or are in use on a node"
                    ),
                    format!(
                        "a number of your own, such as 8080:{}, or unpublish what is not used",
                        asked.target
                    ),
                )
            })?;
            given.autos.push(u32::from(number));
            port.published = number;
        }
        Ok(PublishedPort {
            spec: port,
            auto: asked.is_auto(),
            mark,
        })
    }

    pub(super) fn take_ports_back(&mut self, given: &GivenPorts) {
        for n in &given.marks {
            self.marks.give_back(*n);
        }
        for n in &given.autos {
            self.autos.give_back(*n);
        }
    }
}

/// Ports and marks given out for a command that may still be refused.
#[derive(Default)]
pub(super) struct GivenPorts {
    marks: Vec<u32>,
    autos: Vec<u32>,
}

/// Whether one service may publish both.
fn together(name: &Name, a: &PortSpec, b: &PortSpec) -> Result<(), Refusal> {
    if a == b || !a.is_auto() && a.meets(b) {
        return Err(Refusal::invalid(
            format!("the port {} is published twice", b.key()),
            "each published port once",
        ));
    }
    let mesh = (a.mode, b.mode) == (PublishMode::Ingress, PublishMode::Ingress);
    // A backend's node is told the published port, not the address (CONTRACTS, On the wire).
    if mesh && !a.is_auto() && (a.published, a.proto) == (b.published, b.proto) && a.target != b.target {
        return Err(Refusal::invalid(
            format!("{a} and {b} of {name} lead to two ports of its tasks: one published port leads to one"),
            "two published ports, or two services",
        ));
    }
    Ok(())
}

/// Whether the port's mode fits the service.
fn check_mode(name: &Name, spec: &ServiceSpec, port: &PortSpec) -> Result<(), Refusal> {
    match port.mode {
        PublishMode::Ingress if spec.endpoint_mode == EndpointMode::Dnsrr => Err(Refusal::invalid(
            format!(
                "{port} of {name} cannot be published by the mesh: with the endpoint mode dnsrr it has no virtual \
                 address, and its clients choose among its tasks themselves"
            ),
            format!("{port},mode=host, or --endpoint-mode vip"),
        )),
        PublishMode::Host
            if [&spec.update, &spec.rollback]
                .iter()
                .any(|r| r.order == Order::StartFirst) =>
        {
            Err(Refusal::invalid(
                format!(
                    "{port} of {name} is published on the node of each task, which has room for one: a successor \
                     cannot start beside it"
                ),
                "--update-order stop-first and --rollback-order stop-first, or a port of the mesh (mode=ingress)",
            ))
        }
        _ => Ok(()),
    }
}
