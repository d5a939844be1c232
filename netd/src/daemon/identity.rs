//! Locking and unlocking of a manager, and proving a node anew.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use model::{
    ApiError, Code,
    api::{ClusterRenew, ClusterUnlock},
    intent::Availability,
};

use tokio::time::timeout;

use super::{Cluster, Daemon, Locked, internal, reach};
use crate::{
    identity::{About, Credentials, IdentityError, Issued, PeerId, UnlockKey},
    rpc,
};

/// Tries at the unlock key are counted as if they came from one place: whoever reaches the socket is one person.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Until a new certificate is in use.
const TAKEN: Duration = Duration::from_secs(5);

impl Daemon {
    /// Keeps what stands standing, and waits for the unlock key.
    pub(super) async fn stay_locked(self: &Arc<Self>, about: &About) -> anyhow::Result<()> {
        tracing::warn!(node = %about.node, cluster = %about.cluster, "this manager is locked; try: netctl cluster unlock");
        let rooms = Locked::start(&self.config, about)
            .await
            .map_err(|e| anyhow::anyhow!("{}; try: {}", e.message, e.hint))?;
        let mut reconciled = rooms.reconciled();
        let daemon = self.clone();
        tokio::spawn(async move {
            if reconciled.wait_for(|s| s.writes.runs > 0).await.is_ok() {
                daemon.stands.send_replace(true);
            }
        });
        *self.locked.lock().await = Some(rooms);
        Ok(())
    }

    /// Opens this manager's secrets and goes on in the cluster. A wrong key changes nothing.
    pub async fn unlock(self: &Arc<Self>, req: ClusterUnlock) -> Result<(), ApiError> {
        let _turn = self.changing.lock().await;
        if self.vault.locked().is_none() {
            return Err(ApiError::new(
                Code::Conflict,
                "this node is not locked",
                "netctl status",
            ));
        }
        let gate = || self.tries.lock().unwrap_or_else(|e| e.into_inner());
        if !gate().open(Instant::now(), HERE) {
            return Err(ApiError::new(
                Code::Unavailable,
                "too many wrong unlock keys were tried",
                "again in a minute",
            ));
        }
        let key: UnlockKey = req.key.parse()?;
        let vault = self.vault.clone();
        let opened = tokio::task::spawn_blocking(move || vault.unlock(&key))
            .await
            .map_err(|e| internal("unlocking", e))?;
        if let Err(e) = opened {
            if matches!(e, IdentityError::WrongKey { .. }) {
                gate().failed(Instant::now(), HERE);
                tracing::warn!("a wrong unlock key was tried");
            }
            return Err(e.into());
        }
        tracing::info!("unlocked");
        if let Some(rooms) = self.locked.lock().await.take() {
            rooms.stop().await;
        }
        let credentials = Credentials::load(&self.vault)?.ok_or_else(|| {
            internal(
                "this node's credentials",
                "they are missing; try: restore the state directory, or netctl cluster leave --force",
            )
        })?;
        if let Err(e) = self.enter(credentials, None, None).await {
            // Neither locked nor in the cluster: a new start begins with the lock.
            let _ = self
                .fatal
                .send(format!("unlocked, but not in the cluster: {}", e.message))
                .await;
            return Err(e);
        }
        Ok(())
    }

    /// Seals this manager's disk, or takes the seal away, now.
    pub(crate) async fn seal(&self, c: &Cluster, key: Option<UnlockKey>) -> Result<(), ApiError> {
        c.seal(key).await
    }

    /// A locked manager whose key is lost leaves without being able to tell anybody.
    pub(super) async fn leave_locked(&self) -> Result<(), ApiError> {
        let cleared = match self.locked.lock().await.take() {
            Some(rooms) => rooms.clear().await,
            None => Ok(()),
        };
        self.wipe()?;
        // Whoever watches what is to run here hears that it is nothing.
        self.cluster.send_replace(None);
        cleared.map_err(|e| internal("left the cluster, but the kernel still holds objects of ours", e))
    }

    /// Proves this node anew by a token: for one whose certificate is too old, or from a CA too long gone, to be traded
    /// in. Everything else stays.
    pub async fn renew(&self, req: ClusterRenew) -> Result<(), ApiError> {
        let _turn = self.changing.lock().await;
        let c = self.cluster()?;
        let token = req.token.parse()?;
        let all = reach::resolve(&[req.addr], self.config.cluster.listen.port()).await?;
        let to = *all.first().ok_or_else(|| reach::nobody(&[]))?;
        let offer = rpc::Offer {
            hostname: &self.hostname,
            rpc: c.rpc_addr(),
            availability: Availability::default(),
        };
        let (new, ..) = rpc::prove_anew(&token, to, &c.key, &offer).await?;
        c.proved(new).await
    }
}

impl Cluster {
    /// Seals this node's disk under a key, or takes the seal away.
    pub(crate) async fn seal(&self, key: Option<UnlockKey>) -> Result<(), ApiError> {
        let about = About {
            cluster: self.intent().cluster.clone(),
            node: self.me,
        };
        let vault = self.vault.clone();
        let done = tokio::task::spawn_blocking(move || vault.keep_sealed(key.as_ref(), &about)).await;
        Ok(done.map_err(|e| internal("sealing", e))??)
    }

    /// A worker's disk holds nothing that is worth a person's key.
    pub(super) async fn unseal(&self) -> Result<(), ApiError> {
        match self.vault.is_sealed() {
            true => self.seal(None).await,
            false => Ok(()),
        }
    }

    /// Takes credentials that are this node's own, newly made.
    async fn proved(&self, new: Credentials) -> Result<(), ApiError> {
        let old =
            Credentials::load(&self.vault)?.ok_or_else(|| internal("this node's credentials", "they are missing"))?;
        if (&new.cluster, new.node) != (&old.cluster, old.node) {
            return Err(ApiError::new(
                Code::Conflict,
                format!(
                    "the manager knows this node's key as {} of cluster {}, here it is {} of {}",
                    new.node, new.cluster, old.node, old.cluster
                ),
                "a manager of this node's cluster; if the node was removed: netctl cluster leave --force, then join",
            ));
        }
        let until = PeerId::of_pem(&new.certificate)?.until;
        let until = until
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        self.renewed.send_replace(Some(Issued {
            certificate: new.certificate,
            ca: new.ca,
            issuer: new.issuer,
            role: new.role,
        }));
        let mut holding = self.holding.subscribe();
        let taken = timeout(TAKEN, holding.wait_for(|h| h.until == until)).await;
        match taken {
            Ok(Ok(_)) => Ok(()),
            _ => Err(internal("the new certificate", "it was not taken; the log says why")),
        }
    }
}
