use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{Applied, Refusal};
use crate::mutant::{self, Mutant};

/// Requests remembered. A client retries within seconds; at thousands of writes a second this is still a second, and a
/// retry that comes later than that meets the conflict that it made itself.
pub const REMEMBERED: usize = 4096;

/// What became of a request: the revision that holds it, and the answer.
pub type Outcome = Result<(u64, Applied), Refusal>;

/// The newest requests, oldest forgotten first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Requests {
    order: VecDeque<u128>,
    outcomes: BTreeMap<u128, Outcome>,
}

impl Requests {
    pub(super) fn get(&self, request: u128) -> Option<&Outcome> {
        self.outcomes.get(&request)
    }

    pub(super) fn put(&mut self, request: u128, outcome: Outcome) {
        if mutant::on(Mutant::ForgetRequest) {
            return;
        }
        if self.outcomes.insert(request, outcome).is_none() {
            self.order.push_back(request);
        }
        while self.order.len() > REMEMBERED {
            if let Some(old) = self.order.pop_front() {
                self.outcomes.remove(&old);
            }
        }
    }
}
