use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proptest::{collection::btree_map, prelude::*, sample::Index};

use super::*;

fn key(n: u32, family: Family) -> ServiceKey {
    ServiceKey {
        mark: mark_of(n).unwrap(),
        family,
    }
}

fn at(family: Family, n: u8) -> DestKey {
    let address = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 128, 1, n)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 1, n.into())),
    };
    DestKey { address, port: 80 }
}

fn weight(weight: u32) -> Dest {
    Dest {
        weight,
        forward: Forward::Masquerade,
    }
}

/// A service of IPv4 with mark 1 and these (backend, weight).
fn table(scheduler: Scheduler, dests: &[(u8, u32)]) -> Table {
    let service = Service {
        scheduler,
        flags: SchedFlags::default(),
        timeout: 0,
        dests: dests.iter().map(|(n, w)| (at(Family::V4, *n), weight(*w))).collect(),
    };
    Table {
        services: [(key(1, Family::V4), service)].into(),
        ..Table::default()
    }
}

/// A plan in few words: `+1=5` backend 1 is new with weight 5, `1=0` it changes, `-1` it goes, `+mh` and `rr` a service.
fn words(steps: &[Step]) -> String {
    let last = |dest: &DestKey| match dest.address {
        IpAddr::V4(a) => a.octets()[3],
        IpAddr::V6(a) => a.octets()[15],
    };
    let plus = |new: &bool| if *new { "+" } else { "" };
    let word = |step: &Step| match step {
        Step::SetTimeouts(t) => format!("tcp={} fin={} udp={}", t.tcp, t.tcp_fin, t.udp),
        Step::SetService { settings, new, .. } => format!("{}{}", plus(new), settings.scheduler),
        Step::RemoveService { .. } => "-".to_owned(),
        Step::SetDest { dest, value, new, .. } => format!("{}{}={}", plus(new), last(dest), value.weight),
        Step::RemoveDest { dest, .. } => format!("-{}", last(dest)),
    };
    steps.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_change_has_its_order() {
    use Scheduler::{Mh, None, Rr};
    let empty = Table::default();
    let cases = [
        // (seen, wanted, plan)
        (empty.clone(), empty.clone(), ""),
        (empty.clone(), table(Rr, &[(1, 1), (2, 1)]), "+rr +1=1 +2=1"),
        // One table is built, not three.
        (empty.clone(), table(Mh, &[(1, 1), (2, 1)]), "+none +1=1 +2=1 mh"),
        (empty.clone(), table(Mh, &[(1, 1)]), "+mh +1=1"),
        (table(None, &[(1, 1)]), table(Mh, &[(1, 1), (2, 1)]), "+2=1 mh"),
        (table(Rr, &[(1, 1)]), table(Mh, &[(1, 1)]), "mh"),
        (table(Scheduler::Other, &[(1, 1)]), table(Rr, &[(1, 1)]), "rr"),
        // An update by replacement: the new one comes before the old one goes.
        (table(Rr, &[(1, 1)]), table(Rr, &[(2, 1)]), "+2=1 -1"),
        // A drain at once where others take over, else after the one that takes over.
        (
            table(Rr, &[(1, 1), (2, 1)]),
            table(Rr, &[(1, 0), (2, 1), (3, 1)]),
            "1=0 +3=1",
        ),
        (table(Rr, &[(1, 1)]), table(Rr, &[(1, 0), (2, 1)]), "+2=1 1=0"),
        (table(Rr, &[(1, 1)]), table(Rr, &[(1, 0)]), "1=0"),
        (table(Rr, &[(1, 0)]), table(Rr, &[(1, 1)]), "1=1"),
        (
            table(Rr, &[(1, 1), (2, 1), (3, 1)]),
            table(Rr, &[(1, 0), (2, 1)]),
            "1=0 -3",
        ),
        (table(Rr, &[(1, 1)]), empty.clone(), "-"),
    ];
    for (seen, wanted, expected) in cases {
        assert_eq!(words(&plan(&seen, &wanted)), expected, "{seen:?} -> {wanted:?}");
    }
}

#[test]
fn a_drain_is_told_before_other_services_are_made() {
    let mut seen = table(Scheduler::Rr, &[(1, 1), (2, 1)]);
    let other = seen.services[&key(1, Family::V4)].clone();
    seen.services.insert(key(9, Family::V4), other.clone());
    let mut wanted = seen.clone();
    wanted.services.insert(
        key(0, Family::V6),
        Service {
            dests: BTreeMap::new(),
            ..other
        },
    );
    let draining = wanted.services.get_mut(&key(9, Family::V4)).unwrap();
    draining.dests.insert(at(Family::V4, 1), weight(0));
    assert_eq!(words(&plan(&seen, &wanted)), "1=0 +rr");
}

#[test]
fn a_timeout_of_nought_is_no_wish_and_no_ability() {
    let with = |tcp, tcp_fin, udp| Table {
        timeouts: Timeouts { tcp, tcp_fin, udp },
        ..Table::default()
    };
    assert_eq!(
        words(&plan(&with(900, 120, 300), &with(60, 0, 30))),
        "tcp=60 fin=120 udp=30"
    );
    assert_eq!(words(&plan(&with(900, 120, 300), &with(0, 0, 0))), "");
    assert_eq!(
        words(&plan(&with(900, 120, 0), &with(900, 120, 30))),
        "",
        "a kernel without UDP"
    );
}

#[test]
fn what_the_kernel_does_not_offer_is_replaced_and_told() {
    let mut wanted = table(Scheduler::Mh, &[(1, 1)]);
    let service = wanted.services.get_mut(&key(1, Family::V4)).unwrap();
    service.flags = SchedFlags::MAGLEV;
    let mut other = wanted.clone();
    assert_eq!(wanted.settle_for(&BTreeSet::from([Scheduler::Mh])), BTreeMap::new());
    assert_eq!(wanted, other);
    let told = other.settle_for(&BTreeSet::from([Scheduler::Wrr]));
    assert_eq!(told, BTreeMap::from([(key(1, Family::V4), Scheduler::Mh)]));
    assert_eq!(
        other,
        table(Scheduler::Rr, &[(1, 1)]),
        "rr is the last resort, and has no switches"
    );
    assert_eq!(other.settle_for(&BTreeSet::new()), BTreeMap::new());
}

#[test]
fn marks_are_the_logs_numbers() {
    assert_eq!(mark_of(1), Some(0x6e00_0001));
    assert_eq!(mark_of(MARK_COUNT - 1), Some(0x6eff_ffff));
    assert_eq!(mark_of(MARK_COUNT), None, "those that lead replies back begin there");
}

#[test]
fn names_are_the_kernels() {
    for scheduler in Scheduler::ALL.into_iter().chain([Scheduler::None]) {
        assert_eq!(Scheduler::named(scheduler.name()), scheduler);
    }
    assert_eq!(Scheduler::named("lblcr"), Scheduler::Other);
}

/// IPVS as the kernel keeps it: each command has what it needs, or fails.
fn carry_out(table: &mut Table, step: &Step) {
    match *step {
        Step::SetTimeouts(t) => table.timeouts = t,
        Step::SetService { key, settings, new } => {
            assert_eq!(!table.services.contains_key(&key), new, "{step:?}");
            let service = table.services.entry(key).or_insert_with(|| Service {
                scheduler: settings.scheduler,
                flags: settings.flags,
                timeout: settings.timeout,
                dests: BTreeMap::new(),
            });
            service.scheduler = settings.scheduler;
            service.flags = settings.flags;
            service.timeout = settings.timeout;
        }
        Step::RemoveService { key } => assert!(table.services.remove(&key).is_some(), "{step:?}"),
        Step::SetDest {
            service,
            dest,
            value,
            new,
        } => {
            let held = table.services.get_mut(&service).unwrap().dests.insert(dest, value);
            assert_eq!(held.is_none(), new, "{step:?}");
        }
        Step::RemoveDest { service, dest } => {
            let held = table.services.get_mut(&service).unwrap().dests.remove(&dest);
            assert!(held.is_some(), "{step:?}");
        }
    }
}

/// Whether new flows are served.
fn serves(service: Option<&Service>) -> bool {
    service.is_some_and(|s| s.scheduler != Scheduler::None && s.dests.values().any(|d| d.weight > 0))
}

fn scheduler(seen: bool) -> impl Strategy<Value = Scheduler> {
    let mut all = Scheduler::ALL.to_vec();
    all.extend(
        seen.then_some([Scheduler::None, Scheduler::Other])
            .into_iter()
            .flatten(),
    );
    proptest::sample::select(all)
}

fn dests(seen: bool, family: Family) -> impl Strategy<Value = BTreeMap<DestKey, Dest>> {
    let ways = if seen { 4 } else { 3usize };
    let way = (0..ways).prop_map(|i| [Forward::Masquerade, Forward::Direct, Forward::Tunnel, Forward::Other][i]);
    let value = (0..3u32, way).prop_map(|(weight, forward)| Dest { weight, forward });
    btree_map((1..6u8).prop_map(move |n| at(family, n)), value, 0..5)
}

fn tables(seen: bool) -> impl Strategy<Value = Table> {
    let service = |family| {
        let flags = (any::<bool>(), any::<bool>()).prop_map(|(port, fallback)| SchedFlags { port, fallback });
        let settings = (scheduler(seen), flags, 0..2u32);
        (settings, dests(seen, family)).prop_map(|((scheduler, flags, timeout), dests)| Service {
            scheduler,
            flags,
            timeout,
            dests,
        })
    };
    let of = move |family| btree_map((0..4u32).prop_map(move |n| key(n, family)), service(family), 0..4);
    let timeouts = (1..3u32, 1..3u32, 1..3u32).prop_map(|(tcp, tcp_fin, udp)| Timeouts { tcp, tcp_fin, udp });
    (of(Family::V4), of(Family::V6), timeouts).prop_map(|(mut services, v6, timeouts)| {
        services.extend(v6);
        Table { services, timeouts }
    })
}

proptest! {
    #[test]
    fn a_plan_leads_to_what_is_wanted_wherever_it_is_cut(
        seen in tables(true),
        wanted in tables(false),
        cut in any::<Index>(),
    ) {
        let steps = plan(&seen, &wanted);
        let mut table = seen.clone();
        steps.iter().for_each(|s| carry_out(&mut table, s));
        prop_assert_eq!(&table, &wanted);
        prop_assert_eq!(plan(&table, &wanted), vec![]);

        let mut table = seen;
        steps.iter().take(cut.index(steps.len() + 1)).for_each(|s| carry_out(&mut table, s));
        plan(&table, &wanted).iter().for_each(|s| carry_out(&mut table, s));
        prop_assert_eq!(&table, &wanted);
    }

    #[test]
    fn a_service_that_serves_before_and_after_serves_at_every_step(seen in tables(true), wanted in tables(false)) {
        let both: Vec<ServiceKey> = wanted
            .services
            .iter()
            .filter(|(key, service)| serves(seen.services.get(key)) && serves(Some(service)))
            .map(|(key, _)| *key)
            .collect();
        let mut table = seen.clone();
        for step in plan(&seen, &wanted) {
            carry_out(&mut table, &step);
            for key in &both {
                prop_assert!(serves(table.services.get(key)), "{:?} after {:?}", key, step);
            }
        }
    }

    #[test]
    fn nothing_goes_before_what_comes_and_what_drains(seen in tables(true), wanted in tables(false)) {
        let mut gone = BTreeSet::new();
        for step in plan(&seen, &wanted) {
            match step {
                Step::RemoveDest { service, .. } => {
                    gone.insert(service);
                }
                Step::SetDest { service, .. } => prop_assert!(!gone.contains(&service), "{:?}", step),
                _ => {}
            }
        }
    }

    #[test]
    fn a_new_service_builds_one_maglev_table_at_most_for_all_its_backends(wanted in tables(false)) {
        let mut builds = BTreeMap::<ServiceKey, usize>::new();
        let mut table = Table::default();
        for step in plan(&table.clone(), &wanted) {
            carry_out(&mut table, &step);
            let key = match step {
                Step::SetService { key, .. } => key,
                Step::SetDest { service, .. } => service,
                _ => continue,
            };
            let service = &table.services[&key];
            if service.scheduler == Scheduler::Mh && !service.dests.is_empty() {
                *builds.entry(key).or_default() += 1;
            }
        }
        prop_assert!(builds.values().all(|n| *n == 1), "{:?}", builds);
    }
}
