//! What the kernel makes of the messages, each test in a namespace of its own.

use mesh::ipvs::{MARK_BASE, Settings, Step, plan};
use nix::errno::Errno;

use super::{
    super::{
        Ipvs, StepError,
        message::{AF_INET, command, svc, top},
        reconcile,
    },
    *,
};
use crate::netns;

/// Runs in a new namespace, and shows what failed in it.
fn alone(test: impl FnOnce(&mut Ipvs) + Send) {
    netns::run_in_new(|| test(&mut Ipvs::open().unwrap())).unwrap();
}

fn bring(ipvs: &mut Ipvs, wanted: &Table) -> usize {
    let seen = ipvs.observe().unwrap();
    let report = ipvs.apply(&plan(&seen, wanted));
    assert!(report.failed.is_empty(), "{:?}", report.failed.first());
    assert_eq!(&ipvs.observe().unwrap(), wanted);
    report.done
}

fn all_there_is() -> Table {
    let mut services = Vec::new();
    for family in FAMILIES {
        for (n, scheduler) in (1u32..).zip(Scheduler::ALL) {
            let ways = [Forward::Masquerade, Forward::Direct, Forward::Tunnel];
            let dests = (1u16..).zip(ways).map(|(i, forward)| {
                let weight = u32::from(i) * n;
                (dest(family, i), Dest { weight, forward })
            });
            services.push((key(n, family), service(scheduler, dests)));
        }
        let flags = [
            SchedFlags::default(),
            SchedFlags::MAGLEV,
            SchedFlags {
                port: true,
                fallback: false,
            },
        ];
        for (n, flags) in (20u32..).zip(flags) {
            let some = service(
                Scheduler::Mh,
                [(dest(family, 1), weight(1)), (dest(family, 2), weight(0))],
            );
            let timeout = n - 20;
            services.push((key(n, family), Service { flags, timeout, ..some }));
        }
        services.push((key(30, family), service(Scheduler::Rr, [])));
    }
    let timeouts = Timeouts {
        tcp: 1000,
        tcp_fin: 20,
        udp: 31,
    };
    Table {
        timeouts,
        ..table(services)
    }
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn the_kernel_offers_all_that_the_lane_needs() {
    let abilities = probe().unwrap();
    assert_eq!(abilities.schedulers, Scheduler::ALL.into());
    assert!(abilities.ipv6);
    assert_eq!(abilities.version, (1, 2, 1), "{abilities}");
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn what_is_wanted_is_there_and_a_second_time_writes_nothing() {
    alone(|ipvs| {
        assert_eq!(ipvs.observe().unwrap(), Table::default(), "a new namespace");
        let wanted = all_there_is();
        assert!(bring(ipvs, &wanted) > 50);
        assert_eq!(bring(ipvs, &wanted), 0);
        // Another daemon, as after kill -9.
        assert_eq!(reconcile(&wanted).unwrap().done, 0);
        bring(ipvs, &Table::default());
    });
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn backends_come_drain_go_and_come_back() {
    alone(|ipvs| {
        for scheduler in [Scheduler::Mh, Scheduler::Rr] {
            for dests in [
                vec![(1, 1), (2, 1)],
                vec![(1, 0), (2, 1), (3, 1)],
                vec![(2, 1), (3, 7)],
                vec![(1, 1), (2, 0)],
                vec![],
                vec![(2, 1)],
            ] {
                let of = |family| {
                    let dests = dests.iter().map(|(n, w)| (dest(family, *n), weight(*w)));
                    (key(1, family), service(scheduler, dests))
                };
                let wanted = table(FAMILIES.map(of));
                bring(ipvs, &wanted);
                assert_eq!(bring(ipvs, &wanted), 0);
            }
        }
    });
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn a_plan_that_was_cut_short_is_continued_by_another_daemon() {
    netns::run_in_new(|| {
        let wanted = all_there_is();
        let steps = plan(&Table::default(), &wanted);
        for cut in [1, 2, 5, steps.len() / 2, steps.len() - 1] {
            let report = Ipvs::open().unwrap().apply(&steps[..cut]);
            assert!(report.failed.is_empty(), "{:?}", report.failed);
            let report = reconcile(&wanted).unwrap();
            assert!(report.failed.is_empty(), "{:?}", report.failed.first());
            assert_eq!(Ipvs::open().unwrap().observe().unwrap(), wanted, "cut after {cut}");
            assert!(reconcile(&Table::default()).unwrap().failed.is_empty());
        }
    })
    .unwrap();
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn long_plans_and_long_lists_are_whole() {
    alone(|ipvs| {
        let of = |n: u16| {
            let dests = (0..10).map(|i| (dest(Family::V4, 10 * n + i), weight(1)));
            (key(n.into(), Family::V4), service(Scheduler::Rr, dests))
        };
        let many = (0..400).map(of);
        // One with more backends than one page of the kernel's list takes.
        let big = service(Scheduler::Mh, (0..1000).map(|i| (dest(Family::V6, i + 1), weight(1))));
        let wanted = table(many.chain([(key(7, Family::V6), big)]));
        assert_eq!(bring(ipvs, &wanted), 400 * 11 + 1002);
        assert_eq!(bring(ipvs, &wanted), 0);
    });
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn others_services_are_neither_seen_nor_touched() {
    alone(|ipvs| {
        let settings = Settings {
            scheduler: Scheduler::Rr,
            flags: SchedFlags::default(),
            timeout: 0,
        };
        let marks = [1, 256, MARK_BASE - 1, 0x6f00_0000, u32::MAX];
        let foreign = marks.map(|mark| Step::SetService {
            key: ServiceKey {
                mark,
                family: Family::V4,
            },
            settings,
            new: true,
        });
        assert!(ipvs.apply(&foreign).failed.is_empty());
        let by_address = ipvs.0.family().request(command::NEW_SERVICE, |w| {
            w.nest(top::SERVICE, |w| {
                // IPVS_SVC_ATTR_PROTOCOL, _ADDR, _PORT.
                w.bytes(svc::FAMILY, &AF_INET.to_ne_bytes())
                    .bytes(2, &6u16.to_ne_bytes())
                    .bytes(3, &[[10, 0, 0, 9], [0; 4], [0; 4], [0; 4]].concat())
                    .bytes(4, &80u16.to_be_bytes())
                    .string(svc::SCHED_NAME, "rr")
                    .bytes(svc::FLAGS, &[0; 8])
                    .bytes(svc::TIMEOUT, &[0; 4])
                    .bytes(svc::NETMASK, &[255; 4]);
            });
        });
        assert_eq!(ipvs.0.execute(&[by_address]).unwrap(), vec![Ok(())]);
        assert_eq!(ipvs.observe().unwrap(), Table::default());
        bring(ipvs, &all_there_is());
        bring(ipvs, &Table::default());
        let list = ipvs.0.family().request(command::GET_SERVICE, |_| {});
        assert_eq!(ipvs.0.dump(&list).unwrap().len(), foreign.len() + 1);
    });
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn namespaces_are_apart() {
    alone(|ipvs| {
        bring(ipvs, &all_there_is());
        alone(|other| assert_eq!(other.observe().unwrap(), Table::default()));
    });
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn what_others_did_since_the_look_is_no_failure() {
    alone(|ipvs| {
        let of = |n| (dest(Family::V4, n), weight(u32::from(n)));
        let wanted = table([(key(1, Family::V4), service(Scheduler::Mh, [of(1), of(2)]))]);
        // Somebody made the same with other settings.
        bring(
            ipvs,
            &table([(
                key(1, Family::V4),
                service(Scheduler::Rr, [(dest(Family::V4, 2), weight(9))]),
            )]),
        );
        let report = ipvs.apply(&plan(&Table::default(), &wanted));
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        assert_eq!(ipvs.observe().unwrap(), wanted);
        // Somebody removed it.
        let removal = plan(&wanted, &Table::default());
        for _ in 0..2 {
            assert!(ipvs.apply(&removal).failed.is_empty());
        }
        let gone = Step::RemoveDest {
            service: key(1, Family::V4),
            dest: dest(Family::V4, 1),
        };
        assert!(ipvs.apply(&[gone]).failed.is_empty());
    });
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --lane ipvs"]
fn a_refusal_is_that_of_its_step_alone_and_says_what_to_do() {
    alone(|ipvs| {
        let settings = |scheduler| Settings {
            scheduler,
            flags: SchedFlags::default(),
            timeout: 0,
        };
        let (one, two) = (key(1, Family::V4), key(2, Family::V6));
        let set = |service, dest, new| Step::SetDest {
            service,
            dest,
            value: weight(1),
            new,
        };
        let link_local = DestKey {
            address: "fe80::1".parse().unwrap(),
            port: 80,
        };
        let mixed = dest(Family::V4, 5);
        let make = |key, scheduler| Step::SetService {
            key,
            settings: settings(scheduler),
            new: true,
        };
        let steps = [
            make(one, Scheduler::Other),
            set(one, dest(Family::V4, 1), true),
            make(two, Scheduler::Rr),
            set(two, link_local, true),
            set(two, mixed, true),
            set(two, dest(Family::V6, 1), false),
            set(two, dest(Family::V6, 2), true),
            Step::SetTimeouts(Timeouts {
                tcp: u32::MAX,
                tcp_fin: 1,
                udp: 1,
            }),
        ];
        let report = ipvs.apply(&steps);
        assert_eq!(report.done, 2);
        assert_eq!(
            report.missing_schedulers().collect::<Vec<_>>(),
            [(one, Scheduler::Other)]
        );
        let failed: Vec<_> = report.failed.into_iter().map(|(_, e)| e).collect();
        assert!(
            matches!(
                &failed[..],
                [
                    StepError::NoScheduler(_),
                    StepError::NoService(_),
                    StepError::BadAddress(_),
                    StepError::BadAddress(_),
                    StepError::NoDest(..),
                    StepError::Refused(r),
                ] if r.errno == Errno::EINVAL
            ),
            "{failed:?}"
        );
        assert!(failed.iter().all(|e| e.to_string().contains("; try: ")), "{failed:?}");
        assert!(
            failed[0]
                .to_string()
                .contains("modprobe ip_vs_other (CONFIG_IP_VS_OTHER)"),
            "{}",
            failed[0]
        );
        let there = table([(two, service(Scheduler::Rr, [(dest(Family::V6, 2), weight(1))]))]);
        assert_eq!(ipvs.observe().unwrap(), there);
    });
}
