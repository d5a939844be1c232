//! Slots beyond those asked for, and slots that go on at earlier places, under the rules of placement.

use model::{
    ServiceSpec,
    intent::{Availability, SlotSet},
    spec::Mode,
};

use super::*;

fn zone(node: u64, zone: &str) -> Command {
    Command::UpdateNode {
        node: NodeId(node),
        update: NodeUpdate {
            labels: BTreeMap::from([("zone".into(), Some(zone.to_owned()))]),
            ..Default::default()
        },
    }
}

impl Log {
    pub(super) fn left(&self, s: &str) -> String {
        let left = self.state.intent.leaving.get(&name(s));
        let parts = left.into_iter().flatten().map(|(n, s)| format!("{n}={:?}", s.0));
        parts.collect::<Vec<_>>().join(" ")
    }

    /// A service and, at once, a change of its command.
    fn changing(&mut self, replicas: u32, f: impl FnOnce(&mut ServiceSpec)) {
        let mut spec = ServiceSpec {
            replicas,
            command: vec!["a".into()],
            ..Default::default()
        };
        f(&mut spec);
        self.ok(Command::CreateService {
            name: name("web"),
            spec: spec.clone(),
        });
        spec.command = vec!["b".into()];
        let seen = self.service("web").changed;
        let name = name("web");
        self.ok(Command::ReplaceService { name, spec, seen });
    }

    fn ask_beyond(&mut self, surge: &[u32]) -> SlotSet {
        let generation = self.service("web").generation;
        self.ok(Command::Advance {
            service: name("web"),
            generation,
            slots: SlotSet::default(),
            surge: surge.iter().copied().collect(),
        });
        let rollout = self.service("web").rollout.clone();
        rollout.map(|r| r.surge).unwrap_or_default()
    }
}

#[test]
fn beyond_those_asked_for_by_the_same_rules() {
    let mut log = Log::new(2);
    log.ok(zone(1, "a"));
    log.ok(zone(3, "a"));
    log.changing(4, |s| {
        s.placement.constraints = vec!["node.labels.zone==a".into()];
        s.placement.max_per_node = Some(3);
    });
    assert_eq!(log.placed("web"), "n1=[(1, 2)] n3=[(3, 4)]");
    let got = log.ask_beyond(&[11, 12, 13]);
    assert_eq!(got.0, [(11, 12)], "what no node takes is left out");
    assert_eq!(log.placed("web"), "n1=[(1, 2), (11, 11)] n3=[(3, 4), (12, 12)]");
    assert_eq!(log.ask_beyond(&[12]).0, [(12, 12)]);
    assert_eq!(log.placed("web"), "n1=[(1, 2)] n3=[(3, 4), (12, 12)]");
    // It moves with the rest: both go on where they were.
    log.ok(zone(3, "b"));
    assert_eq!(log.placed("web"), "n1=[(1, 3)]");
    assert!(log.service("web").problem.is_some());
    assert_eq!(log.left("web"), "n3=[(3, 4)]", "what has no other place goes on");
    log.ok(zone(2, "a"));
    assert_eq!(log.placed("web"), "n1=[(1, 3)] n2=[(4, 4)]");
    assert_eq!(log.left("web"), "n3=[(3, 4)]");
}

#[test]
fn one_beyond_those_asked_for_that_is_on_the_move_ends_in_both_places() {
    let mut log = Log::new(2);
    log.changing(2, |_| {});
    log.ask_beyond(&[5]);
    assert_eq!(log.placed("web"), "n1=[(1, 1)] n2=[(2, 2)] n3=[(5, 5)]");
    log.ok(Command::SetAvailability {
        node: NodeId(3),
        availability: Availability::Drain,
    });
    assert_eq!(log.placed("web"), "n1=[(1, 1), (5, 5)] n2=[(2, 2)]");
    assert_eq!(log.left("web"), "n3=[(5, 5)]");
    log.ok(Command::SetAvailability {
        node: NodeId(3),
        availability: Availability::Active,
    });
    // The others' nodes are fuller: what is too much would be taken there.
    log.ok(zone(3, "b"));
    let mut other = ServiceSpec {
        replicas: 4,
        command: vec!["a".into()],
        ..Default::default()
    };
    other.placement.constraints = vec!["node.labels.zone!=b".into()];
    log.ok(Command::CreateService {
        name: name("other"),
        spec: other,
    });
    log.ask_beyond(&[]);
    assert_eq!(log.placed("web"), "n1=[(1, 1)] n2=[(2, 2)]");
    assert_eq!(log.left("web"), "");
}

#[test]
fn a_global_service_beside_itself() {
    let beside = |n: u32| SURGE_OF_NODE + n;
    let mut log = Log::new(2);
    log.ok(zone(1, "a"));
    log.ok(zone(2, "a"));
    log.changing(1, |s| {
        s.mode = Mode::Global;
        s.placement.constraints = vec!["node.labels.zone==a".into()];
    });
    assert_eq!(log.placed("web"), "n1=[(1, 1)] n2=[(2, 2)]");
    let got = log.ask_beyond(&[7, beside(1), beside(2), beside(3), beside(9)]);
    let range = |n| (beside(n), beside(n));
    assert_eq!(
        got.0,
        [(beside(1), beside(2))],
        "on nodes that have one, and under no other number"
    );
    // Nodes that are not given more keep it; those that are emptied do not, and their slots wait nowhere.
    let set = |node, availability| Command::SetAvailability {
        node: NodeId(node),
        availability,
    };
    log.ok(set(1, Availability::Pause));
    log.ok(set(2, Availability::Drain));
    assert_eq!(log.service("web").rollout.as_ref().unwrap().surge.0, [range(1)]);
    assert_eq!(log.placed("web"), format!("n1={:?}", [(1, 1), range(1)]));
    assert_eq!((log.left("web").as_str(), &log.service("web").problem), ("", &None));
    let end = Command::EndRollout {
        service: name("web"),
        generation: log.service("web").generation,
        end: RolloutEnd::Completed,
        message: String::new(),
    };
    log.ok(end);
    assert_eq!(log.placed("web"), "n1=[(1, 1)]");
}

#[test]
fn no_room_beside_itself() {
    let mut log = Log::new(1);
    log.changing(1, |s| {
        s.mode = Mode::Global;
        s.placement.max_per_node = Some(1);
    });
    assert!(log.ask_beyond(&[SURGE_OF_NODE + 1]).is_empty());
    assert_eq!(log.placed("web"), "n1=[(1, 1)] n2=[(2, 2)]");
}

#[test]
fn what_rebalancing_moves_goes_on() {
    let mut log = Log::new(1);
    log.ok(service("web", 4, &[]));
    let drain = |availability| Command::SetAvailability {
        node: NodeId(2),
        availability,
    };
    log.ok(drain(Availability::Drain));
    assert_eq!(log.left("web"), "n2=[(3, 4)]");
    let release = |node, slots: (u32, u32)| Command::Release {
        service: name("web"),
        node: NodeId(node),
        slots: SlotSet(vec![slots]),
    };
    log.ok(release(2, (3, 4)));
    log.ok(drain(Availability::Active));
    assert_eq!(
        (log.placed("web").as_str(), log.left("web").as_str()),
        ("n1=[(1, 4)]", "")
    );
    let rebalance = Command::Rebalance {
        service: name("web"),
        budget: 10,
    };
    assert_eq!(log.ok(rebalance), Applied::Moved(2));
    assert_eq!(log.placed("web"), "n1=[(1, 2)] n2=[(3, 4)]");
    assert_eq!(log.left("web"), "n1=[(3, 4)]", "until it is ready over there");
    // A node that dies is waited for by nobody, whatever goes on there.
    log.ok(Command::SetNodeDown {
        node: NodeId(1),
        down: true,
    });
    assert_eq!(
        (log.placed("web").as_str(), log.left("web").as_str()),
        ("n2=[(1, 4)]", "")
    );
}
