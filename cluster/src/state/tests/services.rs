//! Services, tasks and the numbers that they hold.

use model::intent::SlotSet;

use super::*;

#[test]
fn a_service_lives() {
    let mut log = Log::new(2);
    log.ok(network(
        "app",
        model::NetworkSpec {
            ipv6: true,
            ..subnet("10.77.0.0/16")
        },
    ));
    log.ok(Command::CreateService {
        name: name("web"),
        spec: model::ServiceSpec {
            networks: vec![name("app")],
            replicas: 2,
            command: vec!["serve".into()],
            ..Default::default()
        },
    });
    let s = log.service("web");
    assert_eq!((s.index, s.generation, s.problem.clone()), (1, log.index, None));
    let vip = s.vips[&name("app")];
    assert_eq!(vip.v4.to_string(), "10.77.0.1");
    assert_eq!(vip.v6.unwrap().to_string(), "fd12:3456:789a::1");
    assert_eq!(log.placed("web"), "n1=[(1, 1)] n2=[(2, 2)]");
    let created = log.index;

    log.ok(Command::Publish {
        service: name("web"),
        port: "80:8080".parse().unwrap(),
    });
    assert_eq!(log.service("web").ports["80/tcp"].mark, 1);
    log.ok(scale("web", 5));
    assert_eq!(log.placed("web"), "n1=[(1, 1), (3, 3)] n2=[(2, 2), (4, 4)] n3=[(5, 5)]");
    assert_eq!(log.service("web").generation, created, "what runs is not replaced");
    let revision = log.state.intent().revision;
    log.ok(scale("web", 5));
    assert_eq!(log.state.intent().revision, revision, "nothing changed, nobody is told");

    log.ok(Command::UpdateService {
        name: name("web"),
        update: ServiceUpdate {
            env: Some(BTreeMap::from([("A".into(), "b".into())])),
            networks: Some(vec![name("app"), name("default")]),
            ..Default::default()
        },
    });
    let s = log.service("web");
    assert_eq!(s.generation, log.index, "its tasks are replaced");
    assert_eq!(s.vips[&name("app")], vip, "the VIP stays");
    assert_eq!(s.vips[&name("default")].v4.to_string(), "10.128.0.1");
    assert_eq!(s.ports["80/tcp"].mark, 1);

    log.ok(Command::Unpublish {
        service: name("web"),
        port: "80".parse().unwrap(),
    });
    log.ok(Command::Publish {
        service: name("web"),
        port: "80".parse().unwrap(),
    });
    assert_eq!(log.service("web").ports["80/tcp"].mark, 2, "the old mark rests");
    log.ok(Command::RemoveService { name: name("web") });
    assert_eq!(log.placed("web"), "");
    log.ok(service("next", 1, &["80"]));
    let s = log.service("next");
    assert_eq!(
        (s.index, s.vips[&name("default")].v4.to_string().as_str()),
        (2, "10.128.0.2")
    );
    assert_eq!(log.placed("next"), "n1=[(1, 1)]");
}

#[test]
fn tasks_follow_nodes() {
    let mut log = Log::new(2);
    let down = |n, down| Command::SetNodeDown { node: NodeId(n), down };
    let avail = |n, availability| Command::SetAvailability {
        node: NodeId(n),
        availability,
    };
    use model::intent::Availability::*;
    log.ok(service("web", 3, &[]));
    assert_eq!(log.placed("web"), "n1=[(1, 1)] n2=[(2, 2)] n3=[(3, 3)]");
    log.ok(down(2, true));
    assert_eq!(log.placed("web"), "n1=[(1, 2)] n3=[(3, 3)]");
    log.ok(down(2, false));
    assert_eq!(log.placed("web"), "n1=[(1, 2)] n3=[(3, 3)]", "nothing moves back");
    log.ok(service("more", 1, &[]));
    assert_eq!(log.placed("more"), "n2=[(1, 1)]", "the emptiest");
    log.ok(avail(1, Drain));
    assert_eq!(log.placed("web"), "n2=[(1, 1)] n3=[(2, 3)]");
    let leaving = |log: &Log| format!("{:?}", log.state.intent().leaving.get(&name("web")));
    assert_eq!(
        leaving(&log),
        "Some({NodeId(1): SlotSet([(1, 2)])})",
        "they go on there until they are ready elsewhere"
    );
    let release = |slots| Command::Release {
        service: name("web"),
        node: NodeId(1),
        slots: SlotSet(slots),
    };
    log.ok(release(vec![(2, 2)]));
    assert_eq!(leaving(&log), "Some({NodeId(1): SlotSet([(1, 1)])})");
    log.ok(Command::RemoveNode { node: NodeId(3) });
    assert_eq!(log.placed("web"), "n2=[(1, 3)]");
    log.ok(down(2, true));
    assert_eq!(log.placed("web"), "");
    let problem = log.service("web").problem.clone().unwrap();
    assert!(problem.starts_with("3 of 3 tasks have no node"), "{problem}");
    log.ok(avail(1, Active));
    assert_eq!(log.placed("web"), "n1=[(1, 3)]", "placed as soon as there is a node");
    assert_eq!(log.service("web").problem, None);
    log.ok(avail(1, Pause));
    log.ok(scale("web", 4));
    assert_eq!(log.placed("web"), "n1=[(1, 3)]");
    assert!(log.service("web").problem.is_some());
    log.ok(Command::AddNode(node(8, Role::Worker)));
    assert_eq!(log.placed("web"), "n1=[(1, 3)] n4=[(4, 4)]");
    log.ok(Command::UpdateService {
        name: name("web"),
        update: ServiceUpdate {
            command: Some(vec![]),
            ..Default::default()
        },
    });
    assert_eq!(log.placed("web"), "", "without a command an orchestrator places");
}

#[test]
fn what_fails_on_a_node_goes_elsewhere_if_it_may() {
    let mut log = Log::new(2);
    log.ok(service("web", 6, &[]));
    let avoid = |node: u64, slots: &[u32]| Command::Avoid {
        service: name("web"),
        node: NodeId(node),
        slots: slots.iter().copied().collect(),
    };
    let at = |log: &Log, n: u64| {
        log.state
            .intent
            .slots(&name("web"), NodeId(n))
            .cloned()
            .unwrap_or_default()
    };
    let slots = |of: &[u32]| of.iter().copied().collect::<SlotSet>();
    // The others of the same service stay there.
    log.ok(avoid(1, &[2, 9]));
    assert_eq!(
        (at(&log, 1), at(&log, 2), at(&log, 3)),
        (slots(&[1]), slots(&[2, 3, 4]), slots(&[5, 6]))
    );
    assert_eq!(log.ok(avoid(1, &[2])), Applied::Unchanged);
    log.ok(scale("web", 9));
    assert_eq!(at(&log, 1), slots(&[1]), "nothing new comes there");
    log.ok(avoid(2, &[2]));
    assert!(at(&log, 3).contains(2));
    let refusal = log.no(avoid(3, &[2, 5]));
    assert!(refusal.message.contains("no other node"), "{refusal:?}");
    // After ten minutes it is tried again.
    log.time += crate::state::avoid::AVOID_MS;
    log.ok(avoid(3, &[2]));
    assert!(at(&log, 1).contains(2));
    log.ok(Command::RemoveService { name: name("web") });
    log.ok(service("web", 3, &[]));
    assert_eq!(at(&log, 3).len(), 1, "a new service of the name is not kept away");
}

#[test]
fn numbers_rest_in_log_time() {
    let mut log = Log::new(1);
    let vni = Vni::try_from(4096).unwrap();
    let blocks = log.state.intent.networks[&name("default")].block_numbers();
    let get = |n| Command::AssignBlock { node: NodeId(n), vni };
    assert_eq!(log.ok(get(2)), Applied::Block(blocks.start));
    assert_eq!(log.ok(get(1)), Applied::Block(blocks.start + 1));
    log.ok(Command::RemoveNode { node: NodeId(2) });
    assert_eq!(log.state.intent.blocks[&vni].len(), 1, "its blocks are gone");
    // A small network shows the rest: it has one VIP block and 15 others.
    log.ok(network("small", subnet("10.77.0.0/24")));
    let small = log.state.intent.networks[&name("small")].vni;
    let get = Command::AssignBlock {
        node: NodeId(1),
        vni: small,
    };
    for n in 1..16 {
        assert_eq!(log.ok(get.clone()), Applied::Block(n));
    }
    let e = log.no(get.clone());
    assert!(e.message.contains("all 15"), "{e}");
    let back = Command::ReleaseBlocks {
        node: NodeId(1),
        vni: small,
        blocks: vec![3, 99],
    };
    log.ok(back.clone());
    assert_eq!(log.ok(back), Applied::Unchanged);
    log.time += BLOCK_REST_MS - 1;
    log.no(get.clone());
    log.time += 1;
    assert_eq!(log.ok(get), Applied::Block(3));

    let on_small = |s: &str| Command::CreateService {
        name: name(s),
        spec: model::ServiceSpec {
            networks: vec![name("small")],
            publish: vec!["80".parse().unwrap()],
            ..Default::default()
        },
    };
    for n in 1..16 {
        let mut c = on_small(&format!("s{n}"));
        if let Command::CreateService { spec, .. } = &mut c {
            spec.publish.clear();
        }
        log.ok(c);
    }
    let e = log.no(on_small("s16"));
    assert!(e.message.contains("no free VIP") && e.hint.contains("--subnet"), "{e}");
    assert_eq!(log.state.marks.used(), 0, "the mark of the refused one was taken back");
    log.ok(Command::RemoveService { name: name("s4") });
    log.time += REST_MS - 1;
    log.no(on_small("s16"));
    log.time += 1;
    log.ok(on_small("s16"));
    assert_eq!(log.service("s16").vips[&name("small")].v4.to_string(), "10.77.0.4");
    log.time = 0;
    log.ok(scale("s16", 0));
    assert!(log.state.now_ms() > REST_MS, "log time never goes back");
}

/// A slot set of one range.
fn range(from: u32, to: u32) -> SlotSet {
    SlotSet(vec![(from, to)])
}

fn web(command: &str, networks: &[&str]) -> model::ServiceSpec {
    model::ServiceSpec {
        networks: networks.iter().map(|n| name(n)).collect(),
        replicas: 4,
        command: vec![command.into()],
        ..Default::default()
    }
}

#[test]
fn what_a_service_says_of_its_traffic_is_checked_and_changed_around_its_tasks() {
    let mut log = Log::new(1);
    let make = |spec: model::ServiceSpec| Command::CreateService {
        name: name("web"),
        spec,
    };
    let from = |nets: &[&str]| model::ServiceSpec {
        allow_from: nets.iter().map(|n| n.parse().unwrap()).collect(),
        ..web("a", &[])
    };
    let many: Vec<String> = (0..257).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (nets, word) in [
        (&["192.0.2.1/24"][..], "192.0.2.0/24"),
        (&["::ffff:192.0.2.0/120"], "never seen"),
        (&many, "256 sources"),
    ] {
        let e = log.no(make(from(nets)));
        assert!(e.message.contains(word) || e.hint.contains(word), "{e}");
    }
    let mut late = web("a", &[]);
    late.timeouts.udp_s = Some(0);
    assert!(log.no(make(late)).message.contains("between 1 s and 24 days"));
    log.ok(make(from(&["0.0.0.0/0", "2001:db8::/32"])));
    let made = log.service("web").generation;
    let mut other = from(&["192.0.2.0/24"]);
    other.source_ip = model::spec::SourceIp::Masquerade;
    other.timeouts.tcp_s = Some(60);
    log.replace("web", other.clone());
    let s = log.service("web");
    assert_eq!(s.generation, made, "no task is replaced");
    let said = |s: &model::ServiceSpec| (s.source_ip, s.allow_from.clone(), s.timeouts);
    assert_eq!(said(&s.spec), said(&other));
}

impl Log {
    fn replace(&mut self, s: &str, spec: model::ServiceSpec) {
        let seen = self.service(s).changed;
        self.ok(Command::ReplaceService {
            name: name(s),
            spec,
            seen,
        });
    }

    fn advance(&mut self, slots: SlotSet, surge: SlotSet) -> Applied {
        let generation = self.service("web").generation;
        self.ok(Command::Advance {
            service: name("web"),
            generation,
            slots,
            surge,
        })
    }

    fn end(&mut self, end: RolloutEnd) {
        let generation = self.service("web").generation;
        self.ok(Command::EndRollout {
            service: name("web"),
            generation,
            end,
            message: "why".into(),
        });
    }
}

#[test]
fn a_rollout_is_ranges() {
    let mut log = Log::new(1);
    log.ok(Command::CreateService {
        name: name("web"),
        spec: web("a", &[]),
    });
    let (a, changed) = (log.service("web").generation, log.service("web").changed);
    let refused = log.no(Command::Rollback { name: name("web") });
    assert!(refused.message.contains("nothing to go back to"), "{refused}");

    log.replace("web", web("b", &["default"]));
    let b = log.service("web").generation;
    let stale = log.no(Command::ReplaceService {
        name: name("web"),
        spec: web("c", &[]),
        seen: changed,
    });
    assert!(stale.message.contains("changed meanwhile"), "{stale}");
    let slot = |log: &Log, n| log.service("web").template(n).1;
    assert_eq!(
        [1, 4, 9].map(|n| slot(&log, n)),
        [a, a, b],
        "who comes anew gets what is new"
    );
    log.advance(range(1, 2), SlotSet::default());
    assert_eq!([1, 2, 3, 4].map(|n| slot(&log, n)), [b, b, a, a]);
    // What another leader decided for another generation counts no more.
    let late = Command::Advance {
        service: name("web"),
        generation: a,
        slots: range(3, 4),
        surge: SlotSet::default(),
    };
    assert_eq!(log.ok(late), Applied::Unchanged);
    log.ok(scale("web", 6));
    assert_eq!(slot(&log, 6), b);
    assert_eq!(
        log.service("web").previous.as_ref().map(|p| p.replicas),
        Some(6),
        "a size is no part of it"
    );

    log.ok(Command::Rollback { name: name("web") });
    assert_eq!(log.service("web").generation, a, "what was not replaced stays");
    assert_eq!([1, 2, 3, 6].map(|n| slot(&log, n)), [b, b, a, b]);
    log.advance(SlotSet(vec![(1, 2), (5, 6)]), SlotSet::default());
    log.end(RolloutEnd::Completed);
    let s = log.service("web");
    assert_eq!(
        s.rollout.as_ref().unwrap().state,
        model::intent::RolloutState::RollbackCompleted
    );
    assert_eq!(s.previous.as_ref().unwrap().command, ["b"]);
}

#[test]
fn surge_comes_and_goes() {
    let mut log = Log::new(1);
    log.ok(Command::CreateService {
        name: name("web"),
        spec: web("a", &[]),
    });
    log.replace("web", web("b", &[]));
    log.advance(SlotSet::default(), range(5, 6));
    assert_eq!(log.placed("web"), "n1=[(1, 2), (5, 5)] n2=[(3, 4), (6, 6)]");
    // A service that grows takes them over.
    log.ok(scale("web", 5));
    assert_eq!(log.service("web").rollout.as_ref().unwrap().surge, range(6, 6));
    log.ok(scale("web", 2));
    let placed = log.placed("web");
    assert_eq!(
        placed, "n1=[(1, 1)] n2=[(3, 3), (6, 6)]",
        "the smaller service keeps it"
    );
    log.advance(range(1, 4), range(6, 6));
    log.end(RolloutEnd::Completed);
    assert_eq!(log.placed("web"), "n1=[(1, 1)] n2=[(3, 3)]");
}

#[test]
fn networks_are_left_when_the_last_task_has() {
    let mut log = Log::new(1);
    log.ok(network("one", subnet("10.77.0.0/24")));
    log.ok(network("two", subnet("10.78.0.0/24")));
    log.ok(Command::CreateService {
        name: name("web"),
        spec: web("a", &["one"]),
    });
    let one = log.service("web").vips[&name("one")];
    log.replace("web", web("a", &["two"]));
    let vips: Vec<&Name> = log.service("web").vips.keys().collect();
    assert_eq!(vips, [&name("one"), &name("two")]);
    assert_eq!(log.service("web").vips[&name("one")], one);
    let used = log.no(Command::RemoveNetwork { name: name("one") });
    assert!(used.message.contains("used by"), "{used}");
    log.advance(range(1, 4), SlotSet::default());
    log.end(RolloutEnd::Completed);
    let vips: Vec<&Name> = log.service("web").vips.keys().collect();
    assert_eq!(vips, [&name("two")]);
    log.ok(Command::RemoveNetwork { name: name("one") });
    // What it would go back to is no more.
    let gone = log.no(Command::Rollback { name: name("web") });
    assert!(gone.message.contains("network one"), "{gone}");
}

#[test]
fn failures_lead_back_or_stop() {
    let mut log = Log::new(1);
    log.ok(Command::CreateService {
        name: name("web"),
        spec: web("a", &[]),
    });
    use model::intent::RolloutState::*;
    let state = |log: &Log| {
        log.service("web")
            .rollout
            .as_ref()
            .map(|r| (r.state, r.message.clone()))
    };
    log.replace("web", web("b", &[]));
    log.advance(range(1, 1), SlotSet::default());
    log.end(RolloutEnd::RolledBack);
    assert_eq!(state(&log), Some((RollbackStarted, "why".into())));
    assert_eq!(log.service("web").spec.command, ["a"]);
    log.end(RolloutEnd::RolledBack);
    assert_eq!(
        state(&log).unwrap().0,
        RollbackPaused,
        "there is no way back from a way back"
    );
    log.replace("web", web("a", &[]));
    assert_eq!(
        state(&log),
        Some((RollbackStarted, String::new())),
        "asked for again, it goes on"
    );
    log.end(RolloutEnd::Completed);
    let none = log.no(Command::Rollback { name: name("web") });
    assert!(none.message.contains("nothing to go back to"), "{none}");
}
