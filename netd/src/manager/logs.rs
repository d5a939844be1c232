//! What tasks say, gathered from their nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use model::{
    ApiError, Code, EndpointId, Name, NodeId,
    api::{LogLine, Logs, LogsAsk},
};

use super::Manager;
use crate::{
    gossip::Facts,
    rpc::{Answer, Ask},
    tasks::logs::LogFrom,
};

/// Octets of one answer, about.
const PIECE: usize = 512 << 10;
/// Tasks, earlier ones and other places included, that one request may be about.
const MAX_TASKS: usize = 500;
/// How long a node has to answer.
const PATIENCE: Duration = Duration::from_secs(3);

impl Manager {
    /// A piece of the logs of a service's tasks, or of those of one slot.
    pub async fn logs(
        &self,
        service: &Name,
        slot: Option<u32>,
        ask: &LogsAsk,
        facts: &Facts,
    ) -> Result<Logs, ApiError> {
        let mut wanted: BTreeMap<NodeId, (String, BTreeSet<EndpointId>)> = BTreeMap::new();
        let mut count = 0;
        for t in self.tasks(service, facts) {
            if slot.is_none_or(|s| s == t.slot) {
                let of_node = wanted.entry(t.node).or_insert_with(|| (t.hostname, BTreeSet::new()));
                count += usize::from(of_node.1.insert(t.id));
            }
        }
        if count > MAX_TASKS {
            return Err(ApiError::new(
                Code::Invalid,
                format!("{service} has {count} logs: at most {MAX_TASKS} are read together"),
                format!("netctl task logs {service}.1"),
            ));
        }
        let each = PIECE / wanted.len().max(1);
        let asked = wanted.into_iter().map(|(node, (hostname, ids))| async move {
            let known = ask.after.get(&node);
            let from = |id: &EndpointId| match (known.and_then(|k| k.get(id)), ask.tail) {
                (Some(place), _) => LogFrom::At(*place),
                (None, Some(n)) => LogFrom::Tail(n),
                (None, None) => LogFrom::Start,
            };
            let question = Ask::Logs {
                from: ids.iter().map(|id| (id.clone(), from(id))).collect(),
                since_ms: ask.since_ms,
                max: each,
                follow: ask.follow,
            };
            let answer = match self.hub.is_connected(node) {
                true => self.hub.ask(node, question, PATIENCE).await.map_err(|e| e.to_string()),
                false => Err("it is not connected".to_owned()),
            };
            (node, hostname, answer)
        });
        let mut out = Logs {
            after: ask.after.clone(),
            ..Logs::default()
        };
        for (node, hostname, answer) in join_all(asked).await {
            let (parts, problems) = match answer {
                Ok(Answer::Logs { parts, problems }) => (parts, problems),
                Ok(Answer::Failed { why }) | Err(why) => {
                    out.problems.push(format!("{node} ({hostname}): {why}"));
                    continue;
                }
                Ok(_) => {
                    out.problems.push(format!("{node} ({hostname}): it gave an odd answer"));
                    continue;
                }
            };
            let why = problems
                .into_iter()
                .map(|(id, why)| format!("{id} on {node} ({hostname}): {why}"));
            out.problems.extend(why);
            for (task, part) in parts {
                out.more |= part.more;
                out.after.entry(node).or_default().insert(task.clone(), part.place);
                out.lines.extend(part.lines.into_iter().map(|line| LogLine {
                    task: task.clone(),
                    node,
                    hostname: hostname.clone(),
                    at_ms: line.at_ms,
                    line: line.text,
                }));
            }
        }
        Ok(out)
    }
}
