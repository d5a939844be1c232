//! Members, reads, snapshots, disks, restarts.

use super::*;

#[test]
fn managers_join_agree_and_survive_the_leader() {
    let mut net = Net::three();
    let added = net.propose(1, 20, worker(20)).unwrap();
    assert_eq!(
        net.propose(2, 21, worker(21)),
        Err(Unanswered::NotLeader { leader: Some(1) })
    );
    net.until("all have it", |n| {
        n.managers.values().all(|m| m.read().intent().nodes.len() == 4)
    });

    // Killed: another leads well within a second, and a request sent again is carried out once.
    let dead = net.now;
    net.managers.remove(&1);
    net.until("another leads", |n| n.leader().is_some());
    let leader = net.leader().unwrap();
    assert_eq!(net.propose(leader, 20, worker(20)), Ok(added));
    assert!(net.now - dead < Duration::from_millis(900), "{:?}", net.now - dead);
    net.reopen(1);
    net.until("it has caught up", |n| {
        let all: Vec<_> = n.managers.values().map(|m| m.read().clone()).collect();
        all.windows(2).all(|w| w[0] == w[1])
    });
}

#[test]
fn what_an_old_leader_promised_is_told_to_be_unknown_at_once() {
    let mut net = Net::three();
    net.cut = vec![1];
    net.ask(1, 30, worker(30));
    net.input(1, Input::Read { id: 5 });
    assert_eq!(net.out, []);
    let before = net.now;
    net.until("it notices", |n| n.managers[&1].status(n.now).leader.is_none());
    // check-quorum looks once in an election timeout whether a quorum was heard.
    assert!(net.now - before <= MIN_TICK * 2 * ELECTION_TICKS as u32 + MIN_TICK);
    assert_eq!(net.answer(30), Some(Err(Unanswered::Unknown { leader: None })));
    assert_eq!(
        net.out,
        [Output::Read {
            id: 5,
            answer: Err(Unanswered::NotLeader { leader: None })
        }]
    );
    assert_eq!(net.managers[&1].waiting(), (0, 0));
    net.out.clear();
    net.input(1, Input::Read { id: 6 });
    assert_eq!(
        net.out.pop(),
        Some(Output::Read {
            id: 6,
            answer: Err(Unanswered::NotLeader { leader: None })
        })
    );
}

#[test]
fn reads_wait_for_what_was_acknowledged() {
    let mut net = Net::three();
    net.propose(1, 20, worker(20)).unwrap();
    let applied = net.managers[&1].read().applied();
    assert_eq!(net.read(1), Ok(applied));
    assert_eq!(net.read(3), Err(Unanswered::NotLeader { leader: Some(1) }));
    // A leader that is cut off does not answer from what it has.
    net.cut = vec![1];
    net.until("another leads", |n| n.leader().is_some());
    let leader = net.leader().unwrap();
    net.propose(leader, 21, worker(21)).unwrap();
    let applied = net.managers[&leader].read().applied();
    assert_eq!(net.read(leader), Ok(applied));
    assert!(net.read(1).is_err());
}

#[test]
fn members_change_one_step_at_a_time_and_with_care() {
    let mut net = Net::three();
    let refused = |r: Result<Conf, Unanswered>, why: &str| {
        let text = r.unwrap_err().to_string();
        assert!(text.contains(why), "{text}");
    };
    refused(net.change(1, &[(ConfStep::Voter, 4)]), "has no log yet");
    refused(net.change(1, &[(ConfStep::Remove, 1)]), "handed over first");
    refused(net.change(1, &[]), "nothing is to change");
    assert_eq!(
        net.change(2, &[(ConfStep::Remove, 3)]),
        Err(Unanswered::NotLeader { leader: Some(1) })
    );
    net.cut = vec![3];
    net.run(Duration::from_secs(1));
    refused(
        net.change(1, &[(ConfStep::Remove, 2)]),
        "nothing could be changed any more",
    );
    net.cut.clear();
    net.run(Duration::from_secs(1));
    let conf = net.change(1, &[(ConfStep::Remove, 3), (ConfStep::Learner, 2)]).unwrap();
    assert_eq!((conf.voters, conf.learners, conf.outgoing), (vec![1], vec![2], vec![]));
}

#[test]
fn leadership_is_handed_over() {
    let mut net = Net::three();
    net.input(1, Input::Transfer { to: 3 });
    assert_eq!(
        net.propose(1, 40, worker(40)),
        Err(Unanswered::NotLeader { leader: Some(3) })
    );
    net.until("it leads", |n| n.leader() == Some(3));
    net.propose(3, 40, worker(40)).unwrap();
    let elections = net.elections;
    net.run(Duration::from_secs(30));
    assert_eq!(
        (net.leader(), net.elections),
        (Some(3), elections),
        "and nobody else stands"
    );
}

#[test]
fn a_removed_manager_is_heard_no_more() {
    let mut net = Net::three();
    net.change(1, &[(ConfStep::Remove, 3)]).unwrap();
    let demote = Command::SetRole {
        node: model::NodeId(3),
        role: Role::Worker,
        rpc: None,
    };
    net.propose(1, 60, demote).unwrap();
    let message = Box::new(Message {
        kind: raft::Kind::Vote,
        from: 3,
        to: 1,
        term: 99,
        log_term: 99,
        index: 99,
        commit: 0,
        commit_term: 0,
        entries: vec![],
        snapshot: None,
        request_snapshot: 0,
        reject: false,
        reject_hint: 0,
        context: vec![],
    });
    let now = net.now;
    let m = net.managers.get_mut(&1).unwrap();
    let e = m
        .handle(
            now,
            Input::Message {
                from: 3,
                message: message.clone(),
            },
        )
        .unwrap_err();
    assert!(e.to_string().contains("was removed"), "{e}");
    let e = m.handle(now, Input::Message { from: 2, message }).unwrap_err();
    assert!(e.to_string().contains("another manager"), "{e}");
    assert_eq!(net.leader(), Some(1));
}

#[test]
fn a_full_disk_stops_changes_until_there_is_room() {
    let mut net = Net::new();
    net.disks[&1].0.borrow_mut().full = true;
    let mut n = 0u128;
    // What fits into the segment that is there is still taken.
    let e = loop {
        n += 1;
        net.ask(
            1,
            1000 + n,
            Command::SetSecrets(BTreeMap::from([(
                "x".into(),
                Some(crate::state::Secret(vec![1; 4000])),
            )])),
        );
        match net.answer(1000 + n) {
            Some(Ok(_)) => assert!(n < 100),
            Some(Err(e)) => break e,
            None => {}
        }
    };
    assert_eq!(e, Unanswered::DiskFull);
    assert!(net.managers[&1].status(net.now).disk_full);
    let waiting = net.managers[&1].waiting().0;
    assert_eq!(waiting, 1, "the one that found no room");
    net.run(Duration::from_secs(2));
    net.disks[&1].0.borrow_mut().full = false;
    net.run(Duration::from_secs(1));
    assert_eq!(net.managers[&1].waiting().0, 0);
    assert_eq!(
        net.answer(1000 + n - 1),
        Some(Ok(Applied::Done)),
        "it came true by itself"
    );
    net.propose(1, 5000, worker(9)).unwrap();
    net.reopen(1);
    net.work(1);
    assert_eq!(net.managers[&1].read().intent().nodes.len(), 2);
}

#[test]
fn a_cluster_goes_on_from_one_state() {
    let mut net = Net::three();
    net.propose(1, 20, worker(20)).unwrap();
    let mut state = net.managers[&1].read().clone();
    let (id, raft) = state.alone(&node(2, Role::Manager)).unwrap();
    assert_eq!(id, model::NodeId(2));
    assert!(raft > 3, "one that nobody had");
    let disk = Files::default();
    let mut m = Manager::restore(net.now, disk.clone(), &KEY, [1; 32], options(), raft, &state).unwrap();
    let mut sent = 0;
    m.work(net.now, &mut |_| sent += 1).unwrap();
    assert!(m.peer().is_settled());
    assert_eq!(sent, 0);
    let mut other = Manager::open(net.now, disk, &KEY, [2; 32], options())
        .unwrap()
        .unwrap()
        .manager;
    other.work(net.now, &mut |_| {}).unwrap();
    assert_eq!((other.id(), other.read().intent()), (raft, state.intent()));
}

#[test]
fn who_votes_is_not_forgotten_at_a_restart() {
    // The founder's log begins with itself as the only voter; who came later is known by what is committed.
    let mut net = Net::new();
    for id in 2..=3u8 {
        net.propose(1, id.into(), Command::AddNode(node(id, Role::Manager)))
            .unwrap();
    }
    // Alone it commits with its own write, and the library tells a commit index once.
    for step in [ConfStep::Learner, ConfStep::Voter] {
        for id in 2..=3 {
            if step == ConfStep::Learner {
                net.join(id);
            }
            net.change(1, &[(step, id)]).unwrap();
            net.run(Duration::from_millis(1));
        }
    }
    let term = net.managers[&1].status(net.now).term;
    net.managers.remove(&2);
    net.managers.remove(&3);
    net.reopen(1);
    net.work(1);
    net.run(Duration::from_secs(5));
    assert_eq!(
        net.managers[&1].status(net.now).term,
        term,
        "one of three does not even stand for election"
    );
}

#[test]
fn a_leader_that_was_removed_hands_over() {
    let mut net = Net::three();
    // As when a leader died that was removing this one, and this one was elected with that entry in its log.
    let change = ConfChange {
        steps: vec![(ConfStep::Remove, 1)],
    };
    net.managers.get_mut(&1).unwrap().peer.propose_conf(&change).unwrap();
    net.work(1);
    // Also with writes and acknowledgements under way: the library panics when a leader that is no member goes on.
    for n in 30..60 {
        let command = Box::new(worker(n));
        let now = net.now;
        let input = Input::Propose {
            request: n.into(),
            command,
        };
        net.managers.get_mut(&1).unwrap().handle(now, input).unwrap();
        net.step();
    }
    net.until("another leads", |n| {
        n.leader().is_some_and(|l| l != 1 && n.managers[&l].peer().is_settled())
    });
    let leader = net.leader().unwrap();
    net.propose(leader, 20, worker(20)).unwrap();
    assert_eq!(net.managers[&leader].status(net.now).conf.voters, [2, 3]);
}

#[test]
fn a_power_cut_does_not_undo_a_change_of_the_members() {
    let mut net = Net::three();
    net.run(Duration::from_millis(200));
    for id in 1..=3 {
        net.reopen(id);
    }
    // Before the last change 1 and 2 had to agree: its disk must not be needed any more.
    net.managers.remove(&1);
    net.until("the other two go on", |n| {
        n.leader().is_some_and(|l| n.managers[&l].peer().is_settled())
    });
}
