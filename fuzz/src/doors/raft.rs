//! A manager's Raft, brought messages of the others in whatever state it is.

use std::collections::BTreeMap;

use cluster::raft::{Body, Conf, Kind, Message, Options, Peer, Snapshot, Start};

use super::{join, pieces, sure};

/// A manager and its disk.
struct Node {
    peer: Peer,
    applied: u64,
}

impl Node {
    fn new(id: u64) -> Node {
        let options = Options {
            id,
            election_ticks: 10,
            heartbeat_ticks: 2,
            seed: id,
        };
        let start = Start {
            conf: Conf {
                voters: vec![1, 2, 3],
                ..Conf::default()
            },
            ..Start::default()
        };
        Node {
            peer: sure(Peer::new(&options, start)),
            applied: 0,
        }
    }

    /// Writes, applies and answers what there is to answer. `None`: the manager would end here, saying why.
    fn work(&mut self) -> Option<Vec<Message>> {
        let mut out = Vec::new();
        for _ in 0..100 {
            let Some(ready) = self.peer.ready().ok()? else {
                break;
            };
            out.extend(ready.messages);
            if let Some(s) = &ready.snapshot {
                self.applied = s.index;
            }
            let mut committed = ready.committed;
            let after = self.peer.persisted().ok()?;
            out.extend(after.messages);
            committed.extend(after.committed);
            for e in committed {
                if let Body::Conf(change) = &e.body {
                    self.peer.apply_conf(change).ok()?;
                }
                self.peer.applied(e.index).ok()?;
                self.applied = e.index;
            }
        }
        Some(out)
    }
}

/// The first octet says what the manager is: a follower, a candidate, a leader; the rest is messages, a tick behind each.
pub(super) fn open(octets: &[u8]) {
    let Some((what, rest)) = octets.split_first() else {
        return;
    };
    let mut node = Node::new(1);
    let mut begun = Some(());
    if what % 4 > 0 {
        begun = node.peer.campaign().ok();
        begun = begun.and(node.work().map(|_| ()));
    }
    if what % 4 > 1 {
        begun = begun.and(lead(&mut node));
    }
    if begun.is_none() {
        return;
    }
    for piece in pieces(rest) {
        if let Ok(m) = Message::decode(piece) {
            let _ = node.peer.handle(&m);
        }
        let going = node.work().is_some() && node.peer.tick().is_ok() && node.work().is_some();
        if !going {
            return;
        }
    }
}

/// Lets the candidate win: the others vote for it, and take its first entry.
fn lead(node: &mut Node) -> Option<()> {
    let mut others: BTreeMap<u64, Node> = [2, 3].map(|id| (id, Node::new(id))).into();
    let mut wire = Vec::new();
    for _ in 0..40 {
        node.peer.tick().ok()?;
        wire.extend(node.work()?);
        for m in std::mem::take(&mut wire) {
            let other = others.get_mut(&m.to)?;
            other.peer.handle(&m).ok()?;
            for answer in other.work()? {
                if answer.to == 1 {
                    node.peer.handle(&answer).ok()?;
                }
            }
        }
        wire.extend(node.work()?);
        if node.peer.status().leads && wire.is_empty() {
            break;
        }
    }
    let _ = node.peer.propose(b"one".to_vec());
    node.work().map(|_| ())
}

/// What manager 1 hears while three of them elect, write, and change who votes.
fn heard() -> Vec<Vec<u8>> {
    let mut nodes: BTreeMap<u64, Node> = [1, 2, 3].map(|id| (id, Node::new(id))).into();
    let mut wire: Vec<Message> = Vec::new();
    let mut heard: Vec<Vec<u8>> = Vec::new();
    for round in 0..80u64 {
        for (id, node) in &mut nodes {
            // Manager 2 is the one that stands.
            if *id == 2 || round > 40 {
                let _ = node.peer.tick();
            }
            wire.extend(node.work().unwrap_or_default());
        }
        for m in std::mem::take(&mut wire) {
            if m.to == 1 {
                heard.push(sure(m.encode()));
            }
            if let Some(node) = nodes.get_mut(&m.to) {
                let _ = node.peer.handle(&m);
                wire.extend(node.work().unwrap_or_default());
            }
        }
        if let Some(two) = nodes.get_mut(&2) {
            let _ = two.peer.propose(round.to_be_bytes().to_vec());
            if round == 50 {
                let _ = two.peer.transfer(1);
            }
        }
    }
    let snapshot = Message {
        snapshot: Some(Snapshot {
            index: 9,
            term: 2,
            conf: Conf::single(1),
            data: b"state".to_vec(),
        }),
        ..sure(Message::decode(heard.first().map_or(&[][..], |m| m)))
    };
    let snapshot = Message {
        kind: Kind::Snapshot,
        term: 9,
        ..snapshot
    };
    heard.push(sure(snapshot.encode()));
    heard
}

/// Which kinds of messages are among the examples.
pub fn raft_kinds() -> Vec<Kind> {
    heard().iter().map(|m| sure(Message::decode(m)).kind).collect()
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let heard = heard();
    let mut out: Vec<Vec<u8>> = Vec::new();
    for what in 0..4u8 {
        for some in heard.chunks(6).take(12).chain(heard.chunks(6).last()) {
            out.push([&[what][..], &join(some)].concat());
        }
    }
    out
}
