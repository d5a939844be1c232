//! Who a node is, and how it proves that: its key, the cluster's CA, tokens to join with, and TLS between nodes.
//!
//! One Ed25519 key per node, made before it joins and kept for ever ([`NodeKey`]), signs its rows, its certificates'
//! requests and its TLS handshakes. The CA (a [`ClusterSecrets`] of the managers) certifies `netd://<cluster>/n3/worker`.
//! A peer counts as node n3 when its certificate says so AND the intent holds this very key for n3 ([`admit`]): so a
//! removed node is refused although its certificate is still valid.

mod ca;
mod node;
#[cfg(test)]
mod tests;
mod tls;
mod token;

pub use ca::{CERTIFICATE_DAYS, ClusterSecrets, Csr};
pub use node::{Credentials, NodeKey};
pub use tls::{PeerId, Tls, admit, admit_manager, admit_node, certified_role, connect_pinned};
pub use token::{Gate, SECRET, Token};

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
    /// Randomness is missing.
    #[error("the kernel gives no random octets; try: look at the host's log")]
    Random,
}

impl From<IdentityError> for model::ApiError {
    fn from(e: IdentityError) -> Self {
        let code = match &e {
            IdentityError::Token(_) | IdentityError::Certificate { .. } => model::Code::Invalid,
            IdentityError::NotOurs(_) | IdentityError::NotMember(_) => model::Code::Forbidden,
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
