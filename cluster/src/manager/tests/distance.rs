//! How fast managers tick, by how far they are apart.

use super::*;

#[test]
fn ticks_follow_the_distance() {
    let mut pace = Pace::new(1);
    let ms = Duration::from_millis;
    let case = |pace: &mut Pace, trips: &[u64], others: &[u64], quorum| {
        for (id, t) in others.iter().zip(trips) {
            for _ in 0..9 {
                pace.measured(*id, ms(*t));
            }
        }
        pace.choose(others, quorum);
        pace.tick()
    };
    assert_eq!(case(&mut pace, &[], &[], 1), MIN_TICK);
    assert_eq!(case(&mut pace, &[1, 2], &[2, 3], 2), MIN_TICK);
    assert_eq!(case(&mut pace, &[150, 151], &[2, 3], 2), ms(150));
    assert_eq!(
        case(&mut pace, &[141, 150], &[2, 3], 2),
        ms(150),
        "a little shorter is no change"
    );
    assert_eq!(case(&mut pace, &[1, 150, 150, 150], &[2, 3, 4, 5], 3), ms(150));
    assert_eq!(
        case(&mut pace, &[1, 2, 150, 150], &[2, 3, 4, 5], 3),
        MIN_TICK,
        "a quorum is near"
    );
    assert_eq!(case(&mut pace, &[9000, 9000], &[2, 3], 2), MAX_TICK);
    // One odd measurement says nothing.
    let mut pace = Pace::new(1);
    case(&mut pace, &[1, 1], &[2, 3], 2);
    pace.measured(2, ms(400));
    pace.choose(&[2, 3], 2);
    assert_eq!(pace.tick(), MIN_TICK);
}

#[test]
fn managers_far_apart_hold_no_needless_elections() {
    let mut net = Net::three();
    net.delay = Duration::from_millis(75);
    for from in 1..=3 {
        for to in (1..=3).filter(|to| *to != from) {
            net.input(
                from,
                Input::RoundTrip {
                    id: to,
                    took: Duration::from_millis(150),
                },
            );
        }
    }
    // The leader's old ticks end.
    net.run(Duration::from_secs(3));
    let elections = net.elections;
    net.run(Duration::from_secs(600));
    assert_eq!(net.elections, elections);
    let leader = net.leader().unwrap();
    net.propose(leader, 70, worker(70)).unwrap();
    let dead = net.now;
    net.managers.remove(&leader);
    net.until("another leads", |n| n.leader().is_some());
    assert!(net.now - dead < Duration::from_millis(2500), "{:?}", net.now - dead);
}

#[test]
fn a_leader_s_death_costs_less_than_a_second() {
    let mut took = Vec::new();
    for round in 0..200u64 {
        let mut net = Net::three();
        net.run(Duration::from_millis(500 + round * 7));
        for (id, seed) in (1..=3).zip([
            round as u8,
            100u8.wrapping_add(round as u8),
            200u8.wrapping_add(round as u8),
        ]) {
            // Other jitter each time.
            let disk = net.disks[&id].clone();
            let found = Manager::open(net.now, disk, &KEY, [seed; 32], options())
                .unwrap()
                .unwrap();
            net.managers.insert(id, found.manager);
        }
        net.until("a leader", |n| {
            n.leader().is_some_and(|l| n.managers[&l].peer().is_settled())
        });
        net.run(Duration::from_millis(round * 13 % 300));
        let dead = net.now;
        let old = net.leader().unwrap();
        net.managers.remove(&old);
        net.until("another leads", |n| n.leader().is_some());
        let leader = net.leader().unwrap();
        net.propose(leader, 90, worker(90)).unwrap();
        took.push(net.now - dead);
    }
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    assert!(
        p99 < Duration::from_secs(1),
        "p50 {:?} p99 {p99:?}",
        took[took.len() / 2]
    );
}
