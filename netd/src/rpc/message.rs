//! The messages.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use cluster::seal::Key;
use model::{
    api::TaskStatus,
    error::ApiError,
    ids::{EndpointId, NodeId, Proto, Vni},
    intent::{IntentDelta, Role},
};
use serde::{Deserialize, Serialize};

/// The one message of a node without a certificate.
#[derive(Serialize, Deserialize)]
pub(super) struct JoinRequest {
    /// The token's secret.
    pub(super) secret: Vec<u8>,
    /// Certificate's request, PEM.
    pub(super) csr: String,
    /// Host name.
    pub(super) hostname: String,
    /// Only to be told who the managers are ([`ListAnswer`]); request and host name do not count.
    #[serde(default)]
    pub(super) list: bool,
}

/// Who the managers are.
#[derive(Serialize, Deserialize)]
pub(super) struct ListAnswer {
    pub(super) cluster: String,
    pub(super) managers: Vec<String>,
}

/// The answer to it.
#[derive(Serialize, Deserialize)]
pub(super) struct JoinAnswer {
    pub(super) cluster: String,
    pub(super) node: NodeId,
    pub(super) role: Role,
    pub(super) certificate: String,
    pub(super) ca: String,
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
    /// Its tasks.
    pub tasks: BTreeMap<EndpointId, TaskStatus>,
    /// Highest row version of other nodes (and its own) that its kernel holds. Owners that drain something are enough.
    pub held: BTreeMap<NodeId, u64>,
}

/// Node to manager.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToManager {
    /// First: what it knows already (0: nothing).
    Hello { revision: u64, version: String },
    /// See [`Report`].
    Report(Report),
    /// Answered by [`ToNode::Reply`] with the same id.
    Request { id: u64, request: Request },
    /// Answer to [`ToNode::Ask`].
    Answer { id: u64, answer: Answer },
    /// Nothing to say.
    Ping,
}

/// What a node may ask for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// One more address block.
    NeedBlock { vni: Vni },
    /// A read of the manager's memory.
    Query { path: String },
    /// A new certificate for the same key.
    Renew { csr: String },
    /// To be taken out.
    Leave,
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Block { number: u32 },
    Query { status: u16, body: String },
    Certificate { certificate: String, ca: String },
    Left,
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
    /// Nothing to say.
    Ping,
}

/// What a manager may ask a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Whether a port can be published there.
    PortFree {
        /// Port.
        port: u16,
        /// Protocol.
        proto: Proto,
    },
    /// Which subnets its own routes lead to, so that no network overlaps them.
    HostRoutes,
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
    /// Subnets of [`Ask::HostRoutes`].
    Routes {
        /// Without default routes, loopback and netd's own.
        subnets: Vec<ipnet::IpNet>,
    },
    /// It could not be found out.
    Failed {
        /// Why.
        why: String,
    },
}
