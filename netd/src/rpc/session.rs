//! The manager's side of one node's stream.

use std::{
    io::{Error, ErrorKind, Result},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use model::{
    error::{ApiError, Code},
    ids::NodeId,
    intent::{Intent, Role},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, interval, sleep_until, timeout},
};

use super::{
    HANDSHAKE, IDLE, Leader, MAX_REQUESTS, MAX_UP, MISSED, beat, frame,
    hub::Hub,
    message::{Reply, Request, ToManager, ToNode},
    rounds::Round,
};
use crate::identity::{Csr, IdentityError, PeerId, admit_node};

/// How often what all nodes hold is looked at while a node waits for that.
const HELD_EVERY: Duration = Duration::from_millis(100);

/// How often a manager's node is sent the intent.
const FOR_MANAGERS: Duration = Duration::from_secs(1);

/// Serves a stream until it ends, from its greeting on (what the node knows, its version). `peer` is who the certificate says it is; none: this process.
pub(super) async fn serve<S>(
    hub: &Hub,
    stream: S,
    node: NodeId,
    peer: Option<PeerId>,
    from: Option<SocketAddr>,
    revision: u64,
    version: String,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (rd, mut wr) = tokio::io::split(stream);
    // Before anything is taken from it: a stranger must not end the stream of the node that it poses as.
    let first = hub.port.intent().borrow().clone();
    let got = match peer.as_ref().map_or(Ok(()), |p| admit_node(&first, p)) {
        Err(e) => Err(Error::other(e)),
        Ok(()) => {
            let (number, out, held) = hub.open(node, version, from);
            let mut s = Session {
                hub,
                node,
                peer,
                out,
                held,
                sent: Arc::default(),
                ahead: 0,
                keys: Arc::new([]),
                leaving: false,
            };
            let got = s.run(&mut wr, rd, revision).await;
            hub.close(node, number);
            got
        }
    };
    // A removed node is cut off by the first thing that happens on its stream, whichever that is.
    let now = hub.port.intent().borrow().clone();
    hub.retain(&now);
    if let Err(e) = &got
        && let Some(why) = e.get_ref().and_then(|e| e.downcast_ref::<IdentityError>())
    {
        let refusal = ApiError::new(Code::Forbidden, why.to_string(), "");
        let _ = timeout(HANDSHAKE, frame::write(&mut wr, &ToNode::Refused(refusal))).await;
    }
    got
}

struct Session<'a> {
    hub: &'a Hub,
    node: NodeId,
    peer: Option<PeerId>,
    out: mpsc::Receiver<ToNode>,
    /// Somebody holds other rows of this node than before.
    held: Arc<Notify>,
    /// What the node knows of the intent.
    sent: Arc<Intent>,
    /// Revision that the node knew when it came.
    ahead: u64,
    keys: Arc<[cluster::seal::Key]>,
    /// The node has asked to be taken out.
    leaving: bool,
}

impl Session<'_> {
    fn admit(&self, intent: &Intent) -> Result<()> {
        match &self.peer {
            Some(p) => admit_node(intent, p).map_err(Error::other),
            None => Ok(()),
        }
    }

    async fn run(
        &mut self,
        wr: &mut (impl AsyncWrite + Unpin),
        rd: impl AsyncRead + Unpin + Send + 'static,
        revision: u64,
    ) -> Result<()> {
        let intent = self.hub.port.intent();
        let newest = intent.borrow().revision;
        let mut leader = self.hub.port.leader();
        let first = leader.borrow_and_update().clone();
        self.send_leader(wr, &first).await?;
        // A node that was let in just now finds itself in what it is told first.
        let mut rounds = self.hub.rounds();
        let now = rounds.wait_for(|r| r.intent.revision >= newest).await;
        let now = now.map_err(Error::other)?.clone();
        self.admit(&intent.borrow())?;
        self.send_keys(wr, &now).await?;
        self.ahead = revision;
        if now.intent.revision == revision {
            self.sent = now.intent.clone();
        } else {
            if let Some((missed, tip)) = self.hub.missed(revision) {
                for frame in missed {
                    send(wr, &frame).await?;
                }
                self.sent = tip;
            }
            self.send_intent(wr, &now).await?;
        }
        let mut messages = read_all(rd, MAX_UP, intent.clone());
        let mut every = beat(&now.intent);
        drop(now);
        let mut ping = interval(every);
        let mut held = None;
        // When that is looked at next, and when it was last.
        let mut look = Some(Instant::now());
        let mut looked = Instant::now();
        let mut late = None;
        let (replies_tx, mut replies) = mpsc::channel::<ToNode>(MAX_REQUESTS);
        let room = Arc::new(Semaphore::new(MAX_REQUESTS));
        loop {
            tokio::select! {
                m = messages.recv() => {
                    let m = m.unwrap_or(Err(ErrorKind::UnexpectedEof.into()))?;
                    // Each message is checked: the node may have been removed since the last one.
                    let admitted = self.admit(&intent.borrow());
                    if let Err(e) = admitted {
                        return self.farewell(wr, &mut replies, e).await;
                    }
                    self.take(m, &room, &replies_tx);
                }
                changed = rounds.changed() => {
                    changed.map_err(Error::other)?;
                    let now = rounds.borrow_and_update().clone();
                    if every != beat(&now.intent) {
                        every = beat(&now.intent);
                        ping = interval(every);
                    }
                    let admitted = self.admit(&intent.borrow());
                    if let Err(e) = admitted {
                        return self.farewell(wr, &mut replies, e).await;
                    }
                    self.send_keys(wr, &now).await?;
                    if self.may_wait(&now.intent) {
                        late.get_or_insert_with(|| Instant::now() + FOR_MANAGERS);
                    } else {
                        self.send_intent(wr, &now).await?;
                    }
                }
                () = sleep_until(late.unwrap_or_else(Instant::now)), if late.is_some() => {
                    late = None;
                    let now = rounds.borrow().clone();
                    self.send_intent(wr, &now).await?;
                }
                changed = leader.changed() => {
                    changed.map_err(Error::other)?;
                    let now = leader.borrow_and_update().clone();
                    self.send_leader(wr, &now).await?;
                }
                m = self.out.recv() => match m {
                    Some(m) => send(wr, &frame::encode(&m)?).await?,
                    None => return Err(Error::other("the node has opened another stream")),
                },
                Some(m) = replies.recv() => {
                    self.renewed(&m);
                    send(wr, &frame::encode(&m)?).await?;
                }
                () = self.held.notified(), if look.is_none() => look = Some(looked + HELD_EVERY),
                () = sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {
                    let (all, newest) = self.hub.held(self.node, &intent.borrow().clone());
                    looked = Instant::now();
                    // Who is waited for may die, which no report tells.
                    look = (newest > all.unwrap_or(0)).then(|| looked + HELD_EVERY);
                    if let Some(version) = all && all != held {
                        held = all;
                        send(wr, &frame::encode(&ToNode::Held { version })?).await?;
                    }
                }
                _ = ping.tick() => {
                    // Also a certificate that ends meanwhile ends the stream.
                    let admitted = self.admit(&intent.borrow());
                    if let Err(e) = admitted {
                        return self.farewell(wr, &mut replies, e).await;
                    }
                    send(wr, &frame::encode(&ToNode::Ping)?).await?;
                }
            }
        }
    }

    /// A certificate that the node gets on this very stream counts for it from now on: renewing breaks nothing off.
    fn renewed(&mut self, m: &ToNode) {
        if let (
            Some(peer),
            ToNode::Reply {
                reply: Ok(Reply::Certificate(issued)),
                ..
            },
        ) = (&mut self.peer, m)
            && let Ok(new) = PeerId::of_pem(&issued.certificate)
            && (new.node, &new.key) == (peer.node, &peer.key)
        {
            *peer = new;
        }
    }

    /// The node is no member any more. If that is what it asked for, it hears so first.
    async fn farewell(
        &self,
        wr: &mut (impl AsyncWrite + Unpin),
        replies: &mut mpsc::Receiver<ToNode>,
        refusal: Error,
    ) -> Result<()> {
        while self.leaving
            && let Ok(Some(m)) = timeout(HANDSHAKE, replies.recv()).await
        {
            let left = matches!(
                m,
                ToNode::Reply {
                    reply: Ok(Reply::Left),
                    ..
                }
            );
            send(wr, &frame::encode(&m)?).await?;
            if left {
                break;
            }
        }
        Err(refusal)
    }

    async fn send_keys(&mut self, wr: &mut (impl AsyncWrite + Unpin), now: &Round) -> Result<()> {
        let keys = now.keys(&*self.hub.port).map_err(Error::other)?;
        if keys != self.keys {
            send(wr, &frame::encode(&ToNode::Welcome { keys: keys.to_vec() })?).await?;
            self.keys = keys;
        }
        Ok(())
    }

    async fn send_leader(&self, wr: &mut (impl AsyncWrite + Unpin), leader: &Leader) -> Result<()> {
        if let Leader::Other { node, addr } = leader {
            let hint = ToNode::Leader {
                node: *node,
                addr: addr.clone(),
            };
            send(wr, &frame::encode(&hint)?).await?;
        }
        Ok(())
    }

    /// A manager's node has the log; what comes on this stream is for one that was left out of it, and need not hurry.
    fn may_wait(&self, now: &Intent) -> bool {
        let role = |i: &Intent| i.nodes.get(&self.node).map(|n| n.role);
        role(now) == Some(Role::Manager) && role(&self.sent) == role(now)
    }

    async fn send_intent(&mut self, wr: &mut (impl AsyncWrite + Unpin), now: &Round) -> Result<()> {
        let revision = now.intent.revision;
        if revision <= self.ahead && self.sent.revision == 0 {
            // The node knows more than this manager, which lags: it gets all of what comes after that.
            return Ok(());
        }
        // A node that came back may have been told of a later round already.
        if revision > self.sent.revision {
            let frame = self.hub.step(&self.sent, now)?;
            send(wr, &frame).await?;
            self.sent = now.intent.clone();
        }
        Ok(())
    }

    fn take(&mut self, m: ToManager, room: &Arc<Semaphore>, replies: &mpsc::Sender<ToNode>) {
        match m {
            ToManager::Report(r) => self.hub.report(self.node, *r),
            ToManager::Answer { id, answer } => self.hub.answered(self.node, id, answer),
            ToManager::Request { id, request } => {
                self.leaving |= matches!(request, Request::Leave);
                let (hub, node) = (self.hub.clone(), self.node);
                let (replies, permit) = (replies.clone(), room.clone().try_acquire_owned());
                tokio::spawn(async move {
                    let reply = match permit {
                        Ok(_permit) => answer(&hub, node, request).await,
                        Err(_) => Err(ApiError::new(
                            Code::Unavailable,
                            format!("{MAX_REQUESTS} requests of {node} are under way"),
                            "again in a second",
                        )),
                    };
                    let _ = replies.send(ToNode::Reply { id, reply }).await;
                });
            }
            // A second hello changes nothing.
            ToManager::Hello { .. } | ToManager::Ping | ToManager::Raft { .. } | ToManager::Http => {}
        }
    }
}

/// A node that does not read is cut off: what it misses it gets when it comes again.
async fn send(wr: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<()> {
    timeout(IDLE, async {
        wr.write_all(frame).await?;
        wr.flush().await
    })
    .await?
}

async fn answer(hub: &Hub, node: NodeId, request: Request) -> std::result::Result<Reply, ApiError> {
    let port = &hub.port;
    match request {
        Request::NeedBlock { vni } => {
            let number = port.need_block(node, vni).await?;
            Ok(Reply::Block { number })
        }
        Request::Query { path } => {
            let (status, body) = port.query(node, path).await;
            Ok(Reply::Query { status, body })
        }
        Request::Raft { old } => port.raft_id(node, old).await.map(|id| Reply::Raft { id }),
        Request::Leave => port.remove_node(node).await.map(|()| Reply::Left),
        Request::Renew { csr } => {
            let intent = port.intent().borrow().clone();
            let csr = Csr::parse(&csr)?;
            let known = intent.nodes.get(&node).filter(|n| n.key == csr.key());
            let role = known.map(|n| n.role).ok_or_else(|| {
                ApiError::new(
                    Code::Forbidden,
                    format!("the request is not made with the key that {node} joined with"),
                    "netctl cluster leave, then join again",
                )
            })?;
            Ok(Reply::Certificate(port.certify(csr, node, role).await?))
        }
    }
}

/// Reads messages in a task of its own, because reading a frame must not be broken off. Ends with the stream, with
/// silence of [`MISSED`] heartbeats, or when the receiver is dropped.
pub(super) fn read_all<T>(
    mut rd: impl AsyncRead + Unpin + Send + 'static,
    max: usize,
    intent: watch::Receiver<Arc<Intent>>,
) -> mpsc::Receiver<Result<T>>
where
    T: serde::de::DeserializeOwned + Send + 'static,
{
    let (tx, rx) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let since = Instant::now();
            let silent = || since + beat(&intent.borrow()) * MISSED;
            let read = frame::read_bytes(&mut rd, max);
            tokio::pin!(read);
            let got = loop {
                let until = silent();
                tokio::select! {
                    got = &mut read => break Ok(got),
                    // The setting may have changed while nothing came.
                    () = sleep_until(until) => if silent() <= until {
                        break Err(());
                    },
                    () = tx.closed() => return,
                }
            };
            let got = match got {
                Ok(Ok(bytes)) => match serde_json::from_slice(&bytes) {
                    Ok(m) => Ok(m),
                    Err(e) => {
                        // Most likely a message of a newer version.
                        tracing::debug!(error = %e, "a message was skipped");
                        continue;
                    }
                },
                Ok(Err(e)) => Err(e),
                Err(()) => Err(ErrorKind::TimedOut.into()),
            };
            let end = got.is_err();
            if tx.send(got).await.is_err() || end {
                return;
            }
        }
    });
    rx
}
