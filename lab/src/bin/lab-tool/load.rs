//! `lab-tool load`: one client at full speed, for benchmarks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;
use lab::wire::{Figure, PATTERN, pattern};

use crate::report;
use crate::transfer::resolve;

/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Connect, ask, read the answer, see the server close.
    Short,
    /// Ask and read on one connection.
    Requests,
    /// One stream from the server.
    Bulk,
    /// One stream to the server.
    Upload,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to do.
    kind: Kind,
    /// `host:port` of a `lab-tool serve`.
    #[arg(long)]
    to: String,
    /// Seconds.
    #[arg(long, default_value_t = 2.0)]
    duration: f64,
    /// Milliseconds between an answer and the next request (requests).
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !(0.01..=600.0).contains(&args.duration) {
        bail!("--duration wants 0.01 to 600 seconds");
    }
    let to = resolve(&args.to)?;
    let time = Duration::from_secs_f64(args.duration);
    let start = Instant::now();
    let (count, failed) = match args.kind {
        Kind::Short => short(to, time),
        Kind::Requests => requests(to, time, Duration::from_millis(args.pause_ms))?,
        Kind::Bulk => bulk(to, time)?,
        Kind::Upload => upload(to, time)?,
    };
    let took = start.elapsed();
    if count == 0 {
        bail!("nothing was answered by {to} ({failed} failures)");
    }
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let mut per_second = count as f64 / took.as_secs_f64();
    if matches!(args.kind, Kind::Bulk | Kind::Upload) {
        per_second *= 8e-9;
    }
    report(&Figure {
        per_second,
        count,
        failed,
        took_ms: u64::try_from(took.as_millis())?,
    })
}

fn short(to: SocketAddr, time: Duration) -> (u64, u64) {
    let (mut done, mut failed) = (0, 0);
    let start = Instant::now();
    let mut buffer = [0; 512];
    while start.elapsed() < time {
        let mut one = || -> std::io::Result<bool> {
            let mut stream = connect(to)?;
            stream.write_all(b"BYE\n")?;
            let mut got = 0;
            // To the end-of-file: the server closes first and keeps the port in TIME_WAIT, so the client's ports do
            // not run out.
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(got > 0),
                    n => got += n,
                }
            }
        };
        match one() {
            Ok(true) => done += 1,
            Ok(false) | Err(_) => failed += 1,
        }
    }
    (done, failed)
}

fn requests(to: SocketAddr, time: Duration, pause: Duration) -> anyhow::Result<(u64, u64)> {
    let mut stream = connect(to).context("connecting")?;
    let mut reader = BufReader::new(stream.try_clone().context("sharing the connection")?);
    let start = Instant::now();
    let mut done = 0;
    let mut line = String::new();
    while start.elapsed() < time {
        stream.write_all(b"WHO\n").context("asking")?;
        line.clear();
        if reader.read_line(&mut line).context("reading an answer")? == 0 {
            bail!("the server closed the connection after {done} answers");
        }
        done += 1;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    Ok((done, 0))
}

fn bulk(to: SocketAddr, time: Duration) -> anyhow::Result<(u64, u64)> {
    let mut stream = connect(to).context("connecting")?;
    stream
        .write_all(format!("SOURCE {} 0\n", u64::MAX).as_bytes())
        .context("asking")?;
    let start = Instant::now();
    let mut buffer = vec![0; 256 * 1024];
    let mut octets = 0;
    while start.elapsed() < time {
        match stream.read(&mut buffer).context("reading")? {
            0 => bail!("the server closed the connection after {octets} octets"),
            n => octets += n as u64,
        }
    }
    Ok((octets, 0))
}

/// Counts what the server says it has received.
fn upload(to: SocketAddr, time: Duration) -> anyhow::Result<(u64, u64)> {
    let mut stream = connect(to).context("connecting")?;
    stream.write_all(b"SINK\n").context("asking")?;
    let data = pattern();
    debug_assert_eq!(data.len(), PATTERN);
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&data).context("writing")?;
    }
    stream.shutdown(Shutdown::Write).context("ending the stream")?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .context("reading the server's count")?;
    let (octets, wrong) = line.trim().split_once(' ').context("the server told no count")?;
    Ok((
        octets.parse().context("reading the count")?,
        wrong.parse().context("reading the count")?,
    ))
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}
