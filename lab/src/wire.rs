//! What `lab-tool` speaks on the wire, and the reports that it prints as JSON.
//!
//! A request is one line: `WHO` (answer one line, go on), `BYE` (answer one line, close), `SOURCE <octets>
//! <octets a second, 0: no limit>` (send the pattern), `SINK` (read the pattern until the sender has shut down,
//! answer `<octets> <wrong octets>`), or an HTTP/1 request for any path. Every answer that names somebody is
//! `<host>/<task> <client address>`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The length of the pattern: a prime, so that octets moved by any power of two are seen.
pub const PATTERN: usize = 65_521;

/// The pattern that transfers consist of: octet `o` of a transfer is `pattern()[o % PATTERN]`.
pub fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    (0..PATTERN)
        .map(|_| {
            // xorshift32 (Marsaglia 2003): any sequence without short periods would do.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        })
        .collect()
}

/// Compares what was received with the pattern.
#[derive(Debug)]
pub struct Checker {
    pattern: Vec<u8>,
    at: usize,
    /// Octets seen.
    pub received: u64,
    /// Octets that differ from the pattern.
    pub wrong: u64,
}

impl Default for Checker {
    fn default() -> Checker {
        Checker {
            pattern: pattern(),
            at: 0,
            received: 0,
            wrong: 0,
        }
    }
}

impl Checker {
    /// Takes the next octets.
    pub fn take(&mut self, mut data: &[u8]) {
        self.received += data.len() as u64;
        while !data.is_empty() {
            let expected = self.pattern.get(self.at..).unwrap_or_default();
            let n = expected.len().min(data.len());
            let (head, rest) = data.split_at(n);
            let (same, _) = expected.split_at(n);
            if head != same {
                self.wrong += head.iter().zip(same).filter(|(a, b)| a != b).count() as u64;
            }
            self.at = (self.at + n) % PATTERN;
            data = rest;
        }
    }
}

/// The result of `lab-tool tally`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Connections or datagrams tried.
    pub tried: u64,
    /// Answers per backend, `host/task`.
    pub answered: BTreeMap<String, u64>,
    /// Failures by kind.
    pub failed: BTreeMap<String, u64>,
    /// Client addresses as the backends saw them, with counts.
    pub seen_as: BTreeMap<IpAddr, u64>,
    /// The addresses that the connections had on this side.
    pub own: BTreeSet<IpAddr>,
    /// Answers where the backend saw this side's address.
    pub address_kept: u64,
    /// Longest time without an answer, milliseconds.
    pub longest_gap_ms: u64,
    /// Start of the last try that failed, milliseconds since 1970.
    pub last_failure_at: Option<u64>,
    /// As `last_failure_at`, the first.
    pub first_failure_at: Option<u64>,
    /// Start of the last try that each backend answered, milliseconds since 1970.
    pub last_answer_at: BTreeMap<String, u64>,
    /// Wall time, milliseconds.
    pub took_ms: u64,
}

impl Tally {
    /// Tries that were answered.
    pub fn ok(&self) -> u64 {
        self.answered.values().sum()
    }

    /// Tries that were not.
    pub fn errors(&self) -> u64 {
        self.failed.values().sum()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} answered", self.ok(), self.tried)?;
        for (who, count) in &self.answered {
            write!(f, ", {who} {count}")?;
        }
        for (kind, count) in &self.failed {
            write!(f, ", {kind} {count}")?;
        }
        let seen: Vec<String> = self.seen_as.keys().map(IpAddr::to_string).collect();
        write!(
            f,
            "; client seen as {}",
            if seen.is_empty() {
                "-".to_owned()
            } else {
                seen.join(" ")
            }
        )
    }
}

/// The result of `lab-tool fetch`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Octets that were asked for.
    pub wanted: u64,
    /// Octets that came.
    pub received: u64,
    /// Octets of these that differ from what was sent.
    pub wrong: u64,
    /// Longest time without data, milliseconds.
    pub longest_gap_ms: u64,
    /// Wall time, milliseconds.
    pub took_ms: u64,
    /// Why it ended early.
    pub error: Option<String>,
}

impl Transfer {
    /// Octets that did not arrive, or arrived changed.
    pub fn lost(&self) -> u64 {
        self.wanted.saturating_sub(self.received) + self.wrong
    }
}

/// The result of `lab-tool hold`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Connections that were made.
    pub connections: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Connections and requests that failed, by kind.
    pub failed: BTreeMap<String, u64>,
    /// Connections that the other side ended before their time, between two requests.
    pub cut: u64,
    /// Wall time, milliseconds.
    pub took_ms: u64,
}

impl Held {
    /// Connections and requests that failed.
    pub fn errors(&self) -> u64 {
        self.failed.values().sum()
    }
}

/// The result of `lab-tool load`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was counted, per second (bulk: 10^9 bits).
    pub per_second: f64,
    /// Connections, requests or octets in all.
    pub count: u64,
    /// Failures.
    pub failed: u64,
    /// Wall time, milliseconds.
    pub took_ms: u64,
}

/// Splits the answer to `WHO`: who answered, and the client address that it saw.
pub fn parse_answer(line: &str) -> Option<(String, IpAddr)> {
    let mut words = line.split_ascii_whitespace();
    let who = words.next()?;
    let address = words.next()?.parse().ok()?;
    Some((who.to_owned(), address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checker_counts_what_is_wrong_and_what_is_missing() {
        let all: Vec<u8> = pattern().into_iter().cycle().take(3 * PATTERN + 17).collect();
        let mut clean = Checker::default();
        all.chunks(1000).for_each(|c| clean.take(c));
        assert_eq!((clean.received, clean.wrong), (all.len() as u64, 0));

        let mut flipped = all.clone();
        flipped[PATTERN + 5] ^= 1;
        let mut checker = Checker::default();
        flipped.chunks(777).for_each(|c| checker.take(c));
        assert_eq!(checker.wrong, 1);

        let mut shifted = Checker::default();
        shifted.take(&all[1..]);
        assert!(
            shifted.wrong > shifted.received / 2,
            "octets in the wrong place are wrong"
        );
    }

    #[test]
    fn an_answer_is_read_and_garbage_is_not() {
        assert_eq!(
            parse_answer("n1/web.1 198.18.0.101\n"),
            Some(("n1/web.1".to_owned(), "198.18.0.101".parse().unwrap()))
        );
        for bad in ["", "n1/web.1", "n1/web.1 nowhere"] {
            assert_eq!(parse_answer(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_transfer_tells_what_was_lost() {
        let t = Transfer {
            wanted: 100,
            received: 90,
            wrong: 3,
            ..Transfer::default()
        };
        assert_eq!(t.lost(), 13);
    }
}
