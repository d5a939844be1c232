//! Gossip: who is alive, and every node's rows.
//!
//! Datagrams (sealed with the cluster's key, at most 1,400 octets) carry SWIM and news; TCP with mutual TLS on the same
//! port carries what datagrams may lose: every second or two a node compares members and rows with another one
//! (anti-entropy), and a death that SWIM reports is confirmed by a direct ping before it counts.
//!
//! `core` decides and is driven by `driver`; `link` is the TCP side, on connections of `kept`; `disk` keeps the last view,
//! so that a restarted daemon begins where it ended and withdraws nothing.

mod core;
mod disk;
pub(crate) mod doors;
mod driver;
mod kept;
mod link;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use cluster::{
    membership::Member,
    rows::{RowError, Signer},
    seal::{Key, Keyring, SealError},
};
use model::{
    api::NodeHealth,
    ids::NodeId,
    intent::Intent,
    row::{Row, RowBody, RowKey},
};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_rustls::client::TlsStream;

use self::{core::Core, disk::Disk};
use crate::identity::{About, IdentityError, NodeKey, Tls, random};

/// How long leaving may take.
const LEAVE: Duration = Duration::from_secs(1);

/// Settings.
#[derive(Debug)]
pub struct GossipConfig {
    /// This node.
    pub me: NodeId,
    /// Id of the cluster.
    pub cluster: String,
    /// Address to listen on, UDP and TCP. Port 0: any free one.
    pub listen: SocketAddr,
    /// Address that others reach this node at; port 0: the one listened on.
    pub advertise: SocketAddr,
    /// Gossip keys, the one to seal with first.
    pub keys: Vec<Key>,
    /// Signs this node's rows ([`NodeKey::signer`](crate::identity::NodeKey::signer)).
    pub signer: Signer,
    /// This node's TLS settings.
    pub tls: Arc<Tls>,
    /// The last view is kept in `gossip` below it.
    pub state_dir: PathBuf,
}

/// What goes wrong.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// The port cannot be had.
    #[error("gossip cannot listen on {addr}: {source}; try: cluster.gossip_port in netd's configuration")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// The state directory cannot be used.
    #[error("gossip's state {path}: {source}; try: check node.state_dir in netd's configuration")]
    Disk {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] SealError),
    /// No random octets.
    #[error(transparent)]
    Random(#[from] IdentityError),
}

/// What is known of all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Rows that the intent grants their owners, no tombstones, this node's own included. Also those of nodes that are
    /// down: `health` tells whether to use them.
    pub rows: BTreeMap<NodeId, Arc<BTreeMap<RowKey, Row>>>,
    /// Health of the nodes of the intent as seen from here.
    pub health: BTreeMap<NodeId, NodeHealth>,
    /// Rises with each change.
    pub seq: u64,
}

impl Facts {
    /// The highest version of an owner's rows that are in here: what is reported as held.
    pub fn newest(&self, owner: NodeId) -> u64 {
        let rows = self.rows.get(&owner).into_iter().flat_map(|r| r.values());
        rows.map(|r| r.version).max().unwrap_or(0)
    }
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Datagrams taken.
    pub received: u64,
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that did not open, or made no sense.
    pub refused: u64,
    /// Rows not taken: forged, malformed, of strangers.
    pub rows_refused: u64,
    /// News dropped because a peer's queue was full; anti-entropy brings them.
    pub news_dropped: u64,
    /// Comparisons with other nodes that ended well.
    pub syncs: u64,
    /// Those that did not.
    pub syncs_failed: u64,
    /// Connections made for them; the others went over one that was kept.
    pub opened: u64,
    /// Connections by strangers and removed nodes.
    pub strangers: u64,
}

/// Connections kept for the next comparison.
type Connections = kept::Kept<TlsStream<TcpStream>>;

/// What the tasks share.
struct Shared {
    core: Mutex<Core>,
    kept: Mutex<Connections>,
    keys: ArcSwap<Keyring>,
    tls: Arc<Tls>,
    intent: watch::Receiver<Arc<Intent>>,
    facts: watch::Sender<Arc<Facts>>,
    wake: Notify,
    left: watch::Sender<bool>,
    cluster: String,
    listen: SocketAddr,
    started: Instant,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        // No code panics while it holds the lock; if one did, the tables would still be whole.
        self.core.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

struct Tasks(Mutex<Vec<JoinHandle<()>>>);

impl Tasks {
    fn end(&self) -> Vec<JoinHandle<()>> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(|e| e.into_inner()));
        for t in &all {
            t.abort();
        }
        all
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.end();
    }
}

/// What was known last, from the disk alone: for a node that may not gossip now.
pub fn last_facts(state_dir: &std::path::Path, about: &About, intent: Arc<Intent>) -> Result<Arc<Facts>, GossipError> {
    let (disk, last) = Disk::open(state_dir)?;
    let me = Member {
        node: about.node,
        generation: disk.generation(),
        addr: SocketAddr::from(([0, 0, 0, 0], 0)),
    };
    // Nothing is sent, so nothing is signed: any key will do.
    let signer = NodeKey::generate()?.signer(&about.cluster)?;
    let mut core = Core::new(me, signer, disk, last, intent, 0);
    let facts = watch::Sender::default();
    core.publish(&facts);
    Ok(facts.borrow().clone())
}

/// Handle; clones are the same gossip, which ends with the last one.
#[derive(Clone)]
pub struct Gossip {
    shared: Arc<Shared>,
    tasks: Arc<Tasks>,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip").finish_non_exhaustive()
    }
}

impl Gossip {
    /// Opens the port and begins with the view kept on disk.
    pub async fn start(config: GossipConfig, intent: watch::Receiver<Arc<Intent>>) -> Result<Gossip, GossipError> {
        let keys = Keyring::new(config.cluster.clone(), &config.keys)?;
        let failed = |addr| move |source| GossipError::Listen { addr, source };
        let tcp = TcpListener::bind(config.listen).await.map_err(failed(config.listen))?;
        let listen = tcp.local_addr().map_err(failed(config.listen))?;
        let udp = UdpSocket::bind(listen).await.map_err(failed(listen))?;
        let mut addr = config.advertise;
        if addr.port() == 0 {
            addr.set_port(listen.port());
        }
        let (disk, last) = Disk::open(&config.state_dir)?;
        let me = Member {
            node: config.me,
            generation: disk.generation(),
            addr,
        };
        let first = intent.borrow().clone();
        let seed = u64::from_be_bytes(random()?);
        let core = Core::new(me, config.signer, disk, last, first, seed);
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            kept: Mutex::default(),
            keys: ArcSwap::from_pointee(keys),
            tls: config.tls,
            intent,
            facts: watch::Sender::default(),
            wake: Notify::new(),
            left: watch::Sender::new(false),
            cluster: config.cluster,
            listen,
            started: Instant::now(),
        });
        shared.lock().publish(&shared.facts);
        let tasks = vec![
            tokio::spawn(driver::run(shared.clone(), udp)),
            tokio::spawn(link::serve(shared.clone(), tcp)),
        ];
        Ok(Gossip {
            shared,
            tasks: Arc::new(Tasks(Mutex::new(tasks))),
        })
    }

    /// The address listened on.
    pub fn listen(&self) -> SocketAddr {
        self.shared.listen
    }

    /// Sets one of this node's rows and gives its version; an unchanged one keeps its version. Errors: it is malformed
    /// or too long.
    pub fn put(&self, key: RowKey, body: RowBody) -> Result<u64, RowError> {
        let version = self.shared.lock().put(self.shared.now(), key, body)?;
        self.shared.wake.notify_one();
        Ok(version)
    }

    /// Removes one of this node's rows: the version of its tombstone, 0 when there was none.
    pub fn remove(&self, key: RowKey) -> u64 {
        // A tombstone is never too long.
        self.put(key, RowBody::Tombstone).unwrap_or(0)
    }

    /// Keys of this node's rows, also of those kept from before a restart: what no longer exists is to be removed.
    pub fn own(&self) -> Vec<RowKey> {
        self.shared.lock().own()
    }

    /// What is known, newest.
    pub fn facts(&self) -> watch::Receiver<Arc<Facts>> {
        self.shared.facts.subscribe()
    }

    /// Uses new gossip keys from now on.
    pub fn set_keys(&self, keys: &[Key]) -> Result<(), GossipError> {
        let ring = Keyring::new(self.shared.cluster.clone(), keys)?;
        self.shared.keys.store(Arc::new(ring));
        Ok(())
    }

    /// Meets other nodes by their gossip addresses; these stay known and are tried again while nobody is met. `true`:
    /// one of them answered now.
    pub async fn join(&self, seeds: &[SocketAddr]) -> bool {
        self.shared.lock().seeds(seeds);
        let mut met = false;
        for seed in seeds.iter().filter(|s| **s != self.shared.listen) {
            match link::sync(&self.shared, *seed, None).await {
                Ok(()) => {
                    met = true;
                    // Whoever waited for this reads the facts next.
                    self.shared.lock().publish(&self.shared.facts);
                }
                Err(e) => tracing::debug!(%seed, error = %e, "a seed was not met"),
            }
        }
        met
    }

    /// This node is reached at another address from now on.
    pub fn moved(&self, addr: SocketAddr) {
        self.shared.lock().moved(self.shared.now(), addr);
        self.shared.wake.notify_one();
    }

    /// Tells others that this node goes for good, and forgets the view on disk.
    pub async fn leave(&self) {
        self.shared.lock().leave(self.shared.now());
        self.shared.wake.notify_one();
        // Whether it was heard does not matter much: the log says who is a node.
        let mut left = self.shared.left.subscribe();
        let _ = tokio::time::timeout(LEAVE, left.wait_for(|l| *l)).await;
    }

    /// Keeps the view on disk now; it is kept each second anyway.
    pub async fn flush(&self) -> Result<(), GossipError> {
        let save = self.shared.lock().take_save();
        match save {
            Some(save) => tokio::task::spawn_blocking(move || save.write())
                .await
                .unwrap_or_else(|e| Err(disk::joined(&e))),
            None => Ok(()),
        }
    }

    /// Keeps the view on disk and frees the port, for all handles. To others this looks as if the daemon had died: they
    /// leave the data path as it is. A node that goes for good says [`Gossip::leave`] before.
    pub async fn stop(&self) -> Result<(), GossipError> {
        for t in self.tasks.end() {
            // Aborted, which is an error too.
            let _ = t.await;
        }
        self.shared.with_kept(|kept, _| kept.clear());
        self.flush().await
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.shared.lock().stats()
    }
}
