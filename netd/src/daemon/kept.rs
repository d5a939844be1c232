//! What this node keeps on disk beside log, identity, gossip and place: the last intent, the log's key.

use std::{sync::Arc, time::Duration};

use model::{ApiError, Code, Intent};
use tokio::sync::watch;

use super::internal;
use crate::{manager::FirstCommand, store::Store};

/// The last view of the intent, for a start without managers.
const INTENT: &str = "intent.json";

pub(super) async fn open_store(state: &std::path::Path, first: Option<FirstCommand>) -> Result<Store, ApiError> {
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

pub(super) fn last_intent(state: &std::path::Path) -> Option<Arc<Intent>> {
    let bytes = std::fs::read(state.join(INTENT)).ok()?;
    serde_json::from_slice(&bytes)
        .map(Arc::new)
        .inspect_err(|e| tracing::warn!("{INTENT}: {e}; managers will send it anew"))
        .ok()
}

/// Keeps the last view on disk: a worker that reboots without managers goes on from it.
pub(super) async fn keep_intent(state: std::path::PathBuf, mut intent: watch::Receiver<Arc<Intent>>) {
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
