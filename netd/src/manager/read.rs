//! Reads that see all that was acknowledged before them, on any manager.

use http_body_util::Full;
use hyper::body::Bytes;
use model::NodeId;

use super::{Leader, Manager};
use crate::store::ProposeError;

impl Manager {
    /// Waits until this node shows all that was acknowledged before, by whatever manager. The leader asks a majority whether
    /// it still leads; another manager asks the leader how far that is, and waits until it has come there itself.
    pub async fn settle(&self) -> Result<(), ProposeError> {
        let leader = self.leader().borrow().clone();
        match leader {
            Leader::Other { node, addr } => {
                let index = self.settled_at(node, &addr).await.map_err(ProposeError::Unavailable)?;
                self.store.reached(index).await;
            }
            // Nobody may be known yet although this manager was elected just now.
            Leader::Me | Leader::Nobody => drop(self.store.settle().await?),
        }
        self.catch_up();
        Ok(())
    }

    /// Index of the last entry that the leader holds and a majority has agreed on.
    async fn settled_at(&self, node: NodeId, addr: &str) -> Result<u64, String> {
        let to = addr.parse().map_err(|_| format!("{addr} is no address"))?;
        let http = hyper::Request::get(crate::api::SETTLED_PATH)
            .header(hyper::header::HOST, "netd")
            .body(Full::new(Bytes::new()))
            .map_err(|e| e.to_string())?;
        let silent = |e| format!("the leader, {node} ({addr}), cannot be asked: {e}");
        let answer = self.forwarder.send(node, to, http).await.map_err(silent)?;
        if !answer.status().is_success() {
            return Err(format!("{node} does not lead any more, or no majority answers it"));
        }
        serde_json::from_slice(answer.body()).map_err(|e| format!("{node} ({addr}): {e}"))
    }
}
