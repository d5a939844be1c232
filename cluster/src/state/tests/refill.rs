//! A dead node's slots: quickly, and with a picture of all nodes for each service.

use model::spec::{PlacementSpec, Resources};
use proptest::prelude::*;

use super::*;
use crate::placement::Board;

fn plain(n: usize, replicas: u32, placement: PlacementSpec) -> Command {
    Command::CreateService {
        name: name(&format!("plain{n}")),
        spec: model::ServiceSpec {
            replicas,
            command: vec!["x".into()],
            placement,
            ..Default::default()
        },
    }
}

/// As [`State::set_down`] without the board.
fn slowly(state: &State, index: u64, id: NodeId) -> State {
    let mut state = state.clone();
    if let Some(n) = state.change(index).nodes.get_mut(&id) {
        n.down = true;
    }
    let names = state.around(id);
    state.place_all(index, names);
    state
}

/// The services that it can do at once.
fn quick(log: &Log, id: NodeId) -> usize {
    let mut state = log.state.clone();
    if let Some(n) = state.change(log.index).nodes.get_mut(&id) {
        n.down = true;
    }
    let names = state.around(id);
    let mut board = Board::new(&state.intent.nodes, &state.loads);
    let done = names.iter().filter_map(|n| state.refill(log.index, n, &mut board));
    done.count()
}

fn dies_either_way(log: &Log) {
    for (id, _) in log.state.intent.nodes.iter().filter(|(_, n)| !n.down) {
        let mut dead = log.state.clone();
        dead.set_down(log.index, *id, true).unwrap();
        check(&dead);
        assert_eq!(dead, slowly(&log.state, log.index, *id), "{id}");
    }
}

#[test]
fn who_gets_what_a_dead_node_had() {
    let mut log = Log::new(4);
    let zone = |n: u64, zone: &str| Command::UpdateNode {
        node: NodeId(n),
        update: NodeUpdate {
            labels: BTreeMap::from([("zone".into(), Some(zone.to_owned()))]),
            ..Default::default()
        },
    };
    for (n, z) in [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "b")] {
        log.ok(zone(n, z));
    }
    let of_a = PlacementSpec {
        constraints: vec!["node.labels.zone==a".into()],
        ..Default::default()
    };
    log.ok(plain(1, 5, PlacementSpec::default()));
    log.ok(plain(2, 4, of_a.clone()));
    let one_each = PlacementSpec {
        max_per_node: Some(1),
        ..PlacementSpec::default()
    };
    log.ok(plain(3, 3, one_each));
    assert_eq!(quick(&log, NodeId(2)), 3, "all of them");
    dies_either_way(&log);
    log.ok(Command::SetNodeDown {
        node: NodeId(2),
        down: true,
    });
    assert_eq!(log.placed("plain2"), "n1=[(1, 2)] n4=[(3, 4)]");
    // Both nodes that it may be on are full: that is told as always.
    log.ok(plain(
        4,
        2,
        PlacementSpec {
            max_per_node: Some(1),
            ..of_a
        },
    ));
    let there = log.state.around(NodeId(4));
    assert_eq!(there, ["plain1", "plain2", "plain4"].map(name));
    assert_eq!(quick(&log, NodeId(4)), 2, "not the one that is full");
    dies_either_way(&log);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn quickly_or_slowly(
        plains in prop::collection::vec(
            (
                0u32..14,
                prop::sample::select(vec!["", "", "node.labels.zone==1", "node.labels.zone!=1"]),
                prop::option::of(1u32..4),
                0u64..2,
            ),
            1..5,
        ),
        commands in prop::collection::vec((properties::any_command(), 0u64..200_000), 0..40),
    ) {
        let mut log = Log::new(5);
        for (n, (replicas, constraint, max_per_node, half)) in plains.into_iter().enumerate() {
            let constraints = Some(constraint.to_owned()).filter(|c| !c.is_empty()).into_iter().collect();
            let reserve = Resources { cpu_milli: half * 100, memory: 0 };
            let spec = PlacementSpec { constraints, max_per_node, reserve, ..PlacementSpec::default() };
            log.ok(plain(n, replicas, spec));
        }
        dies_either_way(&log);
        for (command, step) in commands {
            log.time += step;
            let command = properties::aimed(&log, command);
            let _ = log.run(command);
        }
        dies_either_way(&log);
    }
}
