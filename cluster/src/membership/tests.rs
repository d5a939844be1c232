//! A network in memory with virtual time.

use std::collections::BTreeSet;

use model::api::NodeHealth;
use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn member(n: u64, generation: u64) -> Member {
    Member {
        node: NodeId(n),
        generation,
        addr: format!("198.18.0.{n}:7946").parse().unwrap(),
    }
}

struct Net {
    now: Duration,
    nodes: BTreeMap<u64, Membership>,
    wire: BTreeMap<(Duration, u64), (Member, Vec<u8>)>,
    sent: u64,
    ticks: usize,
    /// Nodes whose daemon stands still.
    paused: BTreeSet<u64>,
    /// (time, observer, event)
    log: Vec<(Duration, u64, Output)>,
}

impl Net {
    fn new(n: u64, seed: u64) -> Net {
        let nodes = (1..=n).map(|i| (i, Membership::new(member(i, 1), seed ^ i)));
        let mut net = Net {
            now: Duration::ZERO,
            nodes: nodes.collect(),
            wire: BTreeMap::new(),
            sent: 0,
            ticks: 0,
            paused: BTreeSet::new(),
            log: Vec::new(),
        };
        for i in 2..=n {
            let now = net.now;
            net.nodes.get_mut(&i).unwrap().announce(now, member(1, 0));
            net.drain(i);
        }
        net
    }

    fn drain(&mut self, i: u64) {
        while let Some(out) = self.nodes.get_mut(&i).and_then(Membership::poll) {
            match out {
                Output::Send { to, bytes } => {
                    assert!(bytes.len() <= MAX_MESSAGE);
                    self.sent += 1;
                    // Delays of 1 to 3 ms: messages overtake each other.
                    let delay = MS * (1 + (self.sent % 3) as u32);
                    self.wire.insert((self.now + delay, self.sent), (to, bytes));
                }
                other => self.log.push((self.now, i, other)),
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timer = self
                .nodes
                .iter()
                .filter(|(i, _)| !self.paused.contains(i))
                .filter_map(|(i, m)| Some((m.next_timer()?.max(self.now), *i)))
                .min();
            let packet = self.wire.keys().next().map(|k| k.0);
            let next = timer.map(|t| t.0).into_iter().chain(packet).min();
            let Some(at) = next.filter(|t| *t <= end) else {
                break;
            };
            self.now = at;
            if packet == Some(at) {
                let (key, (to, bytes)) = self.wire.pop_first().unwrap();
                if self.paused.contains(&to.node.0) {
                    // Waits in the socket.
                    self.wire.insert((end + MS, key.1), (to, bytes));
                } else if let Some(m) = self.nodes.get_mut(&to.node.0).filter(|m| m.me().addr == to.addr) {
                    let _ = m.handle_data(at, &bytes);
                    self.drain(to.node.0);
                }
            } else if let Some((_, i)) = timer {
                self.nodes.get_mut(&i).unwrap().tick(at);
                self.ticks += 1;
                self.drain(i);
            }
        }
        self.now = end;
    }

    fn downs(&self) -> Vec<(Duration, u64, u64)> {
        let down = |(t, i, o): &(Duration, u64, Output)| match o {
            Output::Down(m) => Some((*t, *i, m.node.0)),
            _ => None,
        };
        self.log.iter().filter_map(down).collect()
    }

    fn sees_all(&self, n: usize) -> bool {
        self.nodes.values().all(|m| m.living().count() == n - 1)
    }
}

#[test]
fn all_meet_and_nobody_is_accused() {
    let mut net = Net::new(20, 1);
    net.run(Duration::from_secs(3));
    assert!(net.sees_all(20));
    net.run(Duration::from_secs(60));
    assert_eq!(net.downs(), []);
}

#[test]
fn a_death_is_seen_by_all_within_four_seconds() {
    for seed in 0..8 {
        let mut net = Net::new(12, seed);
        net.run(Duration::from_secs(5));
        let died = net.now;
        net.nodes.remove(&7);
        net.run(Duration::from_secs(4));
        let seen: BTreeSet<u64> = net.downs().iter().map(|d| d.1).collect();
        assert_eq!(seen.len(), 11, "seed {seed}: {:?}", net.downs());
        assert!(net.downs().iter().all(|d| d.2 == 7 && d.0 - died >= SUSPICION));
    }
}

#[test]
fn a_restarted_node_is_up_at_once() {
    let mut net = Net::new(3, 4);
    net.run(Duration::from_secs(3));
    net.nodes.remove(&2);
    net.run(Duration::from_secs(4));
    assert_eq!(net.downs().len(), 2);
    let mut again = Membership::new(member(2, 2), 99);
    again.announce(net.now, member(1, 0));
    net.nodes.insert(2, again);
    net.drain(2);
    net.run(Duration::from_secs(1));
    assert!(net.sees_all(3));
}

#[test]
fn a_wrongly_accused_node_comes_back_with_a_new_generation() {
    let mut net = Net::new(5, 5);
    net.run(Duration::from_secs(3));
    net.paused.insert(3);
    net.run(Duration::from_secs(4));
    assert_eq!(net.downs().len(), 4);
    net.paused.clear();
    net.run(Duration::from_secs(2));
    assert!(net.sees_all(5));
    let renewed =
        |o: &(Duration, u64, Output)| matches!(&o.2, Output::Rejoined(m) if m.node.0 == 3 && m.generation == 2);
    assert!(net.log.iter().any(renewed));
    // Its own standing still is not counted against the others.
    assert!(net.downs().iter().all(|d| d.1 != 3), "{:?}", net.downs());
}

#[test]
fn states_tell_all_without_a_datagram() {
    let mut net = Net::new(4, 6);
    net.run(Duration::from_secs(3));
    let mut fresh = Membership::new(member(9, 1), 1);
    fresh.apply(net.now, &net.nodes[&1].state());
    assert_eq!(fresh.living().count(), 4);
}

#[test]
fn a_removed_node_is_refused() {
    let mut net = Net::new(3, 7);
    net.run(Duration::from_secs(2));
    let now = net.now;
    for i in [1, 2] {
        net.nodes.get_mut(&i).unwrap().refuse(now, |id| id == NodeId(3));
        net.drain(i);
    }
    net.run(Duration::from_secs(30));
    for i in [1, 2] {
        let living: Vec<u64> = net.nodes[&i].living().map(|m| m.node.0).collect();
        assert_eq!(living, [3 - i]);
    }
}

#[test]
fn one_seed_gives_one_trace() {
    let trace = |seed| {
        let mut net = Net::new(6, seed);
        net.run(Duration::from_secs(5));
        net.nodes.remove(&2);
        net.run(Duration::from_secs(5));
        (net.sent, net.log)
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1).0, trace(2).0);
}

proptest! {
    #[test]
    fn garbage_does_no_harm(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20)) {
        let mut m = Membership::new(member(1, 1), 1);
        m.announce(Duration::ZERO, member(2, 1));
        let Some(Output::Send { bytes, .. }) = m.poll() else { panic!("no announcement") };
        for p in packets {
            let _ = m.handle_data(Duration::ZERO, &p);
            // A good header with a spoilt rest.
            let _ = m.handle_data(Duration::ZERO, &[bytes.clone(), p].concat());
        }
    }
}

const S: Duration = Duration::from_secs(1);

fn watch(others: u64) -> Watch {
    let last = (2..2 + others).map(|n| (NodeId(n), NodeHealth::Ready));
    Watch::new(NodeId(1), &last.collect())
}

/// SWIM accuses a node and the direct ping ends so.
fn accuse(w: &mut Watch, at: Duration, n: u64, outcome: Outcome) -> NodeHealth {
    w.down(at, NodeId(n));
    assert!(w.due(at).contains(&NodeId(n)));
    w.pinged(at, NodeId(n), outcome);
    w.health()[&NodeId(n)]
}

#[test]
fn a_death_has_three_kinds() {
    let mut w = watch(6);
    assert_eq!(accuse(&mut w, S, 2, Outcome::Pong), NodeHealth::Ready);
    assert_eq!(accuse(&mut w, S, 3, Outcome::Refused), NodeHealth::DaemonDown);
    assert_eq!(accuse(&mut w, S, 4, Outcome::Silent), NodeHealth::Down);
    // All are asked again, nobody twice at a time.
    assert_eq!(w.next(), Some(S * 2));
    assert_eq!(w.due(S * 2).len(), 3);
    assert_eq!(w.due(S * 2).len(), 0);
    // The host of a dead daemon dies too; a dead host boots.
    w.pinged(S * 3, NodeId(3), Outcome::Silent);
    w.pinged(S * 3, NodeId(4), Outcome::Refused);
    assert_eq!(w.health()[&NodeId(3)], NodeHealth::Down);
    assert_eq!(w.health()[&NodeId(4)], NodeHealth::DaemonDown);
    w.up(NodeId(3));
    assert_eq!(w.health()[&NodeId(3)], NodeHealth::Ready);
}

#[test]
fn an_answer_that_comes_after_a_sign_of_life_does_not_count() {
    let mut w = watch(2);
    w.down(S, NodeId(2));
    w.due(S);
    w.up(NodeId(2));
    w.pinged(S, NodeId(2), Outcome::Silent);
    assert_eq!(w.health()[&NodeId(2)], NodeHealth::Ready);
    assert_eq!(w.next(), None);
}

#[test]
fn a_node_that_loses_most_others_at_once_distrusts_itself() {
    let mut w = watch(3);
    assert_eq!(accuse(&mut w, S, 2, Outcome::Silent), NodeHealth::Down);
    assert_eq!(accuse(&mut w, S, 3, Outcome::Silent), NodeHealth::Ready);
    assert!(w.distrusts(S));
    // They are gone indeed.
    let later = S * 20;
    for n in w.due(later) {
        w.pinged(later, n, Outcome::Silent);
    }
    assert_eq!(w.health()[&NodeId(3)], NodeHealth::Down);
    // The only other node of two is not "most of them".
    let mut pair = watch(1);
    assert_eq!(accuse(&mut pair, S, 2, Outcome::Silent), NodeHealth::Down);
}

#[test]
fn nodes_come_and_go_with_the_intent() {
    let mut w = watch(2);
    let all = [NodeId(1), NodeId(3), NodeId(4)];
    w.nodes(|id| all.contains(&id), all.into_iter());
    let h = w.health();
    assert_eq!(h.keys().copied().collect::<Vec<_>>(), all);
    assert_eq!(h[&NodeId(4)], NodeHealth::Unknown);
    assert_eq!(w.unmet(|id| id == NodeId(3)), [NodeId(4)]);
}

#[test]
fn a_node_that_moves_is_known_at_its_new_address_and_missed_by_nobody() {
    for seed in 0..20 {
        let mut net = Net::new(6, seed);
        net.run(3000 * MS);
        assert!(net.sees_all(6));
        net.log.clear();
        let now = net.now;
        let addr = "198.18.9.3:7946".parse().unwrap();
        let me = net.nodes.get_mut(&3).unwrap().moved(now, addr);
        assert_eq!((me.node, me.generation, me.addr), (NodeId(3), 2, addr));
        net.drain(3);
        net.run(1000 * MS);
        for (i, m) in net.nodes.iter().filter(|(i, _)| **i != 3) {
            let seen = m.living().find(|m| m.node == NodeId(3));
            assert_eq!(seen.map(|m| m.addr), Some(addr), "seed {seed}: as {i} sees it");
        }
        net.run(5000 * MS);
        assert_eq!(net.downs(), [], "seed {seed}");
        assert!(net.sees_all(6), "seed {seed}");
        // It watches and is watched as before.
        net.paused.insert(5);
        net.run(6000 * MS);
        let observers: BTreeSet<u64> = net.downs().iter().filter(|d| d.2 == 5).map(|d| d.1).collect();
        assert_eq!(observers, BTreeSet::from([1, 2, 3, 4, 6]), "seed {seed}");
    }
}

#[test]
fn digests_are_equal_where_the_same_live() {
    let mut net = Net::new(5, 3);
    net.run(Duration::from_secs(3));
    let digests = |net: &Net| net.nodes.values().map(Membership::digest).collect::<BTreeSet<_>>();
    assert_eq!(digests(&net).len(), 1);
    let before = net.nodes[&1].digest();
    // One more, known to one of them alone.
    let now = net.now;
    let told = |n, generation, liveness| MemberState {
        member: member(n, generation),
        incarnation: 0,
        liveness,
    };
    let one = net.nodes.get_mut(&1).unwrap();
    one.apply(now, &[told(9, 1, Liveness::Alive)]);
    let with = one.digest();
    assert_ne!(with, before);
    // Suspected, come anew, dead: each is another thing; whom nobody holds for alive is told of to nobody.
    one.apply(now, &[told(9, 1, Liveness::Suspect)]);
    let suspected = one.digest();
    assert!(![with, before].contains(&suspected));
    one.apply(now, &[told(9, 2, Liveness::Alive)]);
    assert!(![with, before, suspected].contains(&one.digest()));
    one.apply(now, &[told(9, 2, Liveness::Down)]);
    assert_eq!(one.digest(), before);
}

#[test]
fn a_quiet_cluster_is_not_woken_to_tell_nothing() {
    let mut net = Net::new(3, 5);
    net.run(Duration::from_secs(10));
    net.ticks = 0;
    net.run(PROBE_PERIOD * 20);
    // A probe is two timers: it, and the look whether it was answered. A few more are for members that are down.
    assert!((3 * 2 * 19..=3 * (2 * 20 + 3)).contains(&net.ticks), "{}", net.ticks);
}
