//! `lab-tool fetch` and `lab-tool send`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::wire::{Checker, Transfer};

use crate::report;

#[derive(clap::Args)]
pub(crate) struct FetchArgs {
    /// `host:port` of a `lab-tool serve`.
    #[arg(long)]
    to: String,
    /// Octets to ask for.
    #[arg(long, default_value_t = 10_000_000)]
    octets: u64,
    /// Octets a second that the server shall send; 0 is no limit.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Give up after so many seconds without data.
    #[arg(long, default_value_t = 10)]
    patience: u64,
}

/// Takes a stream; says `receiving` on standard error with the first octets. Ends with 0 also when octets were lost:
/// the report tells.
pub(crate) fn fetch(args: &FetchArgs) -> anyhow::Result<()> {
    let to = resolve(&args.to)?;
    let start = Instant::now();
    let mut checker = Checker::default();
    let mut longest = Duration::ZERO;
    let mut take = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(args.patience))?;
        stream.set_read_timeout(Some(Duration::from_secs(args.patience)))?;
        stream.write_all(format!("SOURCE {} {}\n", args.octets, args.rate).as_bytes())?;
        let mut buffer = vec![0; 128 * 1024];
        let mut last = Instant::now();
        loop {
            let n = stream.read(&mut buffer)?;
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if n == 0 {
                return Ok(());
            }
            if checker.received == 0 {
                eprintln!("receiving");
            }
            checker.take(buffer.get(..n).unwrap_or_default());
        }
    };
    let error = take().err().map(|e| e.to_string());
    report(&Transfer {
        wanted: args.octets,
        received: checker.received,
        wrong: checker.wrong,
        longest_gap_ms: u64::try_from(longest.as_millis())?,
        took_ms: u64::try_from(start.elapsed().as_millis())?,
        error,
    })
}

#[derive(clap::Args)]
pub(crate) struct SendArgs {
    /// `host:port`.
    #[arg(long)]
    to: String,
    /// Payload as hex digits.
    #[arg(long)]
    hex: String,
    /// Number of datagrams.
    #[arg(long, short = 'n', default_value_t = 1)]
    count: u32,
    /// Source port; 0 lets the kernel choose.
    #[arg(long, default_value_t = 0)]
    from_port: u16,
}

/// Sends raw payloads: forged VXLAN, garbage for a port of netd.
pub(crate) fn send(args: &SendArgs) -> anyhow::Result<()> {
    let to = resolve(&args.to)?;
    let any: SocketAddr = if to.is_ipv4() {
        ([0; 4], args.from_port).into()
    } else {
        ([0; 16], args.from_port).into()
    };
    let socket = UdpSocket::bind(any).context("binding the source port")?;
    let payload = unhex(&args.hex)?;
    let mut sent = 0_u32;
    for _ in 0..args.count {
        // ICMP errors of earlier datagrams come back here; the datagram itself was sent or is tried again.
        sent += u32::from(
            socket
                .send_to(&payload, to)
                .or_else(|_| socket.send_to(&payload, to))
                .is_ok(),
        );
    }
    println!("{sent}");
    Ok(())
}

pub(crate) fn resolve(to: &str) -> anyhow::Result<SocketAddr> {
    to.to_socket_addrs()
        .with_context(|| format!("looking up {to}"))?
        .next()
        .with_context(|| format!("{to} has no address"))
}

fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        bail!("--hex wants an even number of hex digits");
    }
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(text.get(i..i + 2).unwrap_or_default(), 16).context("--hex wants hex digits"))
        .collect()
}
