//! Raft between managers: messages over mutual TLS on the managers' port.
//!
//! Each manager keeps one stream open to every other one, and sends on it alone; answers of the stream itself (pongs,
//! what became of a snapshot) come back on it. Queues are bounded and what does not fit, or cannot be sent soon, is
//! dropped and told to Raft, which sends again: nobody ever waits here. A snapshot goes in pieces between other messages,
//! few at a time under way, so that heartbeats are heard while it travels. Pings measure round trips and carry where the
//! other manager stands. Who a manager is, is read from the log at every stream and every message.

mod accept;
pub(crate) mod doors;
mod link;
mod out;
mod queue;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use cluster::raft::Message;
use model::{
    ids::NodeId,
    intent::{Intent, Role},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use crate::identity::{IdentityError, PeerId, Tls, admit_manager};
use out::Out;
use queue::Queue;
pub(crate) use queue::octets;

/// Where a manager stands in its log, as told in a pong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Term.
    pub term: u64,
    /// Last entry.
    pub last_index: u64,
    /// Last entry applied.
    pub applied: u64,
}

/// What the transport needs of the log's thread. None of these may block.
pub trait Inbox: Send + Sync + 'static {
    /// A message has come; `false`: there is no room, it is dropped.
    fn message(&self, m: Message) -> bool;
    /// Messages to a manager were dropped.
    fn unreachable(&self, raft: u64);
    /// What became of a snapshot.
    fn snapshot_sent(&self, raft: u64, arrived: bool);
    /// Time to a manager and back, smoothed.
    fn round_trip(&self, raft: u64, time: Duration);
    /// Where this manager stands.
    fn standing(&self) -> Standing;
}

/// How another manager is seen from here.
#[derive(Debug, Clone, Default)]
pub struct PeerView {
    /// It answers now.
    pub reached: bool,
    /// Time to it and back, smoothed.
    pub round_trip: Option<Duration>,
    /// Where it stood at the last pong.
    pub standing: Option<Standing>,
    /// Why there is no stream to it.
    pub problem: Option<String>,
}

/// Settings.
pub struct PeersConfig {
    /// This manager's id in Raft.
    pub raft: u64,
    /// This node's TLS settings.
    pub tls: Arc<Tls>,
    /// The newest intent known here: it says who is a manager.
    pub intent: watch::Receiver<Arc<Intent>>,
    /// The log's thread.
    pub inbox: Arc<dyn Inbox>,
}

/// A manager's other end.
struct Peer {
    raft: u64,
    node: NodeId,
    addr: SocketAddr,
    queue: Mutex<Queue>,
    /// Locked before the queue, by whoever needs both.
    out: Mutex<Out>,
    /// The link has something to send, or to look at.
    wake: Notify,
    view: Mutex<PeerView>,
}

impl Peer {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // No code panics while it holds the lock; if one did, the queue would still be whole.
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes a message, and writes it if the stream takes it now.
    fn send(&self, m: Message) -> Option<queue::Dropped> {
        let now = Instant::now();
        let snapshot = m.snapshot.is_some();
        let dropped = self.queue().push(m, now);
        // Whoever holds it looks into the queue once more when it is woken.
        let sent = !snapshot
            && self
                .out
                .try_lock()
                .is_ok_and(|mut out| out.send_now(&mut self.queue(), now));
        if !sent {
            self.wake.notify_one();
        }
        dropped
    }

    fn view(&self) -> MutexGuard<'_, PeerView> {
        self.view.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The other managers by id in Raft, each with the task that keeps its stream open.
type Table = BTreeMap<u64, (Arc<Peer>, JoinHandle<()>)>;

struct Shared {
    raft: u64,
    tls: Arc<Tls>,
    intent: watch::Receiver<Arc<Intent>>,
    inbox: Arc<dyn Inbox>,
    peers: Mutex<Table>,
    /// Changes when a manager is reached, or not any more.
    changed: watch::Sender<u64>,
    /// A manager of a later epoch was met there: the cluster was begun anew without this one.
    superseded: watch::Sender<Option<SocketAddr>>,
    accepted: Mutex<accept::Accepted>,
}

/// The streams to all other managers; clones are the same ones. They end with [`Peers::stop`] or the last clone.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    follow: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follow.abort();
        self.shared.end_all();
    }
}

impl Peers {
    /// Opens streams to the managers in the intent, and follows its changes.
    pub fn start(config: PeersConfig) -> Peers {
        let shared = Arc::new(Shared {
            raft: config.raft,
            tls: config.tls,
            intent: config.intent,
            inbox: config.inbox,
            peers: Mutex::default(),
            changed: watch::Sender::new(0),
            superseded: watch::Sender::new(None),
            accepted: Mutex::default(),
        });
        shared.follow_once();
        let follow = tokio::spawn({
            let shared = shared.clone();
            let mut intent = shared.intent.clone();
            async move {
                while intent.changed().await.is_ok() {
                    shared.follow_once();
                }
            }
        });
        Peers(Arc::new(Inner { shared, follow }))
    }

    /// Sends a message; one for nobody known, or that does not fit, is dropped. Never blocks.
    pub fn send(&self, m: Message) {
        let to = m.to;
        let snapshot = m.snapshot.is_some();
        let peer = self.0.shared.table().get(&to).map(|(p, _)| p.clone());
        let dropped = match peer {
            Some(peer) => peer.send(m),
            None => Some(queue::Dropped { snapshot }),
        };
        if let Some(dropped) = dropped {
            self.0.shared.lost(to, dropped);
        }
    }

    /// How the others are seen, by id in Raft.
    pub fn views(&self) -> BTreeMap<u64, PeerView> {
        let peers = self.0.shared.table();
        peers.iter().map(|(raft, (p, _))| (*raft, p.view().clone())).collect()
    }

    /// Rises when a manager is reached, or not any more.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.shared.changed.subscribe()
    }

    /// Where a manager of a later epoch was met: this one was left behind when the cluster was begun anew.
    pub fn superseded(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.0.shared.superseded.subscribe()
    }

    /// This node's own address has changed: streams that hang on the old one would only be missed after a while.
    pub fn anew(&self) {
        for (_, (_, task)) in std::mem::take(&mut *self.0.shared.table()) {
            task.abort();
        }
        self.0.shared.follow_once();
    }

    /// Ends all streams.
    pub fn stop(&self) {
        self.0.follow.abort();
        self.0.shared.end_all();
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.peers.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Begins and ends links, so that there is one to every other manager of the intent.
    fn follow_once(self: &Arc<Self>) {
        let intent = self.intent.borrow().clone();
        let wanted = intent.nodes.iter().filter_map(|(node, n)| {
            let raft = n.raft.filter(|r| n.role == Role::Manager && *r != self.raft)?;
            Some((raft, (*node, n.rpc.as_ref()?.parse().ok()?)))
        });
        let wanted: BTreeMap<u64, (NodeId, SocketAddr)> = wanted.collect();
        let mut peers = self.table();
        peers.retain(|raft, (peer, task)| {
            let stays = wanted.get(raft) == Some(&(peer.node, peer.addr));
            if !stays {
                task.abort();
                // Else Raft would wait for word of it for minutes, and send nothing to the manager's new address. One that
                // the link has taken is told by the link.
                if peer.queue().snapshot.take().is_some() {
                    self.inbox.snapshot_sent(*raft, false);
                }
            }
            stays
        });
        for (raft, (node, addr)) in wanted {
            peers.entry(raft).or_insert_with(|| {
                let peer = Arc::new(Peer {
                    raft,
                    node,
                    addr,
                    queue: Mutex::default(),
                    out: Mutex::default(),
                    wake: Notify::new(),
                    view: Mutex::default(),
                });
                let task = tokio::spawn(link::run(self.clone(), peer.clone()));
                (peer, task)
            });
        }
    }

    fn end_all(&self) {
        for (_, (_, task)) in std::mem::take(&mut *self.table()) {
            task.abort();
        }
        self.accepted.lock().unwrap_or_else(|e| e.into_inner()).clear();
    }

    fn lost(&self, raft: u64, dropped: queue::Dropped) {
        self.inbox.unreachable(raft);
        if dropped.snapshot {
            self.inbox.snapshot_sent(raft, false);
        }
    }

    /// Whether the peer of a stream is, now, the manager with this id in Raft.
    fn is_manager(&self, peer: &PeerId, raft: u64) -> Result<(), IdentityError> {
        let intent = self.intent.borrow();
        admit_manager(&intent, peer)?;
        if intent.nodes.get(&peer.node).and_then(|n| n.raft) != Some(raft) {
            return Err(IdentityError::NotOurs("the log gives it another id in Raft"));
        }
        Ok(())
    }
}
