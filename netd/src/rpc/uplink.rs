//! The node's side of the stream to a manager.

mod run;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use cluster::seal::Key;
use model::{
    api::IntentTaken,
    error::{ApiError, Code},
    ids::{NodeId, Vni},
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    MAX_REQUESTS,
    hub::Hub,
    message::{Answer, Ask, Reply, Report, Request},
};
use crate::{
    identity::{Issued, Tls},
    known::Known,
};
use run::Run;

/// How long a request may wait for its answer, connecting included.
const REQUEST: Duration = Duration::from_secs(10);
/// Questions of a manager under way at once.
const MAX_ASKS: usize = 16;

/// This node's own part as a manager.
#[derive(Debug, Clone)]
pub struct Local {
    /// Its hub.
    pub hub: Hub,
    /// It leads: then the stream stays inside this process.
    pub leads: bool,
}

/// Settings.
#[derive(Debug)]
pub struct UplinkConfig {
    /// This node.
    pub me: NodeId,
    /// Version of netd.
    pub version: String,
    /// This node's TLS settings.
    pub tls: Arc<Tls>,
    /// Managers known when the node joined; newer ones are in the intent.
    pub first: Vec<SocketAddr>,
    /// This node's own part as a manager, while it has one.
    pub local: watch::Receiver<Option<Local>>,
    /// What is known of the intent; increments are put into it.
    pub intent: Known,
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
    taken: watch::Receiver<IntentTaken>,
    keys: watch::Receiver<Vec<Key>>,
    prefer: watch::Sender<Option<SocketAddr>>,
    leader: watch::Receiver<Option<NodeId>>,
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
        let taken = watch::Sender::new(IntentTaken::default());
        let keys = watch::Sender::new(Vec::new());
        let prefer = watch::Sender::new(None);
        let leader = watch::Sender::new(None);
        let handle = Uplink {
            report: report.clone(),
            requests,
            connected: connected.subscribe(),
            held: held.subscribe(),
            taken: taken.subscribe(),
            keys: keys.subscribe(),
            prefer: prefer.clone(),
            leader: leader.subscribe(),
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
            taken,
            keys,
            preferred: prefer.subscribe(),
            leader,
            places: handle.places.subscribe(),
            anew: handle.anew.clone(),
            also: handle.also.subscribe(),
            resync: false,
            heard: None,
            hint: None,
            pending: BTreeMap::new(),
            count: 0,
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

    /// Asks for a new certificate.
    pub async fn renew(&self, csr: String) -> std::result::Result<Issued, ApiError> {
        match self.request(Request::Renew { csr }).await? {
            Reply::Certificate(issued) => Ok(issued),
            _ => Err(odd()),
        }
    }

    /// Asks to be taken out of the cluster.
    pub async fn leave(&self) -> std::result::Result<(), ApiError> {
        self.request(Request::Leave).await.map(|_| ())
    }

    /// Asks for an id in Raft to begin a log under; `old` is the one that the intent gives this node.
    pub async fn raft_id(&self, old: u64) -> std::result::Result<u64, ApiError> {
        match self.request(Request::Raft { old }).await? {
            Reply::Raft { id } => Ok(id),
            _ => Err(odd()),
        }
    }

    /// Moves the stream to a manager, if it can be reached there.
    pub fn prefer(&self, addr: SocketAddr) {
        self.prefer.send_replace(Some(addr));
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

    /// Who leads the managers, as far as the one at the other end knows.
    pub fn leader(&self) -> Option<NodeId> {
        *self.leader.borrow()
    }

    /// Whether a manager is reached.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.clone()
    }

    /// The version up to which all living nodes hold this node's rows.
    pub fn held(&self) -> watch::Receiver<u64> {
        self.held.clone()
    }

    /// How the intent has come so far.
    pub fn taken(&self) -> IntentTaken {
        *self.taken.borrow()
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
