//! The rules by tables; [`any`] has them by chance, [`golden`] as stories to read.

mod any;
mod golden;

use model::intent::Availability;

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

/// A worker of which nothing special is known.
pub(crate) fn node(hostname: &str) -> Node {
    Node {
        hostname: hostname.into(),
        role: model::intent::Role::Worker,
        availability: Availability::Active,
        key: Vec::new(),
        down: false,
        rpc: None,
        raft: None,
        labels: BTreeMap::new(),
        max_tasks: None,
        machine: Default::default(),
    }
}

/// Nodes with the tasks of others on them.
type World = BTreeMap<NodeId, (Node, Load)>;

/// `n1 n2:5 n3:pause n4:down`: nodes with the tasks of others, or what they are.
fn world(text: &str) -> World {
    text.split_whitespace()
        .map(|part| {
            let (id, what) = part.split_once(':').unwrap_or((part, "0"));
            let mut n = node(id);
            n.down = what == "down";
            n.availability = match what {
                "pause" => Availability::Pause,
                "drain" => Availability::Drain,
                _ => Availability::Active,
            };
            let load = Load {
                tasks: what.parse().unwrap_or(0),
                ..Load::default()
            };
            (id.parse().unwrap(), (n, load))
        })
        .collect()
}

fn hosts(world: &World) -> Vec<Host<'_>> {
    world
        .iter()
        .map(|(id, (node, others))| Host {
            id: *id,
            node,
            others: *others,
            avoid: false,
        })
        .collect()
}

fn web() -> Name {
    "web".parse().unwrap()
}

/// Places with nothing but a number asked for.
fn spread(p: &mut Placed, world: &World, replicas: u32) -> Plan {
    let (name, spec) = (web(), PlacementSpec::default());
    let plan = place(p, &hosts(world), &Request::new(&name, &spec, replicas));
    *p = plan.placed.clone();
    plan
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
        let left = spread(&mut p, &world(nodes), replicas).unplaced;
        assert_eq!((shown(&p).as_str(), left), (after, unplaced), "{what}");
        let again = spread(&mut p, &world(nodes), replicas);
        assert_eq!((shown(&p).as_str(), again.unplaced), (after, unplaced), "{what}, again");
        assert_eq!(again.moves, [], "{what}, again");
    }
}

#[test]
fn a_million_slots_are_a_few_thousand_ranges() {
    let mut world: World = (1..=4700)
        .map(|i| (NodeId(i), (node("host"), Load::default())))
        .collect();
    let mut p = Placed::new();
    assert_eq!(spread(&mut p, &world, 1_000_000).unplaced, 0);
    assert_eq!(p.len(), 4700);
    assert!(p.values().all(|s| s.0.len() == 1 && (212..=213).contains(&s.len())));
    world.get_mut(&NodeId(8)).unwrap().0.down = true;
    let plan = spread(&mut p, &world, 1_000_000);
    assert_eq!(plan.unplaced, 0);
    let moved: u32 = plan.moves.iter().map(|m| m.slots.len()).sum();
    assert!((212..=213).contains(&moved) && plan.moves.iter().all(|m| m.from == NodeId(8)));
    let ranges: usize = p.values().map(|s| s.0.len()).sum();
    assert!(ranges < 4699 + 214, "{ranges}");
    assert_eq!(p.values().map(SlotSet::len).sum::<u32>(), 1_000_000);
}

#[test]
fn moves_say_from_where_to_where() {
    let mut p = placed("n1=1-3 n2=4-6 n3=7-9");
    let plan = spread(&mut p, &world("n1 n2:down n3"), 9);
    let told: Vec<String> = plan
        .moves
        .iter()
        .map(|m| format!("{} {:?} {:?}", m.from, m.to.map(|t| t.0), m.slots.0))
        .collect();
    assert_eq!(told, ["n2 Some(1) [(4, 5)]", "n2 Some(3) [(6, 6)]"]);
    assert_eq!(Move::between(&placed("n1=1-3 n2=4-6 n3=7-9"), &p), plan.moves);
    let plan = spread(&mut p, &world("n1:pause n2:down n3:drain"), 9);
    assert_eq!(plan.unplaced, 4);
    assert!(plan.moves.iter().all(|m| m.from == NodeId(3) && m.to.is_none()));
}
