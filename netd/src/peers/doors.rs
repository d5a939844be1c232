//! Frames of another manager.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use cluster::raft::{Body, Conf, Entry, Kind, Message, Snapshot};
use futures_util::FutureExt;

use super::{
    Inbox, Standing, accept,
    wire::{Frame, MAX_FRAME},
};
use crate::rpc::frame;

/// Takes what comes, and forgets it.
#[derive(Default)]
struct Pit(AtomicU64);

impl Inbox for Pit {
    fn message(&self, _: Message) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) < 1000
    }
    fn unreachable(&self, _: u64) {}
    fn snapshot_sent(&self, _: u64, _: bool) {}
    fn round_trip(&self, _: u64, _: Duration) {}
    fn standing(&self) -> Standing {
        Standing::default()
    }
}

/// A stream of manager 2 to manager 1.
pub(crate) fn open(mut octets: &[u8]) {
    let (pit, mut coming, mut out) = (Pit::default(), None, Vec::new());
    // There is nothing to wait for: what is not there has been cut off.
    while let Some(Ok(bytes)) = frame::read_bytes(&mut octets, MAX_FRAME).now_or_never() {
        let Ok(f) = postcard::from_bytes::<Frame>(&bytes) else {
            return;
        };
        if accept::take(1, &pit, f, 2, &mut coming, &mut out).is_err() {
            return;
        }
        out.clear();
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let message = |kind, entries, snapshot| Message {
        kind,
        from: 2,
        to: 1,
        term: 3,
        log_term: 2,
        index: 7,
        commit: 6,
        commit_term: 2,
        entries,
        snapshot,
        request_snapshot: 0,
        reject: false,
        reject_hint: 0,
        context: b"read".to_vec(),
    };
    let entries = vec![Entry {
        term: 3,
        index: 8,
        body: Body::Command(vec![1, 2, 3]),
    }];
    let snapshot = Snapshot {
        index: 9,
        term: 2,
        conf: Conf::single(2),
        data: Vec::new(),
    };
    let frames = [
        Frame::Ping(5).put_alone(),
        Frame::message(&message(Kind::Append, entries, None)).and_then(|f| f.put_alone()),
        message(Kind::Snapshot, Vec::new(), Some(snapshot))
            .encode()
            .map_err(std::io::Error::other)
            .and_then(|message| Frame::Snapshot { message, octets: 6 }.put_alone()),
        Frame::Piece(vec![1, 2, 3]).put_alone(),
        Frame::Piece(vec![4, 5, 6]).put_alone(),
        Frame::message(&message(Kind::Heartbeat, Vec::new(), None)).and_then(|f| f.put_alone()),
    ];
    let frames: Vec<Vec<u8>> = frames.into_iter().flatten().collect();
    let mut out = vec![frames.concat()];
    out.extend(frames);
    out
}

impl Frame {
    fn put_alone(&self) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.put(&mut out).map(|()| out)
    }
}
