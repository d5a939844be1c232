//! The managers' listening side: handshakes, joins, streams.

use std::{
    io::{Error, Result},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

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
    message::{JoinAnswer, JoinRequest, ListAnswer},
    session,
};
use crate::identity::{ClusterSecrets, Csr, Gate, PeerId, Tls};

/// How long a node that the log has just let in may be ahead of this manager's intent.
const CATCH_UP: Duration = Duration::from_secs(2);
/// A full connection table or file table: give others time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
                let begun = timeout(HANDSHAKE, hub.greet(tcp, from, &tls, &gate)).await;
                drop(shaking);
                let ended = match begun {
                    Ok(Ok(Some((stream, peer)))) => hub.stream(stream, peer, from).await,
                    Ok(Ok(None)) => Ok(()),
                    Ok(Err(e)) => Err(e),
                    Err(_) => Err(Error::other("the handshake took too long")),
                };
                if let Err(e) = ended {
                    tracing::debug!(%from, error = %e, "RPC: a connection ended");
                }
            });
        }
    }

    /// The handshake; whoever has no certificate may join, and that is all.
    async fn greet(
        &self,
        tcp: TcpStream,
        from: SocketAddr,
        tls: &Tls,
        gate: &Mutex<Gate>,
    ) -> Result<Option<(TlsStream<TcpStream>, PeerId)>> {
        tcp.set_nodelay(true)?;
        let mut stream = tls.open_acceptor().accept(tcp).await?;
        if stream.get_ref().1.peer_certificates().is_some() {
            let peer = PeerId::of(stream.get_ref().1).map_err(Error::other)?;
            return Ok(Some((stream, peer)));
        }
        let request: JoinRequest = frame::read(&mut stream, MAX_JOIN).await?;
        if request.list {
            let answer = self.list(&request, from.ip(), gate);
            frame::write(&mut stream, &answer).await?;
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await?;
            return Ok(None);
        }
        let answer = self.join(request, from.ip(), gate).await;
        if let Err(e) = &answer {
            tracing::warn!(%from, error = %e, "a node was not let in");
        }
        frame::write(&mut stream, &answer).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut stream).await?;
        Ok(None)
    }

    /// What a token opens; wrong ones are counted.
    fn let_in(
        &self,
        secret: &[u8],
        from: IpAddr,
        gate: &Mutex<Gate>,
    ) -> std::result::Result<(ClusterSecrets, Role), ApiError> {
        let gate = || gate.lock().unwrap_or_else(|e| e.into_inner());
        if !gate().open(Instant::now(), from) {
            return Err(ApiError::new(
                Code::Unavailable,
                "too many wrong tokens were tried",
                "again in a minute, with the token of netctl cluster token worker",
            ));
        }
        let secrets = self.port.secrets()?;
        match secrets.role_of(secret) {
            Some(role) => Ok((secrets, role)),
            None => {
                gate().failed(Instant::now(), from);
                Err(ApiError::new(
                    Code::Forbidden,
                    "the token's secret is not valid, or not any more",
                    "netctl cluster token worker (on a manager)",
                ))
            }
        }
    }

    /// Who the managers are, for whoever holds a token.
    fn list(&self, r: &JoinRequest, from: IpAddr, gate: &Mutex<Gate>) -> std::result::Result<ListAnswer, ApiError> {
        self.let_in(&r.secret, from, gate)?;
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
        let (secrets, role) = self.let_in(&r.secret, from, gate)?;
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
            hostname: r.hostname,
            role,
            key: csr.key().to_vec(),
        };
        let node = self.port.add_node(newcomer).await?;
        let intent = self.port.intent().borrow().clone();
        let certificate = secrets.sign(&csr, &intent.cluster, node, role)?;
        let of_role = |role| intent.nodes.iter().filter(move |(_, n)| n.role == role);
        tracing::info!(%node, %from, ?role, "a node has joined");
        Ok(JoinAnswer {
            cluster: intent.cluster.clone(),
            node,
            role,
            certificate,
            ca: secrets.ca().to_owned(),
            gossip: of_role(Role::Manager)
                .filter_map(|(id, _)| self.port.gossip_of(*id))
                .collect(),
            managers: of_role(Role::Manager).filter_map(|(_, n)| n.rpc.clone()).collect(),
            seen: from.to_canonical(),
        })
    }

    async fn stream(&self, stream: TlsStream<TcpStream>, peer: PeerId, from: SocketAddr) -> Result<()> {
        self.wait_for(peer.node).await;
        session::serve(self, stream, peer.node, Some(peer), Some(from)).await
    }

    /// Waits a little for the intent to know a node; whether it does is checked by the stream.
    async fn wait_for(&self, node: NodeId) {
        let mut intent = self.port.intent();
        let known = intent.wait_for(|i| i.nodes.contains_key(&node));
        let _ = timeout(CATCH_UP, known).await;
    }
}
