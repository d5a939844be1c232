//! `/v1/cluster/...`

use axum::extract::{Query, State};
use model::{
    Code,
    api::{
        ClusterInit, ClusterInitAnswer, ClusterJoin, ClusterJoinAnswer, ClusterLeave, Discover, Discovered, MemberView,
        NodeHealth, TokenAnswer,
    },
    intent::Role,
};
use serde::Deserialize;

use super::{
    Shared,
    answer::{Answer, Body, Fail},
};

pub(super) async fn init(
    State(d): State<Shared>,
    Body(req): Body<ClusterInit>,
) -> Result<Answer<ClusterInitAnswer>, Fail> {
    Ok(Answer(d.init(req).await?))
}

pub(super) async fn join(
    State(d): State<Shared>,
    Body(req): Body<ClusterJoin>,
) -> Result<Answer<ClusterJoinAnswer>, Fail> {
    Ok(Answer(d.join(req).await?))
}

pub(super) async fn discover(State(d): State<Shared>, Body(req): Body<Discover>) -> Result<Answer<Discovered>, Fail> {
    let addresses = crate::discover::find(&req.url, &d.discovery())
        .await
        .map_err(model::ApiError::from)?;
    Ok(Answer(Discovered { addresses }))
}

pub(super) async fn leave(
    State(d): State<Shared>,
    Body(req): Body<ClusterLeave>,
) -> Result<Answer<serde_json::Value>, Fail> {
    d.leave(req.force).await?;
    Ok(Answer(serde_json::json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenQuery {
    role: Role,
}

pub(super) async fn token(State(d): State<Shared>, Query(q): Query<TokenQuery>) -> Result<Answer<TokenAnswer>, Fail> {
    let c = d.cluster()?;
    if q.role == Role::Manager {
        return Err(Fail::new(
            Code::Unsupported,
            "this version has one manager: there is no token for further ones",
            "netctl cluster token worker",
        ));
    }
    let (token, addr) = c.manager()?.worker_token()?;
    Ok(Answer(TokenAnswer { token, addr }))
}

pub(super) async fn members(State(d): State<Shared>) -> Result<Answer<Vec<MemberView>>, Fail> {
    let c = d.cluster()?;
    let (intent, facts) = (c.intent(), c.facts());
    let raft = c.manager.as_ref().map(|m| m.store.status());
    let views = intent.nodes.iter().map(|(id, n)| {
        let me = *id == c.me;
        let raft = raft.as_ref().filter(|_| me);
        MemberView {
            id: *id,
            hostname: n.hostname.clone(),
            role: n.role,
            addr: c.node_row(&facts, *id).map(|r| r.gossip.to_string()),
            health: if me {
                NodeHealth::Ready
            } else {
                facts.health.get(id).copied().unwrap_or(NodeHealth::Unknown)
            },
            log_index: raft.map(|r| r.last_index),
            term: raft.map(|r| r.term),
            leader: Some(*id) == c.leader(),
        }
    });
    Ok(Answer(views.collect()))
}
