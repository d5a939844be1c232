//! Placements that are asked for, or only looked at: `/v1/services/NAME/rebalance` and `/preview`.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use cluster::state::{Applied, Command, Proposal};
use model::{
    Name, NodeId,
    api::{PlacedOn, PlacementView, Preview, Rebalance, Rebalanced},
};

use super::{
    Shared,
    answer::{Answer, Body, Fail, segment},
};
use crate::daemon::internal;

pub(super) async fn rebalance(
    State(d): State<Shared>,
    path: Path<String>,
    Body(req): Body<Rebalance>,
) -> Result<Answer<Rebalanced>, Fail> {
    let service: Name = segment(path)?;
    let command = Command::Rebalance {
        service,
        budget: req.budget,
    };
    match d.cluster()?.manager()?.propose(command).await? {
        (revision, Applied::Moved(moved)) => Ok(Answer(Rebalanced { revision, moved })),
        (_, other) => Err(Fail(internal("rebalancing", format!("the log answered {other:?}")))),
    }
}

/// What the leader would make of it now.
pub(super) async fn preview(
    State(d): State<Shared>,
    path: Path<String>,
    Body(req): Body<Preview>,
) -> Result<Answer<PlacementView>, Fail> {
    let name: Name = segment(path)?;
    let proposal = match req {
        Preview::Spec(spec) => Proposal::Spec(spec),
        Preview::Replicas(n) => Proposal::Replicas(n),
        Preview::Rebalance(budget) => Proposal::Rebalance(budget),
    };
    let m = d.cluster()?.manager()?;
    let store = m.store.clone();
    // A million tasks may be placed: that is no work for a thread that others wait for.
    let seen = tokio::task::spawn_blocking(move || {
        let state = store.with(cluster::state::State::clone);
        let intent = state.intent();
        (state.preview(&name, &proposal), intent)
    })
    .await;
    let (seen, intent) = seen.map_err(|e| Fail(internal("a preview", e)))?;
    let seen = seen.map_err(|e| Fail(e.into()))?;
    let nodes: BTreeSet<NodeId> = seen.before.keys().chain(seen.after.keys()).copied().collect();
    let nodes = nodes.into_iter().map(|node| PlacedOn {
        node,
        hostname: intent.nodes.get(&node).map(|n| n.hostname.clone()).unwrap_or_default(),
        before: seen.before.get(&node).cloned().unwrap_or_default(),
        after: seen.after.get(&node).cloned().unwrap_or_default(),
    });
    Ok(Answer(PlacementView {
        nodes: nodes.collect(),
        moved: seen.moves.iter().map(|m| m.slots.len()).sum(),
        problem: seen.problem,
    }))
}
