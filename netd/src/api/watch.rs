//! `/v1/watch` and what an orchestrator reports.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use axum::{
    body::Body as HttpBody,
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use model::{
    Code, EndpointId, NodeId,
    api::{Assignment, Assignments, EndpointAt, EndpointSeen, EndpointsSeen, NodesSeen, TaskStatus},
    row::{Row, RowBody, RowKey},
    spec::template::{self, Fill},
};
use serde::Deserialize;

use super::{
    Shared,
    answer::{Answer, Body, Fail, segment},
};
use crate::{
    daemon::{Cluster, Daemon},
    gossip::Facts,
};

/// What can be watched.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Resource {
    /// What should run on this node.
    Assignments,
    /// Every node's health.
    Nodes,
    /// Every endpoint of the cluster.
    Endpoints,
}

#[derive(Deserialize)]
pub(super) struct WatchQuery {
    resource: String,
}

/// What should run on this node now.
pub(super) fn assignments(c: Option<&Cluster>) -> Option<Assignments> {
    let c = c?;
    let intent = c.intent();
    let hostname = intent.nodes.get(&c.me).map(|n| n.hostname.as_str()).unwrap_or_default();
    let tasks = intent.tasks_on(c.me).map(|(name, service, slot)| {
        let (spec, generation) = service.template(slot);
        let fill = Fill {
            service: name,
            slot,
            node: c.me,
            hostname,
        };
        Assignment {
            id: EndpointId::task(name, slot),
            service: name.clone(),
            slot,
            networks: spec.networks.clone(),
            command: spec.command.clone(),
            env: filled(&spec.env, &fill),
            hostname: spec.hostname.as_deref().map(|h| template::hostname(h, &fill)),
            // How a task is watched, restarted and ended is not what it is made from: the newest counts.
            restart: service.spec.restart.clone(),
            health: spec.health.clone(),
            stop_grace_ms: service.spec.stop_grace_ms,
            drain_timeout_ms: service.spec.drain_timeout_ms,
            generation,
        }
    });
    let tasks = tasks.collect();
    Some(Assignments {
        revision: intent.revision,
        node: c.me,
        tasks,
    })
}

fn filled(env: &BTreeMap<String, String>, fill: &Fill<'_>) -> BTreeMap<String, String> {
    let pairs = env.iter().map(|(k, v)| (k.clone(), template::fill(v, fill)));
    pairs.collect()
}

/// What the reader of a stream knows by now.
enum Known {
    Assignments(Option<Assignments>),
    Nodes(Option<NodesSeen>),
    Endpoints(Option<Arc<Facts>>),
}

impl Known {
    /// The next line, if there is something to tell.
    fn line(&mut self, c: Option<&Cluster>) -> Option<Vec<u8>> {
        match self {
            // Nothing is known yet, which is not the same as nothing to run.
            Known::Assignments(_) if c.is_some_and(|c| c.intent().revision == 0) => None,
            Known::Assignments(last) => {
                let now = assignments(c).unwrap_or(Assignments {
                    revision: 0,
                    node: NodeId(0),
                    tasks: Vec::new(),
                });
                if last
                    .as_ref()
                    .is_some_and(|o| o.tasks == now.tasks && o.node == now.node)
                {
                    return None;
                }
                let line = serde_json::to_vec(&now).ok();
                *last = Some(now);
                line
            }
            Known::Nodes(last) => {
                let now = NodesSeen {
                    nodes: c.map(|c| c.facts().health.clone()).unwrap_or_default(),
                };
                if last.as_ref() == Some(&now) {
                    return None;
                }
                let line = serde_json::to_vec(&now).ok();
                *last = Some(now);
                line
            }
            Known::Endpoints(last) => {
                let now = c.map(Cluster::facts).unwrap_or_default();
                let seen = endpoints_since(last.as_deref(), &now);
                let quiet = !seen.snapshot && seen.changed.is_empty() && seen.removed.is_empty();
                *last = Some(now);
                if quiet { None } else { serde_json::to_vec(&seen).ok() }
            }
        }
    }
}

/// What `now` says of endpoints that `last` did not; without `last`: everything.
fn endpoints_since(last: Option<&Facts>, now: &Facts) -> EndpointsSeen {
    let mut seen = EndpointsSeen {
        snapshot: last.is_none(),
        ..EndpointsSeen::default()
    };
    let nobody = BTreeMap::new();
    let before = last.map_or(&nobody, |l| &l.rows);
    let none: Arc<BTreeMap<RowKey, Row>> = Arc::default();
    for (node, rows) in &now.rows {
        let old = before.get(node).unwrap_or(&none);
        if Arc::ptr_eq(old, rows) {
            continue;
        }
        let differs = |(key, row): &(&RowKey, &Row)| old.get(*key) != Some(*row);
        seen.changed.extend(
            rows.iter()
                .filter(differs)
                .filter_map(|(key, row)| endpoint(*node, key, row)),
        );
    }
    for (node, old) in before {
        let rows = now.rows.get(node).unwrap_or(&none);
        let gone = old.keys().filter(|key| !rows.contains_key(*key));
        seen.removed.extend(gone.filter_map(|key| match key {
            RowKey::Endpoint(id) => Some(EndpointAt {
                node: *node,
                id: id.clone(),
            }),
            RowKey::Node => None,
        }));
    }
    seen
}

fn endpoint(node: NodeId, key: &RowKey, row: &Row) -> Option<EndpointSeen> {
    let (RowKey::Endpoint(id), RowBody::Endpoint(e)) = (key, &row.body) else {
        return None;
    };
    Some(EndpointSeen {
        at: EndpointAt { node, id: id.clone() },
        version: row.version,
        vni: e.vni,
        v4: e.v4,
        v6: e.v6,
        service: e.service.clone(),
        state: e.state,
    })
}

/// A stream of NDJSON lines, one at each change of what they say; it ends when this node joins or leaves a cluster, and
/// the client comes again.
pub(super) async fn watch(State(d): State<Shared>, Query(q): Query<WatchQuery>) -> Result<Response, Fail> {
    let resource: Result<Resource, serde_json::Error> = serde_json::from_value(q.resource.clone().into());
    let known = match resource {
        Ok(Resource::Assignments) => Known::Assignments(None),
        Ok(Resource::Nodes) => Known::Nodes(None),
        Ok(Resource::Endpoints) => Known::Endpoints(None),
        Err(_) => {
            return Err(Fail::new(
                Code::Invalid,
                format!("no resource {} to watch", q.resource),
                "/v1/watch?resource=assignments, nodes or endpoints",
            ));
        }
    };
    let facts_too = !matches!(known, Known::Assignments(_));
    let lines = stream::unfold((d, known), move |(d, mut known)| async move {
        loop {
            let c = d.cluster_now();
            let mut joined = d.cluster_changes();
            joined.mark_unchanged();
            // Marked before it is looked, so that no change is missed.
            let mut intent = c.as_ref().map(|c| c.intent_changes());
            let mut facts = c.as_ref().filter(|_| facts_too).map(|c| c.facts_changes());
            if let Some(i) = &mut intent {
                i.mark_unchanged();
            }
            if let Some(f) = &mut facts {
                f.mark_unchanged();
            }
            if d.is_locked() {
                // What is to run here is not known, which is not the same as nothing.
                if joined.changed().await.is_err() {
                    return None;
                }
                continue;
            }
            if let Some(mut line) = known.line(c.as_deref()) {
                line.push(b'\n');
                return Some((Ok::<Bytes, Infallible>(Bytes::from(line)), (d, known)));
            }
            let ended = match (&mut intent, &mut facts) {
                (Some(i), Some(f)) => tokio::select! {
                    r = i.changed() => r.is_err(),
                    r = f.changed() => r.is_err(),
                    r = joined.changed() => r.is_err(),
                },
                (Some(i), None) => tokio::select! {
                    r = i.changed() => r.is_err(),
                    r = joined.changed() => r.is_err(),
                },
                (None, _) => joined.changed().await.is_err(),
            };
            if ended {
                return None;
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
    Ok(d.cluster()?.task_reported(id, status)?)
}

#[cfg(test)]
mod tests {
    use model::row::{EndpointRow, EndpointState};

    use super::*;

    fn facts(endpoints: &[(u64, &str, u64)]) -> Facts {
        let mut rows: BTreeMap<NodeId, BTreeMap<RowKey, Row>> = BTreeMap::new();
        for (node, id, version) in endpoints {
            let key = RowKey::Endpoint(id.parse().unwrap());
            let body = RowBody::Endpoint(EndpointRow {
                vni: model::Vni::try_from(model::Vni::FIRST).unwrap(),
                v4: None,
                v6: None,
                mac: model::Mac([2; 6]),
                service: None,
                slot: None,
                state: EndpointState::Ready,
                listening: Vec::new(),
            });
            let row = Row {
                owner: NodeId(*node),
                key: key.clone(),
                version: *version,
                body,
            };
            rows.entry(NodeId(*node)).or_default().insert(key, row);
        }
        Facts {
            rows: rows.into_iter().map(|(n, r)| (n, Arc::new(r))).collect(),
            ..Facts::default()
        }
    }

    #[test]
    fn first_everything_then_what_changed() {
        let names = |s: &EndpointsSeen| -> (Vec<String>, Vec<String>) {
            let changed = s.changed.iter().map(|e| format!("{}/{}", e.at.node, e.at.id));
            let removed = s.removed.iter().map(|e| format!("{}/{}", e.node, e.id));
            (changed.collect(), removed.collect())
        };
        let one = facts(&[(1, "a", 1), (1, "b", 1), (2, "c", 1)]);
        let all = endpoints_since(None, &one);
        assert!(all.snapshot);
        assert_eq!(names(&all).0, ["n1/a", "n1/b", "n2/c"]);
        let two = facts(&[(1, "a", 1), (1, "b", 2), (3, "d", 1)]);
        let step = endpoints_since(Some(&one), &two);
        assert!(!step.snapshot);
        assert_eq!(names(&step), (vec!["n1/b".into(), "n3/d".into()], vec!["n2/c".into()]));
        assert_eq!(
            endpoints_since(Some(&two), &two),
            EndpointsSeen::default(),
            "nothing to tell"
        );
    }
}
