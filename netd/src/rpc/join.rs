//! Joining, from the node's side: token -> CA pinned -> certificate -> mTLS -> gossip keys and intent.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use model::{
    error::{ApiError, Code},
    intent::{Availability, Intent},
};
use rustls::pki_types::pem::PemObject;
use tokio::{net::TcpStream, sync::watch, time::timeout};

use super::{
    HANDSHAKE, MAX_DOWN, MAX_JOIN, Uplink, UplinkConfig, frame,
    message::{JoinAnswer, JoinRequest, ListAnswer, Opening, ToManager, ToNode},
};
use crate::{
    identity::{Credentials, IdentityError, NodeKey, Tls, Token, connect_pinned},
    known::Known,
};

/// How long the log may take to let a node in, and the first snapshot to come.
const ANSWER: Duration = Duration::from_secs(15);

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No manager answers there, or it is not the token's.
    #[error(
        "no manager of this cluster at {addr}: {why}; try: the token and address that netctl cluster token worker shows on a manager"
    )]
    Connect {
        /// Where.
        addr: SocketAddr,
        /// Cause.
        why: String,
    },
    /// The manager says no.
    #[error("the manager refuses: {0}")]
    Refused(ApiError),
    /// What came back makes no sense.
    #[error("the manager's answer cannot be used: {0}; try: run the same version of netd on all nodes")]
    Answer(String),
    /// A certificate cannot be made or used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<JoinError> for ApiError {
    fn from(e: JoinError) -> ApiError {
        match e {
            JoinError::Refused(e) => e,
            JoinError::Connect { addr, why } => ApiError::new(
                Code::Unavailable,
                format!("no manager of this cluster at {addr}: {why}"),
                "the token and address that netctl cluster token worker shows on a manager",
            ),
            JoinError::Answer(_) => ApiError::new(Code::Internal, e.to_string(), ""),
            JoinError::Identity(e) => e.into(),
        }
    }
}

/// What a node has after it joined. Nothing is on disk yet: save the credentials first.
#[derive(Debug, Clone)]
pub struct Joined {
    /// Certificate, CA, ids, gossip keys.
    pub credentials: Credentials,
    /// The whole intent, this node in it.
    pub intent: Arc<Intent>,
    /// This node's address as the manager sees it.
    pub seen: IpAddr,
    /// Managers' gossip addresses, as far as the manager knows them.
    pub gossip: Vec<SocketAddr>,
}

/// What a node says of itself when it joins.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Host name.
    pub hostname: &'a str,
    /// Where it would be a manager.
    pub rpc: SocketAddr,
    /// What it begins with, if it is new.
    pub availability: Availability,
}

/// Joins the cluster of a manager. Trying again with the same key gives the same node.
pub async fn join(token: &Token, addr: SocketAddr, key: &NodeKey, offer: &Offer<'_>) -> Result<Joined, JoinError> {
    let (mut credentials, seen, gossip) = prove_anew(token, addr, key, offer).await?;
    let tls = Tls::new(&credentials, key)?;
    let (keys, intent) = timeout(ANSWER, first(&tls, addr))
        .await
        .map_err(|_| JoinError::Answer("the gossip keys did not come in time".into()))?
        .map_err(|e| JoinError::Answer(e.to_string()))?;
    credentials.gossip = keys;
    Ok(Joined {
        credentials,
        intent: Arc::new(intent),
        seen,
        gossip,
    })
}

/// The first half of it: a certificate for a token. For a node whose key the cluster knows it is that node's.
pub async fn prove_anew(
    token: &Token,
    addr: SocketAddr,
    key: &NodeKey,
    offer: &Offer<'_>,
) -> Result<(Credentials, IpAddr, Vec<SocketAddr>), JoinError> {
    let connect = |why: String| JoinError::Connect { addr, why };
    let late = |_| connect(format!("no answer within {} s", HANDSHAKE.as_secs()));
    let (mut stream, manager) = timeout(HANDSHAKE, connect_pinned(addr, token.pin))
        .await
        .map_err(late)?
        .map_err(|e| connect(e.to_string()))?;
    let request = Opening::Join(JoinRequest {
        secret: token.secret.to_vec(),
        csr: key.csr(offer.hostname)?,
        hostname: offer.hostname.to_owned(),
        rpc: Some(offer.rpc.to_string()),
        availability: offer.availability,
    });
    let talk = async {
        frame::write(&mut stream, &request).await?;
        frame::read::<Result<JoinAnswer, ApiError>>(&mut stream, MAX_JOIN).await
    };
    let answer = timeout(ANSWER, talk)
        .await
        .map_err(|_| JoinError::Answer("it did not come in time".into()))?
        .map_err(|e| JoinError::Answer(e.to_string()))?
        .map_err(JoinError::Refused)?;
    if answer.cluster != manager.cluster || !pinned(&answer.issued.ca, token) {
        return Err(JoinError::Answer("it is for another cluster".into()));
    }
    let (seen, gossip) = (answer.seen, answer.gossip.clone());
    Ok((answer.into_credentials(addr), seen, gossip))
}

/// The managers' addresses, as the one at `addr` knows them. Nothing changes there.
pub async fn managers(token: &Token, addr: SocketAddr) -> Result<Vec<String>, JoinError> {
    let connect = |why: String| JoinError::Connect { addr, why };
    let late = |_| connect(format!("no answer within {} s", HANDSHAKE.as_secs()));
    let (mut stream, manager) = timeout(HANDSHAKE, connect_pinned(addr, token.pin))
        .await
        .map_err(late)?
        .map_err(|e| connect(e.to_string()))?;
    let talk = async {
        frame::write(&mut stream, &Opening::List(token.secret.to_vec())).await?;
        frame::read::<Result<ListAnswer, ApiError>>(&mut stream, MAX_JOIN).await
    };
    let answer = timeout(ANSWER, talk)
        .await
        .map_err(|_| JoinError::Answer("it did not come in time".into()))?
        .map_err(|e| JoinError::Answer(e.to_string()))?
        .map_err(JoinError::Refused)?;
    match answer.cluster == manager.cluster {
        true => Ok(with(answer.managers, addr)),
        false => Err(JoinError::Answer("it is for another cluster".into())),
    }
}

/// Asks to be taken out of a cluster that was just joined: what this node found out afterwards forbids it.
pub async fn leave(credentials: &Credentials, key: &NodeKey) -> Result<(), ApiError> {
    let (uplink, _asked) = Uplink::start(UplinkConfig {
        me: credentials.node,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tls: Arc::new(Tls::new(credentials, key)?),
        first: credentials.managers.iter().filter_map(|m| m.parse().ok()).collect(),
        local: watch::channel(None).1,
        intent: Known::new(Arc::default()),
    });
    uplink.leave().await
}

impl JoinAnswer {
    /// What the node keeps; the gossip keys come later.
    pub(super) fn into_credentials(self, addr: SocketAddr) -> Credentials {
        Credentials {
            cluster: self.cluster,
            node: self.node,
            role: self.issued.role,
            certificate: self.issued.certificate,
            ca: self.issued.ca,
            issuer: self.issued.issuer,
            gossip: Vec::new(),
            managers: with(self.managers, addr),
        }
    }
}

/// The address that worked comes first.
fn with(mut managers: Vec<String>, addr: SocketAddr) -> Vec<String> {
    let addr = addr.to_string();
    managers.retain(|m| *m != addr);
    managers.insert(0, addr);
    managers
}

fn pinned(ca: &str, token: &Token) -> bool {
    use ring::digest::{SHA256, digest};
    let mut roots = rustls::pki_types::CertificateDer::pem_slice_iter(ca.as_bytes());
    // While the CA changes there are two.
    roots.any(|root| root.is_ok_and(|d| digest(&SHA256, &d).as_ref() == token.pin))
}

/// The start of a stream: gossip keys and the whole intent.
async fn first(tls: &Tls, addr: SocketAddr) -> std::io::Result<(Vec<cluster::seal::Key>, Intent)> {
    let tcp = TcpStream::connect(addr).await?;
    tcp.set_nodelay(true)?;
    let (mut stream, _) = tls.connect(tcp).await?;
    let hello = ToManager::Hello {
        revision: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    frame::write(&mut stream, &hello).await?;
    let mut keys = None;
    loop {
        match frame::read(&mut stream, MAX_DOWN).await? {
            ToNode::Welcome { keys: k } => keys = Some(k),
            ToNode::Delta(delta) => {
                let mut intent = Intent::default();
                let taken = intent.apply(*delta);
                return match keys {
                    Some(keys) if taken => Ok((keys, intent)),
                    _ => Err(std::io::Error::other("the intent did not come whole")),
                };
            }
            ToNode::Refused(e) => return Err(std::io::Error::other(e)),
            _ => {}
        }
    }
}
