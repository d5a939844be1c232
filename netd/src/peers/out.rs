//! The sending end of a stream to one manager.
//!
//! Whoever has something to say writes it at once as long as the stream takes it: most often that is the log's thread,
//! and a message does not wait for another thread to wake up. What the stream does not take is left to the link, which can
//! wait for it.

use std::{
    io::{Error, ErrorKind, Result},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use tokio::io::AsyncWrite;

use super::{
    queue::Queue,
    wire::{Frame, PIECE},
};

/// Octets of messages that are put into the buffer before it is written.
const BATCH: usize = 256 << 10;
/// More octets than this are the link's to send: sealing them would hold up the log's thread.
const MAX_AT_ONCE: usize = PIECE;

type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// See the module.
#[derive(Default)]
pub(super) struct Out {
    /// The stream, while one is open.
    to: Option<Writer>,
    /// Frames; those before `at` were taken.
    buffer: Vec<u8>,
    at: usize,
    /// The stream was asked to wake the link when it takes more: nobody else may ask it meanwhile.
    blocked: bool,
    failed: Option<Error>,
}

impl Out {
    /// A stream is open.
    pub(super) fn open(&mut self, to: Writer) {
        *self = Out {
            to: Some(to),
            ..Out::default()
        };
    }

    /// It is not any more; what was not written is gone.
    pub(super) fn close(&mut self) {
        *self = Out::default();
    }

    /// Puts a frame behind those that wait.
    pub(super) fn put(&mut self, frame: &Frame) -> Result<()> {
        frame.put(&mut self.buffer)
    }

    /// Puts messages behind the frames that wait.
    pub(super) fn fill(&mut self, queue: &mut Queue, now: Instant) -> Result<()> {
        while self.buffer.len() < BATCH
            && let Some(m) = queue.pop(now)
        {
            Frame::message(&m)?.put(&mut self.buffer)?;
        }
        Ok(())
    }

    /// Whether something waits to be written.
    pub(super) fn waits(&self) -> bool {
        self.blocked || self.at < self.buffer.len()
    }

    /// What went wrong while somebody else was writing.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        self.failed.take()
    }

    /// Writes the messages that wait. `false`: the link has to look after it.
    pub(super) fn send_now(&mut self, queue: &mut Queue, now: Instant) -> bool {
        if self.to.is_none() || self.waits() || self.failed.is_some() || queue.octets() > MAX_AT_ONCE {
            return false;
        }
        let sent = self.fill(queue, now).and_then(|()| {
            let mut nobody = Context::from_waker(Waker::noop());
            match self.poll(&mut nobody) {
                Poll::Ready(done) => done.map(|()| true),
                Poll::Pending => Ok(false),
            }
        });
        sent.unwrap_or_else(|e| {
            self.failed = Some(e);
            false
        })
    }

    /// Writes what waits.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let done = self.write(cx);
        self.blocked = done.is_pending();
        done
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(to) = &mut self.to else {
            return Poll::Ready(Err(ErrorKind::NotConnected.into()));
        };
        while let Some(rest) = self.buffer.get(self.at..).filter(|r| !r.is_empty()) {
            match ready!(Pin::new(&mut *to).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                n => self.at += n,
            }
        }
        self.buffer.clear();
        self.at = 0;
        Pin::new(to).poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use cluster::raft::{Kind, Message};
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::rpc::frame;

    fn message(index: u64) -> Message {
        Message {
            kind: Kind::Heartbeat,
            from: 1,
            to: 2,
            term: 1,
            log_term: 0,
            index,
            commit: 0,
            commit_term: 0,
            entries: Vec::new(),
            snapshot: None,
            request_snapshot: 0,
            reject: false,
            reject_hint: 0,
            context: Vec::new(),
        }
    }

    #[tokio::test]
    async fn what_the_stream_does_not_take_is_left_to_the_link_whole_and_in_order() {
        // A few octets at a time.
        let (to, mut from) = tokio::io::duplex(7);
        let (mut out, mut queue) = (Out::default(), Queue::default());
        let now = Instant::now();
        queue.push(message(0), now);
        assert!(!out.send_now(&mut queue, now), "there is no stream");
        out.open(Box::new(to));
        assert!(!out.send_now(&mut queue, now), "it does not fit");
        assert!(out.waits());
        queue.push(message(1), now);
        assert!(!out.send_now(&mut queue, now), "the link has the turn");
        let read = async {
            let mut got = Vec::new();
            for _ in 0..2 {
                got.push(frame::read_bytes(&mut from, 4096).await.unwrap());
            }
            got
        };
        let written = async {
            out.fill(&mut queue, now).unwrap();
            poll_fn(|cx| out.poll(cx)).await.unwrap();
        };
        let (got, ()) = tokio::join!(read, written);
        assert!(!out.waits());
        let indices = got.iter().map(|b| match postcard::from_bytes(b).unwrap() {
            Frame::Message(m) => Message::decode(&m).unwrap().index,
            other => panic!("{other:?}"),
        });
        assert_eq!(indices.collect::<Vec<_>>(), [0, 1]);
    }

    #[tokio::test]
    async fn a_stream_that_takes_it_needs_no_link_and_a_broken_one_is_told_of() {
        let (to, mut from) = tokio::io::duplex(4096);
        let (mut out, mut queue) = (Out::default(), Queue::default());
        let now = Instant::now();
        out.open(Box::new(to));
        queue.push(message(3), now);
        assert!(out.send_now(&mut queue, now) && !out.waits());
        let bytes = frame::read_bytes(&mut from, 4096).await.unwrap();
        assert!(matches!(postcard::from_bytes(&bytes).unwrap(), Frame::Message(_)));
        from.shutdown().await.unwrap();
        drop(from);
        queue.push(message(4), now);
        assert!(!out.send_now(&mut queue, now));
        assert!(out.take_failure().is_some());
    }
}
