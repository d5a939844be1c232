//! What the maps should say, before anything has a place: keys, sets of backends, targets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ebpf_abi::{
    Addr, BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_EARLY, Backend as Cell, Mac, SvcKey, TARGET_EARLY, TargetKey,
    TargetVal,
};
use model::{Proto, row::Datapath, spec::Lb};

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
            let usable: Vec<(&BackendId, &Backend)> = service
                .backends
                .iter()
                .filter(|(id, b)| out.take_backend(wanted, id, b, &mut owners))
                .collect();
            out.take_service(wanted, *index, service, &usable);
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
            Place::Remote { vtep, datapath } => match datapath {
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
        let of_mesh = service.ports.iter().filter(|p| !p.host);
        let ports: BTreeSet<(u16, u16, u16)> = of_mesh.map(numbers).collect();
        self.take_doors(wanted, index, service, backends, &mut sets);
        for (vni, vip) in &service.vips {
            let addresses = [
                Some((IpAddr::V4(vip.v4), Family::V4)),
                vip.v6.map(|a| (IpAddr::V6(a), Family::V6)),
            ];
            for (ip, family) in addresses.into_iter().flatten() {
                let set = self.set(
                    index,
                    &mut sets,
                    backends.iter().filter(|(_, b)| b.vni == *vni && has(b, family)),
                );
                for (port, proto, tport) in ports.iter().chain([&(0, 0, 0)]) {
                    let key = SvcKey {
                        addr: addr(ip),
                        vni: vni.get(),
                        port: *port,
                        proto: *proto,
                    };
                    self.take_key(
                        key,
                        Row {
                            service: index,
                            tport: *tport,
                            set,
                        },
                    );
                }
            }
        }
        for (_, b) in backends.iter().filter(|(_, b)| matches!(b.place, Place::Local { .. })) {
            let any = service.vips.contains_key(&b.vni).then_some(&(0, 0, 0));
            for ip in [b.v4.map(IpAddr::V4), b.v6.map(IpAddr::V6)].into_iter().flatten() {
                let mut offer = |port, proto, tport| {
                    let key = TargetKey {
                        addr: addr(ip),
                        vni: b.vni.get(),
                        port,
                        proto,
                    };
                    self.targets.entry(key).or_insert(TargetVal { tport, flags: 0 });
                };
                for (port, proto, tport) in ports.iter().chain(any) {
                    offer(*port, *proto, *tport);
                }
                for (_, proto, tport) in ports.iter().filter(|_| wanted.early) {
                    offer(*tport, *proto | TARGET_EARLY, 0);
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
        for family in [Family::V4, Family::V6] {
            let all = doors(backends, family);
            let is_here = |b: &Backend| matches!(b.place, Place::Local { .. });
            let own: Vec<_> = all.iter().copied().filter(|(_, b)| is_here(b)).collect();
            let (set_all, set_own) = (
                self.set(index, sets, all.iter().copied()),
                self.set(index, sets, own.iter().copied()),
            );
            for port in &service.ports {
                let (of, set) = if port.host { (&own, set_own) } else { (&all, set_all) };
                // Without a backend that speaks IPv6, or here, the port stays the host's own, which refuses: the client
                // of an IPv6 address falls back to IPv4.
                if of.is_empty() && (port.host || family == Family::V6) {
                    continue;
                }
                let (published, proto, tport) = numbers(port);
                let local = wanted.local.iter();
                let fits = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4) && publishable(ip);
                for ip in local.filter(|ip| fits(ip) && port.on.as_ref().is_none_or(|on| on.contains(ip))) {
                    let key = SvcKey {
                        addr: addr(*ip),
                        vni: 0,
                        port: published,
                        proto,
                    };
                    self.take_key(
                        key,
                        Row {
                            service: index,
                            tport,
                            set,
                        },
                    );
                }
            }
        }
    }

    /// The set of these backends, as far as they take new flows; none when none does.
    fn set<'b>(
        &mut self,
        service: u32,
        sets: &mut BTreeMap<Vec<CellKey>, usize>,
        backends: impl Iterator<Item = &'b (&'b BackendId, &'b Backend)>,
    ) -> Option<usize> {
        let (cells, seeds): (Vec<CellKey>, Vec<Seed>) = backends
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

/// Published port, protocol and target as keys have them.
fn numbers(p: &Port) -> (u16, u16, u16) {
    (p.published.to_be(), u16::from(p.proto.number()), p.target.to_be())
}

/// The backends that published ports lead to: of a task's one.
fn doors<'s, 'b>(
    backends: &'s [(&'b BackendId, &'b Backend)],
    family: Family,
) -> Vec<&'s (&'b BackendId, &'b Backend)> {
    let mut tasks = BTreeSet::new();
    let mut first = |id: &BackendId, b: &Backend| b.slot.is_none_or(|slot| tasks.insert((id.node, slot)));
    backends
        .iter()
        .filter(|(id, b)| has(b, family) && first(id, b))
        .collect()
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
