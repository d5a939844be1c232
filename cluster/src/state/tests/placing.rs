//! Placement as the log carries it out: labels, machines, limits, services that look at each other.

use model::{
    intent::{Availability, Machine},
    spec::{PlacementSpec, Resources},
};

use super::*;

fn with(s: &str, replicas: u32, f: impl FnOnce(&mut model::ServiceSpec)) -> Command {
    let mut spec = model::ServiceSpec {
        replicas,
        command: vec!["serve".into()],
        ..Default::default()
    };
    f(&mut spec);
    Command::CreateService { name: name(s), spec }
}

fn label(node: u64, zone: Option<&str>) -> Command {
    Command::UpdateNode {
        node: NodeId(node),
        update: NodeUpdate {
            labels: BTreeMap::from([("zone".into(), zone.map(str::to_owned))]),
            ..Default::default()
        },
    }
}

fn machine(node: u64, cpu_milli: u64) -> Command {
    Command::SetMachine {
        node: NodeId(node),
        machine: Machine {
            os: "linux".into(),
            arch: "x86_64".into(),
            capacity: Resources {
                cpu_milli,
                memory: 1 << 30,
            },
            address: None,
        },
    }
}

fn availability(node: u64, availability: Availability) -> Command {
    Command::SetAvailability {
        node: NodeId(node),
        availability,
    }
}

impl Log {
    fn problem(&self, s: &str) -> String {
        self.service(s).problem.clone().unwrap_or_default()
    }
}

#[test]
fn labels_move_tasks() {
    let mut log = Log::new(2);
    log.ok(with("web", 2, |s| {
        s.placement.constraints = vec!["node.labels.zone==a".into()]
    }));
    assert_eq!(log.placed("web"), "");
    assert_eq!(
        log.problem("web"),
        "2 of 2 tasks have no node: constraint node.labels.zone==a excluded 3; try: netctl node label NODE zone=a"
    );
    log.ok(label(2, Some("a")));
    assert_eq!(
        (log.placed("web").as_str(), log.problem("web").as_str()),
        ("n2=[(1, 2)]", "")
    );
    assert_eq!(log.ok(label(2, Some("a"))), Applied::Unchanged);
    log.ok(label(3, Some("a")));
    assert_eq!(
        log.placed("web"),
        "n2=[(1, 2)]",
        "nothing moves to a node that might have it"
    );
    log.ok(label(2, None));
    assert_eq!(log.placed("web"), "n3=[(1, 2)]");
    let mut bad = label(2, Some("a"));
    if let Command::UpdateNode { update, .. } = &mut bad {
        update.labels = BTreeMap::from([("a b".into(), Some("c".into()))]);
    }
    assert!(log.no(bad).message.contains("no name of a label"));
    let weight = |text: &str| {
        let mut command = label(2, Some("a"));
        if let Command::UpdateNode { update, .. } = &mut command {
            update.labels = BTreeMap::from([("netd.weight".into(), Some(text.into()))]);
        }
        command
    };
    assert!(log.no(weight("heavy")).message.contains("0 to 65535"));
    assert!(log.no(weight("65536")).message.contains("0 to 65535"));
    log.ok(weight("0"));
    log.ok(weight("7"));
}

#[test]
fn machines_are_told_and_reserved() {
    let mut log = Log::new(1);
    let reserve = |cpu_milli| move |s: &mut model::ServiceSpec| s.placement.reserve.cpu_milli = cpu_milli;
    log.ok(with("web", 3, reserve(500)));
    assert!(
        log.problem("web").contains("capacity not told excluded 2"),
        "{}",
        log.problem("web")
    );
    log.ok(machine(2, 1000));
    assert_eq!(log.placed("web"), "n2=[(1, 2)]");
    assert_eq!(
        log.problem("web"),
        "1 of 3 tasks have no node: capacity not told excluded 1, CPU 1; try: again when the nodes have told it; netctl node inspect NODE"
    );
    assert_eq!(log.state.load(NodeId(2)).reserved.cpu_milli, 1000);
    assert_eq!(log.ok(machine(2, 1000)), Applied::Unchanged);
    // Room that a service leaves is for those that wait.
    log.ok(with("next", 1, reserve(1000)));
    assert_eq!(log.placed("next"), "");
    log.ok(scale("web", 0));
    assert_eq!(log.placed("next"), "n2=[(1, 1)]");
    log.ok(Command::RemoveService { name: name("next") });
    assert_eq!(log.state.load(NodeId(2)), Default::default());
}

fn release(s: &str, node: u64, slots: (u32, u32)) -> Command {
    Command::Release {
        service: name(s),
        node: NodeId(node),
        slots: model::intent::SlotSet(vec![slots]),
    }
}

#[test]
fn what_goes_on_reserves_until_it_ends() {
    let mut log = Log::new(1);
    for node in [1, 2] {
        log.ok(machine(node, 1000));
    }
    let reserve = |cpu_milli| move |s: &mut model::ServiceSpec| s.placement.reserve.cpu_milli = cpu_milli;
    log.ok(with("web", 2, reserve(500)));
    log.ok(availability(2, Availability::Drain));
    log.ok(availability(2, Availability::Active));
    assert_eq!(
        (log.placed("web").as_str(), log.left("web").as_str()),
        ("n1=[(1, 2)]", "n2=[(2, 2)]")
    );
    assert_eq!(log.state.load(NodeId(2)).reserved.cpu_milli, 500);
    log.ok(with("next", 1, reserve(1000)));
    assert_eq!(
        log.placed("next"),
        "",
        "half of n2 is in use until web.2 runs elsewhere"
    );
    assert!(
        log.problem("next").contains("CPU excluded 2"),
        "{}",
        log.problem("next")
    );
    // As soon as it ends there, who waits gets the room.
    log.ok(release("web", 2, (2, 2)));
    assert_eq!(
        (log.placed("next").as_str(), log.problem("next").as_str()),
        ("n2=[(1, 1)]", "")
    );
}

#[test]
fn a_service_does_not_take_the_room_of_its_own_tasks_twice() {
    let mut log = Log::new(1);
    for node in [1, 2] {
        log.ok(machine(node, 1000));
    }
    log.ok(with("web", 2, |s| s.placement.reserve.cpu_milli = 500));
    log.ok(availability(2, Availability::Drain));
    log.ok(availability(2, Availability::Active));
    log.ok(scale("web", 4));
    assert_eq!(log.placed("web"), "n1=[(1, 2)] n2=[(3, 3)]", "web.2 goes on on n2");
    log.ok(release("web", 2, (2, 2)));
    assert_eq!(
        (log.placed("web").as_str(), log.problem("web").as_str()),
        ("n1=[(1, 2)] n2=[(3, 4)]", "")
    );
}

#[test]
fn what_goes_on_stays_where_it_runs_when_its_new_node_dies() {
    let mut log = Log::new(1);
    for node in [1, 2] {
        log.ok(machine(node, 1000));
    }
    let reserve = |s: &mut model::ServiceSpec| s.placement.reserve.cpu_milli = 500;
    log.ok(with("web", 2, reserve));
    log.ok(availability(2, Availability::Drain));
    log.ok(release("web", 2, (2, 2)));
    log.ok(availability(2, Availability::Active));
    log.ok(Command::Rebalance {
        service: name("web"),
        budget: 1,
    });
    assert_eq!(
        (log.placed("web").as_str(), log.left("web").as_str()),
        ("n1=[(1, 1)] n2=[(2, 2)]", "n1=[(2, 2)]")
    );
    // n1 is full of the two, and they are where they are.
    log.ok(Command::SetNodeDown {
        node: NodeId(2),
        down: true,
    });
    assert_eq!(
        (log.placed("web").as_str(), log.left("web").as_str()),
        ("n1=[(1, 2)]", "")
    );
    assert_eq!(log.problem("web"), "");
    assert_eq!(log.state.load(NodeId(1)).reserved.cpu_milli, 1000);
}

#[test]
fn a_port_of_a_node_that_becomes_free_is_for_who_waits() {
    let mut log = Log::new(1);
    let port = |s: &mut model::ServiceSpec| s.publish = vec!["80,mode=host".parse().unwrap()];
    log.ok(with("a", 1, port));
    log.ok(availability(1, Availability::Drain));
    log.ok(availability(1, Availability::Active));
    assert_eq!(
        (log.placed("a").as_str(), log.left("a").as_str()),
        ("n2=[(1, 1)]", "n1=[(1, 1)]")
    );
    log.ok(with("b", 1, port));
    assert!(
        log.problem("b").contains("host ports 80/tcp excluded 2"),
        "{}",
        log.problem("b")
    );
    log.ok(release("a", 1, (1, 1)));
    assert_eq!(
        (log.placed("b").as_str(), log.problem("b").as_str()),
        ("n1=[(1, 1)]", "")
    );
}

#[test]
fn a_global_service_follows_the_nodes() {
    let mut log = Log::new(1);
    log.ok(with("agent", 1, |s| s.mode = Mode::Global));
    assert_eq!(log.placed("agent"), "n1=[(1, 1)] n2=[(2, 2)]");
    log.ok(Command::AddNode(node(9, Role::Worker)));
    assert_eq!(log.placed("agent"), "n1=[(1, 1)] n2=[(2, 2)] n3=[(3, 3)]");
    log.ok(availability(2, Availability::Drain));
    assert_eq!(log.placed("agent"), "n1=[(1, 1)] n3=[(3, 3)]");
    log.ok(availability(2, Availability::Active));
    log.ok(Command::RemoveNode { node: NodeId(3) });
    log.ok(Command::SetNodeDown {
        node: NodeId(1),
        down: true,
    });
    assert_eq!(log.placed("agent"), "n2=[(2, 2)]");
    log.ok(Command::SetNodeDown {
        node: NodeId(1),
        down: false,
    });
    assert_eq!(
        (log.placed("agent").as_str(), log.problem("agent").as_str()),
        ("n1=[(1, 1)] n2=[(2, 2)]", "")
    );
    let most = |node, n| Command::UpdateNode {
        node: NodeId(node),
        update: NodeUpdate {
            max_tasks: Some(Some(n)),
            ..Default::default()
        },
    };
    log.ok(most(2, 0));
    assert_eq!(
        log.placed("agent"),
        "n1=[(1, 1)] n2=[(2, 2)]",
        "a limit is for new tasks"
    );
    log.ok(availability(2, Availability::Drain));
    log.ok(availability(2, Availability::Active));
    assert_eq!(
        log.problem("agent"),
        "1 of 2 nodes have no task: max-tasks excluded 1; try: netctl node update NODE --max-tasks with more"
    );
    log.ok(Command::SetNodeDown {
        node: NodeId(2),
        down: true,
    });
    assert_eq!(
        (log.placed("agent").as_str(), log.problem("agent").as_str()),
        ("n1=[(1, 1)]", ""),
        "nothing is lacked where it is not meant for"
    );
}

#[test]
fn a_node_may_join_paused() {
    let mut log = Log::new(0);
    log.ok(Command::SetSecrets(BTreeMap::from([(
        TOKEN_WORKER.into(),
        Some(Secret(vec![1])),
    )])));
    log.ok(with("agent", 1, |s| s.mode = Mode::Global));
    log.ok(Command::Join {
        node: node(2, Role::Worker),
        secret: Secret(vec![1]),
        availability: Availability::Pause,
    });
    assert_eq!(log.placed("agent"), "n1=[(1, 1)]");
    log.ok(availability(2, Availability::Active));
    assert_eq!(log.placed("agent"), "n1=[(1, 1)] n2=[(2, 2)]");
}

#[test]
fn who_waits_for_another_is_placed_after_it() {
    let mut log = Log::new(1);
    log.ok(with("c", 1, |s| s.placement.after = vec![name("b")]));
    log.ok(with("b", 1, |s| s.placement.after = vec![name("a")]));
    log.ok(with("near", 1, |s| s.placement.near = vec![name("c")]));
    assert!(
        log.problem("b")
            .contains("after a excluded 2; try: netctl service create a"),
        "{}",
        log.problem("b")
    );
    log.ok(service("a", 1, &[]));
    for s in ["b", "c", "near"] {
        assert_eq!(log.problem(s), "", "{s}");
    }
    assert_eq!(log.placed("near"), log.placed("c"));
    let e = log.no(Command::CreateService {
        name: name("self"),
        spec: model::ServiceSpec {
            placement: PlacementSpec {
                after: vec![name("self")],
                ..Default::default()
            },
            ..Default::default()
        },
    });
    assert!(e.message.contains("cannot be after itself"), "{e}");
    log.ok(Command::RemoveService { name: name("a") });
    let e = log.no(with("a", 1, |s| s.placement.after = vec![name("c")]));
    assert!(e.message.contains("neither would ever be placed"), "{e}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let mut log = Log::new(0);
    type Wish = fn(&mut PlacementSpec);
    let bad: [(&str, Wish); 6] = [
        ("nothing that a node has", |p| {
            p.constraints = vec!["node.zone==a".into()]
        }),
        ("neither == nor !=", |p| p.constraints = vec!["node.role".into()]),
        ("nothing that a node has", |p| p.spread = vec!["zone".into()]),
        ("0 tasks a node", |p| p.max_per_node = Some(0)),
        ("both near", |p| (p.near, p.apart) = (vec![name("a")], vec![name("a")])),
        ("64 constraints", |p| p.constraints = vec!["node.id!=n1".into(); 65]),
    ];
    for (text, f) in bad {
        let e = log.no(with("x", 1, |s| f(&mut s.placement)));
        assert!(e.message.contains(text), "{e}");
        assert!(!e.hint.is_empty());
    }
}

#[test]
fn a_rebalance_is_asked_for() {
    let mut log = Log::new(0);
    log.ok(service("web", 6, &[]));
    log.ok(Command::AddNode(node(2, Role::Worker)));
    assert_eq!(log.placed("web"), "n1=[(1, 6)]");
    let rebalance = |budget| Command::Rebalance {
        service: name("web"),
        budget,
    };
    let seen = log
        .state
        .clone()
        .preview(&name("web"), &Proposal::Rebalance(2))
        .unwrap();
    assert_eq!((seen.moves.len(), seen.after[&NodeId(2)].len()), (1, 2));
    assert_eq!(log.placed("web"), "n1=[(1, 6)]", "looked at, not done");
    assert_eq!(log.ok(rebalance(2)), Applied::Moved(2));
    assert_eq!(log.placed("web"), "n1=[(1, 4)] n2=[(5, 6)]");
    assert_eq!(log.ok(rebalance(9)), Applied::Moved(1));
    let revision = log.state.intent().revision;
    assert_eq!(log.ok(rebalance(9)), Applied::Moved(0));
    assert_eq!(log.state.intent().revision, revision, "nothing changed, nobody is told");
    assert_eq!(
        log.no(Command::Rebalance {
            service: name("no"),
            budget: 1
        })
        .code,
        Code::NotFound
    );
}

#[test]
fn a_preview_changes_nothing_and_is_true() {
    let mut log = Log::new(2);
    let Command::CreateService { spec, .. } = with("web", 5, |s| s.placement.max_per_node = Some(1)) else {
        unreachable!()
    };
    let seen = log
        .state
        .clone()
        .preview(&name("web"), &Proposal::Spec(Box::new(spec.clone())))
        .unwrap();
    assert!(seen.before.is_empty() && seen.after.len() == 3);
    log.ok(Command::CreateService {
        name: name("web"),
        spec,
    });
    assert_eq!(*log.state.intent.placements[&name("web")], seen.after);
    assert_eq!(log.service("web").problem, seen.problem);
    assert!(
        log.state
            .clone()
            .preview(&name("web"), &Proposal::Replicas(u32::MAX))
            .is_err()
    );
    let seen = log.state.clone().preview(&name("web"), &Proposal::Replicas(2)).unwrap();
    assert_eq!((seen.after.len(), seen.problem), (2, None));
}
