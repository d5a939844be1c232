//! `lab-tool tally --rate`: connections or datagrams at a steady rate, independent of one another.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use crate::answer::plain;
use crate::crowd::{self, Came, For, Line};
use crate::tally::{Answer, Try, Way, answer, answer_to, kind, millis};

/// How often it is asked whether [`Plan::until`] is there.
const LOOK: Duration = Duration::from_millis(50);

/// What is to be done.
pub(crate) struct Plan {
    pub(crate) to: SocketAddr,
    pub(crate) way: Way,
    /// Tries a second.
    pub(crate) rate: f64,
    /// How many at least.
    pub(crate) count: u64,
    /// How many at most: what is more than `count` is made until the file is there.
    pub(crate) most: u64,
    pub(crate) until: Option<PathBuf>,
    /// For each thing that is waited for.
    pub(crate) timeout: Duration,
}

/// A try under way.
struct Open {
    number: u64,
    /// Milliseconds since 1970.
    started: u64,
    stream: TcpStream,
    waits: For,
    deadline: Instant,
    line: Line,
}

/// Carries it out; what came of each try.
pub(crate) fn run(plan: &Plan, start: Instant) -> anyhow::Result<Vec<Try>> {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut tries = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let (mut made, mut most, mut look) = (0, plan.most, start);
    loop {
        let now = Instant::now();
        if made >= plan.count && made < most && now >= look {
            look = now + LOOK;
            if plan.until.as_ref().is_none_or(|file| file.exists()) {
                most = made;
            }
        }
        while made < most && due(made, plan.rate, start) <= now {
            // A stalled client tells of its own time, not of the one that it should have had.
            let started = millis(since_1970 + (now - start));
            match begin(plan, made) {
                Ok((stream, waits)) => open.push(Open {
                    number: made,
                    started,
                    stream,
                    waits,
                    deadline: now + plan.timeout,
                    line: Line::new(),
                }),
                Err(error) => tries.push(Try {
                    started,
                    ended: now,
                    result: Err(kind(error)),
                }),
            }
            made += 1;
        }
        let next = (made < most).then(|| due(made, plan.rate, start));
        let Some(first) = open.iter().map(|o| o.deadline).chain(next).min() else {
            return Ok(tries);
        };
        let ready = crowd::wait(open.iter().map(|o| (&o.stream, o.waits)), now, Some(first));
        let mut ready = ready.context("waiting for answers")?.into_iter();
        let now = Instant::now();
        open.retain_mut(|one| {
            let result = match ready.next() {
                Some(true) => one.go_on(plan, now),
                _ if one.deadline <= now => Some(Err("timed out".to_owned())),
                _ => None,
            };
            let goes_on = result.is_none();
            tries.extend(result.map(|result| Try {
                started: one.started,
                ended: now,
                result,
            }));
            goes_on
        });
    }
}

/// When a try is due.
fn due(number: u64, rate: f64, start: Instant) -> Instant {
    #[allow(clippy::cast_precision_loss, reason = "a count of tries")]
    let after = Duration::from_secs_f64(number as f64 / rate);
    start + after
}

/// Begins a try, and what it waits for then.
fn begin(plan: &Plan, number: u64) -> std::io::Result<(TcpStream, For)> {
    if plan.way != Way::Datagram {
        return Ok((crowd::begin(plan.to)?, For::Writable));
    }
    let socket = crowd::datagrams(plan.to)?;
    crowd::ask(&socket, number.to_string().as_bytes())?;
    Ok((socket, For::Readable))
}

impl Open {
    /// What it came to, if that is known now.
    fn go_on(&mut self, plan: &Plan, now: Instant) -> Option<Result<Answer, String>> {
        match self.step(plan, now) {
            Ok(true) => {
                let text = self.line.text();
                if text.lines().count() > 1 {
                    return Some(Err("more than one answer".to_owned()));
                }
                let own = self.stream.local_addr().map_err(kind);
                Some(own.map(|own| plain(own.ip())).and_then(|own| match plan.way {
                    Way::Datagram => answer_to(self.number, text, own),
                    _ => answer(text, own),
                }))
            }
            Ok(false) => None,
            Err(error) => Some(Err(kind(error))),
        }
    }

    /// Whether its answer is whole.
    fn step(&mut self, plan: &Plan, now: Instant) -> std::io::Result<bool> {
        if self.waits == For::Writable {
            let request = if plan.way == Way::Bye { b"BYE\n" } else { b"WHO\n" };
            crowd::ask(&self.stream, request)?;
            (self.waits, self.deadline) = (For::Readable, now + plan.timeout);
            return Ok(false);
        }
        Ok(match self.line.read(&self.stream)? {
            // A datagram is one, with or without an end of line.
            Came::Part => plan.way == Way::Datagram && !self.line.text().is_empty(),
            Came::Whole => plan.way != Way::Bye,
            Came::End => true,
        })
    }
}
