//! Reads that a worker passes on to a manager over its stream: what only managers' memory holds.

use model::{ApiError, Code, Name};

use crate::daemon::Cluster;

/// Answers `path` from this manager's memory: HTTP status and JSON body.
pub async fn query(c: &Cluster, path: &str) -> (u16, String) {
    match answer(c, path).await {
        Ok(body) => (200, body),
        Err(e) => (e.code.http(), serde_json::to_string(&e).unwrap_or_default()),
    }
}

async fn answer(c: &Cluster, path: &str) -> Result<String, ApiError> {
    let unknown = || {
        ApiError::new(
            Code::NotFound,
            format!("{path} is not answered for other nodes"),
            "the same command on a manager",
        )
    };
    let told = |e: serde_json::Error| ApiError::new(Code::Internal, format!("the answer cannot be written: {e}"), "");
    // What every manager knows.
    match (path, c.manager_now()) {
        ("/v1/cluster/members", Some(_)) => {
            return serde_json::to_string(&super::cluster::member_views(c)).map_err(told);
        }
        ("/v1/cluster/quorum", Some(m)) => {
            return serde_json::to_string(&super::cluster::quorum_of(c, &m)).map_err(told);
        }
        _ => {}
    }
    let m = c.leading().ok_or_else(|| {
        ApiError::new(
            Code::Unavailable,
            "the manager that was asked does not lead",
            "again in a moment; netctl cluster members",
        )
    })?;
    let json = if let Some(revision) = path.strip_prefix("/v1/convergence?revision=") {
        let revision = revision.parse().map_err(|_| unknown())?;
        serde_json::to_string(&m.progress(revision, &c.intent(), &c.facts(), c.me))
    } else if let Some(name) = path
        .strip_prefix("/v1/services/")
        .and_then(|p| p.strip_suffix("/tasks"))
    {
        let name: Name = name.parse()?;
        serde_json::to_string(&m.tasks(&name, &c.facts()))
    } else if path == super::services::STUCK {
        serde_json::to_string(&m.stuck())
    } else if let Some(logs) = super::tasks::gathered(c, &m, path).await {
        serde_json::to_string(&logs?)
    } else if let Some(which) = super::tasks::Which::parse(path) {
        serde_json::to_string(&which.look(c, &m))
    } else {
        return Err(unknown());
    };
    json.map_err(told)
}
