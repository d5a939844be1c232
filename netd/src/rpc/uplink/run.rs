//! The task behind an uplink: connects, speaks, moves to the leader, begins again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Error, ErrorKind, Result},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::seal::Key;
use futures_util::{StreamExt, stream::FuturesUnordered};
use model::{
    api::IntentTaken,
    error::{ApiError, Code},
    ids::NodeId,
    intent::{Intent, Role},
};
use rand::seq::SliceRandom;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{interval, sleep, timeout},
};

use super::{
    super::{
        HANDSHAKE, IDLE, MAX_DOWN, beat, frame,
        message::{Answer, Ask, Reply, Report, Request, ToManager, ToNode},
        session::read_all,
    },
    Asked, MAX_ASKS, UplinkConfig, Waiting,
};
use crate::identity::{PeerId, Tls, admit_manager, admit_node, manages};

/// Pause after the first failure to connect; it doubles with each one.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// So long after its last word from a manager a node relies on what it knows of who is one. A demoted manager cannot pose
/// as one, and a node that was away for longer finds managers that were promoted meanwhile.
const FRESH: Duration = Duration::from_secs(60);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Head start of one manager's address before the next is tried too.
const STAGGER: Duration = Duration::from_millis(200);
/// Until a leader that was not reached is tried again, while another manager serves.
const APPROACH_AGAIN: Duration = Duration::from_millis(300);

/// A stream, and the manager at its end.
type Stream = (tokio_rustls::client::TlsStream<TcpStream>, PeerId);
pub(super) type Pending = (Request, oneshot::Sender<std::result::Result<Reply, ApiError>>);

/// How a stream ended well.
enum End {
    /// The handles are gone.
    Over,
    /// A better manager is connected to.
    Move(Box<Stream>, SocketAddr),
    /// This node leads, or does not any more.
    Elsewhere,
}

pub(super) struct Run {
    pub(super) config: UplinkConfig,
    pub(super) reports: watch::Receiver<Option<Report>>,
    pub(super) waiting: mpsc::Receiver<Waiting>,
    pub(super) asks: mpsc::Sender<Asked>,
    pub(super) connected: watch::Sender<bool>,
    pub(super) held: watch::Sender<u64>,
    pub(super) taken: watch::Sender<IntentTaken>,
    pub(super) keys: watch::Sender<Vec<Key>>,
    pub(super) preferred: watch::Receiver<Option<SocketAddr>>,
    pub(super) leader: watch::Sender<Option<NodeId>>,
    pub(super) places: watch::Receiver<BTreeMap<NodeId, SocketAddr>>,
    pub(super) anew: Arc<Notify>,
    pub(super) also: watch::Receiver<Vec<SocketAddr>>,
    /// An increment did not fit: ask for the whole intent.
    pub(super) resync: bool,
    /// When a manager said something last.
    pub(super) heard: Option<Instant>,
    /// Where the leader is said to be.
    pub(super) hint: Option<SocketAddr>,
    /// Requests that wait for an answer; a new stream asks them again.
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) count: u64,
}

impl Run {
    pub(super) async fn forever(mut self) {
        let mut pause = BACKOFF_MIN;
        while !self.waiting.is_closed() {
            let ended = self.once(&mut pause).await;
            self.connected.send_replace(false);
            self.leader.send_replace(None);
            match ended {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) => {
                    tracing::debug!(error = %e, "no stream to a manager");
                    self.config.tls.note(&e);
                    let refusal = e.get_ref().and_then(|e| e.downcast_ref::<ApiError>());
                    if refusal.is_some_and(|e| e.code == Code::Forbidden) {
                        self.config.tls.disowned();
                    }
                    if !self.rest(pause).await {
                        return;
                    }
                    pause = (pause * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// A pause; `false`: the handles are gone.
    async fn rest(&mut self, pause: Duration) -> bool {
        // Half of it is chance, so that nodes do not come all at once.
        let jitter = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        let over = tokio::time::sleep(jitter);
        tokio::pin!(over);
        let mut local = true;
        let mut replaced = self.config.tls.replaced();
        loop {
            tokio::select! {
                () = &mut over => return true,
                // With a new certificate or root it may go better.
                _ = replaced.changed() => return true,
                // Somebody is elsewhere: no need to wait.
                () = self.anew.notified() => return true,
                Ok(()) = self.places.changed() => return true,
                Ok(()) = self.also.changed() => return true,
                // This node became leader: there is somebody to talk to.
                changed = self.config.local.changed(), if local => {
                    local = changed.is_ok();
                    if self.leads() {
                        return true;
                    }
                }
                // A new report waits for the stream; an error tells that the handles are gone.
                changed = self.reports.changed() => if changed.is_err() {
                    return false;
                }
            }
        }
    }

    fn leads(&self) -> bool {
        self.config.local.borrow().as_ref().is_some_and(|l| l.leads)
    }

    /// One stream after the other, from connecting to an end; `false`: the handles are gone.
    async fn once(&mut self, pause: &mut Duration) -> Result<bool> {
        let local = self.config.local.borrow_and_update().clone();
        let ended = match local.filter(|l| l.leads) {
            Some(l) => {
                let hub = l.hub;
                let base = self.base();
                let stream = hub.local(self.config.me, base.revision, self.config.version.clone());
                self.stream(stream, base, None, pause).await?
            }
            None => {
                let (stream, addr) = self.connect().await?;
                self.greet(stream, addr, pause).await?
            }
        };
        let mut ended = ended;
        loop {
            match ended {
                End::Over => return Ok(false),
                End::Elsewhere => return Ok(true),
                End::Move(stream, addr) => ended = self.greet(*stream, addr, pause).await?,
            }
        }
    }

    /// What this node knows; nothing, if increments did not fit it.
    fn base(&mut self) -> Arc<Intent> {
        match std::mem::take(&mut self.resync) {
            true => Arc::default(),
            false => self.config.intent.now(),
        }
    }

    async fn greet(&mut self, (mut stream, peer): Stream, addr: SocketAddr, pause: &mut Duration) -> Result<End> {
        let base = self.base();
        let hello = ToManager::Hello {
            revision: base.revision,
            version: self.config.version.clone(),
        };
        write(&mut stream, &hello).await?;
        self.stream(stream, base, Some((addr, peer)), pause).await
    }

    /// Tries every manager that is known: the leader first, the others in any order.
    async fn connect(&mut self) -> Result<(Stream, SocketAddr)> {
        let intent = self.config.intent.now();
        let known = intent
            .nodes
            .iter()
            .filter(|(id, n)| **id != self.config.me && n.role == Role::Manager);
        let known = known.filter_map(|(_, n)| n.rpc.as_ref()?.parse().ok());
        let told: Vec<SocketAddr> = self.places.borrow().values().copied().collect();
        let also = self.also.borrow().clone();
        let first = self.config.first.iter().copied();
        let all: BTreeSet<SocketAddr> = known.chain(told).chain(also).chain(first).collect();
        let mut all: Vec<SocketAddr> = all.into_iter().collect();
        all.shuffle(&mut rand::rng());
        if let Some(first) = self.hint.take().or(*self.preferred.borrow_and_update()) {
            all.retain(|a| *a != first);
            all.insert(0, first);
        }
        let mine = intent
            .nodes
            .get(&self.config.me)
            .and_then(|n| n.rpc.as_ref()?.parse().ok());
        all.retain(|a| Some(*a) != mine);
        let mut last = Error::new(ErrorKind::NotFound, "no manager's address is known");
        // One that does not answer is not waited for: the next is tried beside it.
        let (tls, fresh) = (&self.config.tls, self.fresh());
        let mut tries: FuturesUnordered<_> = (0u32..)
            .zip(all)
            .map(|(i, addr)| {
                let intent = intent.clone();
                async move {
                    sleep(STAGGER * i).await;
                    (addr, open(tls, &intent, addr, fresh).await)
                }
            })
            .collect();
        while let Some((addr, tried)) = tries.next().await {
            match tried {
                Ok(stream) => return Ok((stream, addr)),
                Err(e) => last = Error::new(e.kind(), format!("{addr}: {e}")),
            }
        }
        Err(last)
    }

    /// Whether what is known of the intent is new enough to say who is a manager.
    fn fresh(&self) -> bool {
        self.heard.is_some_and(|h| h.elapsed() < FRESH)
    }

    /// A stream from its greeting on. `base` is the intent that the manager knows this node to have; `manager`: its address
    /// and who it is, none: this process.
    async fn stream<S>(
        &mut self,
        stream: S,
        mut base: Arc<Intent>,
        manager: Option<(SocketAddr, PeerId)>,
        pause: &mut Duration,
    ) -> Result<End>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let addr = manager.as_ref().map(|(addr, _)| *addr);
        let node = manager.as_ref().map_or(self.config.me, |(_, peer)| peer.node);
        let (rd, mut wr) = tokio::io::split(stream);
        let mut messages = read_all::<ToNode>(rd, MAX_DOWN, self.config.intent.watch());
        self.reports.mark_changed();
        // It says so at once if it does not lead.
        self.leader.send_replace(Some(node));
        self.preferred.borrow_and_update();
        self.pending.retain(|_, (_, tx)| !tx.is_closed());
        for (id, (request, _)) in &self.pending {
            let again = ToManager::Request {
                id: *id,
                request: request.clone(),
            };
            write(&mut wr, &again).await?;
        }
        let there = manager.as_ref().map(|(_, peer)| peer.node);
        let at = |places: &BTreeMap<NodeId, SocketAddr>| there.and_then(|n| places.get(&n).copied());
        let mut place = at(&self.places.borrow_and_update());
        let mut every = beat(&self.config.intent.now());
        let mut ping = interval(every);
        let (answers_tx, mut answers) = mpsc::channel::<(u64, Answer)>(MAX_ASKS);
        let mut better: Option<(JoinHandle<Result<Stream>>, SocketAddr)> = None;
        let mut again: Option<tokio::time::Instant> = None;
        let mut local = true;
        loop {
            tokio::select! {
                m = messages.recv() => {
                    let m = m.unwrap_or(Err(ErrorKind::UnexpectedEof.into()))?;
                    *pause = BACKOFF_MIN;
                    self.heard = Some(Instant::now());
                    match m {
                        ToNode::Welcome { keys } => {
                            self.keys.send_replace(keys);
                            self.connected.send_replace(true);
                        }
                        ToNode::Delta(delta) => {
                            self.delta(&mut base, *delta)?;
                            // It may tell that the one at the other end is no manager any more.
                            let now = self.config.intent.now();
                            if every != beat(&now) {
                                every = beat(&now);
                                ping = interval(every);
                            }
                            manager.as_ref().map_or(Ok(()), |(_, m)| manages(&now, m)).map_err(Error::other)?;
                        }
                        ToNode::Held { version } => {
                            self.held.send_replace(version);
                        }
                        ToNode::Reply { id, reply } => {
                            if let Some((_, tx)) = self.pending.remove(&id) {
                                let _ = tx.send(reply);
                            }
                        }
                        ToNode::Ask { id, ask } => self.ask(id, ask, answers_tx.clone()),
                        ToNode::Leader { node, addr: to } => {
                            self.leader.send_replace(Some(node));
                            if node != self.config.me && let Ok(to) = to.parse() {
                                self.hint = Some(to);
                                self.approach(to, addr, &mut better);
                            }
                        }
                        ToNode::Refused(e) => {
                            // Trying again soon is of no use.
                            *pause = BACKOFF_MAX;
                            tracing::warn!(error = %e, "the manager refuses this node");
                            return Err(Error::other(e));
                        }
                        ToNode::Ping => {}
                    }
                }
                changed = self.preferred.changed() => {
                    let to = *self.preferred.borrow_and_update();
                    if changed.is_ok() && let Some(to) = to {
                        self.approach(to, addr, &mut better);
                    }
                }
                changed = self.config.local.changed(), if local => {
                    local = changed.is_ok();
                    if self.leads() != addr.is_none() {
                        return Ok(End::Elsewhere);
                    }
                }
                reached = arrived(&mut better) => {
                    match reached {
                        // What was asked here is asked there again.
                        Ok((stream, to)) => return Ok(End::Move(Box::new(stream), to)),
                        Err(e) => {
                            tracing::debug!(error = %e, "the leader is not reached");
                            again = Some(tokio::time::Instant::now() + APPROACH_AGAIN);
                        }
                    }
                }
                // It may not have known this node's new certificate yet, or have been busy: it is not told of twice.
                () = tokio::time::sleep_until(again.unwrap_or_else(tokio::time::Instant::now)), if again.is_some() => {
                    again = None;
                    let to = self.hint.or(*self.preferred.borrow());
                    if let Some(to) = to {
                        self.approach(to, addr, &mut better);
                    }
                }
                w = self.waiting.recv() => {
                    let Some((request, tx)) = w else { return Ok(End::Over) };
                    if tx.is_closed() {
                        // Its caller gave up while there was no stream: doing it now would surprise.
                        continue;
                    }
                    self.count += 1;
                    // Those whose callers gave up make room.
                    self.pending.retain(|_, (_, tx)| !tx.is_closed());
                    self.pending.insert(self.count, (request.clone(), tx));
                    write(&mut wr, &ToManager::Request { id: self.count, request }).await?;
                }
                changed = self.reports.changed() => {
                    if changed.is_err() {
                        return Ok(End::Over);
                    }
                    let report = self.reports.borrow_and_update().clone();
                    if let Some(r) = report {
                        write(&mut wr, &ToManager::Report(Box::new(r))).await?;
                    }
                }
                Some((id, answer)) = answers.recv() => {
                    write(&mut wr, &ToManager::Answer { id, answer }).await?;
                }
                Ok(()) = self.places.changed() => {
                    let now = at(&self.places.borrow_and_update());
                    if now != place && place.is_some() {
                        *pause = BACKOFF_MIN;
                        return Err(Error::other("the manager has moved"));
                    }
                    place = now;
                }
                () = self.anew.notified() => {
                    *pause = BACKOFF_MIN;
                    return Err(Error::other("this node has moved"));
                }
                _ = ping.tick() => write(&mut wr, &ToManager::Ping).await?,
            }
        }
    }

    /// Connects to a better manager while this stream goes on.
    fn approach(
        &self,
        to: SocketAddr,
        here: Option<SocketAddr>,
        better: &mut Option<(JoinHandle<Result<Stream>>, SocketAddr)>,
    ) {
        if Some(to) == here
            || better
                .as_ref()
                .is_some_and(|(task, at)| *at == to && !task.is_finished())
        {
            return;
        }
        let (tls, intent, fresh) = (self.config.tls.clone(), self.config.intent.now(), self.fresh());
        let task = tokio::spawn(async move { open(&tls, &intent, to, fresh).await });
        if let Some((old, _)) = better.replace((task, to)) {
            old.abort();
        }
    }

    fn delta(&mut self, base: &mut Arc<Intent>, delta: model::intent::IntentDelta) -> Result<()> {
        let whole = delta.from == 0;
        if !Arc::make_mut(base).apply(delta) {
            self.resync = true;
            return Err(Error::other(
                "an increment of the intent does not fit what is known here",
            ));
        }
        self.taken.send_modify(|t| match whole {
            true => t.whole += 1,
            false => t.increments += 1,
        });
        self.config.intent.offer(base);
        Ok(())
    }

    fn ask(&self, id: u64, ask: Ask, answers: mpsc::Sender<(u64, Answer)>) {
        let (tx, rx) = oneshot::channel();
        let failed = |why: &str| Answer::Failed { why: why.into() };
        let sent = self.asks.try_send((ask, tx)).is_ok();
        tokio::spawn(async move {
            let answer = match sent {
                true => rx.await.unwrap_or_else(|_| failed("netd did not answer itself")),
                false => failed("too many questions at once"),
            };
            let _ = answers.send((id, answer)).await;
        });
    }
}

/// Waits for the better manager; for ever, if there is none.
async fn arrived(better: &mut Option<(JoinHandle<Result<Stream>>, SocketAddr)>) -> Result<(Stream, SocketAddr)> {
    let Some((task, addr)) = better.as_mut() else {
        return std::future::pending().await;
    };
    let addr = *addr;
    let got = task.await.map_err(Error::other);
    *better = None;
    Ok((got??, addr))
}

/// Connects to a manager. `fresh`: what is known of the intent has the last word on who is one.
async fn open(tls: &Tls, intent: &Intent, addr: SocketAddr, fresh: bool) -> Result<Stream> {
    let one = async {
        let tcp = TcpStream::connect(addr).await?;
        tcp.set_nodelay(true)?;
        let (stream, peer) = tls.connect(tcp).await?;
        if peer.role != Role::Manager {
            return Err(Error::other(format!("{} is no manager", peer.node)));
        }
        // What is known here may be old: a manager that has joined since is one all the same, and so is a worker that was
        // promoted. Ids only grow, so one that was removed is told apart.
        let newest = intent.nodes.keys().next_back();
        if newest.is_some_and(|n| peer.node <= *n) {
            let admitted = if fresh {
                admit_manager(intent, &peer)
            } else {
                admit_node(intent, &peer)
            };
            admitted.map_err(Error::other)?;
        }
        Ok((stream, peer))
    };
    timeout(HANDSHAKE, one)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::TimedOut, "no answer")))
}

async fn write(wr: &mut (impl AsyncWrite + Unpin), m: &ToManager) -> Result<()> {
    let frame = frame::encode(m)?;
    timeout(IDLE, async {
        wr.write_all(&frame).await?;
        wr.flush().await
    })
    .await?
}
