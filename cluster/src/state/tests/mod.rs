//! The state machine by tables and by chance.

mod moving;
mod placing;
mod ports;
mod properties;
mod refill;
mod services;
mod settings;

use ipnet::Ipv4Net;
use model::{Code, Name, intent::Role, spec::Mode};

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

    /// Goes on behind an entry, at a time.
    pub(super) fn go_on(&mut self, index: u64, time: u64) {
        (self.index, self.time) = (index, time);
    }

    pub(super) fn run(&mut self, command: Command) -> Outcome {
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
    let mut ports: Vec<(&Name, model::PortSpec)> = Vec::new();
    for net in i.networks.values() {
        for other in &subnets {
            assert!(!net.subnet.contains(other) && !other.contains(&net.subnet));
        }
        subnets.push(net.subnet);
    }
    for (name, s) in &i.services {
        assert!(indices.insert(s.index));
        let open = s.rollout.as_ref().filter(|r| r.is_open());
        let networks: Vec<&Name> = match s.spec.endpoint_mode {
            model::spec::EndpointMode::Vip => s.networks().collect(),
            model::spec::EndpointMode::Dnsrr => Vec::new(),
        };
        assert!(networks.iter().all(|n| s.vips.contains_key(*n)), "a VIP a network");
        assert!(
            open.is_some() || s.vips.len() == networks.len(),
            "none is left of networks that it was on"
        );
        for (net, vip) in &s.vips {
            let network = &i.networks[net];
            let offset = network.offset(vip.v4).unwrap();
            assert!((1..network.vip_pool()).contains(&offset));
            assert_eq!(vip.v6, network.v6(offset));
            assert!(vips.insert((network.vni, offset)));
        }
        assert_eq!(s.ports.len(), s.spec.publish.len());
        for (key, p) in &s.ports {
            assert!(s.spec.publish.contains(&p.asked()) && p.spec.key() == *key);
            assert!((!p.auto || model::PortSpec::AUTO.contains(&p.spec.published)) && !p.spec.is_auto());
            assert!(marks.insert(p.mark));
            let both_hosts = |o: &model::PortSpec| [o.mode, p.spec.mode] == [model::PublishMode::Host; 2];
            let clash = ports
                .iter()
                .find(|(n, o)| o.meets(&p.spec) && (*n == name || !both_hosts(o)));
            assert_eq!(clash, None, "{} of {name}", p.spec);
            ports.push((name, p.spec));
        }
        let placed = i.placements.get(name);
        let slots: Vec<u32> = placed.into_iter().flatten().flat_map(|(_, s)| s.iter()).collect();
        let unique: std::collections::BTreeSet<u32> = slots.iter().copied().collect();
        assert_eq!(unique.len(), slots.len(), "a slot in two places");
        let surge = open.map(|r| r.surge.clone()).unwrap_or_default();
        assert!(
            surge.iter().all(|s| unique.contains(&s)),
            "a surge that is placed nowhere"
        );
        let asked = slots.len() as u32 - surge.len();
        match (s.spec.command.is_empty(), s.spec.mode) {
            (true, _) => assert_eq!(asked, 0),
            (_, Mode::Replicated) if s.problem.is_none() => assert_eq!(asked, s.spec.replicas),
            (_, Mode::Replicated) => assert!(asked < s.spec.replicas),
            (_, Mode::Global) => {
                for (node, slots) in placed.into_iter().flatten() {
                    let own = |slot: u32| match surge.contains(slot) {
                        true => slot.checked_sub(SURGE_OF_NODE),
                        false => Some(slot),
                    };
                    assert!(
                        slots.iter().all(|s| own(s).map(u64::from) == Some(node.0)),
                        "{node} has the slot of another node"
                    );
                }
            }
        }
        for (node, left) in i.leaving.get(name).into_iter().flatten() {
            assert!(!i.nodes[node].down && !left.is_empty());
            let here = i.slots(name, *node).cloned().unwrap_or_default();
            for slot in left.iter() {
                assert!(!here.contains(slot), "it leaves where it is placed");
                assert!(
                    unique.contains(&slot) || s.problem.is_some(),
                    "it goes on and nobody wants it"
                );
            }
        }
        for p in s.rollout.iter().flat_map(|r| &r.pending) {
            assert!(!p.slots.is_empty() && p.generation != s.generation);
            let left = i.leaving.get(name).into_iter().flatten();
            let there: Vec<u32> = left.flat_map(|(_, s)| s.iter()).chain(slots.iter().copied()).collect();
            assert!(p.slots.iter().all(|s| there.contains(&s)), "nobody to be replaced");
        }
        for node in placed.into_iter().flatten().map(|(n, _)| n) {
            let node = &i.nodes[node];
            assert!(!node.down && node.availability != model::intent::Availability::Drain);
        }
    }
    let mut placed = i.placements.keys().chain(i.leaving.keys());
    assert!(placed.all(|n| i.services.contains_key(n)));
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
    let revision = log.state.intent().revision;
    log.ok(publish("web", "80"));
    assert_eq!(log.state.intent().revision, revision, "it has it already");
    let e = log.no(unpublish("onapp", "80"));
    assert!(e.message.contains("web does"), "{e}");
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
