//! A manager with a port in memory, and nodes, on loopback.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use model::{
    api::{TaskState, TaskStatus},
    error::Code,
    intent::{Availability, Node},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;
use crate::identity::{
    CERTIFICATE_LIFE, Credentials, Csr, Holding, Issued, NodeKey, Subject, Tls, Token, connect_pinned,
};
use crate::known::Known;

mod door;
mod fresh;
mod peers;
mod told;

/// Where these nodes would be managers.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

const OFFER: super::Offer<'static> = super::Offer {
    hostname: "w",
    rpc: NOWHERE,
    availability: model::intent::Availability::Active,
};

struct Port {
    intent: watch::Sender<Arc<Intent>>,
    secrets: Mutex<ClusterSecrets>,
    life: Mutex<Duration>,
    dead: Mutex<Vec<NodeId>>,
    next: AtomicU64,
    leader: watch::Sender<Leader>,
}

impl Port {
    fn now(&self) -> ClusterSecrets {
        self.secrets.lock().unwrap().clone()
    }

    fn change(&self, f: impl FnOnce(&mut Intent)) {
        self.intent.send_modify(|i| {
            let i = Arc::make_mut(i);
            f(i);
            i.revision += 1;
        });
    }
}

impl ManagerPort for Port {
    fn intent(&self) -> watch::Receiver<Arc<Intent>> {
        self.intent.subscribe()
    }
    fn secrets(&self) -> Result<Arc<ClusterSecrets>, ApiError> {
        Ok(Arc::new(self.now()))
    }
    fn certify(&self, csr: Csr, node: NodeId, role: Role) -> BoxFuture<'_, Result<Issued, ApiError>> {
        Box::pin(async move {
            let cluster = self.intent.borrow().cluster.clone();
            let life = *self.life.lock().unwrap();
            Ok(self.now().ca.sign(&csr, &Subject { cluster, node, role }, life)?)
        })
    }
    fn add_node(&self, n: Newcomer) -> BoxFuture<'_, Result<NodeId, ApiError>> {
        Box::pin(async move {
            let now = self.intent.borrow().clone();
            match now.nodes.iter().find(|(_, x)| x.key == n.key) {
                Some((_, known)) if known.role != n.role => {
                    return Err(ApiError::new(Code::Conflict, "in the cluster with another role", ""));
                }
                Some((id, _)) => return Ok(*id),
                None => {}
            }
            let id = NodeId(self.next.fetch_add(1, Ordering::SeqCst));
            self.change(|i| {
                i.nodes.insert(id, node(n.role, &n.key, &n.hostname));
            });
            Ok(id)
        })
    }
    fn remove_node(&self, node: NodeId) -> BoxFuture<'_, Result<(), ApiError>> {
        self.change(|i| {
            i.nodes.remove(&node);
        });
        Box::pin(async { Ok(()) })
    }
    fn need_block(&self, node: NodeId, vni: Vni) -> BoxFuture<'_, Result<u32, ApiError>> {
        self.change(|i| {
            i.blocks.entry(vni).or_default().insert(20, node);
        });
        Box::pin(async { Ok(20) })
    }
    fn query(&self, node: NodeId, path: String) -> BoxFuture<'_, (u16, String)> {
        Box::pin(async move { (200, format!("{node} reads {path}")) })
    }
    fn leader(&self) -> watch::Receiver<Leader> {
        self.leader.subscribe()
    }
    fn raft_id(&self, _: NodeId, old: u64) -> BoxFuture<'_, Result<u64, ApiError>> {
        Box::pin(async move { Ok(old + 1) })
    }
    fn raft(&self, _: Stream, _: PeerId, _: u64, _: u64) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(async { Err(std::io::Error::other("no Raft here")) })
    }
    fn http(&self, stream: Stream, peer: PeerId) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(serve_http(stream, peer, axum::Router::new()))
    }
    fn health(&self, node: NodeId) -> NodeHealth {
        match self.dead.lock().unwrap().contains(&node) {
            true => NodeHealth::Down,
            false => NodeHealth::Ready,
        }
    }
}

fn node(role: Role, key: &[u8], hostname: &str) -> Node {
    Node {
        hostname: hostname.into(),
        role,
        availability: Availability::Active,
        key: key.to_vec(),
        down: false,
        rpc: None,
        raft: None,
        labels: Default::default(),
        max_tasks: None,
        machine: Default::default(),
    }
}

struct Manager {
    port: Arc<Port>,
    hub: Hub,
    tls: Arc<Tls>,
    addr: SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

async fn manager() -> Manager {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    manager_at(listener, NodeId(1), ClusterSecrets::create("c1").unwrap())
}

/// Manager `id` of the cluster that has these secrets.
fn manager_at(listener: TcpListener, id: NodeId, secrets: ClusterSecrets) -> Manager {
    let key = NodeKey::generate().unwrap();
    let csr = Csr::parse(&key.csr("m").unwrap()).unwrap();
    let who = Subject {
        cluster: "c1".into(),
        node: id,
        role: Role::Manager,
    };
    let issued = secrets.ca.sign(&csr, &who, CERTIFICATE_LIFE).unwrap();
    let credentials = Credentials {
        cluster: "c1".into(),
        node: id,
        role: Role::Manager,
        certificate: issued.certificate,
        ca: issued.ca,
        issuer: issued.issuer,
        gossip: Vec::new(),
        managers: Vec::new(),
    };
    let tls = Arc::new(Tls::new(&credentials, &key).unwrap());
    let addr = listener.local_addr().unwrap();
    let mut intent = Intent {
        revision: 1,
        cluster: "c1".into(),
        ..Intent::default()
    };
    let mut me = node(Role::Manager, key.public(), "m");
    me.rpc = Some(addr.to_string());
    intent.nodes.insert(id, me);
    let port = Arc::new(Port {
        intent: watch::Sender::new(Arc::new(intent)),
        secrets: Mutex::new(secrets),
        life: Mutex::new(CERTIFICATE_LIFE),
        dead: Mutex::default(),
        next: AtomicU64::new(2),
        leader: watch::Sender::new(Leader::Me),
    });
    let hub = Hub::new(port.clone());
    let server = tokio::spawn({
        let (hub, tls) = (hub.clone(), tls.clone());
        async move { hub.serve(listener, tls).await }
    });
    Manager {
        port,
        hub,
        tls,
        addr,
        server,
    }
}

impl Manager {
    fn token(&self) -> Token {
        self.port.now().token(Role::Worker).unwrap()
    }
}

struct Worker {
    id: NodeId,
    uplink: Uplink,
    asks: tokio::sync::mpsc::Receiver<(Ask, tokio::sync::oneshot::Sender<Answer>)>,
    intent: watch::Receiver<Arc<Intent>>,
}

async fn worker(m: &Manager) -> Worker {
    let key = NodeKey::generate().unwrap();
    let joined = join(&m.token(), m.addr, &key, &OFFER).await.unwrap();
    let intent = Known::new(Arc::default());
    let rx = intent.watch();
    let (uplink, asks) = Uplink::start(UplinkConfig {
        me: joined.credentials.node,
        version: "0.1.0".into(),
        tls: Arc::new(Tls::new(&joined.credentials, &key).unwrap()),
        first: vec![m.addr],
        local: watch::channel(None).1,
        intent,
    });
    Worker {
        id: joined.credentials.node,
        uplink,
        asks,
        intent: rx,
    }
}

/// Waits for what must come soon.
async fn soon<T>(f: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), f)
        .await
        .expect("it did not come within 10 s")
}

async fn hub_has(m: &Manager, mut what: impl FnMut(&BTreeMap<NodeId, Arc<NodeReport>>) -> bool) {
    let mut changed = m.hub.changed();
    soon(async {
        while !what(&m.hub.snapshot()) {
            changed.changed().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn intent_comes_as_increments() {
    let m = manager().await;
    let mut w = worker(&m).await;
    soon(w.intent.wait_for(|i| i.nodes.len() == 2)).await.unwrap();
    for name in ["h1", "h2", "h3"] {
        m.port
            .change(|i| i.nodes.get_mut(&NodeId(1)).unwrap().hostname = name.into());
        let want = m.port.intent.borrow().clone();
        soon(w.intent.wait_for(|i| **i == *want)).await.unwrap();
    }
    assert_eq!(w.uplink.keys().borrow().clone(), m.port.now().gossip.keys());
}

#[tokio::test]
async fn requests_are_answered() {
    let m = manager().await;
    let mut w = worker(&m).await;
    let vni = Vni::try_from(4100).unwrap();
    assert_eq!(w.uplink.need_block(vni).await, Ok(20));
    let id = w.id;
    soon(w.intent.wait_for(|i| i.blocks.get(&vni).is_some_and(|b| b[&20] == id)))
        .await
        .unwrap();
    let (status, body) = w.uplink.query("/v1/services/web/tasks").await.unwrap();
    assert_eq!((status, body.as_str()), (200, "n2 reads /v1/services/web/tasks"));
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_same_key_alone() {
    let m = manager().await;
    let key = NodeKey::generate().unwrap();
    let mut c = join(&m.token(), m.addr, &key, &OFFER).await.unwrap().credentials;
    let (uplink, _asks) = Uplink::start(UplinkConfig {
        me: c.node,
        version: String::new(),
        tls: Arc::new(Tls::new(&c, &key).unwrap()),
        first: vec![m.addr],
        local: watch::channel(None).1,
        intent: Known::new(Arc::default()),
    });
    let issued = uplink.renew(key.csr("w").unwrap()).await.unwrap();
    assert_ne!(issued.certificate, c.certificate);
    c.take(issued);
    let tls = Tls::new(&c, &key).unwrap();
    let tcp = TcpStream::connect(m.addr).await.unwrap();
    assert_eq!(tls.connect(tcp).await.unwrap().1.node, NodeId(1));
    let other = NodeKey::generate().unwrap().csr("w").unwrap();
    assert_eq!(uplink.renew(other).await.unwrap_err().code, Code::Forbidden);
}

#[tokio::test]
async fn reports_reach_the_hub_and_asks_reach_the_node() {
    let m = manager().await;
    let mut w = worker(&m).await;
    let status = TaskStatus {
        pid: Some(7),
        generation: 3,
        ..TaskStatus::of(TaskState::Running)
    };
    let report = Report {
        applied: 9,
        problems: vec!["p".into()],
        tasks: BTreeMap::from([("web.1".parse().unwrap(), status)]),
        past: BTreeMap::new(),
        held: BTreeMap::new(),
        holds: Holding::default(),
        machine: Default::default(),
        datapath: "because".into(),
    };
    w.uplink.report(report.clone());
    hub_has(&m, |s| s.get(&w.id).is_some_and(|n| n.report == report)).await;
    w.uplink.report(Report {
        applied: 10,
        ..report.clone()
    });
    hub_has(&m, |s| s[&w.id].report.applied == 10).await;
    // A task that runs was not just assigned, whatever a node says; one that has ended may have begun anew unseen.
    let say = |state, restarts, applied| {
        let mut next = report.clone();
        next.applied = applied;
        let task = TaskStatus {
            restarts,
            ..TaskStatus::of(state)
        };
        next.tasks = BTreeMap::from([("web.1".parse().unwrap(), task)]);
        w.uplink.report(next);
    };
    for (n, (state, restarts, believed)) in [
        (TaskState::Assigned, 0, TaskState::Running),
        (TaskState::Starting, 0, TaskState::Running),
        (TaskState::Failed, 0, TaskState::Failed),
        (TaskState::Running, 0, TaskState::Running),
        (TaskState::Starting, 1, TaskState::Starting),
        // Reports come in bursts: what ends as soon as it begins was never seen to run.
        (TaskState::Preparing, 2, TaskState::Preparing),
        (TaskState::Complete, 2, TaskState::Complete),
    ]
    .into_iter()
    .enumerate()
    {
        let applied = 11 + n as u64;
        say(state, restarts, applied);
        hub_has(&m, |s| s[&w.id].report.applied == applied).await;
        let seen = m.hub.tasks(|_, _| true)[&w.id].values().next().unwrap().state;
        assert_eq!(seen, believed, "{state:?}");
    }

    let ask = Ask::PortFree("80".parse().unwrap());
    let wait = Duration::from_secs(5);
    let (answer, ()) = tokio::join!(m.hub.ask(w.id, ask.clone(), wait), async {
        let (got, tx) = soon(w.asks.recv()).await.unwrap();
        assert_eq!(got, ask);
        tx.send(Answer::Taken { owner: "nginx".into() }).unwrap();
    });
    assert_eq!(answer, Ok(Answer::Taken { owner: "nginx".into() }));
    let short = Duration::from_millis(50);
    assert_eq!(m.hub.ask(w.id, ask.clone(), short).await, Err(AskError::Timeout(w.id)));
    assert_eq!(
        m.hub.ask(NodeId(9), ask, short).await,
        Err(AskError::NotConnected(NodeId(9)))
    );
}

#[tokio::test]
async fn a_draining_owner_hears_when_all_living_nodes_hold_its_rows() {
    let m = manager().await;
    let (a, b) = (worker(&m).await, worker(&m).await);
    m.port.dead.lock().unwrap().push(NodeId(1));
    let held = |v| Report {
        held: BTreeMap::from([(a.id, v)]),
        ..Report::default()
    };
    a.uplink.report(held(7));
    b.uplink.report(held(6));
    soon(a.uplink.held().wait_for(|v| *v == 6)).await.unwrap();
    b.uplink.report(held(8));
    soon(a.uplink.held().wait_for(|v| *v == 7)).await.unwrap();
}

#[tokio::test]
async fn a_removed_node_is_cut_off_and_refused() {
    let m = manager().await;
    let w = worker(&m).await;
    let mut connected = w.uplink.connected();
    soon(connected.wait_for(|c| *c)).await.unwrap();
    m.port.change(|i| {
        i.nodes.remove(&w.id);
    });
    soon(connected.wait_for(|c| !*c)).await.unwrap();
    let refused = timeout(Duration::from_millis(500), connected.wait_for(|c| *c)).await;
    assert!(refused.is_err());
    hub_has(&m, |s| !s.contains_key(&w.id)).await;
}

#[tokio::test]
async fn leaving_takes_the_node_out() {
    let m = manager().await;
    let w = worker(&m).await;
    assert_eq!(w.uplink.leave().await, Ok(()));
    assert!(!m.port.intent.borrow().nodes.contains_key(&w.id));
}

#[tokio::test]
async fn a_node_comes_back_when_the_manager_does() {
    let mut m = manager().await;
    let w = worker(&m).await;
    let mut connected = w.uplink.connected();
    soon(connected.wait_for(|c| *c)).await.unwrap();
    w.uplink.report(Report {
        applied: 3,
        ..Report::default()
    });
    hub_has(&m, |s| s.get(&w.id).is_some_and(|n| n.report.applied == 3)).await;

    m.server.abort();
    // Streams live in tasks of their own; a new stream of the node replaces the old one.
    m.hub = Hub::new(m.port.clone());
    m.port.change(|_| ());
    let listener = loop {
        match TcpListener::bind(m.addr).await {
            Ok(l) => break l,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let (hub, tls) = (m.hub.clone(), m.tls.clone());
    m.server = tokio::spawn(async move { hub.serve(listener, tls).await });
    // The old stream ends when its node is taken out for a moment.
    let entry = m.port.intent.borrow().nodes[&w.id].clone();
    m.port.change(|i| {
        i.nodes.remove(&w.id);
    });
    soon(connected.wait_for(|c| !*c)).await.unwrap();
    m.port.change(|i| {
        i.nodes.insert(w.id, entry);
    });
    // The last report is told again by itself.
    hub_has(&m, |s| {
        s.get(&w.id).is_some_and(|n| n.connected && n.report.applied == 3)
    })
    .await;
}

#[tokio::test]
async fn the_managers_own_node_needs_no_socket() {
    let m = manager().await;
    let intent = Known::new(Arc::default());
    let mut rx = intent.watch();
    let local = watch::Sender::new(None);
    let (uplink, _asks) = Uplink::start(UplinkConfig {
        me: NodeId(1),
        version: "0.1.0".into(),
        tls: m.tls.clone(),
        first: Vec::new(),
        local: local.subscribe(),
        intent,
    });
    // It begins as soon as this manager leads.
    local.send_replace(Some(Local {
        hub: m.hub.clone(),
        leads: true,
    }));
    soon(rx.wait_for(|i| i.revision == 1)).await.unwrap();
    let (_, body) = uplink.query("/v1/x").await.unwrap();
    assert_eq!(body, "n1 reads /v1/x");
    drop(uplink);
    hub_has(&m, |s| !s[&NodeId(1)].connected).await;
}

#[tokio::test]
async fn a_silent_stream_ends_after_four_heartbeats_as_they_are_by_then() {
    let mut i = Intent::default();
    i.settings.dispatcher_heartbeat_ms = 500;
    let intent = tokio::sync::watch::Sender::new(Arc::new(i.clone()));
    let (ours, _theirs) = tokio::io::duplex(64);
    let mut messages = super::session::read_all::<super::message::ToNode>(ours, 64, intent.subscribe());
    let start = std::time::Instant::now();
    i.settings.dispatcher_heartbeat_ms = 700;
    intent.send_replace(Arc::new(i));
    let end = tokio::time::timeout(Duration::from_secs(10), messages.recv())
        .await
        .unwrap();
    assert_eq!(end.unwrap().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    let took = start.elapsed();
    assert!(
        (Duration::from_millis(2700)..Duration::from_secs(6)).contains(&took),
        "{took:?}"
    );
}
