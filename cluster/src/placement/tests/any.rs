//! Any history of nodes and wishes, beside the rules told slot by slot.

use model::spec::Strategy as Choice;
use proptest::prelude::*;

use super::*;

/// What a node may have, found by asking the filters about one more slot again and again.
fn room(host: &Host<'_>, ask: &Request<'_>, had: u32) -> (u32, u32) {
    let v = filter::Filters::new(ask).look(host, had);
    (v.keeps, v.cap.max(v.keeps))
}

/// The same rules slot by slot, as slowly as they are told: what [`place`] must agree with (spread over the nodes alone).
fn reference(before: &Placed, hosts: &[Host<'_>], ask: &Request<'_>) -> BTreeMap<NodeId, u32> {
    let mut count: BTreeMap<NodeId, u32> = BTreeMap::new();
    let mut cap = BTreeMap::new();
    for h in hosts {
        let (keeps, most) = room(h, ask, before.get(&h.id).map_or(0, SlotSet::len));
        count.insert(h.id, keeps);
        cap.insert(h.id, most);
    }
    let others = |id: &NodeId| hosts.iter().find(|h| h.id == *id).unwrap().others.tasks;
    loop {
        let sum: u32 = count.values().sum();
        let pick = match sum.cmp(&ask.replicas) {
            std::cmp::Ordering::Equal => break,
            std::cmp::Ordering::Less => count
                .iter()
                .filter(|(id, n)| **n < cap[id])
                .min_by_key(|(id, n)| (**n, others(id) + u64::from(**n), **id)),
            std::cmp::Ordering::Greater => count
                .iter()
                .max_by_key(|(id, n)| (**n, others(id) + u64::from(**n), **id)),
        };
        let Some(id) = pick.map(|(id, _)| *id) else { break };
        let n = count.get_mut(&id).unwrap();
        *n = if sum < ask.replicas { *n + 1 } else { *n - 1 };
    }
    count.retain(|_, n| *n > 0);
    count
}

fn any_world() -> impl Strategy<Value = World> {
    let one = (
        0u8..8,
        0u64..5,
        prop::option::of(0u32..9),
        0u64..4000,
        prop::sample::select(vec!["", "a", "b"]),
        prop::sample::select(vec!["", "1", "2"]),
    );
    prop::collection::vec(one, 0..8).prop_map(|v| {
        v.into_iter()
            .enumerate()
            .map(|(i, (state, tasks, max_tasks, cpu, zone, rack))| {
                let mut n = node(&format!("host{i}"));
                n.down = state == 0;
                n.availability = match state {
                    1 => Availability::Pause,
                    2 => Availability::Drain,
                    _ => Availability::Active,
                };
                n.max_tasks = max_tasks;
                n.machine.capacity.cpu_milli = cpu;
                for (key, value) in [("zone", zone), ("rack", rack)] {
                    if !value.is_empty() {
                        n.labels.insert(key.into(), value.into());
                    }
                }
                let mut load = Load::default();
                load.add(
                    u32::try_from(tasks).unwrap(),
                    Resources {
                        cpu_milli: 300,
                        memory: 0,
                    },
                );
                (NodeId(i as u64 + 1), (n, load))
            })
            .collect()
    })
}

fn any_spec() -> impl Strategy<Value = PlacementSpec> {
    (
        prop::sample::select(vec![vec![], vec!["node.labels.zone==a"], vec!["node.labels.zone!=b"]]),
        prop::option::of(1u32..6),
        prop::sample::select(vec![0u64, 500]),
        prop::sample::select(vec![
            vec![],
            vec!["node.labels.zone"],
            vec!["node.labels.zone", "node.labels.rack"],
        ]),
        prop::sample::select(vec![Choice::Spread, Choice::Spread, Choice::Binpack, Choice::Random]),
    )
        .prop_map(
            |(constraints, max_per_node, cpu_milli, spread, strategy)| PlacementSpec {
                constraints: constraints.into_iter().map(str::to_owned).collect(),
                max_per_node,
                spread: spread.into_iter().map(str::to_owned).collect(),
                strategy,
                reserve: Resources { cpu_milli, memory: 0 },
                ..PlacementSpec::default()
            },
        )
}

fn all_slots(p: &Placed) -> Vec<u32> {
    let mut all: Vec<u32> = p.values().flat_map(|s| s.iter().collect::<Vec<_>>()).collect();
    all.sort_unstable();
    all
}

/// Slots per value of a label.
fn by_zone(p: &Placed, world: &World) -> BTreeMap<String, u32> {
    let mut zones = BTreeMap::new();
    for (id, slots) in p {
        let zone = world[id].0.labels.get("zone").cloned().unwrap_or_default();
        *zones.entry(zone).or_insert(0) += slots.len();
    }
    zones
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Any history of nodes, wishes and sizes: each slot once, sets in normal form, nothing on a node that may not have
    /// it, nothing moved that could stay, nothing to do the second time, all room used before a slot is left out; spread
    /// over nodes alone is as the slow reference.
    #[test]
    fn any_history(steps in prop::collection::vec((any_world(), any_spec(), 0u32..40), 1..6)) {
        let mut p = Placed::new();
        let name = web();
        for (world, spec, replicas) in steps {
            let before = p.clone();
            let ask = Request::new(&name, &spec, replicas);
            let hosts = hosts(&world);
            let plan = place(&before, &hosts, &ask);
            p = plan.placed.clone();
            let counts: BTreeMap<NodeId, u32> = p.iter().map(|(n, s)| (*n, s.len())).collect();
            if spec.strategy == Choice::Spread && spec.spread.is_empty() {
                prop_assert_eq!(&counts, &reference(&before, &hosts, &ask));
            }
            let all = all_slots(&p);
            prop_assert_eq!(all.len() as u32 + plan.unplaced, replicas);
            prop_assert!(all.windows(2).all(|w| w[0] < w[1]), "a slot twice: {:?}", all);
            for s in p.values() {
                prop_assert!(!s.is_empty());
                prop_assert_eq!(s, &s.iter().collect::<SlotSet>(), "normal form");
            }
            for h in &hosts {
                let had = before.get(&h.id).map_or(0, SlotSet::len);
                let has = p.get(&h.id).map_or(0, SlotSet::len);
                let (keeps, most) = room(h, &ask, had);
                prop_assert!(has <= most, "{} has {}, may have {}", h.id, has, most);
                prop_assert!(plan.unplaced == 0 || has == most, "room on {} is left", h.id);
                let (old, new) = (before.get(&h.id), p.get(&h.id));
                let kept = old.into_iter().flat_map(|s| s.iter()).filter(|s| new.is_some_and(|n| n.contains(*s))).count();
                prop_assert_eq!(kept as u32, keeps.min(has), "a slot moved from {} that could stay", h.id);
            }
            prop_assert_eq!(plan.unplaced > 0, problem(&plan, &ask).is_some());
            let excluded: u32 = plan.excluded.iter().map(|e| e.1).sum();
            prop_assert_eq!(excluded as usize, if plan.unplaced > 0 { hosts.len() } else { 0 });
            let moved: Vec<Move> = plan.moves.iter().filter(|m| m.to.is_some()).cloned().collect();
            prop_assert_eq!(moved, Move::between(&before, &p));
            let again = place(&p, &hosts, &ask);
            prop_assert_eq!((&again.placed, again.unplaced), (&p, plan.unplaced));
        }
    }

    /// What is drawn is drawn evenly: 1000 slots over four nodes, whatever the service's name.
    #[test]
    fn draws_are_even(name in "[a-z]{1,12}") {
        let world: World = (1..5).map(|i| (NodeId(i), (node("x"), Load::default()))).collect();
        let spec = PlacementSpec { strategy: Choice::Random, ..PlacementSpec::default() };
        let name = name.parse().unwrap();
        let placed = place(&Placed::new(), &hosts(&world), &Request::new(&name, &spec, 1000)).placed;
        prop_assert!(placed.len() == 4 && placed.values().all(|s| (170..330).contains(&s.len())), "{:?}", placed);
    }

    /// A node that joins moves nothing, whatever the strategy.
    #[test]
    fn a_node_that_joins_moves_nothing(mut world in any_world(), spec in any_spec(), replicas in 0u32..40) {
        let name = web();
        let ask = Request::new(&name, &spec, replicas);
        let before = place(&Placed::new(), &hosts(&world), &ask).placed;
        world.insert(NodeId(99), (node("new"), Load::default()));
        let after = place(&before, &hosts(&world), &ask).placed;
        for (id, slots) in &before {
            prop_assert!(slots.iter().all(|s| after[id].contains(s)));
        }
    }

    /// On empty nodes of the same room, zones differ by one at most.
    #[test]
    fn zones_are_even(zones in prop::collection::vec(0u8..4, 1..12), replicas in 0u32..60) {
        let world: World = zones.iter().enumerate().map(|(i, zone)| {
            let mut n = node("x");
            n.labels.insert("zone".into(), zone.to_string());
            (NodeId(i as u64 + 1), (n, Load::default()))
        }).collect();
        let name = web();
        let spec = PlacementSpec { spread: vec!["node.labels.zone".into()], ..PlacementSpec::default() };
        let p = place(&Placed::new(), &hosts(&world), &Request::new(&name, &spec, replicas)).placed;
        let mut even = by_zone(&p, &world);
        for (n, _) in world.values() {
            even.entry(n.labels["zone"].clone()).or_insert(0);
        }
        let (low, high) = (even.values().min().unwrap(), even.values().max().unwrap());
        prop_assert!(high - low <= 1, "{:?}", even);
    }

    /// A rebalance keeps to its budget, ends as a fresh placement would be spread, and has nothing to do the second time.
    #[test]
    fn a_rebalance_is_budgeted(first in any_world(), second in any_world(), mut spec in any_spec(), replicas in 0u32..40, budget in 0u32..9) {
        let name = web();
        spec.strategy = Choice::Spread;
        let ask = Request::new(&name, &spec, replicas);
        let (first, second) = (hosts(&first), hosts(&second));
        let before = place(&place(&Placed::new(), &first, &ask).placed, &second, &ask);
        let step = rebalance(&before.placed, &second, &ask, budget);
        prop_assert_eq!(all_slots(&step.placed), all_slots(&before.placed));
        let moved: u32 = step.moves.iter().filter(|m| m.to.is_some()).map(|m| m.slots.len()).sum();
        prop_assert!(moved <= budget);
        let counts = |p: &Placed| -> Vec<u32> {
            let mut all: Vec<u32> = p.values().map(SlotSet::len).collect();
            all.sort_unstable();
            all
        };
        let whole = rebalance(&before.placed, &second, &ask, u32::MAX);
        if before.unplaced == 0 && spec.spread.is_empty() && second.iter().all(|h| h.node.availability != Availability::Pause) {
            let fresh = place(&Placed::new(), &second, &ask);
            if fresh.unplaced == 0 {
                prop_assert_eq!(counts(&whole.placed), counts(&fresh.placed));
            }
        }
        let again = rebalance(&whole.placed, &second, &ask, u32::MAX);
        prop_assert_eq!(&again.placed, &whole.placed);
        prop_assert!(again.moves.iter().all(|m| m.to.is_none()));
    }
}
