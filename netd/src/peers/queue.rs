//! What waits to be sent to one manager.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use cluster::raft::{Body, Entry, Message};

/// Messages that wait for one manager; what comes on top is dropped.
const MAX_MESSAGES: usize = 4096;
/// Octets of their entries.
const MAX_OCTETS: usize = 16 << 20;
/// What has waited this long is not worth sending: its term or its entries were sent anew.
pub(super) const STALE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Default)]
pub(super) struct Queue {
    messages: VecDeque<(Instant, Message)>,
    octets: usize,
    /// The newest snapshot, at most one.
    pub(super) snapshot: Option<Message>,
}

/// Something was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dropped {
    /// And it was a snapshot.
    pub(super) snapshot: bool,
}

/// About how many octets a message has.
pub(crate) fn octets(m: &Message) -> usize {
    let body = |e: &Entry| match &e.body {
        Body::Command(bytes) => bytes.len(),
        Body::Empty | Body::Conf(_) => 0,
    };
    64 + m.context.len()
        + m.snapshot.as_ref().map_or(0, |s| s.data.len())
        + m.entries.iter().map(|e| 32 + body(e)).sum::<usize>()
}

impl Queue {
    /// Octets of the messages that wait.
    pub(super) fn octets(&self) -> usize {
        self.octets
    }

    /// Takes a message, or says that it dropped one.
    pub(super) fn push(&mut self, m: Message, now: Instant) -> Option<Dropped> {
        if m.snapshot.is_some() {
            let before = self.snapshot.replace(m);
            return before.map(|_| Dropped { snapshot: true });
        }
        let len = octets(&m);
        if self.messages.len() >= MAX_MESSAGES || self.octets + len > MAX_OCTETS {
            return Some(Dropped { snapshot: false });
        }
        self.octets += len;
        self.messages.push_back((now, m));
        None
    }

    /// The next message that is still worth sending.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Message> {
        while let Some((at, m)) = self.messages.pop_front() {
            self.octets = self.octets.saturating_sub(octets(&m));
            if now.saturating_duration_since(at) < STALE {
                return Some(m);
            }
        }
        None
    }

    /// The stream broke, or none could be opened. What is fresh and holds no entries (votes, say) is kept for the next try:
    /// a candidate does not ask twice.
    pub(super) fn broke(&mut self, now: Instant) -> Option<Dropped> {
        let before = self.messages.len();
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < STALE;
        self.messages.retain(|(at, m)| fresh(at) && m.entries.is_empty());
        self.octets = self.messages.iter().map(|(_, m)| octets(m)).sum();
        let snapshot = self.snapshot.take().is_some();
        (self.messages.len() < before || snapshot).then_some(Dropped { snapshot })
    }
}
