//! What streams are told of the intent, and how often.

use std::time::Instant;

use tokio::io::DuplexStream;

use super::*;
use message::ToNode;

/// A node's end of a stream that takes few octets at a time: while nobody reads here, the manager's end waits.
fn narrow(m: &Manager, id: NodeId) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64);
    let hub = m.hub.clone();
    tokio::spawn(async move {
        let _ = super::session::serve(&hub, ours, id, None, None, 0, "0.1.0".into()).await;
    });
    theirs
}

/// The next increment.
async fn increment(stream: &mut DuplexStream) -> model::intent::IntentDelta {
    loop {
        if let ToNode::Delta(d) = soon(frame::read(stream, MAX_DOWN)).await.unwrap() {
            return *d;
        }
    }
}

#[tokio::test]
async fn a_slow_stream_gets_one_increment_over_all_that_it_missed() {
    let m = manager().await;
    let (mut fast, slow) = (worker(&m).await, NodeId(50));
    m.port.change(|i| {
        i.nodes.insert(slow, node(Role::Worker, &[50; 32], "slow"));
    });
    let mut stream = narrow(&m, slow);
    let mut known = Intent::default();
    assert!(known.apply(increment(&mut stream).await));
    let begun = known.revision;
    let mut told = 0;
    for n in 0..50 {
        m.port
            .change(|i| i.nodes.get_mut(&NodeId(1)).unwrap().hostname = format!("h{n}"));
        let want = m.port.intent.borrow().revision;
        // The fast one is told of each, so each was a round of its own.
        soon(fast.intent.wait_for(|i| i.revision >= want)).await.unwrap();
        told += 1;
    }
    assert_eq!(told, 50);
    // The first of them fills the stream; the others are one.
    let mut increments = Vec::new();
    let last = m.port.intent.borrow().clone();
    while known.revision < last.revision {
        let delta = increment(&mut stream).await;
        increments.push((delta.from, delta.to));
        assert!(known.apply(delta));
    }
    assert_eq!(known, *last);
    assert_eq!(
        increments,
        [(begun, begun + 1), (begun + 1, last.revision)],
        "what was missed is not one increment"
    );
}

#[tokio::test]
async fn many_streams_are_told_of_many_changes_in_few_rounds() {
    let m = manager().await;
    let streams: Vec<_> = (0..1000).map(|_| m.hub.rounds()).collect();
    let mut rounds = m.hub.rounds();
    rounds.mark_unchanged();
    let begun = Instant::now();
    let count = tokio::spawn(async move {
        let mut count = 0u32;
        loop {
            soon(rounds.changed()).await.unwrap();
            count += 1;
            if rounds.borrow_and_update().intent.nodes.len() == 501 {
                return count;
            }
        }
    });
    for n in 0..500u64 {
        m.port.change(|i| {
            i.nodes.insert(NodeId(100 + n), node(Role::Worker, &[7; 32], "w"));
        });
        tokio::task::yield_now().await;
    }
    let count = count.await.unwrap();
    // Each takes its time, but the first and the last one.
    let most = u32::try_from(begun.elapsed().as_millis() / 100).unwrap() + 2;
    assert!(count <= most, "{count} rounds in {:?}", begun.elapsed());
    drop(streams);
}

#[tokio::test]
async fn a_single_change_is_told_at_once_however_many_streams_there_are() {
    let m = manager().await;
    let mut w = worker(&m).await;
    let streams: Vec<_> = (0..4000).map(|_| m.hub.rounds()).collect();
    let mut took = Vec::new();
    for n in 0..5 {
        let begun = Instant::now();
        m.port
            .change(|i| i.nodes.get_mut(&NodeId(1)).unwrap().hostname = format!("h{n}"));
        let want = m.port.intent.borrow().revision;
        soon(w.intent.wait_for(|i| i.revision >= want)).await.unwrap();
        let time = begun.elapsed();
        took.push(time);
        // Rounds are 400 ms apart: what waits for one takes longer each time, a busy machine not.
        if time < Duration::from_millis(300) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(took.iter().any(|t| *t < Duration::from_millis(300)), "{took:?}");
    drop(streams);
}
