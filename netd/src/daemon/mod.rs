//! Life of the daemon: alone, in a cluster, and the ways between.
//!
//! [`Daemon`] is what the socket talks to. While this node is in a cluster it holds a [`Cluster`], which owns every
//! running room; leaving drops it whole.

mod attach;
mod cluster;
mod feeds;
mod identity;
mod kept;
mod locked;
mod recover;
mod role;
mod rows;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

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
    identity::{Credentials, Gate, IdentityError, NodeKey, Vault},
    manager, rpc,
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
    problems: Mutex<Vec<String>>,
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
            problems: Mutex::new(Vec::new()),
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
        self.problems.lock().map(|p| p.clone()).unwrap_or_default()
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
        let addr = advertised(req.advertise_addr.as_deref(), &self.config).await?;
        let key = NodeKey::load_or_create(&self.vault)?;
        let rpc = SocketAddr::new(addr, self.config.cluster.listen.port());
        let settings = self.first_settings(&req)?;
        let (credentials, first) = manager::found(&self.hostname, &key, rpc, settings)?;
        let unlock = first.unlock.clone();
        self.wipe_log()?;
        let entered = async {
            kept::Place { advertise: addr }.save(&self.config)?;
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
            addr: m.rpc().to_owned(),
            worker_token: m.token(Role::Worker)?,
            unlock_key: unlock.map(|k| k.reveal()),
        })
    }

    /// Joins the cluster of a manager.
    pub async fn join(self: &Arc<Self>, req: ClusterJoin) -> Result<ClusterJoinAnswer, ApiError> {
        let _turn = self.changing.lock().await;
        self.refuse_second()?;
        let token = req.token.parse()?;
        let to = manager_addr(&req.addr, self.config.cluster.listen.port())?;
        let advertise = match req.advertise_addr.as_deref() {
            Some(a) => advertised(Some(a), &self.config).await?,
            // The address that leads to the manager is the one that the others see.
            None => source_towards(to).await?,
        };
        let key = NodeKey::load_or_create(&self.vault)?;
        let rpc = SocketAddr::new(advertise, self.config.cluster.listen.port());
        let rpc::Joined {
            credentials, intent, ..
        } = rpc::join(&token, to, &key, &self.hostname, rpc).await?;
        let entered = async {
            kept::Place { advertise }.save(&self.config)?;
            let c = self.enter(credentials.clone(), None, Some(intent)).await?;
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

    /// What a new cluster begins with: this node's configuration, then what the request says.
    fn first_settings(&self, req: &ClusterInit) -> Result<ClusterSettings, ApiError> {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let cluster = &self.config.cluster;
        let mut settings = ClusterSettings {
            node_grace_ms: ms(cluster.node_grace),
            daemon_grace_ms: ms(cluster.daemon_grace),
            drain_ack_timeout_ms: ms(cluster.drain_ack_timeout),
            ..ClusterSettings::default()
        };
        for (key, value) in &req.settings {
            settings.set(&Change::parse(key, value)?)?;
        }
        settings.check()?;
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

fn manager_addr(text: &str, port: u16) -> Result<SocketAddr, ApiError> {
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)))
        .map_err(|_| {
            ApiError::new(
                Code::Invalid,
                format!("{text:?} is no address"),
                "netctl cluster join TOKEN 192.0.2.1:2377",
            )
        })
}

async fn source_towards(to: SocketAddr) -> Result<IpAddr, ApiError> {
    let unreachable = |e| {
        ApiError::new(
            Code::Unavailable,
            format!("no route leads to {to}: {e}"),
            "ip route get, or --advertise-addr",
        )
    };
    let any: SocketAddr = if to.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    // Connecting a datagram socket sends nothing: the kernel only chooses the source.
    let socket = tokio::net::UdpSocket::bind(any).await.map_err(unreachable)?;
    socket.connect(to).await.map_err(unreachable)?;
    Ok(socket.local_addr().map_err(unreachable)?.ip())
}

/// The address that others reach this node by: the given one, which must be here, or the only one there is.
async fn advertised(asked: Option<&str>, config: &Config) -> Result<IpAddr, ApiError> {
    let here = tokio::task::spawn_blocking(crate::reconcile::host::global_addresses)
        .await
        .map_err(|e| internal("addresses of this host", e))?
        .map_err(|e| internal("addresses of this host", e))?;
    let list = || here.iter().map(|a| a.to_string()).collect::<Vec<_>>().join(", ");
    let v4: Vec<&IpAddr> = here.iter().filter(|a| a.is_ipv4()).collect();
    let addr = match asked {
        Some(text) => text.parse::<IpAddr>().map_err(|_| {
            ApiError::new(
                Code::Invalid,
                format!("{text:?} is no IP address"),
                format!("one of: {}", list()),
            )
        })?,
        None => match (config.datapath.address, v4.as_slice()) {
            (Some(a), _) => a.into(),
            (None, [one]) => **one,
            (None, []) => {
                return Err(ApiError::new(
                    Code::Conflict,
                    "this host has no IPv4 address but loopback",
                    "ip address add, then again",
                ));
            }
            (None, _) => {
                return Err(ApiError::new(
                    Code::Ambiguous,
                    format!("this host has several addresses: {}", list()),
                    format!(
                        "--advertise-addr {}",
                        v4.first().map(|a| a.to_string()).unwrap_or_default()
                    ),
                ));
            }
        },
    };
    if !here.contains(&addr) {
        return Err(ApiError::new(
            Code::Invalid,
            format!("{addr} is no address of this host"),
            format!("one of: {}", list()),
        ));
    }
    if addr.is_ipv6() {
        return Err(ApiError::new(
            Code::Unsupported,
            "the underlay is IPv4 in this version",
            format!("one of: {}", list()),
        ));
    }
    Ok(addr)
}
