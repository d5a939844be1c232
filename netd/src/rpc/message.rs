//! The messages.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use cluster::seal::Key;
use model::{
    api::TaskStatus,
    error::ApiError,
    ids::{EndpointId, NodeId, Vni},
    intent::{Availability, IntentDelta, Machine},
    spec::PortSpec,
};
use serde::{Deserialize, Serialize};

use crate::{
    identity::{Holding, Issued},
    tasks::{
        Past,
        logs::{LogFrom, LogPart},
    },
};

/// The one message of a node without a certificate that counts.
#[derive(Serialize, Deserialize)]
pub(super) enum Opening {
    /// A new node, or one that proves itself anew by a token.
    Join(JoinRequest),
    /// A node that was away for too long.
    Return(ReturnRequest),
    /// Somebody who looks for managers: the secret of a token. Answered by [`ListAnswer`].
    List(Vec<u8>),
}

/// Who the managers are.
#[derive(Serialize, Deserialize)]
pub(super) struct ListAnswer {
    pub(super) cluster: String,
    pub(super) managers: Vec<String>,
}

/// A certificate that counts no more is traded in for a new one.
#[derive(Serialize, Deserialize)]
pub(super) struct ReturnRequest {
    /// The old certificate, PEM, with those that vouch for its root.
    pub(super) certificate: String,
    /// Certificate's request, PEM.
    pub(super) csr: String,
    /// [`binding`](crate::identity::binding) of this connection, signed with the node's key.
    pub(super) proof: Vec<u8>,
}

/// A token.
#[derive(Serialize, Deserialize)]
pub(super) struct JoinRequest {
    /// The token's secret.
    pub(super) secret: Vec<u8>,
    /// Certificate's request, PEM.
    pub(super) csr: String,
    /// Host name.
    pub(super) hostname: String,
    /// Where it would serve the managers' RPC, `ip:port`.
    #[serde(default)]
    pub(super) rpc: Option<String>,
    /// What it begins with, if it is new.
    #[serde(default)]
    pub(super) availability: Availability,
}

/// The answer to it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JoinAnswer {
    pub(super) cluster: String,
    pub(super) node: NodeId,
    pub(super) issued: Issued,
    pub(super) managers: Vec<String>,
    /// Managers' gossip addresses, as far as they are known.
    #[serde(default)]
    pub(super) gossip: Vec<SocketAddr>,
    /// Address that the node came from, as the manager sees it.
    pub(super) seen: IpAddr,
}

/// What a node tells managers about itself; the last one counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Revision of the intent that its kernel holds.
    pub applied: u64,
    /// What it could not apply.
    pub problems: Vec<String>,
    /// Its tasks: all that are placed there.
    pub tasks: BTreeMap<EndpointId, TaskStatus>,
    /// Earlier ones that have ended.
    #[serde(default)]
    pub past: Past,
    /// Highest row version of other nodes (and its own) that its kernel holds. Owners that drain something are enough.
    pub held: BTreeMap<NodeId, u64>,
    /// What it holds of certificates and keys.
    #[serde(default)]
    pub holds: Holding,
    /// What it is.
    #[serde(default)]
    pub machine: Machine,
    /// Why its data path is the one that it is.
    #[serde(default)]
    pub datapath: String,
}

/// Node to manager.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToManager {
    /// First: what it knows already (0: nothing).
    Hello { revision: u64, version: String },
    /// See [`Report`].
    Report(Box<Report>),
    /// Answered by [`ToNode::Reply`] with the same id.
    Request { id: u64, request: Request },
    /// Answer to [`ToNode::Ask`].
    Answer { id: u64, answer: Answer },
    /// Nothing to say.
    Ping,
    /// First, instead of a hello: a stream of Raft's messages between managers follows ([`crate::peers`]).
    Raft {
        /// Id in Raft of the one who says it.
        from: u64,
        /// And of the one whom it means.
        to: u64,
    },
    /// First, instead of a hello: HTTP follows, requests that another manager passes on.
    Http,
}

/// What a node may ask for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    /// One more address block.
    NeedBlock { vni: Vni },
    /// A read of the manager's memory.
    Query { path: String },
    /// A new certificate for the same key.
    Renew { csr: String },
    /// To be taken out.
    Leave,
    /// A manager without a log wants to begin one under its id in Raft: it gets that, or, where that id may have voted
    /// already, a new one.
    Raft { old: u64 },
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Block { number: u32 },
    Query { status: u16, body: String },
    Certificate(Issued),
    Left,
    Raft { id: u64 },
}

/// Manager to node.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToNode {
    /// Answer to [`ToManager::Hello`], and again when the keys change.
    Welcome { keys: Vec<Key> },
    /// Change of the intent; from 0: all of it.
    Delta(Box<IntentDelta>),
    /// Answered by [`ToManager::Answer`].
    Ask { id: u64, ask: Ask },
    /// All living nodes hold the node's rows up to this version.
    Held { version: u64 },
    /// Answer to [`ToManager::Request`].
    Reply { id: u64, reply: Result<Reply, ApiError> },
    /// The stream ends, and why.
    Refused(ApiError),
    /// Who leads the managers now, if it is another one than the sender: what managers hold in memory is there.
    Leader { node: NodeId, addr: String },
    /// Nothing to say.
    Ping,
}

/// What a manager may ask a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Whether a port can be published there; of an automatic one, whether its address is there.
    PortFree(PortSpec),
    /// Which ports of [`PortSpec::AUTO`] are in use there.
    PortsInUse,
    /// Which subnets its own routes lead to, so that no network overlaps them.
    HostRoutes,
    /// Where it would serve the managers' RPC, if it were a manager.
    ManagerAddress,
    /// What some of its tasks have said.
    Logs {
        /// From where, each.
        from: BTreeMap<EndpointId, LogFrom>,
        /// Of those that are not read on: only what was written at this time or later, ms since 1970.
        #[serde(default)]
        since_ms: Option<u64>,
        /// Octets in all, about.
        max: usize,
        /// A last line that has no end yet is left for later.
        follow: bool,
    },
}

/// What the node says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It can.
    Free,
    /// It cannot.
    Taken {
        /// Who has it, e.g. `nginx (pid 812)`.
        owner: String,
    },
    /// It need not: it has no such address or device.
    NotHere,
    /// Answer to [`Ask::PortsInUse`].
    Ports {
        /// Ascending.
        ports: Vec<u16>,
    },
    /// Subnets of [`Ask::HostRoutes`].
    Routes {
        /// Without default routes, loopback and netd's own.
        subnets: Vec<ipnet::IpNet>,
    },
    /// Answer to [`Ask::ManagerAddress`].
    Address {
        /// `ip:port`.
        addr: std::net::SocketAddr,
    },
    /// Answer to [`Ask::Logs`].
    Logs {
        /// A piece each.
        parts: BTreeMap<EndpointId, LogPart>,
        /// Which cannot be read, and why.
        problems: BTreeMap<EndpointId, String>,
    },
    /// It could not be found out.
    Failed {
        /// Why.
        why: String,
    },
}
