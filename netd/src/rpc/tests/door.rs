//! Who is let in.

use super::*;

#[tokio::test]
async fn a_good_token_lets_in() {
    let m = manager().await;
    let key = NodeKey::generate().unwrap();
    let j = join(&m.token(), m.addr, &key, &OFFER).await.unwrap();
    assert_eq!(j.credentials.node, NodeId(2));
    assert_eq!(j.credentials.role, Role::Worker);
    assert_eq!(j.credentials.gossip, m.port.now().gossip.keys());
    assert_eq!(j.credentials.managers, [m.addr.to_string()]);
    assert_eq!(j.intent.nodes[&NodeId(2)].key, key.public());
    assert_eq!(j.seen, m.addr.ip());
    // The answer was lost, the node tries again: the same node.
    let again = join(&m.token(), m.addr, &key, &OFFER).await.unwrap();
    assert_eq!(again.credentials.node, NodeId(2));
    assert_eq!(m.port.intent.borrow().nodes.len(), 2);
}

#[tokio::test]
async fn a_leader_that_was_not_reached_is_tried_again() {
    let m = manager().await;
    let w = worker(&m).await;
    w.uplink.report(Report {
        applied: 7,
        ..Report::default()
    });
    hub_has(&m, |all| all.contains_key(&w.id)).await;
    // The leader's host takes the connection, and its daemon has other things to do.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let id = NodeId(m.port.next.fetch_add(1, Ordering::SeqCst));
    let secrets = m.port.now();
    let leader = tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        manager_at(listener, id, secrets)
    });
    m.port.change(|i| {
        i.nodes.insert(id, node(Role::Manager, &[9; 32], "l"));
    });
    m.port.leader.send_replace(Leader::Other {
        node: id,
        addr: addr.to_string(),
    });
    let l = soon(leader).await.unwrap();
    // Both managers have the same log.
    let key = l.port.intent.borrow().nodes[&id].clone();
    m.port.change(|i| drop(i.nodes.insert(id, key)));
    l.port.intent.send_replace(m.port.intent.borrow().clone());
    // Nobody tells the node again who leads.
    hub_has(&l, |all| all.contains_key(&w.id)).await;
}

#[tokio::test]
async fn wrong_tokens_are_refused_and_soon_not_looked_at() {
    let m = manager().await;
    let key = NodeKey::generate().unwrap();
    // A wrong pin: the manager is not told the secret, so it counts nothing.
    let mut token = m.token();
    token.pin[0] ^= 1;
    for _ in 0..10 {
        let e = join(&token, m.addr, &key, &OFFER).await.unwrap_err();
        assert!(
            matches!(&e, JoinError::Connect { why, .. } if why.contains("token")),
            "{e}"
        );
    }
    let mut token = m.token();
    token.secret[0] ^= 1;
    for _ in 0..crate::identity::Gate::PER_ADDRESS {
        let e = join(&token, m.addr, &key, &OFFER).await.unwrap_err();
        assert!(matches!(&e, JoinError::Refused(e) if e.code == Code::Forbidden), "{e}");
    }
    // The good one waits too: a guesser must not learn when it is right.
    let e = join(&m.token(), m.addr, &key, &OFFER).await.unwrap_err();
    assert!(
        matches!(&e, JoinError::Refused(e) if e.code == Code::Unavailable),
        "{e}"
    );
    assert_eq!(m.port.intent.borrow().nodes.len(), 1);
}

#[tokio::test]
async fn nobody_there_is_said() {
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = l.local_addr().unwrap();
    drop(l);
    let token = ClusterSecrets::create("c").unwrap().token(Role::Worker).unwrap();
    let e = join(&token, addr, &NodeKey::generate().unwrap(), &OFFER)
        .await
        .unwrap_err();
    assert_eq!(ApiError::from(e).code, Code::Unavailable);
}

#[tokio::test]
async fn a_node_without_certificate_can_only_join() {
    let m = manager().await;
    let (mut s, _) = connect_pinned(m.addr, m.token().pin).await.unwrap();
    let hello = message::ToManager::Hello {
        revision: 0,
        version: String::new(),
    };
    frame::write(&mut s, &hello).await.unwrap();
    assert!(frame::read::<message::ToNode>(&mut s, MAX_DOWN).await.is_err());
}

#[tokio::test]
async fn garbage_and_huge_lengths_end_the_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let m = manager().await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64]] {
        let mut tcp = TcpStream::connect(m.addr).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = soon(tcp.read_to_end(&mut rest)).await;
    }
    let (mut s, _) = connect_pinned(m.addr, m.token().pin).await.unwrap();
    s.write_all(&[0xff; 8]).await.unwrap();
    assert!(soon(s.read_u8()).await.is_err());
}
