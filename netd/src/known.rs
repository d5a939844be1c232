//! The newest intent known on this node, from wherever it came: the stream from a manager, this manager's own log, the disk.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use model::Intent;
use tokio::sync::watch;

/// Clones are the same one.
#[derive(Debug, Clone)]
pub struct Known(Arc<Newest>);

#[derive(Debug)]
struct Newest {
    intent: watch::Sender<Arc<Intent>>,
    /// It is newer than what those who follow were told of last.
    untold: AtomicBool,
}

impl Known {
    /// Begins with what was known last.
    pub fn new(last: Arc<Intent>) -> Known {
        Known(Arc::new(Newest {
            intent: watch::Sender::new(last),
            untold: AtomicBool::new(false),
        }))
    }

    /// Takes an intent if it is newer, and tells those who follow: every source tells of the one log, some earlier than
    /// others.
    pub fn offer(&self, intent: &Arc<Intent>) -> bool {
        self.0.intent.send_if_modified(|old| {
            let newer = intent.revision > old.revision;
            if newer {
                *old = intent.clone();
            }
            self.0.untold.swap(false, Ordering::Relaxed) || newer
        })
    }

    /// Takes an intent if it is newer. Whoever looks sees it; those who follow are told by the next [`Known::offer`],
    /// which must come soon.
    pub fn show(&self, intent: &Arc<Intent>) {
        self.0.intent.send_if_modified(|old| {
            if intent.revision > old.revision {
                *old = intent.clone();
                self.0.untold.store(true, Ordering::Relaxed);
            }
            false
        });
    }

    /// The newest.
    pub fn now(&self) -> Arc<Intent> {
        self.0.intent.borrow().clone()
    }

    /// Its changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Intent>> {
        self.0.intent.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(revision: u64) -> Arc<Intent> {
        Arc::new(Intent {
            revision,
            ..Intent::default()
        })
    }

    #[test]
    fn what_is_older_changes_nothing() {
        let known = Known::new(at(5));
        let mut changes = known.watch();
        assert!(!known.offer(&at(4)) && !known.offer(&at(5)));
        assert!(!changes.has_changed().unwrap());
        assert!(known.offer(&at(9)));
        assert_eq!(changes.borrow_and_update().revision, 9);
        assert_eq!(known.now().revision, 9);
    }

    #[test]
    fn what_was_shown_is_told_with_the_next_offer_once() {
        let known = Known::new(at(5));
        let mut changes = known.watch();
        known.show(&at(4));
        assert_eq!(known.now().revision, 5);
        known.show(&at(7));
        assert_eq!(known.now().revision, 7);
        assert!(!changes.has_changed().unwrap());
        assert!(
            known.offer(&at(6)),
            "older than what was shown, which nobody was told of"
        );
        assert!(changes.has_changed().unwrap());
        assert_eq!(changes.borrow_and_update().revision, 7);
        assert!(!known.offer(&at(7)));
        assert!(!changes.has_changed().unwrap());
    }
}
