//! Answers to foreign names, kept as long as their owners allow. Bounded in number and in octets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use ::dns::foreign::{Answer, Key};

#[derive(Debug)]
pub(super) struct Cache {
    kept: BTreeMap<Key, Kept>,
    by_end: BTreeSet<(Instant, Key)>,
    octets: usize,
    max_entries: usize,
    max_octets: usize,
}

#[derive(Debug)]
struct Kept {
    answer: Arc<Answer>,
    since: Instant,
    end: Instant,
}

impl Cache {
    pub(super) fn new(max_entries: usize, max_octets: usize) -> Self {
        Cache {
            kept: BTreeMap::new(),
            by_end: BTreeSet::new(),
            octets: 0,
            max_entries,
            max_octets,
        }
    }

    /// An answer that still holds, and its age in seconds.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<(Arc<Answer>, u32)> {
        let kept = self.kept.get(key).filter(|k| now < k.end)?;
        let age = now.saturating_duration_since(kept.since).as_secs();
        Some((kept.answer.clone(), u32::try_from(age).unwrap_or(u32::MAX)))
    }

    /// Keeps an answer. When there is no room, those that end first go.
    pub(super) fn put(&mut self, key: Key, answer: Arc<Answer>, now: Instant) {
        if answer.ttl() == 0 || answer.size() > self.max_octets || self.max_entries == 0 {
            return;
        }
        self.remove(&key);
        self.octets += answer.size();
        let end = now + Duration::from_secs(answer.ttl().into());
        self.by_end.insert((end, key.clone()));
        self.kept.insert(
            key,
            Kept {
                answer,
                since: now,
                end,
            },
        );
        while self.kept.len() > self.max_entries || self.octets > self.max_octets {
            let Some((_, first)) = self.by_end.first().cloned() else {
                return;
            };
            self.remove(&first);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(old) = self.kept.remove(key) {
            self.octets -= old.answer.size();
            self.by_end.remove(&(old.end, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use ::dns::{
        Transport,
        foreign::{Foreign, Reaction},
    };

    use super::*;

    /// Key and answer of a name of one letter.
    fn sample(letter: u8, ttl: u8) -> (Key, Arc<Answer>) {
        let question = [&[1, letter, 3][..], b"com\0\0\x01\0\x01"].concat();
        let query = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &question].concat();
        let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, ttl, 0, 4, 192, 0, 2, 1];
        let message = [&[0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0][..], &question, &record].concat();
        let f = Foreign::parse(&query, Transport::Udp).unwrap();
        match f.judge(7, &message) {
            Reaction::Answer(a) => (f.key().clone(), Arc::new(a)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_end_with_their_ttl() {
        let mut cache = Cache::new(10, 10_000);
        let t0 = Instant::now();
        let at = |s| t0 + Duration::from_secs(s);
        let (key, answer) = sample(b'a', 5);
        cache.put(key.clone(), answer.clone(), t0);
        assert_eq!(cache.get(&key, at(3)), Some((answer, 3)));
        assert_eq!(cache.get(&key, at(5)), None);
        let (none, zero) = sample(b'b', 0);
        cache.put(none.clone(), zero, t0);
        assert_eq!(cache.get(&none, t0), None);
    }

    #[test]
    fn room_is_bounded_and_the_first_to_end_goes() {
        let t0 = Instant::now();
        let mut cache = Cache::new(2, 10_000);
        for (letter, ttl) in [(b'a', 50), (b'b', 5), (b'c', 20), (b'c', 30)] {
            let (key, answer) = sample(letter, ttl);
            cache.put(key, answer, t0);
        }
        let kept = |c: &Cache, l| c.get(&sample(l, 1).0, t0).is_some();
        assert_eq!([b'a', b'b', b'c'].map(|l| kept(&cache, l)), [true, false, true]);
        assert_eq!(cache.by_end.len(), 2);
        assert_eq!(cache.octets, 2 * sample(b'a', 1).1.size());
        let mut tiny = Cache::new(10, 10);
        let (key, answer) = sample(b'a', 50);
        tiny.put(key, answer, t0);
        assert!(tiny.kept.is_empty());
    }
}
