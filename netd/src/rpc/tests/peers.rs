//! Every kind of peer with every message: who may say what.

use super::*;
use crate::identity::{ClusterSecrets, binding, connect_pinned};
use message::{JoinAnswer, JoinRequest, Opening, Request, ReturnRequest, ToManager, ToNode};

/// Who knocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    /// No certificate, no history.
    Stranger,
    Worker,
    Manager,
    /// Was a manager, is a worker by now; its certificate says manager.
    Demoted,
    /// Was a worker, is a manager by now; its certificate says worker.
    Promoted,
    /// Not in the log any more.
    Removed,
    /// Its certificate has ended.
    Expired,
    /// Its certificate names a node whose key is another one.
    Impostor,
    /// A certificate of this CA for another cluster.
    OtherCluster,
    /// A certificate of another CA that names this cluster.
    OtherCa,
}

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// A token that is good.
    Join,
    /// A token that is not.
    BadToken,
    /// Trades in its certificate.
    Return,
    /// Opens its stream.
    Hello,
    Report,
    NeedBlock,
    Query,
    Renew,
    /// Renews with another key than its own.
    RenewOther,
    Leave,
    /// Requests of the socket's API, passed on.
    Http,
}

const PEERS: [Peer; 10] = [
    Peer::Stranger,
    Peer::Worker,
    Peer::Manager,
    Peer::Demoted,
    Peer::Promoted,
    Peer::Removed,
    Peer::Expired,
    Peer::Impostor,
    Peer::OtherCluster,
    Peer::OtherCa,
];

/// Who may say what. A column a message, a row a peer in the order of [`PEERS`].
const TABLE: [(Says, [bool; 10]); 11] = {
    const Y: bool = true;
    const N: bool = false;
    [
        // The worker's token. A node that the log knows comes in as itself; in another role it is refused.
        //                  stranger worker manager demoted promoted removed expired impostor other-cluster other-ca
        (Says::Join, [Y, Y, N, Y, N, Y, Y, Y, Y, Y]),
        (Says::BadToken, [N, N, N, N, N, N, N, N, N, N]),
        (Says::Return, [N, Y, Y, Y, Y, N, Y, N, N, N]),
        // What a worker may say: a demoted manager is one, whatever its old certificate says.
        (Says::Hello, [N, Y, Y, Y, Y, N, N, N, N, N]),
        (Says::Report, [N, Y, Y, Y, Y, N, N, N, N, N]),
        (Says::NeedBlock, [N, Y, Y, Y, Y, N, N, N, N, N]),
        (Says::Query, [N, Y, Y, Y, Y, N, N, N, N, N]),
        (Says::Renew, [N, Y, Y, Y, Y, N, N, N, N, N]),
        (Says::RenewOther, [N, N, N, N, N, N, N, N, N, N]),
        (Says::Leave, [N, Y, Y, Y, Y, N, N, N, N, N]),
        // What a manager alone may say: both its certificate and the log must call it one.
        (Says::Http, [N, N, Y, N, N, N, N, N, N, N]),
    ]
};

/// A node of a kind: what it holds. The manager's intent is made to fit.
async fn knock(m: &Manager, peer: Peer) -> (NodeKey, Credentials) {
    let key = NodeKey::generate().unwrap();
    let csr = Csr::parse(&key.csr("p").unwrap()).unwrap();
    let id = NodeId(m.port.next.fetch_add(1, Ordering::SeqCst));
    let (shown, logged) = match peer {
        Peer::Manager => (Role::Manager, Role::Manager),
        Peer::Demoted => (Role::Manager, Role::Worker),
        Peer::Promoted => (Role::Worker, Role::Manager),
        _ => (Role::Worker, Role::Worker),
    };
    let known = match peer {
        Peer::Impostor => NodeKey::generate().unwrap().public().to_vec(),
        _ => key.public().to_vec(),
    };
    if !matches!(peer, Peer::Removed | Peer::Stranger) {
        m.port.change(|i| {
            i.nodes.insert(id, node(logged, &known, "p"));
        });
    }
    let secrets = match peer {
        Peer::OtherCa => ClusterSecrets::create("c1").unwrap(),
        _ => m.port.now(),
    };
    let who = Subject {
        cluster: if peer == Peer::OtherCluster { "c2" } else { "c1" }.into(),
        node: id,
        role: shown,
    };
    let life = match peer {
        Peer::Expired => Duration::from_secs(1),
        _ => CERTIFICATE_LIFE,
    };
    let issued = secrets.ca.sign(&csr, &who, life).unwrap();
    let credentials = Credentials {
        cluster: "c1".into(),
        node: id,
        role: shown,
        certificate: issued.certificate,
        // It trusts the right CA whatever it has itself.
        ca: m.port.now().ca.bundle(),
        issuer: issued.issuer,
        gossip: Vec::new(),
        managers: Vec::new(),
    };
    (key, credentials)
}

/// Whether the manager does what is said.
async fn said(m: &Manager, key: &NodeKey, c: &Credentials, peer: Peer, says: Says) -> bool {
    match says {
        Says::Join | Says::BadToken => {
            let (mut s, _) = connect_pinned(m.addr, m.token().pin).await.unwrap();
            let mut secret = m.token().secret.to_vec();
            secret[0] ^= u8::from(says == Says::BadToken);
            let opening = Opening::Join(JoinRequest {
                secret,
                csr: key.csr("p").unwrap(),
                hostname: "p".into(),
                rpc: None,
                availability: Default::default(),
            });
            frame::write(&mut s, &opening).await.unwrap();
            admitted(&mut s).await
        }
        Says::Return => {
            let tls = Tls::new(c, key).unwrap();
            let tcp = TcpStream::connect(m.addr).await.unwrap();
            let (mut s, _) = tls.connect_bare(tcp).await.unwrap();
            let proof = key.sign(&binding(s.get_ref().1).unwrap()).unwrap();
            let opening = Opening::Return(ReturnRequest {
                certificate: if peer == Peer::Stranger {
                    String::new()
                } else {
                    c.certificate.clone()
                },
                csr: key.csr("p").unwrap(),
                proof,
            });
            frame::write(&mut s, &opening).await.unwrap();
            admitted(&mut s).await
        }
        _ => stream(m, key, c, peer, says).await,
    }
}

async fn admitted(s: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    soon(frame::read::<Result<JoinAnswer, ApiError>>(s, MAX_JOIN))
        .await
        .is_ok_and(|a| a.is_ok())
}

async fn stream(m: &Manager, key: &NodeKey, c: &Credentials, peer: Peer, says: Says) -> bool {
    let tls = Tls::new(c, key).unwrap();
    let tcp = TcpStream::connect(m.addr).await.unwrap();
    let connected = match peer {
        Peer::Stranger => tls.connect_bare(tcp).await,
        _ => tls.connect(tcp).await,
    };
    let Ok((mut s, _)) = connected else { return false };
    if says == Says::Http {
        let talk = async {
            frame::write(&mut s, &ToManager::Http).await?;
            tokio::io::AsyncWriteExt::write_all(&mut s, b"GET /v1/x HTTP/1.1\r\nHost: netd\r\n\r\n").await?;
            let mut answer = [0; 8];
            tokio::io::AsyncReadExt::read_exact(&mut s, &mut answer).await?;
            Ok::<_, std::io::Error>(&answer == b"HTTP/1.1")
        };
        return soon(talk).await.unwrap_or(false);
    }
    let hello = ToManager::Hello {
        revision: 0,
        version: "0".into(),
    };
    let request = match says {
        Says::NeedBlock => Some(Request::NeedBlock {
            vni: Vni::try_from(4100).unwrap(),
        }),
        Says::Query => Some(Request::Query { path: "/v1/x".into() }),
        Says::Renew => Some(Request::Renew {
            csr: key.csr("p").unwrap(),
        }),
        Says::RenewOther => Some(Request::Renew {
            csr: NodeKey::generate().unwrap().csr("p").unwrap(),
        }),
        Says::Leave => Some(Request::Leave),
        _ => None,
    };
    let talk = async {
        frame::write(&mut s, &hello).await?;
        if says == Says::Report {
            let report = Report {
                applied: 77,
                ..Report::default()
            };
            frame::write(&mut s, &ToManager::Report(Box::new(report))).await?;
        }
        if let Some(request) = request {
            frame::write(&mut s, &ToManager::Request { id: 1, request }).await?;
        }
        loop {
            match frame::read::<ToNode>(&mut s, MAX_DOWN).await? {
                ToNode::Welcome { .. } if says == Says::Hello => return Ok(true),
                ToNode::Delta(_) if says == Says::Report => {
                    hub_has(m, |n| n.get(&c.node).is_some_and(|n| n.report.applied == 77)).await;
                    return Ok(true);
                }
                ToNode::Reply { reply, .. } => return Ok(reply.is_ok()),
                ToNode::Refused(_) => return Ok(false),
                _ => {}
            }
        }
    };
    let done: std::io::Result<bool> = soon(talk).await;
    done.unwrap_or(false)
}

#[tokio::test]
async fn who_may_say_what() {
    let cases = TABLE
        .iter()
        .flat_map(|(says, row)| PEERS.into_iter().zip(row).map(|(peer, may)| (*says, peer, *may)));
    let wrong = futures_util::future::join_all(cases.map(|(says, peer, may)| async move {
        // A manager of its own each time: nobody is refused because of what another one did.
        let m = manager().await;
        let (key, c) = knock(&m, peer).await;
        if peer == Peer::Expired {
            let until = crate::identity::PeerId::of_pem(&c.certificate).unwrap().until;
            while std::time::SystemTime::now() <= until {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let before = m.port.intent.borrow().clone();
        let did = said(&m, &key, &c, peer, says).await;
        let after = m.port.intent.borrow().clone();
        if did != may {
            return Some(format!("{peer:?} {says:?}: {did}"));
        }
        (!may && *after != *before).then(|| format!("{peer:?} {says:?}: refused, and yet it changed something"))
    }));
    let wrong: Vec<String> = wrong.await.into_iter().flatten().collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[tokio::test]
async fn a_certificate_traded_in_says_what_the_log_says() {
    let m = manager().await;
    let (key, c) = knock(&m, Peer::Demoted).await;
    let tls = Tls::new(&c, &key).unwrap();
    let issued = trade_in(&tls, m.addr, &key, &c).await.unwrap();
    assert_eq!(issued.role, Role::Worker);
    let mut new = c.clone();
    new.take(issued);
    assert!(stream(&m, &key, &new, Peer::Worker, Says::Hello).await);
}

#[tokio::test]
async fn a_proof_is_worth_something_on_its_own_connection_alone() {
    let m = manager().await;
    let (key, c) = knock(&m, Peer::Worker).await;
    let tls = Tls::new(&c, &key).unwrap();
    let connect = async || {
        let tcp = TcpStream::connect(m.addr).await.unwrap();
        tls.connect_bare(tcp).await.unwrap().0
    };
    // Somebody has seen what the node said on one connection, and says it again on another.
    let first = connect().await;
    let proof = key.sign(&binding(first.get_ref().1).unwrap()).unwrap();
    let mut second = connect().await;
    let opening = Opening::Return(ReturnRequest {
        certificate: c.certificate.clone(),
        csr: key.csr("p").unwrap(),
        proof,
    });
    frame::write(&mut second, &opening).await.unwrap();
    let answer: Result<JoinAnswer, ApiError> = frame::read(&mut second, MAX_JOIN).await.unwrap();
    assert_eq!(answer.unwrap_err().code, Code::Forbidden);
}

#[tokio::test]
async fn an_established_stream_ends_with_the_membership_and_with_the_certificate() {
    for change in ["removed", "expired"] {
        let m = manager().await;
        let (key, mut c) = knock(&m, Peer::Worker).await;
        if change == "expired" {
            let csr = Csr::parse(&key.csr("p").unwrap()).unwrap();
            let who = Subject {
                cluster: "c1".into(),
                node: c.node,
                role: c.role,
            };
            c.take(m.port.now().ca.sign(&csr, &who, Duration::from_secs(2)).unwrap());
        }
        let tls = Tls::new(&c, &key).unwrap();
        let tcp = TcpStream::connect(m.addr).await.unwrap();
        let (mut s, _) = tls.connect(tcp).await.unwrap();
        let hello = ToManager::Hello {
            revision: 0,
            version: "0".into(),
        };
        frame::write(&mut s, &hello).await.unwrap();
        hub_has(&m, |n| n.get(&c.node).is_some_and(|n| n.connected)).await;
        let begun = std::time::Instant::now();
        m.port.change(|i| {
            if change == "removed" {
                i.nodes.remove(&c.node);
            }
        });
        let ended = soon(async {
            loop {
                match frame::read::<ToNode>(&mut s, MAX_DOWN).await {
                    Ok(ToNode::Refused(e)) => return Some(e),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        });
        let refusal = ended.await.expect("the reason is told");
        assert_eq!(refusal.code, Code::Forbidden, "{change}");
        let limit = if change == "expired" {
            Duration::from_secs(8)
        } else {
            // By itself it would go on for as long as its certificate holds.
            Duration::from_secs(5)
        };
        assert!(begun.elapsed() < limit, "{change}: {:?}", begun.elapsed());
    }
}
