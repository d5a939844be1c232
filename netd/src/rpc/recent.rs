//! The last increments of the intent, for nodes that were away for a while.

use std::{collections::VecDeque, sync::Arc};

use model::Intent;

/// Octets of increments that are kept for nodes that were away.
const MAX_RECENT: usize = 4 << 20;

/// Increments as frames, one behind the other, and the intent that they lead to.
pub(super) type Way = (Vec<Arc<[u8]>>, Arc<Intent>);

/// The last increments that were sent, each beginning where the one before it ends.
#[derive(Default)]
pub(super) struct Recent {
    chain: VecDeque<(u64, u64, Arc<[u8]>)>,
    octets: usize,
    /// What a node has that took the last one.
    tip: Arc<Intent>,
}

impl Recent {
    /// One more was made. Streams that are looked at at other moments step otherwise: the chain goes on from wherever this
    /// one begins.
    pub(super) fn push(&mut self, from: u64, to: &Arc<Intent>, frame: &Arc<[u8]>) {
        if from == 0 || to.revision <= self.tip.revision {
            return;
        }
        while self.chain.back().is_some_and(|(_, end, _)| *end != from) {
            self.drop_one(VecDeque::pop_back);
        }
        self.chain.push_back((from, to.revision, frame.clone()));
        self.octets += frame.len();
        self.tip = to.clone();
        while self.octets > MAX_RECENT {
            self.drop_one(VecDeque::pop_front);
        }
        if self.chain.is_empty() {
            self.tip = Arc::default();
        }
    }

    fn drop_one(&mut self, pop: impl FnOnce(&mut VecDeque<(u64, u64, Arc<[u8]>)>) -> Option<(u64, u64, Arc<[u8]>)>) {
        if let Some((_, _, frame)) = pop(&mut self.chain) {
            self.octets -= frame.len();
        }
    }

    /// What leads from a revision to the tip.
    pub(super) fn since(&self, revision: u64) -> Option<Way> {
        let at = self.chain.iter().position(|(from, _, _)| *from == revision)?;
        let frames = self.chain.iter().skip(at).map(|(_, _, frame)| frame.clone());
        Some((frames.collect(), self.tip.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(revision: u64) -> Arc<Intent> {
        Arc::new(Intent {
            revision,
            ..Intent::default()
        })
    }

    fn frame(octets: usize) -> Arc<[u8]> {
        vec![0; octets].into()
    }

    #[test]
    fn increments_are_kept_as_one_chain() {
        let mut r = Recent::default();
        r.push(0, &at(5), &frame(100));
        assert!(r.since(0).is_none(), "all of it is no increment");
        r.push(5, &at(6), &frame(10));
        r.push(5, &at(7), &frame(11));
        let lengths = |r: &Recent, from| {
            r.since(from)
                .map(|(f, tip)| (f.iter().map(|f| f.len()).collect(), tip.revision))
        };
        assert_eq!(lengths(&r, 5), Some((vec![11], 7)), "the newer one counts");
        r.push(7, &at(8), &frame(12));
        r.push(8, &at(9), &frame(13));
        assert_eq!(lengths(&r, 5), Some((vec![11, 12, 13], 9)));
        assert_eq!(lengths(&r, 8), Some((vec![13], 9)));
        assert_eq!(lengths(&r, 6), None, "nobody can tell what led on from there");
        r.push(7, &at(8), &frame(12));
        assert_eq!(lengths(&r, 8), Some((vec![13], 9)), "an older one changes nothing");
        // A stream that stands at 7 goes on in one step.
        r.push(7, &at(12), &frame(14));
        assert_eq!(lengths(&r, 5), Some((vec![11, 14], 12)));
        // One from elsewhere begins anew.
        r.push(20, &at(21), &frame(15));
        assert_eq!((lengths(&r, 7), lengths(&r, 20)), (None, Some((vec![15], 21))));
        assert_eq!(r.octets, 15);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut r = Recent::default();
        for n in 1..=10 {
            r.push(n, &at(n + 1), &frame(MAX_RECENT / 4));
        }
        assert_eq!(r.chain.len(), 4);
        assert!(r.since(6).is_none() && r.since(7).is_some());
        r.push(11, &at(12), &frame(MAX_RECENT + 1));
        assert!(r.chain.is_empty() && r.octets == 0 && r.since(11).is_none());
        r.push(12, &at(13), &frame(1));
        assert!(r.since(12).is_some());
    }
}
