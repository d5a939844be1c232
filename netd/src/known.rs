//! The newest intent known on this node, from wherever it came: the stream from a manager, this manager's own log, the disk.

use std::sync::Arc;

use model::Intent;
use tokio::sync::watch;

/// Clones are the same one.
#[derive(Debug, Clone)]
pub struct Known(Arc<watch::Sender<Arc<Intent>>>);

impl Known {
    /// Begins with what was known last.
    pub fn new(last: Arc<Intent>) -> Known {
        Known(Arc::new(watch::Sender::new(last)))
    }

    /// Takes an intent if it is newer: every source tells of the one log, some earlier than others.
    pub fn offer(&self, intent: &Arc<Intent>) -> bool {
        self.0.send_if_modified(|old| {
            let newer = intent.revision > old.revision;
            if newer {
                *old = intent.clone();
            }
            newer
        })
    }

    /// The newest.
    pub fn now(&self) -> Arc<Intent> {
        self.0.borrow().clone()
    }

    /// Its changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Intent>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_changes_nothing() {
        let at = |revision| {
            Arc::new(Intent {
                revision,
                ..Intent::default()
            })
        };
        let known = Known::new(at(5));
        let mut changes = known.watch();
        assert!(!known.offer(&at(4)) && !known.offer(&at(5)));
        assert!(!changes.has_changed().unwrap());
        assert!(known.offer(&at(9)));
        assert_eq!(changes.borrow_and_update().revision, 9);
        assert_eq!(known.now().revision, 9);
    }
}
