use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[test]
fn numbers_come_in_a_circle_and_rest() {
    let mut p = Pool::new(1..4);
    assert_eq!([p.take(0), p.take(0)], [Some(1), Some(2)]);
    p.release(1, 10, 100);
    assert_eq!(p.take(10), Some(3), "the one after the last");
    assert_eq!(p.take(109), None, "1 rests");
    assert_eq!(p.claim(1, 109), Err(Taken::Resting(1)));
    assert_eq!(p.claim(2, 109), Err(Taken::Used));
    assert_eq!(p.claim(4, 109), Err(Taken::Outside));
    assert_eq!(p.take(110), Some(1));
    assert_eq!(p.used(), 3);
}

proptest! {
    /// No number is held twice, and none comes back before its rest is over, whatever the order of events.
    #[test]
    fn a_pool_never_gives_twice(ops in prop::collection::vec((0u8..3, 0u64..30, 0u32..8), 1..200)) {
        let mut pool = Pool::new(2..8);
        let mut held = std::collections::BTreeSet::new();
        let mut freed = std::collections::BTreeMap::new();
        let mut now = 0;
        for (op, step, n) in ops {
            now += step;
            let got = match op {
                0 => pool.take(now),
                1 => pool.claim(n, now).ok().map(|()| n),
                _ => {
                    pool.release(n, now, 100);
                    if held.remove(&n) {
                        freed.insert(n, now);
                    }
                    None
                }
            };
            if let Some(g) = got {
                prop_assert!((2..8).contains(&g));
                prop_assert!(held.insert(g), "{g} given twice");
                if let Some(at) = freed.remove(&g) {
                    prop_assert!(now - at >= 100);
                }
            } else if op == 0 {
                let rest = freed.values().filter(|at| now - **at < 100).count();
                prop_assert_eq!(held.len() + rest, 6, "refused although one was free");
            }
        }
    }
}

#[test]
fn subnets_are_picked_around_what_is_taken() {
    let pool = "10.128.0.0/9".parse().unwrap();
    let (first, next) = pick_v4(pool, 16, 0, &[]).unwrap();
    assert_eq!(first.to_string(), "10.128.0.0/16");
    let taken = ["10.128.0.0/15", "10.130.7.0/24", "0.0.0.0/32"].map(|s| s.parse().unwrap());
    let (n, _) = pick_v4(pool, 16, next, &taken).unwrap();
    assert_eq!(n.to_string(), "10.131.0.0/16");
    let (n, next) = pick_v4(pool, 16, 127, &taken).unwrap();
    assert_eq!((n.to_string().as_str(), next), ("10.255.0.0/16", 0), "in a circle");
    assert_eq!(pick_v4("10.128.0.0/20".parse().unwrap(), 16, 0, &taken), None);
    let small = pick_v4("172.30.0.0/20".parse().unwrap(), 16, 5, &taken).unwrap().0;
    assert_eq!(small.to_string(), "172.30.0.0/20");
    let ula = "fd12:3456:789a::/48".parse().unwrap();
    let (six, _) = pick_v6(ula, 1, &[]).unwrap();
    assert_eq!(six.to_string(), "fd12:3456:789a:1::/64");
    assert_eq!(pick_v6(ula, 1, &[six]).unwrap().0.to_string(), "fd12:3456:789a:2::/64");
    assert_eq!(pick_v6(ula, 1, &[ula]), None);
}

#[test]
fn the_form_of_a_subnet_is_checked() {
    let four = |s: &str| check_v4(s.parse().unwrap(), 8, 24);
    assert_eq!(four("10.77.0.0/16"), Ok(()));
    assert_eq!(
        four("10.77.1.0/16"),
        Err(SubnetError::HostBits("10.77.0.0/16".parse().unwrap()))
    );
    assert_eq!(four("10.77.0.0/25"), Err(SubnetError::Prefix { min: 8, max: 24 }));
    assert!(matches!(four("127.4.0.0/16"), Err(SubnetError::Reserved(_))));
    assert!(matches!(four("224.0.0.0/8"), Err(SubnetError::Reserved(_))));
    let six = |s: &str| check_v6(s.parse().unwrap(), 48, 104);
    assert_eq!(six("fd00:1::/64"), Ok(()));
    assert!(matches!(six("fe80::/64"), Err(SubnetError::Reserved(_))));
    assert!(matches!(six("::ffff:0:0/96"), Err(SubnetError::Reserved(_))));
    assert_eq!(six("fd00:1::/112"), Err(SubnetError::Prefix { min: 48, max: 104 }));
}

#[test]
fn a_new_beginning_keeps_off_what_may_have_been_given_out_since() {
    let mut lost = Pool::new(0..20);
    for n in 0..3 {
        assert_eq!(lost.take(0), Some(n));
    }
    let mut anew = lost.clone();
    // After the backup, half of them went.
    let since: Vec<u32> = (0..10).filter_map(|_| lost.take(5)).collect();
    assert_eq!(since.len(), 10);
    anew.begin_anew(100, 50);
    let given: Vec<u32> = (0..7).filter_map(|_| anew.take(100)).collect();
    assert_eq!(given, [13, 14, 15, 16, 17, 18, 19]);
    assert_eq!(anew.take(149), None, "the others rest");
    assert_eq!(anew.take(150), Some(3));

    // One whose next number is near its end.
    let mut pool = Pool::new(10..20);
    for _ in 0..8 {
        pool.take(0);
    }
    pool.release(11, 0, 10);
    pool.begin_anew(100, 50);
    assert_eq!(pool.take(100), None, "18, 19 and 11 may be in use");
    assert_eq!(pool.take(150), Some(18));

    // One that is too large to write down: it comes round late enough.
    let mut large = Pool::new(1..u32::MAX - 1);
    large.take(0);
    large.begin_anew(0, 50);
    assert!(large.take(0).is_some_and(|n| n > 1 << 30));
    let mut none = Pool::new(4..4);
    none.begin_anew(0, 50);
    assert_eq!(none.take(0), None);
}

/// As a snapshot has it, which somebody else may have written.
#[test]
fn a_pool_is_taken_from_a_snapshot_only_if_it_is_one() {
    type Parts = (u32, u32, u32, u32, BTreeSet<u32>, Vec<(u64, u32)>, BTreeSet<u32>);
    let read = |parts: &Parts| postcard::from_bytes::<Pool>(&postcard::to_allocvec(parts).unwrap());
    let mut pool = Pool::new(10..20).claimable_from(4);
    assert_eq!(pool.take(0), Some(10));
    let same = postcard::from_bytes::<Pool>(&postcard::to_allocvec(&pool).unwrap()).unwrap();
    assert_eq!(same, pool);
    let sound: Parts = (4, 10, 20, 11, [10].into(), vec![], BTreeSet::new());
    assert_eq!(read(&sound).unwrap(), pool);
    let breaks: [fn(&mut Parts); 6] = [
        |p| p.0 = 11,
        |p| p.1 = 12,
        |p| p.2 = 9,
        |p| p.3 = 21,
        |p| p.4 = [20].into(),
        |p| p.6 = [3].into(),
    ];
    for (n, make) in breaks.iter().enumerate() {
        let mut parts = sound.clone();
        make(&mut parts);
        assert!(read(&parts).is_err(), "{n}");
    }
}
