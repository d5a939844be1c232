//! Between our types and the library's.
//!
//! A change of voters travels in an entry's `context`, in our codec; the library writes protobuf into `data` when a change
//! is proposed and never reads it again, so `data` is dropped on the way out and left empty on the way in.

use raft::eraftpb as pb;

use super::message::{Body, Conf, ConfChange, ConfStep, Entry, HardState, Kind, Message, Snapshot};

pub(super) fn conf_context(change: &ConfChange) -> Option<Vec<u8>> {
    postcard::to_allocvec(change).ok()
}

pub(super) fn conf_change(change: &ConfChange) -> pb::ConfChangeV2 {
    let mut out = pb::ConfChangeV2::default();
    let steps = change.steps.iter().map(|(step, id)| {
        let mut single = pb::ConfChangeSingle {
            node_id: *id,
            ..pb::ConfChangeSingle::default()
        };
        single.set_change_type(match step {
            ConfStep::Voter => pb::ConfChangeType::AddNode,
            ConfStep::Learner => pb::ConfChangeType::AddLearnerNode,
            ConfStep::Remove => pb::ConfChangeType::RemoveNode,
        });
        single
    });
    out.set_changes(steps.collect::<Vec<_>>().into());
    out
}

/// `None`: a context that is not ours; the entry was not made by us.
pub(super) fn entry_out(mut e: pb::Entry) -> Option<Entry> {
    let body = match e.get_entry_type() {
        pb::EntryType::EntryNormal if e.data.is_empty() => Body::Empty,
        pb::EntryType::EntryNormal => Body::Command(std::mem::take(&mut e.data).into()),
        // Made by the library itself: leaves a joint configuration.
        _ if e.context.is_empty() => Body::Conf(ConfChange::default()),
        _ => Body::Conf(postcard::from_bytes(&e.context).ok()?),
    };
    Some(Entry {
        term: e.term,
        index: e.index,
        body,
    })
}

pub(super) fn entry_in(e: &Entry) -> pb::Entry {
    let mut out = pb::Entry {
        term: e.term,
        index: e.index,
        ..pb::Entry::default()
    };
    match &e.body {
        Body::Empty => {}
        Body::Command(data) => out.data = data.clone().into(),
        Body::Conf(change) => {
            out.set_entry_type(pb::EntryType::EntryConfChangeV2);
            if !change.steps.is_empty() {
                out.context = conf_context(change).unwrap_or_default().into();
            }
        }
    }
    out
}

pub(super) fn entries_out(entries: Vec<pb::Entry>) -> Option<Vec<Entry>> {
    entries.into_iter().map(entry_out).collect()
}

pub(super) fn hard_out(h: &pb::HardState) -> HardState {
    HardState {
        term: h.term,
        vote: h.vote,
        commit: h.commit,
    }
}

pub(super) fn hard_in(h: &HardState) -> pb::HardState {
    pb::HardState {
        term: h.term,
        vote: h.vote,
        commit: h.commit,
        ..pb::HardState::default()
    }
}

pub(super) fn conf_out(c: &pb::ConfState) -> Conf {
    Conf {
        voters: c.voters.clone(),
        learners: c.learners.clone(),
        outgoing: c.voters_outgoing.clone(),
        learners_next: c.learners_next.clone(),
        auto_leave: c.auto_leave,
    }
}

pub(super) fn conf_in(c: &Conf) -> pb::ConfState {
    pb::ConfState {
        voters: c.voters.clone(),
        learners: c.learners.clone(),
        voters_outgoing: c.outgoing.clone(),
        learners_next: c.learners_next.clone(),
        auto_leave: c.auto_leave,
        ..pb::ConfState::default()
    }
}

pub(super) fn snapshot_out(mut s: pb::Snapshot) -> Option<Snapshot> {
    if s.is_empty() {
        return None;
    }
    let meta = s.get_metadata();
    Some(Snapshot {
        index: meta.index,
        term: meta.term,
        conf: conf_out(meta.get_conf_state()),
        data: std::mem::take(&mut s.data).into(),
    })
}

pub(super) fn snapshot_in(s: &Snapshot) -> pb::Snapshot {
    let mut out = pb::Snapshot {
        data: s.data.clone().into(),
        ..pb::Snapshot::default()
    };
    let meta = out.mut_metadata();
    meta.index = s.index;
    meta.term = s.term;
    meta.set_conf_state(conf_in(&s.conf));
    out
}

const KINDS: [(Kind, pb::MessageType); 13] = [
    (Kind::Append, pb::MessageType::MsgAppend),
    (Kind::AppendReply, pb::MessageType::MsgAppendResponse),
    (Kind::Vote, pb::MessageType::MsgRequestVote),
    (Kind::VoteReply, pb::MessageType::MsgRequestVoteResponse),
    (Kind::PreVote, pb::MessageType::MsgRequestPreVote),
    (Kind::PreVoteReply, pb::MessageType::MsgRequestPreVoteResponse),
    (Kind::Snapshot, pb::MessageType::MsgSnapshot),
    (Kind::Heartbeat, pb::MessageType::MsgHeartbeat),
    (Kind::HeartbeatReply, pb::MessageType::MsgHeartbeatResponse),
    (Kind::TransferLeader, pb::MessageType::MsgTransferLeader),
    (Kind::TimeoutNow, pb::MessageType::MsgTimeoutNow),
    (Kind::ReadIndex, pb::MessageType::MsgReadIndex),
    (Kind::ReadIndexReply, pb::MessageType::MsgReadIndexResp),
];

/// `None`: a kind that stays on this node.
pub(super) fn message_out(mut m: pb::Message) -> Option<Message> {
    let kind = KINDS.iter().find(|k| k.1 == m.get_msg_type())?.0;
    // A question for a read carries its context in an entry without term and index.
    let (entries, context) = match kind {
        Kind::ReadIndex | Kind::ReadIndexReply => {
            let first = m.take_entries().into_iter().next();
            (Vec::new(), first.map(|e| e.data.into()).unwrap_or_default())
        }
        _ => (
            entries_out(m.take_entries().into())?,
            std::mem::take(&mut m.context).into(),
        ),
    };
    Some(Message {
        kind,
        from: m.from,
        to: m.to,
        term: m.term,
        log_term: m.log_term,
        index: m.index,
        commit: m.commit,
        commit_term: m.commit_term,
        entries,
        snapshot: snapshot_out(m.take_snapshot()),
        request_snapshot: m.request_snapshot,
        reject: m.reject,
        reject_hint: m.reject_hint,
        context,
    })
}

pub(super) fn message_in(m: &Message) -> Option<pb::Message> {
    let mut out = pb::Message {
        from: m.from,
        to: m.to,
        term: m.term,
        log_term: m.log_term,
        index: m.index,
        commit: m.commit,
        commit_term: m.commit_term,
        request_snapshot: m.request_snapshot,
        reject: m.reject,
        reject_hint: m.reject_hint,
        ..pb::Message::default()
    };
    out.set_msg_type(KINDS.iter().find(|k| k.0 == m.kind)?.1);
    match m.kind {
        Kind::ReadIndex | Kind::ReadIndexReply => {
            let e = pb::Entry {
                data: m.context.clone().into(),
                ..pb::Entry::default()
            };
            out.set_entries(vec![e].into());
        }
        _ => {
            out.set_entries(m.entries.iter().map(entry_in).collect::<Vec<_>>().into());
            out.context = m.context.clone().into();
        }
    }
    if let Some(s) = &m.snapshot {
        out.set_snapshot(snapshot_in(s));
    }
    Some(out)
}
