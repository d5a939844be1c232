//! `/v1/cluster/...`

use axum::extract::{Query, State};
use model::{
    api::{
        CaRotate, ClusterInit, ClusterInitAnswer, ClusterJoin, ClusterJoinAnswer, ClusterLeave, ClusterRenew,
        ClusterUnlock, CustodyView, MemberView, NodeHealth, TokenAnswer, TokenRotate, UnlockKeyAnswer,
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
    let m = c.manager()?;
    Ok(Answer(TokenAnswer {
        token: m.token(q.role)?,
        addr: m.rpc().to_owned(),
    }))
}

pub(super) async fn rotate_token(
    State(d): State<Shared>,
    Body(req): Body<TokenRotate>,
) -> Result<Answer<TokenAnswer>, Fail> {
    let c = d.cluster()?;
    let m = c.manager()?;
    Ok(Answer(TokenAnswer {
        token: m.rotate_token(req.role).await?,
        addr: m.rpc().to_owned(),
    }))
}

pub(super) async fn renew(
    State(d): State<Shared>,
    Body(req): Body<ClusterRenew>,
) -> Result<Answer<serde_json::Value>, Fail> {
    d.renew(req).await?;
    Ok(Answer(serde_json::json!({})))
}

pub(super) async fn custody(State(d): State<Shared>) -> Result<Answer<CustodyView>, Fail> {
    let c = d.cluster()?;
    Ok(Answer(c.manager()?.custody(&c)?))
}

pub(super) async fn rotate_ca(State(d): State<Shared>, Body(req): Body<CaRotate>) -> Result<Answer<CustodyView>, Fail> {
    let c = d.cluster()?;
    let m = c.manager()?;
    m.rotate_ca(&c.intent(), req.ca_cert.as_deref()).await?;
    Ok(Answer(m.custody(&c)?))
}

pub(super) async fn unlock(
    State(d): State<Shared>,
    Body(req): Body<ClusterUnlock>,
) -> Result<Answer<serde_json::Value>, Fail> {
    d.unlock(req).await?;
    Ok(Answer(serde_json::json!({})))
}

pub(super) async fn unlock_key(State(d): State<Shared>) -> Result<Answer<UnlockKeyAnswer>, Fail> {
    unlock_key_of(&d, false).await
}

pub(super) async fn rotate_unlock_key(State(d): State<Shared>) -> Result<Answer<UnlockKeyAnswer>, Fail> {
    unlock_key_of(&d, true).await
}

async fn unlock_key_of(d: &Shared, rotate: bool) -> Result<Answer<UnlockKeyAnswer>, Fail> {
    let c = d.cluster()?;
    let key = c.manager()?.unlock_key(&c.intent(), rotate).await?;
    if rotate {
        d.seal(&c, Some(key.clone())).await?;
    }
    Ok(Answer(UnlockKeyAnswer { key: key.reveal() }))
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
