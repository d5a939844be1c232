//! Life of the daemon: alone, in a cluster, and the ways between.
//!
//! [`Daemon`] is what the socket talks to. While this node is in a cluster it holds a [`Cluster`], which owns every
//! running room; leaving drops it whole.

mod attach;
mod autojoin;
mod cluster;
mod feeds;
mod follow;
mod identity;
mod kept;
mod locked;
mod reach;
mod recover;
mod role;
mod rows;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use model::{
    ApiError, ClusterSettings, Code, Intent,
    api::{ClusterInit, ClusterInitAnswer, ClusterJoin, ClusterJoinAnswer, RoleChange},
    intent::Role,
    settings::Change,
};
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{mpsc, watch};
use tower::ServiceExt;

pub use cluster::Cluster;
use locked::Locked;
pub use recover::backup;

use crate::{
    config::Config,
    discover,
    identity::{Credentials, Gate, IdentityError, NodeKey, Token, Vault},
    manager,
    place::{self, Addresses, Flags, Place, PortUse},
    rpc,
};

/// Longest wait for this node to have heard that it is no manager any more.
const DEMOTED: Duration = Duration::from_secs(15);

/// The daemon.
pub struct Daemon {
    /// Settings.
    pub config: Config,
    /// Name shown to people.
    pub hostname: String,
    cluster: watch::Sender<Option<Arc<Cluster>>>,
    vault: Arc<Vault>,
    locked: tokio::sync::Mutex<Option<Locked>>,
    /// The first pass of a locked manager is over.
    stands: watch::Sender<bool>,
    tries: Mutex<Gate>,
    /// Init, join and leave come one after the other.
    changing: tokio::sync::Mutex<()>,
    problems: Mutex<BTreeMap<&'static str, String>>,
    fatal: mpsc::Sender<String>,
    /// Held while netd runs: two daemons on one state would each believe their own.
    _lock: Flock<std::fs::File>,
}

/// `Code::Internal` with a cause.
pub(crate) fn internal(what: &str, e: impl std::fmt::Display) -> ApiError {
    ApiError::new(Code::Internal, format!("{what}: {e}"), "journalctl -u netd")
}

fn no_cluster() -> ApiError {
    ApiError::new(
        Code::NoCluster,
        "this node is in no cluster",
        "netctl cluster init, or netctl cluster join TOKEN ADDR",
    )
}

impl Daemon {
    /// Starts, and goes on in the cluster that this node is in. The receiver yields why the daemon must end.
    pub async fn start(config: Config) -> anyhow::Result<(Arc<Daemon>, mpsc::Receiver<String>)> {
        use std::os::unix::fs::DirBuilderExt;
        let state = &config.node.state_dir;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state)?;
        std::fs::create_dir_all(&config.node.run_dir)?;
        let lock = std::fs::File::create(state.join("lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| {
            anyhow::anyhow!(
                "{} is in use by another netd ({e}); try: systemctl status netd, or another [node] state_dir",
                state.display()
            )
        })?;
        let hostname = match &config.node.name {
            Some(n) => n.clone(),
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        let vault = Arc::new(Vault::open(state)?);
        let (fatal, ends) = mpsc::channel(4);
        let daemon = Arc::new(Daemon {
            config,
            hostname,
            cluster: watch::Sender::new(None),
            vault,
            locked: tokio::sync::Mutex::new(None),
            stands: watch::Sender::new(false),
            tries: Mutex::default(),
            changing: tokio::sync::Mutex::new(()),
            problems: Mutex::default(),
            fatal,
            _lock: lock,
        });
        if let Some(about) = daemon.vault.locked() {
            daemon.stay_locked(&about).await?;
        } else if let Some(credentials) = Credentials::load(&daemon.vault)? {
            tracing::info!(node = %credentials.node, cluster = %credentials.cluster, "going on in the cluster");
            let _turn = daemon.changing.lock().await;
            daemon
                .enter(credentials, None, None)
                .await
                .map_err(|e| anyhow::anyhow!("{}; try: {}", e.message, e.hint))?;
        }
        if !daemon.config.cluster.join.is_empty() {
            tokio::spawn(autojoin::run(Arc::downgrade(&daemon)));
        }
        Ok((daemon, ends))
    }

    /// The cluster, or why there is none.
    pub fn cluster(&self) -> Result<Arc<Cluster>, ApiError> {
        self.cluster_now().ok_or_else(|| self.why_none())
    }

    /// Whether this is a manager that waits for its unlock key.
    pub fn is_locked(&self) -> bool {
        self.vault.locked().is_some()
    }

    fn why_none(&self) -> ApiError {
        match self.vault.locked() {
            Some(_) => IdentityError::Locked.into(),
            None => no_cluster(),
        }
    }

    /// The cluster, if any.
    pub fn cluster_now(&self) -> Option<Arc<Cluster>> {
        self.cluster.borrow().clone()
    }

    /// Changes when this node enters or leaves a cluster.
    pub fn cluster_changes(&self) -> watch::Receiver<Option<Arc<Cluster>>> {
        self.cluster.subscribe()
    }

    /// Whether the first plan is applied; without a cluster the plan is empty.
    pub fn is_ready(&self) -> bool {
        match self.cluster_now() {
            Some(c) => c.reconciled().writes.runs > 0,
            None => self.vault.locked().is_none() || *self.stands.borrow(),
        }
    }

    /// Waits for [`Daemon::is_ready`].
    pub async fn wait_ready(&self) {
        if let Some(c) = self.cluster_now() {
            let mut status = c.reconcile_changes();
            let _ = status.wait_for(|s| s.writes.runs > 0).await;
        } else if self.vault.locked().is_some() {
            let _ = self.stands.subscribe().wait_for(|s| *s).await;
        }
    }

    /// What is wrong beside the reconciler's problems.
    pub fn problems(&self) -> Vec<String> {
        let problems = self.problems.lock().map(|p| p.values().cloned().collect::<Vec<_>>());
        let announced = self.cluster_now().and_then(|c| c.announce_problem());
        problems.unwrap_or_default().into_iter().chain(announced).collect()
    }

    fn problem(&self, about: &'static str, what: Option<String>) {
        if let Ok(mut p) = self.problems.lock() {
            match what {
                Some(what) => p.insert(about, what),
                None => p.remove(about),
            };
        }
    }

    /// What registries of managers need of this host.
    pub fn discovery(&self) -> discover::Context {
        discover::Context {
            resolv_conf: self.config.dns.resolv_conf.clone(),
        }
    }

    /// Stops every room; the kernel keeps its state.
    pub async fn stop(&self) {
        if let Some(c) = self.cluster.send_replace(None) {
            c.stop().await;
        }
        if let Some(l) = self.locked.lock().await.take() {
            l.stop().await;
        }
    }

    async fn enter(
        self: &Arc<Self>,
        credentials: Credentials,
        first: Option<manager::FirstCommand>,
        known: Option<Arc<Intent>>,
    ) -> Result<Arc<Cluster>, ApiError> {
        let c = Cluster::start(
            &self.config,
            &self.hostname,
            credentials,
            first,
            cluster::Enter {
                known,
                vault: self.vault.clone(),
                daemon: Arc::downgrade(self),
                fatal: self.fatal.clone(),
            },
        )
        .await?;
        self.cluster.send_replace(Some(c.clone()));
        Ok(c)
    }

    /// Makes a one-manager cluster of this node.
    pub async fn init(self: &Arc<Self>, req: ClusterInit) -> Result<ClusterInitAnswer, ApiError> {
        let _turn = self.changing.lock().await;
        self.refuse_second()?;
        let flags = Flags {
            advertise: req.advertise_addr.as_deref(),
            listen: req.listen_addr.as_deref(),
            data_path: req.data_path_addr.as_deref(),
            gossip_port: req.gossip_port,
            announce: req.announce.as_deref(),
            discover: None,
            toward: None,
        };
        let (place, now) = self.place(flags).await?;
        let settings = self.first_settings(&req)?;
        let config = place.effective(&self.config);
        self.refuse_taken(Some(config.cluster.listen), &config, settings.data_path_port)
            .await?;
        let key = NodeKey::load_or_create(&self.vault)?;
        let rpc = now.rpc;
        let (credentials, first) = manager::found(&self.hostname, &key, rpc, settings)?;
        let unlock = first.unlock.clone();
        self.wipe_log()?;
        let entered = async {
            place.save(&self.config)?;
            let c = self.enter(credentials.clone(), Some(first), None).await?;
            self.begin_with(&credentials)?;
            Ok::<_, ApiError>(c)
        };
        let c = match entered.await {
            Ok(c) => c,
            Err(e) => {
                self.undo().await;
                return Err(e);
            }
        };
        if unlock.is_some() {
            self.seal(&c, unlock.clone()).await?;
        }
        let m = c.manager()?;
        Ok(ClusterInitAnswer {
            cluster: c.intent().cluster.clone(),
            node: c.me,
            addr: m.rpc(),
            worker_token: m.token(Role::Worker)?,
            unlock_key: unlock.map(|k| k.reveal()),
        })
    }

    /// Joins the cluster of a manager: the one at the address, or the first of those discovered that lets this node in.
    pub async fn join(self: &Arc<Self>, req: ClusterJoin) -> Result<ClusterJoinAnswer, ApiError> {
        let _turn = self.changing.lock().await;
        self.refuse_second()?;
        let token = req.token.parse()?;
        let port = self.config.cluster.listen.port();
        let named = match (&req.discover, req.addr.as_str()) {
            (None, addr) if !addr.is_empty() => vec![addr.to_owned()],
            (Some(url), "") => discover::find(url, &self.discovery()).await?,
            _ => {
                return Err(ApiError::new(
                    Code::Invalid,
                    "a manager's address or a URL to discover one is needed, not both",
                    "netctl cluster join TOKEN 192.0.2.1:2377, or netctl cluster join TOKEN --discover URL",
                ));
            }
        };
        let all = reach::resolve(&named, port).await?;
        if let [one] = all.as_slice() {
            return self.join_at(&req, &token, *one).await;
        }
        let mut answering = reach::answering(all);
        let mut why = Vec::new();
        while let Some((addr, reached)) = answering.next().await {
            let tried = match reached {
                Ok(()) => self.join_at(&req, &token, addr).await.map_err(|e| e.message),
                Err(e) => Err(e),
            };
            match tried {
                Ok(joined) => return Ok(joined),
                Err(e) => why.push(format!("{addr}: {e}")),
            }
        }
        Err(reach::nobody(&why))
    }

    async fn join_at(
        self: &Arc<Self>,
        req: &ClusterJoin,
        token: &Token,
        to: SocketAddr,
    ) -> Result<ClusterJoinAnswer, ApiError> {
        let flags = Flags {
            advertise: req.advertise_addr.as_deref(),
            listen: req.listen_addr.as_deref(),
            data_path: req.data_path_addr.as_deref(),
            gossip_port: req.gossip_port,
            announce: req.announce.as_deref(),
            discover: req.discover.as_deref(),
            toward: Some(to.ip()),
        };
        let (mut place, now) = self.place(flags).await?;
        let config = place.effective(&self.config);
        self.refuse_taken(None, &config, None).await?;
        let key = NodeKey::load_or_create(&self.vault)?;
        let offer = rpc::Offer {
            hostname: &self.hostname,
            rpc: now.rpc,
            availability: req.availability,
        };
        let rpc::Joined {
            credentials,
            intent,
            gossip,
            ..
        } = rpc::join(token, to, &key, &offer).await?;
        place.seeds = gossip;
        let port = intent.settings.data_path_port;
        let entered = async {
            self.refuse_taken(None, &config, Some(port)).await?;
            place.save(&self.config)?;
            let c = self.enter(credentials.clone(), None, Some(intent)).await?;
            self.begin_with(&credentials)?;
            Ok::<_, ApiError>(c)
        };
        let c = match entered.await {
            Ok(c) => c,
            Err(e) => {
                self.unjoin(&credentials, &key).await;
                self.undo().await;
                return Err(e);
            }
        };
        c.first_intent().await?;
        Ok(ClusterJoinAnswer {
            cluster: credentials.cluster,
            node: credentials.node,
            role: credentials.role,
        })
    }

    /// Leaves: the managers forget this node, the kernel is cleared of what is ours, the state is wiped.
    pub async fn leave(self: &Arc<Self>, force: bool) -> Result<(), ApiError> {
        let _turn = self.changing.lock().await;
        if force && self.vault.locked().is_some() {
            return self.leave_locked().await;
        }
        let c = self.cluster()?;
        let told = self.say_goodbye(&c, force).await;
        if let Err(e) = told {
            if !force {
                return Err(e);
            }
            tracing::warn!("leaving without the managers' leave: {}", e.message);
        }
        self.cluster.send_replace(None);
        c.unannounce().await;
        let cleared = c.clear().await;
        self.wipe()?;
        cleared.map_err(|e| internal("left the cluster, but the kernel still holds objects of ours", e))
    }

    /// Tells the managers. A manager is demoted first, so that the others can still agree without it.
    async fn say_goodbye(self: &Arc<Self>, c: &Arc<Cluster>, force: bool) -> Result<(), ApiError> {
        let intent = c.intent();
        let others = intent.nodes.keys().filter(|n| **n != c.me).count();
        let managers = intent
            .nodes
            .iter()
            .filter(|(id, n)| **id != c.me && n.role == Role::Manager);
        if c.role() == Role::Manager {
            if managers.count() == 0 {
                if others > 0 && !force {
                    return Err(ApiError::new(
                        Code::Conflict,
                        format!("this node is the only manager, and {others} other nodes would be left without one"),
                        "netctl node promote another one first, or netctl cluster leave --force to end the cluster",
                    ));
                }
                return Ok(());
            }
            self.demote_me(c, force).await?;
        }
        c.tell_leaving().await.map_err(|e| {
            ApiError::new(
                Code::Unavailable,
                format!("no manager could be told: {e}"),
                "netctl cluster leave --force (then netctl node rm on a manager)",
            )
        })
    }

    async fn demote_me(self: &Arc<Self>, c: &Arc<Cluster>, force: bool) -> Result<(), ApiError> {
        let change = RoleChange {
            role: Role::Worker,
            force,
        };
        let body = serde_json::to_vec(&change).map_err(|e| internal("demoting this node", e))?;
        let request = axum::http::Request::post(format!("/v1/nodes/{}/role", c.me))
            .body(axum::body::Body::from(body))
            .map_err(|e| internal("demoting this node", e))?;
        // As if it had come on the socket: it goes to whoever leads.
        let answer = match crate::api::router(self.clone()).oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        if !answer.status().is_success() {
            let body = axum::body::to_bytes(answer.into_body(), 64 << 10)
                .await
                .unwrap_or_default();
            return Err(
                serde_json::from_slice(&body).unwrap_or_else(|_| internal("demoting this node", "no reason is told"))
            );
        }
        match c.has_role(Role::Worker, DEMOTED).await {
            true => Ok(()),
            false => Err(ApiError::new(
                Code::NotConverged,
                "the managers have taken this node out, and it has not heard of it",
                "netctl cluster leave again",
            )),
        }
    }

    /// Where this node is to be, as flags and configuration say.
    async fn place(&self, flags: Flags<'_>) -> Result<(Place, Addresses), ApiError> {
        let mut place = Place::asked(flags, &self.config).await?;
        let now = place.look(&place.effective(&self.config)).await?;
        place.settle(&now);
        Ok((place, now))
    }

    /// Says who holds the ports that this node is going to need.
    async fn refuse_taken(
        &self,
        rpc: Option<SocketAddr>,
        config: &Config,
        vxlan: impl Into<Option<u16>>,
    ) -> Result<(), ApiError> {
        let ports = PortUse {
            rpc,
            gossip: config.cluster.gossip_port,
            vxlan: vxlan.into(),
            sandboxes: config.netns_dir(),
        };
        tokio::task::spawn_blocking(move || place::refuse_taken(&ports))
            .await
            .map_err(|e| internal("who holds the ports", e))?
    }

    /// What a new cluster begins with: this node's configuration, then what the request says.
    fn first_settings(&self, req: &ClusterInit) -> Result<ClusterSettings, ApiError> {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let cluster = &self.config.cluster;
        let mut settings = ClusterSettings {
            node_grace_ms: ms(cluster.node_grace),
            daemon_grace_ms: ms(cluster.daemon_grace),
            drain_ack_timeout_ms: ms(cluster.drain_ack_timeout),
            data_path_port: self.config.datapath.port,
            ..ClusterSettings::default()
        };
        for (key, value) in &req.settings {
            settings.set(&Change::parse(key, value)?)?;
        }
        Ok(settings)
    }

    fn refuse_second(&self) -> Result<(), ApiError> {
        match self.cluster_now() {
            Some(c) => Err(ApiError::new(
                Code::Conflict,
                format!("this node is in cluster {} already, as {}", c.intent().cluster, c.me),
                "netctl status, or netctl cluster leave first",
            )),
            None if self.vault.locked().is_some() => Err(self.why_none()),
            None => Ok(()),
        }
    }

    /// From now on this node is in the cluster. What was renewed meanwhile stays.
    fn begin_with(&self, credentials: &Credentials) -> Result<(), ApiError> {
        match Credentials::load(&self.vault)? {
            Some(newer) if newer.cluster == credentials.cluster => Ok(()),
            _ => Ok(credentials.save(&self.vault)?),
        }
    }

    /// The log has this node already: it is asked to forget it again.
    async fn unjoin(&self, credentials: &Credentials, key: &NodeKey) {
        if let Some(c) = self.cluster_now() {
            if let Err(e) = c.tell_leaving().await {
                tracing::warn!("undoing: {e}; try: netctl node rm {} on a manager", c.me);
            }
            return;
        }
        if let Err(e) = rpc::leave(credentials, key).await {
            tracing::warn!(
                "undoing: {}; try: netctl node rm {} on a manager",
                e.message,
                credentials.node
            );
        }
    }

    /// Nothing is half-made: after a failed init or join this node is in no cluster.
    async fn undo(&self) {
        if let Some(c) = self.cluster.send_replace(None)
            && let Err(e) = c.clear().await
        {
            tracing::warn!("undoing: {e}");
        }
        if let Err(e) = self.wipe() {
            tracing::warn!("undoing: {}", e.message);
        }
    }

    /// A log without credentials is what an init left that did not come to its end.
    fn wipe_log(&self) -> Result<(), ApiError> {
        kept::forget_log(&self.config, &self.vault)
    }

    fn wipe(&self) -> Result<(), ApiError> {
        let state = &self.config.node.state_dir;
        self.wipe_log()?;
        self.vault.wipe()?;
        match std::fs::remove_dir_all(state.join("gossip")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(internal("the state cannot be wiped", e));
            }
            _ => {}
        }
        for name in ["intent.json", "endpoints.json", "node.json"] {
            match std::fs::remove_file(state.join(name)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(internal("the state cannot be wiped", e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
