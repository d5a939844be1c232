//! What managers and nodes say to each other on the managers' RPC port (2377/tcp), in TLS 1.3.
//!
//! Without a certificate two things can be said: a token, to join ([`join`]), and an old certificate that does not count
//! any more, proved by the node's key, to get a new one ([`trade_in`]). With one, a node keeps a stream open
//! to any manager ([`Uplink`]): intent comes down as increments; reports, requests and answers go up. The manager's side
//! is the [`Hub`]: it holds what nodes reported in memory (never in the log) and reaches the log through a
//! [`ManagerPort`]. Messages are JSON in frames with a length; an unknown message of a newer version is skipped.

pub(crate) mod doors;
mod forward;
pub(crate) mod frame;
mod held;
mod hub;
mod join;
pub(crate) mod message;
mod recent;
mod renew;
mod returning;
mod rounds;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod uplink;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cluster::state::Secret;
pub use forward::{Forwarded, Forwarder, serve as serve_http};
use futures_util::future::BoxFuture;
pub use hub::{AskError, Hub, NodeReport};
pub use join::{JoinError, Joined, Offer, join, leave, managers, prove_anew};
pub use message::{Answer, Ask, Report};
use model::{
    api::NodeHealth,
    error::ApiError,
    ids::{NodeId, Vni},
    intent::{Availability, Intent, Role},
};
pub use renew::{Custody, keep_credentials};
pub(crate) use renew::{holding, revive};
pub use returning::trade_in;
use tokio::sync::watch;
pub use uplink::{Local, Uplink, UplinkConfig};

use crate::identity::{ClusterSecrets, Csr, Issued, PeerId};

/// TCP connect, TLS handshake and first message together may take this long.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// A stream on which nothing came for so many heartbeats is closed.
pub const MISSED: u32 = 4;
/// Longest time that writing one message may take.
pub const IDLE: Duration = Duration::from_secs(20);
/// Handshakes and joins under way at once; more wait in the kernel's queue.
pub const MAX_HANDSHAKES: usize = 256;
/// Streams open at once; more are refused.
pub const MAX_STREAMS: usize = 8192;
/// Requests of one node under way at once; more are refused.
pub const MAX_REQUESTS: usize = 64;
/// Octets of a message of a joining node, and of the answer.
pub const MAX_JOIN: usize = 64 << 10;
/// Octets of a message of a node.
pub const MAX_UP: usize = 4 << 20;
/// Octets of a message to a node: a snapshot of the intent is the largest.
pub const MAX_DOWN: usize = 64 << 20;

/// Both sides say something at least this often: the cluster's `dispatcher-heartbeat`.
fn beat(intent: &Intent) -> Duration {
    intent.settings.dispatcher_heartbeat()
}

/// A node that asks to be let in. Its token was good here; the log looks at it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newcomer {
    /// The token's secret.
    pub secret: Secret,
    /// Host name.
    pub hostname: String,
    /// The token's role.
    pub role: Role,
    /// Public key, 32 octets.
    pub key: Vec<u8>,
    /// Where it would serve the managers' RPC, `ip:port`.
    pub rpc: Option<String>,
    /// What it begins with, if it is new.
    pub availability: Availability,
}

/// A connection whose peer showed its certificate.
pub type Stream = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;

/// Who leads the managers, as one of them knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Leader {
    /// Nobody, as far as is known.
    #[default]
    Nobody,
    /// This very manager.
    Me,
    /// Another one.
    Other {
        /// Node.
        node: NodeId,
        /// Its RPC, `ip:port`.
        addr: String,
    },
}

/// What the hub needs of the manager that it runs in.
pub trait ManagerPort: Send + Sync + 'static {
    /// The newest intent.
    fn intent(&self) -> watch::Receiver<Arc<Intent>>;
    /// What managers keep secret.
    fn secrets(&self) -> Result<Arc<ClusterSecrets>, ApiError>;
    /// Certifies a node that the intent has.
    fn certify(&self, csr: Csr, node: NodeId, role: Role) -> BoxFuture<'_, Result<Issued, ApiError>>;
    /// Lets a node in; done when the log has it. The same key twice gives the same id.
    fn add_node(&self, node: Newcomer) -> BoxFuture<'_, Result<NodeId, ApiError>>;
    /// Takes a node out that wants to leave.
    fn remove_node(&self, node: NodeId) -> BoxFuture<'_, Result<(), ApiError>>;
    /// Gives a node one more address block of a network: its number.
    fn need_block(&self, node: NodeId, vni: Vni) -> BoxFuture<'_, Result<u32, ApiError>>;
    /// Answers a read of a path such as `/v1/services/web/tasks` for a node: HTTP status and JSON.
    fn query(&self, node: NodeId, path: String) -> BoxFuture<'_, (u16, String)>;
    /// A node's gossip address, when it is known.
    fn gossip_of(&self, _node: NodeId) -> Option<SocketAddr> {
        None
    }
    /// How a node is seen by this manager's gossip.
    fn health(&self, node: NodeId) -> NodeHealth;
    /// Who leads the managers.
    fn leader(&self) -> watch::Receiver<Leader>;
    /// A manager that has no log wants an id in Raft that never voted.
    fn raft_id(&self, node: NodeId, old: u64) -> BoxFuture<'_, Result<u64, ApiError>>;
    /// Takes Raft's messages from another manager until its stream ends.
    fn raft(&self, stream: Stream, peer: PeerId, from: u64, to: u64) -> BoxFuture<'_, std::io::Result<()>>;
    /// Answers requests that another manager passes on, until its stream ends.
    fn http(&self, stream: Stream, peer: PeerId) -> BoxFuture<'_, std::io::Result<()>>;
}
