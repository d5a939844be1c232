//! `lab-tool hold`: long connections, each with a request now and then, made again when their time is over.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::wire::{Held, parse_answer};

use crate::crowd::{self, Came, For, Line};
use crate::report;
use crate::tally::{kind, millis};
use crate::transfer::resolve;

/// What is asked.
const REQUEST: &[u8] = b"WHO\n";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `host:port` of a `lab-tool serve`.
    #[arg(long)]
    to: String,
    /// Connections at once.
    #[arg(long, default_value_t = 20)]
    connections: u32,
    /// Seconds that each lives.
    #[arg(long, default_value_t = 3.0)]
    life: f64,
    /// Milliseconds between two requests on one connection.
    #[arg(long, default_value_t = 50)]
    every_ms: u64,
    /// Seconds in all: later no connection begins.
    #[arg(long, default_value_t = 5.0)]
    duration: f64,
    /// Connections also begin after --duration until this file is there; ten times as long at most.
    #[arg(long, value_name = "FILE")]
    until: Option<PathBuf>,
    /// A request fails after so many milliseconds.
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    /// Say `ready` on standard error before the first connection.
    #[arg(long)]
    announce: bool,
}

/// How one connection ended.
enum End {
    /// By itself.
    Own,
    /// By the other side, between two requests.
    Cut,
    /// In the middle of something.
    Failed(String),
}

/// What a connection is at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Connecting,
    /// It has asked.
    Waiting,
    /// Between two requests.
    Resting,
}

struct One {
    stream: TcpStream,
    at: At,
    /// When what it is at is over.
    due: Instant,
    life: Duration,
    /// When it is to end.
    until: Instant,
    line: Line,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let valid = |s: f64| (0.01..=600.0).contains(&s);
    if !valid(args.life) || !valid(args.duration) || !(1..=1000).contains(&args.connections) {
        bail!("--life and --duration want 0.01 to 600 seconds, --connections 1 to 1000");
    }
    let to = resolve(&args.to)?;
    if args.announce {
        eprintln!("ready");
    }
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(args.duration);
    let latest = start + Duration::from_secs_f64(args.duration * 10.0);
    let goes_on = |now: Instant| now < end || (now < latest && args.until.as_ref().is_some_and(|file| !file.exists()));
    let holder = Holder {
        to,
        every: Duration::from_millis(args.every_ms),
        timeout: Duration::from_millis(args.timeout_ms),
    };
    let life = Duration::from_secs_f64(args.life);
    let wanted = args.connections as usize;
    let mut held = Held::default();
    let mut all: Vec<One> = Vec::new();
    for n in 0..args.connections {
        // The first ones end one after the other, so that at any time some are young and some old.
        let share = life.mul_f64(f64::from(n) / f64::from(args.connections));
        all.extend(holder.begin(start, share.max(holder.every), &mut held));
    }
    let (mut now, mut again) = (start, start + holder.every);
    loop {
        let more = all.len() < wanted && goes_on(now);
        if more && now >= again {
            for _ in all.len()..wanted {
                all.extend(holder.begin(now, life, &mut held));
            }
            // For those that could not even begin.
            again = now + holder.every;
        }
        let Some(first) = all.iter().map(|one| one.due).chain(more.then_some(again)).min() else {
            break;
        };
        let ready = crowd::wait(all.iter().map(One::waits), now, Some(first)).context("waiting for answers")?;
        now = Instant::now();
        let mut ready = ready.into_iter();
        all.retain_mut(|one| {
            match holder.go_on(one, ready.next() == Some(true), now, &mut held) {
                None => return true,
                Some(End::Own) => {}
                Some(End::Cut) => held.cut += 1,
                Some(End::Failed(why)) => *held.failed.entry(why).or_default() += 1,
            }
            // The next one begins at once.
            again = now;
            false
        });
    }
    held.took_ms = millis(start.elapsed());
    report(&held)
}

/// What is the same for all of them.
struct Holder {
    to: SocketAddr,
    every: Duration,
    timeout: Duration,
}

impl Holder {
    fn begin(&self, now: Instant, life: Duration, held: &mut Held) -> Option<One> {
        match crowd::begin(self.to) {
            Ok(stream) => Some(One {
                stream,
                at: At::Connecting,
                due: now + self.timeout,
                life,
                until: now + life,
                line: Line::new(),
            }),
            Err(error) => {
                *held.failed.entry(format!("connecting: {}", kind(error))).or_default() += 1;
                None
            }
        }
    }

    /// Goes a step on; how it ended, if it did.
    fn go_on(&self, one: &mut One, ready: bool, now: Instant, held: &mut Held) -> Option<End> {
        let failed = |what: &str, error| Some(End::Failed(format!("{what}: {}", kind(error))));
        let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        let is_due = one.due <= now;
        match (one.at, ready) {
            (At::Connecting, true) => {
                if let Err(error) = crowd::ask(&one.stream, REQUEST) {
                    return failed("connecting", error);
                }
                held.connections += 1;
                (one.at, one.due, one.until) = (At::Waiting, now + self.timeout, now + one.life);
                None
            }
            (At::Waiting, true) => match one.line.read(&one.stream) {
                Ok(Came::Part) => None,
                Ok(Came::Whole) if parse_answer(one.line.text()).is_some() => {
                    held.requests += 1;
                    one.line.clear();
                    if now >= one.until {
                        return Some(End::Own);
                    }
                    (one.at, one.due) = (At::Resting, now + self.every);
                    None
                }
                Ok(Came::Whole) => Some(End::Failed("wrong answer".to_owned())),
                Ok(Came::End) => Some(End::Failed("closed without an answer".to_owned())),
                Err(error) => failed("waiting for an answer", error),
            },
            // Between two requests the other side may end it, which is no failure: nothing was asked.
            (At::Resting, true) => match one.line.read(&one.stream) {
                Ok(Came::Part) if one.line.text().is_empty() => None,
                Ok(Came::Part | Came::Whole) => Some(End::Failed("an answer that nobody asked for".to_owned())),
                Ok(Came::End) | Err(_) => Some(End::Cut),
            },
            (At::Resting, false) if is_due => match crowd::ask(&one.stream, REQUEST) {
                Ok(()) => {
                    (one.at, one.due) = (At::Waiting, now + self.timeout);
                    None
                }
                Err(error) => failed("asking", error),
            },
            (At::Connecting, false) if is_due => failed("connecting", late()),
            (At::Waiting, false) if is_due => failed("waiting for an answer", late()),
            (_, false) => None,
        }
    }
}

impl One {
    fn waits(&self) -> (&TcpStream, For) {
        let what = match self.at {
            At::Connecting => For::Writable,
            At::Waiting | At::Resting => For::Readable,
        };
        (&self.stream, what)
    }
}
