//! `/v1/cluster/...`

use axum::extract::{Query, State};
use model::{
    api::{
        AloneAnswer, Backup, BackupAnswer, CaRotate, ClusterInit, ClusterInitAnswer, ClusterJoin, ClusterJoinAnswer,
        ClusterLeave, ClusterRenew, ClusterUnlock, CustodyView, Discover, Discovered, MemberView, NodeHealth,
        QuorumView, Restore, TokenAnswer, TokenRotate, Transfer, TransferAnswer, UnlockKeyAnswer, Vote,
    },
    intent::Role,
};
use serde::Deserialize;

use super::{
    Shared,
    answer::{Answer, Body, Fail},
};
use crate::{daemon::Cluster, manager::Manager};

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
    if c.manager_now().is_none()
        && let Ok(told) = c.ask_manager("/v1/cluster/members").await
    {
        return Ok(Answer(told));
    }
    Ok(Answer(member_views(&c)))
}

/// Every node, and what is known of the managers' part in Raft: by this manager, or by nobody.
pub(super) fn member_views(c: &Cluster) -> Vec<MemberView> {
    let (intent, facts) = (c.intent(), c.facts());
    let manager = c.manager_now();
    let raft = manager.as_ref().map(|m| (m.store.status(), m.peers.views()));
    let leader = c.leader();
    let views = intent.nodes.iter().map(|(id, n)| {
        let me = *id == c.me;
        let mut view = MemberView {
            id: *id,
            hostname: n.hostname.clone(),
            role: n.role,
            addr: c.node_row(&facts, *id).map(|r| r.gossip.to_string()),
            health: if me {
                NodeHealth::Ready
            } else {
                facts.health.get(id).copied().unwrap_or(NodeHealth::Unknown)
            },
            log_index: None,
            term: None,
            leader: Some(*id) == leader,
            vote: None,
            applied: None,
            reachable: None,
            round_trip_us: None,
            problem: c.role_problem().filter(|_| me),
        };
        if let (Some((status, peers)), Some(raft)) = (&raft, n.raft) {
            view.vote = Some(if status.conf.voters.contains(&raft) {
                Vote::Voter
            } else if status.conf.learners.contains(&raft) {
                Vote::Learner
            } else {
                Vote::None
            });
            if me {
                view.log_index = Some(status.last_index);
                view.applied = Some(status.applied);
                view.term = Some(status.term);
                view.reachable = Some(true);
                view.problem = view.problem.or(status.disk_full.then(|| DISK_FULL.to_owned()));
            } else if let Some(p) = peers.get(&raft) {
                view.log_index = p.standing.map(|s| s.last_index);
                view.applied = p.standing.map(|s| s.applied);
                view.term = p.standing.map(|s| s.term);
                view.reachable = Some(p.reached);
                view.round_trip_us = p
                    .round_trip
                    .filter(|_| p.reached)
                    .and_then(|t| u64::try_from(t.as_micros()).ok());
                view.problem = p.problem.clone();
            }
        }
        view
    });
    views.collect()
}

/// Said where a manager's disk has no room.
pub(super) const DISK_FULL: &str =
    "the disk of the managers' log is full: nothing can be changed until there is room; try: df, then free some";

pub(super) async fn quorum(State(d): State<Shared>) -> Result<Answer<QuorumView>, Fail> {
    let c = d.cluster()?;
    match c.manager_now() {
        Some(m) => Ok(Answer(quorum_of(&c, &m))),
        None => Ok(Answer(c.ask_manager("/v1/cluster/quorum").await?)),
    }
}

/// What this manager knows of the majority.
pub(super) fn quorum_of(c: &Cluster, m: &Manager) -> QuorumView {
    let (status, peers) = (m.store.status(), m.peers.views());
    let heard = |id: &&u64| **id == status.id || peers.get(id).is_some_and(|p| p.reached);
    let voters = status.conf.voters.len();
    let quorum = status.conf.quorum();
    let reachable = status.conf.voters.iter().filter(heard).count();
    let leader = c.leader();
    let problem = if status.disk_full {
        Some(DISK_FULL.to_owned())
    } else if reachable < quorum {
        Some(format!(
            "{reachable} of {voters} managers can be reached, {quorum} must agree: nothing can be changed"
        ))
    } else if leader.is_none() {
        Some("the managers have no leader".to_owned())
    } else {
        None
    };
    let n = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    QuorumView {
        voters: n(voters),
        learners: n(status.conf.learners.len()),
        quorum: n(quorum),
        reachable: n(reachable),
        tolerated: n(reachable.saturating_sub(quorum)),
        leader,
        term: status.term,
        problem,
        warning: warning(voters),
    }
}

/// What is better than so many voters.
pub(super) fn warning(voters: usize) -> Option<String> {
    (voters > 0 && voters.is_multiple_of(2)).then(|| {
        format!(
            "{voters} managers bear {} failures, no more than {} would; try: netctl node promote or demote one",
            (voters - 1) / 2,
            voters - 1
        )
    })
}

pub(super) async fn transfer(
    State(d): State<Shared>,
    Body(req): Body<Transfer>,
) -> Result<Answer<TransferAnswer>, Fail> {
    let c = d.cluster()?;
    let to = match &req.to {
        Some(text) => Some(super::nodes::find(&c, text)?),
        None => None,
    };
    let leader = c.manager()?.transfer(&c.intent(), to).await?;
    Ok(Answer(TransferAnswer { leader }))
}

pub(super) async fn recover(State(d): State<Shared>) -> Result<Answer<AloneAnswer>, Fail> {
    Ok(Answer(d.recover().await?))
}

pub(super) async fn backup(State(d): State<Shared>, Body(req): Body<Backup>) -> Result<Answer<BackupAnswer>, Fail> {
    let c = d.cluster()?;
    let m = c.manager()?;
    Ok(Answer(crate::daemon::backup(&m, &req.secret).await?))
}

pub(super) async fn restore(State(d): State<Shared>, Body(req): Body<Restore>) -> Result<Answer<AloneAnswer>, Fail> {
    Ok(Answer(d.restore(req).await?))
}
