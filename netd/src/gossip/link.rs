//! The TCP side: mutual TLS between any two nodes. A ping, or a comparison of members and rows:
//!
//! ```text
//! A -> B  Offer { root, members }
//! B -> A  Answer { root, members, summary unless the roots are equal }
//! A -> B  Pages of what A holds of owners that differ
//! B -> A  Rows that A lacks, keys that B wants
//! A -> B  Rows that B wants
//! B -> A  Done
//! ```

use std::{
    io::{Error, ErrorKind, Result},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use cluster::{
    membership::{MemberState, Outcome, PROBE_TIMEOUT, PROBE_TRIES},
    rows::{Page, Summary},
};
use model::{ids::NodeId, row::RowKey};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::Shared;
use crate::{
    identity::{IdentityError, PeerId, Tls, admit_node},
    rpc::frame,
};

/// Octets of a message: members of a large cluster, or [`SYNC_ROWS`](super::core::SYNC_ROWS), or pages.
const MAX: usize = 4 << 20;
/// Connections of others at once.
const MAX_CONNECTIONS: usize = 256;
/// Each step of a conversation.
const STEP: Duration = Duration::from_secs(5);
/// How long a host that took the connection has to answer a ping: it lives, so only its daemon is in question.
const PONG: Duration = Duration::from_secs(1);
/// When no connection can be accepted, e.g. for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    Ping,
    Pong,
    Offer {
        root: u64,
        members: Vec<MemberState>,
    },
    Answer {
        members: Vec<MemberState>,
        summary: Option<Summary>,
    },
    Pages(Vec<Page>),
    Rows {
        rows: Vec<u8>,
        want: Vec<(NodeId, RowKey)>,
    },
    Done,
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Message> {
    let bytes = timeout(STEP, frame::read_bytes(from, MAX)).await??;
    postcard::from_bytes(&bytes).map_err(|e| Error::new(ErrorKind::InvalidData, e))
}

async fn write(to: &mut (impl AsyncWrite + Unpin), m: &Message) -> Result<()> {
    let bytes = postcard::to_allocvec(m).map_err(Error::other)?;
    let frame = frame::encode_bytes(&bytes)?;
    timeout(STEP, async {
        to.write_all(&frame).await?;
        to.flush().await
    })
    .await?
}

fn odd() -> Error {
    Error::new(ErrorKind::InvalidData, "a message out of turn")
}

/// Answers others until it is aborted.
pub(super) async fn serve(shared: Arc<Shared>, tcp: TcpListener) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let (stream, from) = match tcp.accept().await {
            Ok(x) => x,
            Err(e) => {
                tracing::warn!(error = %e, "gossip: a connection was not accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(e) = answer(&shared, stream).await {
                tracing::debug!(%from, error = %e, "gossip: a connection ended");
            }
        });
    }
}

async fn answer(shared: &Shared, tcp: TcpStream) -> Result<()> {
    tcp.set_nodelay(true)?;
    let stranger = |e: Error| {
        shared.lock().refused_stranger();
        e
    };
    let acceptor = shared.tls.acceptor();
    let mut s = timeout(STEP, acceptor.accept(tcp)).await?.map_err(stranger)?;
    let peer = PeerId::of(s.get_ref().1).map_err(Error::other)?;
    let intent = shared.intent.borrow().clone();
    admit_node(&intent, &peer).map_err(Error::other).map_err(stranger)?;
    match read(&mut s).await? {
        Message::Ping => write(&mut s, &Message::Pong).await?,
        Message::Offer { root, members } => compared(shared, &mut s, peer.node, root, &members).await?,
        _ => return Err(odd()),
    }
    s.shutdown().await
}

async fn compared<S>(shared: &Shared, s: &mut S, peer: NodeId, root: u64, members: &[MemberState]) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (members, summary) = {
        let mut core = shared.lock();
        core.take_members(shared.now(), members);
        let differ = core.root() != root;
        (core.members(), differ.then(|| core.summary()))
    };
    shared.wake.notify_one();
    let equal = summary.is_none();
    write(s, &Message::Answer { members, summary }).await?;
    if equal {
        return Ok(());
    }
    let Message::Pages(pages) = read(s).await? else {
        return Err(odd());
    };
    let (rows, want) = shared.lock().compare(&pages);
    write(s, &Message::Rows { rows, want }).await?;
    let Message::Rows { rows, .. } = read(s).await? else {
        return Err(odd());
    };
    take_rows(shared, &rows, peer)?;
    write(s, &Message::Done).await
}

fn take_rows(shared: &Shared, rows: &[u8], peer: NodeId) -> Result<()> {
    let taken = shared.lock().take_rows(shared.now(), rows, peer);
    shared.wake.notify_one();
    taken.map_err(|e| Error::new(ErrorKind::InvalidData, e))
}

/// Compares members and rows with another node; `node`: who must answer, if that is known.
pub(super) async fn sync(shared: &Shared, addr: SocketAddr, node: Option<NodeId>) -> Result<()> {
    let done = compare(shared, addr, node).await;
    if let Err(e) = &done {
        shared.tls.note(e);
    }
    shared.lock().synced(done.is_ok());
    done
}

async fn compare(shared: &Shared, addr: SocketAddr, node: Option<NodeId>) -> Result<()> {
    let connect = async {
        let tcp = TcpStream::connect(addr).await?;
        tcp.set_nodelay(true)?;
        shared.tls.connect(tcp).await
    };
    let (mut s, peer) = timeout(STEP, connect).await??;
    if let Some(want) = node.filter(|n| *n != peer.node) {
        let got = peer.node;
        return Err(Error::other(IdentityError::Other { want, got }));
    }
    let intent = shared.intent.borrow().clone();
    admit_node(&intent, &peer).map_err(Error::other)?;
    let offer = {
        let core = shared.lock();
        Message::Offer {
            root: core.root(),
            members: core.members(),
        }
    };
    write(&mut s, &offer).await?;
    let Message::Answer { members, summary } = read(&mut s).await? else {
        return Err(odd());
    };
    shared.lock().take_members(shared.now(), &members);
    shared.wake.notify_one();
    let Some(summary) = summary else {
        return Ok(());
    };
    let pages = shared.lock().pages(&summary);
    write(&mut s, &Message::Pages(pages)).await?;
    let Message::Rows { rows, want } = read(&mut s).await? else {
        return Err(odd());
    };
    take_rows(shared, &rows, peer.node)?;
    let rows = shared.lock().encode(&want);
    let answer = Message::Rows { rows, want: Vec::new() };
    write(&mut s, &answer).await?;
    match read(&mut s).await? {
        Message::Done => Ok(()),
        _ => Err(odd()),
    }
}

/// Asks a node directly whether it lives.
pub(super) async fn ping(tls: &Tls, addr: SocketAddr, node: NodeId) -> Outcome {
    for _ in 0..PROBE_TRIES {
        match timeout(PROBE_TIMEOUT, TcpStream::connect(addr)).await {
            // The host took the connection: whatever comes now, it lives.
            Ok(Ok(tcp)) => {
                return match timeout(PONG, pong(tls, tcp)).await {
                    Ok(Ok(who)) if who == node => Outcome::Pong,
                    // Another node has this address now.
                    Ok(Ok(_)) => Outcome::Silent,
                    Ok(Err(_)) | Err(_) => Outcome::Refused,
                };
            }
            Ok(Err(e)) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) => {
                return Outcome::Refused;
            }
            // No route: it may come back within the time of the try.
            Ok(Err(_)) => sleep(PROBE_TIMEOUT).await,
            Err(_) => {}
        }
    }
    Outcome::Silent
}

async fn pong(tls: &Tls, tcp: TcpStream) -> Result<NodeId> {
    tcp.set_nodelay(true)?;
    let (mut s, peer) = tls.connect(tcp).await?;
    write(&mut s, &Message::Ping).await?;
    match read(&mut s).await? {
        Message::Pong => Ok(peer.node),
        _ => Err(odd()),
    }
}
