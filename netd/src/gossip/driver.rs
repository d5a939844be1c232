//! The task that drives `core`: datagrams in and out, timers, pings, comparisons, the disk.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use cluster::{
    membership::Outcome,
    seal::{MAX_PACKET, NONCE},
};
use model::ids::NodeId;
use tokio::{
    net::UdpSocket,
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{Shared, core::Datagram, link};
use crate::identity::random;

/// A comparison with another node begins this often, less up to a half by chance.
const SYNC_EVERY: Duration = Duration::from_millis(1500);
/// Each so-manieth goes to a node that does not seem to live, so that two halves of a cluster find each other again.
const FAR_EACH: u64 = 4;
/// Looks at what is expired, missing.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// What changed is on disk so soon: a daemon that is killed goes on from there, and what it lacks would be withdrawn when
/// nobody is there to ask.
const SAVED_IN: Duration = Duration::from_millis(20);
/// As long as more changes, so long after the last time,
const SAVED_APART: Duration = Duration::from_millis(250);
/// and a millisecond longer for so many octets, so that a large table that changes all the time is no load for the disk.
const SAVED_RATE: usize = 1024;
/// Datagrams read in one go before anything else is looked at.
const READ_BURST: usize = 256;
/// Pause when a burst of news was sent and more wait.
const PACE: Duration = Duration::from_millis(2);
/// Comparisons that this node has begun and that are not over.
const MAX_SYNCS: usize = 4;
/// Longest sleep; timers are usually much nearer.
const LONG: Duration = Duration::from_secs(1);

/// Runs until it is aborted.
pub(super) async fn run(shared: Arc<Shared>, udp: UdpSocket) {
    let mut intent = shared.intent.clone();
    let mut house = interval(HOUSEKEEPING);
    house.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Before this it is not saved again.
    let mut rested: Option<Instant> = None;
    let mut save_at: Option<Instant> = None;
    let mut sync_at = Instant::now();
    let mut syncs = 0u64;
    let syncing = Arc::new(Semaphore::new(MAX_SYNCS));
    let (pings, mut pinged) = mpsc::channel::<(NodeId, Outcome)>(64);
    // One octet more than may be, so that longer datagrams are seen as such.
    let mut buf = vec![0; MAX_PACKET + 1];
    let mut intent_open = true;
    let mut certified = shared.tls.replaced();
    // Ended with this task.
    let mut running = JoinSet::new();
    loop {
        let now = shared.now();
        let (out, more, due, next, unsaved) = {
            let mut core = shared.lock();
            let (out, more) = core.outgoing(now);
            let due = core.due(now);
            core.publish(&shared.facts);
            (out, more, due, core.next(), core.is_unsaved())
        };
        if unsaved && save_at.is_none() {
            let soon = Instant::now() + SAVED_IN;
            save_at = Some(rested.map_or(soon, |rested| soon.max(rested)));
        }
        send(&shared, &udp, out).await;
        if shared.lock().leaving() {
            shared.left.send_replace(true);
        }
        for (node, addr) in due {
            let (shared, pings) = (shared.clone(), pings.clone());
            running.spawn(async move {
                let outcome = link::ping(&shared.tls, addr, node).await;
                let _ = pings.send((node, outcome)).await;
            });
        }
        let wait = next.map_or(LONG, |t| t.saturating_sub(now)).min(LONG);
        let wait = if more { wait.min(PACE) } else { wait };
        let timer = Instant::now() + wait;
        tokio::select! {
            got = udp.recv_from(&mut buf) => {
                let mut got = got;
                for _ in 0..READ_BURST {
                    match got {
                        Ok((len, _)) => take(&shared, buf.get(..len).unwrap_or_default()),
                        Err(_) => break,
                    }
                    got = udp.try_recv_from(&mut buf);
                }
                // Time that is due is due also under a flood.
                shared.lock().tick(shared.now());
            }
            () = sleep_until(timer) => shared.lock().tick(shared.now()),
            () = shared.wake.notified() => {}
            changed = intent.changed(), if intent_open => {
                intent_open = changed.is_ok();
                let new = intent.borrow_and_update().clone();
                shared.lock().on_intent(shared.now(), new);
                shared.with_kept(|kept, now| kept.sweep(now));
            }
            Ok(()) = certified.changed() => shared.with_kept(|kept, now| kept.sweep(now)),
            Some((node, outcome)) = pinged.recv() => shared.lock().pinged(shared.now(), node, outcome),
            () = sleep_until(sync_at) => {
                sync_at = Instant::now() + SYNC_EVERY.mul_f64(0.5 + rand::random::<f64>() / 2.0);
                syncs += 1;
                while running.try_join_next().is_some() {}
                let kept = shared.with_kept(|kept, now| {
                    kept.sweep(now);
                    kept.nodes()
                });
                let partner = shared.lock().partner(syncs.is_multiple_of(FAR_EACH), &kept);
                if let Some((node, addr)) = partner
                    && let Ok(permit) = syncing.clone().try_acquire_owned()
                {
                    let shared = shared.clone();
                    running.spawn(async move {
                        let _permit = permit;
                        if let Err(e) = link::sync(&shared, addr, node).await {
                            tracing::debug!(%addr, error = %e, "no comparison with another node");
                        }
                    });
                }
            }
            _ = house.tick() => shared.lock().housekeeping(shared.now()),
            () = sleep_until(save_at.unwrap_or_else(Instant::now)), if save_at.is_some() => {
                save_at = None;
                let save = shared.lock().take_save();
                if let Some(save) = save {
                    let size = u64::try_from(save.len() / SAVED_RATE).unwrap_or(u64::MAX);
                    rested = Some(Instant::now() + SAVED_APART + Duration::from_millis(size));
                    let done = tokio::task::spawn_blocking(move || save.write()).await;
                    if let Ok(Err(e)) = done {
                        tracing::warn!(error = %e, "the last view was not kept");
                    }
                }
            }
        }
    }
}

fn take(shared: &Shared, packet: &[u8]) {
    let opened = shared.keys.load().open(packet);
    let mut core = shared.lock();
    match opened {
        Ok(plain) => core.on_packet(shared.now(), &plain),
        Err(e) => {
            core.refused_packet();
            drop(core);
            tracing::debug!(error = %e, "a datagram was refused");
        }
    }
}

/// A socket of both families speaks to IPv4 addresses in their mapped form (RFC 4291 2.5.5.2).
fn reach(listen: SocketAddr, to: SocketAddr) -> SocketAddr {
    match (listen, to.ip()) {
        (SocketAddr::V6(_), IpAddr::V4(a)) => SocketAddr::new(a.to_ipv6_mapped().into(), to.port()),
        _ => to,
    }
}

async fn send(shared: &Shared, udp: &UdpSocket, out: Vec<Datagram>) {
    for (addr, plain) in out {
        let sealed = random::<NONCE>()
            .ok()
            .map(|nonce| shared.keys.load().seal(nonce, &plain));
        match sealed {
            Some(Ok(packet)) => {
                // A datagram may be lost anyway: an unreachable peer is seen by its silence.
                if let Err(e) = udp.send_to(&packet, reach(shared.listen, addr)).await {
                    tracing::trace!(%addr, error = %e, "a datagram was not sent");
                }
            }
            Some(Err(e)) => tracing::warn!(error = %e, "a datagram was not sealed"),
            None => tracing::warn!("the kernel gives no random octets"),
        }
    }
}
