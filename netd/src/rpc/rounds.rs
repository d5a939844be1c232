//! What streams are told of the intent, in rounds.
//!
//! A change goes out at once when nothing went out just before it. What follows right behind waits for the next round and
//! is one increment then, made and encoded once for all streams that had the round before. A stream that does not keep up
//! misses rounds, and gets one increment over all of them. So what a burst of changes costs a manager does not grow with
//! their number times the number of streams.

use std::{
    collections::BTreeMap,
    io::Result,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use cluster::seal::Key;
use model::{error::ApiError, intent::Intent};
use tokio::sync::watch;

use super::{ManagerPort, frame, message::ToNode};

/// For each stream rounds are so much further apart, which is several times what a manager needs to tell one: for a
/// hundred streams 10 ms, for a thousand 100 ms.
const PER_STREAM: Duration = Duration::from_micros(100);
/// The furthest.
const APART_MAX: Duration = Duration::from_millis(500);
/// Below that it is not worth waiting.
const APART_MIN: Duration = Duration::from_millis(1);

/// One state of the intent that streams are told of.
pub(super) struct Round {
    /// It.
    pub(super) intent: Arc<Intent>,
    keys: OnceLock<Arc<[Key]>>,
    /// Increments to it, encoded, by the revision that they begin at.
    frames: Mutex<BTreeMap<u64, Arc<[u8]>>>,
}

impl Round {
    fn new(intent: Arc<Intent>) -> Round {
        Round {
            intent,
            keys: OnceLock::new(),
            frames: Mutex::default(),
        }
    }

    /// Gossip keys, at least as new as the intent.
    pub(super) fn keys(&self, port: &dyn ManagerPort) -> std::result::Result<Arc<[Key]>, ApiError> {
        if let Some(keys) = self.keys.get() {
            return Ok(keys.clone());
        }
        let keys: Arc<[Key]> = port.secrets()?.gossip.keys().into();
        Ok(self.keys.get_or_init(|| keys).clone())
    }

    /// The way here from an older intent, as a frame.
    pub(super) fn frame(&self, from: &Intent) -> Result<Arc<[u8]>> {
        // Held while one is made: who waits here wants the same.
        let mut frames = self.frames.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(frame) = frames.get(&from.revision) {
            return Ok(frame.clone());
        }
        let delta = ToNode::Delta(Box::new(from.delta_to(&self.intent)));
        let frame: Arc<[u8]> = frame::encode(&delta)?.into();
        frames.insert(from.revision, frame.clone());
        Ok(frame)
    }

    #[cfg(test)]
    pub(super) fn encoded(&self) -> usize {
        self.frames.lock().unwrap_or_else(|e| e.into_inner()).len()
    }
}

/// How far apart two rounds are at least.
fn apart(streams: usize) -> Duration {
    let streams = u32::try_from(streams).unwrap_or(u32::MAX);
    PER_STREAM.saturating_mul(streams).min(APART_MAX)
}

/// Makes rounds until nobody listens any more. `changed` is called with each intent before it goes out.
pub(super) fn start(
    port: &Arc<dyn ManagerPort>,
    changed: impl Fn(&Intent) + Send + 'static,
) -> watch::Receiver<Arc<Round>> {
    let mut intent = port.intent();
    let first = Round::new(intent.borrow_and_update().clone());
    let (tx, rx) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                r = intent.changed() => if r.is_err() { return },
                () = tx.closed() => return,
            }
            let now = intent.borrow_and_update().clone();
            changed(&now);
            tx.send_replace(Arc::new(Round::new(now)));
            let apart = apart(tx.receiver_count());
            if apart >= APART_MIN {
                tokio::time::sleep(apart).await;
            }
        }
    });
    rx
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_further_apart_for_more_streams() {
        assert_eq!(apart(3), Duration::from_micros(300));
        assert_eq!(apart(1000), Duration::from_millis(100));
        assert_eq!(apart(usize::MAX), APART_MAX);
    }

    #[test]
    fn an_increment_is_encoded_once_for_all_that_begin_at_the_same_revision() {
        let at = |revision| Intent {
            revision,
            ..Intent::default()
        };
        let round = Round::new(Arc::new(at(9)));
        let one = round.frame(&at(7)).unwrap();
        assert!(Arc::ptr_eq(&one, &round.frame(&at(7)).unwrap()));
        let whole = round.frame(&at(0)).unwrap();
        assert!(!Arc::ptr_eq(&one, &whole) && round.encoded() == 2);
    }
}
