//! A node keeps its credentials fresh over a stream that goes on.

use std::path::PathBuf;

use super::*;
use crate::identity::{Step, Vault};

struct Node {
    uplink: Uplink,
    vault: Arc<Vault>,
    holding: watch::Receiver<Holding>,
    trouble: watch::Receiver<Option<String>>,
    tls: Arc<Tls>,
    task: tokio::task::JoinHandle<()>,
    _proved: watch::Sender<Option<Issued>>,
    dir: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A worker that joins `m` and keeps its credentials.
async fn keeper(m: &Manager, name: &str) -> Node {
    let dir = std::env::temp_dir().join(format!("netd-fresh-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let vault = Arc::new(Vault::open(&dir).unwrap());
    let key = Arc::new(NodeKey::load_or_create(&vault).unwrap());
    let joined = join(&m.token(), m.addr, &key, &OFFER).await.unwrap();
    let tls = Arc::new(Tls::new(&joined.credentials, &key).unwrap());
    joined.credentials.save(&vault).unwrap();
    let sink = Known::new(joined.intent.clone());
    let intent = sink.watch();
    let (uplink, _asks) = Uplink::start(UplinkConfig {
        me: joined.credentials.node,
        version: String::new(),
        tls: tls.clone(),
        first: vec![m.addr],
        local: watch::channel(None).1,
        intent: sink,
    });
    let (holding, trouble) = (watch::Sender::default(), watch::Sender::new(None));
    let proved = watch::Sender::new(None);
    let custody = Custody {
        me: joined.credentials.node,
        held: joined.credentials,
        uplink: uplink.clone(),
        vault: vault.clone(),
        key,
        tls: tls.clone(),
        intent,
        own: watch::channel(None).1,
        certified: watch::Sender::new(Role::Worker),
        holding: holding.clone(),
        trouble: trouble.clone(),
        proved: proved.subscribe(),
    };
    Node {
        uplink,
        vault,
        holding: holding.subscribe(),
        trouble: trouble.subscribe(),
        tls,
        task: tokio::spawn(keep_credentials(custody, |_| Ok(()))),
        _proved: proved,
        dir,
    }
}

impl Manager {
    /// Takes a step, and tells the nodes.
    fn step(&self, step: Step) {
        self.port.secrets.lock().unwrap().step(step, 0, 0).unwrap();
        self.tell();
    }

    fn tell(&self) {
        let trust = self.port.now().trust();
        self.port.change(|i| i.trust = trust);
    }
}

#[tokio::test]
async fn certificates_are_renewed_in_time_and_the_stream_goes_on() {
    let m = manager().await;
    *m.port.life.lock().unwrap() = Duration::from_secs(4);
    let n = keeper(&m, "renew").await;
    let mut connected = n.uplink.connected();
    soon(connected.wait_for(|c| *c)).await.unwrap();
    connected.mark_unchanged();
    let mut last = n.tls.life();
    let mut points = Vec::new();
    let mut replaced = n.tls.replaced();
    while points.len() < 3 {
        soon(replaced.changed()).await.unwrap();
        let now = std::time::SystemTime::now();
        let (from, until) = last;
        points
            .push(now.duration_since(from).unwrap().as_secs_f64() / until.duration_since(from).unwrap().as_secs_f64());
        last = n.tls.life();
    }
    // Certificates count whole seconds, which is a quarter of this life.
    assert!(points.iter().all(|p| (0.4..0.95).contains(p)), "{points:?}");
    assert!(!connected.has_changed().unwrap(), "the stream was broken off");
    // The first certificate has ended by now: the stream lives by the later ones.
    assert_eq!(n.uplink.query("/v1/x").await.unwrap().0, 200);
    let kept = Credentials::load(&n.vault).unwrap().unwrap();
    assert_eq!(n.holding.borrow().issuer, kept.issuer);
}

#[tokio::test]
async fn a_change_of_the_ca_is_followed_at_once() {
    let m = manager().await;
    let mut n = keeper(&m, "ca").await;
    m.tell();
    let mut connected = n.uplink.connected();
    soon(connected.wait_for(|c| *c)).await.unwrap();
    connected.mark_unchanged();
    let old = m.port.now().ca.root().fingerprint();
    m.port.secrets.lock().unwrap().ca.begin("c1", None, 0).unwrap();
    m.tell();
    let coming = m.port.now().ca.coming().fingerprint();
    soon(n.holding.wait_for(|h| h.roots == [old.clone(), coming.clone()]))
        .await
        .unwrap();
    m.step(Step::CaRenew);
    soon(n.holding.wait_for(|h| h.issuer == coming)).await.unwrap();
    m.step(Step::CaFinish);
    soon(n.holding.wait_for(|h| h.roots == [coming.clone()])).await.unwrap();
    let kept = Credentials::load(&n.vault).unwrap().unwrap();
    assert_eq!(kept.issuer, coming, "what was reported is on the disk");
    assert!(!connected.has_changed().unwrap(), "the stream was broken off");
}

#[tokio::test]
async fn a_change_of_the_role_is_followed_at_once() {
    let m = manager().await;
    let mut n = keeper(&m, "role").await;
    let mut connected = n.uplink.connected();
    soon(connected.wait_for(|c| *c)).await.unwrap();
    let id = Credentials::load(&n.vault).unwrap().unwrap().node;
    let role_on_disk = |n: &Node| Credentials::load(&n.vault).unwrap().unwrap().role;
    for role in [Role::Manager, Role::Worker] {
        let mut replaced = n.tls.replaced();
        m.port.change(|i| i.nodes.get_mut(&id).unwrap().role = role);
        soon(async {
            while role_on_disk(&n) != role {
                replaced.changed().await.unwrap();
            }
        })
        .await;
    }
    // The stream of a worker went on.
    soon(connected.wait_for(|c| *c)).await.unwrap();
    soon(n.trouble.wait_for(|t| t.is_none())).await.unwrap();
    assert_eq!(n.uplink.query("/v1/x").await.unwrap().0, 200);
}

#[tokio::test]
async fn a_removed_node_says_so() {
    let m = manager().await;
    let mut n = keeper(&m, "removed").await;
    let mut connected = n.uplink.connected();
    soon(connected.wait_for(|c| *c)).await.unwrap();
    let id = Credentials::load(&n.vault).unwrap().unwrap().node;
    m.port.change(|i| {
        i.nodes.remove(&id);
    });
    let told = soon(n.trouble.wait_for(|t| t.is_some()))
        .await
        .unwrap()
        .clone()
        .unwrap();
    assert!(told.contains("is not in the cluster"), "{told}");
}
