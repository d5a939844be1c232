//! What IPVS holds in one network namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

/// A firewall mark: `MARK_BASE + index`, the index being the log's number for (service, target port, protocol).
pub type Mark = u32;

/// First mark of services (CONTRACTS 9).
pub const MARK_BASE: Mark = 0x6e00_0000;
/// How many marks services may have: 0x6f000000 begins those that lead replies back.
pub const MARK_COUNT: u32 = 1 << 24;

/// The mark of an index that the log gave; `None`: there are no more than [`MARK_COUNT`].
pub fn mark_of(index: u32) -> Option<Mark> {
    (index < MARK_COUNT).then(|| MARK_BASE + index)
}

/// An address family: IPVS keeps a service of each apart, also when both have one mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

/// Which service: packets that bear this mark and are of this family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Mark. Those outside `MARK_BASE..MARK_BASE + MARK_COUNT` are another's, neither seen nor touched.
    pub mark: Mark,
    /// Family.
    pub family: Family,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        write!(f, "mark {:#x} {family}", self.mark)
    }
}

/// How a backend is chosen for a new flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheduler {
    /// Maglev hashing over the client's address (and port: [`SchedFlags::port`]): the same backend through every node.
    /// Each change builds a table of 4,093 entries (32 KiB) anew.
    Mh,
    /// One after the other.
    Rr,
    /// One after the other, as often as their weights say.
    Wrr,
    /// The one with the fewest flows.
    Lc,
    /// The one with the fewest flows by weight.
    Wlc,
    /// Hash over the client's address.
    Sh,
    /// None: the service takes no new flow. So is a service while its backends are filled in.
    None,
    /// One that netd never asks for, or settings beside it that netd never makes (one-packet scheduling, a persistence
    /// engine). It is only ever seen, and replaced.
    Other,
}

impl Scheduler {
    /// Those that netd asks for.
    pub const ALL: [Scheduler; 6] = [
        Scheduler::Mh,
        Scheduler::Rr,
        Scheduler::Wrr,
        Scheduler::Lc,
        Scheduler::Wlc,
        Scheduler::Sh,
    ];

    /// As the kernel calls it; its module is `ip_vs_` and this.
    pub fn name(self) -> &'static str {
        match self {
            Scheduler::Mh => "mh",
            Scheduler::Rr => "rr",
            Scheduler::Wrr => "wrr",
            Scheduler::Lc => "lc",
            Scheduler::Wlc => "wlc",
            Scheduler::Sh => "sh",
            Scheduler::None => "none",
            Scheduler::Other => "other",
        }
    }

    /// The one that the kernel calls so.
    pub fn named(name: &str) -> Self {
        Scheduler::ALL
            .into_iter()
            .chain([Scheduler::None])
            .find(|s| s.name() == name)
            .unwrap_or(Scheduler::Other)
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Switches of [`Scheduler::Mh`] and [`Scheduler::Sh`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SchedFlags {
    /// The hash is over the client's port too (`mh-port`).
    pub port: bool,
    /// Where the hash names a backend of weight 0, another is taken (`mh-fallback`). Without it such a flow is refused:
    /// the table keeps a backend that drains, by the weight that it had last (net/netfilter/ipvs/ip_vs_mh.c).
    pub fallback: bool,
}

impl SchedFlags {
    /// What `--lb maglev` takes: by client and port, and around backends that drain.
    pub const MAGLEV: SchedFlags = SchedFlags {
        port: true,
        fallback: true,
    };
}

/// What a service is told beside its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Settings {
    /// Scheduler.
    pub scheduler: Scheduler,
    /// Its switches.
    pub flags: SchedFlags,
    /// Seconds for which a client stays with its backend; 0: flows are apart.
    pub timeout: u32,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Scheduler.
    pub scheduler: Scheduler,
    /// Its switches.
    pub flags: SchedFlags,
    /// Seconds for which a client stays with its backend; 0 (the default): flows are apart.
    pub timeout: u32,
    /// Backends.
    pub dests: BTreeMap<DestKey, Dest>,
}

impl Service {
    /// Without the backends.
    pub fn settings(&self) -> Settings {
        Settings {
            scheduler: self.scheduler,
            flags: self.flags,
            timeout: self.timeout,
        }
    }
}

/// Which backend of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestKey {
    /// Address, of the service's family.
    pub address: IpAddr,
    /// Target port.
    pub port: u16,
}

impl fmt::Display for DestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// A backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dest {
    /// Share of new flows; 0: none, while those that are there go on.
    pub weight: u32,
    /// How packets get there.
    pub forward: Forward,
}

/// How a packet gets to its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Forward {
    /// Its destination is rewritten; replies must pass here again.
    Masquerade,
    /// As it is, by MAC: the backend answers the client itself.
    Direct,
    /// As it is, in IPIP.
    Tunnel,
    /// Something else, or limits beside it that netd never sets. It is only ever seen, and replaced.
    Other,
}

/// How long a flow is remembered without a packet; one set for a whole namespace. Seconds; 0: the kernel was built without
/// that protocol (when seen), or as it is (when wanted).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeouts {
    /// An established TCP connection.
    pub tcp: u32,
    /// A TCP connection after the first FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

impl Default for Timeouts {
    /// The kernel's own (net/netfilter/ipvs/ip_vs_proto_tcp.c, ip_vs_proto_udp.c).
    fn default() -> Self {
        Timeouts {
            tcp: 15 * 60,
            tcp_fin: 2 * 60,
            udp: 5 * 60,
        }
    }
}

/// All that netd keeps in the IPVS of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Services.
    pub services: BTreeMap<ServiceKey, Service>,
    /// Timeouts.
    pub timeouts: Timeouts,
}

impl Table {
    /// Takes `rr` where a scheduler is not among those that the kernel offers, and tells for which services.
    pub fn settle_for(&mut self, offered: &BTreeSet<Scheduler>) -> BTreeMap<ServiceKey, Scheduler> {
        let mut replaced = BTreeMap::new();
        for (key, service) in &mut self.services {
            if service.scheduler != Scheduler::Rr && !offered.contains(&service.scheduler) {
                replaced.insert(*key, std::mem::replace(&mut service.scheduler, Scheduler::Rr));
                service.flags = SchedFlags::default();
            }
        }
        replaced
    }
}
