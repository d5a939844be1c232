//! The CA changes: real certificates, real handshakes.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::net::TcpStream;

use super::*;

/// A certificate for somebody who is a member already.
fn certify(s: &ClusterSecrets, key: &NodeKey, old: &Credentials) -> Credentials {
    let csr = Csr::parse(&key.csr("h").unwrap()).unwrap();
    let mut new = old.clone();
    let who = subject(old.node.0, old.role);
    new.take(s.ca.sign(&csr, &who, CERTIFICATE_LIFE).unwrap());
    new
}

async fn talk(client: &Tls, addr: std::net::SocketAddr) -> bool {
    let tcp = TcpStream::connect(addr).await.unwrap();
    match client.connect(tcp).await {
        Ok((stream, _)) => reads(stream).await,
        Err(_) => false,
    }
}

#[tokio::test]
async fn nodes_of_two_roots_understand_each_other_while_the_ca_changes() {
    let mut s = ClusterSecrets::create("c1").unwrap();
    let (mk, m1) = member(&s, 1, Role::Manager);
    let (wk, w1) = member(&s, 2, Role::Worker);
    let old = s.token(Role::Worker).unwrap();

    s.ca.begin("c1", None, 0).unwrap();
    // Both trust both; certificates are the old root's.
    let trust = |c: &Credentials| Credentials {
        ca: s.ca.bundle(),
        ..c.clone()
    };
    let (m2, w2) = (trust(&m1), trust(&w1));
    let server = listen(Tls::new(&m2, &mk).unwrap(), true).await;
    assert!(
        talk(&Tls::new(&w1, &wk).unwrap(), server).await,
        "one has not heard yet"
    );
    assert!(talk(&Tls::new(&w2, &wk).unwrap(), server).await);
    assert!(connect_pinned(server, old.pin).await.is_ok());
    assert_eq!(
        s.token(Role::Worker).unwrap(),
        old,
        "the token follows when the new root signs"
    );

    s.step(Step::CaRenew, 0, 0).unwrap();
    let new = s.token(Role::Worker).unwrap();
    assert!(new.pin != old.pin && new.secret == old.secret);
    let m3 = certify(&s, &mk, &m2);
    let server = listen(Tls::new(&m3, &mk).unwrap(), true).await;
    // The worker has not renewed yet: its certificate is of the old root, which still counts.
    assert!(talk(&Tls::new(&w2, &wk).unwrap(), server).await);
    for pin in [old.pin, new.pin] {
        assert!(connect_pinned(server, pin).await.is_ok(), "either token leads in");
    }
    let w3 = certify(&s, &wk, &w2);
    assert!(talk(&Tls::new(&w3, &wk).unwrap(), server).await);

    s.step(Step::CaFinish, 0, 0).unwrap();
    assert!(!s.ca.bundle().contains(m1.ca.trim()), "the old root is gone");
    let m4 = Credentials {
        ca: s.ca.bundle(),
        ..m3
    };
    let server = listen(Tls::new(&m4, &mk).unwrap(), true).await;
    assert!(talk(&Tls::new(&w3, &wk).unwrap(), server).await);
    let e = connect_pinned(server, old.pin).await.map(|_| ()).unwrap_err();
    assert!(e.to_string().contains("does not match the token"), "{e}");
    assert!(connect_pinned(server, new.pin).await.is_ok());

    // A node that was away all the time knows the old root alone. It is not let in, but it can tell a manager: the old
    // root vouches for the new one. So it can trade in its certificate.
    let away = Tls::new(&w1, &wk).unwrap();
    assert!(!talk(&away, server).await);
    let tcp = TcpStream::connect(server).await.unwrap();
    let (_, manager) = away.connect_bare(tcp).await.unwrap();
    assert_eq!((manager.node, manager.role), (NodeId(1), Role::Manager));
    assert_eq!(former(&w1.certificate, s.ca.known()).unwrap().node, NodeId(2));
    // Of another change it hears too.
    s.ca.begin("c1", None, 0).unwrap();
    s.step(Step::CaRenew, 0, 0).unwrap();
    s.step(Step::CaFinish, 0, 0).unwrap();
    let m5 = certify(&s, &mk, &m4);
    let server = listen(Tls::new(&m5, &mk).unwrap(), true).await;
    let tcp = TcpStream::connect(server).await.unwrap();
    assert!(away.connect_bare(tcp).await.is_ok());
}

#[tokio::test]
async fn an_impostor_with_the_old_roots_certificate_is_nobody() {
    let mut s = ClusterSecrets::create("c1").unwrap();
    let (wk, w1) = member(&s, 2, Role::Worker);
    s.ca.begin("c1", None, 0).unwrap();
    s.step(Step::CaRenew, 0, 0).unwrap();
    s.step(Step::CaFinish, 0, 0).unwrap();
    assert!(s.ca.trusted().iter().all(|r| r.signs()));
    let text = serde_json::to_string(&s.ca).unwrap();
    assert_eq!(
        text.matches("PRIVATE KEY-----").count(),
        2,
        "one key, begin and end: the old one is forgotten"
    );
    // Another CA, whose name is the same, cannot pose as the new one.
    let other = ClusterSecrets::create("c1").unwrap();
    let (ok, oc) = member(&other, 1, Role::Manager);
    let server = listen(Tls::new(&oc, &ok).unwrap(), true).await;
    let tcp = TcpStream::connect(server).await.unwrap();
    assert!(Tls::new(&w1, &wk).unwrap().connect_bare(tcp).await.is_err());
    assert!(former(&oc.certificate, s.ca.known()).is_err());
}

/// A CA of somebody's own making: other algorithm, other names.
fn foreign() -> (String, KeyPair) {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, "Example root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&pair).unwrap().pem(), pair)
}

#[test]
fn a_given_root_is_vouched_for() {
    let mut s = ClusterSecrets::create("c1").unwrap();
    let (cert, _) = foreign();
    let root = Root::given(&cert).unwrap();
    assert!(!root.signs());
    s.ca.begin("c1", Some(root), 0).unwrap();
    s.step(Step::CaRenew, 0, 0).unwrap();
    assert!(!s.ca.root().signs());
    let csr = Csr::parse(&NodeKey::generate().unwrap().csr("h").unwrap()).unwrap();
    assert!(s.ca.sign(&csr, &subject(3, Role::Worker), CERTIFICATE_LIFE).is_err());
    assert!(!serde_json::to_string(&s.ca).unwrap().contains("PRIVATE KEY"));
    // And away from it again: nobody has the key to vouch with.
    s.step(Step::CaFinish, 0, 0).unwrap();
    s.ca.begin("c1", None, 0).unwrap();
    s.step(Step::CaRenew, 0, 0).unwrap();
    assert!(s.ca.root().signs());
}

#[test]
fn what_is_no_root_is_refused() {
    let s = ClusterSecrets::create("c1").unwrap();
    let (_, node) = member(&s, 3, Role::Worker);
    let two = [foreign().0, foreign().0].concat();
    for bad in ["", "nonsense", node.certificate.as_str(), two.as_str()] {
        assert!(Root::given(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_time_that_a_certificate_was_made_is_read_from_it() {
    for life in [10, 60, 3600, 7200, 90 * 24 * 3600].map(Duration::from_secs) {
        let s = ClusterSecrets::create("c1").unwrap();
        let key = NodeKey::generate().unwrap();
        let csr = Csr::parse(&key.csr("h").unwrap()).unwrap();
        let (_, mut c) = member(&s, 3, Role::Worker);
        c.take(s.ca.sign(&csr, &subject(3, Role::Worker), life).unwrap());
        let (from, until) = Tls::new(&c, &key).unwrap().life();
        let off = until.duration_since(from).unwrap().abs_diff(life);
        assert!(off <= Duration::from_secs(2), "{life:?}: {off:?}");
    }
}
