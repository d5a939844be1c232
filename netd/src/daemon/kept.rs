//! What this node keeps on disk beside log, identity, gossip and place: the last intent, the log's key.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use cluster::{log::LogError, manager::ManagerError};
use model::{ApiError, Intent, intent::Role};
use tokio::sync::watch;

use super::internal;
use crate::{
    config::Config,
    identity::{LOG_KEY, Vault},
    manager::FirstCommand,
    peers::Peers,
    store::{Store, StoreError, Transport},
};

/// Between two writes of the last view on a worker.
const KEEP: Duration = Duration::from_millis(200);
/// The same on a manager.
const KEEP_MANAGER: Duration = Duration::from_secs(5);
/// The last view of the intent, for a start without managers.
const INTENT: &str = "intent.json";
/// Where the log is: another `log_dir` later is told from a log that is lost.
const LOG_PLACE: &str = "log-dir";

/// An open log, and where its messages to other managers will go.
pub(super) struct Log {
    pub(super) store: Store,
    pub(super) transport: Arc<OnceLock<Peers>>,
}

/// The log that is here; none: this node has no manager's part now.
///
/// One that is damaged while there are other managers is laid aside: this node gets theirs, as a new voter.
pub(super) async fn open_log(
    config: &Config,
    vault: &Vault,
    first: Option<FirstCommand>,
) -> Result<Option<Log>, ApiError> {
    let (dir, state) = (config.log_dir(), config.node.state_dir.clone());
    not_moved(&state, &dir)?;
    let key = log_key(vault)?;
    let (transport, send) = transport();
    let opened = tokio::task::spawn_blocking(move || match first {
        Some(f) => Store::create(&dir, key, f.command, send).map(Some),
        None => Store::open(&dir, key, send).or_else(|e| match e {
            StoreError::Manager(ManagerError::Log(LogError::Damaged { .. })) if others_manage(&state) => {
                tracing::error!("{e}; going on without it: the other managers have the same log, and will send it");
                lay_aside(&dir).map(|()| None)
            }
            e => Err(e),
        }),
    });
    match opened.await.map_err(|e| internal("the log", e))? {
        Ok(Some(store)) => {
            keep_place(config)?;
            Ok(Some(Log { store, transport }))
        }
        Ok(None) => Ok(None),
        Err(e) => Err(internal("the log", e)),
    }
}

/// Writes down where the log is.
fn keep_place(config: &Config) -> Result<(), ApiError> {
    let (file, dir) = (config.node.state_dir.join(LOG_PLACE), config.log_dir());
    let text = dir.as_os_str().as_encoded_bytes();
    if std::fs::read(&file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    crate::disk::write_atomic(&file, text, 0o600).map_err(|e| internal("the log's place cannot be kept", e))
}

/// Refuses a configuration that looks for the log where it is not: without it this node would begin an empty one, or, as
/// the only manager, have none.
fn not_moved(state: &Path, dir: &Path) -> Result<(), ApiError> {
    let last = std::fs::read(state.join(LOG_PLACE)).map(|text| PathBuf::from(OsString::from_vec(text)));
    let last = last.unwrap_or_else(|_| state.join("raft"));
    if last == dir || !holds_log(&last) || holds_log(dir) {
        return Ok(());
    }
    let (last, dir) = (last.display(), dir.display());
    Err(ApiError::new(
        model::Code::Conflict,
        format!("[cluster] log_dir is {dir}, and this manager's log is in {last}"),
        format!("move the folder {last} to {dir} and start netd again, or set log_dir = \"{last}\""),
    ))
}

fn holds_log(dir: &Path) -> bool {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .into_iter()
        .any(|f| f.file_name().as_encoded_bytes().starts_with(b"log-"))
}

/// An empty log under an id that has never voted; what lies there is wiped.
pub(super) async fn join_log(config: &Config, vault: &Vault, id: u64) -> Result<Log, ApiError> {
    forget_log(config, vault)?;
    let dir = config.log_dir();
    let key = log_key(vault)?;
    let (transport, send) = transport();
    let made = tokio::task::spawn_blocking(move || Store::join(&dir, key, id, send));
    let store = made.await.map_err(|e| internal("the log", e))?;
    let store = store.map_err(|e| internal("the log", e))?;
    keep_place(config)?;
    Ok(Log { store, transport })
}

/// Wipes the log of a node that is no manager, or that begins anew, and its key.
pub(super) fn forget_log(config: &Config, vault: &Vault) -> Result<(), ApiError> {
    Store::wipe(&config.log_dir()).map_err(|e| internal("the old log cannot be wiped", e))?;
    let _ = std::fs::remove_file(config.node.state_dir.join(LOG_PLACE));
    Ok(vault.remove(LOG_KEY)?)
}

/// The log's messages go to whoever is put here.
fn transport() -> (Arc<OnceLock<Peers>>, Transport) {
    let to: Arc<OnceLock<Peers>> = Arc::default();
    let send: Transport = Box::new({
        let to = to.clone();
        move |m| {
            if let Some(peers) = to.get() {
                peers.send(m);
            }
        }
    });
    (to, send)
}

/// Whether the last view names managers beside this node.
fn others_manage(state: &std::path::Path) -> bool {
    let managers = |i: &Intent| i.nodes.values().filter(|n| n.role == Role::Manager).count();
    last_intent(state).is_some_and(|i| managers(&i) > 1)
}

/// Renames a damaged log: nothing that might still be read by a person is deleted.
fn lay_aside(dir: &std::path::Path) -> Result<(), StoreError> {
    let mut aside = dir.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = std::path::PathBuf::from(aside);
    let moved = match std::fs::remove_dir_all(&aside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => std::fs::rename(dir, &aside),
    };
    moved.map_err(|source| StoreError::Folder {
        dir: aside.display().to_string(),
        source,
    })
}

/// Key that the log's records are sealed with: made once, beside the node's own key.
pub(super) fn log_key(vault: &Vault) -> Result<[u8; 32], ApiError> {
    match vault.read(LOG_KEY)? {
        Some(bytes) => bytes
            .try_into()
            .map_err(|_| internal("the log's key", format!("{LOG_KEY} has not 32 octets"))),
        None => {
            let key: [u8; 32] = crate::identity::random()?;
            vault.write(LOG_KEY, &key)?;
            Ok(key)
        }
    }
}

pub(super) fn last_intent(state: &std::path::Path) -> Option<Arc<Intent>> {
    let bytes = std::fs::read(state.join(INTENT)).ok()?;
    serde_json::from_slice(&bytes)
        .map(Arc::new)
        .inspect_err(|e| tracing::warn!("{INTENT}: {e}; managers will send it anew"))
        .ok()
}

/// Keeps the last view on disk. `managed`: whether this node is a manager, and has it in the log too.
pub(super) async fn keep_intent(
    state: std::path::PathBuf,
    mut intent: watch::Receiver<Arc<Intent>>,
    managed: impl Fn() -> bool,
) {
    let mut written = last_intent(&state).map_or(0, |i| i.revision);
    loop {
        let now = intent.borrow_and_update().clone();
        if now.revision != written {
            let path = state.join(INTENT);
            written = now.revision;
            let done = tokio::task::spawn_blocking(move || {
                let bytes = serde_json::to_vec(&*now).map_err(std::io::Error::other)?;
                crate::disk::write_atomic(&path, &bytes, 0o600)
            });
            if let Ok(Err(e)) = done.await {
                tracing::warn!("{INTENT} cannot be kept: {e}");
                written = 0;
            }
        }
        // A burst of changes is one write. A manager's disk has the log to sync, and its log has all of it; but what a
        // locked manager has is this view alone.
        let written_at = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(KEEP).await;
            let late = written_at.elapsed() >= KEEP_MANAGER;
            if late || !managed() || intent.borrow().settings.autolock {
                break;
            }
        }
        if intent.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_elsewhere_is_not_taken_for_none() {
        let state = std::env::temp_dir().join(format!("netd-log-place-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&state);
        let (old, new) = (state.join("raft"), state.join("fast"));
        std::fs::create_dir_all(&old).unwrap();
        not_moved(&state, &new).unwrap();
        std::fs::write(old.join("log-0000000000000001"), b"").unwrap();
        let e = not_moved(&state, &new).unwrap_err();
        assert!(e.message.contains("raft") && e.message.contains("fast"), "{e:?}");
        assert!(e.hint.contains("move the folder"), "{e:?}");
        not_moved(&state, &old).unwrap();
        // Moved as was said, and moved on from there.
        std::fs::rename(&old, &new).unwrap();
        not_moved(&state, &new).unwrap();
        std::fs::write(state.join(LOG_PLACE), new.as_os_str().as_encoded_bytes()).unwrap();
        not_moved(&state, &state.join("other")).unwrap_err();
        // One that is gone is gone: the others have it.
        std::fs::remove_dir_all(&new).unwrap();
        not_moved(&state, &state.join("other")).unwrap();
        std::fs::remove_dir_all(&state).unwrap();
    }
}
