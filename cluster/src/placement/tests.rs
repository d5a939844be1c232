use proptest::prelude::*;

use super::*;

/// `n1=1-3,7 n2=4` as a placement.
fn placed(text: &str) -> BTreeMap<NodeId, SlotSet> {
    let range = |r: &str| {
        let (a, b) = r.split_once('-').unwrap_or((r, r));
        (a.parse().unwrap(), b.parse().unwrap())
    };
    text.split_whitespace()
        .map(|part| {
            let (node, slots) = part.split_once('=').unwrap();
            let slots = SlotSet(slots.split(',').map(range).collect());
            (node.parse().unwrap(), slots)
        })
        .collect()
}

fn shown(placed: &BTreeMap<NodeId, SlotSet>) -> String {
    let range = |(a, b): &(u32, u32)| match a == b {
        true => a.to_string(),
        false => format!("{a}-{b}"),
    };
    let parts: Vec<String> = placed
        .iter()
        .map(|(n, s)| format!("{n}={}", s.0.iter().map(range).collect::<Vec<_>>().join(",")))
        .collect();
    parts.join(" ")
}

/// `n1 n2:5 n3:pause n4:down`: nodes with the tasks of others, or what they are.
fn hosts(text: &str) -> Vec<Host> {
    text.split_whitespace()
        .map(|part| {
            let (id, what) = part.split_once(':').unwrap_or((part, "0"));
            Host {
                id: id.parse().unwrap(),
                keeps: what != "down",
                takes: what != "down" && what != "pause",
                others: what.parse().unwrap_or(0),
            }
        })
        .collect()
}

#[test]
fn the_rules_one_by_one() {
    // (what, before, nodes, replicas, after, unplaced)
    let table = [
        ("a new service is spread", "", "n1 n2 n3", 4, "n1=1-2 n2=3 n3=4", 0),
        (
            "the emptier node gets the odd one",
            "",
            "n1:9 n2:3 n3:4",
            4,
            "n1=1 n2=2-3 n3=4",
            0,
        ),
        (
            "this service counts before all tasks",
            "n2=1",
            "n1:9 n2:0",
            2,
            "n1=2 n2=1",
            0,
        ),
        ("more: what runs stays", "n1=1-2 n2=3", "n1 n2", 5, "n1=1-2,4 n2=3,5", 0),
        (
            "more: a lower free number is used first",
            "n1=1 n2=4",
            "n1 n2",
            4,
            "n1=1-2 n2=3-4",
            0,
        ),
        (
            "fewer: the fullest gives its highest",
            "n1=1-3 n2=4",
            "n1 n2",
            2,
            "n1=1 n2=4",
            0,
        ),
        (
            "fewer: of equals the one with more in all",
            "n1=1 n2=2",
            "n1:5 n2:1",
            1,
            "n2=2",
            0,
        ),
        ("fewer: then the highest id", "n1=1 n2=2", "n1 n2", 1, "n1=1", 0),
        ("none", "n1=1 n2=2", "n1 n2", 0, "", 0),
        (
            "a dead node's slots move, others stay",
            "n1=1,4 n2=2 n3=3",
            "n1 n2:down n3",
            4,
            "n1=1,4 n3=2-3",
            0,
        ),
        (
            "a dead node's slots keep their numbers",
            "n1=1 n2=7-8",
            "n1 n2:down n3",
            3,
            "n1=1,7 n3=8",
            0,
        ),
        ("a removed node's slots move", "n1=1 n9=2", "n1 n2", 2, "n1=1 n2=2", 0),
        (
            "dead and fewer at once: nothing starts in vain",
            "n1=1-2 n2=3-4",
            "n1 n2:down n3",
            2,
            "n1=1-2",
            0,
        ),
        (
            "dead and fewer: the lowest lost numbers live on",
            "n1=1 n2=3-5",
            "n1 n2:down n3",
            2,
            "n1=1 n3=3",
            0,
        ),
        (
            "a paused node keeps, but gets no more",
            "n1=1",
            "n1:pause n2",
            3,
            "n1=1 n2=2-3",
            0,
        ),
        ("a node that joins moves nothing", "n1=1-4", "n1 n2", 4, "n1=1-4", 0),
        ("and gets the next ones", "n1=1-4", "n1 n2", 6, "n1=1-4 n2=5-6", 0),
        ("nowhere to go", "n1=1", "n1:down", 2, "", 2),
        ("nowhere to go for the new ones", "n1=1", "n1:pause", 3, "n1=1", 2),
        ("no node at all", "", "", 1, "", 1),
    ];
    for (what, before, nodes, replicas, after, unplaced) in table {
        let mut p = placed(before);
        let left = spread(&mut p, &hosts(nodes), replicas);
        assert_eq!((shown(&p).as_str(), left), (after, unplaced), "{what}");
        let again = spread(&mut p, &hosts(nodes), replicas);
        assert_eq!((shown(&p).as_str(), again), (after, unplaced), "{what}, again");
    }
}

/// The same rules slot by slot, as slowly as they are told: what [`spread`] must agree with.
fn reference(before: &BTreeMap<NodeId, SlotSet>, hosts: &[Host], replicas: u32) -> BTreeMap<NodeId, u32> {
    let mut count: BTreeMap<NodeId, u32> = hosts
        .iter()
        .map(|h| {
            let has = before.get(&h.id).map_or(0, SlotSet::len);
            (h.id, if h.keeps { has } else { 0 })
        })
        .collect();
    let others = |id: &NodeId| hosts.iter().find(|h| h.id == *id).unwrap().others;
    let takes = |id: &NodeId| hosts.iter().find(|h| h.id == *id).unwrap().takes;
    loop {
        let sum: u32 = count.values().sum();
        let pick = match sum.cmp(&replicas) {
            std::cmp::Ordering::Equal => break,
            std::cmp::Ordering::Less => count
                .iter()
                .filter(|(id, _)| takes(id))
                .min_by_key(|(id, n)| (**n, others(id) + u64::from(**n), **id)),
            std::cmp::Ordering::Greater => count
                .iter()
                .max_by_key(|(id, n)| (**n, others(id) + u64::from(**n), **id)),
        };
        let Some(id) = pick.map(|(id, _)| *id) else { break };
        let n = count.get_mut(&id).unwrap();
        *n = if sum < replicas { *n + 1 } else { *n - 1 };
    }
    count.retain(|_, n| *n > 0);
    count
}

fn any_hosts() -> impl Strategy<Value = Vec<Host>> {
    prop::collection::vec((any::<bool>(), any::<bool>(), 0u64..5), 0..7).prop_map(|v| {
        v.into_iter()
            .enumerate()
            .map(|(i, (up, active, others))| Host {
                id: NodeId(i as u64 + 1),
                keeps: up,
                takes: up && active,
                others,
            })
            .collect()
    })
}

fn all_slots(p: &BTreeMap<NodeId, SlotSet>) -> Vec<u32> {
    let mut all: Vec<u32> = p.values().flat_map(|s| s.iter().collect::<Vec<_>>()).collect();
    all.sort_unstable();
    all
}

proptest! {
    /// Any history of nodes and sizes: as the slow reference, each slot once, sets in normal form, nothing moved that
    /// could stay, nothing to do the second time.
    #[test]
    fn any_history(steps in prop::collection::vec((any_hosts(), 0u32..40), 1..8)) {
        let mut p = BTreeMap::new();
        for (hosts, replicas) in steps {
            let before = p.clone();
            let unplaced = spread(&mut p, &hosts, replicas);
            let counts: BTreeMap<NodeId, u32> = p.iter().map(|(n, s)| (*n, s.len())).collect();
            prop_assert_eq!(&counts, &reference(&before, &hosts, replicas));
            let all = all_slots(&p);
            prop_assert_eq!(all.len() as u32 + unplaced, replicas);
            prop_assert!(all.windows(2).all(|w| w[0] < w[1]), "a slot twice: {:?}", all);
            for s in p.values() {
                prop_assert!(!s.is_empty());
                prop_assert_eq!(s, &s.iter().collect::<SlotSet>(), "normal form");
            }
            for h in hosts.iter().filter(|h| h.keeps) {
                let (Some(old), new) = (before.get(&h.id), p.get(&h.id)) else { continue };
                let kept = old.iter().filter(|s| new.is_some_and(|n| n.contains(*s))).count() as u32;
                let new = new.map_or(0, SlotSet::len);
                prop_assert_eq!(kept, old.len().min(new), "a slot moved that could stay");
            }
            let mut again = p.clone();
            prop_assert_eq!(spread(&mut again, &hosts, replicas), unplaced);
            prop_assert_eq!(&again, &p);
        }
    }
}

#[test]
fn a_million_slots_are_a_few_thousand_ranges() {
    let hosts: Vec<Host> = (1..=4700)
        .map(|i| Host {
            id: NodeId(i),
            keeps: true,
            takes: true,
            others: 0,
        })
        .collect();
    let mut p = BTreeMap::new();
    assert_eq!(spread(&mut p, &hosts, 1_000_000), 0);
    assert_eq!(p.len(), 4700);
    assert!(p.values().all(|s| s.0.len() == 1 && (212..=213).contains(&s.len())));
    let mut fewer = hosts.clone();
    fewer[7].keeps = false;
    fewer[7].takes = false;
    assert_eq!(spread(&mut p, &fewer, 1_000_000), 0);
    let ranges: usize = p.values().map(|s| s.0.len()).sum();
    assert!(ranges < 4699 + 214, "{ranges}");
    assert_eq!(p.values().map(SlotSet::len).sum::<u32>(), 1_000_000);
}
