//! TLS 1.3 between nodes, both sides with certificates of the cluster's CA.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

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
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{
    IdentityError, Subject,
    ca::{made_at, pin_of, same},
    node::{Credentials, NodeKey},
};

/// Name in every node's certificate. Which node it is stands in the URI, and is checked after the handshake: callers
/// often know an address only.
pub(crate) const SERVER_NAME: &str = "node.netd.internal";

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
    /// End of the certificate.
    pub until: SystemTime,
}

/// Whether a peer counts as a node of the cluster now, with the rights of a worker at least: it is in the log with this
/// key, and its certificate has not ended.
pub fn admit_node(intent: &Intent, peer: &PeerId) -> Result<(), IdentityError> {
    known(intent, peer)?;
    match peer.until > SystemTime::now() {
        true => Ok(()),
        false => Err(IdentityError::NotOurs("its certificate has expired")),
    }
}

/// Whether a peer counts as a manager now: by its certificate and by the log. One that was demoted keeps its old
/// certificate for a while, and the rights of a worker.
pub fn admit_manager(intent: &Intent, peer: &PeerId) -> Result<(), IdentityError> {
    admit_node(intent, peer)?;
    manages(intent, peer)
}

/// Whether a node is in the log with this key, whenever its certificate ends: for a server that was proved when the
/// connection was made.
pub fn known(intent: &Intent, peer: &PeerId) -> Result<(), IdentityError> {
    if peer.cluster != intent.cluster {
        return Err(IdentityError::NotOurs("its certificate names another cluster"));
    }
    let node = intent
        .nodes
        .get(&peer.node)
        .ok_or(IdentityError::NotMember(peer.node))?;
    match node.key == peer.key {
        true => Ok(()),
        false => Err(IdentityError::NotOurs("its key is not the one it joined with")),
    }
}

/// As [`known`], and both its certificate and the log say that it is a manager.
pub fn manages(intent: &Intent, peer: &PeerId) -> Result<(), IdentityError> {
    known(intent, peer)?;
    let role = intent.nodes.get(&peer.node).map(|n| n.role);
    match peer.role == Role::Manager && role == Some(Role::Manager) {
        true => Ok(()),
        false => Err(IdentityError::NotOurs("it is no manager")),
    }
}

struct Bundle {
    mutual: Arc<ServerConfig>,
    open: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    bare: Arc<ClientConfig>,
    life: (SystemTime, SystemTime),
}

/// This node's TLS settings; [`Tls::replace`] swaps them under connections that go on.
pub struct Tls {
    bundle: ArcSwap<Bundle>,
    refused: Notify,
    replaced: watch::Sender<u64>,
}

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
        let life = chain
            .first()
            .and_then(|leaf| X509Certificate::from_der(leaf).ok())
            .and_then(|(_, x)| Some((time(x.validity().not_before)?, time(x.validity().not_after)?)))
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
        let mut bare = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        bare.resumption = Resumption::disabled();
        Ok(Bundle {
            mutual: server(false)?,
            open: server(true)?,
            client: Arc::new(client),
            bare: Arc::new(bare),
            life,
        })
    }
}

fn server_name() -> Result<ServerName<'static>, IdentityError> {
    ServerName::try_from(SERVER_NAME).map_err(|_| IdentityError::NotOurs("bad server name"))
}

impl Tls {
    /// Settings from what the node got when it joined.
    pub fn new(c: &Credentials, key: &NodeKey) -> Result<Tls, IdentityError> {
        Ok(Tls {
            bundle: ArcSwap::from_pointee(Bundle::new(c, key)?),
            refused: Notify::new(),
            replaced: watch::Sender::new(0),
        })
    }

    /// Uses a new certificate or CA from now on.
    pub fn replace(&self, c: &Credentials, key: &NodeKey) -> Result<(), IdentityError> {
        self.bundle.store(Arc::new(Bundle::new(c, key)?));
        self.replaced.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Rises with each [`Tls::replace`]: what was refused may be accepted now.
    pub fn replaced(&self) -> watch::Receiver<u64> {
        self.replaced.subscribe()
    }

    /// When this node's certificate was made, and when it ends.
    pub fn life(&self) -> (SystemTime, SystemTime) {
        let (from, until) = self.bundle.load().life;
        (made_at(from, until), until)
    }

    /// When this node's certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.bundle.load().life.1
    }

    /// Settings of a client that shows its certificate.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.bundle.load().client.clone()
    }

    /// The same, trusting another CA (PEM) alone: for a signer outside of the cluster.
    pub(super) fn client_of(&self, ca: &str) -> Result<Arc<ClientConfig>, IdentityError> {
        let mut roots = RootCertStore::empty();
        for root in pem_list(ca)? {
            roots.add(root)?;
        }
        let resolver = self.client().client_auth_cert_resolver.clone();
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_client_cert_resolver(resolver);
        Ok(Arc::new(config))
    }

    /// Accepts nodes alone.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.bundle.load().mutual.clone().into()
    }

    /// Accepts nodes, and those that have no certificate yet, or none that counts: for joining and coming back.
    pub fn open_acceptor(&self) -> TlsAcceptor {
        self.bundle.load().open.clone().into()
    }

    /// Does the handshake as a client and tells who answered.
    pub async fn connect(&self, tcp: TcpStream) -> std::io::Result<(client::TlsStream<TcpStream>, PeerId)> {
        let done = handshake(self.client(), tcp).await;
        if let Err(e) = &done {
            self.note(e);
        }
        done
    }

    /// The same without showing a certificate.
    pub async fn connect_bare(&self, tcp: TcpStream) -> std::io::Result<(client::TlsStream<TcpStream>, PeerId)> {
        handshake(self.bundle.load().bare.clone(), tcp).await
    }

    /// Looks whether a connection has failed because the other side does not take this node's certificate, or is not
    /// trusted here. With TLS 1.3 a client hears of that when it reads first, so whoever reads tells.
    pub fn note(&self, e: &std::io::Error) {
        use rustls::{AlertDescription as A, Error::*};
        let inner = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        let refused = match inner {
            Some(AlertReceived(a)) => matches!(
                a,
                A::UnknownCA
                    | A::BadCertificate
                    | A::CertificateExpired
                    | A::CertificateUnknown
                    | A::CertificateRequired
                    | A::CertificateRevoked
                    | A::DecryptError
            ),
            // A root that is not known here yet.
            Some(InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => true,
            _ => false,
        };
        if refused {
            self.refused.notify_one();
        }
    }

    /// This node was told that it does not count as what its certificate says.
    pub fn disowned(&self) {
        self.refused.notify_one();
    }

    /// Waits for the next [`Tls::note`] or [`Tls::disowned`] that says so.
    pub async fn refused(&self) {
        self.refused.notified().await;
    }
}

async fn handshake(
    config: Arc<ClientConfig>,
    tcp: TcpStream,
) -> std::io::Result<(client::TlsStream<TcpStream>, PeerId)> {
    let name = server_name().map_err(std::io::Error::other)?;
    let stream = TlsConnector::from(config).connect(name, tcp).await?;
    let peer = PeerId::of(stream.get_ref().1).map_err(std::io::Error::other)?;
    Ok((stream, peer))
}

/// Octets that only the two ends of this connection know (RFC 8446 7.5): who signs them is at its other end, now.
pub fn binding<D>(connection: &rustls::ConnectionCommon<D>) -> Result<[u8; 32], IdentityError> {
    // RFC 5705 4: labels for experiments need no registration.
    Ok(connection.export_keying_material([0; 32], b"EXPERIMENTAL netd return", None)?)
}

/// Who a certificate (PEM, with those that vouch for its root) was for, whether it has ended or not. It must be signed
/// by one of `roots` (PEM).
pub fn former<'a>(pem: &str, roots: impl Iterator<Item = &'a str>) -> Result<PeerId, IdentityError> {
    let chain = pem_list(pem)?;
    let (leaf, rest) = chain
        .split_first()
        .ok_or(IdentityError::NotOurs("it shows no certificate"))?;
    let peer = PeerId::read(leaf)?;
    let mut store = RootCertStore::empty();
    for root in roots {
        for ca in pem_list(root)? {
            store.add(ca)?;
        }
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider())
        .build()
        .map_err(|_| IdentityError::NotOurs("no root is known"))?;
    // As of its last second: that it has ended is judged by who asks.
    let last = peer.until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let last = UnixTime::since_unix_epoch(last.saturating_sub(Duration::from_secs(1)));
    verifier
        .verify_client_cert(leaf, rest, last)
        .map_err(|_| IdentityError::NotOurs("its certificate is from another CA"))?;
    Ok(peer)
}

/// Checks a certificate (PEM, with intermediate ones) that somebody else has signed: by one of `roots`, for this subject
/// and key, good for both ends of a connection, now.
pub(super) fn check_issued<'a>(
    pem: &str,
    roots: impl Iterator<Item = &'a str>,
    who: &Subject,
    key: &[u8],
) -> Result<(), IdentityError> {
    let chain = pem_list(pem)?;
    let (leaf, rest) = chain
        .split_first()
        .ok_or(IdentityError::NotOurs("it shows no certificate"))?;
    let peer = PeerId::read(leaf)?;
    if (&peer.cluster, peer.node, peer.role) != (&who.cluster, who.node, who.role) || peer.key != key {
        return Err(IdentityError::NotOurs("it is for another node, role or key"));
    }
    let mut store = RootCertStore::empty();
    for root in roots {
        for ca in pem_list(root)? {
            store.add(ca)?;
        }
    }
    let store = Arc::new(store);
    let unusable = |_| IdentityError::NotOurs("no root is known");
    let now = UnixTime::now();
    WebPkiClientVerifier::builder_with_provider(store.clone(), provider())
        .build()
        .map_err(unusable)?
        .verify_client_cert(leaf, rest, now)?;
    WebPkiServerVerifier::builder_with_provider(store, provider())
        .build()
        .map_err(unusable)?
        .verify_server_cert(leaf, rest, &server_name()?, &[], now)?;
    Ok(())
}

fn time(t: x509_parser::time::ASN1Time) -> Option<SystemTime> {
    let seconds = u64::try_from(t.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
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

    /// The node of a certificate whose signature was checked elsewhere.
    pub(crate) fn of_pem(pem: &str) -> Result<PeerId, IdentityError> {
        let chain = pem_list(pem)?;
        let leaf = chain.first().ok_or(IdentityError::NotOurs("it shows no certificate"))?;
        PeerId::read(leaf)
    }

    pub(crate) fn read(leaf: &CertificateDer<'_>) -> Result<PeerId, IdentityError> {
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
        if parts.next().is_some() {
            return Err(bad());
        }
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
            until: time(x.validity().not_after).ok_or_else(bad)?,
        })
    }
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
    let (stream, peer) = handshake(Arc::new(config), tcp).await?;
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
            // While the CA changes the pinned root may only vouch for the one that signs.
            .verify_server_cert(leaf, chain, name, ocsp, now)
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
