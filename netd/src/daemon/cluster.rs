//! This node in a cluster: every running room, and the few questions that the socket asks of them together.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use kernel::sockdiag;
use model::{
    ApiError, Code, EndpointId, Intent, NodeId, NodeRow, Vni,
    api::{Convergence, TaskStatus},
    intent::Role,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::internal;
use crate::{
    config::Config,
    dns::{DnsServer, EndpointNs, ForwardConfig},
    endpoints::Endpoints,
    gossip::{Facts, Gossip, GossipConfig},
    identity::{Credentials, NodeKey, Tls},
    manager::{FirstCommand, Manager, routes_answer},
    reconcile::{self, Kernel, Reconciled, Reconciler},
    rpc::{self, Answer, Ask, Managers, Report, Uplink, UplinkConfig},
    store::Store,
    view,
};

/// Longest wait for another node when this one starts.
const MEET: Duration = Duration::from_millis(1500);
/// Longest wait for the first intent after joining.
const FIRST_INTENT: Duration = Duration::from_secs(15);
/// The last view of the intent, for a start without managers.
const INTENT: &str = "intent.json";
/// Addresses of this node: attributes, not identity.
const PLACE: &str = "node.json";

/// Where this node is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Place {
    /// Address that others reach it by.
    pub(super) advertise: IpAddr,
}

impl Place {
    pub(super) fn save(&self, config: &Config) -> Result<(), ApiError> {
        let bytes = serde_json::to_vec(self).map_err(|e| internal("this node's address", e))?;
        crate::disk::write_atomic(&config.node.state_dir.join(PLACE), &bytes, 0o600)
            .map_err(|e| internal("this node's address", e))
    }

    fn load(config: &Config) -> Result<Place, ApiError> {
        let bytes = std::fs::read(config.node.state_dir.join(PLACE)).map_err(|e| internal("this node's address", e))?;
        serde_json::from_slice(&bytes).map_err(|e| internal("this node's address", e))
    }
}

/// Running rooms.
pub struct Cluster {
    /// This node.
    pub me: NodeId,
    /// Settings.
    pub config: Config,
    /// Its part as a manager.
    pub manager: Option<Manager>,
    pub(super) hostname: String,
    pub(super) advertise: IpAddr,
    pub(super) vtep: Ipv4Addr,
    pub(super) gossip: Gossip,
    pub(super) reconciler: Reconciler,
    /// Attach and detach come one after the other.
    pub(super) attaching: tokio::sync::Mutex<()>,
    role: Role,
    uplink: Uplink,
    intent: watch::Receiver<Arc<Intent>>,
    facts: watch::Receiver<Arc<Facts>>,
    reconciled: watch::Receiver<Arc<Reconciled>>,
    endpoints: Arc<Mutex<Endpoints>>,
    endpoints_version: watch::Sender<u64>,
    tasks: watch::Sender<BTreeMap<EndpointId, TaskStatus>>,
    names: DnsServer,
    running: Mutex<JoinSet<()>>,
}

impl Cluster {
    /// Starts every room. `first`: this node founds the cluster.
    pub(super) async fn start(
        config: &Config,
        hostname: &str,
        credentials: Credentials,
        first: Option<FirstCommand>,
        known: Option<Arc<Intent>>,
        fatal: mpsc::Sender<String>,
    ) -> Result<Arc<Cluster>, ApiError> {
        let state = config.node.state_dir.clone();
        let me = credentials.node;
        let place = Place::load(config)?;
        let vtep = match (config.datapath.address, place.advertise) {
            (Some(a), _) => a,
            (None, IpAddr::V4(a)) => a,
            (None, IpAddr::V6(_)) => {
                return Err(ApiError::new(
                    Code::Unsupported,
                    "the underlay is IPv4 in this version",
                    "[datapath] address = an IPv4 address",
                ));
            }
        };
        let key = NodeKey::load_or_create(&state)?;
        let tls = Arc::new(Tls::new(&credentials, &key)?);
        let kernel = {
            let (bpffs, state) = (config.node.bpffs_dir.clone(), state.clone());
            tokio::task::spawn_blocking(move || Kernel::open(&bpffs, &state))
                .await
                .map_err(|e| internal("the kernel", e))??
        };
        let mut running = JoinSet::new();

        // Intent: the log on a manager, the stream's copy on a worker.
        let mut manager = None;
        let mut port = None;
        let intent;
        let managers;
        let sink;
        if credentials.role == Role::Manager {
            let store = open_store(&state, first).await?;
            intent = store.intent();
            sink = watch::Sender::new(intent.borrow().clone());
            let rpc_addr = SocketAddr::new(place.advertise, config.cluster.listen.port());
            let (m, p) = Manager::new(store, rpc_addr.to_string());
            let listener = TcpListener::bind(config.cluster.listen).await.map_err(|e| {
                ApiError::new(
                    Code::Conflict,
                    format!(
                        "the managers' port {} cannot be listened on: {e}",
                        config.cluster.listen
                    ),
                    "ss -ltnp, or another [cluster] listen",
                )
            })?;
            let (hub, tls) = (m.hub.clone(), tls.clone());
            running.spawn(async move { hub.serve(listener, tls).await });
            managers = Managers::Local(m.hub.clone());
            let mut ended = m.store.fatal();
            running.spawn(async move {
                if let Ok(why) = ended
                    .wait_for(|w| w.is_some())
                    .await
                    .map(|w| w.clone().unwrap_or_default())
                {
                    let _ = fatal.send(format!("the log cannot be written: {why}")).await;
                }
            });
            (manager, port) = (Some(m), Some(p));
        } else {
            let last = known.or_else(|| last_intent(&state)).unwrap_or_default();
            sink = watch::Sender::new(last);
            intent = sink.subscribe();
            let first = credentials.managers.iter().filter_map(|m| m.parse().ok()).collect();
            managers = Managers::Remote {
                tls: tls.clone(),
                first,
            };
            running.spawn(keep_intent(state.clone(), intent.clone()));
        }
        let (uplink, asked) = Uplink::start(UplinkConfig {
            me,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            managers,
            intent: sink,
        });

        let gossip_addr = SocketAddr::new(place.advertise, config.cluster.gossip_port);
        let gossip = Gossip::start(
            GossipConfig {
                me,
                cluster: credentials.cluster.clone(),
                signer: key.signer(&credentials.cluster)?,
                listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, config.cluster.gossip_port)),
                advertise: gossip_addr,
                keys: credentials.gossip.clone(),
                tls: tls.clone(),
                state_dir: state.clone(),
            },
            intent.clone(),
        )
        .await
        .map_err(|e| {
            ApiError::new(
                Code::Conflict,
                format!("gossip cannot start: {e}"),
                "ss -lunp, or another [cluster] gossip_port",
            )
        })?;
        let seeds: Vec<SocketAddr> = credentials
            .managers
            .iter()
            .filter_map(|m| m.parse::<SocketAddr>().ok())
            .map(|m| SocketAddr::new(m.ip(), config.cluster.gossip_port))
            .filter(|a| *a != gossip_addr)
            .collect();
        let facts = gossip.facts();
        let last = facts.borrow().clone();
        meet(&gossip, &last, me, &seeds).await;

        let endpoints = Arc::new(Mutex::new(
            Endpoints::open(&state).map_err(|e| internal("endpoints", e))?,
        ));
        let inputs = reconcile::Inputs {
            me,
            config: config.clone(),
            vtep,
            intent: intent.clone(),
            facts: facts.clone(),
            endpoints: endpoints.clone(),
        };
        let reconciler = Reconciler::start(inputs, kernel).map_err(|e| internal("the reconciler", e))?;
        let table = watch::Sender::new(Arc::new(view::names(&intent.borrow(), &facts.borrow())));
        let forward = ForwardConfig {
            resolv_conf: config.dns.resolv_conf.clone(),
            ..ForwardConfig::default()
        };
        let names = DnsServer::new(table.subscribe(), forward);
        running.spawn(keep_table(table, intent.clone(), facts.clone()));
        let c = Arc::new(Cluster {
            me,
            config: config.clone(),
            manager,
            hostname: hostname.to_owned(),
            advertise: place.advertise,
            vtep,
            gossip,
            reconciled: reconciler.status(),
            reconciler,
            attaching: tokio::sync::Mutex::new(()),
            role: credentials.role,
            uplink,
            intent,
            facts,
            endpoints,
            endpoints_version: watch::Sender::new(0),
            tasks: watch::Sender::new(BTreeMap::new()),
            names,
            running: Mutex::new(running),
        });
        if let Some(p) = port {
            p.belongs_to(&c);
        }
        c.publish_node();
        c.spawn(c.clone().keep_rows());
        c.spawn(c.clone().wake_reconciler());
        c.spawn(c.clone().report());
        c.spawn(c.clone().answer(asked));
        c.spawn(c.clone().keep_names());
        c.spawn({
            let c = c.clone();
            async move { rpc::keep_credentials(&c.uplink, &state, &key, &tls).await }
        });
        c.spawn(c.clone().follow_keys());
        if c.manager.is_some() {
            let weak = Arc::downgrade(&c);
            c.spawn({
                let c = c.clone();
                async move {
                    if let Some(m) = &c.manager {
                        m.oversee(weak).await;
                    }
                }
            });
        }
        Ok(c)
    }

    fn spawn(&self, f: impl Future<Output = ()> + Send + 'static) {
        if let Ok(mut r) = self.running.lock() {
            r.spawn(f);
        }
    }

    /// Role of this node.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The newest intent known here.
    pub fn intent(&self) -> Arc<Intent> {
        self.intent.borrow().clone()
    }

    /// Changes of it.
    pub fn intent_changes(&self) -> watch::Receiver<Arc<Intent>> {
        self.intent.clone()
    }

    /// The newest facts known here.
    pub fn facts(&self) -> Arc<Facts> {
        self.facts.borrow().clone()
    }

    /// What the last pass came to.
    pub fn reconciled(&self) -> Arc<Reconciled> {
        self.reconciled.borrow().clone()
    }

    /// Changes of it.
    pub fn reconcile_changes(&self) -> watch::Receiver<Arc<Reconciled>> {
        self.reconciled.clone()
    }

    /// Endpoints of this node. Never held over an await.
    pub fn endpoints(&self) -> MutexGuard<'_, Endpoints> {
        // No code panics while it holds the lock; if one did, the table would still be whole.
        self.endpoints.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn endpoints_changed(&self) {
        self.endpoints_version.send_modify(|n| *n += 1);
    }

    pub(super) fn endpoint_changes(&self) -> watch::Receiver<u64> {
        self.endpoints_version.subscribe()
    }

    /// A node's own row.
    pub fn node_row<'a>(&self, facts: &'a Facts, node: NodeId) -> Option<&'a NodeRow> {
        view::node_row(facts, node)
    }

    /// This node's part as a manager, or who the managers are.
    pub fn manager(&self) -> Result<&Manager, ApiError> {
        self.manager.as_ref().ok_or_else(|| {
            let intent = self.intent();
            let managers = intent.nodes.iter().filter(|(_, n)| n.role == Role::Manager);
            let names: Vec<String> = managers
                .map(|(id, n)| {
                    format!(
                        "{} ({id}{})",
                        n.hostname,
                        n.rpc.as_ref().map(|r| format!(", {r}")).unwrap_or_default()
                    )
                })
                .collect();
            ApiError::new(
                Code::NotManager,
                "this node is a worker: changes are made on a manager",
                format!("the same command on {}", names.join(" or ")),
            )
        })
    }

    /// Who leads the managers, when it is known: with one manager that is the one.
    pub fn leader(&self) -> Option<NodeId> {
        match &self.manager {
            Some(m) => m.store.status().leader.map(NodeId),
            None => {
                let intent = self.intent();
                let mut managers = intent
                    .nodes
                    .iter()
                    .filter(|(_, n)| n.role == Role::Manager)
                    .map(|(id, _)| *id);
                managers.next().filter(|_| managers.next().is_none())
            }
        }
    }

    /// How far every node has come with a revision.
    pub async fn progress(&self, revision: u64) -> Result<Convergence, ApiError> {
        match &self.manager {
            Some(m) => Ok(m.progress(revision, &self.intent(), &self.facts(), self.me)),
            None => self.ask_manager(&format!("/v1/convergence?revision={revision}")).await,
        }
    }

    /// Reads a path that only managers' memory can answer.
    pub async fn ask_manager<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let away = || ApiError::new(Code::Unavailable, "no manager is reached", "netctl cluster members");
        if !*self.uplink.connected().borrow() {
            return Err(away());
        }
        let (status, body) = self.uplink.query(path).await?;
        if status == 200 {
            serde_json::from_str(&body).map_err(|e| internal("a manager's answer", e))
        } else {
            Err(serde_json::from_str(&body).unwrap_or_else(|_| away()))
        }
    }

    pub(super) async fn need_block(&self, vni: Vni) -> Result<u32, ApiError> {
        self.uplink.need_block(vni).await
    }

    /// Waits until all living nodes hold this node's rows up to `version`. `false`: not within `limit`.
    pub(super) async fn held_everywhere(&self, version: u64, limit: Duration) -> bool {
        let mut held = self.uplink.held();
        matches!(
            tokio::time::timeout(limit, held.wait_for(|v| *v >= version)).await,
            Ok(Ok(_))
        )
    }

    /// What a task's runner reported.
    pub fn task_reported(&self, id: EndpointId, status: TaskStatus) {
        self.tasks.send_modify(|t| {
            t.insert(id, status);
        });
    }

    /// Counters of the data path that are not 0.
    pub async fn counters(self: &Arc<Self>) -> BTreeMap<String, u64> {
        let c = self.clone();
        tokio::task::spawn_blocking(move || c.reconciler.counters())
            .await
            .unwrap_or_default()
    }

    /// Waits for the first intent after joining.
    pub(super) async fn first_intent(&self) -> Result<(), ApiError> {
        let mut intent = self.intent.clone();
        match tokio::time::timeout(FIRST_INTENT, intent.wait_for(|i| i.nodes.contains_key(&self.me))).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ApiError::new(
                Code::Unavailable,
                "joined, but no manager sent the cluster's intent",
                "netctl cluster members on a manager",
            )),
        }
    }

    async fn wake_reconciler(self: Arc<Self>) {
        let (mut intent, mut facts, mut endpoints) = (self.intent.clone(), self.facts.clone(), self.endpoint_changes());
        loop {
            let r = tokio::select! {
                r = intent.changed() => r,
                r = facts.changed() => r,
                r = endpoints.changed() => r,
            };
            if r.is_err() {
                return;
            }
            self.reconciler.look();
        }
    }

    /// Keeps managers informed: what this kernel holds, and how the tasks are.
    async fn report(self: Arc<Self>) {
        let (mut reconciled, mut tasks, mut intent) =
            (self.reconciled.clone(), self.tasks.subscribe(), self.intent.clone());
        loop {
            let now = reconciled.borrow_and_update().clone();
            let placed = intent.borrow_and_update().clone();
            // What is no longer placed here is of no interest to managers.
            let here = |id: &EndpointId| {
                let (service, slot) = id.as_str().rsplit_once('.')?;
                let slot = slot.parse().ok()?;
                placed
                    .slots(&service.parse().ok()?, self.me)
                    .filter(|s| s.contains(slot))
            };
            let mine = tasks
                .borrow_and_update()
                .iter()
                .filter(|(id, _)| here(id).is_some())
                .map(|(id, t)| (id.clone(), t.clone()))
                .collect();
            let mut problems = now.problems.clone();
            problems.extend(now.endpoints.iter().map(|(id, why)| format!("endpoint {id}: {why}")));
            self.uplink.report(Report {
                applied: now.applied,
                problems,
                tasks: mine,
                held: now.held.clone(),
            });
            let r = tokio::select! {
                r = reconciled.changed() => r,
                r = tasks.changed() => r,
                r = intent.changed() => r,
            };
            if r.is_err() {
                return;
            }
        }
    }

    /// Answers what managers ask.
    async fn answer(self: Arc<Self>, mut asked: mpsc::Receiver<(Ask, tokio::sync::oneshot::Sender<Answer>)>) {
        while let Some((ask, tell)) = asked.recv().await {
            let found = tokio::task::spawn_blocking(move || match ask {
                Ask::PortFree { port, proto } => match sockdiag::holders(proto, port) {
                    Ok(h) => match h.first() {
                        Some(holder) => Answer::Taken {
                            owner: holder.to_string(),
                        },
                        None => Answer::Free,
                    },
                    Err(e) => Answer::Failed { why: e.to_string() },
                },
                Ask::HostRoutes => routes_answer(reconcile::host::routed_subnets()),
            });
            let _ = tell.send(found.await.unwrap_or_else(|e| Answer::Failed { why: e.to_string() }));
        }
    }

    /// Gossip seals with the keys that managers tell.
    async fn follow_keys(self: Arc<Self>) {
        let mut keys = self.uplink.keys();
        while keys.changed().await.is_ok() {
            let now = keys.borrow_and_update().clone();
            if let Err(e) = self.gossip.set_keys(&now) {
                tracing::error!("the new gossip keys cannot be used: {e}");
            }
        }
    }

    /// Names are answered in exactly the namespaces of this node's endpoints.
    pub(super) async fn names_follow(&self) {
        let address = self.config.dns.address;
        let views = view::views(self.endpoints().all());
        let wanted = views
            .into_iter()
            .map(|(path, view)| (EndpointNs { path, address }, view))
            .collect();
        for (path, why) in self.names.sync(wanted).await {
            tracing::warn!(netns = %path.display(), "names cannot be answered: {why}");
        }
    }

    async fn keep_names(self: Arc<Self>) {
        let (mut reconciled, mut endpoints) = (self.reconciled.clone(), self.endpoint_changes());
        loop {
            self.names_follow().await;
            let r = tokio::select! {
                r = reconciled.changed() => r,
                r = endpoints.changed() => r,
            };
            if r.is_err() {
                return;
            }
        }
    }

    /// Tells managers that this node leaves.
    pub(super) async fn tell_leaving(&self) -> Result<(), String> {
        if self.role == Role::Manager {
            return Ok(());
        }
        self.uplink.leave().await.map_err(|e| e.message)?;
        self.gossip.leave().await;
        Ok(())
    }

    /// Ends every room; the kernel keeps its state.
    pub async fn stop(self: &Arc<Self>) {
        self.end_rooms().await;
        let c = self.clone();
        let _ = tokio::task::spawn_blocking(move || c.reconciler.stop()).await;
    }

    /// Ends every room and takes what is ours out of the kernel.
    pub(super) async fn clear(self: &Arc<Self>) -> Result<(), String> {
        self.end_rooms().await;
        let _ = self.names.sync(BTreeMap::<EndpointNs, _>::new()).await;
        let ours: Vec<_> = self
            .endpoints()
            .all()
            .values()
            .filter(|e| e.ours)
            .map(|e| e.netns.clone())
            .collect();
        let c = self.clone();
        let cleared = tokio::task::spawn_blocking(move || {
            let done = c.reconciler.unload();
            for path in ours {
                if let Err(e) = kernel::netns::remove(&path) {
                    tracing::warn!("{e}");
                }
            }
            done
        });
        cleared.await.map_err(|e| e.to_string())?
    }

    async fn end_rooms(&self) {
        let mut running = match self.running.lock() {
            Ok(mut r) => std::mem::take(&mut *r),
            Err(e) => std::mem::take(&mut *e.into_inner()),
        };
        running.shutdown().await;
        if let Some(m) = &self.manager {
            m.store.shutdown().await;
        }
    }
}

async fn open_store(state: &std::path::Path, first: Option<FirstCommand>) -> Result<Store, ApiError> {
    let dir = state.join("raft");
    let key = log_key(state)?;
    let opened = tokio::task::spawn_blocking(move || match first {
        Some(f) => Store::create(&dir, key, f.command).map(Some),
        None => Store::open(&dir, key),
    });
    match opened.await.map_err(|e| internal("the log", e))? {
        Ok(Some(s)) => Ok(s),
        Ok(None) => Err(ApiError::new(
            Code::Internal,
            format!("the log is missing in {}", state.display()),
            "restore it, or netctl cluster leave --force and begin anew",
        )),
        Err(e) => Err(internal("the log", e)),
    }
}

/// Key that the log's records are sealed with: made once, beside the node's own key.
fn log_key(state: &std::path::Path) -> Result<[u8; 32], ApiError> {
    let dir = state.join("identity");
    let path = dir.join("log.key");
    match std::fs::read(&path) {
        Ok(bytes) => bytes
            .try_into()
            .map_err(|_| internal("the log's key", format!("{} has not 32 octets", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let key: [u8; 32] = crate::identity::random()?;
            std::fs::create_dir_all(&dir).map_err(|e| internal("the log's key", e))?;
            crate::disk::write_atomic(&path, &key, 0o600).map_err(|e| internal("the log's key", e))?;
            Ok(key)
        }
        Err(e) => Err(internal("the log's key", e)),
    }
}

fn last_intent(state: &std::path::Path) -> Option<Arc<Intent>> {
    let bytes = std::fs::read(state.join(INTENT)).ok()?;
    serde_json::from_slice(&bytes)
        .map(Arc::new)
        .inspect_err(|e| tracing::warn!("{INTENT}: {e}; managers will send it anew"))
        .ok()
}

/// Keeps the last view on disk: a worker that reboots without managers goes on from it.
async fn keep_intent(state: std::path::PathBuf, mut intent: watch::Receiver<Arc<Intent>>) {
    while intent.changed().await.is_ok() {
        let now = intent.borrow_and_update().clone();
        let path = state.join(INTENT);
        let written = tokio::task::spawn_blocking(move || {
            let bytes = serde_json::to_vec(&*now).map_err(std::io::Error::other)?;
            crate::disk::write_atomic(&path, &bytes, 0o600)
        });
        if let Ok(Err(e)) = written.await {
            tracing::warn!("{INTENT} cannot be kept: {e}");
        }
        // A burst of changes is one write.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Asks the nodes that were known last for what this node has missed, before anything is compared with the kernel: the
/// view on disk may lack the last second, and what it lacks would be withdrawn. One answer is enough; none means that the
/// last view is the best there is.
async fn meet(gossip: &Gossip, facts: &Facts, me: NodeId, seeds: &[SocketAddr]) {
    let known = facts
        .rows
        .keys()
        .filter(|id| **id != me)
        .filter_map(|id| view::node_row(facts, *id))
        .map(|r| r.gossip);
    let all: BTreeSet<SocketAddr> = seeds.iter().copied().chain(known).collect();
    let mut asked: FuturesUnordered<_> = all
        .iter()
        .map(|addr| {
            let gossip = gossip.clone();
            let addr = *addr;
            async move { gossip.join(&[addr]).await }
        })
        .collect();
    let one = async {
        while let Some(met) = asked.next().await {
            if met {
                return true;
            }
        }
        all.is_empty()
    };
    if !tokio::time::timeout(MEET, one).await.unwrap_or(false) {
        tracing::info!("no other node answers yet: going on from the last view");
    }
}

/// Names follow intent and facts.
async fn keep_table(
    table: watch::Sender<Arc<dns::Table>>,
    mut intent: watch::Receiver<Arc<Intent>>,
    mut facts: watch::Receiver<Arc<Facts>>,
) {
    loop {
        let now = view::names(&intent.borrow_and_update(), &facts.borrow_and_update());
        table.send_if_modified(|t| {
            let new = **t != now;
            *t = Arc::new(now);
            new
        });
        let r = tokio::select! {
            r = intent.changed() => r,
            r = facts.changed() => r,
        };
        if r.is_err() {
            return;
        }
    }
}
