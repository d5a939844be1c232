//! What Raft wants done: written, sent, applied, in this order.

use std::{sync::Arc, time::Duration};

use super::{Manager, ManagerError, Output, SNAPSHOT_AGAIN, Sending};
use crate::{
    log::{Disk, LogError},
    mutant::{self, Mutant},
    raft::{Body, ConfChange, Entry, Kind, Message, RaftError, Ready, Snapshot},
    state::{Envelope, State},
};

/// Octets of entries that are joined into one message, at most.
const MAX_JOINED: usize = 1 << 20;

impl<D: Disk> Manager<D> {
    /// Does all that is to be done after what came in, and hands out what follows. After an error nothing is known about
    /// what is on the disk, and what was handed out before still counts: the process must exit. A full disk is none: what
    /// could not be written is tried again at each call.
    pub fn work(&mut self, now: Duration, out: &mut impl FnMut(Output)) -> Result<(), ManagerError> {
        if self.failed {
            return Err(ManagerError::Failed);
        }
        let done = self.rounds(now, out);
        self.failed = done.is_err();
        done
    }

    fn rounds(&mut self, now: Duration, out: &mut impl FnMut(Output)) -> Result<(), ManagerError> {
        loop {
            let ready = match self.stalled.take() {
                Some(ready) => Some(ready),
                None => self.peer.ready()?,
            };
            let Some(mut ready) = ready else {
                self.look_who_leads(now);
                self.leave_joint()?;
                if !self.begin_round()? && !self.peer.has_ready() {
                    break;
                }
                continue;
            };
            self.send(now, std::mem::take(&mut ready.messages), out);
            match self.write(&ready) {
                Ok(()) => {}
                Err(ManagerError::Log(LogError::Full { .. })) => {
                    self.stalled = Some(ready);
                    break;
                }
                Err(e) => return Err(e),
            }
            for (index, round) in std::mem::take(&mut ready.reads) {
                self.asked.confirmed(index, &round);
            }
            self.hurry(now, &ready.entries)?;
            let after = self.peer.persisted()?;
            self.send(now, after.messages, out);
            let early = self.apply(now, &ready.committed)?;
            let late = self.apply(now, &after.committed)?;
            if let Some(index) = late.or(early) {
                self.peer.applied(index)?;
            }
            self.step_down(now)?;
        }
        if !self.is_stalled() {
            self.snapshot_if_due(now)?;
        }
        let applied = self.read().applied();
        self.asked.reached(applied);
        for answer in self.asked.take_answers() {
            out(answer);
        }
        Ok(())
    }

    fn send(&mut self, now: Duration, messages: Vec<Message>, out: &mut impl FnMut(Output)) {
        for m in joined(messages) {
            if m.kind == Kind::Snapshot {
                let (since, told) = (now, None);
                self.sending.insert(m.to, Sending { since, told });
            }
            out(Output::Send(m));
        }
    }

    /// Makes a `Ready` durable.
    fn write(&mut self, ready: &Ready) -> Result<(), ManagerError> {
        if let Some(s) = &ready.snapshot {
            let state = State::decode(&s.data)?;
            self.log.install(s, ready.hard)?;
            let mut shared = self.state.write().unwrap_or_else(|e| e.into_inner());
            match mutant::on(Mutant::KeepOldState) {
                true => shared.pass(s.index),
                false => *shared = state,
            }
            drop(shared);
            (self.entries_since, self.octets_since) = (0, 0);
        }
        self.log.append(ready.hard, &ready.entries, ready.must_sync)?;
        Ok(())
    }

    /// Applies committed entries. Returns the index of the last one.
    fn apply(&mut self, now: Duration, entries: &[Entry]) -> Result<Option<u64>, ManagerError> {
        if entries.is_empty() {
            return Ok(None);
        }
        let shared = Arc::clone(&self.state);
        let mut state = shared.write().unwrap_or_else(|e| e.into_inner());
        let mut members = false;
        for e in entries {
            match &e.body {
                Body::Command(bytes) => {
                    let envelope = Envelope::decode(bytes)?;
                    #[cfg(feature = "mutants")]
                    self.before.clone_from(&state);
                    let outcome = state.apply(e.index, &envelope);
                    self.asked.applied(envelope.request, &outcome);
                    self.octets_since += bytes.len();
                }
                Body::Empty => state.pass(e.index),
                Body::Conf(change) => {
                    members = true;
                    let conf = self.peer.apply_conf(change);
                    match &conf {
                        Ok(_) => state.conf_changed(e.index, change),
                        Err(_) => state.pass(e.index),
                    }
                    self.asked.members(e.index, &conf);
                }
            }
        }
        drop(state);
        self.entries_since += entries.len() as u64;
        self.anchor(now);
        if members {
            // A commit index may be lost; who votes may not: a power cut would bring those back who were asked before.
            match self.log.append(Some(self.peer.hard()), &[], true) {
                // It goes with the next record.
                Ok(()) | Err(LogError::Full { .. }) => {}
                Err(e) => return Err(e.into()),
            }
            self.choose_pace();
            // Who was alone has ticked slowly until now.
            self.next_tick = self.next_tick.min(now + self.pace.draw());
        }
        Ok(entries.last().map(|e| e.index))
    }

    /// Planted faults: what this leader has written counts as agreed on.
    fn hurry(&mut self, now: Duration, entries: &[Entry]) -> Result<(), ManagerError> {
        let (applies, answers) = (
            mutant::on(Mutant::ApplyBeforeCommit),
            mutant::on(Mutant::AnswerBeforeCommit),
        );
        if applies {
            let commands = entries.iter().filter(|e| matches!(e.body, Body::Command(_)));
            self.apply(now, &commands.cloned().collect::<Vec<_>>())?;
        }
        if answers {
            let mut state = self.read().clone();
            for e in entries {
                if let Body::Command(bytes) = &e.body {
                    let envelope = Envelope::decode(bytes)?;
                    let outcome = state.apply(e.index, &envelope);
                    self.asked.applied(envelope.request, &outcome);
                }
            }
        }
        Ok(())
    }

    /// A leader that was removed meanwhile (by an entry of a leader before it) could neither propose nor would it be
    /// replaced, because it is heard. It calls the one that has most of the log to stand for election, and leads no more.
    fn step_down(&mut self, now: Duration) -> Result<(), ManagerError> {
        let conf = self.peer.conf();
        let me = self.peer.id();
        if !self.peer.is_leader() || conf.voters.contains(&me) || conf.outgoing.contains(&me) {
            return Ok(());
        }
        let progress = self.peer.progress().into_iter();
        let heirs = progress.filter(|p| conf.voters.contains(&p.id) && self.is_heard(now, p.id));
        let heir = heirs.max_by_key(|p| p.matched).map(|p| p.id);
        self.peer.step_down(heir)?;
        Ok(())
    }

    /// Leaves a joint configuration. The library does so by itself, but not when the leader that entered it was another
    /// one (`commit_apply` in raft 0.7 says so).
    fn leave_joint(&mut self) -> Result<(), ManagerError> {
        let joint = !self.peer.conf().outgoing.is_empty();
        if joint && self.peer.is_leader() && !self.peer.changing() && self.peer.handing_to().is_none() {
            self.peer.propose_conf(&ConfChange::default())?;
        }
        Ok(())
    }

    fn snapshot_if_due(&mut self, now: Duration) -> Result<(), ManagerError> {
        let due = self.entries_since >= self.limits.entries.max(1)
            || self.octets_since >= self.limits.octets.max(1)
            || self.peer.wants_snapshot();
        if !due || self.no_room.is_some_and(|again| now < again) {
            return Ok(());
        }
        self.no_room = None;
        match self.snapshot() {
            Err(ManagerError::Log(LogError::Full { .. })) => {
                self.no_room = Some(now + SNAPSHOT_AGAIN);
                Ok(())
            }
            other => other,
        }
    }

    /// Writes a snapshot of what is applied, and forgets entries that it covers.
    pub fn snapshot(&mut self) -> Result<(), ManagerError> {
        let (index, data) = {
            let state = self.read();
            (state.applied(), state.encode()?)
        };
        #[cfg(feature = "mutants")]
        let data = match mutant::on(Mutant::SnapshotLosesLast) {
            true => {
                self.before.pass(index);
                self.before.encode()?
            }
            false => data,
        };
        let term = self
            .peer
            .term_at(index)
            .ok_or_else(|| RaftError::Refused(format!("entry {index} is gone")))?;
        let snapshot = Arc::new(Snapshot {
            index,
            term,
            conf: self.peer.conf().clone(),
            data,
        });
        self.log.save(&snapshot)?;
        let keep_from = index.saturating_sub(self.limits.retain);
        self.peer.snapshotted(snapshot, keep_from);
        self.log.compact(keep_from)?;
        (self.entries_since, self.octets_since) = (0, 0);
        Ok(())
    }
}

/// Joins messages to one member that bring entries one behind the other: each proposal makes one of its own, and each would
/// be written, read and answered alone.
fn joined(messages: Vec<Message>) -> Vec<Message> {
    let mut out: Vec<(Message, usize)> = Vec::with_capacity(messages.len());
    for mut m in messages {
        let size = m.entries.iter().map(octets).sum();
        let last = out.iter_mut().rev().find(|(l, _)| l.to == m.to);
        match last {
            Some((l, octets)) if goes_on(l, &m) && *octets + size <= MAX_JOINED => {
                l.entries.append(&mut m.entries);
                l.commit = l.commit.max(m.commit);
                *octets += size;
            }
            _ => out.push((m, size)),
        }
    }
    out.into_iter().map(|(m, _)| m).collect()
}

fn octets(e: &Entry) -> usize {
    match &e.body {
        Body::Command(bytes) => 32 + bytes.len(),
        Body::Empty | Body::Conf(_) => 32,
    }
}

/// Whether one message says what the two say.
fn goes_on(first: &Message, next: &Message) -> bool {
    let before = (first.index, first.log_term);
    let end = first.entries.last().map_or(before, |e| (e.index, e.term));
    let plain = |m: &Message| {
        m.kind == Kind::Append && !m.reject && m.snapshot.is_none() && m.context.is_empty() && m.request_snapshot == 0
    };
    plain(first)
        && plain(next)
        && (first.from, first.term, first.commit_term) == (next.from, next.term, next.commit_term)
        && end == (next.index, next.log_term)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(to: u64, after: (u64, u64), entries: &[(u64, u64)], commit: u64) -> Message {
        Message {
            kind: Kind::Append,
            from: 1,
            to,
            term: 4,
            log_term: after.1,
            index: after.0,
            commit,
            commit_term: 0,
            entries: entries
                .iter()
                .map(|(index, term)| Entry {
                    term: *term,
                    index: *index,
                    body: Body::Command(vec![0; 100]),
                })
                .collect(),
            snapshot: None,
            request_snapshot: 0,
            reject: false,
            reject_hint: 0,
            context: Vec::new(),
        }
    }

    #[test]
    fn entries_that_follow_each_other_go_as_one_message() {
        let each = vec![
            append(2, (7, 3), &[], 5),
            append(2, (7, 3), &[(8, 4)], 5),
            append(3, (7, 3), &[(8, 4)], 5),
            append(2, (8, 4), &[(9, 4), (10, 4)], 6),
            append(3, (8, 4), &[(9, 4), (10, 4)], 6),
            append(2, (10, 4), &[], 8),
        ];
        let want = vec![
            append(2, (7, 3), &[(8, 4), (9, 4), (10, 4)], 8),
            append(3, (7, 3), &[(8, 4), (9, 4), (10, 4)], 6),
        ];
        assert_eq!(joined(each), want);
    }

    #[test]
    fn what_does_not_follow_stays_by_itself() {
        let first = append(2, (7, 3), &[(8, 4)], 5);
        let mut later_term = append(2, (8, 4), &[(9, 5)], 5);
        later_term.term = 5;
        let mut heartbeat = append(2, (8, 4), &[], 5);
        heartbeat.kind = Kind::Heartbeat;
        for next in [
            append(2, (9, 4), &[(10, 4)], 5),
            append(2, (8, 3), &[(9, 4)], 5),
            append(2, (7, 3), &[(8, 4)], 5),
            append(3, (8, 4), &[(9, 4)], 5),
            later_term,
            heartbeat,
        ] {
            let both = vec![first.clone(), next];
            assert_eq!(joined(both.clone()), both);
        }
        // Nothing overtakes what goes to the same member in between.
        let mut vote = append(2, (8, 4), &[], 5);
        vote.kind = Kind::Vote;
        let three = vec![first.clone(), vote, append(2, (8, 4), &[(9, 4)], 5)];
        assert_eq!(joined(three.clone()), three);
    }

    #[test]
    fn a_message_grows_to_its_bound() {
        let one = |index: u64| append(2, (index - 1, 4), &[(index, 4)], 0);
        let all = joined((1..=20_000).map(one).collect());
        let sizes: Vec<usize> = all.iter().map(|m| m.entries.iter().map(octets).sum()).collect();
        assert!(sizes.len() > 1 && sizes.iter().all(|s| *s <= MAX_JOINED), "{sizes:?}");
        assert_eq!(all.iter().map(|m| m.entries.len()).sum::<usize>(), 20_000);
    }
}
