//! Requests to netd about one task's endpoint.

use std::{sync::Arc, time::Duration};

use model::{
    ApiError, EndpointId,
    api::{EndpointCreate, EndpointDrain, EndpointView},
    client::Client,
};
use tokio::{
    sync::{Mutex, Semaphore},
    time::{Instant, sleep},
};

/// Requests on their way at once; the others queue, so that a thousand tasks are no storm.
const AT_ONCE: usize = 16;

/// Longest time that netd may take to drain: acknowledgements and the service's drain timeout, a day at most.
const DRAIN: Duration = Duration::from_secs(25 * 3600);

/// How long a drain is tried while netd is away: a restart of it takes less.
const DRAIN_RETRY: Duration = Duration::from_secs(10);

/// netd, with a bound on what is asked at once.
#[derive(Debug, Clone)]
pub(crate) struct Netd {
    client: Client,
    room: Arc<Semaphore>,
}

/// Requests about one endpoint go out one after the other: a slow attach must not overtake the detach after it.
pub(crate) type Turn = Arc<Mutex<()>>;

impl Netd {
    pub(crate) fn new(client: Client) -> Self {
        Netd {
            client,
            room: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// The endpoint, made or found.
    pub(crate) async fn attach(
        &self,
        turn: Turn,
        id: &EndpointId,
        body: &EndpointCreate,
    ) -> Result<EndpointView, ApiError> {
        let _turn = turn.lock().await;
        let _room = self.room.acquire().await;
        self.client.put(&format!("/v1/endpoints/{id}"), body).await
    }

    /// Takes the endpoint away.
    pub(crate) async fn detach(&self, turn: Turn, id: &EndpointId) -> Result<(), ApiError> {
        let _turn = turn.lock().await;
        let _room = self.room.acquire().await;
        let answer: Result<serde_json::Value, _> = self.client.delete(&format!("/v1/endpoints/{id}")).await;
        match answer {
            Ok(_) => Ok(()),
            // Gone, or its node has left the cluster and all its endpoints with it.
            Err(e) if matches!(e.code, model::Code::NotFound | model::Code::NoCluster) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Returns when no node sends new flows to it and its flows have ended, or netd has waited long enough. It never
    /// keeps a task from being stopped: a refusal is only told.
    pub(crate) async fn drain(&self, turn: Turn, id: &EndpointId, timeout_ms: u64) {
        // After the attach that is on its way, but in nobody's way: it may take long.
        drop(turn.lock().await);
        let client = self.client.clone().with_timeout(DRAIN);
        let path = format!("/v1/endpoints/{id}/drain");
        let end = Instant::now() + DRAIN_RETRY;
        loop {
            let body = EndpointDrain {
                timeout_ms: Some(timeout_ms),
            };
            let answer = client.post::<serde_json::Value>(&path, &body).await;
            match answer {
                Ok(answer) => {
                    tracing::debug!("{id}: drained: {answer}");
                    return;
                }
                Err(e) if e.retryable && Instant::now() < end => {
                    sleep(Duration::from_millis(200)).await;
                }
                Err(e) => {
                    tracing::warn!("{id}: stopped without a drain: {e}");
                    return;
                }
            }
        }
    }
}
