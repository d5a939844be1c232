//! `/v1/watch` and what an orchestrator reports.

use std::convert::Infallible;

use axum::{
    body::Body as HttpBody,
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use model::{
    Code, EndpointId,
    api::{Assignment, Assignments, TaskStatus},
};
use serde::Deserialize;

use super::{
    Shared,
    answer::{Answer, Body, Fail, segment},
};
use crate::daemon::{Cluster, Daemon};

#[derive(Deserialize)]
pub(super) struct WatchQuery {
    resource: String,
}

/// What should run on this node now.
pub(super) fn assignments(c: Option<&Cluster>) -> Option<Assignments> {
    let c = c?;
    let intent = c.intent();
    let mut tasks = Vec::new();
    for (name, nodes) in &intent.placements {
        let Some(service) = intent.services.get(name) else {
            continue;
        };
        for slot in nodes.get(&c.me).into_iter().flat_map(|s| s.iter()) {
            tasks.push(Assignment {
                id: EndpointId::task(name, slot),
                service: name.clone(),
                slot,
                networks: service.spec.networks.clone(),
                command: service.spec.command.clone(),
                env: service.spec.env.clone(),
                stop_grace_ms: service.spec.stop_grace_ms,
                generation: service.generation,
            });
        }
    }
    Some(Assignments {
        revision: intent.revision,
        node: c.me,
        tasks,
    })
}

/// A stream of NDJSON lines, one at each change of what they say; it ends when this node joins or leaves a cluster, and
/// the client comes again.
pub(super) async fn watch(State(d): State<Shared>, Query(q): Query<WatchQuery>) -> Result<Response, Fail> {
    if q.resource != "assignments" {
        return Err(Fail::new(
            Code::Invalid,
            format!("no resource {} to watch", q.resource),
            "/v1/watch?resource=assignments",
        ));
    }
    struct Watching {
        daemon: Shared,
        last: Option<Vec<u8>>,
    }
    let lines = stream::unfold(Watching { daemon: d, last: None }, |mut w| async move {
        loop {
            let c = w.daemon.cluster_now();
            let mut joined = w.daemon.cluster_changes();
            joined.mark_unchanged();
            let mut changes = c.as_ref().map(|c| c.intent_changes());
            if let Some(ch) = &mut changes {
                ch.mark_unchanged();
            }
            if c.as_ref().is_some_and(|c| c.intent().revision == 0)
                && let Some(ch) = &mut changes
            {
                // Nothing is known yet, which is not the same as nothing to run.
                tokio::select! {
                    r = ch.changed() => if r.is_err() { return None },
                    r = joined.changed() => if r.is_err() { return None },
                }
                continue;
            }
            let now = assignments(c.as_deref()).unwrap_or(Assignments {
                revision: 0,
                node: model::NodeId(0),
                tasks: Vec::new(),
            });
            let same = |old: &Vec<u8>| {
                serde_json::from_slice::<Assignments>(old).is_ok_and(|o| o.tasks == now.tasks && o.node == now.node)
            };
            if !w.last.as_ref().is_some_and(same) {
                let mut line = serde_json::to_vec(&now).unwrap_or_default();
                w.last = Some(line.clone());
                line.push(b'\n');
                return Some((Ok::<Bytes, Infallible>(Bytes::from(line)), w));
            }
            match &mut changes {
                Some(ch) => tokio::select! {
                    r = ch.changed() => if r.is_err() { return None },
                    r = joined.changed() => if r.is_err() { return None },
                },
                None => {
                    if joined.changed().await.is_err() {
                        return None;
                    }
                }
            }
        }
    });
    Ok((
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        HttpBody::from_stream(lines),
    )
        .into_response())
}

pub(super) async fn task_status(
    State(d): State<Shared>,
    path: Path<String>,
    Body(status): Body<TaskStatus>,
) -> Result<Answer<serde_json::Value>, Fail> {
    let id: EndpointId = segment(path)?;
    report(&d, id, status)?;
    Ok(Answer(serde_json::json!({})))
}

fn report(d: &Daemon, id: EndpointId, status: TaskStatus) -> Result<(), Fail> {
    d.cluster()?.task_reported(id, status);
    Ok(())
}
