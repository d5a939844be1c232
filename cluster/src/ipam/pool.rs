use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::mutant::{self, Mutant};

/// Half of a pool that is small: the rest of so many is written down one by one (blocks and VIPs of a network).
const SMALL: u32 = 1 << 16;

/// Numbers of a range, given out in a circle: the one after the last given, so that a number comes back as late as the
/// range allows, and never before its rest is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Pool {
    /// Lowest that may be claimed.
    low: u32,
    /// Lowest that is given out unasked.
    first: u32,
    end: u32,
    next: u32,
    used: BTreeSet<u32>,
    /// In the order in which their rest ends: rests of one pool are equally long and log time never goes back.
    resting: VecDeque<(u64, u32)>,
    /// The numbers of `resting`.
    rests: BTreeSet<u32>,
}

impl Serialize for Pool {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Pool::serialize(self, to)
    }
}

/// A snapshot may be anybody's: what is no pool is refused.
impl<'de> Deserialize<'de> for Pool {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let pool = Pool::deserialize(from)?;
        let in_order = pool.low <= pool.first && (pool.first..=pool.end).contains(&pool.next);
        let within = |n: &u32| (pool.low..pool.end).contains(n);
        if !in_order || !pool.used.iter().chain(&pool.rests).all(within) {
            return Err(D::Error::custom("a pool whose numbers are not within its range"));
        }
        Ok(pool)
    }
}

/// Why a chosen number cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It lies outside the range.
    Outside,
    /// Somebody has it.
    Used,
    /// It was used not long ago; ms of log time until it is free.
    Resting(u64),
}

impl Pool {
    /// The numbers `first..end`, none in use.
    pub fn new(range: std::ops::Range<u32>) -> Pool {
        Pool {
            low: range.start,
            first: range.start,
            end: range.end,
            next: range.start,
            used: BTreeSet::new(),
            resting: VecDeque::new(),
            rests: BTreeSet::new(),
        }
    }

    /// Also lets the numbers from `low` on be claimed, which are never given out unasked.
    pub fn claimable_from(mut self, low: u32) -> Pool {
        self.low = low.min(self.first);
        self
    }

    /// Gives out a number; `None`: all are used or rest.
    pub fn take(&mut self, now_ms: u64) -> Option<u32> {
        self.take_if(now_ms, |_| true)
    }

    /// As [`Pool::take`], of the numbers that `good` lets pass.
    pub fn take_if(&mut self, now_ms: u64, good: impl Fn(u32) -> bool) -> Option<u32> {
        self.wake(now_ms);
        let got = self
            .free(self.next, self.end, &good)
            .or_else(|| self.free(self.first, self.next, &good))?;
        self.used.insert(got);
        self.next = if got + 1 < self.end { got + 1 } else { self.first };
        Some(got)
    }

    /// The lowest of `from..to` that is neither used nor rests, and is good.
    fn free(&self, from: u32, to: u32, good: impl Fn(u32) -> bool) -> Option<u32> {
        if from >= to {
            return None;
        }
        let mut used = self.used.range(from..to).copied().peekable();
        let mut rests = self.rests.range(from..to).copied().peekable();
        (from..to).find(|n| used.next_if_eq(n).is_none() && rests.next_if_eq(n).is_none() && good(*n))
    }

    /// Gives out this very number.
    pub fn claim(&mut self, number: u32, now_ms: u64) -> Result<(), Taken> {
        if !(self.low..self.end).contains(&number) {
            return Err(Taken::Outside);
        }
        if self.used.contains(&number) {
            return Err(Taken::Used);
        }
        self.wake(now_ms);
        if let Some((until, _)) = self.resting.iter().find(|r| r.1 == number) {
            return Err(Taken::Resting(until.saturating_sub(now_ms)));
        }
        self.used.insert(number);
        Ok(())
    }

    /// A planted fault: the lowest number is free again although somebody has it.
    pub(crate) fn forget_first(&mut self) {
        if let Some(n) = self.used.pop_first() {
            self.next = n;
        }
    }

    /// Takes a number back; nobody gets it for `rest_ms`.
    pub fn release(&mut self, number: u32, now_ms: u64, rest_ms: u64) {
        let rest_ms = match mutant::on(Mutant::NoQuarantine) {
            true => 0,
            false => rest_ms,
        };
        if self.used.remove(&number) {
            self.resting.push_back((now_ms.saturating_add(rest_ms), number));
            self.rests.insert(number);
        }
        self.wake(now_ms);
    }

    /// Undoes [`Pool::take`] or [`Pool::claim`]: the number was never seen by anybody and needs no rest.
    pub fn give_back(&mut self, number: u32) {
        self.used.remove(&number);
    }

    /// Goes on from an old state: what was given out since then may be in use. That was the numbers from `next` on, so the
    /// half of the circle that lies before it comes last, and in a small pool rests for `rest_ms` too, because it comes soon
    /// there.
    pub fn begin_anew(&mut self, now_ms: u64, rest_ms: u64) {
        self.wake(now_ms);
        let half = self.size() / 2;
        let ahead = |n: u32, by: u32| {
            // Whoever is left before the end goes on from the first.
            let left = self.end - n;
            if by < left { n + by } else { self.first + (by - left) }
        };
        if half <= SMALL {
            let near = (0..half).map(|by| ahead(self.next, by));
            let near: Vec<u32> = near
                .filter(|n| !self.used.contains(n) && !self.rests.contains(n))
                .collect();
            for n in near {
                self.resting.push_back((now_ms.saturating_add(rest_ms), n));
                self.rests.insert(n);
            }
        }
        self.next = ahead(self.next, half);
    }

    /// How many are in use.
    pub fn used(&self) -> usize {
        self.used.len()
    }

    /// How many there are.
    pub fn size(&self) -> u32 {
        self.end - self.first
    }

    fn wake(&mut self, now_ms: u64) {
        while self.resting.front().is_some_and(|r| r.0 <= now_ms) {
            if let Some((_, n)) = self.resting.pop_front() {
                self.rests.remove(&n);
            }
        }
    }
}
