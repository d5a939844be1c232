//! Reads that a worker passes on to a manager over its stream: what only managers' memory holds.

use model::{ApiError, Code, Name};

use crate::daemon::Cluster;

/// Answers `path` from this manager's memory: HTTP status and JSON body.
pub async fn query(c: &Cluster, path: &str) -> (u16, Vec<u8>) {
    match answer(c, path).await {
        Ok(body) => (200, body),
        Err(e) => (e.code.http(), serde_json::to_vec(&e).unwrap_or_default()),
    }
}

async fn answer(c: &Cluster, path: &str) -> Result<Vec<u8>, ApiError> {
    let unknown = || ApiError::new(Code::NotFound, format!("{path} is not answered for other nodes"), "the same command on a manager");
    let m = c.manager.as_ref().ok_or_else(unknown)?;
    let bytes = if let Some(revision) = path.strip_prefix("/v1/convergence?revision=") {
        let revision = revision.parse().map_err(|_| unknown())?;
        serde_json::to_vec(&m.progress(revision, &c.intent(), &c.facts()))
    } else if let Some(name) = path.strip_prefix("/v1/services/").and_then(|p| p.strip_suffix("/tasks")) {
        let name: Name = name.parse()?;
        serde_json::to_vec(&m.tasks(&name, &c.intent(), &c.facts()))
    } else {
        return Err(unknown());
    };
    bytes.map_err(|e| ApiError::new(Code::Internal, format!("the answer cannot be written: {e}"), ""))
}
