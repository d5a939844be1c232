//! The state machine: a snapshot of another manager's, and commands of the log.

use std::collections::BTreeMap;

use cluster::state::{Command, Envelope, InitCluster, NewNode, Secret, ServiceUpdate, State};
use model::{
    ClusterSettings, NetworkSpec, NodeId, ServiceSpec, Vni,
    intent::{Availability, Role},
};

use super::{join, pieces, sure};

fn node(n: u8, role: Role) -> NewNode {
    NewNode {
        hostname: format!("host{n}"),
        role,
        key: vec![n; 32],
        rpc: (role == Role::Manager).then(|| format!("198.18.0.{n}:2377")),
    }
}

/// One command of each kind, in an order in which they are carried out.
fn commands() -> Vec<Command> {
    let name = |s: &str| sure(s.parse());
    let init = InitCluster {
        cluster: "0123456789abcdef0123456789abcdef".into(),
        node: node(1, Role::Manager),
        settings: ClusterSettings {
            default_addr_pool6: Some(sure("fd12:3456:789a::/48".parse())),
            ..ClusterSettings::default()
        },
        default_network: NetworkSpec::default(),
        avoid: vec![sure("192.168.0.0/16".parse())],
        secrets: BTreeMap::from([("ca".into(), Secret(vec![7; 40]))]),
    };
    let app = NetworkSpec {
        subnet: Some(sure("10.77.0.0/24".parse())),
        ipv6: true,
        mtu: Some(1400),
        vni: Some(sure(Vni::try_from(77))),
        ..NetworkSpec::default()
    };
    let web = ServiceSpec {
        networks: vec![name("app")],
        replicas: 3,
        command: vec!["serve".into()],
        publish: vec![sure("80:8080".parse())],
        ..ServiceSpec::default()
    };
    let worker = NodeId(2);
    let vni = sure(Vni::try_from(77));
    vec![
        Command::InitCluster(init),
        Command::AddNode(node(2, Role::Worker)),
        Command::AddNode(node(3, Role::Worker)),
        Command::CreateNetwork {
            name: name("app"),
            spec: app,
            avoid: vec![],
        },
        Command::CreateNetwork {
            name: name("chosen"),
            spec: NetworkSpec::default(),
            avoid: vec![sure("10.128.0.0/16".parse())],
        },
        Command::CreateService {
            name: name("web"),
            spec: web,
        },
        Command::UpdateService {
            name: name("web"),
            update: ServiceUpdate {
                env: Some(BTreeMap::from([("a".into(), "b".into())])),
                ..ServiceUpdate::default()
            },
        },
        Command::Scale {
            name: name("web"),
            replicas: 7,
        },
        Command::Publish {
            service: name("web"),
            port: sure("53/udp".parse()),
        },
        Command::Unpublish {
            service: name("web"),
            port: sure("53/udp".parse()),
        },
        Command::AssignBlock { node: worker, vni },
        Command::ReleaseBlocks {
            node: worker,
            vni,
            blocks: vec![1],
        },
        Command::SetAvailability {
            node: worker,
            availability: Availability::Drain,
        },
        Command::SetNodeDown {
            node: worker,
            down: true,
        },
        Command::SetRole {
            node: worker,
            role: Role::Manager,
            rpc: Some("198.18.0.2:2377".into()),
        },
        Command::RenewRaft { node: worker, old: 2 },
        Command::Join {
            node: node(4, Role::Worker),
            secret: Secret(vec![1; 16]),
            availability: Availability::Active,
        },
        Command::SetSecrets(BTreeMap::from([("token".into(), Some(Secret(vec![1])))])),
        Command::RemoveService { name: name("web") },
        Command::RemoveNetwork { name: name("app") },
        Command::RemoveNode { node: NodeId(3) },
    ]
}

fn envelope(n: usize, command: Command) -> Envelope {
    Envelope {
        request: n as u128 + 1,
        time_ms: n as u64 * 1000,
        command,
    }
}

/// A state after the first `n` commands.
fn after(n: usize) -> State {
    let mut state = State::default();
    for (i, c) in commands().into_iter().take(n).enumerate() {
        let _ = state.apply(i as u64 + 1, &envelope(i, c));
    }
    state
}

/// The first octet says how much has happened; the rest is commands.
pub(super) fn open(octets: &[u8]) {
    let Some((what, rest)) = octets.split_first() else {
        return;
    };
    let mut state = after(usize::from(*what));
    for piece in pieces(rest) {
        if let Ok(e) = Envelope::decode(piece) {
            let _ = state.apply(state.applied() + 1, &e);
        }
    }
    let _ = state.encode();
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let all = commands();
    let encoded: Vec<Vec<u8>> = all
        .iter()
        .cloned()
        .enumerate()
        .map(|(i, c)| sure(envelope(i + 100, c).encode()))
        .collect();
    let mut out: Vec<Vec<u8>> = Vec::new();
    for (i, e) in encoded.iter().enumerate() {
        let what = u8::try_from(i.min(17)).unwrap_or(0);
        out.push([&[what][..], &join(std::slice::from_ref(e))].concat());
    }
    out.push([&[0][..], &join(&encoded)].concat());
    out
}

/// A snapshot that is read is gone on with.
pub(super) fn open_snapshot(octets: &[u8]) {
    let Ok(mut state) = State::decode(octets) else {
        return;
    };
    for (i, c) in commands().into_iter().enumerate().skip(1) {
        let _ = state.apply(state.applied().saturating_add(1), &envelope(i + 1000, c));
    }
    let _ = state.encode();
}

pub(super) fn snapshot_seeds() -> Vec<Vec<u8>> {
    [0, 1, 6, 12, 17].into_iter().map(|n| sure(after(n).encode())).collect()
}
