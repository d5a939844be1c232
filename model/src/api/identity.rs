//! Tokens, certificates, keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::intent::Role;

/// `GET /v1/cluster/token?role=worker`.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenAnswer {
    /// The token.
    pub token: String,
    /// `ip:port` to join at.
    pub addr: String,
}

impl std::fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest is secret.
        f.debug_struct("TokenAnswer")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// `POST /v1/cluster/token`: makes the token of a role worthless; the answer is a [`TokenAnswer`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRotate {
    /// Whose.
    pub role: Role,
}

/// `POST /v1/cluster/renew`: proves this node anew by a token, when its certificate is too old to be traded in. Its id,
/// its tasks and its state stay.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterRenew {
    /// Token of the node's role.
    pub token: String,
    /// A manager, `ip[:port]`.
    pub addr: String,
}

impl std::fmt::Debug for ClusterRenew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest is secret.
        f.debug_struct("ClusterRenew")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// `GET /v1/cluster/custody`: how the CA, the gossip keys and the certificates stand.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CustodyView {
    /// The CA.
    pub ca: CaView,
    /// Gossip keys.
    pub gossip: GossipKeysView,
    /// Whether managers' disks are sealed.
    pub autolock: bool,
    /// Ends of the certificates that connected nodes have reported, seconds since 1970.
    pub certificates: BTreeMap<NodeId, u64>,
}

/// The CA.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CaView {
    /// The root that certificates come from.
    pub signs: RootView,
    /// Roots that nodes trust: two while the CA is changed.
    pub trusted: Vec<RootView>,
    /// `trust`: all nodes learn to trust the new root; `renew`: all get certificates of it; none: no change is under way.
    pub phase: Option<String>,
    /// Seconds that the phase lasts already.
    pub since_s: Option<u64>,
    /// Nodes that it waits for; one that is dead is not waited for and trades in its certificate when it returns.
    pub waits_for: Vec<NodeId>,
}

/// A root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RootView {
    /// SHA-256 of its certificate, hexadecimal.
    pub fingerprint: String,
    /// Whether managers have its key; else an external signer has.
    pub key_here: bool,
}

/// The gossip keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GossipKeysView {
    /// Numbers, the one to seal with first.
    pub keys: Vec<u32>,
    /// `receive`: all learn to open with the new one; `send`: it seals; none: no change is under way.
    pub phase: Option<String>,
    /// Age of the newest one, seconds of log time.
    pub age_s: u64,
    /// Nodes that the change waits for.
    pub waits_for: Vec<NodeId>,
}

/// `POST /v1/cluster/ca/rotate`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaRotate {
    /// Certificate (PEM) of a CA whose key the external signer has; none: a new root of the managers' own.
    pub ca_cert: Option<String>,
}

/// Longest secret that a person types, octets.
pub const MAX_SECRET_TEXT: usize = 256;

/// `POST /v1/cluster/unlock`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterUnlock {
    /// The unlock key.
    pub key: String,
}

impl std::fmt::Debug for ClusterUnlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It is a secret.
        f.debug_struct("ClusterUnlock").finish_non_exhaustive()
    }
}

/// `GET /v1/cluster/unlock-key`, and `POST` of the same, which changes it.
#[derive(Clone, Serialize, Deserialize)]
pub struct UnlockKeyAnswer {
    /// The key that opens managers after a restart.
    pub key: String,
}

impl std::fmt::Debug for UnlockKeyAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnlockKeyAnswer").finish_non_exhaustive()
    }
}
