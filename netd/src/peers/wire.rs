//! Frames of a stream between managers: length (4 octets, big endian), kind (1 octet), body.

use std::io::{Error, ErrorKind, Result};

use cluster::raft::Message;
use model::ApiError;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};

use super::Standing;
use crate::rpc::{IDLE, frame};

/// Octets of a frame: Raft puts at most one long entry, or 1 MiB of short ones, into a message.
pub(super) const MAX_FRAME: usize = 8 << 20;
/// Octets of a piece of a snapshot.
pub(super) const PIECE: usize = 64 << 10;
/// Octets of a snapshot: as many as the log takes.
pub(super) const MAX_SNAPSHOT: u64 = 1 << 30;

/// What goes over a stream.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Frame {
    /// A message, encoded by `cluster::raft`.
    Message(Vec<u8>),
    /// A snapshot's message without its data, and how many octets of that follow.
    Snapshot { message: Vec<u8>, octets: u64 },
    /// The next piece of it.
    Piece(Vec<u8>),
    /// Microseconds of the sender's clock, to be sent back.
    Ping(u64),
    /// Answer to a ping.
    Pong {
        sent: u64,
        term: u64,
        last_index: u64,
        applied: u64,
    },
    /// One more piece has come.
    Taken,
    /// The snapshot has come whole, and was handed to Raft.
    Arrived,
    /// The stream ends: the sender is no manager of this cluster as the log stands at a revision.
    Refused { revision: u64, why: String },
}

impl Frame {
    pub(super) fn pong(sent: u64, s: Standing) -> Frame {
        Frame::Pong {
            sent,
            term: s.term,
            last_index: s.last_index,
            applied: s.applied,
        }
    }

    pub(super) fn message(m: &Message) -> Result<Frame> {
        m.encode().map(Frame::Message).map_err(Error::other)
    }

    /// Appends the frame to a buffer.
    pub(super) fn put(&self, out: &mut Vec<u8>) -> Result<()> {
        let body = postcard::to_allocvec(self).map_err(Error::other)?;
        out.extend_from_slice(&frame::encode_bytes(&body)?);
        Ok(())
    }
}

/// Writes what is in a buffer, and empties it. A peer that does not read is cut off.
pub(super) async fn flush(to: &mut (impl AsyncWrite + Unpin), buffer: &mut Vec<u8>) -> Result<()> {
    timeout(IDLE, async {
        to.write_all(buffer).await?;
        to.flush().await
    })
    .await??;
    buffer.clear();
    Ok(())
}

/// Reads a frame. Must not be broken off, but at the end of the stream. Fails after silence of [`IDLE`].
pub(super) async fn read(rd: &mut (impl AsyncRead + Unpin)) -> Result<Frame> {
    let bytes = timeout(IDLE, frame::read_bytes(rd, MAX_FRAME)).await??;
    postcard::from_bytes(&bytes).map_err(|e| Error::new(ErrorKind::InvalidData, e))
}

/// Reads frames in a task of its own, for who has other things to do meanwhile. Ends with the stream, or when the receiver
/// is dropped.
pub(super) fn read_all(mut rd: impl AsyncRead + Unpin + Send + 'static) -> mpsc::Receiver<Result<Frame>> {
    let (tx, rx) = mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            let got = tokio::select! {
                got = read(&mut rd) => got,
                () = tx.closed() => return,
            };
            let end = got.is_err();
            if tx.send(got).await.is_err() || end {
                return;
            }
        }
    });
    rx
}

/// The text of an error with its hint.
pub(super) fn told(e: &ApiError) -> String {
    match e.hint.as_str() {
        "" => e.message.clone(),
        hint => format!("{}; try: {hint}", e.message),
    }
}
