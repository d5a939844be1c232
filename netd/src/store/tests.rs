use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command as Process, Stdio},
    sync::atomic::AtomicBool,
};

use cluster::{
    log::LogError,
    state::{NewNode, Secret},
};
use model::{Name, NodeId, ServiceSpec, intent::Role};

use super::*;

const KEY: [u8; 32] = [5; 32];

/// A folder that is gone afterwards, also when the test panics.
struct Dir(PathBuf);

impl Dir {
    fn new(what: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("netd-store-{what}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }
    fn raft(&self) -> PathBuf {
        self.0.join("raft")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn init() -> InitCluster {
    InitCluster {
        cluster: "0123456789abcdef0123456789abcdef".into(),
        node: NewNode {
            hostname: "host1".into(),
            role: Role::Manager,
            key: vec![1; 32],
            rpc: None,
        },
        settings: model::ClusterSettings {
            default_addr_pool6: Some("fd12:3456:789a::/48".parse().unwrap()),
            ..Default::default()
        },
        default_network: model::NetworkSpec::default(),
        avoid: vec![],
        secrets: BTreeMap::from([("ca".into(), Secret(b"secret".into()))]),
    }
}

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn service(s: &str) -> Command {
    Command::CreateService {
        name: name(s),
        spec: ServiceSpec {
            command: vec!["x".into()],
            ..Default::default()
        },
    }
}

fn scale(s: &str, replicas: u32) -> Command {
    Command::Scale {
        name: name(s),
        replicas,
    }
}

#[tokio::test]
async fn a_cluster_begins_goes_on_and_is_found_again() {
    let dir = Dir::new("life");
    assert!(Store::open(&dir.raft(), KEY, nobody()).unwrap().is_none());
    let store = Store::create(&dir.raft(), KEY, init(), nobody()).unwrap();
    let mut intents = store.intent();
    assert_eq!(intents.borrow().nodes.len(), 1);
    assert_eq!(store.status().leader, Some(1));
    assert_eq!(store.status().conf.voters, [1]);

    let (revision, applied) = store.propose(service("web")).await.unwrap();
    assert_eq!(applied, Applied::Service { index: 1 });
    // The answer comes after the intent: who got it sees what it did. Those who follow are told after the answer.
    let intent = store.intent().borrow().clone();
    assert_eq!((intent.revision, intent.services.len()), (revision, 1));
    let told = tokio::time::timeout(Duration::from_secs(10), intents.changed()).await;
    told.expect("within 10 s").unwrap();
    assert_eq!(*intents.borrow_and_update(), intent);
    let again = store.propose(service("web")).await.unwrap_err();
    assert!(
        matches!(&again, ProposeError::Refused(r) if r.code == Code::Conflict),
        "{again}"
    );
    let first = store.propose_as(42, scale("web", 3)).await.unwrap();
    assert_eq!(
        store.propose_as(42, scale("web", 9)).await.unwrap(),
        first,
        "a retry is applied once"
    );
    assert_eq!(
        store.with(|s| s.secret("ca").map(<[u8]>::to_vec)),
        Some(b"secret".to_vec())
    );
    assert!(matches!(
        Store::open(&dir.raft(), KEY, nobody()),
        Err(StoreError::Locked(_))
    ));
    let before = store.intent().borrow().clone();
    store.shutdown().await;
    assert!(matches!(
        store.propose(scale("web", 1)).await,
        Err(ProposeError::Unavailable(_))
    ));

    assert!(matches!(
        Store::create(&dir.raft(), KEY, init(), nobody()),
        Err(StoreError::Exists(_))
    ));
    assert!(matches!(
        Store::open(&dir.raft(), [6; 32], nobody()),
        Err(StoreError::Manager(ManagerError::Log(LogError::WrongKey { .. })))
    ));
    let store = Store::open(&dir.raft(), KEY, nobody()).unwrap().unwrap();
    assert_eq!(*store.intent().borrow(), before);
    assert_eq!(
        store.propose_as(42, scale("web", 9)).await.unwrap(),
        first,
        "also over a restart"
    );
    store.shutdown().await;
}

#[tokio::test]
async fn what_had_not_begun_is_swept() {
    let dir = Dir::new("half");
    let mut bad = init();
    bad.settings.default_addr_pool = "127.0.0.0/9".parse().unwrap();
    let refused = Store::create(&dir.raft(), KEY, bad, nobody()).map(|_| ()).unwrap_err();
    assert!(
        matches!(&refused, StoreError::Refused(r) if r.code == Code::Invalid),
        "{refused}"
    );
    assert_eq!(Files::open(&dir.raft()).unwrap().list().unwrap(), Vec::<String>::new());
    // Died between its folder and its first command.
    drop(Driver::create(Files::open(&dir.raft()).unwrap(), &KEY, nobody()).unwrap());
    std::fs::write(dir.raft().join("log-0000000000000002.new"), b"half").unwrap();
    assert!(Store::open(&dir.raft(), KEY, nobody()).unwrap().is_none());
    let store = Store::create(&dir.raft(), KEY, init(), nobody()).unwrap();
    store.shutdown().await;
}

#[tokio::test]
async fn many_at_once_and_snapshots_between() {
    let dir = Dir::new("many");
    let store = Store::create(&dir.raft(), KEY, init(), nobody()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for t in 0..32u32 {
        let store = store.clone();
        tasks.spawn(async move {
            let me = format!("s{t}");
            store.propose(service(&me)).await.unwrap();
            for n in 0..400 {
                store.propose(scale(&me, n % 7 + t % 2)).await.unwrap();
            }
        });
    }
    while let Some(t) = tasks.join_next().await {
        t.unwrap();
    }
    let before = store.intent().borrow().clone();
    assert_eq!(before.services.len(), 32);
    let applied = store.status().applied;
    assert!(applied > 10_000, "enough for a snapshot: {applied}");
    store.shutdown().await;
    let names = Files::open(&dir.raft()).unwrap().list().unwrap();
    assert!(names.iter().any(|n| n.starts_with("snap-")), "{names:?}");
    let store = Store::open(&dir.raft(), KEY, nobody()).unwrap().unwrap();
    assert_eq!(*store.intent().borrow(), before);
    let time = store.with(State::now_ms);
    store.propose(scale("s1", 9)).await.unwrap();
    assert!(store.with(State::now_ms) >= time, "log time goes on");
    store.shutdown().await;
}

/// Not a test of its own: the process that `kill_9` kills. It tells on stdout what was acknowledged.
#[tokio::test]
async fn child_that_is_killed() {
    let Ok(dir) = std::env::var("NETD_STORE_TEST_DIR") else {
        return;
    };
    let dir = PathBuf::from(dir);
    let store = match Store::open(&dir, KEY, nobody()).unwrap() {
        Some(s) => s,
        None => Store::create(&dir, KEY, init(), nobody()).unwrap(),
    };
    let _ = store.propose(service("web")).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        clients.spawn(async move {
            loop {
                let key = random_key();
                let node = Command::AddNode(NewNode {
                    hostname: "w".into(),
                    role: Role::Worker,
                    key: key.to_vec(),
                    rpc: None,
                });
                let (_, Applied::Node(id)) = store.propose(node).await.unwrap() else {
                    panic!("no id");
                };
                println!("acknowledged {} {}", id.0, key[0]);
            }
        });
    }
    clients.join_next().await;
}

fn random_key() -> [u8; 32] {
    driver::random().unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = Dir::new("kill");
    let mut acknowledged: BTreeMap<u64, u8> = BTreeMap::new();
    for round in 0..6 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::child_that_is_killed", "--nocapture"])
            .env("NETD_STORE_TEST_DIR", dir.raft())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines.map_while(Result::ok) {
            // The harness may put its own words in front of the first.
            let Some((_, rest)) = line.split_once("acknowledged ") else {
                continue;
            };
            let (id, key) = rest.split_once(' ').unwrap();
            assert_eq!(
                acknowledged.insert(id.parse().unwrap(), key.parse().unwrap()),
                None,
                "an id twice"
            );
            seen += 1;
            if seen == 30 + 7 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= 30, "the child worked: {seen}");
        let store = Store::open(&dir.raft(), KEY, nobody()).unwrap().unwrap();
        let intent = store.intent().borrow().clone();
        for (id, key) in &acknowledged {
            let node = intent.nodes.get(&NodeId(*id));
            assert_eq!(node.map(|n| n.key[0]), Some(*key), "n{id} was acknowledged and is lost");
        }
        store.shutdown().await;
    }
}

/// A disk whose syncs fail from some moment on.
struct Failing(Files, Arc<AtomicBool>);

impl Disk for Failing {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.read(name)
    }
    fn create(&mut self, name: &str, head: &[u8], len: u64) -> io::Result<()> {
        self.0.create(name, head, len)
    }
    fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(name, at, bytes)
    }
    fn sync(&mut self, name: &str) -> io::Result<()> {
        match self.1.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(nix::libc::EIO)),
            false => self.0.sync(name),
        }
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
}

#[tokio::test]
async fn a_failed_fsync_acknowledges_nothing_more() {
    let dir = Dir::new("eio");
    Store::create(&dir.raft(), KEY, init(), nobody())
        .unwrap()
        .shutdown()
        .await;
    let fails = Arc::new(AtomicBool::new(false));
    let disk = Failing(Files::open(&dir.raft()).unwrap(), fails.clone());
    let store = Store::spawn(Driver::open(disk, &KEY, nobody()).unwrap().unwrap()).unwrap();
    store.propose(service("web")).await.unwrap();
    let mut fatal = store.fatal();
    assert_eq!(*fatal.borrow(), None);
    fails.store(true, Ordering::SeqCst);
    let e = store.propose(service("lost")).await.unwrap_err();
    assert!(matches!(&e, ProposeError::Unavailable(_)), "{e}");
    let why = fatal.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(why.contains("cannot make durable log-"), "{why}");
    fails.store(false, Ordering::SeqCst);
    assert!(
        store.propose(service("later")).await.is_err(),
        "also when the disk says yes again"
    );
    let seen = store.intent().borrow().services.len();
    assert_eq!(seen, 1, "nobody saw it");
    store.shutdown().await;
    // It may be there after a restart or not; what was acknowledged is.
    let store = Store::open(&dir.raft(), KEY, nobody()).unwrap().unwrap();
    assert!(store.intent().borrow().services.contains_key(&name("web")));
    store.shutdown().await;
}

#[tokio::test]
async fn a_flipped_bit_is_an_error_that_says_where() {
    let dir = Dir::new("flip");
    let store = Store::create(&dir.raft(), KEY, init(), nobody()).unwrap();
    store.propose(service("web")).await.unwrap();
    store.shutdown().await;
    let path = dir.raft().join("log-0000000000000001");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[200] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    let e = Store::open(&dir.raft(), KEY, nobody())
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("log-0000000000000001 is damaged at octet") && e.contains("try:"),
        "{e}"
    );
}
