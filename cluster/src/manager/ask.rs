//! What was asked and waits for its answer.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{Manager, Output, Unanswered};
use crate::{
    log::Disk,
    mutant::{self, Mutant},
    raft::{Conf, RaftError},
    state::{Command, Envelope, Outcome},
};

/// Most proposals that wait; more are refused as overload.
const MAX_PROPOSALS: usize = 16_384;
/// Most reads that wait.
const MAX_READS: usize = 16_384;
/// Rounds of reads that are under way: what is asked meanwhile shares the next one.
const MAX_ROUNDS: usize = 4;

/// A change of the members that is under way.
#[derive(Debug)]
pub(super) struct Changing {
    pub(super) request: u128,
    /// Where its entry stands.
    pub(super) index: u64,
    /// It has begun and must still leave the joint configuration.
    pub(super) joint: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Proposals that this leader has put into its log, by request, with the number of askers.
    proposals: BTreeMap<u128, u32>,
    pub(super) changing: Option<Changing>,
    /// Reads that no round was begun for.
    reads: Vec<u64>,
    /// Rounds under way: the first has the number `first_round`.
    rounds: VecDeque<Vec<u64>>,
    first_round: u64,
    /// Reads whose index is known.
    confirmed: Vec<(u64, u64)>,
    /// Answers that wait to be handed out.
    answers: Vec<Output>,
}

impl Asked {
    fn waiting_reads(&self) -> usize {
        self.reads.len() + self.rounds.iter().map(Vec::len).sum::<usize>() + self.confirmed.len()
    }

    pub(super) fn take_answers(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.answers)
    }

    pub(super) fn put(&mut self, answer: Output) {
        self.answers.push(answer);
    }

    fn answer(&mut self, request: u128, answer: Result<Outcome, Unanswered>) {
        self.answers.push(Output::Answer { request, answer });
    }

    /// A request was applied: whoever proposed it here is told.
    pub(super) fn applied(&mut self, request: u128, outcome: &Outcome) {
        for _ in 0..self.proposals.remove(&request).unwrap_or(0) {
            self.answer(request, Ok(outcome.clone()));
        }
    }

    /// An entry that changes the members was applied, or passed over.
    pub(super) fn members(&mut self, index: u64, result: &Result<Conf, RaftError>) {
        let Some(c) = self.changing.as_mut().filter(|c| c.index == index || c.joint) else {
            return;
        };
        let answer = match result {
            Ok(conf) if !conf.outgoing.is_empty() => {
                c.joint = true;
                return;
            }
            Ok(conf) => Ok(conf.clone()),
            Err(e) => Err(Unanswered::Members {
                why: e.to_string(),
                hint: "netctl cluster members".into(),
            }),
        };
        let request = c.request;
        self.changing = None;
        self.answers.push(Output::Changed { request, answer });
    }

    /// A round of reads has its index.
    pub(super) fn confirmed(&mut self, index: u64, round: &[u8]) {
        let Ok(round) = round.try_into().map(u64::from_le_bytes) else {
            return;
        };
        // A later round stands for those before it: it began later.
        while !self.rounds.is_empty() && self.first_round <= round {
            self.first_round += 1;
            for id in self.rounds.pop_front().unwrap_or_default() {
                self.confirmed.push((index, id));
            }
        }
    }

    /// Reads that the state has reached are answered.
    pub(super) fn reached(&mut self, applied: u64) {
        let answers = &mut self.answers;
        self.confirmed.retain(|(index, id)| {
            let reached = *index <= applied;
            if reached {
                answers.push(Output::Read {
                    id: *id,
                    answer: Ok(applied),
                });
            }
            !reached
        });
    }

    /// This manager leads no longer, or in another term: what waits has no certain end.
    pub(super) fn deposed(&mut self, leader: Option<u64>) {
        for (request, askers) in std::mem::take(&mut self.proposals) {
            for _ in 0..askers {
                self.answer(request, Err(Unanswered::Unknown { leader }));
            }
        }
        if let Some(c) = self.changing.take() {
            self.answers.push(Output::Changed {
                request: c.request,
                answer: Err(Unanswered::Unknown { leader }),
            });
        }
        let asked = std::mem::take(&mut self.reads);
        let under_way = std::mem::take(&mut self.rounds);
        let confirmed = std::mem::take(&mut self.confirmed).into_iter().map(|(_, id)| id);
        self.first_round += under_way.len() as u64;
        for id in asked
            .into_iter()
            .chain(under_way.into_iter().flatten())
            .chain(confirmed)
        {
            // A read has no effect: asking again is always right.
            self.answers.push(Output::Read {
                id,
                answer: Err(Unanswered::NotLeader { leader }),
            });
        }
    }
}

impl<D: Disk> Manager<D> {
    /// How many proposals and reads wait.
    pub fn waiting(&self) -> (usize, usize) {
        (self.asked.proposals.len(), self.asked.waiting_reads())
    }

    /// Log time: what the state has, and what has gone by since then. It goes on while somebody leads.
    fn log_time(&self, now: Duration) -> u64 {
        let elapsed = now.saturating_sub(self.anchor.1).as_millis();
        self.anchor.0.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// Log time goes on from what the state has, if that is later.
    pub(super) fn anchor(&mut self, now: Duration) {
        let stands = self.read().now_ms();
        if stands > self.log_time(now) {
            self.anchor = (stands, now);
        }
    }

    /// A new leader's log time goes on from where the last one's stopped.
    pub(super) fn anchor_anew(&mut self, now: Duration) {
        let stands = match mutant::on(Mutant::TimeGoesBack) {
            true => 0,
            false => self.read().now_ms(),
        };
        self.anchor = (stands, now);
    }

    pub(super) fn propose(&mut self, now: Duration, request: u128, command: Command) {
        if self.is_stalled() {
            return self.asked.answer(request, Err(Unanswered::DiskFull));
        }
        if let Some(askers) = self.asked.proposals.get_mut(&request) {
            // Its entry is in the log already.
            *askers = askers.saturating_add(1);
            return;
        }
        if self.asked.proposals.len() >= MAX_PROPOSALS {
            return self.asked.answer(request, Err(Unanswered::Overloaded));
        }
        // What waits is told of a change of leadership before anything new waits.
        self.look_who_leads(now);
        let envelope = Envelope {
            request,
            time_ms: self.log_time(now),
            command,
        };
        let proposed = envelope
            .encode()
            .map_err(Unanswered::from)
            .and_then(|bytes| self.peer.propose(bytes).map_err(unanswered));
        match proposed {
            Ok(()) => drop(self.asked.proposals.insert(request, 1)),
            Err(e) => self.asked.answer(request, Err(e)),
        }
    }

    pub(super) fn read_later(&mut self, id: u64) {
        let why = if self.is_stalled() {
            Unanswered::DiskFull
        } else if !self.peer.is_leader() {
            Unanswered::NotLeader {
                leader: self.peer.leader(),
            }
        } else if self.asked.waiting_reads() >= MAX_READS {
            Unanswered::Overloaded
        } else if mutant::on(Mutant::StaleRead) {
            return self.asked.confirmed.push((0, id));
        } else {
            return self.asked.reads.push(id);
        };
        self.asked.answers.push(Output::Read { id, answer: Err(why) });
    }

    /// Begins a round for the reads that wait, once this leader knows what is committed: it asks a majority whether it
    /// still leads (Ongaro, Raft thesis, 6.4). Returns whether it did.
    pub(super) fn begin_round(&mut self) -> Result<bool, RaftError> {
        if self.asked.reads.is_empty() || self.asked.rounds.len() >= MAX_ROUNDS || !self.peer.is_settled() {
            return Ok(false);
        }
        let round = self.asked.first_round + self.asked.rounds.len() as u64;
        self.peer.read(round.to_le_bytes().to_vec())?;
        let reads = std::mem::take(&mut self.asked.reads);
        self.asked.rounds.push_back(reads);
        Ok(true)
    }

    /// Notes whether this manager leads, and in which term.
    pub(super) fn look_who_leads(&mut self, now: Duration) {
        let leads = self.peer.is_leader().then(|| self.peer.term());
        if leads == self.led {
            return;
        }
        let leader = self.peer.leader();
        if self.led.is_some() {
            self.asked.deposed(leader);
        }
        self.led = leads;
        self.sending.clear();
        if leads.is_some() {
            self.anchor_anew(now);
            self.next_beat = now;
        }
    }
}

pub(super) fn unanswered(e: RaftError) -> Unanswered {
    match e {
        RaftError::NotLeader { leader } => Unanswered::NotLeader { leader },
        RaftError::Overloaded => Unanswered::Overloaded,
        e => Unanswered::Members {
            why: e.to_string(),
            hint: "netctl cluster members".into(),
        },
    }
}
