//! The managers' listening side: handshakes, joins, streams.

use std::{
    io::{Error, ErrorKind, Result},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use cluster::state::Secret;
use model::{
    error::{ApiError, Code},
    ids::NodeId,
    intent::Role,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::server::TlsStream;

use super::{
    HANDSHAKE, MAX_HANDSHAKES, MAX_JOIN, MAX_STREAMS, Newcomer, frame,
    hub::Hub,
    message::{JoinAnswer, JoinRequest, ListAnswer, Opening, ToManager},
    session,
};
use crate::identity::{Csr, Gate, PeerId, Tls, admit_manager, binding};

/// How long a node that the log has just let in may be ahead of this manager's intent.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Octets of a node's first message.
const MAX_FIRST: usize = 4 << 10;
/// How long the log and an external signer may take to let a node in.
const ANSWER: Duration = Duration::from_secs(12);
/// A full connection table or file table: give others time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Whoever has connected.
enum Greeted {
    /// A node of the cluster, by its certificate.
    Node(Box<TlsStream<TcpStream>>, PeerId),
    /// Without a certificate: what it said, and what its proof must be bound to.
    Stranger(Box<TlsStream<TcpStream>>, Opening, [u8; 32]),
}

impl Hub {
    /// Serves joins and streams on a socket, for ever.
    pub async fn serve(&self, listener: TcpListener, tls: Arc<Tls>) {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        let gate = Arc::new(Mutex::new(Gate::default()));
        loop {
            // Never closed, so it cannot fail.
            let Ok(shaking) = handshakes.clone().acquire_owned().await else {
                return;
            };
            let (tcp, from) = match listener.accept().await {
                Ok(x) => x,
                Err(e) => {
                    tracing::warn!(error = %e, "RPC: a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = streams.clone().try_acquire_owned() else {
                tracing::warn!(%from, "RPC: {MAX_STREAMS} streams are open, one more is refused");
                continue;
            };
            let (hub, tls, gate) = (self.clone(), tls.clone(), gate.clone());
            tokio::spawn(async move {
                let _place = place;
                let begun = timeout(HANDSHAKE, hub.greet(tcp, &tls)).await;
                drop(shaking);
                let ended = match begun {
                    Ok(Ok(Greeted::Node(stream, peer))) => hub.stream(*stream, peer, from).await,
                    Ok(Ok(Greeted::Stranger(stream, opening, bound))) => {
                        let answered = hub.answer(*stream, opening, &bound, from, &gate);
                        timeout(ANSWER, answered).await.unwrap_or_else(|e| Err(e.into()))
                    }
                    Ok(Err(e)) => Err(e),
                    Err(_) => Err(Error::other("the handshake took too long")),
                };
                if let Err(e) = ended {
                    tracing::debug!(%from, error = %e, "RPC: a connection ended");
                }
            });
        }
    }

    /// The handshake; whoever has no certificate may say one thing, and that is all.
    async fn greet(&self, tcp: TcpStream, tls: &Tls) -> Result<Greeted> {
        tcp.set_nodelay(true)?;
        let mut stream = tls.open_acceptor().accept(tcp).await?;
        if stream.get_ref().1.peer_certificates().is_some() {
            let peer = PeerId::of(stream.get_ref().1).map_err(Error::other)?;
            return Ok(Greeted::Node(Box::new(stream), peer));
        }
        let bound = binding(stream.get_ref().1).map_err(Error::other)?;
        let opening = frame::read(&mut stream, MAX_JOIN).await?;
        Ok(Greeted::Stranger(Box::new(stream), opening, bound))
    }

    /// Lets a stranger in, or not.
    async fn answer(
        &self,
        mut stream: TlsStream<TcpStream>,
        opening: Opening,
        bound: &[u8],
        from: SocketAddr,
        gate: &Mutex<Gate>,
    ) -> Result<()> {
        let answer = match opening {
            Opening::Join(request) => self.join(request, from.ip(), gate).await,
            Opening::Return(request) => self.take_back(request, bound, from.ip(), gate).await,
            Opening::List(secret) => {
                let answer = self.list(&secret, from.ip(), gate);
                frame::write(&mut stream, &answer).await?;
                return tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
            }
        };
        if let Err(e) = &answer {
            tracing::warn!(%from, error = %e, "a node was not let in");
        }
        frame::write(&mut stream, &answer).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut stream).await
    }

    /// What a token opens; wrong ones are counted.
    fn let_in(&self, secret: &[u8], from: IpAddr, gate: &Mutex<Gate>) -> std::result::Result<Role, ApiError> {
        let gate = || gate.lock().unwrap_or_else(|e| e.into_inner());
        if !gate().open(Instant::now(), from) {
            return Err(ApiError::new(
                Code::Unavailable,
                "too many wrong tokens were tried",
                "again in a minute, with the token of netctl cluster token worker",
            ));
        }
        self.port.secrets()?.role_of(secret).ok_or_else(|| {
            gate().failed(Instant::now(), from);
            ApiError::new(
                Code::Forbidden,
                "the token's secret is not valid, or not any more",
                "netctl cluster token worker (on a manager)",
            )
        })
    }

    /// Who the managers are, for whoever holds a token.
    fn list(&self, secret: &[u8], from: IpAddr, gate: &Mutex<Gate>) -> std::result::Result<ListAnswer, ApiError> {
        self.let_in(secret, from, gate)?;
        let intent = self.port.intent().borrow().clone();
        let managers = intent.nodes.values().filter(|n| n.role == Role::Manager);
        Ok(ListAnswer {
            cluster: intent.cluster.clone(),
            managers: managers.filter_map(|n| n.rpc.clone()).collect(),
        })
    }

    async fn join(
        &self,
        r: JoinRequest,
        from: IpAddr,
        gate: &Mutex<Gate>,
    ) -> std::result::Result<JoinAnswer, ApiError> {
        let role = self.let_in(&r.secret, from, gate)?;
        let csr = Csr::parse(&r.csr)?;
        let good = |c: char| c.is_ascii_graphic();
        if r.hostname.is_empty() || r.hostname.len() > 253 || !r.hostname.chars().all(good) {
            return Err(ApiError::new(
                Code::Invalid,
                "the host name is empty, too long, or has odd characters",
                "node.name in netd's configuration",
            ));
        }
        let newcomer = Newcomer {
            secret: Secret(r.secret),
            hostname: r.hostname,
            role,
            key: csr.key().to_vec(),
            rpc: r.rpc.filter(|_| role == Role::Manager),
            availability: r.availability,
        };
        let node = self.port.add_node(newcomer).await?;
        let intent = self.port.intent().borrow().clone();
        // The log has the last word, also on this.
        let role = intent.nodes.get(&node).map_or(role, |n| n.role);
        let issued = self.port.certify(csr, node, role).await?;
        let managers = || intent.nodes.iter().filter(|(_, n)| n.role == Role::Manager);
        tracing::info!(%node, %from, ?role, "a node has joined");
        Ok(JoinAnswer {
            cluster: intent.cluster.clone(),
            node,
            issued,
            gossip: managers().filter_map(|(id, _)| self.port.gossip_of(*id)).collect(),
            managers: managers().filter_map(|(_, n)| n.rpc.clone()).collect(),
            seen: from.to_canonical(),
        })
    }

    async fn stream(&self, mut stream: TlsStream<TcpStream>, peer: PeerId, from: SocketAddr) -> Result<()> {
        match timeout(HANDSHAKE, frame::read(&mut stream, MAX_FIRST)).await?? {
            ToManager::Hello { revision, version } => {
                self.wait_for(peer.node).await;
                session::serve(self, stream, peer.node, Some(peer), Some(from), revision, version).await
            }
            // Who is refused there is told the revision too: it may be a manager of before a new beginning.
            ToManager::Raft { from, to } => self.port.raft(stream, peer, from, to).await,
            ToManager::Http => {
                self.managers_only(&peer)?;
                self.port.http(stream, peer).await
            }
            _ => Err(Error::new(ErrorKind::InvalidData, "the first message is no greeting")),
        }
    }

    /// What follows is looked at again with each message and each request: the role may change meanwhile.
    fn managers_only(&self, peer: &PeerId) -> Result<()> {
        let intent = self.port.intent().borrow().clone();
        admit_manager(&intent, peer).map_err(Error::other)
    }

    /// Waits a little for the intent to know a node; whether it does is checked by the stream.
    async fn wait_for(&self, node: NodeId) {
        let mut intent = self.port.intent();
        let known = intent.wait_for(|i| i.nodes.contains_key(&node));
        let _ = timeout(CATCH_UP, known).await;
    }
}
