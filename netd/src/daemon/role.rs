//! The role that the log gives this node, carried out: a manager's part begins when the node is promoted and ends when it
//! is demoted, while everything else goes on.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use model::{ApiError, Code, NodeId, intent::Role};
use tokio::{net::TcpListener, sync::watch};

use super::{
    Cluster,
    kept::{self, Log},
};
use crate::{
    manager::{Manager, Parts},
    rpc::{self, Local},
};

/// Between two tries to do what the role asks for.
const RETRY: Duration = Duration::from_secs(1);
/// Longest wait for a certificate with a new role.
const CERTIFIED: Duration = Duration::from_secs(10);

impl Cluster {
    /// This node's part as a manager, while it has one.
    pub fn manager_now(&self) -> Option<Arc<Manager>> {
        self.manager.borrow().clone()
    }

    /// This node's part as a manager, or who the managers are.
    pub fn manager(&self) -> Result<Arc<Manager>, ApiError> {
        self.manager_now().ok_or_else(|| {
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
            let mut message = "this node is a worker: changes are made on a manager".to_owned();
            if let Some(why) = self.role_problem() {
                message = format!("this node is to be a manager and is none yet: {why}");
            }
            ApiError::new(
                Code::NotManager,
                message,
                format!("the same command on {}", names.join(" or ")),
            )
        })
    }

    /// This manager, if it leads.
    pub fn leading(&self) -> Option<Arc<Manager>> {
        self.manager_now().filter(|m| m.leads())
    }

    /// Role of this node in the log.
    pub fn role(&self) -> Role {
        self.intent().nodes.get(&self.me).map_or(Role::Worker, |n| n.role)
    }

    /// Waits until this node has a role, and carries it out.
    pub(super) async fn has_role(&self, role: Role, limit: Duration) -> bool {
        let mut manager = self.manager.subscribe();
        let done = manager.wait_for(|m| m.is_some() == (role == Role::Manager));
        matches!(tokio::time::timeout(limit, done).await, Ok(Ok(_)))
    }

    /// Why this node does not do what its role asks for.
    pub fn role_problem(&self) -> Option<String> {
        self.role_problem.borrow().clone()
    }

    /// Who leads the managers, when it is known.
    pub fn leader(&self) -> Option<NodeId> {
        match self.manager_now() {
            Some(m) => match m.leader().borrow().clone() {
                rpc::Leader::Me => Some(self.me),
                rpc::Leader::Other { node, .. } => Some(node),
                rpc::Leader::Nobody => None,
            },
            None => self.uplink.leader(),
        }
    }

    /// Makes a manager's part run around its log.
    pub(super) fn install(self: &Arc<Self>, log: Log, listener: TcpListener) {
        let parts = Parts {
            store: log.store,
            transport: log.transport,
            listener,
            addresses: self.addresses.subscribe(),
            tls: self.tls.clone(),
            known: self.known.clone(),
            reach: self.reach.subscribe(),
        };
        let m = Manager::start(parts, self);
        tracing::info!(raft = m.raft(), "this node is a manager");
        let (local, hub, mut leader) = (self.local.clone(), m.hub.clone(), m.leader());
        self.spawn(async move {
            loop {
                let leads = *leader.borrow_and_update() == rpc::Leader::Me;
                local.send_replace(Some(Local {
                    hub: hub.clone(),
                    leads,
                }));
                if leader.changed().await.is_err() {
                    return;
                }
            }
        });
        let (uplink, mut superseded) = (self.uplink.clone(), m.peers.superseded());
        self.spawn(async move {
            while superseded.changed().await.is_ok() {
                let met = *superseded.borrow_and_update();
                if let Some(addr) = met {
                    tracing::warn!(%addr, "the cluster was begun anew without this manager: asking there");
                    uplink.prefer(addr);
                }
            }
        });
        let (fatal, mut failed) = (self.fatal.clone(), m.store.fatal());
        self.spawn(async move {
            let why = failed
                .wait_for(Option::is_some)
                .await
                .map(|w| w.clone().unwrap_or_default());
            if let Ok(why) = why {
                let _ = fatal.send(format!("the log cannot be written: {why}")).await;
            }
        });
        self.manager.send_replace(Some(m));
    }

    fn rpc_listen(&self) -> SocketAddr {
        super::follow::rpc_listen(&self.config, &self.addresses())
    }

    /// Where the managers' RPC is, or would be, reached on this node.
    pub(super) fn rpc_addr(&self) -> SocketAddr {
        self.addresses().rpc
    }

    /// Follows the role until the cluster is left.
    pub(super) async fn follow_role(self: Arc<Self>) {
        let mut intent = self.known.watch();
        loop {
            intent.mark_unchanged();
            let done = self.adapt().await;
            let problem = done.as_ref().err().map(|e| e.message.clone());
            self.role_problem.send_if_modified(|old| {
                let changed = *old != problem;
                if changed && let Some(why) = &problem {
                    tracing::warn!("this node's role is not carried out yet: {why}");
                }
                *old = problem;
                changed
            });
            let changed = match done {
                Ok(()) => intent.changed().await,
                Err(_) => {
                    tokio::time::sleep(RETRY).await;
                    Ok(())
                }
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn adapt(self: &Arc<Self>) -> Result<(), ApiError> {
        let intent = self.intent();
        // Removed, or not known yet: neither is a role.
        let Some(node) = intent.nodes.get(&self.me) else {
            return Ok(());
        };
        match (node.raft.filter(|_| node.role == Role::Manager), self.manager_now()) {
            // The log may give this node a newer id than its last intent tells, never an older one.
            (Some(raft), Some(m)) if m.raft() >= raft => Ok(()),
            (Some(raft), Some(m)) => {
                tracing::warn!(
                    had = m.raft(),
                    has = raft,
                    "the log has given this manager another id in Raft"
                );
                self.end(&m).await?;
                self.begin(raft).await
            }
            (Some(raft), None) => self.begin(raft).await,
            (None, Some(m)) => {
                self.end(&m).await?;
                self.certify(Role::Worker).await
            }
            (None, None) => self.certify(Role::Worker).await,
        }
    }

    /// Waits for a certificate that says the role; it is asked for as soon as the log gives another one.
    async fn certify(&self, role: Role) -> Result<(), ApiError> {
        let mut certified = self.certified.subscribe();
        let done = tokio::time::timeout(CERTIFIED, certified.wait_for(|r| *r == role)).await;
        match done {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ApiError::new(
                Code::Unavailable,
                format!(
                    "no certificate as a {} yet{}",
                    word(role),
                    self.trouble().map(|t| format!(": {t}")).unwrap_or_default()
                ),
                "netctl cluster members",
            )),
        }
    }

    async fn begin(self: &Arc<Self>, raft: u64) -> Result<(), ApiError> {
        self.certify(Role::Manager).await?;
        let id = self.uplink.raft_id(raft).await?;
        let listener = listen(self.rpc_listen()).await?;
        let log = kept::join_log(&self.config, &self.vault, id).await?;
        self.install(log, listener);
        Ok(())
    }

    /// Ends the manager's part, and forgets the log: whoever is a worker knows no secret of the cluster.
    async fn end(&self, m: &Arc<Manager>) -> Result<(), ApiError> {
        self.manager.send_replace(None);
        self.local.send_replace(None);
        m.stop().await;
        tracing::info!("this node is no manager any more");
        kept::forget_log(&self.config, &self.vault)?;
        self.unseal().await
    }

    /// What this node says when it is asked where its managers' RPC would be.
    pub(super) async fn may_listen(&self) -> Result<SocketAddr, String> {
        if self.manager_now().is_none() {
            // Taken and let go: whether it can be had is found out before anything is promised.
            listen(self.rpc_listen()).await.map_err(|e| e.message)?;
        }
        Ok(self.rpc_addr())
    }
}

fn word(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager",
        Role::Worker => "worker",
    }
}

/// The managers' port.
pub(super) async fn listen(at: SocketAddr) -> Result<TcpListener, ApiError> {
    TcpListener::bind(at).await.map_err(|e| {
        ApiError::new(
            Code::Conflict,
            format!("the managers' port {at} cannot be listened on: {e}"),
            "ss -ltnp, or another [cluster] listen",
        )
    })
}

/// Keeps the last view on disk: a node that reboots without managers goes on from it.
pub(super) async fn keep_view(state: PathBuf, known: watch::Receiver<Arc<model::Intent>>, manager: Managed) {
    kept::keep_intent(state, known, move || manager.borrow().is_some()).await;
}

/// Whether this node has a manager's part.
pub(super) type Managed = watch::Receiver<Option<Arc<Manager>>>;
