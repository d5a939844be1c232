//! What a manager does beside carrying its own node: founds the cluster, answers the hub, keeps Raft's members as the log
//! wants them, and, where it leads, decides what becomes of dead nodes' slots.

mod found;
mod lead;
mod logs;
mod members;
mod oversee;
mod port;
mod publish;
mod read;
mod request;
mod roll;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock, Weak},
    time::{Duration, Instant},
};

use cluster::state::{Applied, Command, Refusal};
use futures_util::future::join_all;
use http_body_util::Full;
use ipnet::IpNet;
use model::{
    ApiError, Code, Intent, Name, NodeId,
    api::{Convergence, MAX_TASKS, NodeHealth, NodeProgress, TaskView},
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    custodian::{self, LastRead, LogClock},
    daemon::{Cluster, internal},
    gossip::Facts,
    identity::Tls,
    known::Known,
    peers::{Peers, PeersConfig},
    place::Addresses,
    rpc::{Answer, Ask, Forwarder, Hub, Leader},
    store::{ProposeError, Store},
    tasks::TaskBoard,
};

/// How long a living node has to answer a question.
const ASK: Duration = Duration::from_secs(3);
/// Longest wait for a leader to carry a command out.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries, when nothing tells that another one makes sense.
const AGAIN: Duration = Duration::from_millis(50);
/// Between two times that the rooms of this node are told of newer intents: a dozen of them wake up, on every manager, and
/// would take the processors from the next write of a burst. The first of a burst is told at once.
const TOLD_APART: Duration = Duration::from_millis(5);

pub use found::{FirstCommand, found};
pub use request::{REQUEST, RequestId};

/// A manager's part: it begins when the node becomes a manager and ends, whole, when it is one no more.
pub struct Manager {
    /// The log.
    pub store: Store,
    /// Nodes' streams.
    pub hub: Hub,
    /// The other managers.
    pub peers: Peers,
    /// Requests to the leader.
    pub forwarder: Forwarder,
    known: Known,
    /// Log time.
    pub(crate) clock: LogClock,
    tls: Arc<Tls>,
    board: Mutex<TaskBoard>,
    stuck: roll::Stuck,
    addresses: watch::Receiver<Addresses>,
    leader: watch::Sender<Leader>,
    secrets: LastRead,
    /// Ids in Raft that are on their way out: they are not let in again meanwhile.
    leaving: Mutex<BTreeSet<u64>>,
    running: Mutex<JoinSet<()>>,
}

/// What a manager is made of.
pub struct Parts {
    /// The log.
    pub store: Store,
    /// Where the log's messages to other managers go: filled in here.
    pub transport: Arc<OnceLock<Peers>>,
    /// The managers' port.
    pub listener: TcpListener,
    /// Where others reach this node.
    pub addresses: watch::Receiver<Addresses>,
    /// This node's TLS settings.
    pub tls: Arc<Tls>,
    /// The newest intent known on this node.
    pub known: Known,
    /// The same, with managers at the addresses that gossip tells.
    pub reach: watch::Receiver<Arc<Intent>>,
}

impl From<ProposeError> for ApiError {
    fn from(e: ProposeError) -> ApiError {
        match e {
            ProposeError::Refused(r) => r.into(),
            other => ApiError::new(Code::Unavailable, other.to_string(), "netctl cluster members"),
        }
    }
}

impl Manager {
    /// Starts a manager around its log.
    pub fn start(parts: Parts, cluster: &Arc<Cluster>) -> Arc<Manager> {
        let Parts {
            store,
            transport,
            listener,
            addresses,
            tls,
            known,
            reach,
        } = parts;
        let peers = Peers::start(PeersConfig {
            raft: store.status().id,
            tls: tls.clone(),
            intent: reach.clone(),
            inbox: Arc::new(store.clone()),
        });
        let _ = transport.set(peers.clone());
        let m = Arc::new_cyclic(|me: &Weak<Manager>| Manager {
            hub: Hub::new(Arc::new(port::Port::new(
                me.clone(),
                Arc::downgrade(cluster),
                known.clone(),
            ))),
            forwarder: Forwarder::new(tls.clone(), reach.clone()),
            peers,
            known: known.clone(),
            clock: LogClock::new(&store),
            tls: tls.clone(),
            board: Mutex::default(),
            stuck: roll::Stuck::default(),
            addresses,
            leader: watch::Sender::new(Leader::Nobody),
            secrets: LastRead::default(),
            leaving: Mutex::default(),
            running: Mutex::default(),
            store,
        });
        m.look_who_leads(&reach.borrow().clone());
        let weak = Arc::downgrade(&m);
        let hub = m.hub.clone();
        let mut running = m.running();
        running.spawn(async move { hub.serve(listener, tls).await });
        running.spawn(lead::follow(weak.clone(), reach));
        running.spawn(oversee::run(weak.clone(), Arc::downgrade(cluster)));
        running.spawn(roll::run(weak.clone(), Arc::downgrade(cluster)));
        running.spawn(members::keep(weak.clone(), known.clone()));
        running.spawn(custodian::keep(weak, Arc::downgrade(cluster)));
        running.spawn({
            let mut intent = m.store.intent();
            async move {
                loop {
                    known.offer(&intent.borrow_and_update().clone());
                    tokio::time::sleep(TOLD_APART).await;
                    if intent.changed().await.is_err() {
                        return;
                    }
                }
            }
        });
        drop(running);
        m
    }

    fn running(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.running.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Ends: no port, no streams, no log open.
    pub async fn stop(&self) {
        let mut running = std::mem::take(&mut *self.running());
        running.shutdown().await;
        self.peers.stop();
        self.store.shutdown().await;
        self.leader.send_replace(Leader::Nobody);
    }

    /// Id in Raft.
    pub fn raft(&self) -> u64 {
        self.store.status().id
    }

    /// Puts a command into the log, through whatever manager leads, and waits until it is applied here.
    pub async fn propose(&self, command: Command) -> Result<(u64, Applied), ApiError> {
        let request = match request::next() {
            Some(id) => id,
            None => u128::from_le_bytes(crate::identity::random()?),
        };
        let until = Instant::now() + PATIENCE;
        let mut leader = self.leader();
        loop {
            let now = leader.borrow_and_update().clone();
            let failed = match now {
                Leader::Other { node, addr } => self.pass_on(node, &addr, request, &command).await,
                // Nobody may be known yet although this manager was elected just now.
                Leader::Me | Leader::Nobody => self.store.propose_as(request, command.clone()).await,
            };
            let e = match failed {
                Ok((revision, applied)) => {
                    self.has(revision).await;
                    return Ok((revision, applied));
                }
                Err(e @ (ProposeError::NotLeader { .. } | ProposeError::Unknown(_))) => e,
                Err(e) => return Err(e.into()),
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.no_leader(&e.to_string()));
            }
            let _ = tokio::time::timeout(left.min(AGAIN), leader.changed()).await;
        }
    }

    async fn pass_on(
        &self,
        node: NodeId,
        addr: &str,
        request: u128,
        command: &Command,
    ) -> Result<(u64, Applied), ProposeError> {
        let unknown = |e: String| ProposeError::Unknown(e);
        let to = addr.parse().map_err(|_| unknown(format!("{addr} is no address")))?;
        let body = crate::api::encode_command(request, command).map_err(|e| unknown(e.message))?;
        let http = hyper::Request::post(crate::api::COMMAND_PATH)
            .header(hyper::header::HOST, "netd")
            .body(Full::new(body.into()))
            .map_err(|e| unknown(e.to_string()))?;
        let answer = self
            .forwarder
            .send(node, to, http)
            .await
            .map_err(|e| unknown(e.to_string()))?;
        if answer.status().is_success() {
            return serde_json::from_slice(answer.body()).map_err(|e| unknown(e.to_string()));
        }
        let elsewhere = answer.headers().contains_key(crate::api::NOT_LEADER);
        match serde_json::from_slice::<ApiError>(answer.body()) {
            Ok(e) if !e.retryable && !elsewhere => Err(ProposeError::Refused(Refusal {
                code: e.code,
                message: e.message,
                hint: e.hint,
            })),
            _ => Err(unknown(format!("{node} does not lead any more"))),
        }
    }

    /// Waits until this manager has applied a revision, so that who asked here sees it here.
    async fn has(&self, revision: u64) {
        let _ = tokio::time::timeout(PATIENCE, self.store.reached(revision)).await;
        self.catch_up();
    }

    /// What this node shows is not older than what its log holds; who follows it is told within [`TOLD_APART`].
    fn catch_up(&self) {
        let newest = self.store.intent().borrow().clone();
        self.known.show(&newest);
    }

    /// Address that new nodes join at.
    pub fn rpc(&self) -> String {
        self.addresses.borrow().rpc.to_string()
    }

    /// How far every node has come.
    pub fn progress(&self, revision: u64, intent: &Intent, facts: &Facts, me: NodeId) -> Convergence {
        let reports = self.hub.snapshot();
        let nodes: Vec<NodeProgress> = intent
            .nodes
            .iter()
            .map(|(id, n)| {
                let report = reports.get(id);
                let health = facts.health.get(id).copied().unwrap_or(NodeHealth::Unknown);
                NodeProgress {
                    id: *id,
                    hostname: n.hostname.clone(),
                    living: *id == me
                        || health == NodeHealth::Ready
                        || (health == NodeHealth::Unknown && report.is_some_and(|r| r.connected)),
                    applied: report.map_or(0, |r| r.report.applied),
                    problems: report.map(|r| r.report.problems.clone()).unwrap_or_default(),
                    datapath: report.map(|r| r.report.datapath.clone()).unwrap_or_default(),
                }
            })
            .collect();
        let converged = nodes.iter().filter(|n| n.living).all(|n| n.applied >= revision);
        Convergence {
            revision,
            converged,
            nodes,
        }
    }

    /// The story of a service's tasks.
    pub fn tasks(&self, service: &Name, facts: &Facts) -> Vec<TaskView> {
        let told = self
            .hub
            .tasks(|id, _| id.slot().is_some_and(|(name, _)| name == *service));
        self.with_board(|b| b.view(service, &told, facts, Instant::now()))
    }

    /// The tasks of all services that `wanted` says, at most [`MAX_TASKS`] of them.
    pub fn all_tasks(&self, intent: &Intent, facts: &Facts, wanted: impl Fn(&TaskView) -> bool) -> Vec<TaskView> {
        let told = self.hub.tasks(|_, _| true);
        let now = Instant::now();
        let mut out = Vec::new();
        for name in intent.services.keys() {
            let lines = self.with_board(|b| b.view(name, &told, facts, now));
            out.extend(lines.into_iter().filter(|t| wanted(t)));
            if out.len() > MAX_TASKS {
                out.truncate(MAX_TASKS);
                break;
            }
        }
        out
    }

    fn living(&self, intent: &Intent, facts: &Facts, me: NodeId) -> Vec<NodeId> {
        self.progress(0, intent, facts, me)
            .nodes
            .into_iter()
            .filter(|n| n.living)
            .map(|n| n.id)
            .collect()
    }

    async fn ask_all(&self, c: &Cluster, ask: Ask) -> Vec<(NodeId, Result<Answer, String>)> {
        let nodes = self.living(&c.intent(), &c.facts(), c.me);
        let asks = nodes.into_iter().map(|node| {
            let ask = ask.clone();
            async move { (node, self.hub.ask(node, ask, ASK).await.map_err(|e| e.to_string())) }
        });
        join_all(asks).await
    }

    /// Subnets that living nodes route outside of netd.
    pub async fn host_routes(&self, c: &Cluster) -> Result<Vec<(NodeId, IpNet)>, ApiError> {
        let mut out = Vec::new();
        for (node, answer) in self.ask_all(c, Ask::HostRoutes).await {
            match answer {
                Ok(Answer::Routes { subnets }) => out.extend(subnets.into_iter().map(|s| (node, s))),
                Ok(Answer::Failed { why }) | Err(why) => {
                    return Err(ApiError::new(
                        Code::Unavailable,
                        format!("{node} cannot say which subnets it routes: {why}"),
                        "netctl node ls",
                    ));
                }
                Ok(_) => return Err(internal("routes", format!("{node} gave an odd answer"))),
            }
        }
        Ok(out)
    }
}

/// Subnets as an answer carries them.
pub fn routes_answer(routes: Result<BTreeSet<IpNet>, impl std::fmt::Display>) -> Answer {
    match routes {
        Ok(r) => Answer::Routes {
            subnets: r.into_iter().collect(),
        },
        Err(e) => Answer::Failed { why: e.to_string() },
    }
}
