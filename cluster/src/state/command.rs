use std::{collections::BTreeMap, fmt};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{
    ApiError, ClusterSettings, Code, Name, NetworkSpec, NodeId, PortSpec, ServiceSpec, Vni,
    intent::{Availability, Machine, Role, SlotSet, Trust},
    settings::{Change, SettingError},
};
use serde::{Deserialize, Serialize};

/// An entry of the log: a command and what makes it safe to send twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Random id chosen by the proposer: a retry with the same id is applied once and gets the first answer.
    pub request: u128,
    /// Log time, ms: advanced by the leader's monotonic clock. One that lies behind the state's is read as the state's.
    pub time_ms: u64,
    /// What to do.
    pub command: Command,
}

/// First octet of an encoded [`Envelope`].
const FORMAT: u8 = 1;

/// Longest encoded [`Envelope`], octets: bounds what one request can make every manager keep.
pub const MAX_COMMAND: usize = 1 << 20;

/// Why bytes are no [`Envelope`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by a newer netd.
    #[error("the command has format {0}, this netd knows {FORMAT}; try: upgrade netd on this node")]
    Newer(u8),
    /// Not what was written.
    #[error("the command cannot be read: {0}; try: netctl cluster leave --force and join again")]
    Malformed(String),
    /// Beyond [`MAX_COMMAND`].
    #[error("the command has {0} octets, more than {MAX_COMMAND}; try: a shorter command or environment")]
    TooLong(usize),
}

impl Envelope {
    /// As octets of the log.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let out = postcard::to_extend(self, vec![FORMAT]).map_err(|e| CodecError::Malformed(e.to_string()))?;
        if out.len() > MAX_COMMAND {
            return Err(CodecError::TooLong(out.len()));
        }
        Ok(out)
    }

    /// Reads [`Envelope::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Envelope, CodecError> {
        match bytes.split_first() {
            Some((&FORMAT, body)) => match postcard::take_from_bytes(body) {
                Ok((envelope, [])) => Ok(envelope),
                Ok((_, rest)) => Err(CodecError::Malformed(format!("{} octets too many", rest.len()))),
                Err(e) => Err(CodecError::Malformed(e.to_string())),
            },
            Some((&f, _)) if f > FORMAT => Err(CodecError::Newer(f)),
            Some((&f, _)) => Err(CodecError::Malformed(format!("format {f}"))),
            None => Err(CodecError::Malformed("empty".into())),
        }
    }
}

/// A change of intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of a log. Answer: [`Applied::Node`].
    InitCluster(InitCluster),
    /// A node joins; one whose key is known gets the id it has. Answer: [`Applied::Node`].
    AddNode(NewNode),
    /// A node is gone for good: its slots move, its blocks rest. The last manager cannot go.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
    /// The leader's verdict after the grace time, and its end.
    SetNodeDown {
        /// Which.
        node: NodeId,
        /// Its slots move (`true`), or it may be given new ones again.
        down: bool,
    },
    /// Active, pause, drain.
    SetAvailability {
        /// Which.
        node: NodeId,
        /// What.
        availability: Availability,
    },
    /// Changes what people say of a node.
    UpdateNode {
        /// Which.
        node: NodeId,
        /// What changes.
        update: NodeUpdate,
    },
    /// What a node has told of its machine; the leader proposes it when it differs from what is known.
    SetMachine {
        /// Which.
        node: NodeId,
        /// What it is.
        machine: Machine,
    },
    /// Moves running slots of a service so that they lie as if it were placed anew. Answer: [`Applied::Moved`].
    Rebalance {
        /// Which.
        service: Name,
        /// Most slots to move.
        budget: u32,
    },
    /// Answer: [`Applied::Network`].
    CreateNetwork {
        /// Name, not taken yet.
        name: Name,
        /// What was asked for.
        spec: NetworkSpec,
        /// Routes of hosts, as the proposer knows them; default routes do not count.
        avoid: Vec<IpNet>,
    },
    /// Refused while a service is on it.
    RemoveNetwork {
        /// Name.
        name: Name,
    },
    /// Answer: [`Applied::Service`].
    CreateService {
        /// Name, not taken yet.
        name: Name,
        /// What was asked for.
        spec: ServiceSpec,
    },
    /// Changes what is named. Answer: [`Applied::Service`].
    UpdateService {
        /// Name.
        name: Name,
        /// What changes.
        update: ServiceUpdate,
    },
    /// Makes a service what `spec` says, whole. Where running tasks must be replaced for that, a rollout begins, which
    /// the leader takes on by [`Command::Advance`]; one that is paused goes on. Answer: [`Applied::Service`].
    ReplaceService {
        /// Name.
        name: Name,
        /// What it should be.
        spec: ServiceSpec,
        /// `Service::changed` of what its sender looked at: refused when it was changed since.
        seen: u64,
    },
    /// Goes back to what was before the last change; refused when there is nothing to go back to. Answer:
    /// [`Applied::Service`].
    Rollback {
        /// Name.
        name: Name,
    },
    /// The leader takes a rollout on. Of another generation than the service's, or when none moves: no change.
    Advance {
        /// Service.
        service: Name,
        /// The generation that slots go to.
        generation: u64,
        /// Slots that now run the new one.
        slots: SlotSet,
        /// All slots beyond those asked for that there should be; those that no node takes are left out.
        surge: SlotSet,
    },
    /// The leader ends or stops a rollout.
    EndRollout {
        /// Service.
        service: Name,
        /// As for [`Command::Advance`].
        generation: u64,
        /// How.
        end: RolloutEnd,
        /// Why, for people.
        message: String,
    },
    /// Slots that moved are ready at their new place: they end at the earlier one.
    Release {
        /// Service.
        service: Name,
        /// The earlier place.
        node: NodeId,
        /// Which; those that do not go on there are passed over.
        slots: SlotSet,
    },
    /// Answer: [`Applied::Service`].
    Scale {
        /// Name.
        name: Name,
        /// Tasks.
        replicas: u32,
    },
    /// Its tasks stop, its numbers rest.
    RemoveService {
        /// Name.
        name: Name,
    },
    /// Ports of [`PortSpec::AUTO`] that hosts use, as the leader has just seen them: none of these is given out.
    SeePorts(Vec<u16>),
    /// Adds a published port; one that it has already is no change. Answer: [`Applied::Published`].
    Publish {
        /// Service.
        service: Name,
        /// Port.
        port: PortSpec,
    },
    /// Takes a published port away. Answer: [`Applied::Published`].
    Unpublish {
        /// Service.
        service: Name,
        /// Port; the target counts only if it differs from the published one.
        port: PortSpec,
    },
    /// Gives a node one more block of a network. Answer: [`Applied::Block`].
    AssignBlock {
        /// To whom.
        node: NodeId,
        /// Of which network.
        vni: Vni,
    },
    /// A node gives blocks back; they rest.
    ReleaseBlocks {
        /// Whose.
        node: NodeId,
        /// Of which network.
        vni: Vni,
        /// Which; those that it does not hold are passed over.
        blocks: Vec<u32>,
    },
    /// Replaces (`Some`) or forgets (`None`) what managers keep secret.
    SetSecrets(BTreeMap<String, Option<Secret>>),
    /// Changes settings of the cluster: all of these, or none.
    UpdateSettings(Vec<Change>),
    /// Promotes or demotes. The proposer has taken a manager out of Raft's voters before it makes a worker of it. Answer:
    /// [`Applied::Raft`] for a manager.
    SetRole {
        /// Whom.
        node: NodeId,
        /// To what.
        role: Role,
        /// Where its managers' RPC listens (`ip:port`); managers only.
        rpc: Option<String>,
    },
    /// A manager has lost its log: its next life in Raft has another id. Answer: [`Applied::Raft`].
    RenewRaft {
        /// Which.
        node: NodeId,
        /// The id that it had; if it has another one by now, nothing changes.
        old: u64,
    },
    /// A node joins with a token's secret, compared here: a manager that lags lets nobody in with an old token. Answer:
    /// [`Applied::Node`].
    Join {
        /// As for [`Command::AddNode`].
        node: NewNode,
        /// What the token says.
        secret: Secret,
        /// What it begins with, if it is new.
        availability: Availability,
    },
    /// Slots of a service failed on a node until their restarts were used up: they go to other nodes, and for ten minutes
    /// the service is given no slot there. Refused when there is no other node for one of them.
    Avoid {
        /// Service.
        service: Name,
        /// Node.
        node: NodeId,
        /// Which; those that are not there are passed over.
        slots: SlotSet,
    },
    /// Changes what managers keep secret, if nobody has since `seen`.
    ReplaceSecrets {
        /// [`State::secrets_at`](super::State::secrets_at) of the state that the change was made from.
        seen: u64,
        /// New ones (`Some`), and those to forget (`None`).
        secrets: BTreeMap<String, Option<Secret>>,
        /// What all nodes are told of them.
        trust: Trust,
    },
}

/// How the leader ends a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RolloutEnd {
    /// Every slot runs the new one.
    Completed,
    /// Too many failed: it stays where it is.
    Paused,
    /// Too many failed: all goes back to what was; paused, where there is nothing to go back to.
    RolledBack,
}

/// Body of [`Command::InitCluster`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitCluster {
    /// Random id, 32 hex digits.
    pub cluster: String,
    /// The first manager.
    pub node: NewNode,
    /// First settings. They name an IPv6 pool: a random ULA prefix (RFC 4193), /48.
    pub settings: ClusterSettings,
    /// The network `default`.
    pub default_network: NetworkSpec,
    /// As for [`Command::CreateNetwork`].
    pub avoid: Vec<IpNet>,
    /// First secrets.
    pub secrets: BTreeMap<String, Secret>,
}

/// A node that joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNode {
    /// Host name.
    pub hostname: String,
    /// Role.
    pub role: Role,
    /// Ed25519 public key, 32 octets.
    pub key: Vec<u8>,
    /// `ip:port` of the managers' RPC, managers only.
    pub rpc: Option<String>,
}

/// What changes in what people say of a node; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeUpdate {
    /// Active, pause, drain.
    pub availability: Option<Availability>,
    /// Labels to set (`Some`) and to take away (`None`).
    pub labels: BTreeMap<String, Option<String>>,
    /// Most tasks on it; `Some(None)`: no limit.
    pub max_tasks: Option<Option<u32>>,
}

/// What changes in a service; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceUpdate {
    /// Networks.
    pub networks: Option<Vec<Name>>,
    /// Tasks.
    pub replicas: Option<u32>,
    /// Command and arguments.
    pub command: Option<Vec<String>>,
    /// Environment.
    pub env: Option<BTreeMap<String, String>>,
    /// All published ports.
    pub publish: Option<Vec<PortSpec>>,
    /// SIGTERM to SIGKILL, ms.
    pub stop_grace_ms: Option<u64>,
    /// Drain, ms.
    pub drain_timeout_ms: Option<u64>,
    /// Endpoints by hand.
    pub attachable: Option<bool>,
}

/// Octets that never appear in a log line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} octets)", self.0.len())
    }
}

/// What a command gave out. The rest is read from the intent of its revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// Done.
    Done,
    /// It was so already.
    Unchanged,
    /// A node.
    Node(NodeId),
    /// A network.
    Network {
        /// Its VNI.
        vni: Vni,
        /// IPv4.
        subnet: Ipv4Net,
        /// IPv6.
        subnet6: Option<Ipv6Net>,
    },
    /// A service.
    Service {
        /// Its index.
        index: u32,
    },
    /// A published port, with the number that was given.
    Published(PortSpec),
    /// A block.
    Block(u32),
    /// So many slots moved.
    Moved(u32),
    /// A manager's id in Raft.
    Raft(u64),
}

/// Why a command was not carried out; nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}; try: {hint}")]
pub struct Refusal {
    /// Kind.
    pub code: Code,
    /// What and why.
    pub message: String,
    /// What to try.
    pub hint: String,
}

impl Refusal {
    pub(crate) fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
            hint: hint.into(),
        }
    }
    pub(crate) fn invalid(message: impl Into<String>, hint: impl Into<String>) -> Refusal {
        Refusal::new(Code::Invalid, message, hint)
    }
    pub(crate) fn conflict(message: impl Into<String>, hint: impl Into<String>) -> Refusal {
        Refusal::new(Code::Conflict, message, hint)
    }
    pub(crate) fn not_found(message: impl Into<String>, hint: impl Into<String>) -> Refusal {
        Refusal::new(Code::NotFound, message, hint)
    }
}

impl From<SettingError> for Refusal {
    fn from(e: SettingError) -> Refusal {
        Refusal::invalid(e.message, e.hint)
    }
}

impl From<Refusal> for ApiError {
    fn from(r: Refusal) -> ApiError {
        ApiError::new(r.code, r.message, r.hint)
    }
}
