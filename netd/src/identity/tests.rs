use std::{
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use model::{
    ids::NodeId,
    intent::{Availability, Intent, Node, Role},
};

use super::*;

mod doors;
mod rotation;

/// A cluster's secrets and a member of it.
fn member(s: &ClusterSecrets, node: u64, role: Role) -> (NodeKey, Credentials) {
    let key = NodeKey::generate().unwrap();
    let csr = Csr::parse(&key.csr("host").unwrap()).unwrap();
    let issued = s.ca.sign(&csr, &subject(node, role), CERTIFICATE_LIFE).unwrap();
    let c = Credentials {
        cluster: "c1".into(),
        node: NodeId(node),
        role,
        certificate: issued.certificate,
        ca: issued.ca,
        issuer: issued.issuer,
        gossip: s.gossip.keys().to_vec(),
        managers: Vec::new(),
    };
    (key, c)
}

fn subject(node: u64, role: Role) -> Subject {
    Subject {
        cluster: "c1".into(),
        node: NodeId(node),
        role,
    }
}

async fn listen(tls: Tls, open: bool) -> std::net::SocketAddr {
    let l = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = l.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = l.accept().await {
            let acceptor = if open { tls.open_acceptor() } else { tls.acceptor() };
            tokio::spawn(async move {
                if let Ok(mut s) = acceptor.accept(tcp).await {
                    let _ = tokio::io::AsyncWriteExt::write_all(&mut s, b"!").await;
                }
            });
        }
    });
    addr
}

/// With TLS 1.3 a client learns of its refusal only when it reads.
async fn reads(mut s: impl tokio::io::AsyncRead + Unpin) -> bool {
    tokio::io::AsyncReadExt::read_u8(&mut s).await.is_ok()
}

#[test]
fn tokens_survive_their_text() {
    let s = ClusterSecrets::create("c1").unwrap();
    for role in [Role::Worker, Role::Manager] {
        let t = s.token(role).unwrap();
        let text = t.to_string();
        assert_eq!(text.parse::<Token>().unwrap(), t);
        assert_eq!(s.role_of(&t.secret), Some(role));
        assert!(!format!("{t:?}").contains(&text[60..]));
    }
    assert_eq!(s.role_of(&[0; SECRET]), None);
    assert_eq!(s.role_of(&[]), None);
}

#[test]
fn malformed_tokens_are_refused() {
    let good = ClusterSecrets::create("c1")
        .unwrap()
        .token(Role::Worker)
        .unwrap()
        .to_string();
    for bad in [
        "",
        "SWMTKN-1-a-b",
        "NETD1",
        "NETD1-abc-def",
        &good[..good.len() - 2],
        &format!("{good}-x"),
        &good.replace("NETD1", "NETD2"),
        &format!("{}0", &good[..good.len() - 1]),
        &"NETD1-".repeat(100),
    ] {
        assert!(bad.parse::<Token>().is_err(), "{bad}");
    }
}

#[test]
fn guesses_are_bounded() {
    let mut g = Gate::default();
    let (a, b): (IpAddr, IpAddr) = ("198.18.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
    let t0 = Instant::now();
    for _ in 0..Gate::PER_ADDRESS {
        assert!(g.open(t0, a));
        g.failed(t0, a);
    }
    assert!(!g.open(t0, a));
    assert!(g.open(t0, b));
    assert!(g.open(t0 + Gate::WINDOW, a));
    // A host has a whole /64; its neighbours have others.
    for i in 0..Gate::PER_ADDRESS {
        g.failed(t0, format!("fd00:1::{i}").parse().unwrap());
    }
    assert!(!g.open(t0, "fd00:1::ffff".parse().unwrap()));
    assert!(g.open(t0, "fd00:1:0:1::1".parse().unwrap()));
    for i in 0..Gate::TOTAL {
        let [.., a, b] = i.to_be_bytes();
        g.failed(t0, IpAddr::from([198, 18, a, b]));
    }
    assert!(!g.open(t0 + Duration::from_secs(1), b));
    assert!(g.open(t0 + Gate::WINDOW, b));
}

#[test]
fn secrets_survive_the_log() {
    let mut s = ClusterSecrets::create("c1").unwrap();
    s.unlock = Some(UnlockKey::create().unwrap());
    s.ca.begin("c1", None, 7).unwrap();
    s.gossip.receive(3, 8).unwrap();
    let map = s.to_map().unwrap();
    let get = |n: &str| map.get(n)?.as_deref();
    let again = ClusterSecrets::from_map(get).unwrap();
    assert_eq!(again.to_map().unwrap(), map);
    for name in map.keys().filter(|n| *n != "unlock") {
        let part = ClusterSecrets::from_map(|n| get(n).filter(|_| n != name));
        assert!(part.unwrap_err().to_string().contains(name.as_str()));
    }
}

#[test]
fn key_and_credentials_survive_a_restart() {
    use std::os::unix::fs::PermissionsExt;
    let dir = std::env::temp_dir().join(format!("netd-identity-{}", std::process::id()));
    let vault = Vault::open(&dir).unwrap();
    let key = NodeKey::load_or_create(&vault).unwrap();
    assert_eq!(NodeKey::load_or_create(&vault).unwrap().public(), key.public());
    assert_eq!(Credentials::load(&vault).unwrap(), None);
    let (_, c) = member(&ClusterSecrets::create("c1").unwrap(), 3, Role::Worker);
    c.save(&vault).unwrap();
    assert_eq!(Credentials::load(&vault).unwrap(), Some(c));
    for f in std::fs::read_dir(dir.join("identity")).unwrap() {
        assert_eq!(f.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    Credentials::remove(&vault).unwrap();
    assert_eq!(Credentials::load(&vault).unwrap(), None);
    assert_ne!(NodeKey::load_or_create(&vault).unwrap().public(), key.public());
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_spoilt_request_is_refused() {
    let pem = NodeKey::generate().unwrap().csr("host").unwrap();
    assert!(Csr::parse(&pem).is_ok());
    let spoilt: String = pem.chars().rev().collect();
    assert!(Csr::parse(&spoilt).is_err());
    assert!(Csr::parse("").is_err());
}

#[test]
fn the_intent_decides_who_is_a_member() {
    let mut i = Intent {
        cluster: "c1".into(),
        ..Intent::default()
    };
    let node = Node {
        hostname: "h".into(),
        role: Role::Worker,
        availability: Availability::Active,
        key: vec![7; 32],
        down: false,
        rpc: None,
        raft: None,
        labels: Default::default(),
        max_tasks: None,
        machine: Default::default(),
    };
    i.nodes.insert(NodeId(3), node);
    let peer = PeerId {
        cluster: "c1".into(),
        node: NodeId(3),
        role: Role::Worker,
        key: vec![7; 32],
        until: SystemTime::now() + Duration::from_secs(60),
    };
    assert!(admit_node(&i, &peer).is_ok());
    // Neither the log nor its certificate says so, ...
    assert!(admit_manager(&i, &peer).is_err());
    for bad in [
        PeerId {
            cluster: "c2".into(),
            ..peer.clone()
        },
        PeerId {
            node: NodeId(4),
            ..peer.clone()
        },
        PeerId {
            key: vec![8; 32],
            ..peer.clone()
        },
        PeerId {
            until: SystemTime::now() - Duration::from_secs(1),
            ..peer.clone()
        },
    ] {
        assert!(admit_node(&i, &bad).is_err(), "{bad:?}");
        assert!(admit_manager(&i, &bad).is_err(), "{bad:?}");
    }
    // ... or one of the two alone does.
    let shown = PeerId {
        role: Role::Manager,
        ..peer.clone()
    };
    assert!(admit_node(&i, &shown).is_ok() && admit_manager(&i, &shown).is_err());
    i.nodes.get_mut(&NodeId(3)).unwrap().role = Role::Manager;
    assert!(admit_manager(&i, &peer).is_err());
    assert!(admit_manager(&i, &shown).is_ok());
}

#[tokio::test]
async fn members_know_each_other() {
    let s = ClusterSecrets::create("c1").unwrap();
    let (key, c) = member(&s, 1, Role::Manager);
    let addr = listen(Tls::new(&c, &key).unwrap(), false).await;
    let (key, c) = member(&s, 2, Role::Worker);
    let tls = Tls::new(&c, &key).unwrap();
    let tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (stream, peer) = tls.connect(tcp).await.unwrap();
    assert_eq!(
        (peer.node, peer.role, peer.cluster.as_str()),
        (NodeId(1), Role::Manager, "c1")
    );
    assert!(reads(stream).await);
    let (from, until) = tls.life();
    let life = until.duration_since(from).unwrap();
    assert!(life.abs_diff(CERTIFICATE_LIFE) <= Duration::from_secs(2), "{life:?}");
    assert!(from.elapsed().unwrap() < Duration::from_secs(5));
}

#[tokio::test]
async fn strangers_are_refused() {
    let s = ClusterSecrets::create("c1").unwrap();
    let (key, c) = member(&s, 1, Role::Manager);
    let addr = listen(Tls::new(&c, &key).unwrap(), false).await;
    let pin = s.token(Role::Worker).unwrap().pin;

    // Without a certificate: only the open door, for joining, lets in.
    let (stream, _) = connect_pinned(addr, pin).await.unwrap();
    assert!(!reads(stream).await);

    // With a certificate of another CA.
    let other = ClusterSecrets::create("c1").unwrap();
    let (key, mut c) = member(&other, 2, Role::Worker);
    let tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    let e = Tls::new(&c, &key).unwrap().connect(tcp).await.map(|_| ()).unwrap_err();
    assert!(e.to_string().contains("certificate"), "{e}");
    // The same, but trusting the right CA: the server refuses.
    c.ca = s.ca.bundle();
    let tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (stream, _) = Tls::new(&c, &key).unwrap().connect(tcp).await.unwrap();
    assert!(!reads(stream).await);
}

#[tokio::test]
async fn a_joining_node_trusts_the_pinned_ca_alone() {
    let s = ClusterSecrets::create("c1").unwrap();
    let (key, c) = member(&s, 1, Role::Manager);
    let addr = listen(Tls::new(&c, &key).unwrap(), true).await;
    let pin = s.token(Role::Worker).unwrap().pin;
    let (stream, peer) = connect_pinned(addr, pin).await.unwrap();
    assert_eq!(peer.node, NodeId(1));
    assert!(reads(stream).await);
    let e = connect_pinned(addr, [1; 32]).await.map(|_| ()).unwrap_err();
    assert!(e.to_string().contains("does not match the token"), "{e}");

    // A worker that poses as a manager, and an impostor that shows the right CA beside a certificate of its own.
    let (key, c) = member(&s, 2, Role::Worker);
    let addr = listen(Tls::new(&c, &key).unwrap(), true).await;
    assert!(connect_pinned(addr, pin).await.is_err());
    let (key, mut c) = member(&ClusterSecrets::create("c1").unwrap(), 1, Role::Manager);
    c.ca = s.ca.bundle();
    let addr = listen(Tls::new(&c, &key).unwrap(), true).await;
    assert!(connect_pinned(addr, pin).await.is_err());
}
