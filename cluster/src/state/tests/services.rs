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
