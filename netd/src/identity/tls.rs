//! TLS 1.3 between nodes, both sides with certificates of the cluster's CA.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use model::{
    ids::NodeId,
    intent::{Intent, Role},
};
use rustls::{
    ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring::default_provider},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{
    IdentityError,
    ca::{pin_of, same},
    node::{Credentials, NodeKey},
};

/// Name in every node's certificate. Which node it is stands in the URI, and is checked after the handshake: callers
/// often know an address only.
pub(super) const SERVER_NAME: &str = "node.netd.internal";

/// Who a peer is, from its certificate. Made only of certificates that the handshake has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerId {
    /// Cluster.
    pub cluster: String,
    /// Node.
    pub node: NodeId,
    /// Role when the certificate was made.
    pub role: Role,
    /// Public key, 32 octets.
    pub key: Vec<u8>,
}

/// Whether a peer counts as a node of the cluster now, with the rights of a worker at least.
pub fn admit_node(intent: &Intent, peer: &PeerId) -> Result<(), IdentityError> {
    if peer.cluster != intent.cluster {
        return Err(IdentityError::NotOurs("its certificate names another cluster"));
    }
    let node = intent
        .nodes
        .get(&peer.node)
        .ok_or(IdentityError::NotMember(peer.node))?;
    if node.key != peer.key {
        return Err(IdentityError::NotOurs("its key is not the one it joined with"));
    }
    Ok(())
}

/// As [`admit_node`], and its certificate claims no role that the log does not give it.
pub fn admit(intent: &Intent, peer: &PeerId) -> Result<(), IdentityError> {
    admit_node(intent, peer)?;
    // A manager that became a worker keeps its old certificate for a while; the log decides.
    let role = intent.nodes.get(&peer.node).map(|n| n.role);
    if peer.role == Role::Manager && role == Some(Role::Worker) {
        return Err(IdentityError::NotOurs("it is no manager any more"));
    }
    Ok(())
}

/// Whether a peer counts as a manager now: by its certificate and by the log.
pub fn admit_manager(intent: &Intent, peer: &PeerId) -> Result<(), IdentityError> {
    admit(intent, peer)?;
    let role = intent.nodes.get(&peer.node).map(|n| n.role);
    if peer.role != Role::Manager || role != Some(Role::Manager) {
        return Err(IdentityError::NotOurs("it is no manager"));
    }
    Ok(())
}

struct Bundle {
    mutual: Arc<ServerConfig>,
    open: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    not_after: SystemTime,
}

/// This node's TLS settings; [`Tls::replace`] swaps them under connections that go on.
pub struct Tls(ArcSwap<Bundle>);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

fn pem_list(pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    list.ok()
        .filter(|l| !l.is_empty())
        .ok_or(IdentityError::NotOurs("its certificate is no PEM"))
}

impl Bundle {
    fn new(c: &Credentials, key: &NodeKey) -> Result<Bundle, IdentityError> {
        let cas = pem_list(&c.ca)?;
        let mut roots = RootCertStore::empty();
        for ca in &cas {
            roots.add(ca.clone())?;
        }
        let roots = Arc::new(roots);
        let mut chain = pem_list(&c.certificate)?;
        let not_after = chain
            .first()
            .and_then(|leaf| X509Certificate::from_der(leaf).ok())
            .and_then(|(_, x)| u64::try_from(x.validity().not_after.timestamp()).ok())
            .map(|s| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(s))
            .ok_or(IdentityError::NotOurs("its certificate cannot be read"))?;
        // A node that joins knows only the CA's digest: the CA goes along.
        chain.extend(cas);
        let verifier = |open: bool| {
            let b = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
            let b = if open { b.allow_unauthenticated() } else { b };
            b.build().map_err(|e| IdentityError::Certificate {
                what: "the CA's certificate",
                why: e.to_string(),
            })
        };
        let server = |open| -> Result<_, IdentityError> {
            let mut s = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])?
                .with_client_cert_verifier(verifier(open)?)
                .with_single_cert(chain.clone(), key.der())?;
            // No resumption: each connection shows the certificate anew, so that a removed node is out at once.
            s.session_storage = Arc::new(NoServerSessionStorage {});
            s.send_tls13_tickets = 0;
            Ok(Arc::new(s))
        };
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key.der())?;
        client.resumption = Resumption::disabled();
        Ok(Bundle {
            mutual: server(false)?,
            open: server(true)?,
            client: Arc::new(client),
            not_after,
        })
    }
}

fn server_name() -> Result<ServerName<'static>, IdentityError> {
    ServerName::try_from(SERVER_NAME).map_err(|_| IdentityError::NotOurs("bad server name"))
}

impl Tls {
    /// Settings from what the node got when it joined.
    pub fn new(c: &Credentials, key: &NodeKey) -> Result<Tls, IdentityError> {
        Ok(Tls(ArcSwap::from_pointee(Bundle::new(c, key)?)))
    }

    /// Uses a new certificate or CA from now on.
    pub fn replace(&self, c: &Credentials, key: &NodeKey) -> Result<(), IdentityError> {
        self.0.store(Arc::new(Bundle::new(c, key)?));
        Ok(())
    }

    /// When this node's certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.0.load().not_after
    }

    /// Accepts nodes alone.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.0.load().mutual.clone().into()
    }

    /// Accepts nodes, and those that have no certificate yet: for joining.
    pub fn open_acceptor(&self) -> TlsAcceptor {
        self.0.load().open.clone().into()
    }

    /// Does the handshake as a client and tells who answered.
    pub async fn connect(&self, tcp: TcpStream) -> std::io::Result<(client::TlsStream<TcpStream>, PeerId)> {
        let connector = TlsConnector::from(self.0.load().client.clone());
        let name = server_name().map_err(std::io::Error::other)?;
        let stream = connector.connect(name, tcp).await?;
        let peer = PeerId::of(stream.get_ref().1).map_err(std::io::Error::other)?;
        Ok((stream, peer))
    }
}

impl PeerId {
    /// The peer of a finished handshake.
    pub fn of(state: &CommonState) -> Result<PeerId, IdentityError> {
        let leaf = state
            .peer_certificates()
            .and_then(|c| c.first())
            .ok_or(IdentityError::NotOurs("it shows no certificate"))?;
        PeerId::read(leaf)
    }

    fn read(leaf: &CertificateDer<'_>) -> Result<PeerId, IdentityError> {
        let bad = || IdentityError::NotOurs("its certificate names no node");
        let (_, x) = X509Certificate::from_der(leaf).map_err(|_| bad())?;
        let san = x.subject_alternative_name().ok().flatten().ok_or_else(bad)?;
        let uri = |n: &GeneralName<'_>| match n {
            GeneralName::URI(u) => u.strip_prefix("netd://").map(str::to_owned),
            _ => None,
        };
        let uri = san.value.general_names.iter().find_map(uri).ok_or_else(bad)?;
        let mut parts = uri.split('/');
        let mut part = || parts.next().ok_or_else(bad);
        let (cluster, node, role) = (part()?, part()?, part()?);
        let role = match role {
            "manager" => Role::Manager,
            "worker" => Role::Worker,
            _ => return Err(bad()),
        };
        Ok(PeerId {
            cluster: cluster.to_owned(),
            node: node.parse().map_err(|_| bad())?,
            role,
            key: x.public_key().subject_public_key.data.to_vec(),
        })
    }
}

/// The role in a certificate, PEM.
pub fn certified_role(pem: &str) -> Result<Role, IdentityError> {
    let chain = pem_list(pem)?;
    let leaf = chain
        .first()
        .ok_or(IdentityError::NotOurs("its certificate is empty"))?;
    Ok(PeerId::read(leaf)?.role)
}

/// Connects to a manager of which only the digest of its CA is known. Gives the CA's certificate (DER) too. The peer
/// must be a manager.
pub async fn connect_pinned(
    addr: SocketAddr,
    pin: [u8; 32],
) -> std::io::Result<(client::TlsStream<TcpStream>, PeerId)> {
    let verifier = Pinned {
        pin,
        provider: provider(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(std::io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    let tcp = TcpStream::connect(addr).await?;
    tcp.set_nodelay(true)?;
    let name = server_name().map_err(std::io::Error::other)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let peer = PeerId::of(stream.get_ref().1).map_err(std::io::Error::other)?;
    if peer.role != Role::Manager {
        return Err(std::io::Error::other(IdentityError::NotOurs("it is no manager")));
    }
    Ok((stream, peer))
}

/// Trusts the one CA whose certificate has the digest, and nothing else.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let wrong = || {
            rustls::Error::General(
                "the manager's CA does not match the token; try: netctl cluster token worker, on that very manager"
                    .into(),
            )
        };
        let ours = |c: &&CertificateDer<'_>| pin_of(c).is_some_and(|p| same(&p, &self.pin));
        let ca = chain.iter().find(ours).ok_or_else(wrong)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_server_cert(leaf, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
