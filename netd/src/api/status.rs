//! `/v1/status`, `/v1/convergence`, health.

use axum::extract::{Query, State};
use model::{
    Code,
    api::{Convergence, Status},
};
use serde::Deserialize;

use super::{
    Shared,
    answer::{Answer, Fail},
    networks, nodes, services,
};

pub(super) async fn healthz() -> Answer<serde_json::Value> {
    Answer(serde_json::json!({ "status": "alive" }))
}

pub(super) async fn readyz(State(d): State<Shared>) -> Result<Answer<serde_json::Value>, Fail> {
    if d.is_ready() {
        Ok(Answer(serde_json::json!({ "status": "ready" })))
    } else {
        Err(Fail::new(
            Code::Unavailable,
            "the first plan is not applied yet",
            "netctl status",
        ))
    }
}

pub(super) async fn status(State(d): State<Shared>) -> Result<Answer<Status>, Fail> {
    let c = match d.cluster() {
        Ok(c) => c,
        Err(e) if e.code == Code::Locked => return Err(e.into()),
        Err(_) => {
            return Ok(Answer(Status {
                me: None,
                cluster: String::new(),
                revision: 0,
                applied: 0,
                leader: None,
                converged: None,
                nodes: Vec::new(),
                networks: Vec::new(),
                services: Vec::new(),
                taken: Default::default(),
                writes: Default::default(),
                counters: Default::default(),
                problems: d.problems(),
            }));
        }
    };
    let intent = c.intent();
    let reconciled = c.reconciled();
    let converged = c.progress(intent.revision).await.ok().map(|p| p.converged);
    let mut problems = reconciled.problems.clone();
    problems.extend(d.problems());
    problems.extend(c.trouble());
    if let Some(waiting) = c.leading().and_then(|m| m.custody(&c).ok()).and_then(|v| ca_waits(&v)) {
        problems.push(waiting);
    }
    problems.extend(
        c.role_problem()
            .map(|why| format!("this node's role is not carried out yet: {why}")),
    );
    if let Some(m) = c.manager_now() {
        problems.extend(super::cluster::quorum_of(&c, &m).problem);
    } else if converged.is_none() {
        problems.push("no manager is reached: what stands here is this node's last view".to_owned());
    }
    Ok(Answer(Status {
        me: Some(c.me),
        cluster: intent.cluster.clone(),
        revision: intent.revision,
        applied: reconciled.applied,
        leader: c.leader(),
        converged,
        nodes: nodes::views(&c).await,
        networks: networks::views(&c),
        services: services::views(&c).await,
        taken: c.taken(),
        writes: reconciled.writes,
        counters: c.counters().await,
        problems,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConvergenceQuery {
    #[serde(default)]
    revision: u64,
}

pub(super) async fn convergence(
    State(d): State<Shared>,
    Query(q): Query<ConvergenceQuery>,
) -> Result<Answer<Convergence>, Fail> {
    Ok(Answer(d.cluster()?.progress(q.revision).await?))
}

/// A change of the CA that takes longer than it should.
fn ca_waits(v: &model::api::CustodyView) -> Option<String> {
    /// A change is usually over in seconds.
    const LONG_S: u64 = 20;
    let (phase, since) = (v.ca.phase.as_ref()?, v.ca.since_s.filter(|s| *s >= LONG_S)?);
    let who: Vec<String> = v.ca.waits_for.iter().map(ToString::to_string).collect();
    Some(format!(
        "the change of the CA has waited for {} for {since} s ({phase}): netctl cluster ca show",
        who.join(", ")
    ))
}
