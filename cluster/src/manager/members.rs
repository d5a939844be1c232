//! Changes of the members, and what is known of them.

use std::time::Duration;

use super::{
    HEARTBEAT, Manager, MemberStatus, Output, SNAPSHOT_PATIENCE, Sending, Status, Unanswered, ask::Changing,
    ask::unanswered,
};
use crate::{
    log::Disk,
    raft::{Conf, ConfChange, ConfStep, RaftError},
    state::MAX_MANAGERS,
};

/// Entries that a learner may lag behind the leader and still become a voter: what a manager writes in a moment.
pub const MAX_LAG: u64 = 1_000;

impl<D: Disk> Manager<D> {
    pub(super) fn change(&mut self, now: Duration, request: u128, change: &ConfChange, force: bool) {
        self.look_who_leads(now);
        let answer = match self.check_change(now, change, force) {
            Ok(()) => match self.peer.propose_conf(change) {
                Ok(index) => {
                    self.asked.changing = Some(Changing {
                        request,
                        index,
                        joint: false,
                    });
                    return;
                }
                Err(e) => unanswered(e),
            },
            Err(e) => e,
        };
        self.asked.put(Output::Changed {
            request,
            answer: Err(answer),
        });
    }

    fn check_change(&self, now: Duration, change: &ConfChange, force: bool) -> Result<(), Unanswered> {
        let refused = |why: String, hint: &str| Err(Unanswered::Members { why, hint: hint.into() });
        if self.is_stalled() {
            return Err(Unanswered::DiskFull);
        }
        if !self.peer.is_leader() {
            return Err(Unanswered::NotLeader {
                leader: self.peer.leader(),
            });
        }
        if change.steps.is_empty() {
            return refused("nothing is to change".into(), "netctl node promote or demote");
        }
        let old = self.peer.conf();
        let progress = self.peer.progress();
        let last = self.peer.status().last_index;
        let mut voters = old.voters.clone();
        for (step, id) in &change.steps {
            match step {
                ConfStep::Voter if voters.contains(id) => {}
                ConfStep::Voter => {
                    let matched = progress.iter().find(|p| p.id == *id).map(|p| p.matched);
                    match matched {
                        _ if !old.learners.contains(id) => {
                            return refused(
                                format!("manager {id} has no log yet"),
                                "again in a moment: it must be a learner first",
                            );
                        }
                        _ if !self.is_heard(now, *id) && !force => {
                            return refused(
                                format!("manager {id} cannot be reached"),
                                "again when it is back (netctl cluster members)",
                            );
                        }
                        Some(m) if m + MAX_LAG >= last && m > 0 => {}
                        _ => {
                            return refused(
                                format!("manager {id} has {} of {last} entries", matched.unwrap_or(0)),
                                "again in a moment (netctl cluster members)",
                            );
                        }
                    }
                    voters.push(*id);
                }
                ConfStep::Learner | ConfStep::Remove if *id == self.peer.id() => {
                    return refused(
                        "the leader cannot leave the managers".into(),
                        "again: leadership is handed over first",
                    );
                }
                ConfStep::Learner | ConfStep::Remove => voters.retain(|v| v != id),
            }
        }
        if voters.is_empty() {
            return refused("no voter would be left".into(), "netctl node promote another one first");
        }
        if voters.len() > MAX_MANAGERS {
            return refused(
                format!("there are {MAX_MANAGERS} managers already"),
                "netctl node demote another one first",
            );
        }
        let left = Conf {
            voters,
            ..Conf::default()
        };
        let can = left.voters.iter().filter(|v| self.is_heard(now, **v)).count();
        if left != *old && left.voters != old.voters && can < left.quorum() && !force {
            return refused(
                format!(
                    "of {} managers that would be left {can} can be reached, {} must agree: nothing could be changed any more",
                    left.voters.len(),
                    left.quorum()
                ),
                "start the others first; --force does it all the same, and the cluster waits until they are back",
            );
        }
        Ok(())
    }

    /// Whether a member, or this manager, was heard within the last election timeout.
    pub(super) fn is_heard(&self, now: Duration, id: u64) -> bool {
        let patience = self.pace.election() + HEARTBEAT;
        id == self.peer.id()
            || self
                .heard
                .get(&id)
                .is_some_and(|at| now.saturating_sub(*at) <= patience)
    }

    /// The members have changed, or round trips were measured.
    pub(super) fn choose_pace(&mut self) {
        let me = self.peer.id();
        let conf = self.peer.conf();
        let others: Vec<u64> = conf.voters.iter().copied().filter(|id| *id != me).collect();
        self.heard.retain(|id, _| conf.contains(*id));
        self.sending.retain(|id, _| conf.contains(*id));
        self.pace.retain(|id| conf.contains(id));
        self.pace.choose(&others, conf.quorum());
    }

    pub(super) fn measured(&mut self, id: u64, took: Duration) {
        if id != self.peer.id() && self.peer.conf().contains(id) {
            self.pace.measured(id, took);
            self.choose_pace();
        }
    }

    pub(super) fn snapshot_sent(&mut self, id: u64, arrived: bool) -> Result<(), RaftError> {
        if self.is_stalled() {
            // Nobody says it again, and until Raft knows it sends nothing else there: kept until there is room.
            if let Some(s) = self.sending.get_mut(&id) {
                s.told = Some(arrived);
            }
            return Ok(());
        }
        self.sending.remove(&id);
        self.peer.snapshot_sent(id, arrived)
    }

    /// Tells Raft what the shell told while nothing could be taken in. Snapshots of which it never told what became of
    /// them count as lost: nothing else would be sent there.
    pub(super) fn settle_snapshots(&mut self, now: Duration) -> Result<(), RaftError> {
        let fate = |s: &Sending| {
            let late = now.saturating_sub(s.since) >= SNAPSHOT_PATIENCE;
            s.told.or(late.then_some(false))
        };
        let settled: Vec<(u64, bool)> = self
            .sending
            .iter()
            .filter_map(|(id, s)| Some((*id, fate(s)?)))
            .collect();
        for (id, arrived) in settled {
            self.snapshot_sent(id, arrived)?;
        }
        Ok(())
    }

    /// Term, leader, members and so on.
    pub fn status(&self, now: Duration) -> Status {
        let s = self.peer.status();
        let conf = self.peer.conf().clone();
        let mut ids: Vec<u64> = conf
            .voters
            .iter()
            .chain(&conf.learners)
            .chain(&conf.outgoing)
            .copied()
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| *id != self.peer.id());
        let progress = self.peer.progress();
        let members = ids
            .into_iter()
            .map(|id| {
                let p = progress.iter().find(|p| p.id == id);
                MemberStatus {
                    id,
                    voter: conf.voters.contains(&id),
                    heard: self.is_heard(now, id),
                    round_trip: self.pace.median(id),
                    matched: p.map(|p| p.matched),
                    snapshot: p.is_some_and(|p| p.snapshot),
                }
            })
            .collect();
        Status {
            id: self.peer.id(),
            term: s.term,
            leader: s.leader,
            leads: s.leads,
            last_index: s.last_index,
            commit: s.commit,
            applied: s.applied,
            conf,
            members,
            disk_full: self.is_stalled() || self.no_room.is_some(),
            tick_ms: u64::try_from(self.pace.tick().as_millis()).unwrap_or(u64::MAX),
        }
    }
}
