//! The stream to one other manager, from connecting to its end, again and again.

use std::{
    future::poll_fn,
    io::{Error, ErrorKind, Result},
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::{raft::Message, state::EPOCH};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Peer, Shared, Standing,
    out::Out,
    queue::Dropped,
    wire::{self, Frame, PIECE},
};
use crate::{
    identity::IdentityError,
    rpc::{IDLE, frame, message::ToManager},
};

/// TCP connect and TLS handshake may take this long.
const CONNECT: Duration = Duration::from_secs(3);
/// Pause after the first failure to connect; it doubles with each one.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest pause: a manager that comes back is to be heard within an election.
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// The pause when the other manager says no: asking again soon is of no use.
const REFUSED: Duration = Duration::from_secs(2);
/// Between two pings.
const PING: Duration = Duration::from_millis(250);
/// A ping that is not answered for so long ends the stream.
const SILENT: Duration = Duration::from_secs(5);
/// Pieces of a snapshot under way: what lies in the kernel's buffers delays every heartbeat behind it.
const UNDER_WAY: usize = 4;

pub(super) async fn run(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut pause = BACKOFF_MIN;
    loop {
        let ended = once(&shared, &peer, &mut pause).await;
        if ended.is_ok() {
            // On with the new certificate, before the old one ends.
            continue;
        }
        let why = ended
            .err()
            .map_or_else(|| "the stream ended".to_owned(), |e| e.to_string());
        tracing::debug!(manager = %peer.node, addr = %peer.addr, "no stream to a manager: {why}");
        let was_reached = {
            let mut view = peer.view();
            view.problem = Some(why);
            std::mem::take(&mut view.reached)
        };
        let dropped = peer.queue().broke(Instant::now());
        if was_reached {
            shared.changed.send_modify(|n| *n += 1);
        }
        if dropped.is_some() || was_reached {
            shared.lost(peer.raft, dropped.unwrap_or(Dropped { snapshot: false }));
        }
        // Half of it is chance, so that two managers do not keep missing each other.
        sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

/// One stream. `Ok`: this node's certificate was renewed.
async fn once(shared: &Shared, peer: &Peer, pause: &mut Duration) -> Result<()> {
    let replaced = shared.tls.replaced();
    let connected = timeout(CONNECT, async {
        let tcp = TcpStream::connect(peer.addr).await?;
        tcp.set_nodelay(true)?;
        let (mut stream, who) = shared.tls.connect(tcp).await?;
        if who.node != peer.node {
            return Err(Error::other(IdentityError::Other {
                want: peer.node,
                got: who.node,
            }));
        }
        shared.is_manager(&who, peer.raft).map_err(Error::other)?;
        let hello = ToManager::Raft {
            from: shared.raft,
            to: peer.raft,
        };
        frame::write(&mut stream, &hello).await?;
        Ok(stream)
    });
    let stream = connected
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::TimedOut, "it does not answer")))?;
    Link {
        shared,
        peer,
        begun: Instant::now(),
        sending: None,
    }
    .talk(stream, replaced, pause)
    .await
}

/// A snapshot on its way.
struct Sending {
    data: Vec<u8>,
    at: usize,
    under_way: usize,
}

struct Link<'a> {
    shared: &'a Shared,
    peer: &'a Peer,
    begun: Instant,
    sending: Option<Sending>,
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        self.peer.out().close();
        if self.sending.is_some() {
            self.shared.inbox.snapshot_sent(self.peer.raft, false);
        }
    }
}

impl Link<'_> {
    fn clock(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    async fn talk(
        &mut self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        mut replaced: watch::Receiver<u64>,
        pause: &mut Duration,
    ) -> Result<()> {
        let (rd, wr) = tokio::io::split(stream);
        self.peer.out().open(Box::new(wr));
        let mut frames = wire::read_all(rd);
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            if self.fill()? {
                // A peer that does not read is cut off.
                timeout(IDLE, poll_fn(|cx| self.peer.out().poll(cx))).await??;
                continue;
            }
            if self.sending.is_none() && replaced.has_changed().unwrap_or(false) {
                return Ok(());
            }
            tokio::select! {
                () = self.peer.wake.notified() => {}
                _ = replaced.changed(), if self.sending.is_none() => return Ok(()),
                f = frames.recv() => {
                    let f = f.unwrap_or(Err(ErrorKind::UnexpectedEof.into()))?;
                    if let Frame::Pong { .. } = f {
                        heard = Instant::now();
                    }
                    self.take(f, pause)?;
                }
                _ = ping.tick() => {
                    if heard.elapsed() > SILENT {
                        return Err(Error::new(ErrorKind::TimedOut, "it has stopped answering"));
                    }
                    self.peer.out().put(&Frame::Ping(self.clock()))?;
                }
            }
        }
    }

    /// Puts what is to be sent behind what waits: messages first, then a piece of a snapshot. Whether anything waits.
    fn fill(&mut self) -> Result<bool> {
        let peer = self.peer;
        let mut out = peer.out();
        if let Some(e) = out.take_failure() {
            return Err(e);
        }
        let snapshot = {
            let mut queue = peer.queue();
            out.fill(&mut queue, Instant::now())?;
            match self.sending {
                None => queue.snapshot.take(),
                Some(_) => None,
            }
        };
        if let Some(m) = snapshot {
            self.begin(m, &mut out)?;
        }
        if let Some(s) = &mut self.sending
            && s.under_way < UNDER_WAY
            && s.at < s.data.len()
        {
            let end = (s.at + PIECE).min(s.data.len());
            out.put(&Frame::Piece(s.data.get(s.at..end).unwrap_or_default().to_vec()))?;
            s.at = end;
            s.under_way += 1;
        }
        Ok(out.waits())
    }

    fn begin(&mut self, mut m: Message, out: &mut Out) -> Result<()> {
        let data = m
            .snapshot
            .as_mut()
            .map(|s| std::mem::take(&mut s.data))
            .unwrap_or_default();
        tracing::info!(manager = %self.peer.node, octets = data.len(), "sending a snapshot");
        out.put(&Frame::Snapshot {
            message: m.encode().map_err(Error::other)?,
            octets: data.len() as u64,
        })?;
        self.sending = Some(Sending {
            data,
            at: 0,
            under_way: 0,
        });
        Ok(())
    }

    fn take(&mut self, f: Frame, pause: &mut Duration) -> Result<()> {
        match f {
            Frame::Pong {
                sent,
                term,
                last_index,
                applied,
            } => {
                *pause = BACKOFF_MIN;
                let sample = Duration::from_micros(self.clock().saturating_sub(sent));
                let (smooth, first) = {
                    let mut view = self.peer.view();
                    let smooth = match view.round_trip.filter(|_| view.reached) {
                        Some(old) => (old * 7 + sample) / 8,
                        None => sample,
                    };
                    view.round_trip = Some(smooth);
                    view.standing = Some(Standing {
                        term,
                        last_index,
                        applied,
                    });
                    view.problem = None;
                    (smooth, !std::mem::replace(&mut view.reached, true))
                };
                self.shared.inbox.round_trip(self.peer.raft, smooth);
                if first {
                    tracing::info!(manager = %self.peer.node, addr = %self.peer.addr, "a manager is reached");
                    self.shared.changed.send_modify(|n| *n += 1);
                }
            }
            Frame::Taken => {
                if let Some(s) = &mut self.sending {
                    s.under_way = s.under_way.saturating_sub(1);
                }
            }
            Frame::Arrived => {
                if self.sending.take().is_some() {
                    self.shared.inbox.snapshot_sent(self.peer.raft, true);
                }
            }
            Frame::Refused { revision, why } => {
                *pause = REFUSED;
                if revision / EPOCH > self.shared.intent.borrow().revision / EPOCH {
                    self.shared.superseded.send_replace(Some(self.peer.addr));
                }
                return Err(Error::other(why));
            }
            // Not for this end of a stream.
            Frame::Message(_) | Frame::Snapshot { .. } | Frame::Piece(_) | Frame::Ping(_) => {
                return Err(Error::new(ErrorKind::InvalidData, "a frame out of turn"));
            }
        }
        Ok(())
    }
}
