//! The cluster: its beginning and end, its managers, its settings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::NodeHealth;
use crate::ids::NodeId;
use crate::intent::Availability;
use crate::intent::Role;
use crate::settings::ClusterSettings;

/// `POST /v1/cluster/init`: makes a one-manager cluster of this node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterInit {
    /// Address that the others reach this node by, or the device that has it, `ADDR[:PORT]`; default: the only address
    /// that is not loopback. It need not be this host's (NAT). The port is the managers' RPC's.
    pub advertise_addr: Option<String>,
    /// Where the managers' RPC listens, `ADDR[:PORT]`; default: as the configuration says.
    pub listen_addr: Option<String>,
    /// Where the others send VXLAN to, an address or a device; default: the advertised address.
    pub data_path_addr: Option<String>,
    /// Port of gossip; default: as the configuration says.
    pub gossip_port: Option<u16>,
    /// Registry that this node is announced in while it is a manager; default: as the configuration says.
    pub announce: Option<String>,
    /// Settings that the cluster begins with, as `POST /v1/cluster/update` takes them; default: those of the node's
    /// configuration, then those of [`ClusterSettings`].
    pub settings: BTreeMap<String, String>,
}

/// Answer to init.
#[derive(Clone, Serialize, Deserialize)]
pub struct ClusterInitAnswer {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of this node.
    pub node: NodeId,
    /// `ip:port` to join at.
    pub addr: String,
    /// Token for workers.
    pub worker_token: String,
    /// With `autolock`: the key that opens managers after a restart. It is told here, and by `unlock-key`.
    #[serde(default)]
    pub unlock_key: Option<String>,
}

impl std::fmt::Debug for ClusterInitAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest is secret.
        f.debug_struct("ClusterInitAnswer")
            .field("cluster", &self.cluster)
            .field("node", &self.node)
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// `POST /v1/cluster/join`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterJoin {
    /// Token with the CA's pin and a secret.
    pub token: String,
    /// A manager, `host[:port]`; empty: `discover` tells.
    #[serde(default)]
    pub addr: String,
    /// Where managers can be found: `nodes://`, `file://`, `dns://`, `token://`, `etcd://`, `consul://`, `zk://`.
    #[serde(default)]
    pub discover: Option<String>,
    /// As at init; default: the address that leads to the manager.
    #[serde(default)]
    pub advertise_addr: Option<String>,
    /// As at init.
    #[serde(default)]
    pub listen_addr: Option<String>,
    /// As at init.
    #[serde(default)]
    pub data_path_addr: Option<String>,
    /// As at init.
    #[serde(default)]
    pub gossip_port: Option<u16>,
    /// As at init.
    #[serde(default)]
    pub announce: Option<String>,
    /// Whether the node is given tasks from the beginning; one that is known keeps what it has.
    #[serde(default)]
    pub availability: Availability,
}

impl std::fmt::Debug for ClusterJoin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest is secret.
        f.debug_struct("ClusterJoin")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// Answer to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterJoinAnswer {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of this node.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
}

/// `POST /v1/cluster/leave`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterLeave {
    /// Also when this node is the last manager, or managers cannot be told.
    pub force: bool,
}

/// A manager's part in Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vote {
    /// It votes.
    Voter,
    /// It gets the log, and will vote once it has it.
    Learner,
    /// It is to become a manager, and is not heard yet.
    None,
}

/// `GET /v1/cluster/members`: a list of these.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberView {
    /// Id.
    pub id: NodeId,
    /// Host name.
    pub hostname: String,
    /// Role.
    pub role: Role,
    /// Gossip address.
    pub addr: Option<String>,
    /// Health.
    pub health: NodeHealth,
    /// Last log index (managers).
    pub log_index: Option<u64>,
    /// Raft term (managers).
    pub term: Option<u64>,
    /// Whether it leads.
    pub leader: bool,
    /// Its part in Raft (managers).
    #[serde(default)]
    pub vote: Option<Vote>,
    /// Last log index applied (managers).
    #[serde(default)]
    pub applied: Option<u64>,
    /// Whether it answers the manager that tells this (managers).
    #[serde(default)]
    pub reachable: Option<bool>,
    /// Time to it and back, microseconds, from the manager that tells this (other managers).
    #[serde(default)]
    pub round_trip_us: Option<u64>,
    /// Why it is not reached, or cannot do its part.
    #[serde(default)]
    pub problem: Option<String>,
}

/// `GET /v1/cluster/quorum`: whether the cluster can be changed, and what it can bear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumView {
    /// Managers that vote.
    pub voters: u32,
    /// Managers that will.
    pub learners: u32,
    /// Voters that must agree.
    pub quorum: u32,
    /// Voters that answer the manager that tells this, itself among them.
    pub reachable: u32,
    /// Voters that may still fail before nothing can be changed any more.
    pub tolerated: u32,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// Term.
    pub term: u64,
    /// Why nothing can be changed now.
    pub problem: Option<String>,
    /// What would be better.
    pub warning: Option<String>,
}

/// `POST /v1/cluster/transfer`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transfer {
    /// Who is to lead, an id or a host name; none: the manager that has most of the log.
    pub to: Option<String>,
}

/// Answer to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TransferAnswer {
    /// Who leads now.
    pub leader: NodeId,
}

/// `POST /v1/cluster/backup`: a sealed copy of all that the managers know, secrets included.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Passphrase, or the octets of a key file, base64.
    pub secret: String,
}

/// Answer to it.
#[derive(Clone, Serialize, Deserialize)]
pub struct BackupAnswer {
    /// Id of the cluster.
    pub cluster: String,
    /// Index of the last log entry in it.
    pub index: u64,
    /// The file, base64.
    pub file: String,
}

/// `POST /v1/cluster/restore`: makes a one-manager cluster of this node from a backup.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// As for the backup.
    pub secret: String,
    /// The file, base64.
    pub file: String,
    /// As at init.
    #[serde(default)]
    pub advertise_addr: Option<String>,
    /// Also if a manager of that cluster answers.
    #[serde(default)]
    pub force: bool,
}

/// Answer to a restore and to `POST /v1/cluster/recover`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AloneAnswer {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of this node, now its only manager.
    pub node: NodeId,
    /// Revision that it goes on from.
    pub revision: u64,
    /// Managers that were; they are workers now.
    pub former: Vec<String>,
}

/// `GET /v1/cluster`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterView {
    /// Id of the cluster.
    pub id: String,
    /// Newest revision known here.
    pub revision: u64,
    /// Managers.
    pub managers: u32,
    /// Nodes, managers among them.
    pub nodes: u32,
    /// Settings as data.
    pub settings: ClusterSettings,
    /// Settings as people read and type them, in the order in which they are shown.
    pub table: Vec<SettingView>,
}

/// A setting of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingView {
    /// Key.
    pub key: String,
    /// Value now.
    pub value: String,
    /// Value when nobody says anything.
    pub default: String,
    /// What it may be.
    pub range: String,
    /// What it does.
    pub help: String,
}

/// `POST /v1/cluster/update`: all of it is carried out, or nothing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterUpdate {
    /// Key -> value, as people type them.
    pub set: BTreeMap<String, String>,
}

/// `POST /v1/discover`: asks a registry for managers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discover {
    /// URL, as for [`ClusterJoin::discover`].
    pub url: String,
}

/// Answer to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Discovered {
    /// `host:port` of managers.
    pub addresses: Vec<String>,
}
