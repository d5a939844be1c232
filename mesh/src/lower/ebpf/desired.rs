//! What the maps should say, before anything has a place: keys, sets of backends, targets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ebpf_abi::{
    Addr, BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_EARLY, Backend as Cell, Mac, SVC_NETWORKS, SVC_TARGETS, SvcKey,
    TARGET_EARLY, TARGET_HERE, TargetKey, TargetVal,
};
use model::{
    NodeId, Proto, Vni,
    row::Datapath,
    spec::{Lb, SourceIp, Timeouts},
};

use crate::{
    maglev::Seed,
    wanted::{Backend, BackendId, BackendState, Place, Port, Problem, Service, Wanted, publishable},
};

/// What a backend is recognised by in `backends`: network and MAC.
pub(super) type CellKey = (u32, Mac);

/// The maps, without places.
#[derive(Debug, Default)]
pub(super) struct Desired {
    pub(super) backends: BTreeMap<CellKey, Cell>,
    pub(super) keys: BTreeMap<SvcKey, Row>,
    pub(super) sets: Vec<Set>,
    pub(super) targets: BTreeMap<TargetKey, TargetVal>,
    pub(super) problems: BTreeSet<Problem>,
}

/// An entry of `services`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// Service.
    pub(super) service: u32,
    /// Port of the backends as on the wire, 0: unchanged.
    pub(super) tport: u16,
    /// `SVC_*`.
    pub(super) flags: u16,
    /// Index into `sets`; none: nobody takes new flows.
    pub(super) set: Option<usize>,
}

/// The backends that share one row of `lut`, in the order of their identities.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) service: u32,
    pub(super) seeds: Vec<Seed>,
    pub(super) cells: Vec<CellKey>,
    /// The keys that use it, ascending.
    pub(super) keys: Vec<SvcKey>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

/// The address of a key or target.
pub(super) fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(a) => Addr::v4(a.octets()),
        IpAddr::V6(a) => Addr::v6(a.octets()),
    }
}

/// An IPv4 address as the word on the wire.
fn word(a: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(a.octets())
}

impl Desired {
    pub(super) fn new(wanted: &Wanted) -> Self {
        let mut out = Desired::default();
        let mut owners: BTreeMap<CellKey, &BackendId> = BTreeMap::new();
        for (index, service) in &wanted.services {
            if service.lb != Lb::Maglev {
                out.problems.insert(Problem::OnlyMaglev(*index, service.lb));
            }
            if service.source_ip != SourceIp::Preserve {
                out.problems.insert(Problem::NoMasquerade(*index));
            }
            if service.timeouts != Timeouts::default() {
                out.problems.insert(Problem::NoTimeouts(*index));
            }
            let left_out = service.ports.iter().filter(|p| p.proto == Proto::Sctp);
            out.problems
                .extend(left_out.map(|p| Problem::NoSctp(*index, p.published)));
            let usable: Vec<(&BackendId, &Backend)> = service
                .backends
                .iter()
                .filter(|(id, b)| out.take_backend(wanted, id, b, &mut owners))
                .collect();
            match service.ports.iter().any(|p| p.proto == Proto::Sctp) {
                false => out.take_service(wanted, *index, service, &usable),
                true => {
                    let mut carried = service.clone();
                    carried.ports.retain(|p| p.proto != Proto::Sctp);
                    out.take_service(wanted, *index, &carried, &usable);
                }
            }
        }
        out
    }

    /// Gives a backend a value for its cell; `false`: it cannot be used, a problem says why.
    fn take_backend<'w>(
        &mut self,
        wanted: &Wanted,
        id: &'w BackendId,
        b: &Backend,
        owners: &mut BTreeMap<CellKey, &'w BackendId>,
    ) -> bool {
        let unreachable = |why| Problem::Unreachable(id.clone(), why);
        let (ifindex, vtep) = match b.place {
            _ if b.v4.is_none() && b.v6.is_none() => {
                return self.refuse(unreachable("it has no address"));
            }
            _ if b.mac.0 == [0; 6] => return self.refuse(unreachable("it has no MAC")),
            Place::Local { ifindex: 0 } => {
                return self.refuse(unreachable("its interface is not there yet"));
            }
            Place::Local { ifindex } => (ifindex, 0),
            Place::Remote { vtep, .. } if vtep.is_unspecified() || vtep == wanted.node.vtep => {
                return self.refuse(unreachable("its node's data-path address is not another node's"));
            }
            Place::Remote {
                vtep: IpAddr::V6(_), ..
            } => {
                return self.refuse(unreachable(
                    "its node's data-path address is IPv6, and that of an eBPF node IPv4",
                ));
            }
            Place::Remote {
                vtep: IpAddr::V4(vtep),
                datapath,
            } => match datapath {
                Datapath::Ebpf => (0, word(vtep)),
                Datapath::Ipvs => (BACKEND_EARLY, word(vtep)),
            },
        };
        let value = Cell {
            addr6: b.v6.map_or(Addr::default(), |a| Addr::v6(a.octets())),
            addr4: b.v4.map_or(0, word),
            vtep,
            ifindex,
            vni: b.vni.get(),
            mac: ebpf_abi::mac(b.mac.0),
            state: match b.state {
                BackendState::Active => BACKEND_ACTIVE,
                BackendState::Draining => BACKEND_DRAINING,
            },
        };
        let key = (value.vni, value.mac);
        // An endpoint may serve two services; another endpoint with its MAC may not.
        match owners.get(&key) {
            Some(other) if *other != id => {
                return self.refuse(Problem::DuplicateMac(id.clone(), (*other).clone(), b.mac, b.vni));
            }
            Some(_) => {}
            None => drop(owners.insert(key, id)),
        }
        // Where two services disagree on its state, the one cell can only say that it still takes flows.
        let cell = self.backends.entry(key).or_insert(value);
        if value.state == BACKEND_ACTIVE {
            *cell = value;
        }
        true
    }

    fn refuse(&mut self, why: Problem) -> bool {
        self.problems.insert(why);
        false
    }

    fn take_service(&mut self, wanted: &Wanted, index: u32, service: &Service, backends: &[(&BackendId, &Backend)]) {
        // The distinct sets of this service; most have one, used by all of its keys.
        let mut sets: BTreeMap<Vec<CellKey>, usize> = BTreeMap::new();
        // On several addresses of a node a port is one and the same on VIPs.
        let of_mesh = service.ports.iter().filter(|p| !p.host);
        let ports: BTreeMap<(u16, u16), &Port> = of_mesh.map(|p| (numbers(p), p)).collect();
        self.take_doors(wanted, index, service, backends, &mut sets);
        for (vni, vip) in &service.vips {
            let addresses = [
                Some((IpAddr::V4(vip.v4), Family::V4)),
                vip.v6.map(|a| (IpAddr::V6(a), Family::V6)),
            ];
            for (ip, family) in addresses.into_iter().flatten() {
                let there = backends.iter().filter(|(_, b)| b.vni == *vni && has(b, family));
                let there: Vec<_> = there.collect();
                let set_all = self.set(index, &mut sets, &there);
                let offers = ports
                    .iter()
                    .map(|(numbers, port)| (*numbers, offer(service, port, &there)));
                // Every other port, as it is.
                let any = Offer {
                    tport: 0,
                    flags: 0,
                    by: None,
                };
                for ((port, proto), offer) in offers.chain([((0, 0), any)]) {
                    let set = match &offer.by {
                        None => set_all,
                        Some(by) => self.set(index, &mut sets, by),
                    };
                    let key = SvcKey {
                        addr: addr(ip),
                        vni: vni.get(),
                        port,
                        proto,
                    };
                    let row = Row {
                        service: index,
                        tport: offer.tport,
                        flags: offer.flags,
                        set,
                    };
                    self.take_key(key, row);
                }
            }
        }
        self.take_targets(wanted, service, backends, &ports);
    }

    /// What backends offer: those of this node to packets from elsewhere, those that are translated to here where it is
    /// not what the service's entries say.
    fn take_targets(
        &mut self,
        wanted: &Wanted,
        service: &Service,
        backends: &[(&BackendId, &Backend)],
        ports: &BTreeMap<(u16, u16), &Port>,
    ) {
        for (id, b) in backends.iter().filter(|(_, b)| translated_here(b)) {
            let own = |p: &Port| Some(service.target(id, p)?.to_be());
            let mut offers: Vec<((u16, u16), u16)> = Vec::new();
            if is_local(b) {
                offers.extend(ports.iter().filter_map(|(n, p)| Some((*n, own(p)?))));
                offers.extend(service.vips.contains_key(&b.vni).then_some(((0, 0), 0)));
                if wanted.early {
                    let early = ports.iter().filter_map(|((_, proto), p)| Some((own(p)?, *proto)));
                    offers.extend(early.map(|(port, proto)| ((port, proto | TARGET_EARLY), 0)));
                }
            }
            offers.extend(service.ports.iter().filter_map(|p| {
                let ((port, proto), own) = (numbers(p), own(p)?);
                (own != p.target.to_be()).then_some(((port, proto | TARGET_HERE), own))
            }));
            for ((port, proto), tport) in offers {
                for ip in [b.v4.map(IpAddr::V4), b.v6.map(IpAddr::V6)].into_iter().flatten() {
                    let key = TargetKey {
                        addr: addr(ip),
                        vni: b.vni.get(),
                        port,
                        proto,
                    };
                    self.targets.entry(key).or_insert(TargetVal { tport, flags: 0 });
                }
            }
        }
    }

    /// Published ports on the addresses of this node.
    fn take_doors(
        &mut self,
        wanted: &Wanted,
        index: u32,
        service: &Service,
        backends: &[(&BackendId, &Backend)],
        sets: &mut BTreeMap<Vec<CellKey>, usize>,
    ) {
        if service.ports.is_empty() {
            return;
        }
        // Nobody is asked for his source here: closed, not open to everybody.
        if !service.allow_from.is_empty() {
            self.problems.insert(Problem::NoAllowFrom(index));
            return;
        }
        for family in [Family::V4, Family::V6] {
            let all = doors(backends, family, None);
            // A task that asks is led to the network that it shares with the backend: an answer by UDP bears the
            // address of the interface that it leaves by, and it leaves by the client's network.
            let (networks, flags) = match further(backends, &all, family) {
                none if none.is_empty() => (none, 0),
                some => (some, SVC_NETWORKS),
            };
            self.take_doors_of(wanted, index, service, (family, 0, flags), &all, sets);
            for vni in networks {
                let there = doors(backends, family, Some(vni));
                self.take_doors_of(wanted, index, service, (family, vni.get(), 0), &there, sets);
            }
        }
    }

    /// Published ports of one family for who asks from a network; network 0: from anywhere.
    fn take_doors_of(
        &mut self,
        wanted: &Wanted,
        index: u32,
        service: &Service,
        (family, vni, flags): (Family, u32, u16),
        all: &[&(&BackendId, &Backend)],
        sets: &mut BTreeMap<Vec<CellKey>, usize>,
    ) {
        let own: Vec<_> = all.iter().copied().filter(|(_, b)| is_local(b)).collect();
        let (set_all, set_own) = (self.set(index, sets, all), self.set(index, sets, &own));
        for port in &service.ports {
            let (of, set) = if port.host { (&*own, set_own) } else { (all, set_all) };
            // Without a backend that speaks IPv6, or here, the port stays the host's own, which refuses: the client
            // of an IPv6 address falls back to IPv4.
            if of.is_empty() && (port.host || family == Family::V6) {
                continue;
            }
            let (published, proto) = numbers(port);
            let Offer { tport, flags: own, by } = offer(service, port, of);
            let set = match &by {
                None => set,
                Some(by) => self.set(index, sets, by),
            };
            let local = wanted.local.iter();
            let fits = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4) && publishable(ip);
            for ip in local.filter(|ip| fits(ip) && port.on.as_ref().is_none_or(|on| on.contains(ip))) {
                // No task reaches the loopback.
                if vni != 0 && ip.is_loopback() {
                    continue;
                }
                let key = SvcKey {
                    addr: addr(*ip),
                    vni,
                    port: published,
                    proto,
                };
                let row = Row {
                    service: index,
                    tport,
                    flags: flags | own,
                    set,
                };
                self.take_key(key, row);
            }
        }
    }

    /// The set of these backends, as far as they take new flows; none when none does.
    fn set(
        &mut self,
        service: u32,
        sets: &mut BTreeMap<Vec<CellKey>, usize>,
        backends: &[&(&BackendId, &Backend)],
    ) -> Option<usize> {
        let (cells, seeds): (Vec<CellKey>, Vec<Seed>) = backends
            .iter()
            .filter(|(_, b)| b.state == BackendState::Active)
            .map(|(id, b)| ((b.vni.get(), ebpf_abi::mac(b.mac.0)), Seed::new(id)))
            .unzip();
        if cells.is_empty() {
            return None;
        }
        let next = self.sets.len();
        let at = *sets.entry(cells).or_insert_with_key(|cells| {
            self.sets.push(Set {
                service,
                seeds,
                cells: cells.clone(),
                keys: Vec::new(),
            });
            next
        });
        Some(at)
    }

    fn take_key(&mut self, key: SvcKey, row: Row) {
        if let Some(had) = self.keys.get(&key) {
            if had.service != row.service {
                self.problems
                    .insert(Problem::Taken(row.service, describe(&key), had.service));
            }
            return;
        }
        self.keys.insert(key, row);
        if let Some(set) = row.set.and_then(|at| self.sets.get_mut(at)) {
            set.keys.push(key);
        }
    }
}

/// Published port and protocol as keys have them.
fn numbers(p: &Port) -> (u16, u16) {
    (p.published.to_be(), u16::from(p.proto.number()))
}

/// Who serves a published port here.
struct Offer<'c> {
    /// The port of those that are translated to here, as on the wire; 0: unchanged.
    tport: u16,
    /// `SVC_TARGETS` when some of those have another one.
    flags: u16,
    /// Of the candidates; none: all of them.
    by: Option<Vec<&'c (&'c BackendId, &'c Backend)>>,
}

/// Who of `candidates` serves a published port here: all but those whose tasks were made before it was published. Each
/// node's programs know the port of each backend that they translate to; while a change of the port is under way they
/// are told to look.
fn offer<'c>(service: &Service, port: &Port, candidates: &[&'c (&'c BackendId, &'c Backend)]) -> Offer<'c> {
    if service.others.is_empty() {
        return Offer {
            tport: port.target.to_be(),
            flags: 0,
            by: None,
        };
    }
    let by: Vec<_> = candidates
        .iter()
        .copied()
        .filter(|(id, _)| service.target(id, port).is_some())
        .collect();
    let differs = |c: &(&BackendId, &Backend)| translated_here(c.1) && service.target(c.0, port) != Some(port.target);
    Offer {
        tport: port.target.to_be(),
        flags: if by.iter().any(|c| differs(c)) { SVC_TARGETS } else { 0 },
        by: Some(by),
    }
}

fn is_local(b: &Backend) -> bool {
    matches!(b.place, Place::Local { .. })
}

/// Whether this node translates what its clients send to a backend: it is here, or its node cannot.
fn translated_here(b: &Backend) -> bool {
    match b.place {
        Place::Local { .. } => true,
        Place::Remote { datapath, .. } => datapath == Datapath::Ipvs,
    }
}

/// The backends that published ports lead to: of a task's one, on network `near` where it has one there.
fn doors<'s, 'b>(
    backends: &'s [(&'b BackendId, &'b Backend)],
    family: Family,
    near: Option<Vni>,
) -> Vec<&'s (&'b BackendId, &'b Backend)> {
    let mut chosen: BTreeMap<(NodeId, u32), &'s (&'b BackendId, &'b Backend)> = BTreeMap::new();
    for c in backends.iter().filter(|(_, b)| has(b, family)) {
        let Some(slot) = c.1.slot else { continue };
        let door = chosen.entry((c.0.node, slot)).or_insert(c);
        if near == Some(c.1.vni) && near != Some(door.1.vni) {
            *door = c;
        }
    }
    let is_door = |id: &BackendId, b: &Backend| {
        b.slot
            .is_none_or(|slot| chosen.get(&(id.node, slot)).is_some_and(|c| c.0 == id))
    };
    backends
        .iter()
        .filter(|(id, b)| has(b, family) && is_door(id, b))
        .collect()
}

/// Networks on which some task has a backend that is not its door.
fn further(backends: &[(&BackendId, &Backend)], doors: &[&(&BackendId, &Backend)], family: Family) -> BTreeSet<Vni> {
    let doors: BTreeSet<&BackendId> = doors.iter().map(|(id, _)| *id).collect();
    let others = backends.iter().filter(|(id, b)| has(b, family) && !doors.contains(id));
    others.map(|(_, b)| b.vni).collect()
}

fn has(b: &Backend, family: Family) -> bool {
    match family {
        Family::V4 => b.v4.is_some(),
        Family::V6 => b.v6.is_some(),
    }
}

/// A key as people read it: `10.77.0.2:80/tcp on network 4096`.
pub(super) fn describe(key: &SvcKey) -> String {
    let octets = key.addr.octets();
    let v6 = Ipv6Addr::from(octets);
    let ip = v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4);
    let port = u16::from_be(key.port);
    let proto = [Proto::Tcp, Proto::Udp]
        .into_iter()
        .find(|p| u16::from(p.number()) == key.proto);
    let at = match proto {
        Some(p) => format!("port {port}/{p} of {ip}"),
        None => format!("{ip}"),
    };
    if key.vni == 0 {
        at
    } else {
        format!("{at} on network {}", key.vni)
    }
}
