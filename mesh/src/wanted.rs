//! What the mesh of one node should do: plain data, built by the daemon from intent and facts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use model::{
    EndpointId, Mac, NodeId, Proto, Vni,
    intent::Vip,
    row::Datapath,
    spec::{Lb, SourceIp, Timeouts},
};

/// The whole mesh, as one node should carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// This node.
    pub node: Node,
    /// Addresses of this node that published ports answer on, 127.0.0.1 among them. `::1` (CONTRACTS 4), unspecified,
    /// multicast and IPv6 link-local addresses are passed over: no key can name their interface.
    pub local: BTreeSet<IpAddr>,
    /// A member cannot translate late (IPVS): what it sends to backends here comes translated.
    pub early: bool,
    /// Services by the index that the log gave them.
    pub services: BTreeMap<u32, Service>,
}

impl Wanted {
    /// Takes out the published ports of SCTP, where the packet filter has no match for it: one rule of theirs, and it takes
    /// none of anybody's. What they are.
    pub fn without_sctp(&mut self) -> Vec<Problem> {
        let mut left_out = Vec::new();
        for (index, service) in &mut self.services {
            let ports = service.ports.extract_if(.., |p| p.proto == Proto::Sctp);
            left_out.extend(ports.map(|p| Problem::NoSctpMatch(*index, p.published)));
        }
        left_out
    }
}

/// Whether published ports can answer on a local address (see [`Wanted::local`]).
pub(crate) fn publishable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => !a.is_unspecified() && !a.is_multicast() && !a.is_broadcast(),
        IpAddr::V6(a) => {
            !a.is_unspecified()
                && !a.is_multicast()
                && !a.is_loopback()
                && !a.is_unicast_link_local()
                && a.to_ipv4_mapped().is_none()
        }
    }
}

/// The node that carries the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Id.
    pub id: NodeId,
    /// Its data-path address.
    pub vtep: IpAddr,
    /// Its data path.
    pub datapath: Datapath,
}

/// A service as the mesh sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Service {
    /// Virtual addresses by network. A VIP leads to the backends of its own network alone.
    pub vips: BTreeMap<Vni, Vip>,
    /// Index of the mark of each VIP, for the ports that are not published; unique in its network.
    pub vip_marks: BTreeMap<Vni, u32>,
    /// Who gets a new flow.
    pub lb: Lb,
    /// What its backends see as the source of what comes by a published port.
    pub source_ip: SourceIp,
    /// Who reaches its published ports; empty: everybody.
    pub allow_from: BTreeSet<IpNet>,
    /// How long its flows are remembered.
    pub timeouts: Timeouts,
    /// Published ports.
    pub ports: BTreeSet<Port>,
    /// Endpoints that are ready or draining.
    pub backends: BTreeMap<BackendId, Backend>,
    /// Backends at which published ports lead to another port than [`Port::target`], or nowhere (none): their tasks were
    /// made before a change that has not reached them. The others are not named.
    pub others: BTreeMap<BackendId, BTreeMap<Port, Option<u16>>>,
}

impl Service {
    /// The port that a published one leads to at a backend; none: nowhere.
    pub fn target(&self, id: &BackendId, port: &Port) -> Option<u16> {
        let other = self.others.get(id).and_then(|o| o.get(port));
        other.copied().unwrap_or(Some(port.target))
    }
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Port on this node and on the VIPs, 1-65535.
    pub published: u16,
    /// Port of the backends.
    pub target: u16,
    /// Protocol.
    pub proto: Proto,
    /// It leads to this node's own backends, and is the host's where there is none; VIPs do not have it.
    pub host: bool,
    /// Addresses of this node that it answers on; none: all of [`Wanted::local`]. On others it stays the host's.
    pub on: Option<BTreeSet<IpAddr>>,
    /// Index of its mark, from the log; unique in the cluster.
    pub mark: u32,
}

/// Who a backend is, on every node and over restarts: the balancing hash is taken over this and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendId {
    /// Node that owns the endpoint.
    pub node: NodeId,
    /// Endpoint.
    pub endpoint: EndpointId,
}

impl std::fmt::Display for BackendId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.endpoint, self.node)
    }
}

/// A backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// Network.
    pub vni: Vni,
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// MAC, unique in the cluster.
    pub mac: Mac,
    /// Where it is.
    pub place: Place,
    /// Slot, for a task. One on several networks has a backend on each, and published ports lead to its first by id
    /// that speaks the family.
    pub slot: Option<u32>,
    /// Whether it takes new flows.
    pub state: BackendState,
    /// Share of new flows, where the data path knows shares; 1 is usual.
    pub weight: u16,
}

/// Where a backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On this node.
    Local {
        /// Interface index of the host side of its veth.
        ifindex: u32,
    },
    /// On another node.
    Remote {
        /// That node's data-path address.
        vtep: IpAddr,
        /// That node's data path.
        datapath: Datapath,
    },
}

/// Whether a backend takes new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendState {
    /// Yes.
    Active,
    /// No; established flows go on.
    Draining,
}

/// What a plan could not do. The rest of the plan is good; the daemon shows the problem and plans again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// A backend has no way to be reached.
    #[error("backend {0} is left out: {1}; try: netctl endpoint inspect {ep}", ep = .0.endpoint)]
    Unreachable(BackendId, &'static str),
    /// Two backends bear one MAC on one network.
    #[error("backend {0} is left out: {1} bears the same MAC {2} on network {3}; try: netctl endpoint rm {ep}, then attach it again", ep = .0.endpoint)]
    DuplicateMac(BackendId, BackendId, Mac, Vni),
    /// Two services claim one address and port.
    #[error("service #{0} does not get {1}: service #{2} has it; try: netctl service unpublish")]
    Taken(u32, String, u32),
    /// This data path does not know how the service is to be balanced.
    #[error(
        "service #{0} is balanced by maglev on this node, not by {1}: its data path is eBPF; try: netctl service update --lb maglev"
    )]
    OnlyMaglev(u32, Lb),
    /// This data path asks nobody where he comes from.
    #[error(
        "the published ports of service #{0} are closed on this node: its data path, eBPF, does not know --allow-from, and would let everybody in; try: netctl service update --allow-from all, or datapath.mode = \"ipvs\" on this node"
    )]
    NoAllowFrom(u32),
    /// This data path carries TCP and UDP alone.
    #[error(
        "port {1}/sctp of service #{0} does not answer on this node: its data path, eBPF, carries tcp and udp alone; try: netctl service unpublish, or datapath.mode = \"ipvs\" on this node"
    )]
    NoSctp(u32, u16),
    /// The packet filter cannot tell a packet's port of SCTP.
    #[error(
        "port {1}/sctp of service #{0} does not answer on this node: its packet filter, iptables, has no match for sctp; try: modprobe xt_sctp, or a kernel with CONFIG_NETFILTER_XT_MATCH_SCTP or with nf_tables"
    )]
    NoSctpMatch(u32, u16),
    /// This data path shows backends the client.
    #[error(
        "the backends of service #{0} see clients' own addresses in what comes by this node: its data path, eBPF, does not masquerade; try: netctl service update --source-ip preserve"
    )]
    NoMasquerade(u32),
    /// This data path has timeouts of its own.
    #[error(
        "flows of service #{0} are remembered on this node as its data path, eBPF, does it, not as --idle-timeout asks; try: netctl service update --idle-timeout tcp=usual,tcp-fin=usual,udp=usual"
    )]
    NoTimeouts(u32),
    /// A port or VIP cannot be marked.
    #[error(
        "{1} of service #{0} is left out: {2} is no index of a mark; try: netctl service unpublish, then publish again"
    )]
    NoMark(u32, String, u32),
    /// A map is full.
    #[error(
        "{what} is left out: map `{map}` is full ({size} entries); try: a larger datapath.maps.{map}, which takes effect when netd starts"
    )]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Its size, entries.
        size: u32,
        /// What found no place.
        what: String,
    },
    /// A row is shorter than its number of backends asks for.
    #[error(
        "service #{service} is balanced less evenly: its row has {got} cells of {wanted}, map `lut` is nearly full; try: a larger datapath.maps.lut, which takes effect when netd starts"
    )]
    ShortRow {
        /// Service.
        service: u32,
        /// Cells it should have.
        wanted: u32,
        /// Cells it has.
        got: u32,
    },
}
