//! How long a tick is: it follows the round-trip times between the managers.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Ticks without a word from the leader before a follower stands for election; it waits up to as many more, by chance.
pub const ELECTION_TICKS: usize = 6;
/// Shortest tick. On a LAN a leader's death is acted on after 300 to 600 ms; a disk that takes 300 ms for a sync, or a
/// daemon that gets no processor for as long, costs it the lead.
pub const MIN_TICK: Duration = Duration::from_millis(50);
/// Longest tick: managers further apart than this hold elections that can fail.
pub const MAX_TICK: Duration = Duration::from_millis(500);
/// A leader is heard this often, whatever its tick is: a follower nearby may have shorter ones.
pub const HEARTBEAT: Duration = MIN_TICK;
/// Round trips remembered per manager.
const SAMPLES: usize = 9;
/// Ticks are multiples of this: a tick that changed with every measurement would be none.
const STEP_MS: u128 = 10;

/// Round trips and the tick that follows from them.
#[derive(Debug)]
pub(super) struct Pace {
    jitter: StdRng,
    samples: BTreeMap<u64, VecDeque<Duration>>,
    tick: Duration,
}

impl Pace {
    pub(super) fn new(seed: u64) -> Pace {
        Pace {
            jitter: StdRng::seed_from_u64(seed),
            samples: BTreeMap::new(),
            tick: MIN_TICK,
        }
    }

    /// A tick: as long as the round trip to the farthest of the nearest voters that make a quorum with this one, between
    /// [`MIN_TICK`] and [`MAX_TICK`]. So an election takes at least six round trips, of which a vote needs two.
    pub(super) fn tick(&self) -> Duration {
        self.tick
    }

    /// Time until the next tick: up to an eighth more or less than a tick. Managers that were started together would
    /// count in step and stand for election at the same moment, six times as often as chance has it.
    pub(super) fn draw(&mut self) -> Duration {
        let eighth = self.tick / 8;
        let more = self.jitter.random_range(0..=eighth.as_micros() * 2);
        self.tick - eighth + Duration::from_micros(u64::try_from(more).unwrap_or(0))
    }

    /// Shortest time without a leader before an election.
    pub(super) fn election(&self) -> Duration {
        self.tick
            .saturating_mul(u32::try_from(ELECTION_TICKS).unwrap_or(u32::MAX))
    }

    pub(super) fn measured(&mut self, id: u64, took: Duration) {
        let samples = self.samples.entry(id).or_default();
        samples.push_back(took);
        if samples.len() > SAMPLES {
            samples.pop_front();
        }
    }

    pub(super) fn median(&self, id: u64) -> Option<Duration> {
        let mut all: Vec<Duration> = self.samples.get(&id)?.iter().copied().collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied()
    }

    /// Forgets all but these.
    pub(super) fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        self.samples.retain(|id, _| keep(*id));
    }

    /// Chooses the tick anew. `others` are the voters without this manager, `quorum` counts it.
    pub(super) fn choose(&mut self, others: &[u64], quorum: usize) {
        // One that was never measured counts as near: it may be dead, and must not make the others slow.
        let mut trips: Vec<Duration> = others
            .iter()
            .map(|id| self.median(*id).unwrap_or(Duration::ZERO))
            .collect();
        trips.sort_unstable();
        let farthest = quorum.checked_sub(2).and_then(|i| trips.get(i));
        let ms = farthest.map_or(0, |t| t.as_millis().div_ceil(STEP_MS) * STEP_MS);
        let wanted = Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)).clamp(MIN_TICK, MAX_TICK);
        // A little shorter is no reason to change: the next samples may be longer again.
        if wanted > self.tick || wanted.saturating_mul(5) < self.tick.saturating_mul(4) || wanted == MIN_TICK {
            self.tick = wanted;
        }
    }
}
