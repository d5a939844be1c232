//! The network between hosts: who hears whom, and how well.

use crate::{
    rng::Rng,
    script::{MAX_HOSTS, Weather},
};

const N: usize = MAX_HOSTS as usize;

/// See the module.
#[derive(Debug)]
pub(crate) struct Net {
    cut: [[bool; N]; N],
    /// How it is.
    pub weather: Weather,
}

impl Net {
    /// All hear all.
    pub(crate) fn new(weather: Weather) -> Net {
        Net {
            cut: [[false; N]; N],
            weather,
        }
    }

    /// All hear all again.
    pub(crate) fn heal(&mut self) {
        self.cut = [[false; N]; N];
    }

    /// Keeps only ways that `open` allows.
    pub(crate) fn keep(&mut self, open: impl Fn(usize, usize) -> bool) {
        for (from, row) in self.cut.iter_mut().enumerate() {
            for (to, cut) in row.iter_mut().enumerate() {
                *cut |= !open(from, to);
            }
        }
    }

    /// Whether there is a way.
    pub(crate) fn open(&self, from: usize, to: usize) -> bool {
        !self.cut[from][to]
    }

    /// How long a way takes now, µs.
    pub(crate) fn way(&self, rng: &mut Rng) -> u64 {
        let w = &self.weather;
        // Most are near the shortest.
        let spread = w.far_us.saturating_sub(w.near_us);
        match rng.chance(800) {
            true => w.near_us + rng.below(spread / 8 + 1),
            false => w.near_us + rng.below(spread + 1),
        }
    }

    /// When copies of a message arrive, µs from now: none, one or two.
    pub(crate) fn fate(&self, rng: &mut Rng, from: usize, to: usize) -> [Option<u64>; 2] {
        if from == to {
            return [Some(20), None];
        }
        if !self.open(from, to) || rng.chance(self.weather.loss) {
            return [None, None];
        }
        let first = self.way(rng);
        let twice = rng.chance(self.weather.twice);
        [Some(first), twice.then(|| self.way(rng) * 3)]
    }

    /// When a message over a stream arrives: a loss is made good after a while, a cut way is not.
    pub(crate) fn stream(&self, rng: &mut Rng, from: usize, to: usize) -> Option<u64> {
        let late = match rng.chance(self.weather.loss) {
            true => 200_000,
            false => 0,
        };
        (from == to || self.open(from, to)).then(|| self.way(rng) + late)
    }
}
