//! The manager's side: what nodes reported, and who can be asked.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use model::{
    api::{NodeHealth, TaskStatus},
    ids::{EndpointId, NodeId},
    intent::Intent,
};
use tokio::{
    io::DuplexStream,
    sync::{Notify, mpsc, oneshot, watch},
};

use super::{
    ManagerPort,
    held::Held,
    message::{Answer, Ask, Report, ToNode},
    recent::{Recent, Way},
    rounds::{self, Round},
    session,
};
use crate::tasks::{Reported, follows};

/// A node's last report.
#[derive(Debug, Clone)]
pub struct NodeReport {
    /// What it said.
    pub report: Report,
    /// When.
    pub at: Instant,
    /// Version of its netd.
    pub version: String,
    /// Whether its stream is open.
    pub connected: bool,
    /// Where it came from; none: this very process.
    pub from: Option<SocketAddr>,
}

/// Why a node did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It has no stream open to this manager.
    #[error("{0} is not connected to this manager; try: netctl node ls")]
    NotConnected(NodeId),
    /// It did not answer in time.
    #[error("{0} did not answer in time; try: again, or netctl node inspect {0}")]
    Timeout(NodeId),
}

/// Messages that wait for a node; when there are more, its stream is closed: it has stopped reading.
pub(super) const MAX_WAITING: usize = 256;
/// Before a question is asked again of a node that has come by another stream.
const ANEW: Duration = Duration::from_millis(20);

/// A stream that is open.
struct Open {
    number: u64,
    to: mpsc::Sender<ToNode>,
    /// Somebody holds other rows of this node than before.
    held: Arc<Notify>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeId, Arc<NodeReport>>,
    sessions: BTreeMap<NodeId, Open>,
    count: u64,
    asked: BTreeMap<u64, (NodeId, oneshot::Sender<Answer>)>,
    held: Held,
    /// For nodes that were away.
    recent: Recent,
}

/// Shared by all streams; clones are the same hub.
#[derive(Clone)]
pub struct Hub {
    pub(super) port: Arc<dyn ManagerPort>,
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    /// One for all clones: what else listens is a stream.
    rounds: Arc<watch::Receiver<Arc<Round>>>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub on a manager. Panics outside of an async runtime: what it tells of the intent is made in a task of its own.
    pub fn new(port: Arc<dyn ManagerPort>) -> Hub {
        let (state, changed) = (Arc::<Mutex<State>>::default(), Arc::new(watch::Sender::new(0)));
        let rounds = rounds::start(&port, {
            let (state, changed) = (state.clone(), changed.clone());
            move |intent| retain(&state, &changed, intent)
        });
        Hub {
            port,
            state,
            changed,
            rounds: Arc::new(rounds),
        }
    }

    /// What streams are told of the intent.
    pub(super) fn rounds(&self) -> watch::Receiver<Arc<Round>> {
        (*self.rounds).clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What nodes reported last.
    pub fn snapshot(&self) -> BTreeMap<NodeId, Arc<NodeReport>> {
        self.lock().nodes.clone()
    }

    /// Hands every node's last report to `look`; nothing may be asked of the hub meanwhile.
    pub fn each(&self, mut look: impl FnMut(NodeId, &Report)) {
        let s = self.lock();
        s.nodes.iter().for_each(|(id, n)| look(*id, &n.report));
    }

    /// What nodes reported last of the tasks that `wanted` says.
    pub fn tasks(&self, wanted: impl Fn(&EndpointId, &TaskStatus) -> bool) -> Reported {
        let mut out = Reported::new();
        self.each(|node, report| {
            let some = report.tasks.iter().filter(|(id, t)| wanted(id, t));
            let some: BTreeMap<_, _> = some.map(|(id, t)| (id.clone(), t.clone())).collect();
            out.insert(node, some);
        });
        out
    }

    /// Whether a node's stream is open here.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.lock().sessions.contains_key(&node)
    }

    /// Rises when a report, or whether a node is connected, has changed.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Asks a node something.
    pub async fn ask(&self, node: NodeId, ask: Ask, timeout: Duration) -> Result<Answer, AskError> {
        let id = {
            let mut s = self.lock();
            s.count += 1;
            s.count
        };
        let until = Instant::now() + timeout * 2;
        let got = loop {
            let (tx, rx) = oneshot::channel();
            self.lock().asked.insert(id, (node, tx));
            // One that lost its manager tries again each few seconds: it is given twice the time to come.
            let left = until.saturating_duration_since(Instant::now());
            let Ok(Some(to)) = tokio::time::timeout(left, self.session(node)).await else {
                break Err(AskError::NotConnected(node));
            };
            let talk = async {
                let ask = ask.clone();
                to.send(ToNode::Ask { id, ask }).await.ok()?;
                rx.await.ok()
            };
            match tokio::time::timeout(timeout, talk).await {
                Ok(Some(a)) => break Ok(a),
                // It has come by another stream meanwhile (it, or this manager, has moved), or will in a moment.
                Ok(None) => tokio::time::sleep(ANEW).await,
                Err(_) => break Err(AskError::Timeout(node)),
            }
        };
        self.lock().asked.remove(&id);
        got
    }

    /// The way to a node, as soon as there is one: after a change of leader all nodes come within a moment.
    async fn session(&self, node: NodeId) -> Option<mpsc::Sender<ToNode>> {
        let mut changed = self.changed.subscribe();
        loop {
            let to = self.lock().sessions.get(&node).map(|s| s.to.clone());
            if to.is_some() {
                return to;
            }
            changed.changed().await.ok()?;
        }
    }

    /// A stream for the manager's own node, inside this process; hand it to an [`Uplink`](super::Uplink).
    pub(super) fn local(&self, node: NodeId, revision: u64, version: String) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(256 << 10);
        let hub = self.clone();
        tokio::spawn(async move {
            if let Err(e) = session::serve(&hub, ours, node, None, None, revision, version).await {
                tracing::debug!(%node, error = %e, "local stream ended");
            }
        });
        theirs
    }

    /// A node's stream begins; a former one of the same node ends.
    pub(super) fn open(
        &self,
        node: NodeId,
        version: String,
        from: Option<SocketAddr>,
    ) -> (u64, mpsc::Receiver<ToNode>, Arc<Notify>) {
        let (to, rx) = mpsc::channel(MAX_WAITING);
        let held = Arc::new(Notify::new());
        let mut s = self.lock();
        s.count += 1;
        let number = s.count;
        let open = Open {
            number,
            to,
            held: held.clone(),
        };
        if s.sessions.insert(node, open).is_some() {
            // Nobody answers there any more.
            s.asked.retain(|_, (of, _)| *of != node);
        }
        let new = || NodeReport {
            report: Report::default(),
            at: Instant::now(),
            version: String::new(),
            connected: true,
            from,
        };
        let entry = Arc::make_mut(s.nodes.entry(node).or_insert_with(|| new().into()));
        entry.connected = true;
        entry.version = version;
        entry.from = from;
        drop(s);
        self.bump();
        (number, rx, held)
    }

    /// A node's stream has ended.
    pub(super) fn close(&self, node: NodeId, number: u64) {
        let mut s = self.lock();
        if s.sessions.get(&node).is_some_and(|s| s.number == number) {
            s.sessions.remove(&node);
            s.asked.retain(|_, (of, _)| *of != node);
            if let Some(n) = s.nodes.get_mut(&node) {
                Arc::make_mut(n).connected = false;
            }
        }
        drop(s);
        self.bump();
    }

    pub(super) fn report(&self, node: NodeId, mut report: Report) {
        let now = Instant::now();
        let mut s = self.lock();
        let State {
            nodes, held, sessions, ..
        } = &mut *s;
        let Some(entry) = nodes.get_mut(&node).map(Arc::make_mut) else {
            return;
        };
        for owner in held.report(node, &report.held) {
            if let Some(s) = sessions.get(&owner) {
                s.held.notify_one();
            }
        }
        for (id, next) in &mut report.tasks {
            // What makes no sense is not believed. After an end it is another task, whose beginning was passed over.
            if let Some(before) = entry.report.tasks.get(id)
                && (!next.state.is_told_by_nodes() || (!before.state.is_end() && !follows(before, next)))
            {
                next.clone_from(before);
            }
        }
        entry.report = report;
        entry.at = now;
        drop(s);
        self.bump();
    }

    pub(super) fn answered(&self, node: NodeId, id: u64, answer: Answer) {
        let mut s = self.lock();
        // Another node's answer to this question does not count.
        if s.asked.get(&id).is_some_and(|(of, _)| *of == node)
            && let Some((_, tx)) = s.asked.remove(&id)
        {
            let _ = tx.send(answer);
        }
    }

    /// The version of a node's rows that all living nodes hold, and the newest that any holds.
    pub(super) fn held(&self, owner: NodeId, intent: &Intent) -> (Option<u64>, u64) {
        let living = intent.nodes.keys().copied();
        let living = living.filter(|n| self.port.health(*n) == NodeHealth::Ready);
        let held = &self.lock().held;
        (held.by_all(owner, living), held.newest(owner))
    }

    /// Forgets nodes that the intent no longer has.
    pub(super) fn retain(&self, intent: &Intent) {
        retain(&self.state, &self.changed, intent);
    }

    /// The way from an older intent to a round's as a frame, made once for all streams that take it, and kept for nodes
    /// that come back.
    pub(super) fn step(&self, from: &Intent, round: &Round) -> std::io::Result<Arc<[u8]>> {
        let frame = round.frame(from)?;
        self.lock().recent.push(from.revision, &round.intent, &frame);
        Ok(frame)
    }

    /// Increments for a node that was away since a revision, and the intent that they lead to; `None`: too long ago.
    pub(super) fn missed(&self, revision: u64) -> Option<Way> {
        self.lock().recent.since(revision)
    }

    fn bump(&self) {
        bump(&self.changed);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // No code panics while it holds the lock; if one did, the maps would still be whole.
    state.lock().unwrap_or_else(|e| e.into_inner())
}

fn bump(changed: &watch::Sender<u64>) {
    changed.send_modify(|n| *n += 1);
}

fn retain(state: &Mutex<State>, changed: &watch::Sender<u64>, intent: &Intent) {
    let mut s = lock(state);
    let before = s.nodes.len();
    s.nodes.retain(|id, _| intent.nodes.contains_key(id));
    let fewer = s.nodes.len() < before;
    drop(s);
    if fewer {
        bump(changed);
    }
}
