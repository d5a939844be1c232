//! A stream from another manager.

use std::{
    collections::BTreeMap,
    io::{Error, ErrorKind, Result},
};

use cluster::raft::Message;
use model::ApiError;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
};

use super::{
    Inbox, Peers, Shared,
    wire::{self, Frame, MAX_SNAPSHOT, flush},
};
use crate::identity::PeerId;

/// Streams of others, by id in Raft: a newer one of the same manager ends the older one. What is dropped ends a stream.
pub(super) type Accepted = BTreeMap<u64, oneshot::Sender<()>>;

/// A snapshot that is coming.
pub(super) struct Coming {
    message: Message,
    octets: u64,
    data: Vec<u8>,
}

impl Peers {
    /// Takes messages from a stream until it ends. `peer` is who the certificate says it is, `from` and `to` what its
    /// first message says.
    pub async fn accept(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        peer: PeerId,
        from: u64,
        to: u64,
    ) -> Result<()> {
        let shared = &self.0.shared;
        let (mut rd, mut wr) = tokio::io::split(stream);
        let refusal = match shared.is_manager(&peer, from) {
            Err(e) => Some(e.into()),
            Ok(()) if to != shared.raft => Some(ApiError::new(
                model::Code::Conflict,
                format!("this manager is {} in Raft, not {to}", shared.raft),
                "",
            )),
            Ok(()) => None,
        };
        if let Some(e) = refusal {
            return refuse(shared, &mut wr, &e).await;
        }
        let (tx, mut ended) = oneshot::channel();
        shared
            .accepted
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .insert(from, tx);
        let mut out = Vec::new();
        let mut coming = None;
        loop {
            let f = tokio::select! {
                f = wire::read(&mut rd) => f?,
                _ = &mut ended => return Err(Error::other("the manager has opened another stream")),
            };
            // Each message is checked: it may have been demoted or removed since the last one.
            if let Err(e) = shared.is_manager(&peer, from) {
                return refuse(shared, &mut wr, &e.into()).await;
            }
            take(shared.raft, &*shared.inbox, f, from, &mut coming, &mut out)?;
            if !out.is_empty() {
                flush(&mut wr, &mut out).await?;
            }
        }
    }
}

async fn refuse(shared: &Shared, wr: &mut (impl AsyncWrite + Unpin), e: &ApiError) -> Result<()> {
    let mut out = Vec::new();
    let revision = shared.intent.borrow().revision;
    let why = wire::told(e);
    Frame::Refused {
        revision,
        why: why.clone(),
    }
    .put(&mut out)?;
    flush(wr, &mut out).await?;
    Err(Error::new(ErrorKind::PermissionDenied, why))
}

/// Takes a frame of manager `from` to this one, `raft`; answers are put into `out`.
pub(super) fn take(
    raft: u64,
    inbox: &dyn Inbox,
    f: Frame,
    from: u64,
    coming: &mut Option<Coming>,
    out: &mut Vec<u8>,
) -> Result<()> {
    let odd = |why: &str| Err(Error::new(ErrorKind::InvalidData, why.to_owned()));
    match f {
        Frame::Ping(sent) => Frame::pong(sent, inbox.standing()).put(out)?,
        Frame::Message(bytes) => {
            let m = Message::decode(&bytes).map_err(Error::other)?;
            if m.from != from || m.to != raft || m.snapshot.is_some() {
                return odd("a message of somebody else");
            }
            // What has no room is as good as lost on the way: Raft sends it again.
            inbox.message(m);
        }
        Frame::Snapshot { message, octets } => {
            let message = Message::decode(&message).map_err(Error::other)?;
            let empty = message.snapshot.as_ref().is_some_and(|s| s.data.is_empty());
            if message.from != from || message.to != raft || !empty || octets > MAX_SNAPSHOT {
                return odd("a snapshot that makes no sense");
            }
            *coming = Some(Coming {
                message,
                octets,
                data: Vec::new(),
            });
            arrive(inbox, coming, out)?;
        }
        Frame::Piece(piece) => {
            let Some(c) = coming else {
                return odd("a piece of no snapshot");
            };
            if c.data.len() as u64 + piece.len() as u64 > c.octets {
                return odd("a snapshot longer than it said");
            }
            c.data.extend_from_slice(&piece);
            Frame::Taken.put(out)?;
            arrive(inbox, coming, out)?;
        }
        Frame::Pong { .. } | Frame::Taken | Frame::Arrived | Frame::Refused { .. } => {
            return odd("a frame out of turn");
        }
    }
    Ok(())
}

fn arrive(inbox: &dyn Inbox, coming: &mut Option<Coming>, out: &mut Vec<u8>) -> Result<()> {
    if coming.as_ref().is_none_or(|c| (c.data.len() as u64) < c.octets) {
        return Ok(());
    }
    if let Some(mut c) = coming.take() {
        if let Some(s) = &mut c.message.snapshot {
            s.data = c.data;
        }
        if !inbox.message(c.message) {
            return Err(Error::other("no room for the snapshot"));
        }
        Frame::Arrived.put(out)?;
    }
    Ok(())
}
