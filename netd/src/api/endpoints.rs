//! `/v1/endpoints`: what orchestrators use.

use axum::extract::{Path, State};
use model::{
    Code, EndpointId,
    api::{EndpointCreate, EndpointDrain, EndpointDrained, EndpointView},
};

use super::{
    Shared,
    answer::{Answer, Body, Fail, segment},
};

pub(super) async fn list(State(d): State<Shared>) -> Result<Answer<Vec<EndpointView>>, Fail> {
    Ok(Answer(d.cluster()?.endpoint_views()))
}

pub(super) async fn one(State(d): State<Shared>, path: Path<String>) -> Result<Answer<EndpointView>, Fail> {
    let id: EndpointId = segment(path)?;
    let view = d.cluster()?.endpoint_views().into_iter().find(|v| v.id == id);
    view.map(Answer).ok_or_else(|| {
        Fail::new(
            Code::NotFound,
            format!("no endpoint {id} on this node"),
            "netctl endpoint ls",
        )
    })
}

pub(super) async fn attach(
    State(d): State<Shared>,
    path: Path<String>,
    Body(req): Body<EndpointCreate>,
) -> Result<Answer<EndpointView>, Fail> {
    let id: EndpointId = segment(path)?;
    Ok(Answer(d.cluster()?.attach(id, req).await?))
}

/// Succeeds also when there is none: an orchestrator that repeats itself is answered alike.
pub(super) async fn detach(State(d): State<Shared>, path: Path<String>) -> Result<Answer<serde_json::Value>, Fail> {
    let id: EndpointId = segment(path)?;
    let existed = d.cluster()?.detach(&id).await?;
    Ok(Answer(serde_json::json!({ "removed": existed })))
}

pub(super) async fn drain(
    State(d): State<Shared>,
    path: Path<String>,
    Body(req): Body<EndpointDrain>,
) -> Result<Answer<EndpointDrained>, Fail> {
    let id: EndpointId = segment(path)?;
    Ok(Answer(d.cluster()?.drain(&id, &req).await?))
}
