//! So many nodes that join a cluster at once and then keep their streams: the load of `cargo xtask bench joins`, and those
//! who are told of placements in `bench placement` (`--tell-slots`).
//!
//! Each has its own key, certificate and connections, and runs what a daemon runs to join, to follow the intent and to
//! report ([`netd::rpc::join`], [`netd::rpc::Uplink`]). None has a kernel, gossip or a disk. When all know of all, one
//! JSON object is written to standard output; the streams stay open until the process is killed.
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use model::intent::Availability;
use netd::{
    identity::{NodeKey, Tls, Token},
    known::Known,
    rpc::{JoinError, Joined, Offer, Report, Uplink, UplinkConfig, join},
};
use nix::sys::{
    resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit},
    time::TimeValLike,
};
use tokio::sync::{mpsc, watch};

/// Where these nodes would be managers: nobody asks.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
/// Before a node tries again, as `[cluster] join` does.
const AGAIN: Duration = Duration::from_secs(1);

/// Nodes that join at once and keep their streams.
#[derive(Parser)]
struct Args {
    /// A worker's token.
    #[arg(long)]
    token: Token,
    /// A manager's address; of several each node takes the next.
    #[arg(long, required = true)]
    at: Vec<SocketAddr>,
    /// How many.
    #[arg(long, default_value_t = 1000)]
    nodes: u32,
    /// Nodes that the cluster has already.
    #[arg(long, default_value_t = 3)]
    others: u32,
    /// When all have not come by then, it has failed, seconds.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Also write an object each time that a node hears of slots placed on it: `new_slots`, and when that was (`at_us`,
    /// microseconds since 1970).
    #[arg(long)]
    tell_slots: bool,
}

/// What one node tells.
struct Told {
    /// Its certificate was there and its stream greeted, since the start.
    joined: Duration,
    /// It knew of all.
    complete: Duration,
}

/// What all nodes share.
struct Shared {
    args: Args,
    start: Instant,
    /// Attempts to join.
    tries: AtomicU64,
    /// Streams that ended.
    broken: AtomicU64,
    /// Increments of the intent that were taken.
    increments: AtomicU64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // One or two sockets a node.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(all(args))
}

async fn all(args: Args) -> anyhow::Result<()> {
    let (nodes, limit) = (args.nodes, Duration::from_secs(args.seconds));
    let shared = Arc::new(Shared {
        args,
        start: Instant::now(),
        tries: AtomicU64::new(0),
        broken: AtomicU64::new(0),
        increments: AtomicU64::new(0),
    });
    let (tell, mut told) = mpsc::unbounded_channel();
    for n in 0..nodes {
        let (shared, tell) = (shared.clone(), tell.clone());
        tokio::spawn(async move {
            if let Err(e) = node(n, &shared, &tell).await {
                // The receiver has ended only if this process has.
                let _ = tell.send(Err(e));
            }
        });
    }
    drop(tell);
    let mut seen = Vec::new();
    let until = tokio::time::Instant::now() + limit;
    while seen.len() < usize::try_from(nodes)? {
        match tokio::time::timeout_at(until, told.recv()).await {
            Ok(Some(t)) => seen.push(t?),
            Ok(None) => bail!("a node has ended"),
            Err(_) => bail!(
                "{} of {nodes} nodes knew of all after {} s",
                seen.len(),
                limit.as_secs()
            ),
        }
    }
    let mut joined: Vec<Duration> = seen.iter().map(|t| t.joined).collect();
    joined.sort();
    let complete = seen.iter().map(|t| t.complete).max().unwrap_or_default();
    let used = getrusage(UsageWho::RUSAGE_SELF).context("reading the CPU time")?;
    let micros = used.user_time().num_microseconds() + used.system_time().num_microseconds();
    let cpu = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
    let answer = serde_json::json!({
        "nodes": nodes,
        "joined_s": joined.last().copied().unwrap_or_default().as_secs_f64(),
        "join_p50_s": quantile(&joined, 50).as_secs_f64(),
        "join_p99_s": quantile(&joined, 99).as_secs_f64(),
        "complete_s": complete.as_secs_f64(),
        "tries": shared.tries.load(Ordering::Relaxed),
        "broken": shared.broken.load(Ordering::Relaxed),
        "increments": shared.increments.load(Ordering::Relaxed),
        "cpu_s": cpu.as_secs_f64(),
    });
    println!("{answer}");
    std::future::pending().await
}

/// The value below which so many of a hundred are; `sorted` is.
fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

/// The life of a node; ends only when it has failed.
async fn node(n: u32, shared: &Shared, tell: &mpsc::UnboundedSender<anyhow::Result<Told>>) -> anyhow::Result<()> {
    let key = NodeKey::generate()?;
    let at = &shared.args.at;
    let at = *at.get(usize::try_from(n)? % at.len()).context("no address")?;
    let Joined {
        credentials, intent, ..
    } = let_in(n, shared, at, &key).await?;
    ensure!(
        intent.nodes.contains_key(&credentials.node),
        "a node did not find itself in the intent"
    );
    let known = Known::new(intent);
    let mut intent = known.watch();
    // What managers ask is not answered; nobody asks.
    let (uplink, _asked) = Uplink::start(UplinkConfig {
        me: credentials.node,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tls: Arc::new(Tls::new(&credentials, &key)?),
        first: credentials.managers.iter().filter_map(|m| m.parse().ok()).collect(),
        local: watch::channel(None).1,
        intent: known,
    });
    let mut connected = uplink.connected();
    connected.wait_for(|c| *c).await.context("the stream has ended")?;
    let joined = shared.start.elapsed();
    let all = usize::try_from(shared.args.nodes + shared.args.others)?;
    let mut told = false;
    let mut slots = 0;
    loop {
        let now = intent.borrow_and_update().clone();
        if shared.args.tell_slots {
            let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            let held = now.tasks_on(credentials.node).count();
            if held > slots {
                let at = u64::try_from(at.as_micros())?;
                println!("{}", serde_json::json!({ "new_slots": held - slots, "at_us": at }));
            }
            slots = held;
        }
        // As a daemon whose kernel has nothing to do.
        uplink.report(Report {
            applied: now.revision,
            ..Report::default()
        });
        if !told && now.nodes.len() >= all {
            told = true;
            let complete = shared.start.elapsed();
            tell.send(Ok(Told { joined, complete }))?;
        }
        tokio::select! {
            r = intent.changed() => {
                r.context("the intent has ended")?;
                shared.increments.fetch_add(1, Ordering::Relaxed);
            }
            r = connected.changed() => {
                r.context("the stream has ended")?;
                if !*connected.borrow_and_update() {
                    shared.broken.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Tries until a manager lets it in, as `[cluster] join` does; a refusal for good is the end.
async fn let_in(n: u32, shared: &Shared, at: SocketAddr, key: &NodeKey) -> anyhow::Result<Joined> {
    let hostname = format!("joiner{n}");
    let offer = Offer {
        hostname: &hostname,
        rpc: NOWHERE,
        availability: Availability::Active,
    };
    loop {
        shared.tries.fetch_add(1, Ordering::Relaxed);
        match join(&shared.args.token, at, key, &offer).await {
            Ok(joined) => return Ok(joined),
            Err(JoinError::Refused(e)) if !e.retryable => bail!("{e}"),
            Err(e) => eprintln!("joiner{n}: {e}"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
