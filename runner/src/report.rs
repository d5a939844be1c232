//! What becomes of tasks is told to netd, in order, for as long as it takes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::{EndpointId, api::TaskStatus, client::Client};
use tokio::sync::Notify;

/// Reports of one task that wait while netd is away; older ones are dropped.
const KEPT: usize = 16;

/// Pause before a report is tried again.
const PAUSE: Duration = Duration::from_millis(500);

type Waiting = BTreeMap<EndpointId, VecDeque<TaskStatus>>;

/// A queue of reports a task; each task's are told in order, the newest always at last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports {
    waiting: Arc<Mutex<Waiting>>,
    more: Arc<Notify>,
    told: Arc<Notify>,
}

impl Reports {
    /// Adds a report.
    pub(crate) fn push(&self, id: EndpointId, status: TaskStatus) {
        self.with(|w| {
            let queue = w.entry(id).or_default();
            if queue.len() == KEPT {
                queue.pop_front();
            }
            queue.push_back(status);
        });
        self.more.notify_one();
    }

    /// Tells netd, for ever.
    pub(crate) async fn run(self, netd: Client) {
        loop {
            let Some((id, status)) = self.first() else {
                self.told.notify_waiters();
                self.more.notified().await;
                continue;
            };
            let answer = netd
                .put::<serde_json::Value>(&format!("/v1/tasks/{id}/status"), &status)
                .await;
            match answer {
                Ok(_) => {}
                Err(e) if e.retryable => {
                    tracing::debug!("{id}: not reported yet: {e}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(e) => tracing::debug!("{id}: netd does not want the report: {e}"),
            }
            self.drop_told(&id, &status);
        }
    }

    /// Waits until all is told.
    pub(crate) async fn flushed(&self) {
        loop {
            let told = self.told.notified();
            if self.with(|w| w.is_empty()) {
                return;
            }
            told.await;
        }
    }

    fn first(&self) -> Option<(EndpointId, TaskStatus)> {
        self.with(|w| w.iter().find_map(|(id, q)| q.front().map(|s| (id.clone(), s.clone()))))
    }

    fn drop_told(&self, id: &EndpointId, status: &TaskStatus) {
        self.with(|w| {
            if let Some(queue) = w.get_mut(id) {
                // While it was told, the queue may have overflowed: then another one stands in front.
                if queue.front() == Some(status) {
                    queue.pop_front();
                }
                if queue.is_empty() {
                    w.remove(id);
                }
            }
        });
    }

    fn with<T>(&self, f: impl FnOnce(&mut Waiting) -> T) -> T {
        // A queue is whole at any moment: a panic elsewhere does not spoil it.
        f(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
