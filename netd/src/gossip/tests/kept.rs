//! Connections that are kept.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn comparisons_go_over_kept_connections() {
    let w = World::new(3);
    let g = w.all().await;
    let before = g[0].stats();
    for _ in 0..20 {
        for (to, id) in [(&g[1], 2), (&g[2], 3)] {
            link::sync(&g[0].shared, to.listen(), Some(NodeId(id))).await.unwrap();
        }
    }
    let after = g[0].stats();
    assert!(after.syncs - before.syncs >= 40);
    // One to each; more only where the node's own comparison had the kept one in use.
    assert!(after.opened - before.opened < 8, "{before:?} {after:?}");
    // Rows travel on them too.
    g[1].shared
        .lock()
        .put(g[1].shared.now(), key("quiet"), endpoint(514, EndpointState::Ready))
        .unwrap();
    link::sync(&g[0].shared, g[1].listen(), Some(NodeId(2))).await.unwrap();
    assert!(g[0].shared.lock().rows_of(NodeId(2)) >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_closes_what_was_kept() {
    let w = World::new(2);
    let g = w.all().await;
    let kept = |g: &Gossip| g.shared.with_kept(|kept, _| kept.nodes());
    for (from, to, id) in [(&g[0], &g[1], 2), (&g[1], &g[0], 1)] {
        link::sync(&from.shared, to.listen(), Some(NodeId(id))).await.unwrap();
    }
    // Node 2's connection to node 1 is made with the certificate that node 1 had at that time.
    let mut conn = soon(|| {
        g[1].shared
            .with_kept(|kept, now| kept.take(now, NodeId(1), g[0].listen()))
    })
    .await;
    let (key1, c) = &w.nodes[&1];
    g[0].shared.tls.replace(c, key1).unwrap();
    let closed = timeout(Duration::from_secs(5), conn.stream.read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    // Node 1's own goes too, and the next comparison makes a new one.
    let opened = g[0].stats().opened;
    soon(|| (g[0].stats().opened > opened && kept(&g[0]) == [NodeId(2)]).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_loses_its_connections_at_once() {
    let w = World::new(2);
    // Node 2 does not hear of it.
    let own = watch::Sender::new(w.intent.borrow().clone());
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let (one, two) = (w.start(1).await, w.start_with(2, any, own.subscribe()).await);
    assert!(two.join(&[one.listen()]).await);
    assert!(one.join(&[two.listen()]).await);
    let mut conn = soon(|| {
        two.shared
            .with_kept(|kept, now| kept.take(now, NodeId(1), one.listen()))
    })
    .await;
    soon(|| (!one.shared.with_kept(|kept, _| kept.nodes()).is_empty()).then_some(())).await;
    w.change(|i| {
        i.nodes.remove(&NodeId(2));
    });
    // Not a word was said on it.
    let closed = timeout(Duration::from_secs(5), conn.stream.read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    soon(|| one.shared.with_kept(|kept, _| kept.nodes()).is_empty().then_some(())).await;
    assert!(link::sync(&two.shared, one.listen(), Some(NodeId(1))).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_lives_is_not_asked_as_a_seed() {
    let w = World::new(3);
    let g = w.all().await;
    // All but the first one met it as a seed, and everybody lives: far is nobody.
    let near: Vec<NodeId> = vec![NodeId(1), NodeId(3)];
    for _ in 0..50 {
        let (node, _) = g[1].shared.lock().partner(true, &[]).unwrap();
        assert!(near.contains(&node.unwrap()));
    }
    let addr = g[0].listen();
    let mut g = g;
    g.remove(0).stop().await.unwrap();
    until(&g[0], |f| f.health[&NodeId(1)] == NodeHealth::DaemonDown).await;
    soon(|| (g[0].shared.lock().partner(true, &[]).unwrap().1 == addr).then_some(())).await;
}
