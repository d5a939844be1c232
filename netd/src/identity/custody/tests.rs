//! Changes of the CA and of gossip keys over a cluster whose nodes hear late, die, come back and are removed, and whose
//! leader changes at any moment.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3_600_000;

fn policy() -> Policy {
    Policy {
        gossip_every: GOSSIP_EVERY,
    }
}

/// A node of the model.
#[derive(Debug, Clone)]
struct Node {
    health: NodeHealth,
    /// What it really holds.
    holds: Holding,
    /// What it has said.
    said: Option<Holding>,
    /// It has heard from a manager since it came back.
    current: bool,
}

struct World {
    secrets: ClusterSecrets,
    removed_at: u64,
    index: u64,
    now_ms: u64,
    nodes: BTreeMap<NodeId, Node>,
    /// Gossip keys that removed nodes have seen.
    leaked: BTreeSet<u32>,
    next: u64,
}

impl World {
    fn new(n: u64) -> World {
        let mut w = World {
            secrets: ClusterSecrets::create("c1").unwrap(),
            removed_at: 0,
            index: 1,
            now_ms: 0,
            nodes: BTreeMap::new(),
            leaked: BTreeSet::new(),
            next: 1,
        };
        for _ in 0..n {
            w.join();
        }
        w
    }

    fn trust(&self) -> Holding {
        let t = self.secrets.trust();
        Holding {
            roots: t.roots.iter().map(|r| crate::identity::fingerprint(r)).collect(),
            issuer: t.issuer,
            until: 0,
            gossip: t.gossip,
        }
    }

    fn join(&mut self) {
        let holds = self.trust();
        let node = Node {
            health: NodeHealth::Unknown,
            holds: holds.clone(),
            said: None,
            current: true,
        };
        self.nodes.insert(NodeId(self.next), node);
        self.next += 1;
    }

    fn seen(&self) -> BTreeMap<NodeId, Seen> {
        let seen = |n: &Node| Seen {
            health: n.health,
            holds: n.said.clone(),
        };
        self.nodes.iter().map(|(id, n)| (*id, seen(n))).collect()
    }

    fn due(&self) -> Option<Step> {
        next(&self.secrets, self.removed_at, self.now_ms, &self.seen(), &policy())
    }

    /// The leader looks.
    fn lead(&mut self) -> Option<Step> {
        let step = self.due()?;
        self.secrets.step(step, self.removed_at, self.now_ms).unwrap();
        Some(step)
    }

    /// Another leader: what it knows is what the log holds.
    fn elect(&mut self) {
        let map = self.secrets.to_map().unwrap();
        self.secrets = ClusterSecrets::from_map(|n| map.get(n)?.as_deref()).unwrap();
        for n in self.nodes.values_mut() {
            n.said = None;
        }
    }

    fn node(&mut self, i: usize) -> Option<(NodeId, &mut Node)> {
        let len = self.nodes.len().max(1);
        self.nodes.iter_mut().nth(i % len).map(|(id, n)| (*id, n))
    }

    fn up(n: &Node) -> bool {
        matches!(n.health, NodeHealth::Ready | NodeHealth::Unknown)
    }

    fn hear(&mut self, i: usize) {
        let told = self.trust();
        if let Some((_, n)) = self.node(i)
            && World::up(n)
        {
            n.holds.roots = told.roots;
            n.holds.gossip = told.gossip;
            if !n.current {
                // It comes back by trading in its certificate.
                n.holds.issuer = told.issuer;
                n.current = true;
            }
        }
    }

    fn renew(&mut self, i: usize) {
        let told = self.trust();
        if let Some((_, n)) = self.node(i)
            && World::up(n)
            && n.current
            && n.holds.roots.contains(&told.issuer)
        {
            n.holds.issuer = told.issuer;
        }
    }

    fn say(&mut self, i: usize) {
        if let Some((_, n)) = self.node(i)
            && World::up(n)
            && n.current
        {
            n.said = Some(n.holds.clone());
            n.health = NodeHealth::Ready;
        }
    }

    fn die(&mut self, i: usize, health: NodeHealth) {
        if let Some((_, n)) = self.node(i) {
            n.health = health;
            n.said = None;
            n.current = false;
        }
    }

    fn live(&mut self, i: usize) {
        if let Some((_, n)) = self.node(i)
            && !World::up(n)
        {
            n.health = NodeHealth::Unknown;
        }
    }

    fn remove(&mut self, i: usize) {
        if self.nodes.len() < 2 {
            return;
        }
        if let Some((id, n)) = self.node(i) {
            let knew = n.holds.gossip.clone();
            // It may have heard of all that was told until now.
            self.leaked.extend(knew);
            self.leaked.extend(self.secrets.gossip.keys().iter().map(|k| k.id));
            self.nodes.remove(&id);
            self.index += 1;
            self.removed_at = self.index;
        }
    }

    /// Any two living nodes understand each other.
    fn check(&self) -> Result<(), TestCaseError> {
        let living: Vec<_> = self.nodes.iter().filter(|(_, n)| World::up(n) && n.current).collect();
        for (a, x) in &living {
            for (b, y) in &living {
                prop_assert!(
                    y.holds.roots.contains(&x.holds.issuer),
                    "{b} does not accept {a}'s certificate: {x:?} {y:?}"
                );
                let seals = x.holds.gossip.first();
                prop_assert!(
                    seals.is_some_and(|k| y.holds.gossip.contains(k)),
                    "{b} cannot open what {a} seals: {x:?} {y:?}"
                );
            }
        }
        Ok(())
    }

    /// Everybody hears and says everything, until nothing is due any more.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..100 {
            for i in 0..self.nodes.len() {
                self.live(i);
                self.hear(i);
                self.renew(i);
                self.say(i);
            }
            self.check()?;
            if self.lead().is_none() {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("it does not come to an end"))
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Lead,
    Elect,
    Hear(usize),
    Renew(usize),
    Say(usize),
    Die(usize),
    Pause(usize),
    Live(usize),
    Remove(usize),
    Join,
    NewCa,
    Hour,
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0..8usize;
    prop_oneof![
        6 => Just(Op::Lead),
        1 => Just(Op::Elect),
        6 => n.clone().prop_map(Op::Hear),
        5 => n.clone().prop_map(Op::Renew),
        6 => n.clone().prop_map(Op::Say),
        1 => n.clone().prop_map(Op::Die),
        1 => n.clone().prop_map(Op::Pause),
        2 => n.clone().prop_map(Op::Live),
        1 => n.prop_map(Op::Remove),
        1 => Just(Op::Join),
        1 => Just(Op::NewCa),
        1 => Just(Op::Hour),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order (but for deadlines, which are for nodes that do not answer), living nodes
    /// understand each other, every change comes to an end, and who was removed knows no key in use.
    #[test]
    fn living_nodes_always_understand_each_other(ops in prop::collection::vec(op(), 1..120)) {
        let mut w = World::new(4);
        for op in ops {
            w.index += 1;
            match op {
                Op::Lead => {
                    w.lead();
                }
                Op::Elect => w.elect(),
                Op::Hear(i) => w.hear(i),
                Op::Renew(i) => w.renew(i),
                Op::Say(i) => w.say(i),
                Op::Die(i) => w.die(i, NodeHealth::Down),
                Op::Pause(i) => w.die(i, NodeHealth::DaemonDown),
                Op::Live(i) => w.live(i),
                Op::Remove(i) => w.remove(i),
                Op::Join => w.join(),
                Op::NewCa => {
                    let _ = w.secrets.ca.begin("c1", None, w.now_ms);
                }
                // Hours pass only when nothing is under way: a deadline is another story.
                Op::Hour => {
                    if w.secrets.ca.change.is_none() && w.secrets.gossip.phase.is_none() {
                        w.now_ms += HOUR;
                    }
                }
            }
            w.check()?;
        }
        w.settle()?;
        prop_assert!(w.secrets.ca.change.is_none() && w.secrets.gossip.phase.is_none());
        let keys: Vec<u32> = w.secrets.gossip.keys().iter().map(|k| k.id).collect();
        prop_assert!(keys.iter().all(|k| !w.leaked.contains(k)), "{keys:?} {:?}", w.leaked);
        prop_assert_eq!(w.secrets.ca.trusted().len(), 1);
    }
}

#[test]
fn a_change_waits_for_the_living_and_not_for_the_dead() {
    let mut w = World::new(3);
    w.settle().unwrap();
    let old = w.secrets.ca.root().fingerprint();
    w.secrets.ca.begin("c1", None, 0).unwrap();
    assert!(w.secrets.ca.begin("c1", None, 0).is_err(), "one at a time");
    // All know, none has said so.
    w.elect();
    for i in 0..3 {
        w.hear(i);
    }
    assert_eq!(w.lead(), None);
    for i in 0..2 {
        w.say(i);
    }
    assert_eq!((w.lead(), ca_waits(&w.secrets, &w.seen())), (None, vec![NodeId(3)]));
    // A daemon that is away is waited for; a dead host is not.
    w.die(2, NodeHealth::DaemonDown);
    assert_eq!(w.lead(), None);
    w.die(2, NodeHealth::Down);
    assert_eq!(w.lead(), Some(Step::CaRenew));
    assert_ne!(w.secrets.ca.root().fingerprint(), old);
    assert_eq!(w.lead(), None);
    for i in 0..2 {
        w.hear(i);
        w.renew(i);
        w.say(i);
    }
    assert_eq!(w.lead(), Some(Step::CaFinish));
    assert_eq!(w.lead(), None);
    assert!(w.secrets.ca.known().any(|r| crate::identity::fingerprint(r) == old));
}

#[test]
fn the_old_root_ends_at_the_deadline_at_the_latest() {
    let mut w = World::new(2);
    w.settle().unwrap();
    w.secrets.ca.begin("c1", None, w.now_ms).unwrap();
    let deadline = u64::try_from(CA_DEADLINE.as_millis()).unwrap();
    for want in [Step::CaRenew, Step::CaFinish] {
        w.now_ms += deadline - 1;
        assert_eq!(w.lead(), None);
        w.now_ms += 1;
        assert_eq!(w.lead(), Some(want));
    }
}

#[test]
fn gossip_keys_change_by_time_and_by_removal() {
    let mut w = World::new(3);
    w.settle().unwrap();
    let every = u64::try_from(GOSSIP_EVERY.as_millis()).unwrap();
    w.now_ms += every - 1;
    assert_eq!(w.due(), None);
    for round in 2..6u32 {
        w.now_ms += every;
        assert_eq!(w.due(), Some(Step::GossipReceive));
        w.settle().unwrap();
        let keys: Vec<u32> = w.secrets.gossip.keys().iter().map(|k| k.id).collect();
        let ring: Vec<u32> = (1..=round).rev().take(3).collect();
        assert_eq!(keys, ring, "a ring of three, the newest seals");
    }
    w.remove(0);
    assert_eq!(w.due(), Some(Step::GossipReceive));
    w.settle().unwrap();
    assert_eq!(w.secrets.gossip.keys().len(), 1);

    // Removed while a change was under way, when it may have heard of the new key already: one more change.
    w.now_ms += every;
    assert_eq!(w.lead(), Some(Step::GossipReceive));
    let heard = w.secrets.gossip.newest();
    w.remove(0);
    w.settle().unwrap();
    let keys: Vec<u32> = w.secrets.gossip.keys().iter().map(|k| k.id).collect();
    assert!(keys.iter().all(|k| *k > heard), "{keys:?}");
}

#[test]
fn a_node_that_does_not_answer_holds_gossip_keys_up_for_a_moment_only() {
    let mut w = World::new(2);
    w.settle().unwrap();
    w.index += 1;
    w.removed_at = w.index;
    assert_eq!(w.lead(), Some(Step::GossipReceive));
    assert_eq!(w.lead(), None);
    w.now_ms += u64::try_from(GOSSIP_DEADLINE.as_millis()).unwrap();
    assert_eq!(w.lead(), Some(Step::GossipSend));
}
