//! What a manager does beside carrying its own node: founds the cluster, answers the hub, decides what becomes of dead
//! nodes' slots.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::{Duration, Instant},
};

use cluster::state::{Applied, Command, InitCluster, NewNode, Secret};
use futures_util::future::{BoxFuture, join_all};
use ipnet::{IpNet, Ipv6Net};
use model::{
    ApiError, ClusterSettings, Code, Intent, Name, NetworkSpec, NodeId, PortSpec, Vni,
    api::{Convergence, NodeHealth, NodeProgress, TaskView},
    intent::Role,
};
use tokio::sync::watch;

use crate::{
    daemon::{Cluster, internal},
    gossip::Facts,
    identity::{ClusterSecrets, Credentials, Csr, NodeKey},
    place::Addresses,
    rpc::{Answer, Ask, Hub, ManagerPort, Newcomer},
    store::{ProposeError, Store},
    tasks::TaskBoard,
};

/// How long a living node has to answer a question.
const ASK: Duration = Duration::from_secs(3);
/// Between two looks at who is dead for how long.
const OVERSEE: Duration = Duration::from_millis(500);

/// What makes a cluster begin.
pub struct FirstCommand {
    /// The first entry of the log.
    pub command: InitCluster,
}

/// A new cluster, decided but not yet written anywhere.
pub fn found(
    hostname: &str,
    key: &NodeKey,
    rpc: SocketAddr,
    mut settings: ClusterSettings,
) -> Result<(Credentials, FirstCommand), ApiError> {
    let id: [u8; 16] = crate::identity::random()?;
    let cluster: String = id.iter().map(|b| format!("{b:02x}")).collect();
    let secrets = ClusterSecrets::create(&cluster)?;
    // The log gives ids from 1 on, so the founder's is known.
    let node = NodeId(1);
    let certificate = secrets.sign(&Csr::parse(&key.csr(hostname)?)?, &cluster, node, Role::Manager)?;
    let credentials = Credentials {
        cluster: cluster.clone(),
        node,
        role: Role::Manager,
        certificate,
        ca: secrets.ca().to_owned(),
        gossip: secrets.gossip.clone(),
        managers: vec![rpc.to_string()],
    };
    if settings.default_addr_pool6.is_none() {
        settings.default_addr_pool6 = Some(random_ula()?);
    }
    cluster::state::check_settings(&settings)?;
    let avoid = crate::reconcile::host::routed_subnets().map_err(|e| internal("routes of this host", e))?;
    let command = InitCluster {
        cluster,
        node: NewNode {
            hostname: hostname.to_owned(),
            role: Role::Manager,
            key: key.public().to_vec(),
            rpc: Some(rpc.to_string()),
        },
        settings,
        default_network: NetworkSpec::default(),
        avoid: avoid.into_iter().collect(),
        secrets: secrets.to_map().into_iter().map(|(k, v)| (k, Secret(v))).collect(),
    };
    Ok((credentials, FirstCommand { command }))
}

/// A random /48 of fd00::/8 (RFC 4193 3.2).
fn random_ula() -> Result<Ipv6Net, ApiError> {
    let r: [u8; 5] = crate::identity::random()?;
    let mut octets = [0u8; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&r);
    Ipv6Net::new(octets.into(), 48).map_err(|e| internal("the ULA prefix", e))
}

/// A manager's part.
pub struct Manager {
    /// The log.
    pub store: Store,
    /// Nodes' streams.
    pub hub: Hub,
    board: Mutex<TaskBoard>,
    addresses: watch::Receiver<Addresses>,
}

impl From<ProposeError> for ApiError {
    fn from(e: ProposeError) -> ApiError {
        match e {
            ProposeError::Refused(r) => r.into(),
            other => ApiError::new(Code::Unavailable, other.to_string(), "netctl cluster members"),
        }
    }
}

impl Manager {
    /// A manager around its log. The port learns of the cluster later: each needs the other.
    pub fn new(store: Store, addresses: watch::Receiver<Addresses>) -> (Manager, Arc<Port>) {
        let port = Arc::new(Port {
            store: store.clone(),
            cluster: OnceLock::new(),
        });
        let hub = Hub::new(port.clone());
        (
            Manager {
                store,
                hub,
                board: Mutex::default(),
                addresses,
            },
            port,
        )
    }

    /// Puts a command into the log and waits until it is applied.
    pub async fn propose(&self, command: Command) -> Result<(u64, Applied), ApiError> {
        Ok(self.store.propose(command).await?)
    }

    fn secrets(&self) -> Result<ClusterSecrets, ApiError> {
        secrets(&self.store)
    }

    /// The workers' token and the address to use it at.
    pub fn worker_token(&self) -> Result<(String, String), ApiError> {
        Ok((
            self.secrets()?.token(Role::Worker)?.to_string(),
            self.addresses.borrow().rpc.to_string(),
        ))
    }

    /// How far every node has come.
    pub fn progress(&self, revision: u64, intent: &Intent, facts: &Facts, me: NodeId) -> Convergence {
        let reports = self.hub.snapshot();
        let nodes: Vec<NodeProgress> = intent
            .nodes
            .iter()
            .map(|(id, n)| {
                let report = reports.get(id);
                let health = facts.health.get(id).copied().unwrap_or(NodeHealth::Unknown);
                NodeProgress {
                    id: *id,
                    hostname: n.hostname.clone(),
                    living: *id == me
                        || health == NodeHealth::Ready
                        || (health == NodeHealth::Unknown && report.is_some_and(|r| r.connected)),
                    applied: report.map_or(0, |r| r.report.applied),
                    problems: report.map(|r| r.report.problems.clone()).unwrap_or_default(),
                }
            })
            .collect();
        let converged = nodes.iter().filter(|n| n.living).all(|n| n.applied >= revision);
        Convergence {
            revision,
            converged,
            nodes,
        }
    }

    /// The story of a service's tasks.
    pub fn tasks(&self, service: &Name, facts: &Facts) -> Vec<TaskView> {
        let now = Instant::now();
        self.board
            .lock()
            .map(|b| b.view(service, facts, now))
            .unwrap_or_default()
    }

    fn living(&self, intent: &Intent, facts: &Facts, me: NodeId) -> Vec<NodeId> {
        self.progress(0, intent, facts, me)
            .nodes
            .into_iter()
            .filter(|n| n.living)
            .map(|n| n.id)
            .collect()
    }

    async fn ask_all(&self, c: &Cluster, ask: Ask) -> Vec<(NodeId, Result<Answer, String>)> {
        let nodes = self.living(&c.intent(), &c.facts(), c.me);
        let asks = nodes.into_iter().map(|node| {
            let ask = ask.clone();
            async move { (node, self.hub.ask(node, ask, ASK).await.map_err(|e| e.to_string())) }
        });
        join_all(asks).await
    }

    /// Subnets that living nodes route outside of netd.
    pub async fn host_routes(&self, c: &Cluster) -> Result<Vec<(NodeId, IpNet)>, ApiError> {
        let mut out = Vec::new();
        for (node, answer) in self.ask_all(c, Ask::HostRoutes).await {
            match answer {
                Ok(Answer::Routes { subnets }) => out.extend(subnets.into_iter().map(|s| (node, s))),
                Ok(Answer::Failed { why }) | Err(why) => {
                    return Err(ApiError::new(
                        Code::Unavailable,
                        format!("{node} cannot say which subnets it routes: {why}"),
                        "netctl node ls",
                    ));
                }
                Ok(_) => return Err(internal("routes", format!("{node} gave an odd answer"))),
            }
        }
        Ok(out)
    }

    /// Refuses a port that a process of any living node listens on.
    pub async fn port_free(&self, c: &Cluster, port: PortSpec) -> Result<(), ApiError> {
        let key = format!("{}/{}", port.published, port.proto);
        // One that is ours already is the log's to refuse.
        if c.intent().service_by_port(&key).is_some() {
            return Ok(());
        }
        for (node, answer) in self
            .ask_all(
                c,
                Ask::PortFree {
                    port: port.published,
                    proto: port.proto,
                },
            )
            .await
        {
            let hostname = c
                .intent()
                .nodes
                .get(&node)
                .map(|n| n.hostname.clone())
                .unwrap_or_default();
            match answer {
                Ok(Answer::Free) => {}
                Ok(Answer::Taken { owner }) => {
                    return Err(ApiError::new(
                        Code::Conflict,
                        format!("port {key} is already listened on by {owner} on node {node} ({hostname})"),
                        format!(
                            "stop it there, or netctl service publish {}:{}/{}",
                            port.published.saturating_add(8000),
                            port.target,
                            port.proto
                        ),
                    ));
                }
                Ok(Answer::Failed { why }) | Err(why) => {
                    return Err(ApiError::new(
                        Code::Unavailable,
                        format!("{node} cannot say whether port {key} is free: {why}"),
                        "netctl node ls",
                    ));
                }
                Ok(Answer::Routes { .. }) => return Err(internal("port", format!("{node} gave an odd answer"))),
            }
        }
        Ok(())
    }

    /// Keeps the board, and moves the slots of nodes that are dead for longer than their grace. Ends with the cluster.
    pub async fn oversee(&self, c: Weak<Cluster>) {
        let mut since: BTreeMap<NodeId, (NodeHealth, Instant)> = BTreeMap::new();
        let mut intents = self.store.intent();
        let mut reports = self.hub.changed();
        let mut tick = tokio::time::interval(OVERSEE);
        loop {
            tokio::select! {
                r = intents.changed() => if r.is_err() { return },
                r = reports.changed() => if r.is_err() { return },
                _ = tick.tick() => {}
            }
            let Some(c) = c.upgrade() else { return };
            let (intent, facts, now) = (c.intent(), c.facts(), Instant::now());
            if let Ok(mut board) = self.board.lock() {
                board.place(&intent, now);
                for (node, r) in self.hub.snapshot() {
                    board.reported(node, &r.report.tasks, now);
                }
            }
            if let Err(e) = self.judge(&c, &intent, &facts, &mut since, now).await {
                tracing::warn!("a node's state cannot be put into the log: {}", e.message);
            }
        }
    }

    async fn judge(
        &self,
        c: &Cluster,
        intent: &Intent,
        facts: &Facts,
        since: &mut BTreeMap<NodeId, (NodeHealth, Instant)>,
        now: Instant,
    ) -> Result<(), ApiError> {
        since.retain(|id, _| intent.nodes.contains_key(id));
        for (id, node) in intent.nodes.iter().filter(|(id, _)| **id != c.me) {
            let health = facts.health.get(id).copied().unwrap_or(NodeHealth::Unknown);
            let at = since.entry(*id).or_insert((health, now));
            if at.0 != health {
                tracing::info!(node = %id, ?health, "a node changed");
                *at = (health, now);
            }
            let grace = match health {
                NodeHealth::Down => intent.settings.node_grace(),
                NodeHealth::DaemonDown => intent.settings.daemon_grace(),
                NodeHealth::Unknown => continue,
                NodeHealth::Ready => Duration::ZERO,
            };
            let down = health != NodeHealth::Ready;
            if node.down != down && now.saturating_duration_since(at.1) >= grace {
                self.propose(Command::SetNodeDown { node: *id, down }).await?;
            }
        }
        Ok(())
    }
}

fn secrets(store: &Store) -> Result<ClusterSecrets, ApiError> {
    let found = store.with(|s| ClusterSecrets::from_map(|name| s.secret(name)));
    Ok(found?)
}

/// How the hub reaches the log and the node.
pub struct Port {
    store: Store,
    cluster: OnceLock<Weak<Cluster>>,
}

impl Port {
    /// Completes the circle.
    pub fn belongs_to(&self, c: &Arc<Cluster>) {
        let _ = self.cluster.set(Arc::downgrade(c));
    }

    fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.get()?.upgrade()
    }
}

impl ManagerPort for Port {
    fn intent(&self) -> watch::Receiver<Arc<Intent>> {
        self.store.intent()
    }

    fn secrets(&self) -> Result<ClusterSecrets, ApiError> {
        secrets(&self.store)
    }

    fn add_node(&self, node: Newcomer) -> BoxFuture<'_, Result<NodeId, ApiError>> {
        Box::pin(async move {
            if node.role == Role::Manager {
                return Err(ApiError::new(
                    Code::Unsupported,
                    "this version has one manager",
                    "netctl cluster token worker",
                ));
            }
            let command = Command::AddNode(NewNode {
                hostname: node.hostname,
                role: node.role,
                key: node.key,
                rpc: None,
            });
            match self.store.propose(command).await? {
                (_, Applied::Node(id)) => Ok(id),
                (_, other) => Err(internal("joining", format!("the log answered {other:?}"))),
            }
        })
    }

    fn remove_node(&self, node: NodeId) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            self.store.propose(Command::RemoveNode { node }).await?;
            Ok(())
        })
    }

    fn need_block(&self, node: NodeId, vni: Vni) -> BoxFuture<'_, Result<u32, ApiError>> {
        Box::pin(async move {
            match self.store.propose(Command::AssignBlock { node, vni }).await? {
                (_, Applied::Block(k)) => Ok(k),
                (_, other) => Err(internal("a block", format!("the log answered {other:?}"))),
            }
        })
    }

    fn query(&self, _node: NodeId, path: String) -> BoxFuture<'_, (u16, String)> {
        Box::pin(async move {
            match self.cluster() {
                Some(c) => crate::api::query(&c, &path).await,
                None => (503, String::new()),
            }
        })
    }

    fn gossip_of(&self, node: NodeId) -> Option<SocketAddr> {
        let c = self.cluster()?;
        match c.me == node {
            true => Some(c.addresses().gossip),
            false => c.node_row(&c.facts(), node).map(|r| r.gossip),
        }
    }

    fn health(&self, node: NodeId) -> NodeHealth {
        match self.cluster() {
            Some(c) if c.me == node => NodeHealth::Ready,
            Some(c) => c.facts().health.get(&node).copied().unwrap_or(NodeHealth::Unknown),
            None => NodeHealth::Unknown,
        }
    }
}

/// Subnets as an answer carries them.
pub fn routes_answer(routes: Result<BTreeSet<IpNet>, impl std::fmt::Display>) -> Answer {
    match routes {
        Ok(r) => Answer::Routes {
            subnets: r.into_iter().collect(),
        },
        Err(e) => Answer::Failed { why: e.to_string() },
    }
}
