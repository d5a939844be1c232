//! `lab-tool hold`: long connections, each with a request now and then, made again when their time is over.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use lab::wire::{Held, parse_answer};

use crate::report;
use crate::tally::{kind, millis};
use crate::transfer::resolve;

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
    let threads: Vec<_> = (0..args.connections)
        .map(|n| {
            let life = Duration::from_secs_f64(args.life);
            let (every, timeout) = (
                Duration::from_millis(args.every_ms),
                Duration::from_millis(args.timeout_ms),
            );
            let share = life.mul_f64(f64::from(n) / f64::from(args.connections));
            let until = args.until.clone();
            std::thread::spawn(move || {
                let goes_on = || {
                    let now = Instant::now();
                    now < end || (now < latest && until.as_ref().is_some_and(|file| !file.exists()))
                };
                let mut held = Held::default();
                // The first ones end one after the other, so that at any time some are young and some old.
                let mut this = share.max(every);
                while goes_on() {
                    match one(to, this, every, timeout, &mut held) {
                        End::Own => {}
                        End::Cut => held.cut += 1,
                        End::Failed(why) => *held.failed.entry(why).or_default() += 1,
                    }
                    this = life;
                }
                held
            })
        })
        .collect();
    let mut all = Held::default();
    for t in threads {
        let Ok(one) = t.join() else {
            bail!("a thread has panicked")
        };
        all.connections += one.connections;
        all.requests += one.requests;
        all.cut += one.cut;
        for (why, n) in one.failed {
            *all.failed.entry(why).or_default() += n;
        }
    }
    all.took_ms = millis(start.elapsed());
    report(&all)
}

fn one(to: SocketAddr, life: Duration, every: Duration, timeout: Duration, held: &mut Held) -> End {
    let stream = match TcpStream::connect_timeout(&to, timeout) {
        Ok(s) => s,
        Err(e) => return End::Failed(format!("connecting: {}", kind(e))),
    };
    held.connections += 1;
    let until = Instant::now() + life;
    let set = || -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))
    };
    if let Err(e) = set() {
        return End::Failed(kind(e));
    }
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    loop {
        if let Err(e) = (&stream).write_all(b"WHO\n") {
            return End::Failed(format!("asking: {}", kind(e)));
        }
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) => return End::Failed("closed without an answer".to_owned()),
            Ok(_) if parse_answer(&line).is_some() => held.requests += 1,
            Ok(_) => return End::Failed("wrong answer".to_owned()),
            Err(e) => return End::Failed(format!("waiting for an answer: {}", kind(e))),
        }
        if Instant::now() >= until {
            return End::Own;
        }
        // Between two requests the other side may end it, which is no failure: nothing was asked.
        if stream.set_read_timeout(Some(every)).is_err() {
            return End::Failed("the connection is gone".to_owned());
        }
        let mut none = [0; 1];
        match reader.read(&mut none) {
            Ok(0) => return End::Cut,
            Ok(_) => return End::Failed("an answer that nobody asked for".to_owned()),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return End::Cut,
        }
        if stream.set_read_timeout(Some(timeout)).is_err() {
            return End::Failed("the connection is gone".to_owned());
        }
    }
}
