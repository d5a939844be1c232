//! Any manager takes any request: what changes the log, or lies in the leader's memory, is passed on to the leader; reads
//! wait until this manager holds all that was acknowledged before them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use model::{Code, NodeId, api::REQUEST_HEADER, api::STALE_HEADER};

use super::{Fail, Shared, answer::MAX_BODY};
use crate::{
    daemon::Cluster,
    identity::admit_manager,
    manager::{Manager, REQUEST, RequestId},
    rpc::{Forwarded, Leader},
};

/// Longest wait for a leader.
const LEADER: Duration = Duration::from_secs(10);
/// Longest wait of a read for a leader: then what is known here is shown, and that it may be old.
const READ: Duration = Duration::from_millis(1500);
/// Between two tries, when nothing tells that another one makes sense.
const AGAIN: Duration = Duration::from_millis(50);
/// In an answer: the request must go to another manager.
pub(crate) const NOT_LEADER: HeaderName = HeaderName::from_static("netd-not-leader");

/// Where a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// By this node: it is about itself.
    Here,
    /// By any manager that is up to date.
    Read,
    /// By the leader.
    Leader,
}

fn place(method: &Method, path: &str) -> Place {
    const HERE: &[&str] = &[
        "/v1/cluster/init",
        "/v1/cluster/join",
        "/v1/cluster/leave",
        "/v1/cluster/unlock",
        "/v1/cluster/renew",
        "/v1/cluster/restore",
        "/v1/cluster/recover",
        "/v1/cluster/members",
        "/v1/cluster/quorum",
    ];
    const NOUNS: &[&str] = &[
        "/v1/cluster",
        "/v1/nodes",
        "/v1/networks",
        "/v1/services",
        "/v1/publish",
        "/v1/unpublish",
    ];
    let read = *method == Method::GET;
    let tasks = path.starts_with("/v1/tasks") || path.ends_with("/tasks");
    // What nodes have reported lies in the leader's memory.
    let logs = path.starts_with("/v1/tasks/") && path.ends_with("/logs");
    let reported = tasks || matches!(path, "/v1/convergence" | "/v1/cluster/custody");
    if internal(path) || (read && reported) || logs {
        return Place::Leader;
    }
    if HERE.contains(&path) || !NOUNS.iter().any(|n| path.starts_with(n)) {
        return Place::Here;
    }
    match read {
        true => Place::Read,
        false => Place::Leader,
    }
}

/// Whether managers alone ask for it.
fn internal(path: &str) -> bool {
    path == super::command::PATH || path == super::command::SETTLED
}

pub(super) async fn route(State(d): State<Shared>, req: Request, next: Next) -> Response {
    let forwarded = req.extensions().get::<Forwarded>().cloned();
    let cluster = d.cluster_now();
    let manager = cluster.as_ref().and_then(|c| c.manager_now());
    if let Some(Forwarded(peer)) = &forwarded {
        // Each request is checked: the other one may have been demoted since the last.
        let admitted = cluster.as_ref().map(|c| admit_manager(&c.intent(), peer));
        if let Some(Err(e)) = admitted {
            // It may have been demoted while it had a client's request: that is for it to answer.
            return elsewhere(Fail(e.into()).into_response());
        }
        if place(req.method(), req.uri().path()) != Place::Leader {
            return Fail::new(
                Code::Forbidden,
                "managers pass on only what the leader alone can do",
                "",
            )
            .into_response();
        }
    } else if internal(req.uri().path()) {
        return super::answer::unknown_path(req).await.into_response();
    }
    let (Some(c), Some(m)) = (cluster, manager) else {
        return match forwarded {
            Some(_) => not_leader(),
            None => next.run(req).await,
        };
    };
    match place(req.method(), req.uri().path()) {
        Place::Here => next.run(req).await,
        Place::Read => {
            let settled = settle(&m).await;
            let mut answer = next.run(req).await;
            if let Err(why) = settled
                && let Ok(why) = HeaderValue::from_str(&why)
            {
                answer.headers_mut().insert(STALE_HEADER, why);
            }
            answer
        }
        Place::Leader => match whole(req).await {
            Ok(req) => lead(&c, &m, req, forwarded.is_some(), next).await,
            Err(e) => e.into_response(),
        },
    }
}

/// Waits until this manager holds what was acknowledged so far, or says why it cannot know.
async fn settle(m: &Manager) -> Result<(), String> {
    let until = Instant::now() + READ;
    let mut status = m.store.watch_status();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let why = match tokio::time::timeout(left, m.settle()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(e)) => e.to_string(),
            Err(_) => format!(
                "what was acknowledged before was not here within {} ms",
                READ.as_millis()
            ),
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(why);
        }
        let _ = tokio::time::timeout(left.min(AGAIN), status.changed()).await;
    }
}

/// A request with its body in memory: it may be sent several times.
struct Whole {
    method: Method,
    path: String,
    headers: HeaderMap,
    extensions: axum::http::Extensions,
    body: Bytes,
    id: u128,
}

async fn whole(req: Request) -> Result<Whole, Fail> {
    let (head, body) = req.into_parts();
    let body = Limited::new(body, MAX_BODY + super::command::MAX)
        .collect()
        .await
        .map_err(|e| {
            Fail::new(
                Code::Invalid,
                format!("the body cannot be read: {e}"),
                format!("at most {MAX_BODY} octets of JSON"),
            )
        })?;
    let given = head.headers.get(REQUEST_HEADER).map(|v| {
        let id = v.to_str().ok().and_then(|v| u128::from_str_radix(v, 16).ok());
        id.ok_or_else(|| {
            Fail::new(
                Code::Invalid,
                format!("{REQUEST_HEADER} is no hexadecimal number of at most 32 digits"),
                "",
            )
        })
    });
    Ok(Whole {
        path: head
            .uri
            .path_and_query()
            .map_or_else(|| "/".to_owned(), |p| p.to_string()),
        method: head.method,
        headers: head.headers,
        extensions: head.extensions,
        body: body.to_bytes(),
        id: match given {
            Some(id) => id?,
            None => u128::from_le_bytes(crate::identity::random().map_err(|e| Fail(e.into()))?),
        },
    })
}

/// Carries a request out if this manager leads, else passes it on; after a change of leader it is done again under the
/// same id, so that what it changes is changed once.
async fn lead(c: &Cluster, m: &Manager, req: Whole, forwarded: bool, next: Next) -> Response {
    let until = Instant::now() + LEADER;
    let mut leader = m.leader();
    let mut last = String::new();
    loop {
        let now = leader.borrow_and_update().clone();
        match now {
            Leader::Me => {
                let id = RequestId::new(req.id);
                let answer = REQUEST.scope(id, next.clone().run(req.rebuild())).await;
                // It may say itself that it is another one's now: who is demoted hands the lead over first.
                if forwarded || !answer.headers().contains_key(NOT_LEADER) {
                    return answer;
                }
            }
            _ if forwarded => return not_leader(),
            Leader::Other { node, addr } => match pass(m, node, &addr, &req).await {
                Ok(answer) if !answer.headers().contains_key(NOT_LEADER) => return answer,
                Ok(_) => last = format!("{node} does not lead any more"),
                Err(e) => last = format!("{node} ({addr}): {e}"),
            },
            Leader::Nobody => {}
        }
        if c.manager_now().is_none() {
            // It was demoted meanwhile; maybe that was what it passed on. All else is a worker's now.
            let done = super::nodes::demoted(c, &req.path, &req.body);
            return match done {
                Some(answer) => answer,
                None => next.run(req.rebuild()).await,
            };
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Fail(m.no_leader(&last)).into_response();
        }
        let _ = tokio::time::timeout(left.min(AGAIN), leader.changed()).await;
    }
}

impl Whole {
    fn rebuild(&self) -> Request {
        let mut req = Request::new(Body::from(self.body.clone()));
        *req.method_mut() = self.method.clone();
        // It came from a request line.
        *req.uri_mut() = self.path.parse().unwrap_or_default();
        *req.headers_mut() = self.headers.clone();
        *req.extensions_mut() = self.extensions.clone();
        req
    }
}

async fn pass(m: &Manager, node: NodeId, addr: &str, req: &Whole) -> std::io::Result<Response> {
    let to: SocketAddr = addr.parse().map_err(std::io::Error::other)?;
    let request = hyper::Request::builder()
        .method(req.method.clone())
        .uri(&req.path)
        .header(header::HOST, "netd")
        .header(header::CONTENT_TYPE, "application/json")
        .header(REQUEST_HEADER, format!("{:x}", req.id))
        .body(Full::new(req.body.clone()))
        .map_err(std::io::Error::other)?;
    let (head, body) = m.forwarder.send(node, to, request).await?.into_parts();
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = head.status;
    for name in [header::CONTENT_TYPE, NOT_LEADER] {
        if let Some(v) = head.headers.get(&name) {
            answer.headers_mut().insert(name, v.clone());
        }
    }
    Ok(answer)
}

pub(super) fn not_leader() -> Response {
    elsewhere((StatusCode::SERVICE_UNAVAILABLE, "").into_response())
}

/// Marks an answer that is none for the client.
fn elsewhere(mut answer: Response) -> Response {
    answer.headers_mut().insert(NOT_LEADER, HeaderValue::from_static("1"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_place() {
        for (method, path, want) in [
            (Method::GET, "/v1/status", Place::Here),
            (Method::PUT, "/v1/endpoints/a", Place::Here),
            (Method::PUT, "/v1/tasks/web.1/status", Place::Here),
            (Method::POST, "/v1/cluster/leave", Place::Here),
            (Method::GET, "/v1/cluster/members", Place::Here),
            (Method::GET, "/v1/convergence", Place::Leader),
            (Method::GET, "/v1/networks", Place::Read),
            (Method::GET, "/v1/networks/app", Place::Read),
            (Method::GET, "/v1/nodes/n1", Place::Read),
            (Method::GET, "/v1/cluster/token", Place::Read),
            (Method::PUT, "/v1/networks/app", Place::Leader),
            (Method::DELETE, "/v1/nodes/n3", Place::Leader),
            (Method::POST, "/v1/publish", Place::Leader),
            (Method::POST, "/v1/cluster/update", Place::Leader),
            (Method::GET, "/v1/services/web/tasks", Place::Leader),
            (Method::GET, "/v1/services/web", Place::Read),
            (Method::GET, "/v1/services/tasks", Place::Leader),
            (Method::GET, "/v1/nodes/n1/tasks", Place::Leader),
            (Method::GET, "/v1/tasks", Place::Leader),
            (Method::POST, "/v1/tasks/web.1/logs", Place::Leader),
            (Method::POST, "/v1/services/web/logs", Place::Leader),
            (Method::GET, "/v1/tasks/web.1", Place::Leader),
            (Method::GET, "/nonsense", Place::Here),
        ] {
            assert_eq!(place(&method, path), want, "{method} {path}");
        }
    }
}
