//! Whole nodes on loopback: real sockets, real TLS, real time.

use std::{net::Ipv4Addr, path::Path};

use cluster::{
    membership::{PROBE_PERIOD, SUSPICION},
    seal::{MAX_PLAIN, NONCE},
};
use model::{
    ids::{EndpointId, Mac, Name, Vni},
    intent::{Availability, Network, Node, Role},
    row::{Datapath, EndpointRow, EndpointState, NodeRow},
};
use tokio::{io::AsyncReadExt, net::TcpSocket, time::timeout};

use super::*;
use crate::identity::{CERTIFICATE_LIFE, ClusterSecrets, Credentials, Csr, NodeKey, Subject, connect_pinned};

mod kept;
mod saved;

pub(super) struct World {
    secrets: ClusterSecrets,
    pub(super) nodes: BTreeMap<u64, (NodeKey, Credentials)>,
    intent: watch::Sender<Arc<Intent>>,
    dir: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn vni() -> Vni {
    Vni::try_from(4100).unwrap()
}

impl World {
    /// `n` nodes in the intent, with network `app` whose block 20 + i is node i's.
    pub(super) fn new(n: u64) -> World {
        let secrets = ClusterSecrets::create("c1").unwrap();
        let mut intent = Intent {
            revision: 1,
            cluster: "c1".into(),
            ..Intent::default()
        };
        let network = Network {
            vni: vni(),
            subnet: "10.77.0.0/16".parse().unwrap(),
            subnet6: None,
            internal: false,
            mtu: None,
        };
        intent.networks.insert("app".parse::<Name>().unwrap(), network);
        let mut nodes = BTreeMap::new();
        for i in 1..=n {
            let key = NodeKey::generate().unwrap();
            let csr = Csr::parse(&key.csr("h").unwrap()).unwrap();
            let who = Subject {
                cluster: "c1".into(),
                node: NodeId(i),
                role: Role::Worker,
            };
            let issued = secrets.ca.sign(&csr, &who, CERTIFICATE_LIFE).unwrap();
            let credentials = Credentials {
                cluster: "c1".into(),
                node: NodeId(i),
                role: Role::Worker,
                certificate: issued.certificate,
                ca: issued.ca,
                issuer: issued.issuer,
                gossip: secrets.gossip.keys().to_vec(),
                managers: Vec::new(),
            };
            let node = Node {
                hostname: format!("h{i}"),
                role: Role::Worker,
                availability: Availability::Active,
                key: key.public().to_vec(),
                down: false,
                rpc: None,
                raft: None,
                labels: Default::default(),
                max_tasks: None,
                machine: Default::default(),
            };
            intent.nodes.insert(NodeId(i), node);
            let block = 512 + u32::try_from(i).unwrap();
            intent.blocks.entry(vni()).or_default().insert(block, NodeId(i));
            nodes.insert(i, (key, credentials));
        }
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        World {
            secrets,
            nodes,
            intent: watch::Sender::new(Arc::new(intent)),
            dir: std::env::temp_dir().join(format!("netd-gossip-{}-{count}", std::process::id())),
        }
    }

    pub(super) fn change(&self, f: impl FnOnce(&mut Intent)) {
        self.intent.send_modify(|i| {
            let i = Arc::make_mut(i);
            f(i);
            i.revision += 1;
        });
    }

    async fn start_at(&self, i: u64, listen: SocketAddr) -> Gossip {
        self.start_with(i, listen, self.intent.subscribe()).await
    }

    async fn start_with(&self, i: u64, listen: SocketAddr, intent: watch::Receiver<Arc<Intent>>) -> Gossip {
        let (key, c) = &self.nodes[&i];
        let config = GossipConfig {
            me: NodeId(i),
            cluster: "c1".into(),
            listen,
            advertise: listen,
            keys: c.gossip.clone(),
            signer: key.signer("c1").unwrap(),
            tls: Arc::new(Tls::new(c, key).unwrap()),
            state_dir: self.dir.join(format!("n{i}")),
        };
        Gossip::start(config, intent).await.unwrap()
    }

    pub(super) async fn start(&self, i: u64) -> Gossip {
        self.start_at(i, (Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// All nodes, met.
    async fn all(&self) -> Vec<Gossip> {
        let mut out: Vec<Gossip> = Vec::new();
        for i in self.nodes.keys() {
            let g = self.start(*i).await;
            if let Some(first) = out.first() {
                assert!(g.join(&[first.listen()]).await);
            }
            g.put(RowKey::Node, node_row(*i, g.listen())).unwrap();
            out.push(g);
        }
        for g in &out {
            until(g, |f| f.rows.len() == out.len() && ready(f) == out.len()).await;
        }
        out
    }
}

fn ready(f: &Facts) -> usize {
    f.health.values().filter(|h| **h == NodeHealth::Ready).count()
}

fn node_row(i: u64, gossip: SocketAddr) -> RowBody {
    RowBody::Node(NodeRow {
        hostname: format!("h{i}"),
        datapath_addr: format!("198.18.0.{i}").parse().unwrap(),
        datapath_port: 4789,
        gossip,
        mac: Mac([2, 0, 0, 0, 0, u8::try_from(i).unwrap()]),
        datapath: Datapath::Ebpf,
        version: "0.1.0".into(),
    })
}

fn endpoint(block: u32, state: EndpointState) -> RowBody {
    RowBody::Endpoint(EndpointRow {
        vni: vni(),
        v4: Some(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 0, 0)) + block * 16 + 1)),
        v6: None,
        mac: Mac([2, 0, 0, 0, 1, 1]),
        service: None,
        slot: None,
        state,
        listening: Vec::new(),
    })
}

fn key(s: &str) -> RowKey {
    RowKey::Endpoint(s.parse::<EndpointId>().unwrap())
}

fn has(f: &Facts, node: u64, k: &str) -> bool {
    f.rows.get(&NodeId(node)).is_some_and(|r| r.contains_key(&key(k)))
}

/// Waits until the facts are so, at most 10 s.
async fn until(g: &Gossip, what: impl Fn(&Facts) -> bool) -> Arc<Facts> {
    let mut facts = g.facts();
    let wait = facts.wait_for(|f| what(f));
    match timeout(Duration::from_secs(10), wait).await {
        Ok(f) => f.unwrap().clone(),
        Err(_) => panic!("not within 10 s; facts: {:#?}", g.facts().borrow()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_met_before_the_intent_has_it_is_ready_afterwards() {
    let w = World::new(3);
    let full = w.intent.borrow().clone();
    let late = watch::Sender::new(Arc::new({
        let mut i = (*full).clone();
        i.nodes.remove(&NodeId(3));
        i
    }));
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let one = w.start_with(1, any, late.subscribe()).await;
    let (two, three) = (w.start(2).await, w.start(3).await);
    assert!(two.join(&[one.listen()]).await && three.join(&[two.listen()]).await);
    until(&two, |f| ready(f) == 3).await;
    // The first one hears of the third by gossip, and knows nothing of it.
    let mut met = false;
    for _ in 0..200 {
        met = one.shared.lock().members().iter().any(|m| m.member.node == NodeId(3));
        if met {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(met);
    assert_eq!(ready(&one.facts().borrow()), 2);
    late.send_modify(|i| {
        let mut i2 = (*full).clone();
        i2.revision += 1;
        *i = Arc::new(i2);
    });
    until(&one, |f| ready(f) == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_spread_and_go() {
    let w = World::new(3);
    let g = w.all().await;
    g[0].put(key("a"), endpoint(513, EndpointState::Starting)).unwrap();
    for g in &g {
        until(g, |f| has(f, 1, "a")).await;
    }
    let v = g[0].put(key("a"), endpoint(513, EndpointState::Ready)).unwrap();
    assert_eq!(g[0].put(key("a"), endpoint(513, EndpointState::Ready)).unwrap(), v);
    until(&g[2], |f| f.newest(NodeId(1)) == v).await;
    assert!(g[0].remove(key("a")) > v);
    assert_eq!(g[0].remove(key("never")), 0);
    for g in &g {
        until(g, |f| !has(f, 1, "a")).await;
    }
    assert_eq!(g[0].own(), [RowKey::Node]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_counts_when_the_intent_grants_it() {
    let w = World::new(2);
    let g = w.all().await;
    // Block 600 is nobody's yet.
    g[0].put(key("early"), endpoint(600, EndpointState::Ready)).unwrap();
    g[0].put(key("good"), endpoint(513, EndpointState::Ready)).unwrap();
    until(&g[1], |f| has(f, 1, "good")).await;
    assert!(!has(&g[1].facts().borrow(), 1, "early"));
    w.change(|i| {
        i.blocks.get_mut(&vni()).unwrap().insert(600, NodeId(1));
    });
    until(&g[1], |f| has(f, 1, "early")).await;
    w.change(|i| {
        i.blocks.get_mut(&vni()).unwrap().remove(&600);
    });
    until(&g[1], |f| !has(f, 1, "early")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tampered_rows_and_strangers_are_refused() {
    let w = World::new(2);
    let g = w.all().await;
    let before = g[0].facts().borrow().rows.clone();
    // Node 2 has the cluster's key and signs a row of node 1.
    let ring = Keyring::new("c1", w.secrets.gossip.keys()).unwrap();
    let mut content = vec![2];
    let forged = Row {
        owner: NodeId(1),
        key: RowKey::Node,
        version: u64::MAX,
        body: RowBody::Tombstone,
    };
    w.nodes[&2]
        .0
        .signer("c1")
        .unwrap()
        .sign(forged)
        .unwrap()
        .encode(&mut content);
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.send_to(&ring.seal([9; NONCE], &content).unwrap(), g[0].listen())
        .await
        .unwrap();
    // Garbage, too long, another cluster's.
    let other = Keyring::new("c2", w.secrets.gossip.keys()).unwrap();
    let foreign = other.seal([9; NONCE], &[0; MAX_PLAIN]).unwrap();
    for junk in [&b"hello"[..], &[1; 1500], &foreign] {
        udp.send_to(junk, g[0].listen()).await.unwrap();
    }
    let pin = w.secrets.token(Role::Worker).unwrap().pin;
    let done = timeout(Duration::from_secs(5), async {
        // No certificate: the handshake of a client ends before it is refused.
        let e = connect_pinned(g[0].listen(), pin).await.map(|_| ()).unwrap_err();
        assert!(e.to_string().contains("no manager"), "{e}");
        loop {
            let s = g[0].stats();
            if s.rows_refused == 1 && s.refused >= 3 && s.strangers >= 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    done.await.unwrap_or_else(|_| panic!("{:?}", g[0].stats()));
    assert_eq!(g[0].facts().borrow().rows, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_daemon_is_not_a_dead_host() {
    let w = World::new(3);
    let mut g = w.all().await;
    let addr = g[2].listen();
    g.pop().unwrap().stop().await.unwrap();
    for g in &g {
        let f = until(g, |f| f.health[&NodeId(3)] == NodeHealth::DaemonDown).await;
        assert!(f.rows.contains_key(&NodeId(3)), "its rows stay");
    }
    // The host falls silent too: the port takes no connection any more.
    let silent = mute(addr).await;
    let begun = Instant::now();
    for g in &g {
        until(g, |f| f.health[&NodeId(3)] == NodeHealth::Down).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(silent);
    // It comes back.
    let back = w.start_at(3, addr).await;
    for g in &g {
        until(g, |f| f.health[&NodeId(3)] == NodeHealth::Ready).await;
    }
    until(&back, |f| ready(f) == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_host_is_down_within_five_seconds() {
    let w = World::new(4);
    let mut g = w.all().await;
    let addr = g[3].listen();
    g.pop().unwrap().stop().await.unwrap();
    let _silent = mute(addr).await;
    let died = Instant::now();
    for g in &g {
        until(g, |f| f.health[&NodeId(4)] == NodeHealth::Down).await;
    }
    let took = died.elapsed();
    eprintln!("a silent host was down on all others after {took:?}");
    assert!(took > SUSPICION && took < Duration::from_secs(5), "{took:?}");
}

/// Makes a port silent as a dead host's: its queue is full, so that a SYN gets no answer.
async fn mute(addr: SocketAddr) -> (tokio::net::TcpListener, Vec<TcpSocketTask>) {
    let s = TcpSocket::new_v4().unwrap();
    s.set_reuseaddr(true).unwrap();
    s.bind(addr).unwrap();
    let l = s.listen(0).unwrap();
    let fill = (0..4)
        .map(|_| tokio::spawn(tokio::net::TcpStream::connect(addr)))
        .collect();
    // A connection that does not come about shows that the queue is full.
    timeout(Duration::from_secs(5), async {
        let short = Duration::from_millis(100);
        while timeout(short, tokio::net::TcpStream::connect(addr)).await.is_ok() {}
    })
    .await
    .unwrap();
    (l, fill)
}

type TcpSocketTask = JoinHandle<std::io::Result<tokio::net::TcpStream>>;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_withdraws_nothing() {
    let w = World::new(2);
    let mut g = w.all().await;
    g[0].put(key("a"), endpoint(513, EndpointState::Ready)).unwrap();
    let mine = g[1].put(key("b"), endpoint(514, EndpointState::Ready)).unwrap();
    let f = until(&g[1], |f| has(f, 1, "a") && has(f, 2, "b")).await;
    let addr = g[1].listen();
    // All are gone; node 2 comes back alone.
    for g in g.drain(..).rev() {
        g.stop().await.unwrap();
    }
    let again = w.start_at(2, addr).await;
    let now = again.facts().borrow().clone();
    assert_eq!(now.rows, f.rows);
    assert_eq!(now.health, f.health);
    assert_eq!(again.own().len(), 2);
    // The same row: the same version; a changed one rises above all before.
    assert_eq!(again.put(key("b"), endpoint(514, EndpointState::Ready)).unwrap(), mine);
    assert!(again.put(key("b"), endpoint(514, EndpointState::Draining)).unwrap() > mine);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_does_not_lose_rows() {
    let w = World::new(2);
    let mut g = w.all().await;
    g[1].put(key("b"), endpoint(514, EndpointState::Ready)).unwrap();
    g[1].put(key("old"), endpoint(514, EndpointState::Ready)).unwrap();
    until(&g[0], |f| has(f, 2, "b") && has(f, 2, "old")).await;
    let addr = g[1].listen();
    g.pop().unwrap().stop().await.unwrap();
    std::fs::remove_dir_all(w.dir.join("n2")).unwrap();
    let again = w.start_at(2, addr).await;
    // It says something new with a low version, then hears of what it said before.
    again.put(key("b"), endpoint(514, EndpointState::Draining)).unwrap();
    assert!(again.join(&[g[0].listen()]).await);
    let draining = |f: &Facts| {
        f.rows
            .get(&NodeId(2))
            .and_then(|r| r.get(&key("b")))
            .is_some_and(|r| matches!(&r.body, RowBody::Endpoint(e) if e.state == EndpointState::Draining))
    };
    until(&g[0], draining).await;
    until(&again, |f| draining(f) && has(f, 2, "old")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_forgotten_and_refused() {
    let w = World::new(3);
    let g = w.all().await;
    let alone = watch::Sender::new(w.intent.borrow().clone());
    // Node 3 itself does not hear of it.
    let (key3, c) = &w.nodes[&3];
    let tls3 = Tls::new(c, key3).unwrap();
    drop(alone);
    w.change(|i| {
        i.nodes.remove(&NodeId(3));
    });
    for g in &g[..2] {
        until(g, |f| {
            !f.rows.contains_key(&NodeId(3)) && !f.health.contains_key(&NodeId(3))
        })
        .await;
    }
    let outcome = link::ping(&tls3, g[0].listen(), NodeId(1)).await;
    assert_ne!(outcome, cluster::membership::Outcome::Pong);
    // Its packets change nothing, for longer than a probe takes.
    let seq = g[0].facts().borrow().seq;
    tokio::time::sleep(PROBE_PERIOD * 6).await;
    assert_eq!(g[0].facts().borrow().seq, seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_is_heard() {
    let w = World::new(3);
    let g = w.all().await;
    g[2].leave().await;
    assert!(!Path::new(&w.dir.join("n3/gossip/view")).exists());
    // Its daemon still answers the direct ping, so nothing is withdrawn until the log takes it out.
    let members = |g: &Gossip| g.shared.lock().members();
    let gone = |g: &Gossip| {
        members(g)
            .iter()
            .any(|m| m.member.node == NodeId(3) && m.liveness == cluster::membership::Liveness::Down)
    };
    timeout(Duration::from_secs(5), async {
        while !g[..2].iter().all(gone) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_changed_in_two_phases() {
    let w = World::new(2);
    let g = w.all().await;
    let old = w.secrets.gossip.keys()[0].clone();
    let new = Key { id: 2, secret: [7; 32] };
    for keys in [[old.clone(), new.clone()], [new.clone(), old]] {
        for g in &g {
            g.set_keys(&keys).unwrap();
        }
    }
    let v = g[0].put(key("a"), endpoint(513, EndpointState::Ready)).unwrap();
    until(&g[1], |f| f.newest(NodeId(1)) == v).await;
    assert_eq!(g[0].stats().refused + g[1].stats().refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_nodes_than_are_told_at_once() {
    let n = 40;
    let w = World::new(n);
    let g = w.all().await;
    let mut times = Vec::new();
    for round in 0..5 {
        let state = if round % 2 == 0 {
            EndpointState::Ready
        } else {
            EndpointState::Draining
        };
        let begun = Instant::now();
        let v = g[0].put(key("a"), endpoint(513, state)).unwrap();
        for g in &g {
            until(g, |f| f.newest(NodeId(1)) == v).await;
        }
        times.push(begun.elapsed());
    }
    times.sort();
    eprintln!("a row reached {n} nodes in {times:?}");
    assert!(times[2] < Duration::from_secs(5), "{times:?}");
}

/// What must become so, within 10 s.
async fn soon<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let found = timeout(Duration::from_secs(10), async {
        loop {
            if let Some(t) = what() {
                return t;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    found.await.expect("not within 10 s")
}
