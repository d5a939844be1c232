//! What managers ask the leader among themselves: to carry a command out, by one that lost the lead while it carried a
//! request out, and how far the log has settled, by one that is to answer a read.

use axum::{body::Bytes, extract::State};
use cluster::state::{Applied, Command, MAX_COMMAND};
use model::{ApiError, Code};

use super::{
    Shared,
    answer::{Answer, Fail},
};

/// Where it is answered, on the managers' port alone.
pub(crate) const PATH: &str = "/internal/command";
/// Where the leader tells how far all that was acknowledged reaches, on the managers' port alone.
pub(crate) const SETTLED: &str = "/internal/settled";
/// Octets of a body.
pub(super) const MAX: usize = MAX_COMMAND + 64;

/// The body of such a request.
pub(crate) fn encode(request: u128, command: &Command) -> Result<Vec<u8>, ApiError> {
    postcard::to_allocvec(&(request, command))
        .map_err(|e| ApiError::new(Code::Internal, format!("a command cannot be passed on: {e}"), ""))
}

pub(super) async fn command(State(d): State<Shared>, body: Bytes) -> Result<Answer<(u64, Applied)>, Fail> {
    let (request, command): (u128, Command) = postcard::from_bytes(&body).map_err(|e| {
        Fail::new(
            Code::Invalid,
            format!("another manager's command cannot be read: {e}"),
            "the same netd on all managers",
        )
    })?;
    let c = d.cluster()?;
    let m = c.manager()?;
    Ok(Answer(
        m.store.propose_as(request, command).await.map_err(ApiError::from)?,
    ))
}

/// Index of the last entry of all that was acknowledged so far.
pub(super) async fn settled(State(d): State<Shared>) -> Result<Answer<u64>, Fail> {
    let c = d.cluster()?;
    let m = c.manager()?;
    Ok(Answer(m.store.settle().await.map_err(ApiError::from)?))
}
