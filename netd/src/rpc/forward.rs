//! Requests of the socket's API that one manager passes on to another: HTTP/1.1 on the managers' port, behind both
//! certificates.

use std::{
    collections::BTreeMap,
    io::{Error, ErrorKind, Result},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Extension, Router};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, client::conn::http1::SendRequest};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use model::{Intent, NodeId};
use tokio::{net::TcpStream, sync::watch, time::timeout};

use super::{HANDSHAKE, MAX_DOWN, Stream, frame, message::ToManager};
use crate::identity::{IdentityError, PeerId, Tls, admit_manager};

/// Connections kept open to one manager between requests.
const MAX_IDLE: usize = 64;
/// Longest time for an answer: what a change may take, and a little.
const ANSWER: Duration = Duration::from_secs(15);
/// Longest time for a request's head to arrive; an idle connection ends after it.
const HEAD: Duration = Duration::from_secs(60);

/// A request that has come this way, and from whom: it is passed on no further.
#[derive(Debug, Clone)]
pub struct Forwarded(pub PeerId);

/// Answers requests on a stream until it ends.
pub async fn serve(stream: Stream, peer: PeerId, router: Router) -> Result<()> {
    let service = TowerToHyperService::new(router.layer(Extension(Forwarded(peer))));
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(Error::other)
}

type Sender = SendRequest<Full<Bytes>>;

/// Passes requests on; keeps connections for the next ones.
pub struct Forwarder {
    tls: Arc<Tls>,
    intent: watch::Receiver<Arc<Intent>>,
    idle: Mutex<BTreeMap<SocketAddr, Vec<Sender>>>,
    /// With which of this node's certificates the idle connections were made: they end with it.
    made_with: AtomicU64,
}

impl Forwarder {
    /// `intent` says who is a manager.
    pub fn new(tls: Arc<Tls>, intent: watch::Receiver<Arc<Intent>>) -> Forwarder {
        Forwarder {
            tls,
            intent,
            idle: Mutex::default(),
            made_with: AtomicU64::new(0),
        }
    }

    fn idle(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Vec<Sender>>> {
        self.idle.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// This node's own address has changed: connections that hang on the old one are of no use.
    pub fn anew(&self) {
        self.idle().clear();
    }

    /// Sends a request to a manager and reads the whole answer. After an error nobody knows whether it was carried out.
    pub async fn send(&self, node: NodeId, addr: SocketAddr, request: Request<Full<Bytes>>) -> Result<Response<Bytes>> {
        let exchange = async {
            let mut sender = match self.take(addr) {
                Some(s) => s,
                None => self.connect(node, addr).await?,
            };
            let answer = sender.send_request(request).await.map_err(Error::other)?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_DOWN).collect().await.map_err(Error::other)?;
            self.put(addr, sender);
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        let mut intent = self.intent.clone();
        let elsewhere = |i: &Arc<Intent>| {
            let at = i
                .nodes
                .get(&node)
                .and_then(|n| n.rpc.as_ref()?.parse::<SocketAddr>().ok());
            at.is_some_and(|at| at != addr)
        };
        tokio::select! {
            answer = timeout(ANSWER, exchange) => {
                answer.unwrap_or_else(|_| Err(Error::new(ErrorKind::TimedOut, "no answer")))
            }
            // Nothing comes from there any more.
            Ok(_) = intent.wait_for(elsewhere) => Err(Error::new(ErrorKind::NotConnected, "it has moved")),
        }
    }

    fn take(&self, addr: SocketAddr) -> Option<Sender> {
        let mut idle = self.idle();
        let now = *self.tls.replaced().borrow();
        if self.made_with.swap(now, Ordering::Relaxed) != now {
            idle.clear();
        }
        let all = idle.get_mut(&addr)?;
        while let Some(s) = all.pop() {
            if s.is_ready() {
                return Some(s);
            }
        }
        None
    }

    fn put(&self, addr: SocketAddr, sender: Sender) {
        let mut idle = self.idle();
        // Those of former leaders are of no use.
        idle.retain(|a, _| *a == addr);
        let all = idle.entry(addr).or_default();
        if all.len() < MAX_IDLE {
            all.push(sender);
        }
    }

    async fn connect(&self, node: NodeId, addr: SocketAddr) -> Result<Sender> {
        let open = async {
            let tcp = TcpStream::connect(addr).await?;
            tcp.set_nodelay(true)?;
            let (mut stream, who) = self.tls.connect(tcp).await?;
            if who.node != node {
                let other = IdentityError::Other {
                    want: node,
                    got: who.node,
                };
                return Err(Error::other(other));
            }
            admit_manager(&self.intent.borrow(), &who).map_err(Error::other)?;
            frame::write(&mut stream, &ToManager::Http).await?;
            Ok(stream)
        };
        let stream = timeout(HANDSHAKE, open)
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::TimedOut, "it does not answer")))?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(Error::other)?;
        tokio::spawn(async move {
            // Its error reaches the one who waits for the answer, too.
            let _ = connection.await;
        });
        Ok(sender)
    }
}
