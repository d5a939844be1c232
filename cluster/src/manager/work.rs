//! What Raft wants done: written, sent, applied, in this order.

use std::{sync::Arc, time::Duration};

use super::{Manager, ManagerError, Output, SNAPSHOT_AGAIN, Sending};
use crate::{
    log::{Disk, LogError},
    mutant::{self, Mutant},
    raft::{Body, ConfChange, Entry, Kind, Message, RaftError, Ready, Snapshot},
    state::{Envelope, State},
};

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
        for m in messages {
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
