//! What may come in.

use raft::StateRole;

use super::{Kind, Message, Peer};

impl Peer {
    /// What the library takes for granted, and panics without.
    pub(super) fn admit(&self, m: &Message) -> Result<(), &'static str> {
        let log = &self.node.raft.raft_log;
        if m.from == 0 || m.from == self.id || m.to != self.id {
            return Err("it is not for this node");
        }
        // The library takes a message without a term for one of its own, and cannot forward a request with one.
        if (m.term == 0) != matches!(m.kind, Kind::ReadIndex | Kind::TransferLeader) {
            return Err("it has no term, or one where there is none");
        }
        const FAR: u64 = 1 << 60;
        let numbers = [
            m.term,
            m.log_term,
            m.index,
            m.commit,
            m.commit_term,
            m.request_snapshot,
            m.reject_hint,
        ];
        if numbers.iter().any(|n| *n > FAR) {
            return Err("a number is out of bounds");
        }
        if !m.entries.is_empty() && m.kind != Kind::Append {
            return Err("entries in a message that has none");
        }
        if m.snapshot.is_some() != (m.kind == Kind::Snapshot) {
            return Err("a snapshot where there is none, or none where there is one");
        }
        if m.term != 0 && m.term < self.node.raft.term {
            // Of a leader or candidate that was: late, and no longer bound by what was agreed on since. The library passes
            // it over.
            return Ok(());
        }
        let leads = self.node.raft.state == StateRole::Leader && m.term == self.node.raft.term;
        match m.kind {
            Kind::Append | Kind::Heartbeat | Kind::Snapshot if leads => {
                return Err("two leaders in one term");
            }
            // Without a term the library would take a missing entry for a match.
            Kind::Append if (m.index == 0) != (m.log_term == 0) || m.log_term > m.term => {
                return Err("its place in the log contradicts itself");
            }
            Kind::Append => {
                let mut last = (m.index, m.log_term);
                for e in &m.entries {
                    if e.index != last.0 + 1 || e.term < last.1 || e.term == 0 || e.term > m.term {
                        return Err("its entries do not follow each other");
                    }
                    if e.index <= log.committed
                        && let Ok(known) = log.term(e.index)
                        && known != 0
                        && known != e.term
                    {
                        return Err("it contradicts an entry that is committed");
                    }
                    last = (e.index, e.term);
                }
            }
            Kind::Heartbeat if m.commit > log.last_index() => {
                return Err("it commits what this node does not have");
            }
            Kind::AppendReply | Kind::HeartbeatReply if leads && (m.index.max(m.commit) > log.last_index()) => {
                return Err("it acknowledges what was never sent");
            }
            Kind::Snapshot => {
                let sound = m
                    .snapshot
                    .as_ref()
                    .is_some_and(|s| s.index > 0 && s.term > 0 && s.term <= m.term && s.conf.is_sound());
                if !sound {
                    return Err("its snapshot contradicts itself");
                }
            }
            _ => {}
        }
        Ok(())
    }
}
