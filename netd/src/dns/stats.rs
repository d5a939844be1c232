//! Counters of the names' service.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// What was asked and answered since netd started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Namespaces served now.
    pub namespaces: u64,
    /// Queries by UDP.
    pub udp: u64,
    /// Queries by TCP.
    pub tcp: u64,
    /// Replies by response code (`NOERROR`, ...); those that are 0 are left out.
    pub replies: BTreeMap<&'static str, u64>,
    /// Messages that were no queries.
    pub dropped: u64,
    /// Queries for foreign names.
    pub foreign: u64,
    /// Of them: answered from the cache.
    pub cached: u64,
    /// Of them: no resolver answered, or too many were under way.
    pub failed: u64,
    /// Messages from resolvers' addresses that answered no query of ours.
    pub forged: u64,
}

/// Names of the response codes 0-15 (IANA, DNS RCODEs), as metrics print them.
const CODES: [&str; 16] = [
    "NOERROR",
    "FORMERR",
    "SERVFAIL",
    "NXDOMAIN",
    "NOTIMP",
    "REFUSED",
    "YXDOMAIN",
    "YXRRSET",
    "NXRRSET",
    "NOTAUTH",
    "NOTZONE",
    "DSOTYPENI",
    "12",
    "13",
    "14",
    "15",
];

#[derive(Debug, Default)]
pub(super) struct Counters {
    namespaces: AtomicU64,
    pub(super) udp: AtomicU64,
    pub(super) tcp: AtomicU64,
    replies: [AtomicU64; 16],
    pub(super) dropped: AtomicU64,
    pub(super) foreign: AtomicU64,
    pub(super) cached: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) forged: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
    pub(super) fn namespaces(&self, n: usize) {
        self.namespaces.store(n as u64, Relaxed);
    }
    /// Counts a reply by the code in its header.
    pub(super) fn reply(&self, message: &[u8]) {
        let code = message.get(3).map_or(0, |o| o & 0x0f);
        if let Some(counter) = self.replies.get(usize::from(code)) {
            Self::add(counter);
        }
    }
    pub(super) fn read(&self) -> Stats {
        let replies = CODES
            .iter()
            .zip(&self.replies)
            .map(|(name, n)| (*name, n.load(Relaxed)))
            .filter(|(_, n)| *n > 0);
        Stats {
            namespaces: self.namespaces.load(Relaxed),
            udp: self.udp.load(Relaxed),
            tcp: self.tcp.load(Relaxed),
            replies: replies.collect(),
            dropped: self.dropped.load(Relaxed),
            foreign: self.foreign.load(Relaxed),
            cached: self.cached.load(Relaxed),
            failed: self.failed.load(Relaxed),
            forged: self.forged.load(Relaxed),
        }
    }
}
