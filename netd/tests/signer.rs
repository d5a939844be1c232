//! An external signer that is one: HTTPS with a certificate of its own, cfssl's JSON, real signatures.
#![allow(clippy::unwrap_used, reason = "a helper of tests: what fails here is a failed test")]
#![allow(clippy::disallowed_methods, reason = "certificates are made for now")]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use model::{ids::NodeId, intent::Role, settings::ExternalCa};
use netd::identity::{
    CERTIFICATE_LIFE, ClusterSecrets, Credentials, Csr, IdentityError, NodeKey, PeerId, Root, Signer, Step, Subject,
    Tls,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const CLUSTER: &str = "c1";

/// What the signer does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    /// Says no, with words.
    Refuses,
    /// Signs for the role of a manager, whatever was asked.
    Promotes,
    /// Signs another key than the request's.
    OtherKey,
    /// Signs a certificate that is over.
    Expired,
    /// Answers what is no JSON.
    Garbage,
    /// Answers more than anybody reads.
    Endless,
    /// Takes the request and says nothing.
    Silent,
}

/// A CA outside of the cluster.
struct Outside {
    cert: String,
    pair: KeyPair,
    mood: Mutex<Mood>,
    asked: AtomicUsize,
    /// CN of the client certificate of the last request.
    client: Mutex<Option<Vec<u8>>>,
    last: Mutex<Option<Value>>,
}

impl Outside {
    fn new() -> Arc<Outside> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Outside root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&pair).unwrap().pem();
        Arc::new(Outside {
            cert,
            pair,
            mood: Mutex::new(Mood::Good),
            asked: AtomicUsize::new(0),
            client: Mutex::default(),
            last: Mutex::default(),
        })
    }

    fn issuer(&self) -> Issuer<'static, KeyPair> {
        let pair = KeyPair::from_pem(&self.pair.serialize_pem()).unwrap();
        Issuer::from_ca_cert_pem(&self.cert, pair).unwrap()
    }

    /// Signs what is asked for.
    fn sign(&self, ask: &Value, mood: Mood) -> String {
        let csr = CertificateSigningRequestParams::from_pem(ask["certificate_request"].as_str().unwrap()).unwrap();
        let mut params = CertificateParams::default();
        for host in ask["hosts"].as_array().unwrap() {
            let host = host.as_str().unwrap().to_owned();
            let host = match mood {
                Mood::Promotes => host.replace("/worker", "/manager"),
                _ => host,
            };
            params.subject_alt_names.push(match host.contains("://") {
                true => SanType::URI(host.try_into().unwrap()),
                false => SanType::DnsName(host.try_into().unwrap()),
            });
        }
        params.distinguished_name = DistinguishedName::new();
        let cn = ask["subject"]["CN"].as_str().unwrap();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now();
        let (from, to) = match mood {
            Mood::Expired => (now - Duration::from_secs(7200), now - Duration::from_secs(3600)),
            _ => (now - Duration::from_secs(60), now + Duration::from_secs(3600)),
        };
        params.not_before = from.into();
        params.not_after = to.into();
        match mood {
            Mood::OtherKey => params
                .signed_by(&KeyPair::generate().unwrap(), &self.issuer())
                .unwrap()
                .pem(),
            _ => params.signed_by(&csr.public_key, &self.issuer()).unwrap().pem(),
        }
    }

    async fn answer(self: Arc<Self>, req: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (path, method) = (req.uri().path().to_owned(), req.method().clone());
        let body = req.into_body().collect().await?.to_bytes();
        let ask: Value = serde_json::from_slice(&body).unwrap();
        *self.last.lock().unwrap() = Some(ask.clone());
        let mood = *self.mood.lock().unwrap();
        let say = |status: StatusCode, body: Vec<u8>| {
            let mut r = Response::new(Full::new(Bytes::from(body)));
            *r.status_mut() = status;
            r
        };
        if (path.as_str(), method.as_str()) != ("/api/v1/cfssl/sign", "POST") {
            return Ok(say(StatusCode::NOT_FOUND, b"no such path".to_vec()));
        }
        Ok(match mood {
            Mood::Refuses => {
                let no = json!({"success": false, "result": null, "messages": [],
                                "errors": [{"code": 5300, "message": "policy says\u{7} no"}]});
                say(StatusCode::BAD_REQUEST, no.to_string().into_bytes())
            }
            Mood::Garbage => say(StatusCode::OK, b"<html>".to_vec()),
            Mood::Endless => say(StatusCode::OK, vec![b' '; 1 << 20]),
            Mood::Silent => std::future::pending().await,
            mood => {
                let yes = json!({"success": true, "errors": [], "messages": [],
                                 "result": {"certificate": self.sign(&ask, mood)}});
                say(StatusCode::OK, yes.to_string().into_bytes())
            }
        })
    }

    /// Serves HTTPS with a certificate of `issuer` for 127.0.0.1, to clients that show one of `clients` (PEM).
    async fn serve(self: &Arc<Self>, issuer: &Issuer<'static, KeyPair>, clients: &str) -> SocketAddr {
        let pair = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let cert = params.signed_by(&pair, issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(clients.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![cert.der().clone()],
                PrivatePkcs8KeyDer::from(pair.serialize_der()).into(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let outside = self.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, outside) = (acceptor.clone(), outside.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let shown = stream.get_ref().1.peer_certificates().map(|c| c[0].to_vec());
                    *outside.client.lock().unwrap() = shown;
                    let service = service_fn(move |req| outside.clone().answer(req));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        addr
    }
}

/// A manager's part.
struct Manager {
    secrets: ClusterSecrets,
    tls: Arc<Tls>,
    own: String,
}

fn subject(node: u64, role: Role) -> Subject {
    Subject {
        cluster: CLUSTER.into(),
        node: NodeId(node),
        role,
    }
}

fn manager() -> Manager {
    let secrets = ClusterSecrets::create(CLUSTER).unwrap();
    let key = NodeKey::generate().unwrap();
    let csr = Csr::parse(&key.csr("m").unwrap()).unwrap();
    let who = subject(1, Role::Manager);
    let issued = secrets.ca.sign(&csr, &who, CERTIFICATE_LIFE).unwrap();
    let credentials = Credentials {
        cluster: CLUSTER.into(),
        node: NodeId(1),
        role: Role::Manager,
        certificate: issued.certificate.clone(),
        ca: issued.ca,
        issuer: issued.issuer,
        gossip: Vec::new(),
        managers: Vec::new(),
    };
    Manager {
        tls: Arc::new(Tls::new(&credentials, &key).unwrap()),
        secrets,
        own: issued.certificate,
    }
}

impl Manager {
    /// Moves the cluster to the CA outside.
    fn moved_to(&mut self, outside: &Outside) {
        self.secrets
            .ca
            .begin(CLUSTER, Some(Root::given(&outside.cert).unwrap()), 0)
            .unwrap();
        self.secrets.step(Step::CaRenew, 0, 0).unwrap();
    }

    async fn certify(&self, outside: &[ExternalCa], key: &NodeKey) -> Result<PeerId, IdentityError> {
        let csr = Csr::parse(&key.csr("w").unwrap()).unwrap();
        let signer = Signer {
            ca: &self.secrets.ca,
            tls: &self.tls,
            outside,
            life: CERTIFICATE_LIFE,
        };
        let issued = signer.certify(&csr, &subject(7, Role::Worker)).await?;
        assert_eq!(issued.issuer, self.secrets.ca.root().fingerprint());
        assert_eq!(issued.role, Role::Worker);
        // What is handed out works.
        let credentials = Credentials {
            cluster: CLUSTER.into(),
            node: NodeId(7),
            role: Role::Worker,
            certificate: issued.certificate.clone(),
            ca: issued.ca,
            issuer: issued.issuer,
            gossip: Vec::new(),
            managers: Vec::new(),
        };
        Tls::new(&credentials, key).unwrap();
        netd::identity::former(&issued.certificate, self.secrets.ca.known())
    }
}

fn at(addr: SocketAddr, ca: Option<&str>) -> ExternalCa {
    ExternalCa {
        url: format!("https://{addr}/api/v1/cfssl/sign"),
        ca: ca.map(str::to_owned),
    }
}

#[tokio::test]
async fn a_signer_outside_signs_what_is_asked_for() {
    let outside = Outside::new();
    let mut m = manager();
    let addr = outside.serve(&outside.issuer(), &m.secrets.ca.bundle()).await;
    m.moved_to(&outside);
    let key = NodeKey::generate().unwrap();
    let signers = [at(addr, Some(&outside.cert))];
    let peer = m.certify(&signers, &key).await.unwrap();
    assert_eq!(
        (peer.node, peer.role, peer.key.as_slice()),
        (NodeId(7), Role::Worker, key.public())
    );
    // The JSON of cfssl, and the manager's own certificate to go by.
    let asked = outside.last.lock().unwrap().clone().unwrap();
    assert_eq!(asked["hosts"][1], "netd://c1/n7/worker");
    assert_eq!(asked["subject"]["CN"], "n7");
    assert_eq!(asked["subject"]["names"][0]["OU"], "worker");
    let own = CertificateDer::from_pem_slice(m.own.as_bytes()).unwrap();
    assert_eq!(outside.client.lock().unwrap().as_deref(), Some(own.as_ref()));
}

#[tokio::test]
async fn what_was_not_asked_for_is_refused() {
    let outside = Outside::new();
    let mut m = manager();
    let addr = outside.serve(&outside.issuer(), &m.secrets.ca.bundle()).await;
    m.moved_to(&outside);
    let key = NodeKey::generate().unwrap();
    let signers = [at(addr, Some(&outside.cert))];
    for (mood, says) in [
        (Mood::Refuses, "policy says no"),
        (Mood::Promotes, "not what was asked for"),
        (Mood::OtherKey, "not what was asked for"),
        (Mood::Expired, "not what was asked for"),
        (Mood::Garbage, "cannot be read"),
        (Mood::Endless, "its answer"),
        (Mood::Silent, "no answer within"),
    ] {
        *outside.mood.lock().unwrap() = mood;
        let e = m.certify(&signers, &key).await.unwrap_err().to_string();
        assert!(e.contains(says) && e.contains("127.0.0.1"), "{mood:?}: {e}");
    }
    *outside.mood.lock().unwrap() = Mood::Good;
    assert!(m.certify(&signers, &key).await.is_ok());
}

#[tokio::test]
async fn its_https_is_trusted_by_the_clusters_ca_or_by_the_one_that_is_set() {
    let (outside, stranger) = (Outside::new(), Outside::new());
    let mut m = manager();
    // Served with a certificate of somebody else's.
    let addr = outside.serve(&stranger.issuer(), &m.secrets.ca.bundle()).await;
    m.moved_to(&outside);
    let key = NodeKey::generate().unwrap();
    for ca in [None, Some(outside.cert.as_str())] {
        let e = m.certify(&[at(addr, ca)], &key).await.unwrap_err().to_string();
        assert!(e.contains("not trusted"), "{e}");
    }
    assert_eq!(outside.asked.load(Ordering::SeqCst), 0, "nothing was told to it");
    assert!(m.certify(&[at(addr, Some(&stranger.cert))], &key).await.is_ok());
    // Of several the first that signs counts.
    let closed = {
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        l.local_addr().unwrap()
    };
    let both = [at(closed, None), at(addr, Some(&stranger.cert))];
    assert!(m.certify(&both, &key).await.is_ok());
    let e = m.certify(&[at(closed, None)], &key).await.unwrap_err().to_string();
    assert!(e.contains("cannot be reached"), "{e}");
    let e = m.certify(&[], &key).await.unwrap_err().to_string();
    assert!(e.contains("external-ca"), "{e}");
}

#[tokio::test]
async fn before_the_cluster_has_moved_its_own_key_signs() {
    let outside = Outside::new();
    let m = manager();
    let addr = outside.serve(&outside.issuer(), &m.secrets.ca.bundle()).await;
    let key = NodeKey::generate().unwrap();
    let signers = [at(addr, Some(&outside.cert))];
    // The signer is set and signs for its own root, which is not the cluster's yet.
    assert!(m.certify(&signers, &key).await.is_ok());
    // But a refusal is a refusal.
    *outside.mood.lock().unwrap() = Mood::Refuses;
    assert!(m.certify(&signers, &key).await.is_err());
}
