//! This node in a cluster: every running room, and the few questions that the socket asks of them together.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use model::{
    ApiError, Code, EndpointId, Intent, NodeId, NodeRow, Vni,
    api::{Convergence, TaskState, TaskStatus},
    intent::Role,
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    Daemon,
    feeds::{keep_table, meet, newest_intent},
    follow::{everywhere, rpc_listen, where_now},
    internal,
    kept::{last_intent, open_log},
    role::{keep_view, listen},
    rows::look_who_listens,
};
use crate::{
    config::Config,
    discover::{self, Announcer},
    dns::{DnsServer, EndpointNs, ForwardConfig},
    endpoints::Endpoints,
    gossip::{Facts, Gossip, GossipConfig},
    identity::{Credentials, Holding, Issued, NodeKey, Tls, Vault},
    known::Known,
    manager::{FirstCommand, Manager},
    place::{Addresses, Place},
    reconcile::{self, Kernel, Reconciled, Reconciler},
    rpc::{self, Local, Uplink, UplinkConfig},
    tasks::OwnTasks,
    view,
};

/// Longest wait for the first intent after joining.
const FIRST_INTENT: Duration = Duration::from_secs(15);

/// What a node enters a cluster with.
pub(super) struct Enter {
    /// The intent that it got when it joined.
    pub(super) known: Option<Arc<Intent>>,
    /// Where its secrets lie.
    pub(super) vault: Arc<Vault>,
    /// The daemon that its requests are answered by.
    pub(super) daemon: Weak<Daemon>,
    /// Told why the daemon must end.
    pub(super) fatal: mpsc::Sender<String>,
}

/// Running rooms.
pub struct Cluster {
    /// This node.
    pub me: NodeId,
    /// Settings.
    pub config: Config,
    /// Its part as a manager, while it has one.
    pub(super) manager: watch::Sender<Option<Arc<Manager>>>,
    /// Why it does not do what its role asks for.
    pub(super) role_problem: watch::Sender<Option<String>>,
    pub(super) known: Known,
    pub(super) tls: Arc<Tls>,
    pub(super) key: Arc<NodeKey>,
    pub(super) local: watch::Sender<Option<Local>>,
    daemon: Weak<Daemon>,
    pub(super) fatal: mpsc::Sender<String>,
    pub(super) hostname: String,
    pub(super) place: Mutex<Place>,
    pub(super) addresses: watch::Sender<Addresses>,
    /// The intent, with managers at the addresses that gossip tells.
    pub(super) reach: watch::Sender<Arc<Intent>>,
    pub(super) gossip: Gossip,
    pub(super) reconciler: Reconciler,
    /// Attach and detach come one after the other.
    pub(super) attaching: tokio::sync::Mutex<()>,
    /// Names follow endpoints one change after the other.
    pub(super) naming: tokio::sync::Mutex<()>,
    pub(super) uplink: Uplink,
    pub(super) intent: watch::Receiver<Arc<Intent>>,
    pub(super) facts: watch::Receiver<Arc<Facts>>,
    pub(super) reconciled: watch::Receiver<Arc<Reconciled>>,
    pub(super) endpoints: Arc<Mutex<Endpoints>>,
    endpoints_version: watch::Sender<u64>,
    pub(super) tasks: watch::Sender<OwnTasks>,
    pub(super) names: DnsServer,
    /// What this node holds of certificates and keys.
    pub(super) holding: watch::Sender<Holding>,
    /// The role that its certificate says.
    pub(super) certified: watch::Sender<Role>,
    /// Why its certificate cannot be kept fresh.
    trouble: watch::Sender<Option<String>>,
    /// A certificate that this node got by a token, to be taken.
    pub(super) renewed: watch::Sender<Option<Issued>>,
    pub(super) vault: Arc<Vault>,
    announcer: Mutex<Option<Announcer>>,
    running: Mutex<JoinSet<()>>,
}

impl Cluster {
    /// Starts every room. `first`: this node founds the cluster.
    pub(super) async fn start(
        config: &Config,
        hostname: &str,
        mut credentials: Credentials,
        first: Option<FirstCommand>,
        enter: Enter,
    ) -> Result<Arc<Cluster>, ApiError> {
        let state = config.node.state_dir.clone();
        let me = credentials.node;
        let place = Place::load(config)?;
        let config = &place.effective(config);
        let (place, now) = where_now(place, config).await?;
        let seeds = place.seeds.clone();
        let addresses = watch::Sender::new(now.clone());
        let vault = enter.vault;
        let key = Arc::new(NodeKey::load_or_create(&vault)?);
        let tls = Arc::new(Tls::new(&credentials, &key)?);
        let kernel = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || Kernel::open(&config, false))
                .await
                .map_err(|e| internal("the kernel", e))??
        };
        let mut running = JoinSet::new();
        let announcer = match &config.cluster.announce {
            Some(url) => {
                let context = discover::Context {
                    resolv_conf: config.dns.resolv_conf.clone(),
                };
                Some(Announcer::start(url, &context)?)
            }
            None => None,
        };

        // Intent: from this manager's own log, from a stream to another one, and at first from the disk.
        let log = open_log(config, &vault, first).await?;
        let last = enter.known.or_else(|| last_intent(&state)).unwrap_or_default();
        if log.is_none() {
            rpc::revive(&mut credentials, &last, &key, &vault, &tls).await;
        }
        let known = Known::new(last);
        let listener = match &log {
            Some(log) => {
                known.offer(&log.store.intent().borrow());
                Some(listen(rpc_listen(config, &now)).await?)
            }
            None => None,
        };
        let intent = known.watch();
        let local = watch::Sender::new(None);
        let (uplink, asked) = Uplink::start(UplinkConfig {
            me,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tls: tls.clone(),
            first: credentials.managers.iter().filter_map(|m| m.parse().ok()).collect(),
            local: local.subscribe(),
            intent: known.clone(),
        });

        let gossip_addr = now.gossip;
        let gossip = Gossip::start(
            GossipConfig {
                me,
                cluster: credentials.cluster.clone(),
                signer: key.signer(&credentials.cluster)?,
                listen: everywhere(config.cluster.gossip_port),
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
            .chain(seeds)
            .filter(|a| *a != gossip_addr)
            .collect();
        let facts = gossip.facts();
        let last = facts.borrow().clone();
        meet(&gossip, &last, me, &seeds).await;

        let endpoints = Arc::new(Mutex::new(
            Endpoints::open(&state).map_err(|e| internal("endpoints", e))?,
        ));
        // Before anything is compared: what still listens here, and what the managers have decided meanwhile.
        look_who_listens(&endpoints).await;
        if log.is_none() {
            newest_intent(&uplink, intent.clone()).await;
        }
        let inputs = reconcile::Inputs {
            me,
            config: config.clone(),
            addresses: addresses.subscribe(),
            intent: intent.clone(),
            facts: facts.clone(),
            endpoints: endpoints.clone(),
            only_add: false,
        };
        let reconciler = Reconciler::start(inputs, kernel).map_err(|e| internal("the reconciler", e))?;
        let table = watch::Sender::new(Arc::new(view::names(&intent.borrow(), &facts.borrow())));
        let forward = ForwardConfig {
            resolv_conf: config.dns.resolv_conf.clone(),
            ..ForwardConfig::default()
        };
        let names = DnsServer::new(table.subscribe(), forward);
        running.spawn(keep_table(table, intent.clone(), facts.clone()));
        let reach = watch::Sender::new(intent.borrow().clone());
        let c = Arc::new(Cluster {
            me,
            config: config.clone(),
            manager: watch::Sender::new(None),
            role_problem: watch::Sender::new(None),
            known,
            tls: tls.clone(),
            key: key.clone(),
            local,
            daemon: enter.daemon,
            fatal: enter.fatal,
            hostname: hostname.to_owned(),
            place: Mutex::new(place),
            addresses,
            reach,
            gossip,
            reconciled: reconciler.status(),
            reconciler,
            attaching: tokio::sync::Mutex::new(()),
            naming: tokio::sync::Mutex::new(()),
            uplink,
            intent,
            facts,
            endpoints,
            endpoints_version: watch::Sender::new(0),
            tasks: watch::Sender::new(OwnTasks::default()),
            names,
            holding: watch::Sender::new(rpc::holding(&credentials, &tls)),
            certified: watch::Sender::new(credentials.role),
            trouble: watch::Sender::new(None),
            renewed: watch::Sender::new(None),
            vault: vault.clone(),
            announcer: Mutex::new(announcer),
            running: Mutex::new(running),
        });
        if let (Some(log), Some(listener)) = (log, listener) {
            c.install(log, listener);
        }
        c.publish_node();
        c.spawn(c.clone().follow_addresses());
        c.spawn(c.clone().follow_managers());
        c.spawn(c.clone().follow_settings());
        c.spawn(c.clone().look_for_managers());
        c.spawn(c.clone().keep_announced());
        c.spawn(c.clone().keep_told());
        c.spawn(c.clone().keep_rows());
        c.spawn(c.clone().wake_reconciler());
        c.spawn(c.clone().report());
        c.spawn(c.clone().answer(asked));
        c.spawn(c.clone().keep_names());
        let custody = rpc::Custody {
            held: credentials,
            me,
            uplink: c.uplink.clone(),
            vault,
            key,
            tls,
            intent: c.intent.clone(),
            own: c.local.subscribe(),
            holding: c.holding.clone(),
            certified: c.certified.clone(),
            trouble: c.trouble.clone(),
            proved: c.renewed.subscribe(),
        };
        c.spawn({
            let gossip = c.gossip.clone();
            rpc::keep_credentials(custody, move |keys| gossip.set_keys(keys).map_err(|e| e.to_string()))
        });
        c.spawn(c.clone().follow_role());
        c.spawn(keep_view(
            config.node.state_dir.clone(),
            c.known.watch(),
            c.manager.subscribe(),
        ));
        Ok(c)
    }

    pub(super) fn spawn(&self, f: impl Future<Output = ()> + Send + 'static) {
        if let Ok(mut r) = self.running.lock() {
            r.spawn(f);
        }
    }

    /// Why this node's certificate cannot be kept fresh, if it cannot.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    /// Where this node's secrets lie.
    pub(crate) fn vault(&self) -> Arc<Vault> {
        self.vault.clone()
    }

    /// The daemon that this node's requests are answered by.
    pub fn daemon(&self) -> Option<Arc<Daemon>> {
        self.daemon.upgrade()
    }

    /// Where this node is now.
    pub fn addresses(&self) -> Addresses {
        self.addresses.borrow().clone()
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

    /// Changes of them.
    pub fn facts_changes(&self) -> watch::Receiver<Arc<Facts>> {
        self.facts.clone()
    }

    /// Why this node's data path is the one that it is.
    pub fn datapath_why(&self) -> String {
        self.reconciler.chosen().why.clone()
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

    /// How far every node has come with a revision.
    pub async fn progress(&self, revision: u64) -> Result<Convergence, ApiError> {
        match self.leading() {
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

    /// How the intent has come from managers.
    pub fn taken(&self) -> model::api::IntentTaken {
        self.uplink.taken()
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

    /// What a task's runner reported. The task's endpoints are fit for new flows, or not, from now on.
    pub fn task_reported(&self, id: EndpointId, status: TaskStatus) -> Result<(), ApiError> {
        let (runs, health) = (status.state == TaskState::Running, status.health);
        let keep = usize::try_from(self.intent().settings.task_history_limit).unwrap_or(usize::MAX);
        let mut taken = Ok(());
        self.tasks.send_if_modified(|t| {
            taken = t.take(&id, status, keep);
            taken.is_ok()
        });
        taken?;
        let changed = self
            .endpoints()
            .told(&id, runs, health)
            .map_err(|e| internal("the endpoints on disk", e))?;
        if changed {
            self.endpoints_changed();
        }
        Ok(())
    }

    /// Whether a task runs, as far as its runner has told.
    pub(super) fn task_runs(&self, id: &EndpointId) -> Option<bool> {
        self.tasks.borrow().get(id).map(|t| t.state == TaskState::Running)
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

    /// Why this manager is not announced where it should be.
    pub fn announce_problem(&self) -> Option<String> {
        self.announcer.lock().ok()?.as_ref()?.problem()
    }

    /// A manager is announced, a worker is not: nobody can join at it.
    pub(super) fn announce(&self) {
        let addr = self.manager_now().map(|_| self.addresses().rpc.to_string());
        if let Ok(a) = self.announcer.lock()
            && let Some(a) = a.as_ref()
        {
            a.say(addr);
        }
    }

    /// Takes this node out of the registry.
    pub(super) async fn unannounce(&self) {
        let announcer = self.announcer.lock().ok().and_then(|mut a| a.take());
        if let Some(a) = announcer {
            a.end().await;
        }
    }

    /// Tells managers that this node leaves.
    pub(super) async fn tell_leaving(&self) -> Result<(), String> {
        self.uplink.leave().await.map_err(|e| e.message)?;
        self.gossip.leave().await;
        Ok(())
    }

    /// Ends every room; the kernel keeps its state.
    pub async fn stop(self: &Arc<Self>) {
        if let Some(m) = self.manager_now() {
            m.step_down().await;
        }
        self.end_rooms().await;
        let c = self.clone();
        let _ = tokio::task::spawn_blocking(move || c.reconciler.stop()).await;
    }

    /// Ends every room and takes what is ours out of the kernel.
    pub(super) async fn clear(self: &Arc<Self>) -> Result<(), String> {
        self.end_rooms().await;
        let _ = self.names.sync(BTreeMap::<EndpointNs, _>::new()).await;
        let ours: BTreeSet<_> = self
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
        if let Some(m) = self.manager.send_replace(None) {
            self.local.send_replace(None);
            m.stop().await;
        }
        // The port is free for what comes next, whoever still looks at this cluster.
        if let Err(e) = self.gossip.stop().await {
            tracing::warn!("the last view of gossip is not kept: {e}");
        }
    }
}
