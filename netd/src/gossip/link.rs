//! The TCP side: mutual TLS between any two nodes. A ping, or comparisons of members and rows, one after the other:
//!
//! ```text
//! A -> B  Offer { root of the rows, digest of the members }
//! B -> A  Answer { members unless the digests are equal, summary of the rows unless the roots are }
//! A -> B  Differ { members, pages of what A holds of owners that differ }, each only if B has sent its own
//! B -> A  Rows that A lacks, keys that B wants; Done, if it was members alone
//! A -> B  Rows that B wants
//! B -> A  Done
//! ```
//!
//! In a quiet cluster the first two are all there is, on a connection that is kept ([`kept`](super::kept)). At each
//! message the log is asked whether the other end still counts; one that is removed is cut off at once.

use std::{
    io::{Error, ErrorKind, Result},
    net::SocketAddr,
    pin::pin,
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
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::client::TlsStream;

use super::{
    Shared,
    kept::{Conn, Now},
};
use crate::{
    identity::{IdentityError, PeerId, Tls, admit_node},
    rpc::frame,
};

/// Octets of a message: members of a large cluster, or [`SYNC_ROWS`](super::core::SYNC_ROWS), or pages.
const MAX: usize = 4 << 20;
/// Connections of others at once.
const MAX_CONNECTIONS: usize = 256;
/// Those of them that may wait for another comparison. The rest stays free for pings: who finds no room there is taken
/// for a dead daemon.
const MAX_WAITING: usize = 64;
/// Each step of a conversation.
const STEP: Duration = Duration::from_secs(5);
/// How long a connection of another node may wait for its next comparison: longer than the other node lets it.
const PATIENCE: Duration = Duration::from_secs(90);
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
        members: u64,
    },
    Answer {
        members: Option<Vec<MemberState>>,
        summary: Option<Summary>,
    },
    Differ {
        members: Option<Vec<MemberState>>,
        pages: Option<Vec<Page>>,
    },
    Rows {
        rows: Vec<u8>,
        want: Vec<(NodeId, RowKey)>,
    },
    Done,
}

fn decode(bytes: &[u8]) -> Result<Message> {
    postcard::from_bytes(bytes).map_err(|e| Error::new(ErrorKind::InvalidData, e))
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Message> {
    decode(&timeout(STEP, frame::read_bytes(from, MAX)).await??)
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

/// Whether a peer counts now, by its certificate and the log.
fn admit(shared: &Shared, peer: &PeerId) -> Result<()> {
    let intent = shared.intent.borrow().clone();
    admit_node(&intent, peer).map_err(Error::other)
}

/// A conversation with a peer that is looked up in the log at each message.
struct Talk<'a, S> {
    shared: &'a Shared,
    peer: &'a PeerId,
    stream: &'a mut S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<'_, S> {
    async fn hear(&mut self) -> Result<Message> {
        let m = read(self.stream).await?;
        admit(self.shared, self.peer)?;
        Ok(m)
    }

    async fn say(&mut self, m: &Message) -> Result<()> {
        admit(self.shared, self.peer)?;
        write(self.stream, m).await
    }

    fn take_members(&self, members: &[MemberState]) {
        self.shared.lock().take_members(self.shared.now(), members);
        self.shared.wake.notify_one();
    }

    fn take_rows(&self, rows: &[u8]) -> Result<()> {
        let taken = self.shared.lock().take_rows(self.shared.now(), rows, self.peer.node);
        self.shared.wake.notify_one();
        taken.map_err(|e| Error::new(ErrorKind::InvalidData, e))
    }

    /// The side that began.
    async fn compare(&mut self) -> Result<()> {
        let offer = {
            let core = self.shared.lock();
            Message::Offer {
                root: core.root(),
                members: core.digest(),
            }
        };
        self.say(&offer).await?;
        let Message::Answer { members, summary } = self.hear().await? else {
            return Err(odd());
        };
        if members.is_none() && summary.is_none() {
            return Ok(());
        }
        let differ = {
            let mut core = self.shared.lock();
            Message::Differ {
                members: members.is_some().then(|| core.members()),
                pages: summary.map(|s| core.pages(&s)),
            }
        };
        if let Some(m) = &members {
            self.take_members(m);
        }
        self.say(&differ).await?;
        match self.hear().await? {
            Message::Rows { rows, want } => {
                self.take_rows(&rows)?;
                let rows = self.shared.lock().encode(&want);
                self.say(&Message::Rows { rows, want: Vec::new() }).await?;
            }
            Message::Done => return Ok(()),
            _ => return Err(odd()),
        }
        match self.hear().await? {
            Message::Done => Ok(()),
            _ => Err(odd()),
        }
    }

    /// The side that answers an offer.
    async fn compared(&mut self, root: u64, digest: u64) -> Result<()> {
        let (members, summary) = {
            let core = self.shared.lock();
            (
                (core.digest() != digest).then(|| core.members()),
                (core.root() != root).then(|| core.summary()),
            )
        };
        let equal = members.is_none() && summary.is_none();
        self.say(&Message::Answer { members, summary }).await?;
        if equal {
            return Ok(());
        }
        let Message::Differ { members, pages } = self.hear().await? else {
            return Err(odd());
        };
        if let Some(m) = members {
            self.take_members(&m);
        }
        if let Some(pages) = pages {
            let (rows, want) = self.shared.lock().compare(&pages);
            self.say(&Message::Rows { rows, want }).await?;
            let Message::Rows { rows, .. } = self.hear().await? else {
                return Err(odd());
            };
            self.take_rows(&rows)?;
        }
        self.say(&Message::Done).await
    }
}

/// Answers others until it is aborted, which ends all their connections.
pub(super) async fn serve(shared: Arc<Shared>, tcp: TcpListener) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    let mut open = JoinSet::new();
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
        while open.try_join_next().is_some() {}
        let (shared, waiting) = (shared.clone(), waiting.clone());
        open.spawn(async move {
            let _permit = permit;
            if let Err(e) = answer(&shared, stream, &waiting).await {
                tracing::debug!(%from, error = %e, "gossip: a connection ended");
            }
        });
    }
}

async fn answer(shared: &Shared, tcp: TcpStream, waiting: &Arc<Semaphore>) -> Result<()> {
    tcp.set_nodelay(true)?;
    let stranger = |e: Error| {
        shared.lock().refused_stranger();
        e
    };
    // From here on: a certificate that changes during the handshake counts too.
    let mut replaced = shared.tls.replaced();
    let mut intent = shared.intent.clone();
    let acceptor = shared.tls.acceptor();
    let mut s = timeout(STEP, acceptor.accept(tcp)).await?.map_err(stranger)?;
    let peer = PeerId::of(s.get_ref().1).map_err(Error::other)?;
    admit(shared, &peer).map_err(stranger)?;
    let mut place: Option<OwnedSemaphorePermit> = None;
    loop {
        let next = {
            let mut read = pin!(frame::read_bytes(&mut s, MAX));
            let mut over = pin!(sleep(if place.is_some() { PATIENCE } else { STEP }));
            loop {
                tokio::select! {
                    got = &mut read => break Some(got),
                    r = intent.changed() => {
                        r.map_err(Error::other)?;
                        intent.mark_unchanged();
                        admit(shared, &peer)?;
                    }
                    // Who trusts whom may have changed: the other end comes again, and is looked at anew.
                    _ = replaced.changed() => break None,
                    () = &mut over => break None,
                }
            }
        };
        let bytes = match next {
            Some(Ok(bytes)) => bytes,
            // The other end needs it no more.
            Some(Err(e)) if place.is_some() && e.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Some(Err(e)) => return Err(e),
            None => return s.shutdown().await,
        };
        admit(shared, &peer)?;
        match decode(&bytes)? {
            Message::Ping => {
                write(&mut s, &Message::Pong).await?;
                return s.shutdown().await;
            }
            Message::Offer { root, members } => {
                let mut talk = Talk {
                    shared,
                    peer: &peer,
                    stream: &mut s,
                };
                talk.compared(root, members).await?;
            }
            _ => return Err(odd()),
        }
        if place.is_none() {
            match waiting.clone().try_acquire_owned() {
                Ok(p) => place = Some(p),
                Err(_) => return s.shutdown().await,
            }
        }
    }
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
    let before = node.and_then(|node| shared.with_kept(|kept, now| kept.take(now, node, addr)));
    if let Some(conn) = before {
        match compare_on(shared, conn).await {
            // A host that has fallen silent is not asked twice.
            Err(e) if e.kind() != ErrorKind::TimedOut => {
                tracing::trace!(%addr, error = %e, "a kept connection is of no use any more");
            }
            done => return done,
        }
    }
    compare_on(shared, open(shared, addr, node).await?).await
}

/// One comparison; the connection is kept if it went well.
async fn compare_on(shared: &Shared, mut conn: Conn<TlsStream<TcpStream>>) -> Result<()> {
    let mut talk = Talk {
        shared,
        peer: &conn.peer,
        stream: &mut conn.stream,
    };
    talk.compare().await?;
    shared.with_kept(|kept, now| kept.put(now, conn));
    Ok(())
}

async fn open(shared: &Shared, addr: SocketAddr, node: Option<NodeId>) -> Result<Conn<TlsStream<TcpStream>>> {
    let with = *shared.tls.replaced().borrow();
    let connect = async {
        let tcp = TcpStream::connect(addr).await?;
        tcp.set_nodelay(true)?;
        shared.tls.connect(tcp).await
    };
    let (stream, peer) = timeout(STEP, connect).await??;
    if let Some(want) = node.filter(|n| *n != peer.node) {
        let got = peer.node;
        return Err(Error::other(IdentityError::Other { want, got }));
    }
    shared.lock().opened(addr, peer.node);
    Ok(Conn {
        stream,
        peer,
        addr,
        made: shared.now(),
        with,
    })
}

impl Shared {
    /// Looks at the kept connections as of now.
    pub(super) fn with_kept<T>(&self, f: impl FnOnce(&mut super::Connections, Now<'_>) -> T) -> T {
        let intent = self.intent.borrow().clone();
        let now = Now {
            time: self.now(),
            intent: &intent,
            with: *self.tls.replaced().borrow(),
        };
        // No code panics while it holds the lock; if one did, the map would still be whole.
        f(&mut self.kept.lock().unwrap_or_else(|e| e.into_inner()), now)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::tests::World;

    #[tokio::test(flavor = "multi_thread")]
    async fn each_message_is_checked_against_the_log() {
        let w = World::new(2);
        let one = w.start(1).await;
        let (key, c) = &w.nodes[&2];
        let tls = Tls::new(c, key).unwrap();
        let tcp = TcpStream::connect(one.listen()).await.unwrap();
        let (mut s, _) = tls.connect(tcp).await.unwrap();
        let offer = Message::Offer { root: 1, members: 1 };
        let differ = || Message::Differ {
            members: None,
            pages: Some(Vec::new()),
        };
        // Three comparisons on one connection; in the middle of the third the node is removed.
        for round in 0..3 {
            write(&mut s, &offer).await.unwrap();
            let Message::Answer { members, summary } = read(&mut s).await.unwrap() else {
                panic!("no answer");
            };
            assert!(members.is_some() && summary.is_some());
            if round == 2 {
                w.change(|i| {
                    i.nodes.remove(&NodeId(2));
                });
            }
            write(&mut s, &differ()).await.unwrap();
            match read(&mut s).await {
                Ok(Message::Rows { .. }) if round < 2 => {}
                Err(_) if round == 2 => return,
                other => panic!("round {round}: {other:?}"),
            }
            let nothing = Message::Rows {
                rows: Vec::new(),
                want: Vec::new(),
            };
            write(&mut s, &nothing).await.unwrap();
            assert!(matches!(read(&mut s).await, Ok(Message::Done)));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn connections_that_wait_leave_room_for_pings() {
        let w = World::new(2);
        let one = w.start(1).await;
        let (key, c) = &w.nodes[&2];
        let tls = Tls::new(c, key).unwrap();
        let offer = {
            let core = one.shared.lock();
            Message::Offer {
                root: core.root(),
                members: core.digest(),
            }
        };
        let mut all = Vec::new();
        let mut closed = 0;
        for _ in 0..MAX_WAITING + 5 {
            let tcp = TcpStream::connect(one.listen()).await.unwrap();
            let (mut s, _) = tls.connect(tcp).await.unwrap();
            write(&mut s, &offer).await.unwrap();
            assert!(matches!(read(&mut s).await, Ok(Message::Answer { .. })));
            all.push(s);
        }
        for s in &mut all[MAX_WAITING..] {
            closed += usize::from(read(s).await.is_err());
        }
        assert_eq!(closed, 5);
        // The others go on.
        write(&mut all[0], &offer).await.unwrap();
        assert!(matches!(read(&mut all[0]).await, Ok(Message::Answer { .. })));
        assert_eq!(ping(&tls, one.listen(), NodeId(1)).await, Outcome::Pong);
    }
}
