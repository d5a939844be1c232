//! The way back of a node whose certificate counts no more: it has ended, the CA has changed, or the role has.
//!
//! The node connects without a certificate, but only to a manager that its own roots (or a certificate by which one of
//! them vouches) prove. There it shows the old certificate and signs, with its key, octets that only this connection has.
//! The manager looks the key up in the log: a node that was removed finds nothing there.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use model::{
    error::{ApiError, Code},
    intent::Role,
};
use ring::signature::{ED25519, UnparsedPublicKey};
use tokio::{net::TcpStream, time::timeout};

use super::{
    HANDSHAKE, MAX_JOIN, frame,
    hub::Hub,
    message::{JoinAnswer, Opening, ReturnRequest},
};
use crate::identity::{Credentials, Csr, Gate, IdentityError, Issued, NodeKey, Tls, binding, former};

/// A certificate is taken in trade for so long after its end.
const BOUND: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a manager may take; the external signer may be slow.
const ANSWER: Duration = Duration::from_secs(15);

/// Trades the certificate in at a manager.
pub async fn trade_in(tls: &Tls, addr: SocketAddr, key: &NodeKey, old: &Credentials) -> anyhow::Result<Issued> {
    let connect = async {
        let tcp = TcpStream::connect(addr).await?;
        tcp.set_nodelay(true)?;
        tls.connect_bare(tcp).await
    };
    let (mut stream, manager) = timeout(HANDSHAKE, connect).await??;
    if manager.role != Role::Manager || manager.cluster != old.cluster {
        anyhow::bail!(IdentityError::NotOurs("it is no manager of this cluster"));
    }
    let request = Opening::Return(ReturnRequest {
        certificate: old.certificate.clone(),
        csr: key.csr("netd")?,
        proof: key.sign(&binding(stream.get_ref().1)?)?,
    });
    let talk = async {
        frame::write(&mut stream, &request).await?;
        frame::read::<Result<JoinAnswer, ApiError>>(&mut stream, MAX_JOIN).await
    };
    let answer = timeout(ANSWER, talk).await??;
    let answer = answer.map_err(|e| anyhow::anyhow!("{}; try: {}", e.message, e.hint))?;
    if (&answer.cluster, answer.node) != (&old.cluster, old.node) {
        anyhow::bail!(IdentityError::NotOurs("it takes this node for another one"));
    }
    Ok(answer.issued)
}

impl Hub {
    /// Whether a certificate may be traded in, and the new one.
    pub(super) async fn take_back(
        &self,
        r: ReturnRequest,
        bound: &[u8],
        from: IpAddr,
        gate: &Mutex<Gate>,
    ) -> Result<JoinAnswer, ApiError> {
        let gate = || gate.lock().unwrap_or_else(|e| e.into_inner());
        if !gate().open(Instant::now(), from) {
            return Err(ApiError::new(
                Code::Unavailable,
                "too many wrong tokens or certificates came from there",
                "again in a minute",
            ));
        }
        let admitted = self.look_at(&r, bound);
        let (csr, node, role) = match admitted {
            Ok(x) => x,
            Err(e) => {
                gate().failed(Instant::now(), from);
                let mut refusal = ApiError::from(e);
                refusal.code = Code::Forbidden;
                return Err(refusal);
            }
        };
        let issued = self.port.certify(csr, node, role).await?;
        let intent = self.port.intent().borrow().clone();
        let managers = intent.nodes.values().filter(|n| n.role == Role::Manager);
        tracing::info!(%node, %from, ?role, "a node has come back with a certificate that did not count any more");
        Ok(JoinAnswer {
            cluster: intent.cluster.clone(),
            node,
            issued,
            managers: managers.filter_map(|n| n.rpc.clone()).collect(),
            gossip: Vec::new(),
            seen: from,
        })
    }

    fn look_at(&self, r: &ReturnRequest, bound: &[u8]) -> Result<(Csr, model::ids::NodeId, Role), IdentityError> {
        let csr = Csr::parse(&r.csr)?;
        UnparsedPublicKey::new(&ED25519, csr.key())
            .verify(bound, &r.proof)
            .map_err(|_| IdentityError::NotOurs("it does not prove that it has its key"))?;
        let secrets = self.port.secrets().map_err(|_| IdentityError::Locked)?;
        let old = former(&r.certificate, secrets.ca.known())?;
        if old.key != csr.key() {
            return Err(IdentityError::NotOurs("its certificate is for another key"));
        }
        let intent = self.port.intent().borrow().clone();
        if old.cluster != intent.cluster {
            return Err(IdentityError::NotOurs("its certificate names another cluster"));
        }
        let node = intent.nodes.get(&old.node).ok_or(IdentityError::NotMember(old.node))?;
        if node.key != csr.key() {
            return Err(IdentityError::NotOurs("its key is not the one it joined with"));
        }
        let ago = SystemTime::now().duration_since(old.until).unwrap_or_default();
        if ago > BOUND {
            return Err(IdentityError::TooOld(ago.as_secs() / 86_400));
        }
        Ok((csr, old.node, node.role))
    }
}
