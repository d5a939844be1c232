//! Two managers on loopback, with real TLS.

use std::sync::mpsc;

use cluster::raft::{Conf, Kind, Snapshot};
use model::intent::{Availability, Node};
use tokio::{net::TcpListener, time::timeout};

use super::*;
use crate::{
    identity::{CERTIFICATE_LIFE, ClusterSecrets, Credentials, Csr, NodeKey, Subject},
    rpc::{frame, message::ToManager},
};

/// What the log's thread was told.
#[derive(Debug, PartialEq)]
enum Told {
    Message(Box<Message>),
    Unreachable(u64),
    Snapshot(u64, bool),
}

struct Box_ {
    told: Mutex<mpsc::Sender<Told>>,
    rtt: watch::Sender<Option<Duration>>,
}

impl Inbox for Box_ {
    fn message(&self, m: Message) -> bool {
        self.told.lock().unwrap().send(Told::Message(Box::new(m))).is_ok()
    }
    fn unreachable(&self, raft: u64) {
        let _ = self.told.lock().unwrap().send(Told::Unreachable(raft));
    }
    fn snapshot_sent(&self, raft: u64, arrived: bool) {
        let _ = self.told.lock().unwrap().send(Told::Snapshot(raft, arrived));
    }
    fn round_trip(&self, _: u64, time: Duration) {
        self.rtt.send_replace(Some(time));
    }
    fn standing(&self) -> Standing {
        Standing {
            term: 3,
            last_index: 9,
            applied: 8,
        }
    }
}

struct End {
    peers: Peers,
    told: mpsc::Receiver<Told>,
    rtt: watch::Receiver<Option<Duration>>,
    intent: watch::Sender<Arc<Intent>>,
}

/// A cluster's secrets, and managers with ids 11, 12 (nodes 1, 2) in Raft.
struct Place {
    secrets: ClusterSecrets,
    intent: Arc<Intent>,
    keys: Vec<NodeKey>,
    listeners: Vec<TcpListener>,
}

async fn place(n: u64) -> Place {
    let mut intent = Intent {
        revision: 1,
        cluster: "c1".into(),
        ..Intent::default()
    };
    let (mut keys, mut listeners) = (Vec::new(), Vec::new());
    for i in 1..=n {
        let key = NodeKey::generate().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Node {
            hostname: format!("m{i}"),
            role: Role::Manager,
            availability: Availability::Active,
            key: key.public().to_vec(),
            down: false,
            rpc: Some(listener.local_addr().unwrap().to_string()),
            raft: Some(10 + i),
            labels: Default::default(),
            max_tasks: None,
            machine: Default::default(),
        };
        intent.nodes.insert(NodeId(i), node);
        keys.push(key);
        listeners.push(listener);
    }
    Place {
        secrets: ClusterSecrets::create("c1").unwrap(),
        intent: Arc::new(intent),
        keys,
        listeners,
    }
}

fn tls(place: &Place, node: u64, role: Role) -> Arc<Tls> {
    let key = &place.keys[usize::try_from(node).unwrap() - 1];
    let csr = Csr::parse(&key.csr("m").unwrap()).unwrap();
    let who = Subject {
        cluster: "c1".into(),
        node: NodeId(node),
        role,
    };
    let issued = place.secrets.ca.sign(&csr, &who, CERTIFICATE_LIFE).unwrap();
    let credentials = Credentials {
        cluster: "c1".into(),
        node: NodeId(node),
        role,
        certificate: issued.certificate,
        ca: issued.ca,
        issuer: issued.issuer,
        gossip: Vec::new(),
        managers: Vec::new(),
    };
    Arc::new(Tls::new(&credentials, key).unwrap())
}

fn end(place: &Place, node: u64) -> End {
    let (tx, told) = mpsc::channel();
    let inbox = Arc::new(Box_ {
        told: Mutex::new(tx),
        rtt: watch::Sender::new(None),
    });
    let intent = watch::Sender::new(place.intent.clone());
    let peers = Peers::start(PeersConfig {
        raft: 10 + node,
        tls: tls(place, node, Role::Manager),
        intent: intent.subscribe(),
        inbox: inbox.clone(),
    });
    End {
        peers,
        told,
        rtt: inbox.rtt.subscribe(),
        intent,
    }
}

/// What the managers' port does with a stream between managers.
fn serve(listener: TcpListener, tls: Arc<Tls>, peers: Peers) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (tls, peers) = (tls.clone(), peers.clone());
            tokio::spawn(async move {
                let mut stream = tls.acceptor().accept(tcp).await?;
                let peer = PeerId::of(stream.get_ref().1).map_err(std::io::Error::other)?;
                match frame::read(&mut stream, 4096).await? {
                    ToManager::Raft { from, to } => peers.accept(stream, peer, from, to).await,
                    other => panic!("{other:?}"),
                }
            });
        }
    })
}

fn heartbeat(from: u64, to: u64) -> Message {
    Message {
        kind: Kind::Heartbeat,
        from,
        to,
        term: 1,
        log_term: 0,
        index: 0,
        commit: 0,
        commit_term: 0,
        entries: Vec::new(),
        snapshot: None,
        request_snapshot: 0,
        reject: false,
        reject_hint: 0,
        context: Vec::new(),
    }
}

async fn reached(e: &End, raft: u64, yes: bool) {
    let mut changed = e.peers.changed();
    let wait = async {
        while e.peers.views()[&raft].reached != yes {
            changed.changed().await.unwrap();
        }
    };
    timeout(Duration::from_secs(10), wait).await.expect("within 10 s");
}

fn next(e: &End) -> Told {
    let got = tokio::task::block_in_place(|| e.told.recv_timeout(Duration::from_secs(10)));
    got.expect("within 10 s")
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_come_in_order_and_a_round_trip_is_measured() {
    let mut place = place(2).await;
    let (a, mut b) = (end(&place, 1), end(&place, 2));
    let listener = place.listeners.pop().unwrap();
    serve(listener, tls(&place, 2, Role::Manager), b.peers.clone());
    reached(&a, 12, true).await;
    for n in 1..=100 {
        let mut m = heartbeat(11, 12);
        m.commit = n;
        a.peers.send(m);
    }
    for n in 1..=100 {
        let Told::Message(m) = next(&b) else { panic!() };
        assert_eq!(m.commit, n);
    }
    let view = &a.peers.views()[&12];
    assert_eq!(view.standing, Some(b.peers.0.shared.inbox.standing()));
    assert!(view.round_trip.unwrap() < Duration::from_secs(5));
    // Nobody listens for a: what b wants to send is dropped and told.
    drop(place.listeners);
    b.peers.send(heartbeat(12, 11));
    b.peers.send(heartbeat(12, 99));
    assert_eq!(next(&b), Told::Unreachable(99));
    assert!(b.rtt.borrow_and_update().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_does_not_hold_heartbeats_up() {
    let mut place = place(2).await;
    let (a, b) = (end(&place, 1), end(&place, 2));
    let listener = place.listeners.pop().unwrap();
    serve(listener, tls(&place, 2, Role::Manager), b.peers.clone());
    reached(&a, 12, true).await;
    let mut m = heartbeat(11, 12);
    m.kind = Kind::Snapshot;
    let snapshot = Snapshot {
        index: 7,
        term: 1,
        conf: Conf::single(11),
        data: (0..20u32 << 20).map(|i| i as u8).collect(),
    };
    m.snapshot = Some(snapshot);
    a.peers.send(m.clone());
    tokio::task::yield_now().await;
    a.peers.send(heartbeat(11, 12));
    assert_eq!(
        next(&b),
        Told::Message(Box::new(heartbeat(11, 12))),
        "the later one comes first"
    );
    assert_eq!(next(&b), Told::Message(Box::new(m)));
    assert_eq!(next(&a), Told::Snapshot(12, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_waits_for_a_manager_that_moves_is_told_to_be_lost() {
    let place = place(2).await;
    let a = end(&place, 1);
    // Nobody accepts: the stream is being opened for as long as this takes.
    let mut m = heartbeat(11, 12);
    m.kind = Kind::Snapshot;
    m.snapshot = Some(Snapshot {
        index: 7,
        term: 1,
        conf: Conf::single(11),
        data: vec![1],
    });
    a.peers.send(m);
    a.intent.send_modify(|i| {
        let n = Arc::make_mut(i).nodes.get_mut(&NodeId(2)).unwrap();
        n.rpc = Some("127.0.0.1:9".into());
    });
    assert_eq!(next(&a), Told::Snapshot(12, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_manager_any_more_is_cut_off() {
    let mut place = place(2).await;
    let (a, b) = (end(&place, 1), end(&place, 2));
    let listener = place.listeners.pop().unwrap();
    serve(listener, tls(&place, 2, Role::Manager), b.peers.clone());
    reached(&a, 12, true).await;
    // The log that b knows demotes a, in a later epoch.
    b.intent.send_modify(|i| {
        let i = Arc::make_mut(i);
        i.revision = 5 << 40;
        let n = i.nodes.get_mut(&NodeId(1)).unwrap();
        (n.role, n.raft) = (Role::Worker, None);
    });
    reached(&a, 12, false).await;
    a.peers.send(heartbeat(11, 12));
    let mut superseded = a.peers.superseded();
    let told = timeout(Duration::from_secs(10), superseded.wait_for(Option::is_some)).await;
    assert!(told.is_ok(), "a hears that the cluster went on without it");
    assert!(a.peers.views()[&12].problem.as_ref().unwrap().contains("no manager"));
    assert!(b.told.try_recv().is_err(), "nothing of it reached Raft");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_certificate_opens_nothing() {
    let mut place = place(2).await;
    let b = end(&place, 2);
    let listener = place.listeners.pop().unwrap();
    let addr = listener.local_addr().unwrap();
    serve(listener, tls(&place, 2, Role::Manager), b.peers.clone());
    // The log says manager, the certificate does not: neither alone is enough. And an id that is not its own.
    for (role, from, to) in [(Role::Worker, 11, 12), (Role::Manager, 13, 12), (Role::Manager, 11, 13)] {
        let tls = tls(&place, 1, role);
        let tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
        let (mut s, _) = tls.connect(tcp).await.unwrap();
        frame::write(&mut s, &ToManager::Raft { from, to }).await.unwrap();
        let bytes = frame::read_bytes(&mut s, 4096).await.unwrap();
        let said: wire::Frame = postcard::from_bytes(&bytes).unwrap();
        assert!(matches!(said, wire::Frame::Refused { .. }), "{role:?} {from}: {said:?}");
    }
}
