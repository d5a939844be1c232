//! Keeps a node's credentials fresh: certificate, CA, gossip keys.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use super::Uplink;
use model::intent::Role;

use crate::identity::{CERTIFICATE_DAYS, Credentials, IdentityError, NodeKey, Tls, certified_role};

/// Pause between looks at the certificate's end, and between tries.
const LOOK: Duration = Duration::from_secs(3600);

/// Renews the certificate when a third of its life is left, and keeps new gossip keys on disk. Runs for ever.
pub async fn keep_credentials(uplink: &Uplink, state_dir: &Path, key: &NodeKey, tls: &Tls) {
    let mut keys = uplink.keys();
    loop {
        let left = tls.not_after().duration_since(SystemTime::now()).unwrap_or_default();
        let third = Duration::from_secs(CERTIFICATE_DAYS * 24 * 3600 / 3);
        if left < third
            && let Err(e) = renew(uplink, state_dir, key, tls).await
        {
            tracing::warn!(error = %e, days_left = left.as_secs() / 86_400, "the certificate was not renewed");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            changed = keys.changed() => {
                if changed.is_err() {
                    return;
                }
                let new = keys.borrow_and_update().clone();
                if let Err(e) = update(state_dir, |c| c.gossip = new) {
                    tracing::warn!(error = %e, "the gossip keys were not kept");
                }
            }
        }
    }
}

fn update(state_dir: &Path, change: impl FnOnce(&mut Credentials)) -> Result<Option<Credentials>, IdentityError> {
    let Some(mut c) = Credentials::load(state_dir)? else {
        return Ok(None);
    };
    let before = c.clone();
    change(&mut c);
    if c != before {
        c.save(state_dir)?;
    }
    Ok(Some(c))
}

async fn renew(uplink: &Uplink, state_dir: &Path, key: &NodeKey, tls: &Tls) -> anyhow::Result<Role> {
    let (certificate, ca) = uplink.renew(key.csr("netd")?).await?;
    let role = certified_role(&certificate)?;
    let new = update(state_dir, |c| {
        c.certificate = certificate;
        c.ca = ca;
        c.role = role;
    })?;
    if let Some(c) = new {
        tls.replace(&c, key)?;
        tracing::info!(?role, "the certificate was renewed");
    }
    Ok(role)
}

/// Sees to it that the certificate says a role: renews it if it says another.
pub async fn certify(uplink: &Uplink, state_dir: &Path, key: &NodeKey, tls: &Tls, role: Role) -> anyhow::Result<()> {
    match Credentials::load(state_dir)? {
        Some(c) if c.role != role => {}
        _ => return Ok(()),
    }
    match renew(uplink, state_dir, key, tls).await? {
        got if got != role => anyhow::bail!("the manager that was asked gives another role"),
        _ => Ok(()),
    }
}
