//! `[cluster] join`: a node joins by itself at its first boot.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use model::{ApiError, Code, api::ClusterJoin, intent::Availability};

use super::Daemon;
use crate::identity::{Credentials, Token};

/// First and longest pause between two rounds over all addresses.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The setting, in problems.
const ABOUT: &str = "cluster.join";
/// Longest token file, octets: a token and some blanks.
const MAX_FILE: usize = 4096;

/// Tries every address again and again until this node is in a cluster. One that is in a cluster is left there; if it is
/// not the token's, that is told.
pub(super) async fn run(daemon: Weak<Daemon>) {
    let mut pause = PAUSE.0;
    loop {
        let Some(d) = daemon.upgrade() else { return };
        if let Some(c) = d.cluster_now() {
            let elsewhere = another_cluster(&d);
            d.problem(
                ABOUT,
                elsewhere.then(|| {
                    format!(
                        "this node is in cluster {}, and [cluster] join names another one; try: netctl cluster leave, then restart netd, or take join out of the configuration",
                        c.intent().cluster
                    )
                }),
            );
            return;
        }
        match round(&d).await {
            Ok(()) => {
                d.problem(ABOUT, None);
                return;
            }
            Err(_) if d.cluster_now().is_some() => continue,
            Err(e) => {
                let hint = if e.hint.is_empty() {
                    String::new()
                } else {
                    format!("; try: {}", e.hint)
                };
                let text = format!("not joined yet: {}{hint}", e.message.replace('\n', "; "));
                tracing::warn!("{text}");
                d.problem(ABOUT, Some(text));
            }
        }
        let mut changed = d.cluster_changes();
        drop(d);
        // Somebody may init or join by hand meanwhile.
        let _ = tokio::time::timeout(pause, changed.wait_for(Option::is_some)).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn round(d: &Arc<Daemon>) -> Result<(), ApiError> {
    let token = token(d)?;
    let mut last = None;
    for place in &d.config.cluster.join {
        let (addr, discover) = match place.contains("://") {
            true => (String::new(), Some(place.clone())),
            false => (place.clone(), None),
        };
        let request = ClusterJoin {
            token: token.to_string(),
            addr,
            discover,
            advertise_addr: None,
            listen_addr: None,
            data_path_addr: None,
            gossip_port: None,
            announce: None,
            availability: Availability::Active,
        };
        match d.join(request).await {
            Ok(joined) => {
                tracing::info!(node = %joined.node, cluster = %joined.cluster, at = %place, "joined");
                return Ok(());
            }
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| ApiError::new(Code::Invalid, "[cluster] join is empty", "join = [\"192.0.2.1:2377\"]")))
}

fn token(d: &Daemon) -> Result<Token, ApiError> {
    let wrong = |why: String| {
        ApiError::new(
            Code::Invalid,
            why,
            "netctl cluster token worker -q on a manager, into that file",
        )
    };
    let path = d
        .config
        .cluster
        .token_file
        .as_ref()
        .ok_or_else(|| wrong("[cluster] token_file is not set".into()))?;
    let text = std::fs::read_to_string(path)
        .map_err(|e| wrong(format!("the token in {} cannot be read: {e}", path.display())))?;
    if text.len() > MAX_FILE {
        return Err(wrong(format!("{} is no token", path.display())));
    }
    text.trim()
        .parse()
        .map_err(|e| wrong(format!("{}: {e}", path.display())))
}

/// Whether the token's pin is of another CA than this node's. A token that cannot be read says nothing.
fn another_cluster(d: &Daemon) -> bool {
    let Ok(token) = token(d) else { return false };
    match Credentials::load(&d.vault) {
        Ok(Some(c)) => !token.pins(&c.ca),
        _ => false,
    }
}
