//! A small cluster as netd would describe it, for the tests of tables: two nodes live, one is dead, one task drains.

use std::collections::BTreeMap;

use model::{
    EndpointState, Name, NodeId, PortSpec, Proto, ServiceSpec, Vni,
    api::{
        BackendView, Convergence, EndpointView, MemberView, NetworkView, NodeHealth, NodeProgress, NodeView,
        ServiceView, Status, TaskState, TaskView, Vote, Writes,
    },
    intent::{Availability, Network, PublishedPort, Role, Service, Vip},
    row::Datapath,
};

use crate::output::{Format, Output, Table};

/// A table in its two widths.
pub(crate) fn show(table: &Table) -> String {
    let text = |format| {
        let out = Output { format, color: false };
        table.render(out, &[]).unwrap()
    };
    format!("{}\n{}", text(Format::Table), text(Format::Wide))
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn vni(n: u32) -> Vni {
    Vni::try_from(n).unwrap()
}

const HOSTS: [&str; 3] = ["alpha", "beta", "gamma"];

fn host(id: u64) -> String {
    HOSTS[usize::try_from(id).unwrap() - 1].to_owned()
}

fn node(id: u64, health: NodeHealth, applied: Option<u64>) -> NodeView {
    NodeView {
        id: NodeId(id),
        hostname: host(id),
        role: if id == 1 { Role::Manager } else { Role::Worker },
        availability: Availability::Active,
        health,
        leader: id == 1,
        me: id == 1,
        addr: (id != 3).then(|| format!("198.18.0.{id}")),
        datapath: (id != 3).then_some(Datapath::Ebpf),
        datapath_why: None,
        here: None,
        version: (id != 3).then(|| "0.1.0".to_owned()),
        applied,
        tasks: 1,
        labels: BTreeMap::new(),
        max_tasks: None,
        machine: Default::default(),
        reserved: Default::default(),
        free: None,
        problems: Vec::new(),
    }
}

pub(crate) fn nodes() -> Vec<NodeView> {
    vec![
        node(1, NodeHealth::Ready, Some(42)),
        node(2, NodeHealth::Ready, Some(42)),
        node(3, NodeHealth::Down, None),
    ]
}

pub(crate) fn members() -> Vec<MemberView> {
    let member = |id, health, log: Option<u64>| MemberView {
        id: NodeId(id),
        hostname: host(id),
        role: if id == 1 { Role::Manager } else { Role::Worker },
        addr: Some(format!("198.18.0.{id}:7946")),
        health,
        log_index: log,
        term: log.map(|_| 3),
        leader: id == 1,
        vote: log.map(|_| Vote::Voter),
        applied: log,
        reachable: log.map(|_| true),
        round_trip_us: None,
        problem: None,
    };
    vec![
        member(1, NodeHealth::Ready, Some(42)),
        member(2, NodeHealth::DaemonDown, None),
        member(3, NodeHealth::Down, None),
    ]
}

pub(crate) fn networks() -> Vec<NetworkView> {
    vec![
        NetworkView {
            name: name("app"),
            network: Network {
                vni: vni(4097),
                subnet: "10.77.0.0/16".parse().unwrap(),
                subnet6: Some("fd12:3456:789a:1::/64".parse().unwrap()),
                internal: false,
                mtu: None,
            },
            services: vec![name("api"), name("web")],
            endpoints: 3,
            blocks: BTreeMap::from([
                (NodeId(1), vec!["10.77.16.0/28".to_owned()]),
                (NodeId(2), vec!["10.77.16.16/28".to_owned()]),
            ]),
            here: None,
        },
        NetworkView {
            name: name("default"),
            network: Network {
                vni: vni(4096),
                subnet: "10.128.0.0/16".parse().unwrap(),
                subnet6: None,
                internal: true,
                mtu: Some(1400),
            },
            services: Vec::new(),
            endpoints: 0,
            blocks: BTreeMap::new(),
            here: None,
        },
    ]
}

fn backend(slot: u64, state: EndpointState, why: Option<&str>) -> BackendView {
    BackendView {
        endpoint: format!("web.{slot}").parse().unwrap(),
        node: NodeId(slot),
        hostname: host(slot),
        slot: u32::try_from(slot).ok(),
        vni: vni(4097),
        v4: Some(format!("10.77.16.{}", 16 * (slot - 1) + 2).parse().unwrap()),
        v6: Some(format!("fd12:3456:789a:1::{slot}").parse().unwrap()),
        state,
        in_use: why.is_none(),
        why: why.map(str::to_owned),
        listening: vec![(Proto::Tcp, 8080)],
    }
}

fn published(text: &str, mark: u32) -> (String, PublishedPort) {
    let spec: PortSpec = text.parse().unwrap();
    (
        format!("{}/{}", spec.published, spec.proto),
        PublishedPort {
            spec,
            auto: false,
            mark,
        },
    )
}

pub(crate) fn service() -> ServiceView {
    ServiceView {
        name: name("web"),
        service: Service {
            index: 1,
            spec: ServiceSpec {
                networks: vec![name("app")],
                replicas: 2,
                command: ["./server", "--port", "8080"].map(str::to_owned).to_vec(),
                ..ServiceSpec::default()
            },
            vips: BTreeMap::from([(
                name("app"),
                Vip {
                    v4: "10.77.0.2".parse().unwrap(),
                    v6: Some("fd12:3456:789a:1::2".parse().unwrap()),
                },
            )]),
            ports: BTreeMap::from([published("443:8443", 2), published("80:8080", 1)]),
            generation: 40,
            changed: 0,
            previous: None,
            rollout: None,
            problem: None,
        },
        wanted: 2,
        ready: 1,
        backends: vec![
            backend(1, EndpointState::Ready, None),
            backend(2, EndpointState::Draining, Some("draining")),
        ],
        stuck: None,
    }
}

pub(crate) fn services() -> Vec<ServiceView> {
    let mut api = service();
    api.name = name("api");
    api.backends.clear();
    api.service.ports.clear();
    api.service.spec.command.clear();
    api.service.problem = Some("no node to place 1 of 1 tasks on".into());
    vec![api, service()]
}

pub(crate) fn tasks() -> Vec<TaskView> {
    let task = |slot: u32, node: u64, desired, state, since_s, message: &str| TaskView {
        id: format!("web.{slot}").parse().unwrap(),
        service: name("web"),
        slot,
        node: NodeId(node),
        hostname: host(node),
        desired,
        state,
        since_s,
        message: message.to_owned(),
        addresses: if desired {
            vec![format!("10.77.16.{}", 16 * (node - 1) + 2)]
        } else {
            Vec::new()
        },
        restarts: 0,
        generation: 40,
        health: (slot == 1).then_some(true),
        pid: desired.then_some(4000 + slot),
        exhausted: false,
    };
    vec![
        task(1, 1, true, TaskState::Running, 7200, ""),
        task(2, 2, true, TaskState::Running, 12, ""),
        task(2, 3, false, TaskState::Orphaned, 12, "n3 is down"),
    ]
}

pub(crate) fn endpoints() -> Vec<EndpointView> {
    let endpoint = |id: &str, service: Option<&str>, problem: Option<&str>| EndpointView {
        id: id.parse().unwrap(),
        node: NodeId(1),
        network: name("app"),
        vni: vni(4097),
        netns: format!("/run/netd/netns/{id}"),
        interface: "eth0".into(),
        v4: Some("10.77.16.2".parse().unwrap()),
        v6: service.map(|_| "fd12:3456:789a:1::1".parse().unwrap()),
        mac: "02:6e:0a:4d:10:02".parse().unwrap(),
        mtu: 1450,
        service: service.map(name),
        part_of: None,
        state: EndpointState::Ready,
        resolv_conf: "nameserver 127.0.0.11\n".into(),
        problem: problem.map(str::to_owned),
    };
    vec![
        endpoint("web.1", Some("web"), None),
        endpoint("db", None, Some("its namespace has vanished")),
    ]
}

pub(crate) fn convergence() -> Convergence {
    let progress = |id, living, applied| NodeProgress {
        id: NodeId(id),
        hostname: host(id),
        living,
        applied,
        problems: Vec::new(),
        datapath: String::new(),
    };
    Convergence {
        revision: 42,
        converged: true,
        nodes: vec![progress(1, true, 42), progress(2, true, 43), progress(3, false, 12)],
    }
}

pub(crate) fn status() -> Status {
    Status {
        me: Some(NodeId(1)),
        cluster: "5d3f0c1b2a4e6879900aabbccddeeff0".into(),
        revision: 42,
        applied: 42,
        leader: Some(NodeId(1)),
        converged: Some(true),
        nodes: nodes(),
        networks: networks(),
        services: services(),
        taken: model::api::IntentTaken {
            whole: 1,
            increments: 6,
        },
        writes: Writes {
            last: 0,
            total: 128,
            runs: 17,
        },
        counters: BTreeMap::from([
            ("drop_not_a_member".into(), 3),
            ("drop_spoofed_source".into(), 12),
            ("port_rewrites".into(), 7),
        ]),
        problems: vec!["port 53/udp is in use by systemd-resolved".into()],
    }
}
