//! `/v1/tasks` and the tasks of a node.

use axum::extract::{Path, State};
use model::{
    ApiError, Code, EndpointId, Name, NodeId,
    api::{Logs, LogsAsk, TaskView},
};

use super::{
    Shared,
    answer::{Answer, Body, Fail, segment},
    nodes::find,
};
use crate::{
    daemon::{Cluster, internal},
    manager::Manager,
};

/// Which tasks.
pub(super) enum Which {
    All,
    Of(EndpointId),
    On(NodeId),
}

impl Which {
    /// Where a manager answers.
    pub(super) fn path(&self) -> String {
        match self {
            Which::All => "/v1/tasks".to_owned(),
            Which::Of(id) => format!("/v1/tasks/{id}"),
            Which::On(node) => format!("/v1/nodes/{node}/tasks"),
        }
    }

    /// The reverse of [`Which::path`].
    pub(super) fn parse(path: &str) -> Option<Which> {
        if path == "/v1/tasks" {
            return Some(Which::All);
        }
        if let Some(id) = path.strip_prefix("/v1/tasks/") {
            return id.parse().ok().map(Which::Of);
        }
        let node = path.strip_prefix("/v1/nodes/")?.strip_suffix("/tasks")?;
        node.parse().ok().map(Which::On)
    }

    /// From the leader's memory.
    pub(super) fn look(&self, c: &Cluster, m: &Manager) -> Vec<TaskView> {
        let (intent, facts) = (c.intent(), c.facts());
        match self {
            Which::All => m.all_tasks(&intent, &facts, |_| true),
            Which::On(node) => m.all_tasks(&intent, &facts, |t| t.node == *node),
            Which::Of(id) => {
                let lines = id.slot().map(|(name, _)| m.tasks(&name, &facts));
                lines.unwrap_or_default().into_iter().filter(|t| t.id == *id).collect()
            }
        }
    }

    async fn answer(&self, c: &Cluster) -> Result<Vec<TaskView>, Fail> {
        match c.leading() {
            Some(m) => Ok(self.look(c, &m)),
            // The managers alone remember what became of earlier tasks.
            None => Ok(c.ask_manager(&self.path()).await?),
        }
    }
}

/// Logs, from where what managers remember tells which there are.
pub(super) async fn gather(c: &Cluster, service: &Name, slot: Option<u32>, ask: LogsAsk) -> Result<Logs, ApiError> {
    match c.leading() {
        Some(m) => m.logs(service, slot, &ask, &c.facts()).await,
        None => {
            let ask = serde_json::to_string(&ask).map_err(|e| internal("the request", e))?;
            let slot = slot.map(|s| format!(".{s}")).unwrap_or_default();
            c.ask_manager(&format!("{LOGS}{service}{slot} {ask}")).await
        }
    }
}

/// As [`gather`] asks a manager.
const LOGS: &str = "logs ";

/// Answers [`gather`]; none: it is another question.
pub(super) async fn gathered(c: &Cluster, m: &Manager, path: &str) -> Option<Result<Logs, ApiError>> {
    let (of, ask) = path.strip_prefix(LOGS)?.split_once(' ')?;
    let (service, slot) = match of.parse::<EndpointId>().ok()?.slot() {
        Some((service, slot)) => (service, Some(slot)),
        None => (of.parse().ok()?, None),
    };
    let ask = serde_json::from_str(ask).ok()?;
    Some(m.logs(&service, slot, &ask, &c.facts()).await)
}

/// What the tasks of a slot have said, a piece at a time.
pub(super) async fn logs(
    State(d): State<Shared>,
    path: Path<String>,
    Body(ask): Body<LogsAsk>,
) -> Result<Answer<Logs>, Fail> {
    let id: EndpointId = segment(path)?;
    let c = d.cluster()?;
    let known = id.slot().filter(|(name, _)| c.intent().services.contains_key(name));
    let (service, slot) = known.ok_or_else(|| Fail::new(Code::NotFound, format!("no task {id}"), "netctl task ls"))?;
    Ok(Answer(gather(&c, &service, Some(slot), ask).await?))
}

pub(super) async fn list(State(d): State<Shared>) -> Result<Answer<Vec<TaskView>>, Fail> {
    Ok(Answer(Which::All.answer(&*d.cluster()?).await?))
}

pub(super) async fn one(State(d): State<Shared>, path: Path<String>) -> Result<Answer<Vec<TaskView>>, Fail> {
    let id: EndpointId = segment(path)?;
    let tasks = Which::Of(id.clone()).answer(&*d.cluster()?).await?;
    match tasks.is_empty() {
        false => Ok(Answer(tasks)),
        true => Err(Fail::new(Code::NotFound, format!("no task {id}"), "netctl task ls")),
    }
}

pub(super) async fn on(State(d): State<Shared>, Path(text): Path<String>) -> Result<Answer<Vec<TaskView>>, Fail> {
    let c = d.cluster()?;
    let node = find(&c, &text)?;
    Ok(Answer(Which::On(node).answer(&c).await?))
}
