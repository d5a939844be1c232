//! A command that another manager passes on: one that lost the lead while it carried a request out.

use axum::{body::Bytes, extract::State};
use cluster::state::{Applied, Command, MAX_COMMAND};
use model::{ApiError, Code};

use super::{
    Shared,
    answer::{Answer, Fail},
};

/// Where it is answered, on the managers' port alone.
pub(crate) const PATH: &str = "/internal/command";
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
