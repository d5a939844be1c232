//! Who a node is, and how it proves that: its key, the cluster's CA, tokens to join with, and TLS between nodes.
//!
//! One Ed25519 key per node, made before it joins and kept for ever ([`NodeKey`]), signs its rows, its certificates'
//! requests and its TLS handshakes. The CA (in the managers' [`ClusterSecrets`]) certifies `netd://<cluster>/n3/worker`.
//! A peer counts as node n3 when its certificate says so AND the intent holds this very key and role for n3 ([`admit`]):
//! so a removed or demoted node is refused although its certificate is still valid.

mod ca;
mod custody;
mod external;
mod node;
mod secrets;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod vault;

pub use ca::{CERTIFICATE_LIFE, Csr, Root, Subject, fingerprint};
pub use custody::{
    CA_DEADLINE, GOSSIP_DEADLINE, GOSSIP_EVERY, Holding, Policy, Seen, Step, ca_waits, gossip_waits, next,
};
pub use external::{Signer, sign_outside};
pub use node::{Credentials, Issued, NodeKey};
pub use secrets::{Ca, CaChange, CaPhase, ClusterSecrets, GossipKeys, GossipPhase};
pub use tls::{PeerId, Tls, admit_manager, admit_node, binding, connect_pinned, former, known, manages};
pub use token::{Gate, SECRET, Token};
pub use vault::{About, LOG_KEY, UnlockKey, Vault};

use model::ids::NodeId;

/// What goes wrong with identities.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The key or certificate on disk cannot be used.
    #[error("{path}: {why}; try: restore the state directory, or remove it and join again")]
    Disk {
        /// File.
        path: std::path::PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A token does not read as one.
    #[error("the token {0}; try: netctl cluster token worker (on a manager)")]
    Token(&'static str),
    /// Key, request or certificate cannot be made or read.
    #[error("{what}: {why}; try: join again with a new token")]
    Certificate {
        /// What was being done.
        what: &'static str,
        /// Cause.
        why: String,
    },
    /// TLS refuses its settings.
    #[error("TLS cannot be set up: {0}; try: join again with a new token")]
    Tls(#[from] rustls::Error),
    /// The peer shows no certificate of this cluster.
    #[error("the peer is no node of this cluster: {0}; try: netctl cluster members")]
    NotOurs(&'static str),
    /// The peer was removed, or is not known yet.
    #[error("{0} is not in the cluster; try: netctl node ls (a removed node joins again as a new one)")]
    NotMember(NodeId),
    /// Another node answers than the one that was called.
    #[error("{want} was called, {got} answers; try: netctl cluster members, and look for an address used twice")]
    Other {
        /// Called.
        want: NodeId,
        /// Answers.
        got: NodeId,
    },
    /// What managers keep secret does not read.
    #[error("the managers' secrets cannot be read: {what}: {why}; try: run the same version of netd on all managers")]
    Secrets {
        /// Which part.
        what: String,
        /// Cause.
        why: String,
    },
    /// A change of the CA while one is under way, or to the same root.
    #[error("the CA is being changed already, or is this one; try: netctl cluster ca show")]
    UnderWay,
    /// An external signer did not sign.
    #[error(
        "the external signer {url} did not sign: {why}; try: netctl cluster inspect, then look at the signer's log"
    )]
    Outside {
        /// Which.
        url: String,
        /// Cause.
        why: String,
    },
    /// The certificate that a node trades in is too old.
    #[error("its certificate ended {0} days ago; try: netctl cluster renew TOKEN ADDR on that node")]
    TooOld(u64),
    /// This manager's secrets are sealed.
    #[error(
        "this manager is locked: its keys are sealed, and it has not been given the key since it started; try: netctl cluster unlock"
    )]
    Locked,
    /// An unlock key does not read as one.
    #[error("the unlock key {0}; try: netctl cluster unlock-key (on a manager that is not locked)")]
    UnlockKey(&'static str),
    /// Another unlock key is needed.
    #[error(
        "the key {got} does not open this manager, which was sealed with key {want}; try: netctl cluster unlock-key (on a manager that is not locked), or the key of before its last change"
    )]
    WrongKey {
        /// Name of the right one.
        want: String,
        /// Name of the one that was given.
        got: String,
    },
    /// Randomness is missing.
    #[error("the kernel gives no random octets; try: look at the host's log")]
    Random,
}

impl From<IdentityError> for model::ApiError {
    fn from(e: IdentityError) -> Self {
        let code = match &e {
            IdentityError::Token(_) | IdentityError::Certificate { .. } | IdentityError::UnlockKey(_) => {
                model::Code::Invalid
            }
            IdentityError::NotOurs(_)
            | IdentityError::NotMember(_)
            | IdentityError::TooOld(_)
            | IdentityError::WrongKey { .. } => model::Code::Forbidden,
            IdentityError::UnderWay => model::Code::Conflict,
            IdentityError::Locked => model::Code::Locked,
            IdentityError::Outside { .. } => model::Code::Unavailable,
            _ => model::Code::Internal,
        };
        // The text carries its own hint.
        let text = e.to_string();
        let (message, hint) = text.split_once("; try: ").unwrap_or((&text, ""));
        model::ApiError::new(code, message, hint)
    }
}

/// Random octets.
pub fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut out = [0; N];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut out).map_err(|_| IdentityError::Random)?;
    Ok(out)
}

fn certificate(what: &'static str) -> impl Fn(rcgen::Error) -> IdentityError {
    move |e| IdentityError::Certificate {
        what,
        why: e.to_string(),
    }
}
