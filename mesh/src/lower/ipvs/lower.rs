//! From what the mesh of a node should do to what its namespaces hold.
//!
//! A service is balanced in the namespace of each network that it has a VIP on, among its backends of that network. What
//! enters by a published port is sent to the VIP of one network: that with most of the service's backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use model::{
    Proto, Vni,
    intent::Vip,
    spec::{Kept, Lb, SourceIp, Timeouts},
};

use super::{
    rules::Allow,
    table::{self, Dest, DestKey, Family, Forward, Mark, SchedFlags, Scheduler, Service, ServiceKey, Table, mark_of},
};
use crate::wanted::{self, Backend, BackendId, BackendState, Place, Port, Problem, Wanted};

/// Marks of published ports end here; those of VIPs' other ports begin.
pub const VIP_MARKS: u32 = 1 << 23;

/// What the namespaces of one node hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lowered {
    /// One namespace a network. Networks without a service are absent.
    pub networks: BTreeMap<Vni, Sandbox>,
    /// Published ports, where packets enter the node.
    pub doors: BTreeMap<DoorKey, Door>,
    /// What was left out.
    pub problems: Vec<Problem>,
}

impl Lowered {
    /// Whether the backends of the same services are all that differs: no rule is about those. Of some services alone it
    /// counts for all of them when these have left nothing out, for then none stands in another's way.
    pub fn differs_in_backends_alone(&self, other: &Lowered) -> bool {
        let keys = |t: &Table| t.services.keys().copied().collect::<Vec<_>>();
        let same = |a: &Sandbox, b: &Sandbox| {
            a.vips == b.vips
                && a.near == b.near
                && a.table.timeouts == b.table.timeouts
                && keys(&a.table) == keys(&b.table)
        };
        let networks = || self.networks.iter().zip(&other.networks);
        self.problems.is_empty()
            && other.problems.is_empty()
            && self.doors == other.doors
            && self.networks.len() == other.networks.len()
            && networks().all(|((vni, a), (of, b))| vni == of && same(a, b))
    }
}

/// What balances in the namespace of one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sandbox {
    /// IPVS.
    pub table: Table,
    /// Marks of packets to VIPs, from tasks and from the node. Another protocol than TCP and UDP has none.
    pub vips: BTreeMap<IpAddr, VipMarks>,
    /// Marks of packets that tasks of this network send to published ports of this very node.
    pub near: BTreeMap<(IpAddr, Proto, u16), Mark>,
}

/// The marks of a VIP.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VipMarks {
    /// Published ports.
    pub ports: BTreeMap<(Proto, u16), Mark>,
    /// All others, which lead to the same port of a backend.
    pub other: Option<Mark>,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DoorKey {
    /// Protocol.
    pub proto: Proto,
    /// Published port.
    pub port: u16,
    /// Addresses of the node that it answers on; none: all that [`Wanted::local`] can mean, also those to come.
    pub on: Option<BTreeSet<IpAddr>>,
}

/// Where it leads to. A family that has no way stays the host's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Door {
    /// A VIP; for a port of mode host an endpoint of this node.
    pub v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Port there.
    pub port: u16,
    /// Who may come.
    pub allow: Allow,
    /// Backends see the node's address in place of the client's.
    pub masquerade: bool,
}

/// The namespaces as they should be.
pub fn lower(wanted: &Wanted) -> Lowered {
    let mut out = Lowering::default();
    for (index, service) in &wanted.services {
        let backends = out.usable(service);
        out.vips(*index, service, &backends);
        let ways = [Family::V4, Family::V6].map(|family| Ways::new(service, &backends, family));
        for port in &service.ports {
            out.door(wanted, *index, service, port, &ways);
        }
    }
    for (vni, sandbox) in &mut out.networks {
        sandbox.table.timeouts = timeouts(wanted, *vni);
    }
    Lowered {
        networks: out.networks,
        doors: out.doors,
        problems: out.problems.into_iter().collect(),
    }
}

/// A namespace has one set of timeouts, which counts for all services there.
fn timeouts(wanted: &Wanted, vni: Vni) -> table::Timeouts {
    let there = wanted.services.values().filter(|s| match s.vips.is_empty() {
        false => s.vips.contains_key(&vni),
        true => s.backends.values().any(|b| b.vni == vni),
    });
    let Kept {
        tcp_s,
        tcp_fin_s,
        udp_s,
    } = Timeouts::kept(there.map(|s| &s.timeouts));
    table::Timeouts {
        tcp: tcp_s,
        tcp_fin: tcp_fin_s,
        udp: udp_s,
    }
}

type Usable<'w> = Vec<(&'w BackendId, &'w Backend)>;

/// A service, and the addresses of which it has a port; none: all.
type Holder = (u32, Option<BTreeSet<IpAddr>>);

#[derive(Default)]
struct Lowering {
    networks: BTreeMap<Vni, Sandbox>,
    doors: BTreeMap<DoorKey, Door>,
    /// Who has a port.
    holders: BTreeMap<(Proto, u16), Vec<Holder>>,
    problems: BTreeSet<Problem>,
}

impl Lowering {
    fn usable<'w>(&mut self, service: &'w wanted::Service) -> Usable<'w> {
        let mut out = Vec::new();
        for (id, b) in &service.backends {
            let why = match b.place {
                _ if b.v4.is_none() && b.v6.is_none() => "it has no address",
                Place::Local { ifindex: 0 } => "its interface is not there yet",
                _ => {
                    out.push((id, b));
                    continue;
                }
            };
            self.problems.insert(Problem::Unreachable(id.clone(), why));
        }
        out
    }

    /// A service on its VIPs.
    fn vips(&mut self, index: u32, service: &wanted::Service, backends: &Usable<'_>) {
        let mesh: BTreeMap<(Proto, u16), &Port> = service
            .ports
            .iter()
            .filter(|p| !p.host)
            // Of one port on several addresses the first: they lead to one target.
            .rev()
            .map(|p| ((p.proto, p.published), p))
            .collect();
        for (vni, vip) in &service.vips {
            let other = service.vip_marks.get(vni).and_then(|at| {
                let mark = at.checked_add(VIP_MARKS).and_then(mark_of);
                if mark.is_none() {
                    let what = format!("VIP {}", vip.v4);
                    self.problems.insert(Problem::NoMark(index, what, *at));
                }
                mark
            });
            for ip in addresses(vip) {
                let family = Family::of(ip);
                let here = backends.iter().filter(|(_, b)| b.vni == *vni);
                let here = here.filter_map(|(id, b)| Some((*id, address(b, family)?, *b)));
                let here: Vec<(&BackendId, IpAddr, &Backend)> = here.collect();
                let mut marks = VipMarks {
                    ports: BTreeMap::new(),
                    other,
                };
                for (at, port) in &mesh {
                    if let Some(mark) = self.mark(index, port) {
                        marks.ports.insert(*at, mark);
                        self.put(
                            *vni,
                            mark,
                            family,
                            balanced(service, &here, |id| service.target(id, port)),
                        );
                    }
                }
                if let Some(mark) = other {
                    self.put(*vni, mark, family, balanced(service, &here, |_| Some(0)));
                }
                self.networks.entry(*vni).or_default().vips.insert(ip, marks);
            }
        }
    }

    fn put(&mut self, vni: Vni, mark: Mark, family: Family, service: Service) {
        let key = ServiceKey { mark, family };
        self.networks
            .entry(vni)
            .or_default()
            .table
            .services
            .insert(key, service);
    }

    fn mark(&mut self, index: u32, port: &Port) -> Option<Mark> {
        let mark = mark_of(port.mark).filter(|_| port.mark < VIP_MARKS);
        if mark.is_none() {
            let what = format!("port {}/{}", port.published, port.proto);
            self.problems.insert(Problem::NoMark(index, what, port.mark));
        }
        mark
    }

    /// A published port on the addresses of this node.
    fn door(&mut self, wanted: &Wanted, index: u32, service: &wanted::Service, port: &Port, ways: &[Ways<'_>; 2]) {
        let Some(mark) = self.mark(index, port) else { return };
        let key = DoorKey {
            proto: port.proto,
            port: port.published,
            on: port
                .on
                .as_ref()
                .map(|on| on.iter().copied().filter(wanted::publishable).collect()),
        };
        let mut door = Door {
            v4: None,
            v6: None,
            port: if port.host { port.target } else { port.published },
            allow: match service.allow_from.is_empty() {
                true => Allow::All,
                false => Allow::Only(service.allow_from.clone()),
            },
            masquerade: service.source_ip == SourceIp::Masquerade,
        };
        let leads = |w: &Ways<'_>| match port.host {
            true => w.own(service, port).is_some(),
            false => w.vip.is_some(),
        };
        // Ports of mode host are kept apart by placement: two services may have one, on different nodes.
        if !ways.iter().any(leads) || !self.hold(index, &key) {
            return;
        }
        for way in ways {
            // Tasks of these networks find a backend in their own; others take the way by the node.
            let (address, near) = if port.host {
                // Without one here the port stays the host's own.
                let Some((vni, address, target)) = way.own(service, port) else {
                    continue;
                };
                door.port = target;
                let own: Vec<_> = way.own.iter().filter(|(_, _, b)| b.vni == vni).copied().collect();
                let targets = |id: &BackendId| service.target(id, port);
                self.put(vni, mark, way.family, balanced(service, &own, targets));
                (address, vec![(vni, mark)])
            } else {
                let Some((_, address)) = way.vip else { continue };
                (address, self.near(service, port, way.family))
            };
            match address {
                IpAddr::V4(a) => door.v4 = Some(a),
                IpAddr::V6(a) => door.v6 = Some(a),
            }
            // The loopback of a task is its own.
            let reached = |ip: &&IpAddr| {
                Family::of(**ip) == way.family
                    && wanted::publishable(ip)
                    && !ip.is_loopback()
                    && key.on.as_ref().is_none_or(|on| on.contains(ip))
            };
            for ip in wanted.local.iter().filter(reached) {
                for (vni, mark) in &near {
                    if let Some(sandbox) = self.networks.get_mut(vni) {
                        sandbox.near.insert((*ip, port.proto, port.published), *mark);
                    }
                }
            }
        }
        self.doors.insert(key, door);
    }

    /// Takes a port of some addresses for a service; `false`: another one has one of them.
    fn hold(&mut self, index: u32, key: &DoorKey) -> bool {
        let holders = self.holders.entry((key.proto, key.port)).or_default();
        let meets = |on: &Option<BTreeSet<IpAddr>>| match (on, &key.on) {
            (Some(a), Some(b)) => !a.is_disjoint(b),
            _ => true,
        };
        if let Some((other, _)) = holders.iter().find(|(other, on)| *other != index && meets(on)) {
            let what = format!("port {}/{}", key.port, key.proto);
            self.problems.insert(Problem::Taken(index, what, *other));
            return false;
        }
        holders.push((index, key.on.clone()));
        true
    }

    /// The marks that a port has on the VIPs of one family.
    fn near(&self, service: &wanted::Service, port: &Port, family: Family) -> Vec<(Vni, Mark)> {
        let of = |(vni, vip): (&Vni, &Vip)| {
            let ip = addresses(vip).find(|ip| Family::of(*ip) == family)?;
            let marks = self.networks.get(vni)?.vips.get(&ip)?;
            Some((*vni, *marks.ports.get(&(port.proto, port.published))?))
        };
        service.vips.iter().filter_map(of).collect()
    }
}

/// Where published ports of a service lead to, for one family.
struct Ways<'w> {
    family: Family,
    /// Network and VIP.
    vip: Option<(Vni, IpAddr)>,
    /// Backends of this node, of a task's one.
    own: Vec<(&'w BackendId, IpAddr, &'w Backend)>,
}

impl<'w> Ways<'w> {
    fn new(service: &wanted::Service, backends: &Usable<'w>, family: Family) -> Self {
        let able: Vec<(&'w BackendId, IpAddr, &'w Backend)> = backends
            .iter()
            .filter_map(|(id, b)| Some((*id, address(b, family)?, *b)))
            .collect();
        let vips = service
            .vips
            .iter()
            .filter_map(|(vni, vip)| Some((*vni, addresses(vip).find(|ip| Family::of(*ip) == family)?)));
        let many = |vni: Vni| {
            let there = able.iter().filter(|(_, _, b)| b.vni == vni);
            let active = there.clone().filter(|(_, _, b)| b.state == BackendState::Active);
            (active.count(), there.count())
        };
        // An IPv6 client is refused by the host where no backend speaks IPv6, and falls back to IPv4.
        let vip = vips
            .filter(|(vni, _)| family == Family::V4 || many(*vni).1 > 0)
            .max_by_key(|(vni, _)| (many(*vni), std::cmp::Reverse(*vni)));
        let mut tasks = BTreeSet::new();
        let own = able
            .iter()
            .filter(|(id, _, b)| {
                matches!(b.place, Place::Local { .. }) && b.slot.is_none_or(|slot| tasks.insert((id.node, slot)))
            })
            .copied()
            .collect();
        Ways { family, vip, own }
    }

    /// The backend of this node that its ports of mode host lead to: one that takes new flows, if there is one.
    fn own(&self, service: &wanted::Service, port: &Port) -> Option<(Vni, IpAddr, u16)> {
        let serves = |(id, ip, b): &(&BackendId, IpAddr, &'w Backend)| Some((*b, *ip, service.target(id, port)?));
        let (b, ip, target) = self.own.iter().filter_map(serves).min_by_key(|(b, ..)| b.state)?;
        Some((b.vni, ip, target))
    }
}

/// A service with these backends, each at its port; 0: as it came, none: it does not serve it.
fn balanced(
    service: &wanted::Service,
    backends: &[(&BackendId, IpAddr, &Backend)],
    target: impl Fn(&BackendId) -> Option<u16>,
) -> Service {
    let mut dests: BTreeMap<DestKey, Dest> = BTreeMap::new();
    for (id, address, b) in backends {
        let Some(port) = target(id) else { continue };
        let weight = match b.state {
            BackendState::Active => u32::from(b.weight),
            BackendState::Draining => 0,
        };
        let dest = Dest {
            weight,
            forward: Forward::Masquerade,
        };
        let at = dests
            .entry(DestKey {
                address: *address,
                port,
            })
            .or_insert(dest);
        at.weight = at.weight.max(weight);
    }
    let (scheduler, flags) = scheduler(service.lb);
    Service {
        scheduler,
        flags,
        timeout: 0,
        dests,
    }
}

/// What carries a kind of balancing out. The tables of the hashing ones keep a backend whose weight falls to 0 in its
/// places (ip_vs_mh.c and ip_vs_sh.c look at the last weight that was none): without the fallback its share is refused.
fn scheduler(lb: Lb) -> (Scheduler, SchedFlags) {
    let plain = SchedFlags::default();
    let address = SchedFlags {
        port: false,
        ..SchedFlags::MAGLEV
    };
    match lb {
        Lb::Maglev => (Scheduler::Mh, SchedFlags::MAGLEV),
        Lb::Sh => (Scheduler::Sh, address),
        Lb::Rr => (Scheduler::Rr, plain),
        Lb::Wrr => (Scheduler::Wrr, plain),
        Lb::Lc => (Scheduler::Lc, plain),
        Lb::Wlc => (Scheduler::Wlc, plain),
    }
}

fn addresses(vip: &Vip) -> impl Iterator<Item = IpAddr> + use<> {
    [Some(IpAddr::V4(vip.v4)), vip.v6.map(IpAddr::V6)].into_iter().flatten()
}

fn address(b: &Backend, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => b.v4.map(IpAddr::V4),
        Family::V6 => b.v6.map(IpAddr::V6),
    }
}

#[cfg(test)]
mod tests;
