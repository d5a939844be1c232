//! A cluster that goes on with one manager alone: from what survived of a lost majority, or from a backup.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use cluster::state::{NewNode, State};
use model::{
    ApiError, Code, Intent, NodeId,
    api::{AloneAnswer, BackupAnswer, Restore},
    intent::Role,
};
use tokio::{net::TcpStream, time::timeout};

use super::{Daemon, internal, kept};
use crate::{
    backup::{self, BackupError, Content},
    identity::{ClusterSecrets, Credentials, Csr, NodeKey, Subject, Tls},
    manager::Manager,
    place::Flags,
    store::Store,
};

/// How long the other managers have to show that there is a majority.
const QUORUM: Duration = Duration::from_secs(3);
/// How long a manager of a backup's cluster has to answer.
const ALIVE: Duration = Duration::from_secs(2);

impl From<BackupError> for ApiError {
    fn from(e: BackupError) -> ApiError {
        let code = match &e {
            BackupError::Seal => Code::Internal,
            _ => Code::Invalid,
        };
        // The text carries its own hint.
        let text = e.to_string();
        let (message, hint) = text.split_once("; try: ").unwrap_or((&text, ""));
        ApiError::new(code, message, hint)
    }
}

/// A sealed copy of all that the managers know.
pub async fn backup(m: &Manager, secret: &str) -> Result<BackupAnswer, ApiError> {
    let secret = decode(secret, "the passphrase")?;
    let (index, cluster, state) = m.store.with(|s| (s.applied(), s.intent().cluster.clone(), s.encode()));
    let content = Content {
        cluster: cluster.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: state.map_err(|e| internal("the state", e))?,
    };
    let sealed = tokio::task::spawn_blocking(move || backup::seal(&content, &secret));
    let file = sealed.await.map_err(|e| internal("the backup", e))??;
    Ok(BackupAnswer {
        cluster,
        index,
        file: BASE64.encode(file),
    })
}

fn decode(text: &str, what: &str) -> Result<Vec<u8>, ApiError> {
    BASE64
        .decode(text)
        .map_err(|e| ApiError::new(Code::Invalid, format!("{what} is no base64: {e}"), ""))
}

/// The managers beside one node, as people know them.
fn others(intent: &Intent, me: Option<NodeId>) -> Vec<String> {
    let managers = intent
        .nodes
        .iter()
        .filter(|(id, n)| n.role == Role::Manager && Some(**id) != me);
    managers.map(|(id, n)| format!("{} ({id})", n.hostname)).collect()
}

impl Daemon {
    /// Begins the cluster anew with this manager alone, from what its log holds.
    pub async fn recover(self: &Arc<Self>) -> Result<AloneAnswer, ApiError> {
        let _turn = self.changing.lock().await;
        let c = self.cluster()?;
        let m = c.manager()?;
        let before = c.intent();
        let former = others(&before, Some(c.me));
        if let Ok(Ok(_)) = timeout(QUORUM, m.settle()).await {
            return Err(ApiError::new(
                Code::Conflict,
                "a majority of the managers answers: the cluster needs no new beginning",
                "netctl cluster members; netctl node demote NODE for those that are lost",
            ));
        }
        let node = before.nodes.get(&c.me).cloned();
        let node = node.ok_or_else(|| internal("this node", "it is not in its own log"))?;
        let me = NewNode {
            hostname: node.hostname,
            role: Role::Manager,
            key: node.key,
            rpc: Some(c.rpc_addr().to_string()),
        };
        drop(m);
        tracing::warn!(?former, "the cluster is begun anew with this manager alone");
        self.cluster.send_replace(None);
        c.stop().await;
        drop(c);
        let (dir, key) = (self.config.log_dir(), kept::log_key(&self.vault)?);
        let rebuilt = tokio::task::spawn_blocking(move || Store::recover(&dir, key, &me));
        let rebuilt = rebuilt.await.map_err(|e| internal("the log", e))?;
        // Also when that failed: the old log is as it was, and this node goes on with it.
        let credentials =
            Credentials::load(&self.vault)?.ok_or_else(|| internal("this node's identity", "it is gone"))?;
        let c = self.enter(credentials, None, None).await?;
        rebuilt.map_err(|e| internal("the log", e))?;
        Ok(AloneAnswer {
            cluster: c.intent().cluster.clone(),
            node: c.me,
            revision: c.intent().revision,
            former,
        })
    }

    /// Makes a one-manager cluster of this node from a backup.
    pub async fn restore(self: &Arc<Self>, req: Restore) -> Result<AloneAnswer, ApiError> {
        let _turn = self.changing.lock().await;
        if let Some(c) = self.cluster_now() {
            return Err(ApiError::new(
                Code::Conflict,
                format!(
                    "this node is in cluster {}, as {}: a backup is restored on a node that is in none",
                    c.intent().cluster,
                    c.me
                ),
                "netctl cluster leave first, or another node",
            ));
        }
        let (file, secret) = (decode(&req.file, "the file")?, decode(&req.secret, "the passphrase")?);
        let opened = tokio::task::spawn_blocking(move || backup::open(&file, &secret));
        let content = opened.await.map_err(|e| internal("the backup", e))??;
        let mut state = State::decode(&content.state).map_err(|e| internal("the backup's state", e))?;
        let flags = Flags {
            advertise: req.advertise_addr.as_deref(),
            ..Flags::default()
        };
        let (place, now) = self.place(flags).await?;
        let rpc = now.rpc;
        let key = NodeKey::load_or_create(&self.vault)?;
        let before = state.intent();
        let former = others(&before, None);
        let me = NewNode {
            hostname: self.hostname.clone(),
            role: Role::Manager,
            key: key.public().to_vec(),
            rpc: Some(rpc.to_string()),
        };
        let (node, raft) = state.alone(&me)?;
        let secrets = ClusterSecrets::from_map(|name| state.secret(name))?;
        let csr = Csr::parse(&key.csr(&self.hostname)?)?;
        let who = Subject {
            cluster: before.cluster.clone(),
            node,
            role: Role::Manager,
        };
        let life = Duration::from_millis(before.settings.cert_expiry_ms);
        let issued = secrets.ca.sign(&csr, &who, life)?;
        let credentials = Credentials {
            cluster: before.cluster.clone(),
            node,
            role: Role::Manager,
            certificate: issued.certificate,
            ca: issued.ca,
            issuer: issued.issuer,
            gossip: secrets.gossip.keys().to_vec(),
            managers: before.nodes.values().filter_map(|n| n.rpc.clone()).collect(),
        };
        if !req.force {
            self.refuse_living(&before, &Tls::new(&credentials, &key)?, rpc).await?;
        }
        self.wipe_log()?;
        let (dir, log_key) = (self.config.log_dir(), kept::log_key(&self.vault)?);
        let entered = async {
            place.save(&self.config)?;
            let made = tokio::task::spawn_blocking(move || Store::restore(&dir, log_key, raft, &state));
            made.await
                .map_err(|e| internal("the log", e))?
                .map_err(|e| internal("the log", e))?;
            let c = self.enter(credentials.clone(), None, None).await?;
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
        Ok(AloneAnswer {
            cluster: c.intent().cluster.clone(),
            node: c.me,
            revision: c.intent().revision,
            former,
        })
    }

    /// A cluster must not live twice: whoever proves to be a manager of it is a reason to stop.
    async fn refuse_living(&self, intent: &Intent, tls: &Tls, mine: SocketAddr) -> Result<(), ApiError> {
        let managers = intent.nodes.values().filter(|n| n.role == Role::Manager);
        let addrs: Vec<SocketAddr> = managers.filter_map(|n| n.rpc.as_ref()?.parse().ok()).collect();
        let asks = addrs.into_iter().filter(|a| *a != mine).map(|addr| async move {
            let answered = timeout(ALIVE, async { tls.connect(TcpStream::connect(addr).await?).await }).await;
            matches!(answered, Ok(Ok(_))).then_some(addr)
        });
        let alive: Vec<String> = futures_util::future::join_all(asks)
            .await
            .into_iter()
            .flatten()
            .map(|a| a.to_string())
            .collect();
        if alive.is_empty() {
            return Ok(());
        }
        Err(ApiError::new(
            Code::Conflict,
            format!(
                "the cluster of this backup lives: managers answer at {}",
                alive.join(", ")
            ),
            "netctl cluster join; or stop them for good, then again (--force does it although they answer)",
        ))
    }
}
