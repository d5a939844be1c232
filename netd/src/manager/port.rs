//! How the hub reaches the log and the node.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use cluster::{
    raft::Message,
    state::{Applied, Command, NewNode},
};
use futures_util::future::BoxFuture;
use model::{ApiError, Code, Intent, NodeId, Vni, api::NodeHealth, intent::Role};
use tokio::sync::watch;

use super::Manager;
use crate::{
    daemon::{Cluster, internal},
    identity::{ClusterSecrets, Csr, Issued, PeerId, Signer, Subject, admit_manager},
    known::Known,
    peers::{Inbox, Standing},
    rpc::{self, Leader, ManagerPort, Newcomer, Stream},
    store::Store,
};

/// See the module.
pub(super) struct Port {
    manager: Weak<Manager>,
    cluster: Weak<Cluster>,
    known: Known,
}

impl Port {
    pub(super) fn new(manager: Weak<Manager>, cluster: Weak<Cluster>, known: Known) -> Port {
        Port {
            manager,
            cluster,
            known,
        }
    }

    fn manager(&self) -> Result<Arc<Manager>, ApiError> {
        self.manager.upgrade().ok_or_else(|| {
            ApiError::new(
                Code::Unavailable,
                "this node is no manager any more",
                "netctl cluster members",
            )
        })
    }

    async fn propose(&self, command: Command) -> Result<Applied, ApiError> {
        Ok(self.manager()?.propose(command).await?.1)
    }
}

impl ManagerPort for Port {
    fn intent(&self) -> watch::Receiver<Arc<Intent>> {
        self.known.watch()
    }

    fn secrets(&self) -> Result<Arc<ClusterSecrets>, ApiError> {
        let m = self.manager()?;
        m.secrets.now(&m.store)
    }

    fn certify(&self, csr: Csr, node: NodeId, role: Role) -> BoxFuture<'_, Result<Issued, ApiError>> {
        Box::pin(async move {
            let m = self.manager()?;
            let (secrets, intent) = (self.secrets()?, self.known.now());
            let signer = Signer {
                ca: &secrets.ca,
                tls: &m.tls,
                outside: &intent.settings.external_ca,
                life: Duration::from_millis(intent.settings.cert_expiry_ms),
            };
            let cluster = intent.cluster.clone();
            Ok(signer.certify(&csr, &Subject { cluster, node, role }).await?)
        })
    }

    fn add_node(&self, node: Newcomer) -> BoxFuture<'_, Result<NodeId, ApiError>> {
        Box::pin(async move {
            let command = Command::Join {
                node: NewNode {
                    hostname: node.hostname,
                    role: node.role,
                    key: node.key,
                    rpc: node.rpc,
                },
                secret: node.secret,
                availability: node.availability,
            };
            match self.propose(command).await? {
                Applied::Node(id) => Ok(id),
                other => Err(internal("joining", format!("the log answered {other:?}"))),
            }
        })
    }

    fn remove_node(&self, node: NodeId) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            self.propose(Command::RemoveNode { node }).await?;
            Ok(())
        })
    }

    fn need_block(&self, node: NodeId, vni: Vni) -> BoxFuture<'_, Result<u32, ApiError>> {
        Box::pin(async move {
            match self.propose(Command::AssignBlock { node, vni }).await? {
                Applied::Block(k) => Ok(k),
                other => Err(internal("a block", format!("the log answered {other:?}"))),
            }
        })
    }

    fn query(&self, _node: NodeId, path: String) -> BoxFuture<'_, (u16, String)> {
        Box::pin(async move {
            match self.cluster.upgrade() {
                Some(c) => crate::api::query(&c, &path).await,
                None => (503, String::new()),
            }
        })
    }

    fn gossip_of(&self, node: NodeId) -> Option<SocketAddr> {
        let c = self.cluster.upgrade()?;
        match c.me == node {
            true => Some(c.addresses().gossip),
            false => c.node_row(&c.facts(), node).map(|r| r.gossip),
        }
    }

    fn health(&self, node: NodeId) -> NodeHealth {
        match self.cluster.upgrade() {
            Some(c) if c.me == node => NodeHealth::Ready,
            Some(c) => c.facts().health.get(&node).copied().unwrap_or(NodeHealth::Unknown),
            None => NodeHealth::Unknown,
        }
    }

    fn leader(&self) -> watch::Receiver<Leader> {
        match self.manager.upgrade() {
            Some(m) => m.leader(),
            // Ends at once: its sender is gone.
            None => watch::channel(Leader::Nobody).1,
        }
    }

    fn raft_id(&self, node: NodeId, old: u64) -> BoxFuture<'_, Result<u64, ApiError>> {
        Box::pin(async move { self.manager()?.raft_id(node, old).await })
    }

    fn raft(&self, stream: Stream, peer: PeerId, from: u64, to: u64) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(async move {
            let peers = self.manager().map_err(std::io::Error::other)?.peers.clone();
            peers.accept(stream, peer, from, to).await
        })
    }

    fn http(&self, stream: Stream, peer: PeerId) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(async move {
            admit_manager(&self.known.now(), &peer).map_err(std::io::Error::other)?;
            let gone = || std::io::Error::other("netd is stopping");
            let daemon = self.cluster.upgrade().and_then(|c| c.daemon()).ok_or_else(gone)?;
            rpc::serve_http(stream, peer, crate::api::router(daemon)).await
        })
    }
}

impl Inbox for Store {
    fn message(&self, m: Message) -> bool {
        Store::message(self, m)
    }

    fn unreachable(&self, raft: u64) {
        self.input(cluster::manager::Input::Unreachable { id: raft });
    }

    fn snapshot_sent(&self, raft: u64, arrived: bool) {
        self.input(cluster::manager::Input::SnapshotSent { id: raft, arrived });
    }

    fn round_trip(&self, raft: u64, took: std::time::Duration) {
        self.input(cluster::manager::Input::RoundTrip { id: raft, took });
    }

    fn standing(&self) -> Standing {
        let s = self.status();
        Standing {
            term: s.term,
            last_index: s.last_index,
            applied: s.applied,
        }
    }
}
