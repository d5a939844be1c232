//! `lab-tool tally`: many short connections, and who answered them.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use lab::wire::{Tally, parse_answer};
use nix::sys::socket::SockProtocol;

use crate::answer::plain;
use crate::report;
use crate::steady::{self, Plan};

/// Tries that may wait for an answer at once.
const MOST_OPEN: f64 = 2000.0;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `host:port`, looked up before each try.
    #[arg(long)]
    to: String,
    /// Datagrams instead of connections.
    #[arg(long)]
    udp: bool,
    /// Associations of SCTP instead of connections.
    #[arg(long, conflicts_with_all = ["udp", "bye"])]
    sctp: bool,
    /// Number of tries.
    #[arg(long, short = 'n', default_value_t = 100)]
    count: u64,
    /// Tries a second, independent of one another; without it one follows the other.
    #[arg(long)]
    rate: Option<f64>,
    /// Try for so many seconds instead of a count (with --rate).
    #[arg(long, requires = "rate")]
    duration: Option<f64>,
    /// Go on after --duration until this file is there; ten times as long at most.
    #[arg(long, requires = "duration", value_name = "FILE")]
    until: Option<PathBuf>,
    /// A try fails after so many milliseconds.
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
    /// The server closes: a port of this side is free again at once, instead of a minute later.
    #[arg(long, conflicts_with = "udp")]
    bye: bool,
    /// Ports of this side, of one try after the other: `first-last`. Else the kernel chooses.
    #[arg(long, value_parser = ports, value_name = "FIRST-LAST", conflicts_with = "rate")]
    ports: Option<(u16, u16)>,
    /// Say `ready` on standard error before the first try.
    #[arg(long)]
    announce: bool,
}

/// How a try is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Datagram,
    /// One that this side closes.
    Connection,
    /// One that the server closes.
    Bye,
    /// One by SCTP, that this side closes.
    Sctp,
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let both = text
        .split_once('-')
        .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    both.filter(|(first, last): &(u16, u16)| 0 < *first && first <= last)
        .ok_or_else(|| "wants FIRST-LAST, such as 50000-50899".to_owned())
}

impl Args {
    fn way(&self) -> Way {
        match (self.udp, self.bye) {
            _ if self.sctp => Way::Sctp,
            (true, _) => Way::Datagram,
            (false, false) => Way::Connection,
            (false, true) => Way::Bye,
        }
    }
}

pub(crate) struct Try {
    /// Milliseconds since 1970.
    pub(crate) started: u64,
    pub(crate) ended: Instant,
    pub(crate) result: Result<Answer, String>,
}

pub(crate) struct Answer {
    who: String,
    seen_as: IpAddr,
    own: IpAddr,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let timeout = Duration::from_millis(args.timeout_ms);
    let count = match (args.rate, args.duration) {
        (Some(rate), _) if !(rate > 0.0 && rate * timeout.as_secs_f64() <= MOST_OPEN) => {
            bail!("--rate times --timeout-ms leaves more than {MOST_OPEN} tries open at once")
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded by the guard above"
        )]
        (Some(rate), Some(seconds)) => (rate * seconds).round() as u64,
        _ => args.count,
    };
    if args.announce {
        eprintln!("ready");
    }
    let start = Instant::now();
    let most = match args.until {
        Some(_) => count.saturating_mul(10),
        None => count,
    };
    // A name is looked up before each try, which waits.
    if let (Some(rate), Ok(to), false) = (args.rate, args.to.parse(), args.sctp) {
        let plan = Plan {
            to,
            way: args.way(),
            rate,
            count,
            most,
            until: args.until.clone(),
            timeout,
        };
        return report(&summary(steady::run(&plan, start)?, start));
    }
    let (send, results) = mpsc::channel();
    match args.rate {
        None => {
            for number in 0..count {
                let _ = send.send(attempt(&args.to, args.way(), own(args.ports, number), number, timeout));
            }
        }
        Some(rate) => {
            let mut workers = Workers::new(args, timeout, &send);
            for number in 0..most {
                if number >= count && args.until.as_ref().is_none_or(|file| file.exists()) {
                    break;
                }
                #[allow(clippy::cast_precision_loss, reason = "a count of tries")]
                let due = Duration::from_secs_f64(number as f64 / rate);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
                workers.make(number)?;
            }
        }
    }
    drop(send);
    let tally = summary(results.into_iter().collect(), start);
    report(&tally)
}

/// Threads that make tries: a new one whenever all are busy, so that no try waits for another. Threads for each try would
/// cost more than what they measure.
struct Workers<'a> {
    args: &'a Args,
    timeout: Duration,
    results: &'a mpsc::Sender<Try>,
    due: mpsc::Sender<u64>,
    taken: Arc<Mutex<mpsc::Receiver<u64>>>,
    idle: Arc<AtomicUsize>,
}

impl<'a> Workers<'a> {
    fn new(args: &'a Args, timeout: Duration, results: &'a mpsc::Sender<Try>) -> Workers<'a> {
        let (due, taken) = mpsc::channel();
        Workers {
            args,
            timeout,
            results,
            due,
            taken: Arc::new(Mutex::new(taken)),
            idle: Arc::default(),
        }
    }

    /// Has a try made, now.
    fn make(&mut self, number: u64) -> anyhow::Result<()> {
        let take = |idle: usize| idle.checked_sub(1);
        let found = self.idle.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        if found.is_err() {
            let (results, to, way) = (self.results.clone(), self.args.to.clone(), self.args.way());
            let (timeout, taken, idle) = (self.timeout, self.taken.clone(), self.idle.clone());
            std::thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn(move || {
                    let next = || taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    while let Ok(number) = next() {
                        let _ = results.send(attempt(&to, way, None, number, timeout));
                        idle.fetch_add(1, Ordering::AcqRel);
                    }
                })
                .context("starting a thread for a try")?;
        }
        self.due.send(number).context("handing a try to a thread")
    }
}

fn summary(mut tries: Vec<Try>, start: Instant) -> Tally {
    tries.sort_by_key(|t| t.ended);
    let mut tally = Tally {
        tried: tries.len() as u64,
        ..Tally::default()
    };
    let mut last = start;
    for Try { started, ended, result } in tries {
        match result {
            Ok(Answer { who, seen_as, own }) => {
                tally.longest_gap_ms = tally.longest_gap_ms.max(millis(ended - last));
                last = ended;
                let latest = tally.last_answer_at.entry(who.clone()).or_default();
                *latest = (*latest).max(started);
                *tally.answered.entry(who).or_default() += 1;
                *tally.seen_as.entry(seen_as).or_default() += 1;
                tally.address_kept += u64::from(seen_as == own);
                tally.own.insert(own);
            }
            Err(kind) => {
                *tally.failed.entry(kind).or_default() += 1;
                tally.first_failure_at = Some(tally.first_failure_at.map_or(started, |t| t.min(started)));
                tally.last_failure_at = Some(tally.last_failure_at.map_or(started, |t| t.max(started)));
            }
        }
    }
    tally.longest_gap_ms = tally.longest_gap_ms.max(millis(last.elapsed()));
    tally.took_ms = millis(start.elapsed());
    tally
}

/// The port of a try. Where the last run ended its ports are in use for a while: this one begins elsewhere.
fn own(ports: Option<(u16, u16)>, number: u64) -> Option<u16> {
    let (first, last) = ports?;
    let count = u64::from(last - first) + 1;
    let begin = u64::from(std::process::id()) * 61;
    Some(first + u16::try_from((begin + number) % count).unwrap_or(0))
}

fn attempt(to: &str, way: Way, from: Option<u16>, number: u64, timeout: Duration) -> Try {
    let started = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, millis);
    let result = lookup(to).and_then(|to| match way {
        Way::Datagram => datagram(to, from, number, timeout),
        Way::Connection => connection(to, from, false, timeout),
        Way::Bye => connection(to, from, true, timeout),
        Way::Sctp => association(to, from, timeout),
    });
    Try {
        started,
        ended: Instant::now(),
        result,
    }
}

fn lookup(to: &str) -> Result<SocketAddr, String> {
    to.to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next())
        .ok_or_else(|| "name not found".to_owned())
}

fn connection(to: SocketAddr, from: Option<u16>, bye: bool, timeout: Duration) -> Result<Answer, String> {
    let stream = match from {
        None => TcpStream::connect_timeout(&to, timeout),
        Some(_) => crate::ports::connect(to, SockProtocol::Tcp, from, timeout),
    };
    let stream = stream.map_err(kind)?;
    let own = stream.local_addr().map_err(kind)?;
    ask(&stream, own, bye, timeout)
}

fn association(to: SocketAddr, from: Option<u16>, timeout: Duration) -> Result<Answer, String> {
    let stream = crate::ports::connect(to, SockProtocol::Sctp, from, timeout).map_err(kind)?;
    // Its socket has all addresses of this side; what the kernel takes is what it takes for a datagram.
    let own = towards(to, None).and_then(|s| s.local_addr()).map_err(kind)?;
    ask(&stream, own, false, timeout)
}

fn ask(mut stream: &TcpStream, own: SocketAddr, bye: bool, timeout: Duration) -> Result<Answer, String> {
    stream.set_read_timeout(Some(timeout)).map_err(kind)?;
    let own = plain(own.ip());
    let request: &[u8] = if bye { b"BYE\n" } else { b"WHO\n" };
    stream.write_all(request).map_err(kind)?;
    let mut line = String::new();
    let mut from = BufReader::new(stream);
    from.read_line(&mut line).map_err(kind)?;
    if bye && from.read_line(&mut String::new()).map_err(kind)? != 0 {
        return Err("more than one answer".to_owned());
    }
    answer(&line, own)
}

fn towards(to: SocketAddr, from: Option<u16>) -> std::io::Result<UdpSocket> {
    let any = crate::ports::any(to, from);
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    Ok(socket)
}

fn datagram(to: SocketAddr, from: Option<u16>, number: u64, timeout: Duration) -> Result<Answer, String> {
    let socket = towards(to, from).map_err(kind)?;
    socket.set_read_timeout(Some(timeout)).map_err(kind)?;
    let own = plain(socket.local_addr().map_err(kind)?.ip());
    socket.send(number.to_string().as_bytes()).map_err(kind)?;
    let mut buffer = [0; 2048];
    let n = socket.recv(&mut buffer).map_err(kind)?;
    let text = String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).into_owned();
    answer_to(number, &text, own)
}

/// The answer to a datagram, which came back with it.
pub(crate) fn answer_to(number: u64, text: &str, own: IpAddr) -> Result<Answer, String> {
    if text.split_ascii_whitespace().nth(2) != Some(number.to_string().as_str()) {
        return Err("wrong answer".to_owned());
    }
    answer(text, own)
}

pub(crate) fn answer(line: &str, own: IpAddr) -> Result<Answer, String> {
    if line.is_empty() {
        return Err("closed without an answer".to_owned());
    }
    let (who, seen_as) = parse_answer(line).ok_or_else(|| "wrong answer".to_owned())?;
    Ok(Answer { who, seen_as, own })
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn kind(error: std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        // A connect that takes too long, and a read that does, are the same to a person.
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timed out".to_owned(),
        ErrorKind::ConnectionRefused => "refused".to_owned(),
        ErrorKind::ConnectionReset => "reset".to_owned(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable".to_owned(),
        _ => error.to_string(),
    }
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
