use ipnet::Ipv4Net;
use model::{Code, intent::Role};
use proptest::prelude::*;

use super::*;
use crate::ipam::{BLOCK_REST_MS, REST_MS};

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn node(n: u8, role: Role) -> NewNode {
    NewNode {
        hostname: format!("host{n}"),
        role,
        key: vec![n; 32],
        rpc: (role == Role::Manager).then(|| format!("198.18.0.{n}:2377")),
    }
}

fn init() -> Command {
    Command::InitCluster(InitCluster {
        cluster: "0123456789abcdef0123456789abcdef".into(),
        node: node(1, Role::Manager),
        settings: model::ClusterSettings {
            default_addr_pool6: Some("fd12:3456:789a::/48".parse().unwrap()),
            ..Default::default()
        },
        default_network: model::NetworkSpec::default(),
        avoid: vec![],
        secrets: BTreeMap::from([("ca".into(), Secret(vec![7; 40]))]),
    })
}

/// A state machine and what a leader adds to commands.
pub(super) struct Log {
    pub(super) state: State,
    index: u64,
    time: u64,
}

impl Log {
    /// One manager and `workers` workers.
    pub(super) fn new(workers: u8) -> Log {
        let mut log = Log {
            state: State::default(),
            index: 0,
            time: 0,
        };
        log.ok(init());
        for n in 0..workers {
            log.ok(Command::AddNode(node(n + 2, Role::Worker)));
        }
        log
    }

    fn run(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let envelope = Envelope {
            request: self.index.into(),
            time_ms: self.time,
            command,
        };
        let read = Envelope::decode(&envelope.encode().unwrap()).unwrap();
        assert_eq!(read, envelope);
        let before = self.state.clone();
        let outcome = self.state.apply(self.index, &read);
        if outcome.is_err() {
            assert_eq!(*before.intent, *self.state.intent, "refused, but changed");
        }
        check(&self.state);
        outcome
    }

    pub(super) fn ok(&mut self, command: Command) -> Applied {
        match self.run(command.clone()) {
            Ok((_, applied)) => applied,
            Err(e) => panic!("{command:?}: {e}"),
        }
    }

    pub(super) fn no(&mut self, command: Command) -> Refusal {
        match self.run(command.clone()) {
            Ok(a) => panic!("{command:?} was not refused: {a:?}"),
            Err(e) => e,
        }
    }

    fn service(&self, s: &str) -> &model::intent::Service {
        &self.state.intent.services[&name(s)]
    }

    /// `n1=1-2 n2=3`
    fn placed(&self, s: &str) -> String {
        let Some(p) = self.state.intent.placements.get(&name(s)) else {
            return String::new();
        };
        let parts: Vec<String> = p.iter().map(|(n, s)| format!("{n}={:?}", s.0)).collect();
        parts.join(" ")
    }
}

fn network(s: &str, spec: model::NetworkSpec) -> Command {
    Command::CreateNetwork {
        name: name(s),
        spec,
        avoid: vec!["192.168.0.0/16".parse().unwrap(), "0.0.0.0/0".parse().unwrap()],
    }
}

fn subnet(s: &str) -> model::NetworkSpec {
    model::NetworkSpec {
        subnet: Some(s.parse().unwrap()),
        ..Default::default()
    }
}

fn service(s: &str, replicas: u32, publish: &[&str]) -> Command {
    Command::CreateService {
        name: name(s),
        spec: model::ServiceSpec {
            replicas,
            command: vec!["serve".into()],
            publish: publish.iter().map(|p| p.parse().unwrap()).collect(),
            ..Default::default()
        },
    }
}

fn scale(s: &str, replicas: u32) -> Command {
    Command::Scale {
        name: name(s),
        replicas,
    }
}

/// What must hold after every entry.
fn check(state: &State) {
    let i = &*state.intent;
    let mut subnets: Vec<Ipv4Net> = Vec::new();
    let mut vips = std::collections::BTreeSet::new();
    let mut marks = std::collections::BTreeSet::new();
    let mut indices = std::collections::BTreeSet::new();
    let mut ports = std::collections::BTreeSet::new();
    for net in i.networks.values() {
        for other in &subnets {
            assert!(!net.subnet.contains(other) && !other.contains(&net.subnet));
        }
        subnets.push(net.subnet);
    }
    for (name, s) in &i.services {
        assert!(indices.insert(s.index));
        assert_eq!(s.vips.len(), s.spec.networks.len(), "a VIP a network");
        for (net, vip) in &s.vips {
            let network = &i.networks[net];
            let offset = network.offset(vip.v4).unwrap();
            assert!((1..network.vip_pool()).contains(&offset));
            assert_eq!(vip.v6, network.v6(offset));
            assert!(vips.insert((network.vni, offset)));
        }
        assert_eq!(s.ports.len(), s.spec.publish.len());
        for (key, p) in &s.ports {
            assert!(s.spec.publish.contains(&p.spec) && p.spec.key() == *key);
            assert!(ports.insert(key.clone()) && marks.insert(p.mark));
        }
        let placed = i.placements.get(name);
        let slots: Vec<u32> = placed.into_iter().flatten().flat_map(|(_, s)| s.iter()).collect();
        let unique: std::collections::BTreeSet<u32> = slots.iter().copied().collect();
        assert_eq!(unique.len(), slots.len(), "a slot in two places");
        match s.spec.command.is_empty() {
            true => assert!(slots.is_empty()),
            false if s.problem.is_none() => assert_eq!(slots.len() as u32, s.spec.replicas),
            false => assert!((slots.len() as u32) < s.spec.replicas),
        }
        for node in placed.into_iter().flatten().map(|(n, _)| n) {
            let node = &i.nodes[node];
            assert!(!node.down && node.availability != model::intent::Availability::Drain);
        }
    }
    assert!(i.placements.keys().all(|n| i.services.contains_key(n)));
    for (vni, blocks) in &i.blocks {
        let (_, net) = i.network_by_vni(*vni).expect("blocks of a network that is gone");
        for (number, owner) in blocks {
            assert!(net.block_numbers().contains(number) && i.nodes.contains_key(owner));
        }
    }
    let again = State::decode(&state.encode().unwrap()).unwrap();
    assert_eq!(again, *state, "derived parts agree after a snapshot");
}

#[test]
fn a_cluster_begins() {
    let mut log = Log {
        state: State::default(),
        index: 0,
        time: 5,
    };
    assert_eq!(log.no(Command::AddNode(node(2, Role::Worker))).code, Code::NoCluster);
    assert_eq!(log.ok(init()), Applied::Node(NodeId(1)));
    let i = log.state.intent();
    assert_eq!((i.revision, i.cluster.len()), (2, 32));
    let net = &i.networks[&name("default")];
    assert_eq!(
        (net.subnet.to_string().as_str(), net.vni.get()),
        ("10.128.0.0/16", 4096)
    );
    assert_eq!(log.state.secret("ca"), Some(&[7u8; 40][..]));
    assert!(!format!("{:?}", log.state).contains("7, 7"), "secrets stay out of logs");
    assert_eq!(log.no(init()).code, Code::Conflict);
    assert_eq!(log.state.intent().revision, 2, "a refusal has no revision");
}

#[test]
fn a_node_is_known_by_its_key() {
    let mut log = Log::new(1);
    let mut again = node(2, Role::Worker);
    again.hostname = "renamed".into();
    assert_eq!(log.ok(Command::AddNode(again)), Applied::Node(NodeId(2)));
    assert_eq!(log.state.intent.nodes[&NodeId(2)].hostname, "renamed");
    assert_eq!(log.no(Command::AddNode(node(2, Role::Manager))).code, Code::Conflict);
    log.ok(Command::RemoveNode { node: NodeId(2) });
    assert_eq!(
        log.ok(Command::AddNode(node(2, Role::Worker))),
        Applied::Node(NodeId(3)),
        "ids are never used again"
    );
    let e = log.no(Command::RemoveNode { node: NodeId(1) });
    assert!(e.message.contains("last manager"), "{e}");
    let e = log.no(Command::RemoveNode { node: NodeId(2) });
    assert!(e.message.contains("n1, n3"), "lists what exists: {e}");
    let mut short = node(9, Role::Worker);
    short.key.pop();
    assert_eq!(log.no(Command::AddNode(short)).code, Code::Invalid);
}

#[test]
fn a_retry_is_applied_once() {
    let mut log = Log::new(0);
    let envelope = Envelope {
        request: 77,
        time_ms: 0,
        command: service("web", 1, &["80"]),
    };
    let first = log.state.apply(10, &envelope);
    assert_eq!(first, Ok((10, Applied::Service { index: 1 })));
    let before = log.state.intent();
    assert_eq!(log.state.apply(11, &envelope), first);
    assert_eq!(log.state.intent(), before);
    let refused = Envelope {
        request: 78,
        ..envelope
    };
    let no = log.state.apply(12, &refused);
    assert!(no.is_err());
    log.state
        .apply(
            13,
            &Envelope {
                request: 79,
                time_ms: 0,
                command: Command::RemoveService { name: name("web") },
            },
        )
        .unwrap();
    assert_eq!(log.state.apply(14, &refused), no, "also a refusal is remembered");
    assert_eq!(log.state.applied(), 14);
}

#[test]
fn what_is_refused_says_why() {
    let mut log = Log::new(1);
    log.ok(network("app", subnet("10.77.0.0/16")));
    log.ok(service("web", 2, &["80", "53/udp"]));
    let six = |s: &str| model::NetworkSpec {
        subnet6: Some(s.parse().unwrap()),
        ..Default::default()
    };
    log.ok(network("six", six("fd00:77::/64")));
    let with = |f: &dyn Fn(&mut model::ServiceSpec)| {
        let mut spec = model::ServiceSpec::default();
        f(&mut spec);
        Command::CreateService { name: name("x"), spec }
    };
    let publish = |s: &str, p: &str| Command::Publish {
        service: name(s),
        port: p.parse().unwrap(),
    };
    let unpublish = |s: &str, p: &str| Command::Unpublish {
        service: name(s),
        port: p.parse().unwrap(),
    };
    use Code::{Conflict, Invalid, NotFound};
    // (command, code, what the message names)
    let table = [
        (network("app", subnet("10.78.0.0/16")), Conflict, "app exists already"),
        (
            network("b", subnet("10.77.4.0/24")),
            Conflict,
            "the network app (10.77.0.0/16)",
        ),
        (network("b", subnet("10.0.0.0/8")), Conflict, "the network"),
        (
            network("b", subnet("192.168.4.0/24")),
            Conflict,
            "route to 192.168.0.0/16",
        ),
        (network("b", subnet("10.78.1.0/16")), Invalid, "10.78.0.0/16"),
        (network("b", subnet("10.78.1.0/25")), Invalid, "/8 and /24"),
        (network("b", six("fd00:77::/56")), Conflict, "the network six"),
        (
            network(
                "b",
                model::NetworkSpec {
                    mtu: Some(1000),
                    ipv6: true,
                    ..Default::default()
                },
            ),
            Invalid,
            "1280",
        ),
        (
            network(
                "b",
                model::NetworkSpec {
                    vni: Vni::try_from(4097).ok(),
                    ..Default::default()
                },
            ),
            Conflict,
            "the network app has it",
        ),
        (Command::RemoveNetwork { name: name("default") }, Conflict, "stays"),
        (
            Command::RemoveNetwork { name: name("nope") },
            NotFound,
            "app, default, six",
        ),
        (service("web", 1, &[]), Conflict, "web exists already"),
        (service("x", 1, &["80:8080"]), Conflict, "published by the service web"),
        (service("x", 1, &["81", "81:82"]), Invalid, "81/tcp is published twice"),
        (service("x", 1_000_001, &[]), Invalid, "1000000"),
        (
            with(&|s| s.networks = vec![name("nope")]),
            NotFound,
            "networks: app, default, six",
        ),
        (
            with(&|s| s.networks = vec![name("app"), name("app")]),
            Invalid,
            "named twice",
        ),
        (
            with(&|s| s.env = BTreeMap::from([("A=B".into(), String::new())])),
            Invalid,
            "A=B",
        ),
        (with(&|s| s.command = vec!["a\0b".into()]), Invalid, "NUL"),
        (scale("web", u32::MAX), Invalid, "1000000"),
        (scale("nope", 1), NotFound, "services: web"),
        (publish("web", "80:81"), Conflict, "web publishes 80/tcp already"),
        (unpublish("web", "81"), NotFound, "it publishes: 53/udp, 80/tcp"),
        (
            Command::AssignBlock {
                node: NodeId(9),
                vni: Vni::try_from(4096).unwrap(),
            },
            NotFound,
            "n9",
        ),
        (
            Command::AssignBlock {
                node: NodeId(1),
                vni: Vni::try_from(5000).unwrap(),
            },
            NotFound,
            "5000",
        ),
    ];
    for (command, code, text) in table {
        let e = log.no(command.clone());
        assert_eq!(e.code, code, "{command:?}: {e}");
        assert!(e.message.contains(text), "{command:?}: {e}");
        assert!(!e.hint.is_empty());
    }
    log.ok(Command::CreateService {
        name: name("onapp"),
        spec: model::ServiceSpec {
            networks: vec![name("app")],
            ..Default::default()
        },
    });
    let e = log.no(Command::RemoveNetwork { name: name("app") });
    assert!(e.message.contains("onapp"), "{e}");
    assert_eq!(log.ok(publish("web", "80")), Applied::Unchanged);
    let e = log.no(unpublish("onapp", "80"));
    assert!(e.message.contains("web does"), "{e}");
}

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

/// Commands that mostly make sense, on few names, so that they meet.
fn any_command() -> impl Strategy<Value = Command> {
    let n = 0usize..4;
    let services = ["a", "b", "c", "d"];
    let nets = ["default", "red", "blue", "nope"];
    let svc = n.clone().prop_map(move |i| name(services[i]));
    let net = n.prop_map(move |i| name(nets[i]));
    let port = (80u16..84, 80u16..82, any::<bool>()).prop_map(|(published, target, udp)| model::PortSpec {
        published,
        target,
        proto: if udp { model::Proto::Udp } else { model::Proto::Tcp },
    });
    let id = (1u64..6).prop_map(NodeId);
    let avail = prop::sample::select(vec![
        model::intent::Availability::Active,
        model::intent::Availability::Pause,
        model::intent::Availability::Drain,
    ]);
    let spec = (
        prop::collection::vec(net.clone(), 0..3),
        0u32..9,
        any::<bool>(),
        prop::collection::vec(port.clone(), 0..3),
    )
        .prop_map(|(networks, replicas, cmd, publish)| model::ServiceSpec {
            networks,
            replicas,
            command: if cmd { vec!["x".into()] } else { vec![] },
            publish,
            ..Default::default()
        });
    let net_spec = (any::<bool>(), prop::option::of(0u8..3)).prop_map(|(ipv6, third)| model::NetworkSpec {
        subnet: third.map(|t| format!("10.77.{t}.0/24").parse().unwrap()),
        ipv6,
        ..Default::default()
    });
    let vni = (4096u32..4100).prop_map(|v| Vni::try_from(v).unwrap());
    prop_oneof![
        (1u8..9).prop_map(|n| Command::AddNode(node(n, if n == 1 { Role::Manager } else { Role::Worker }))),
        id.clone().prop_map(|node| Command::RemoveNode { node }),
        (id.clone(), any::<bool>()).prop_map(|(node, manager)| Command::SetRole {
            node,
            role: if manager { Role::Manager } else { Role::Worker },
            rpc: manager.then(|| "198.18.0.9:2377".to_owned()),
        }),
        (id.clone(), 1u64..4).prop_map(|(node, old)| Command::RenewRaft { node, old }),
        (id.clone(), any::<bool>()).prop_map(|(node, down)| Command::SetNodeDown { node, down }),
        (id.clone(), avail).prop_map(|(node, availability)| Command::SetAvailability { node, availability }),
        (net.clone(), net_spec).prop_map(|(name, spec)| Command::CreateNetwork {
            name,
            spec,
            avoid: vec![]
        }),
        net.prop_map(|name| Command::RemoveNetwork { name }),
        (svc.clone(), spec.clone()).prop_map(|(name, spec)| Command::CreateService { name, spec }),
        (svc.clone(), spec).prop_map(|(name, s)| Command::UpdateService {
            name,
            update: ServiceUpdate {
                networks: Some(s.networks),
                replicas: Some(s.replicas),
                command: Some(s.command),
                publish: Some(s.publish),
                ..Default::default()
            },
        }),
        (svc.clone(), 0u32..20).prop_map(|(name, replicas)| Command::Scale { name, replicas }),
        svc.clone().prop_map(|name| Command::RemoveService { name }),
        (svc.clone(), port.clone()).prop_map(|(service, port)| Command::Publish { service, port }),
        (svc, port).prop_map(|(service, port)| Command::Unpublish { service, port }),
        (id.clone(), vni.clone()).prop_map(|(node, vni)| Command::AssignBlock { node, vni }),
        (id, vni, prop::collection::vec(0u32..20, 0..4)).prop_map(|(node, vni, blocks)| Command::ReleaseBlocks {
            node,
            vni,
            blocks
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever the order: the invariants hold after each entry, refusals change nothing, a second machine that reads a
    /// snapshot in the middle ends in the same state, and deltas of the intent add up to it.
    #[test]
    fn any_order(commands in prop::collection::vec((any_command(), 0u64..200_000), 1..60), cut in 0usize..60) {
        let mut log = Log::new(2);
        let mut other = log.state.clone();
        let mut follower = (*log.state.intent()).clone();
        for (at, (command, step)) in commands.into_iter().enumerate() {
            log.time += step;
            let outcome = log.run(command.clone());
            let envelope = Envelope { request: log.index.into(), time_ms: log.time, command };
            prop_assert_eq!(other.apply(log.index, &envelope), outcome);
            if at == cut {
                other = State::decode(&other.encode().unwrap()).unwrap();
            }
            let delta = follower.delta_to(&log.state.intent());
            prop_assert!(follower.apply(delta));
            prop_assert_eq!(&follower, &*log.state.intent());
        }
        prop_assert_eq!(other, log.state);
    }

    /// Octets from outside are read or refused, never worse.
    #[test]
    fn garbage_is_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Envelope::decode(&bytes);
        let _ = State::decode(&bytes);
        bytes.insert(0, 1);
        let _ = Envelope::decode(&bytes);
        let _ = State::decode(&bytes);
    }
}

#[test]
fn formats_are_told_apart() {
    let e = Envelope {
        request: 1,
        time_ms: 2,
        command: scale("web", 3),
    };
    let mut bytes = e.encode().unwrap();
    bytes[0] = 9;
    assert_eq!(Envelope::decode(&bytes), Err(CodecError::Newer(9)));
    bytes[0] = 1;
    bytes.push(0);
    assert!(matches!(Envelope::decode(&bytes), Err(CodecError::Malformed(_))));
    assert!(Envelope::decode(&[]).is_err());
    let long = Envelope {
        command: Command::SetSecrets(BTreeMap::from([("x".into(), Some(Secret(vec![0; MAX_COMMAND])))])),
        ..e
    };
    assert!(matches!(long.encode(), Err(CodecError::TooLong(_))));
}

fn update(changes: &[(&str, &str)]) -> Command {
    let changes = changes
        .iter()
        .map(|(k, v)| model::settings::Change::parse(k, v).unwrap());
    Command::UpdateSettings(changes.collect())
}

#[test]
fn settings_change_all_together_or_not_at_all() {
    let mut log = Log::new(1);
    let before = log.state.intent();
    assert_eq!(before.settings.node_grace_ms, 10_000);
    let applied = log.ok(update(&[("node-grace", "3s"), ("task-history-limit", "9")]));
    assert_eq!(applied, Applied::Done);
    let after = log.state.intent();
    assert_eq!(
        (after.settings.node_grace_ms, after.settings.task_history_limit),
        (3_000, 9)
    );
    assert_eq!(after.revision, log.index);
    // Nodes get it as an increment, and the same again is no news.
    let mut known = (*before).clone();
    assert!(known.apply(before.delta_to(&after)));
    assert_eq!(known, *after);
    assert_eq!(log.ok(update(&[("node-grace", "3s")])), Applied::Unchanged);
    assert_eq!(log.state.intent().revision, after.revision);

    let out_of_range = model::settings::Change {
        key: model::settings::Key::TaskHistoryLimit,
        value: model::settings::Value::Count(0),
    };
    let Command::UpdateSettings(mut both) = update(&[("node-grace", "4s")]) else {
        panic!("no update")
    };
    both.push(out_of_range);
    let e = log.no(Command::UpdateSettings(both));
    assert!(e.message.contains("task-history-limit: 0 is not 1 to 100"), "{e}");
    for (pool, why) in [
        ("127.0.0.0/8", "reserved"),
        ("10.0.0.0/7", "prefix"),
        ("10.1.2.3/16", "host bits"),
    ] {
        let e = log.no(update(&[("default-addr-pool", pool)]));
        assert!(e.message.contains(why), "{pool}: {e}");
    }
    let e = log.no(update(&[("default-addr-pool6", "2001:db8::/32")]));
    assert!(e.message.contains("/48"), "{e}");
    assert_eq!(*log.state.intent(), *after);
}

#[test]
fn another_pool_is_for_later_networks() {
    let mut log = Log::new(0);
    let of = |log: &mut Log, n: &str| {
        let spec = model::NetworkSpec {
            ipv6: true,
            ..Default::default()
        };
        log.ok(network(n, spec));
        let net = &log.state.intent.networks[&name(n)];
        (net.subnet.to_string(), net.subnet6.unwrap().to_string())
    };
    assert_eq!(
        of(&mut log, "a"),
        ("10.129.0.0/16".into(), "fd12:3456:789a::/64".into())
    );
    log.ok(update(&[
        ("default-addr-pool", "172.30.0.0/22"),
        ("default-addr-pool-mask-length", "24"),
        ("default-addr-pool6", "fd00:1:2::/48"),
    ]));
    assert_eq!(of(&mut log, "b"), ("172.30.0.0/24".into(), "fd00:1:2::/64".into()));
    assert_eq!(of(&mut log, "c"), ("172.30.1.0/24".into(), "fd00:1:2:1::/64".into()));
    log.ok(update(&[
        ("default-addr-pool", "10.128.0.0/9"),
        ("default-addr-pool-mask-length", "16"),
    ]));
    assert_eq!(of(&mut log, "d").0, "10.130.0.0/16", "what is in use is passed over");
    // A snapshot carries them.
    assert_eq!(State::decode(&log.state.encode().unwrap()).unwrap(), log.state);
}

#[test]
fn a_cluster_begins_with_the_settings_it_is_given() {
    let begin = |settings: model::ClusterSettings| {
        let Command::InitCluster(mut i) = init() else {
            panic!("no init")
        };
        i.settings = settings;
        let mut state = State::default();
        let envelope = Envelope {
            request: 1,
            time_ms: 0,
            command: Command::InitCluster(i),
        };
        let outcome = state.apply(1, &envelope);
        (state, outcome)
    };
    let good = model::ClusterSettings {
        daemon_grace_ms: 1,
        default_addr_pool6: Some("fd12:3456:789a::/48".parse().unwrap()),
        default_addr_pool: "172.30.0.0/20".parse().unwrap(),
        ..Default::default()
    };
    let (state, outcome) = begin(good.clone());
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(state.intent.settings, good);
    for (bad, why) in [
        (
            model::ClusterSettings {
                cert_expiry_ms: 1,
                ..good.clone()
            },
            "cert-expiry",
        ),
        (
            model::ClusterSettings {
                default_addr_pool6: None,
                ..good.clone()
            },
            "IPv6 pool",
        ),
    ] {
        let (state, outcome) = begin(bad);
        assert!(outcome.unwrap_err().message.contains(why));
        assert!(!state.is_initialised());
        assert_eq!(*state.intent, Intent::default());
    }
}
