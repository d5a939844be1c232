use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{Applied, Refusal};
use crate::mutant::{self, Mutant};

/// How long a request is remembered, ms of log time. A manager that waits for a leader sends a request again for 10 s, and
/// each time it may be on its way for 10 s more.
pub const REMEMBERED_MS: u64 = 30_000;

/// Requests remembered however old they are: a quiet cluster loses nothing by them.
pub const FEWEST: usize = 4096;

/// Requests remembered at most: what they cost in memory (some 80 octets each) and in every snapshot (some 40) is
/// bounded. With more than 2,000 writes a second they cover less than [`REMEMBERED_MS`], at 20,000 three seconds.
pub const MOST: usize = 65_536;

/// What became of a request: the revision that holds it, and the answer.
pub type Outcome = Result<(u64, Applied), Refusal>;

/// The newest requests, oldest forgotten first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Requests {
    /// Log time of each, ms, and its id.
    order: VecDeque<(u64, u128)>,
    outcomes: BTreeMap<u128, Kept>,
}

/// An outcome, with little room for what almost all are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Outcome", into = "Outcome")]
enum Kept {
    /// Done, with this revision.
    Done(u64),
    /// Anything else.
    Other(Box<Outcome>),
}

impl From<Outcome> for Kept {
    fn from(outcome: Outcome) -> Kept {
        match outcome {
            Ok((revision, Applied::Done)) => Kept::Done(revision),
            other => Kept::Other(Box::new(other)),
        }
    }
}

impl From<Kept> for Outcome {
    fn from(kept: Kept) -> Outcome {
        match kept {
            Kept::Done(revision) => Ok((revision, Applied::Done)),
            Kept::Other(other) => *other,
        }
    }
}

impl Requests {
    pub(super) fn get(&self, request: u128) -> Option<Outcome> {
        self.outcomes.get(&request).cloned().map(Outcome::from)
    }

    pub(super) fn put(&mut self, now_ms: u64, request: u128, outcome: Outcome) {
        if mutant::on(Mutant::ForgetRequest) {
            return;
        }
        if self.outcomes.insert(request, outcome.into()).is_some() {
            return;
        }
        // Before there is one more: the list would double at its very end.
        while self.is_full(now_ms)
            && let Some((_, old)) = self.order.pop_front()
        {
            self.outcomes.remove(&old);
        }
        self.order.push_back((now_ms, request));
    }

    /// Whether the oldest one goes for a new one.
    fn is_full(&self, now_ms: u64) -> bool {
        let old = |(at, _): &(u64, u128)| at.saturating_add(REMEMBERED_MS) < now_ms;
        self.order.len() >= MOST || (self.order.len() >= FEWEST && self.order.front().is_some_and(old))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(r: &mut Requests, now_ms: u64, ids: std::ops::Range<u128>) {
        for id in ids {
            r.put(now_ms, id, Ok((1, Applied::Done)));
        }
    }

    #[test]
    fn what_may_still_be_sent_again_is_remembered() {
        let mut r = Requests::default();
        // A busy half minute: far more than the fewest.
        fill(&mut r, 0, 0..10_000);
        fill(&mut r, REMEMBERED_MS, 10_000..20_000);
        assert!(
            r.get(0).is_some() && r.get(19_999).is_some(),
            "sent again after {REMEMBERED_MS} ms"
        );
        // A moment later the first ones go, down to the fewest.
        fill(&mut r, REMEMBERED_MS + 1, 20_000..20_001);
        assert!(r.get(9_999).is_none() && r.get(10_000).is_some());
        fill(&mut r, 10 * REMEMBERED_MS, 30_000..30_001);
        assert_eq!(r.order.len(), FEWEST, "these stay however old they are");
        assert_eq!(r.outcomes.len(), FEWEST);
    }

    #[test]
    fn a_flood_does_not_fill_the_memory() {
        let mut r = Requests::default();
        let flood = MOST as u128 + 1000;
        fill(&mut r, 5, 0..flood);
        assert_eq!((r.order.len(), r.outcomes.len()), (MOST, MOST));
        assert!(r.get(999).is_none() && r.get(1000).is_some(), "the newest stay");
        // The same one again is no new one.
        fill(&mut r, 5, flood - 1..flood);
        assert!(r.get(1000).is_some());
    }

    #[test]
    fn a_snapshot_holds_outcomes_as_they_were_given() {
        let refused = || Refusal::new(model::Code::Conflict, "no", "yes");
        let outcomes: [Outcome; 3] = [Ok((7, Applied::Done)), Ok((8, Applied::Block(1))), Err(refused())];
        let mut r = Requests::default();
        for (id, outcome) in (1..).zip(outcomes.clone()) {
            r.put(5, id, outcome);
        }
        let plain: BTreeMap<u128, Outcome> = (1..).zip(outcomes).collect();
        let octets = postcard::to_extend(&(&r.order, &plain), Vec::new()).unwrap();
        assert_eq!(postcard::to_extend(&r, Vec::new()).unwrap(), octets);
        assert_eq!(postcard::from_bytes::<Requests>(&octets).unwrap(), r);
        assert_eq!(r.get(2), Some(Ok((8, Applied::Block(1)))));
    }
}
