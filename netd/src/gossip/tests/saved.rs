//! What a daemon that is killed goes on from.

use std::time::Instant;

use super::*;
use crate::gossip::disk::View;

/// A daemon that is killed soon after it met the others goes on with what it heard from them: what it lacks would be
/// withdrawn from the kernel if nobody answered.
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::disallowed_methods, reason = "it is about time")]
async fn what_was_heard_is_on_disk_soon() {
    let mut all = Duration::ZERO;
    for _ in 0..5 {
        let w = World::new(2);
        let (one, two) = (w.start(1).await, w.start(2).await);
        one.put(RowKey::Node, node_row(1, one.listen())).unwrap();
        assert!(two.join(&[one.listen()]).await);
        until(&two, |f| f.newest(NodeId(1)) > 0).await;
        let heard = Instant::now();
        soon(|| {
            let view = std::fs::read(w.dir.join("n2/gossip/view")).ok()?;
            let view: View = postcard::from_bytes(&view).ok()?;
            (!view.rows.is_empty()).then_some(())
        })
        .await;
        all += heard.elapsed();
    }
    assert!(all < Duration::from_millis(1500), "five times, {all:?}");
}
