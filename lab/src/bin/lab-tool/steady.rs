//! `lab-tool tally --rate` by TCP: connections at a steady rate, independent of one another.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use crate::answer::plain;
use crate::crowd::{self, Came, For, Line};
use crate::tally::{Answer, Try, answer, kind, millis};

/// How often it is asked whether [`Plan::until`] is there.
const LOOK: Duration = Duration::from_millis(50);

/// What is to be done.
pub(crate) struct Plan {
    pub(crate) to: SocketAddr,
    /// Connections a second.
    pub(crate) rate: f64,
    /// How many at least.
    pub(crate) count: u64,
    /// How many at most: what is more than `count` is made until the file is there.
    pub(crate) most: u64,
    pub(crate) until: Option<PathBuf>,
    /// The server closes.
    pub(crate) bye: bool,
    /// For each thing that is waited for.
    pub(crate) timeout: Duration,
}

/// A try under way.
struct Open {
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
            made += 1;
            // A stalled client tells of its own time, not of the one that it should have had.
            let started = millis(since_1970 + (now - start));
            match crowd::begin(plan.to) {
                Ok(stream) => open.push(Open {
                    started,
                    stream,
                    waits: For::Writable,
                    deadline: now + plan.timeout,
                    line: Line::new(),
                }),
                Err(error) => tries.push(Try {
                    started,
                    ended: now,
                    result: Err(kind(error)),
                }),
            }
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
                Some(own.and_then(|own| answer(text, plain(own.ip()))))
            }
            Ok(false) => None,
            Err(error) => Some(Err(kind(error))),
        }
    }

    /// Whether its answer is whole.
    fn step(&mut self, plan: &Plan, now: Instant) -> std::io::Result<bool> {
        if self.waits == For::Writable {
            crowd::ask(&self.stream, if plan.bye { b"BYE\n" } else { b"WHO\n" })?;
            (self.waits, self.deadline) = (For::Readable, now + plan.timeout);
            return Ok(false);
        }
        Ok(match self.line.read(&self.stream)? {
            Came::Part => false,
            Came::Whole => !plan.bye,
            Came::End => true,
        })
    }
}
