//! The node's side of the stream to a manager.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Error, ErrorKind, Result},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use cluster::seal::Key;
use futures_util::{StreamExt, stream::FuturesUnordered};
use model::{
    error::{ApiError, Code},
    ids::{NodeId, Vni},
    intent::{Intent, Role},
};
use rand::seq::SliceRandom;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, mpsc, oneshot, watch},
    time::{interval, sleep, timeout},
};

use super::{
    HANDSHAKE, IDLE, MAX_DOWN, MAX_REQUESTS, PING_EVERY, frame,
    hub::Hub,
    message::{Answer, Ask, Reply, Report, Request, ToManager, ToNode},
    session::read_all,
};
use crate::identity::{Tls, admit};

/// Pause after the first failure to connect; it doubles with each one.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Head start of one manager's address before the next is tried too.
const STAGGER: Duration = Duration::from_millis(200);
/// How long a request may wait for its answer, connecting included.
const REQUEST: Duration = Duration::from_secs(10);
/// Questions of a manager under way at once.
const MAX_ASKS: usize = 16;

/// Where managers are.
#[derive(Debug, Clone)]
pub enum Managers {
    /// Other nodes: those in the intent, and these.
    Remote {
        /// This node's TLS settings.
        tls: Arc<Tls>,
        /// Known when the node joined.
        first: Vec<SocketAddr>,
    },
    /// This very process.
    Local(Hub),
}

/// Settings.
#[derive(Debug)]
pub struct UplinkConfig {
    /// This node.
    pub me: NodeId,
    /// Version of netd.
    pub version: String,
    /// Where managers are.
    pub managers: Managers,
    /// What is known of the intent; increments are put into it.
    pub intent: watch::Sender<Arc<Intent>>,
}

type Asked = (Ask, oneshot::Sender<Answer>);
type Waiting = (Request, oneshot::Sender<std::result::Result<Reply, ApiError>>);

/// Handle of the stream; clones are the same one. It ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Uplink {
    report: watch::Sender<Option<Report>>,
    requests: mpsc::Sender<Waiting>,
    connected: watch::Receiver<bool>,
    held: watch::Receiver<u64>,
    keys: watch::Receiver<Vec<Key>>,
    places: Arc<watch::Sender<BTreeMap<NodeId, SocketAddr>>>,
    anew: Arc<Notify>,
    also: Arc<watch::Sender<Vec<SocketAddr>>>,
}

impl Uplink {
    /// Starts it, and gives what managers ask.
    pub fn start(config: UplinkConfig) -> (Uplink, mpsc::Receiver<Asked>) {
        let (asks, asked) = mpsc::channel(MAX_ASKS);
        let (requests, waiting) = mpsc::channel(MAX_REQUESTS);
        let report = watch::Sender::new(None);
        let connected = watch::Sender::new(false);
        let held = watch::Sender::new(0);
        let keys = watch::Sender::new(Vec::new());
        let handle = Uplink {
            report: report.clone(),
            requests,
            connected: connected.subscribe(),
            held: held.subscribe(),
            keys: keys.subscribe(),
            places: Arc::default(),
            anew: Arc::default(),
            also: Arc::default(),
        };
        let run = Run {
            config,
            reports: report.subscribe(),
            waiting,
            asks,
            connected,
            held,
            keys,
            places: handle.places.subscribe(),
            anew: handle.anew.clone(),
            also: handle.also.subscribe(),
            resync: false,
        };
        drop(report);
        tokio::spawn(run.forever());
        (handle, asked)
    }

    /// Tells managers about this node; the last report is told again after each new connection.
    pub fn report(&self, report: Report) {
        self.report.send_if_modified(|old| {
            let new = old.as_ref() != Some(&report);
            *old = Some(report);
            new
        });
    }

    /// Asks for one more address block: its number. The intent that holds it comes by itself.
    pub async fn need_block(&self, vni: Vni) -> std::result::Result<u32, ApiError> {
        match self.request(Request::NeedBlock { vni }).await? {
            Reply::Block { number } => Ok(number),
            _ => Err(odd()),
        }
    }

    /// Reads a path of a manager's API: HTTP status and JSON.
    pub async fn query(&self, path: impl Into<String>) -> std::result::Result<(u16, String), ApiError> {
        match self.request(Request::Query { path: path.into() }).await? {
            Reply::Query { status, body } => Ok((status, body)),
            _ => Err(odd()),
        }
    }

    /// Asks for a new certificate: certificate and CA, PEM.
    pub async fn renew(&self, csr: String) -> std::result::Result<(String, String), ApiError> {
        match self.request(Request::Renew { csr }).await? {
            Reply::Certificate { certificate, ca } => Ok((certificate, ca)),
            _ => Err(odd()),
        }
    }

    /// Asks to be taken out of the cluster.
    pub async fn leave(&self) -> std::result::Result<(), ApiError> {
        self.request(Request::Leave).await.map(|_| ())
    }

    /// Whether a manager is reached.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.clone()
    }

    /// The version up to which all living nodes hold this node's rows.
    pub fn held(&self) -> watch::Receiver<u64> {
        self.held.clone()
    }

    /// Managers' addresses as gossip tells them: a manager that has moved is found before the log's word can come. The
    /// stream to one whose address changes begins anew.
    pub fn managers_at(&self, places: BTreeMap<NodeId, SocketAddr>) {
        self.places.send_if_modified(|old| {
            let new = *old != places;
            *old = places;
            new
        });
    }

    /// Addresses where managers may be, beside those that are known.
    pub fn also(&self, found: Vec<SocketAddr>) {
        self.also.send_replace(found);
    }

    /// This node's own address has changed: what hangs on the old one would only be missed after a while.
    pub fn anew(&self) {
        self.anew.notify_one();
    }

    /// Gossip keys, the one to seal with first; empty until a manager has told them.
    pub fn keys(&self) -> watch::Receiver<Vec<Key>> {
        self.keys.clone()
    }

    async fn request(&self, request: Request) -> std::result::Result<Reply, ApiError> {
        let away = |what: &str| {
            ApiError::new(
                Code::Unavailable,
                format!("no manager answers: {what}"),
                "netctl status, then look at the managers' netd",
            )
        };
        let talk = async {
            let (tx, rx) = oneshot::channel();
            let sent = self.requests.send((request, tx)).await;
            sent.map_err(|_| away("the stream has ended"))?;
            rx.await.map_err(|_| away("the connection broke"))?
        };
        timeout(REQUEST, talk)
            .await
            .unwrap_or_else(|_| Err(away("none within 10 s")))
    }
}

fn odd() -> ApiError {
    ApiError::new(
        Code::Internal,
        "the manager answers another question than was asked",
        "run the same version of netd on all nodes",
    )
}

struct Run {
    config: UplinkConfig,
    reports: watch::Receiver<Option<Report>>,
    waiting: mpsc::Receiver<Waiting>,
    asks: mpsc::Sender<Asked>,
    connected: watch::Sender<bool>,
    held: watch::Sender<u64>,
    keys: watch::Sender<Vec<Key>>,
    places: watch::Receiver<BTreeMap<NodeId, SocketAddr>>,
    anew: Arc<Notify>,
    also: watch::Receiver<Vec<SocketAddr>>,
    /// An increment did not fit: ask for the whole intent.
    resync: bool,
}

impl Run {
    async fn forever(mut self) {
        let mut pause = BACKOFF_MIN;
        while !self.waiting.is_closed() {
            let ended = self.once(&mut pause).await;
            self.connected.send_replace(false);
            match ended {
                Ok(()) => return,
                Err(e) => tracing::debug!(error = %e, "no stream to a manager"),
            }
            // Half of it is chance, so that nodes do not come all at once.
            let jitter = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            let over = tokio::time::sleep(jitter);
            tokio::pin!(over);
            loop {
                tokio::select! {
                    () = &mut over => break,
                    // A new report waits for the stream; an error tells that the handles are gone.
                    changed = self.reports.changed() => if changed.is_err() {
                        return;
                    },
                    // Somebody is elsewhere: no need to wait.
                    () = self.anew.notified() => break,
                    Ok(()) = self.places.changed() => break,
                    Ok(()) = self.also.changed() => break,
                }
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// One stream, from connecting to its end; `Ok`: the handles are gone.
    async fn once(&mut self, pause: &mut Duration) -> Result<()> {
        match self.config.managers.clone() {
            Managers::Local(hub) => {
                let stream = hub.local(self.config.me);
                self.stream(stream, None, pause).await
            }
            Managers::Remote { tls, first } => {
                let (stream, peer) = self.connect(&tls, &first).await?;
                self.stream(stream, Some(peer), pause).await
            }
        }
    }

    async fn connect(
        &self,
        tls: &Tls,
        first: &[SocketAddr],
    ) -> Result<(tokio_rustls::client::TlsStream<TcpStream>, NodeId)> {
        let intent = self.config.intent.borrow().clone();
        let known = intent.nodes.values().filter(|n| n.role == Role::Manager);
        let known = known.filter_map(|n| n.rpc.as_ref()?.parse().ok());
        let told: Vec<SocketAddr> = self.places.borrow().values().copied().collect();
        let also = self.also.borrow().clone();
        let all: BTreeSet<SocketAddr> = known.chain(told).chain(also).chain(first.iter().copied()).collect();
        let mut all: Vec<SocketAddr> = all.into_iter().collect();
        all.shuffle(&mut rand::rng());
        let mut last = Error::new(ErrorKind::NotFound, "no manager's address is known");
        // One that does not answer is not waited for: the next is tried beside it.
        let mut tries: FuturesUnordered<_> = (0u32..)
            .zip(all)
            .map(|(i, addr)| {
                let intent = intent.clone();
                async move {
                    sleep(STAGGER * i).await;
                    match timeout(HANDSHAKE, reach(tls, addr, &intent)).await {
                        Ok(Ok(found)) => Ok(found),
                        Ok(Err(e)) => Err(Error::new(e.kind(), format!("{addr}: {e}"))),
                        Err(_) => Err(Error::new(ErrorKind::TimedOut, format!("{addr}: no answer"))),
                    }
                }
            })
            .collect();
        while let Some(tried) = tries.next().await {
            match tried {
                Ok(found) => return Ok(found),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    async fn stream<S>(&mut self, stream: S, to: Option<NodeId>, pause: &mut Duration) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (rd, mut wr) = tokio::io::split(stream);
        let mut messages = read_all::<ToNode>(rd, MAX_DOWN);
        let revision = match std::mem::take(&mut self.resync) {
            true => 0,
            false => self.config.intent.borrow().revision,
        };
        let hello = ToManager::Hello {
            revision,
            version: self.config.version.clone(),
        };
        write(&mut wr, &hello).await?;
        self.reports.mark_changed();
        let at = |places: &BTreeMap<NodeId, SocketAddr>| to.and_then(|n| places.get(&n).copied());
        let mut place = at(&self.places.borrow_and_update());
        let mut ping = interval(PING_EVERY);
        let mut count = 0u64;
        let mut pending = BTreeMap::new();
        let (answers_tx, mut answers) = mpsc::channel::<(u64, Answer)>(MAX_ASKS);
        loop {
            tokio::select! {
                m = messages.recv() => {
                    let m = m.unwrap_or(Err(ErrorKind::UnexpectedEof.into()))?;
                    *pause = BACKOFF_MIN;
                    match m {
                        ToNode::Welcome { keys } => {
                            self.keys.send_replace(keys);
                            self.connected.send_replace(true);
                        }
                        ToNode::Delta(delta) => self.delta(*delta)?,
                        ToNode::Held { version } => {
                            self.held.send_replace(version);
                        }
                        ToNode::Reply { id, reply } => {
                            if let Some(tx) = pending.remove(&id) {
                                let tx: oneshot::Sender<_> = tx;
                                let _ = tx.send(reply);
                            }
                        }
                        ToNode::Ask { id, ask } => self.ask(id, ask, answers_tx.clone()),
                        ToNode::Refused(e) => {
                            // Trying again soon is of no use.
                            *pause = BACKOFF_MAX;
                            tracing::warn!(error = %e, "the manager refuses this node");
                            return Err(Error::other(e));
                        }
                        ToNode::Ping => {}
                    }
                }
                w = self.waiting.recv() => {
                    let Some((request, tx)) = w else { return Ok(()) };
                    if tx.is_closed() {
                        // Its caller gave up while there was no stream: doing it now would surprise.
                        continue;
                    }
                    count += 1;
                    // Those whose callers gave up make room.
                    pending.retain(|_, tx: &mut oneshot::Sender<_>| !tx.is_closed());
                    pending.insert(count, tx);
                    write(&mut wr, &ToManager::Request { id: count, request }).await?;
                }
                changed = self.reports.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let report = self.reports.borrow_and_update().clone();
                    if let Some(r) = report {
                        write(&mut wr, &ToManager::Report(r)).await?;
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

    fn delta(&mut self, delta: model::intent::IntentDelta) -> Result<()> {
        let mut taken = false;
        let mut delta = Some(delta);
        self.config.intent.send_if_modified(|i| {
            taken = delta.take().is_some_and(|d| Arc::make_mut(i).apply(d));
            taken
        });
        if !taken {
            self.resync = true;
            return Err(Error::other(
                "an increment of the intent does not fit what is known here",
            ));
        }
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

/// A stream to the manager at an address, and who it is.
async fn reach(
    tls: &Tls,
    addr: SocketAddr,
    intent: &Intent,
) -> Result<(tokio_rustls::client::TlsStream<TcpStream>, NodeId)> {
    let tcp = TcpStream::connect(addr).await?;
    tcp.set_nodelay(true)?;
    let (stream, peer) = tls.connect(tcp).await?;
    if peer.role != Role::Manager {
        return Err(Error::other(format!("{} is no manager", peer.node)));
    }
    if intent.revision > 0 {
        admit(intent, &peer).map_err(Error::other)?;
    }
    Ok((stream, peer.node))
}

async fn write(wr: &mut (impl AsyncWrite + Unpin), m: &ToManager) -> Result<()> {
    let frame = frame::encode(m)?;
    timeout(IDLE, async {
        wr.write_all(&frame).await?;
        wr.flush().await
    })
    .await?
}
