//! `/v1/nodes`

use std::collections::BTreeMap;

use axum::{
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
};
use cluster::{
    placement::Load,
    state::{Command, NodeUpdate},
};
use model::{
    Code, Intent, NodeId,
    api::{Changed, NodeChange, NodeHealth, NodeView, RoleAnswer, RoleChange},
    intent::Role,
    row::RowBody,
    spec::Resources,
};

use serde::Deserialize;

use super::{
    Shared,
    answer::{Answer, Body, Fail},
};
use crate::{daemon::Cluster, gossip::Facts};

/// Every node as seen from here; what only managers know is filled in where a manager answers.
pub(super) async fn views(c: &Cluster) -> Vec<NodeView> {
    let (intent, facts) = (c.intent(), c.facts());
    let progress = c.progress(0).await.ok();
    let leader = c.leader();
    let loads = loads(&intent);
    intent
        .nodes
        .iter()
        .map(|(id, n)| {
            let row = c.node_row(&facts, *id);
            let told = progress.as_ref().and_then(|p| p.nodes.iter().find(|p| p.id == *id));
            let load = loads.get(id).copied().unwrap_or_default();
            let all = n.machine.capacity;
            NodeView {
                id: *id,
                hostname: n.hostname.clone(),
                role: n.role,
                availability: n.availability,
                health: if *id == c.me {
                    NodeHealth::Ready
                } else {
                    facts.health.get(id).copied().unwrap_or(NodeHealth::Unknown)
                },
                leader: Some(*id) == leader,
                me: *id == c.me,
                addr: row.map(|r| r.datapath_addr.to_string()),
                datapath: row.map(|r| r.datapath),
                datapath_why: match *id == c.me {
                    true => Some(c.datapath_why()),
                    false => told.map(|p| p.datapath.clone()).filter(|why| !why.is_empty()),
                },
                here: (*id == c.me).then(|| c.reconciled().places.host.clone()).flatten(),
                version: row.map(|r| r.version.clone()),
                applied: told.map(|p| p.applied),
                tasks: u32::try_from(load.tasks)
                    .unwrap_or(u32::MAX)
                    .saturating_add(ending(&intent, &facts, *id)),
                labels: n.labels.clone(),
                max_tasks: n.max_tasks,
                machine: n.machine.clone(),
                reserved: load.reserved,
                free: (all != Resources::default()).then(|| Resources {
                    cpu_milli: all.cpu_milli.saturating_sub(load.reserved.cpu_milli),
                    memory: all.memory.saturating_sub(load.reserved.memory),
                }),
                problems: told.map(|p| p.problems.clone()).unwrap_or_default(),
            }
        })
        .collect()
}

/// Tasks that the log wants a node to have no longer, and whose endpoints are still there.
fn ending(intent: &Intent, facts: &Facts, node: NodeId) -> u32 {
    let rows = facts.rows.get(&node).into_iter().flat_map(|rows| rows.values());
    let ending = rows.filter(|r| match &r.body {
        RowBody::Endpoint(e) => match (&e.service, e.slot) {
            (Some(service), Some(slot)) => !intent.holds(service, node, slot),
            _ => false,
        },
        _ => false,
    });
    u32::try_from(ending.count()).unwrap_or(u32::MAX)
}

/// What is on each node: also what goes on there until it runs elsewhere.
fn loads(intent: &Intent) -> BTreeMap<NodeId, Load> {
    let mut loads: BTreeMap<NodeId, Load> = BTreeMap::new();
    for (name, placed) in intent.placements.iter().chain(&intent.leaving) {
        let each = intent.services.get(name).map(|s| s.spec.placement.reserve);
        for (id, slots) in placed {
            loads.entry(*id).or_default().add(slots.len(), each.unwrap_or_default());
        }
    }
    loads
}

pub(super) async fn list(State(d): State<Shared>) -> Result<Answer<Vec<NodeView>>, Fail> {
    Ok(Answer(views(&*d.cluster()?).await))
}

/// By id (`n2`) or host name.
pub(super) fn find(c: &Cluster, text: &str) -> Result<NodeId, Fail> {
    let intent = c.intent();
    let by_id = text.parse::<NodeId>().ok().filter(|id| intent.nodes.contains_key(id));
    let mut by_name = intent
        .nodes
        .iter()
        .filter(|(_, n)| n.hostname == text)
        .map(|(id, _)| *id);
    match (by_id, by_name.next(), by_name.next()) {
        (Some(id), _, _) | (None, Some(id), None) => Ok(id),
        (None, Some(a), Some(b)) => Err(Fail::new(
            Code::Ambiguous,
            format!("{text} is the host name of {a} and {b}"),
            format!("netctl node inspect {a}"),
        )),
        (None, None, _) => Err(Fail::new(Code::NotFound, format!("no node {text}"), "netctl node ls")),
    }
}

pub(super) async fn one(State(d): State<Shared>, Path(text): Path<String>) -> Result<Answer<NodeView>, Fail> {
    let c = d.cluster()?;
    let id = find(&c, &text)?;
    let view = views(&c).await.into_iter().find(|v| v.id == id);
    view.map(Answer)
        .ok_or_else(|| Fail::new(Code::NotFound, format!("no node {text}"), "netctl node ls"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

pub(super) async fn remove(
    State(d): State<Shared>,
    Path(text): Path<String>,
    Query(q): Query<RemoveQuery>,
) -> Result<Answer<Changed>, Fail> {
    let c = d.cluster()?;
    let id = find(&c, &text)?;
    if c.intent().nodes.get(&id).is_some_and(|n| n.role == Role::Manager) {
        return Err(Fail::new(
            Code::Conflict,
            format!("{id} is a manager"),
            format!("netctl node demote {id} first"),
        ));
    }
    if id == c.me || (!q.force && c.facts().health.get(&id) == Some(&NodeHealth::Ready)) {
        return Err(Fail::new(
            Code::Conflict,
            format!("{id} is alive"),
            format!("netctl cluster leave on that node, or netctl node rm --force {id}"),
        ));
    }
    let (revision, _) = c.manager()?.propose(Command::RemoveNode { node: id }).await?;
    Ok(Answer(Changed {
        revision,
        message: format!("{id} is removed; its id is never used again"),
    }))
}

pub(super) async fn update(
    State(d): State<Shared>,
    Path(text): Path<String>,
    Body(req): Body<NodeChange>,
) -> Result<Answer<Changed>, Fail> {
    let c = d.cluster()?;
    let node = find(&c, &text)?;
    let update = NodeUpdate {
        availability: req.availability,
        labels: req.labels,
        max_tasks: req.max_tasks.map(|n| (n > 0).then_some(n)),
    };
    let (revision, _) = c.manager()?.propose(Command::UpdateNode { node, update }).await?;
    Ok(Answer(Changed {
        revision,
        message: format!("{node} is changed"),
    }))
}

pub(super) async fn role(
    State(d): State<Shared>,
    Path(text): Path<String>,
    Body(req): Body<RoleChange>,
) -> Result<Response, Fail> {
    let c = d.cluster()?;
    let id = find(&c, &text)?;
    let m = c.manager()?;
    let hostname = c
        .intent()
        .nodes
        .get(&id)
        .map(|n| n.hostname.clone())
        .unwrap_or_default();
    let (done, becomes) = match req.role {
        Role::Manager => (m.promote(&c, id).await, "a manager"),
        Role::Worker if id == c.me && managers(&c.intent()) > 1 => {
            // The leader cannot take itself out: whoever leads next does.
            m.transfer(&c.intent(), None).await?;
            return Ok(super::route::not_leader());
        }
        Role::Worker => (m.demote(&c.intent(), id, req.force).await, "a worker"),
    };
    let revision = match done {
        Ok(revision) => revision,
        // The lead was lost meanwhile: whoever has it goes on from what is there.
        Err(_) if !m.leads() => return Ok(super::route::not_leader()),
        Err(e) => return Err(e.into()),
    };
    Ok(role_answer(&c, id, &hostname, becomes, revision))
}

fn managers(intent: &Intent) -> usize {
    intent.nodes.values().filter(|n| n.role == Role::Manager).count()
}

fn role_answer(c: &Cluster, node: NodeId, hostname: &str, becomes: &str, revision: u64) -> Response {
    let answer = RoleAnswer {
        node,
        revision,
        message: format!("{node} ({hostname}) becomes {becomes}"),
        warning: super::cluster::warning(managers(&c.intent())),
    };
    Answer(answer).into_response()
}

/// Answers a request to make a worker of this very node, which is one by now. It was carried out by the leader, whose
/// answer was cut off with this manager's connections.
pub(super) fn demoted(c: &Cluster, path: &str, body: &[u8]) -> Option<Response> {
    let text = path.strip_prefix("/v1/nodes/")?.strip_suffix("/role")?;
    let asked: RoleChange = serde_json::from_slice(body).ok()?;
    let intent = c.intent();
    let me = intent.nodes.get(&c.me)?;
    let done = asked.role == Role::Worker && me.role == Role::Worker && find(c, text).ok()? == c.me;
    done.then(|| role_answer(c, c.me, &me.hostname, "a worker", intent.revision))
}
