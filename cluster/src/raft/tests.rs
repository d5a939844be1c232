use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A manager with a disk that keeps everything that was written.
struct Node {
    peer: Peer,
    disk: Start,
    applied: Vec<Vec<u8>>,
}

/// Managers and the messages between them.
struct Net {
    nodes: BTreeMap<u64, Node>,
    wire: Vec<Message>,
    rng: StdRng,
    /// Of a thousand messages, so many are lost.
    loss: u32,
    trace: Vec<String>,
}

fn options(id: u64, seed: u64) -> Options {
    Options {
        id,
        election_ticks: 10,
        heartbeat_ticks: 2,
        seed: seed.wrapping_mul(31).wrapping_add(id),
    }
}

impl Net {
    fn new(voters: u64, seed: u64) -> Net {
        let conf = Conf {
            voters: (1..=voters).collect(),
            ..Conf::default()
        };
        let mut net = Net {
            nodes: BTreeMap::new(),
            wire: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            loss: 0,
            trace: Vec::new(),
        };
        for id in 1..=voters {
            net.start(
                id,
                Start {
                    conf: conf.clone(),
                    ..Start::default()
                },
                seed,
            );
        }
        net
    }

    fn start(&mut self, id: u64, disk: Start, seed: u64) {
        let peer = Peer::new(&options(id, seed), disk.clone()).unwrap();
        self.nodes.insert(
            id,
            Node {
                peer,
                disk,
                applied: Vec::new(),
            },
        );
    }

    /// Does what node `id` wants done.
    fn work(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        while let Some(r) = node.peer.ready().unwrap() {
            self.wire.extend(r.messages);
            if let Some(s) = r.snapshot {
                node.applied = String::from_utf8(s.data.clone())
                    .unwrap()
                    .split_terminator(',')
                    .map(|t| t.as_bytes().to_vec())
                    .collect();
                node.disk = Start {
                    base: (s.index, s.term),
                    conf: s.conf.clone(),
                    hard: node.disk.hard,
                    entries: vec![],
                    snapshot: Some(Arc::new(s)),
                };
            }
            if let Some(first) = r.entries.first() {
                node.disk.entries.retain(|e| e.index < first.index);
            }
            node.disk.entries.extend(r.entries);
            node.disk.hard = r.hard.unwrap_or(node.disk.hard);
            let mut committed = r.committed;
            let after = node.peer.persisted().unwrap();
            self.wire.extend(after.messages);
            committed.extend(after.committed);
            for e in committed {
                self.trace.push(format!("{id}: {e:?}"));
                match &e.body {
                    Body::Command(c) => node.applied.push(c.clone()),
                    Body::Conf(c) => drop(node.peer.apply_conf(c).unwrap()),
                    Body::Empty => {}
                }
                node.peer.applied(e.index).unwrap();
            }
        }
    }

    /// One tick everywhere, then messages until it is quiet (or a while, under loss).
    fn tick(&mut self) {
        for node in self.nodes.values_mut() {
            node.peer.tick().unwrap();
        }
        for _ in 0..20 {
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.work(id);
            }
            if self.wire.is_empty() {
                break;
            }
            for m in std::mem::take(&mut self.wire) {
                if self.rng.random_range(0..1000) < self.loss {
                    continue;
                }
                let m = Message::decode(&m.encode().unwrap()).unwrap();
                self.trace.push(format!("{:?} {} {} {}", m.kind, m.from, m.to, m.term));
                if let Some(node) = self.nodes.get_mut(&m.to) {
                    node.peer.handle(&m).unwrap_or_else(|e| panic!("{e}: {m:?}"));
                }
            }
        }
    }

    fn leader(&self) -> Option<u64> {
        let leaders = self.nodes.iter().filter(|(_, n)| n.peer.status().leads);
        leaders.max_by_key(|(_, n)| n.peer.status().term).map(|(id, _)| *id)
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Net) -> bool) {
        for _ in 0..2000 {
            if done(self) {
                return;
            }
            self.tick();
        }
        panic!("not in 2000 ticks: {what}");
    }

    /// Makes a snapshot and forgets all but the last two entries.
    fn snapshot(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        let index = node.peer.status().applied;
        let text = |a: &Vec<u8>| String::from_utf8_lossy(a).into_owned() + ",";
        let snapshot = Arc::new(Snapshot {
            index,
            term: node.peer.term_at(index).unwrap(),
            conf: node.peer.conf().clone(),
            data: node.applied.iter().map(text).collect::<String>().into(),
        });
        node.peer.snapshotted(snapshot, index - 2);
    }

    fn propose(&mut self, text: &str) -> Result<(), RaftError> {
        let id = self.leader().ok_or(RaftError::NotLeader { leader: None })?;
        self.nodes.get_mut(&id).unwrap().peer.propose(text.into())
    }
}

#[test]
fn one_voter_agrees_with_itself() {
    let mut net = Net::new(1, 7);
    let node = net.nodes.get_mut(&1).unwrap();
    assert_eq!(
        node.peer.propose(b"x".into()),
        Err(RaftError::NotLeader { leader: None })
    );
    node.peer.campaign().unwrap();
    net.work(1);
    net.propose("a").unwrap();
    net.propose("b").unwrap();
    net.work(1);
    let node = &net.nodes[&1];
    assert_eq!(node.applied, [b"a", b"b"]);
    let status = node.peer.status();
    assert_eq!(
        (status.term, status.leader, status.last_index, status.applied),
        (1, Some(1), 3, 3)
    );
    assert_eq!(status.voters, [1]);

    // Killed and started from its disk: all is there again.
    let disk = node.disk.clone();
    net.start(1, disk, 8);
    net.nodes.get_mut(&1).unwrap().peer.campaign().unwrap();
    net.work(1);
    assert_eq!(net.nodes[&1].applied, [b"a", b"b"]);
    assert_eq!(net.nodes[&1].peer.status().term, 2);
}

#[test]
fn three_agree_although_messages_are_lost() {
    let run = |seed| {
        let mut net = Net::new(3, seed);
        net.loss = 200;
        let mut sent = 0;
        net.until("ten commands", |n| {
            if sent < 10 && n.propose(&format!("c{sent}")).is_ok() {
                sent += 1;
            }
            sent == 10
        });
        net.loss = 0;
        net.until("all have the same", |n| {
            let all: Vec<_> = n.nodes.values().map(|n| n.applied.clone()).collect();
            !all[0].is_empty() && all.iter().all(|a| *a == all[0])
        });
        net
    };
    for seed in 0..10 {
        let net = run(seed);
        assert_eq!(net.trace, run(seed).trace, "one seed, one trace");
    }
    assert_ne!(run(1).trace, run(2).trace);
}

#[test]
fn a_leader_dies_and_another_leads() {
    let mut net = Net::new(3, 3);
    net.until("a leader", |n| n.leader().is_some());
    net.propose("before").unwrap();
    net.until("agreed", |n| n.nodes.values().all(|n| n.applied.len() == 1));
    let old = net.leader().unwrap();
    let dead = net.nodes.remove(&old).unwrap();
    net.until("another", |n| n.leader().is_some());
    net.propose("after").unwrap();
    net.until("agreed", |n| n.nodes.values().all(|n| n.applied.len() == 2));
    let nobody = net.nodes.values().next().unwrap().peer.status();
    assert!(nobody.term > dead.peer.status().term);
    net.start(old, dead.disk, 99);
    net.until("it caught up", |n| n.nodes[&old].applied.len() == 2);
}

#[test]
fn members_come_as_learners_and_get_a_snapshot() {
    let mut net = Net::new(1, 5);
    net.nodes.get_mut(&1).unwrap().peer.campaign().unwrap();
    net.work(1);
    for i in 0..20 {
        net.propose(&i.to_string()).unwrap();
        net.work(1);
    }
    // Compacted: a newcomer cannot be served from the log.
    net.snapshot(1);
    let peer = &net.nodes[&1].peer;
    assert_eq!(peer.term_at(peer.status().applied - 3), None);
    let step = |net: &mut Net, steps: &[(ConfStep, u64)]| {
        let id = net.leader().unwrap();
        let change = ConfChange { steps: steps.to_vec() };
        net.nodes.get_mut(&id).unwrap().peer.propose_conf(&change).unwrap();
        for _ in 0..5 {
            net.tick();
        }
    };
    step(&mut net, &[(ConfStep::Learner, 2)]);
    // It knows nothing but that 1 votes: the rest comes from the leader. (An empty log takes part as a learner.)
    net.start(
        2,
        Start {
            conf: Conf {
                voters: vec![1],
                learners: vec![2],
                ..Conf::default()
            },
            ..Start::default()
        },
        5,
    );
    net.until("a snapshot", |n| {
        if n.nodes[&1].peer.wants_snapshot() {
            // The one there is was made before 2 was a member.
            n.snapshot(1);
        }
        n.nodes[&2].applied.len() == 20
    });
    assert!(net.nodes[&2].disk.snapshot.is_some());
    step(&mut net, &[(ConfStep::Voter, 2)]);
    net.until("it votes", |n| {
        n.nodes.values().all(|n| n.peer.status().voters == [1, 2])
    });
    step(&mut net, &[(ConfStep::Remove, 2), (ConfStep::Learner, 3)]);
    net.until("joint consensus was left", |n| {
        let conf = n.nodes[&1].peer.conf();
        conf.voters == [1] && conf.outgoing.is_empty() && conf.learners == [3]
    });
    net.propose("alone").unwrap();
    net.work(1);
    assert_eq!(net.nodes[&1].applied.len(), 21);
}

#[test]
fn what_an_old_leader_said_late_is_no_fault() {
    let mut net = Net::new(3, 3);
    net.until("a leader", |n| n.leader().is_some());
    let old = net.leader().unwrap();
    let dead = net.nodes.remove(&old).unwrap();
    net.until("another", |n| n.leader().is_some());
    net.propose("after").unwrap();
    net.until("agreed", |n| n.nodes.values().all(|n| n.applied.len() == 1));
    let to = net.leader().unwrap();
    let index = net.nodes[&to].peer.status().last_index - 1;
    let late = Message {
        kind: Kind::Append,
        from: old,
        to,
        term: 1,
        log_term: 1,
        index: index - 1,
        commit: 1,
        commit_term: 1,
        entries: vec![Entry {
            term: 1,
            index,
            body: Body::Command(b"never agreed on".to_vec()),
        }],
        snapshot: None,
        request_snapshot: 0,
        reject: false,
        reject_hint: 0,
        context: vec![],
    };
    assert_eq!(dead.peer.status().term, 1);
    let node = net.nodes.get_mut(&to).unwrap();
    assert_eq!(node.peer.handle(&late), Ok(()));
    assert_eq!(node.applied, [b"after"]);
}

#[test]
fn a_disk_that_contradicts_itself_is_refused() {
    let entry = |index, term| Entry {
        term,
        index,
        body: Body::Empty,
    };
    let good = Start {
        conf: Conf::single(1),
        ..Start::default()
    };
    let start = |f: &dyn Fn(&mut Start)| {
        let mut s = good.clone();
        f(&mut s);
        Peer::new(&options(1, 0), s).map(|_| ())
    };
    assert_eq!(start(&|_| {}), Ok(()));
    type Spoil = fn(&mut Start, fn(u64, u64) -> Entry);
    let spoils: [Spoil; 7] = [
        |s, _| s.conf.voters.clear(),
        |s, _| s.conf.learners = vec![1],
        |s, _| s.hard.commit = 1,
        |s, e| s.entries = vec![e(2, 1)],
        |s, e| s.entries = vec![e(1, 2), e(2, 1)],
        |s, _| s.base = (3, 1),
        |s, _| {
            s.snapshot = Some(Arc::new(Snapshot {
                index: 5,
                term: 1,
                conf: Conf::single(1),
                data: vec![],
            }))
        },
    ];
    for (i, spoil) in spoils.into_iter().enumerate() {
        let got = start(&|s| spoil(s, entry));
        assert!(matches!(got, Err(RaftError::BadStart(_))), "{i}: {got:?}");
    }
}

fn any_message() -> impl Strategy<Value = Message> {
    let small = || prop_oneof![8 => 0u64..8, 1 => any::<u64>()];
    let ids = || prop::collection::vec(0u64..4, 0..3);
    let body = prop_oneof![
        Just(Body::Empty),
        Just(Body::Command(vec![1])),
        prop::collection::vec((Just(ConfStep::Voter), 0u64..5), 0..3)
            .prop_map(|steps| Body::Conf(ConfChange { steps })),
    ];
    let entry = (0u64..5, 0u64..9, body).prop_map(|(term, index, body)| Entry { term, index, body });
    let conf = (ids(), ids(), ids(), ids(), any::<bool>()).prop_map(
        |(voters, learners, outgoing, learners_next, auto_leave)| Conf {
            voters,
            learners,
            outgoing,
            learners_next,
            auto_leave,
        },
    );
    let snapshot = (0u64..12, 0u64..5, conf).prop_map(|(index, term, conf)| Snapshot {
        index,
        term,
        conf,
        data: vec![],
    });
    let kind = prop::sample::select(convert_kinds());
    let head = (
        kind,
        0u64..4,
        prop_oneof![9 => Just(1u64), 1 => 0u64..4],
        small(),
        small(),
        small(),
        small(),
    );
    let tail = (
        small(),
        prop::collection::vec(entry, 0..4),
        any::<bool>(),
        prop::option::of(snapshot),
        small(),
        any::<bool>(),
        small(),
        prop::sample::select(vec![vec![], b"CampaignTransfer".to_vec(), vec![1]]),
    );
    (head, tail).prop_map(
        |(
            (kind, from, to, term, log_term, index, commit),
            (commit_term, mut entries, line, snapshot, request_snapshot, reject, reject_hint, context),
        )| {
            if line {
                // Most random entries are refused at the door: these get in.
                for (i, e) in entries.iter_mut().enumerate() {
                    e.index = index.saturating_add(i as u64 + 1);
                    e.term = term.min(4);
                }
            }
            let snapshot = snapshot.filter(|_| kind == Kind::Snapshot);
            let entries = if kind == Kind::Append { entries } else { vec![] };
            Message {
                kind,
                from,
                to,
                term,
                log_term,
                index,
                commit,
                commit_term,
                entries,
                snapshot,
                request_snapshot,
                reject,
                reject_hint,
                context,
            }
        },
    )
}

fn convert_kinds() -> Vec<Kind> {
    use Kind::*;
    vec![
        Append,
        AppendReply,
        Vote,
        VoteReply,
        PreVote,
        PreVoteReply,
        Snapshot,
        Heartbeat,
        HeartbeatReply,
        TransferLeader,
        TimeoutNow,
        ReadIndex,
        ReadIndexReply,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever arrives, in whatever order, as leader or follower: refused or handled, never a panic, and what was
    /// committed stays.
    #[test]
    fn no_message_does_harm(messages in prop::collection::vec((any_message(), 0usize..15), 1..40), voters in 1u64..4) {
        let mut net = Net::new(voters, 1);
        let node = net.nodes.get_mut(&1).unwrap();
        node.peer.campaign().unwrap();
        net.work(1);
        for (m, ticks) in messages {
            let m = Message::decode(&m.encode().unwrap()).unwrap();
            let node = net.nodes.get_mut(&1).unwrap();
            let _ = node.peer.handle(&m);
            for _ in 0..ticks {
                node.peer.tick().unwrap();
            }
            let _ = node.peer.propose(vec![9]);
            let before = node.peer.status();
            // A snapshot's octets are the state machine's to judge.
            harmless_work(node);
            let now = node.peer.status();
            prop_assert!(now.term >= before.term && now.commit >= before.commit && now.applied >= before.applied);
        }
    }

    #[test]
    fn garbage_is_no_message(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = Message::decode(&bytes);
        bytes.insert(0, 1);
        let _ = Message::decode(&bytes);
    }
}

fn harmless_work(node: &mut Node) {
    while let Some(r) = node.peer.ready().unwrap() {
        let mut committed = r.committed;
        committed.extend(node.peer.persisted().unwrap().committed);
        for e in committed {
            if let Body::Conf(c) = &e.body {
                // A change that makes no sense is refused when it is applied, as on every other manager.
                let _ = node.peer.apply_conf(c);
            }
            node.peer.applied(e.index).unwrap();
        }
    }
}
