//! The reconciler's passes over many services, alone: no cluster, no log, no gossip. Intent and facts are made here, the
//! kernel's data path is that of a daemon ([`netd::reconcile::Kernel`]), in the calling namespace.
//!
//! `passes FOLDER VTEP SERVICES BACKENDS rr|maglev|...` programs so many services of so many backends, which are on other
//! nodes, and changes one backend of some of them, one at a time, which `NETD_PASSES=again` leaves out; `FOLDER` is its state,
//! kept for a next run, which finds all of it in the kernel. Each service publishes a port. `key=value` lines; the exit status
//! tells whether all went well.
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use model::{
    EndpointId, EndpointRow, EndpointState, Intent, Mac, Name, NodeId, NodeRow, PortSpec, Row, RowBody, RowKey,
    ServiceSpec, Vni,
    api::NodeHealth,
    intent::{Availability, BLOCK, Machine, Network, Node, PublishedPort, Role, Service, Vip},
    row::Datapath,
    spec::Lb,
};
use netd::{
    config::{Config, Mode},
    endpoints::{Endpoints, endpoint_mac, node_mac},
    gossip::Facts,
    place::Addresses,
    reconcile::{Done, Inputs, Kernel},
};
use tokio::sync::watch;

/// Nodes that have the backends.
const NODES: u32 = 20;
/// Changes that are timed.
const CHANGES: u32 = 11;
/// The first published port; those of all services are below the host's ephemeral ones.
const FIRST_PORT: u32 = 10_000;

struct Load {
    services: u32,
    backends: u32,
    lb: Lb,
    vni: Vni,
    network: Network,
    changes: bool,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("passes: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> anyhow::Result<()> {
    let [folder, vtep, services, backends, lb] = args else {
        bail!("try: passes FOLDER VTEP SERVICES BACKENDS rr|maglev|...");
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let vni = Vni::try_from(4097)?;
    let load = Load {
        services: services.parse().context("SERVICES")?,
        backends: backends.parse().context("BACKENDS")?,
        lb: lb.parse().context("the balancing")?,
        vni,
        network: Network {
            vni,
            subnet: "10.64.0.0/10".parse()?,
            subnet6: None,
            internal: false,
            mtu: None,
        },
        changes: std::env::var("NETD_PASSES").as_deref() != Ok("again"),
    };
    ensure!(
        (1..=20_000).contains(&load.services) && (1..=100).contains(&load.backends),
        "1-20000 services of 1-100 backends"
    );
    load.measure(Path::new(folder), vtep.parse().context("VTEP")?)
}

impl Load {
    fn measure(&self, folder: &Path, vtep: IpAddr) -> anyhow::Result<()> {
        let mut config = Config::default();
        config.node.state_dir = folder.join("state");
        config.node.run_dir = folder.join("run");
        config.datapath.mode = Mode::Ipvs;
        std::fs::create_dir_all(&config.node.state_dir)?;
        std::fs::create_dir_all(&config.node.run_dir)?;
        let intent = Arc::new(self.intent()?);
        let mut facts = Arc::new(self.facts()?);
        let (_keep, addresses) = watch::channel(addresses(vtep));
        let inputs = Inputs {
            me: NodeId(1),
            endpoints: Arc::new(Mutex::new(Endpoints::open(&config.node.state_dir)?)),
            addresses,
            intent: watch::channel(intent.clone()).1,
            facts: watch::channel(Arc::new(Facts::default())).1,
            only_add: false,
            config,
        };
        println!("services={}", self.services);
        println!("backends={}", self.services * self.backends);
        let begun = Instant::now();
        let mut kernel = Kernel::open(&inputs.config, false)?;
        println!("open_s={:.4}", begun.elapsed().as_secs_f64());
        let mut pass = |facts: &Arc<Facts>, look: bool| -> anyhow::Result<(Done, Duration)> {
            if look {
                kernel.look_again();
            }
            let begun = Instant::now();
            let done = kernel.pass(&inputs, &intent, facts, &BTreeMap::new(), &|_| {});
            let took = begun.elapsed();
            ensure!(
                done.problems.is_empty(),
                "{:?}",
                done.problems.iter().take(3).collect::<Vec<_>>()
            );
            Ok((done, took))
        };
        let (done, took) = pass(&facts, true)?;
        println!("first_s={:.4}", took.as_secs_f64());
        println!("first_writes={}", done.writes);
        let (mut again, mut looked, mut writes) = (Vec::new(), Vec::new(), 0);
        for _ in 0..CHANGES {
            for (look, all) in [(true, &mut looked), (false, &mut again)] {
                let (done, took) = pass(&facts, look)?;
                writes += done.writes;
                all.push(took);
            }
        }
        println!("look_ms={:.3}", median(&mut looked));
        println!("again_ms={:.3}", median(&mut again));
        println!("again_writes={writes}");
        if !self.changes {
            return Ok(());
        }
        let (mut changed, mut writes) = (Vec::new(), 0);
        for i in 0..CHANGES {
            let service = i * (self.services / CHANGES).max(1) % self.services;
            for state in [EndpointState::Draining, EndpointState::Ready] {
                // As gossip does: those of the last pass are still in use.
                let mut next = Facts::clone(&facts);
                self.set(&mut next, service, state)?;
                facts = Arc::new(next);
                let (done, took) = pass(&facts, false)?;
                writes += done.writes;
                changed.push(took);
            }
        }
        println!("change_ms={:.3}", median(&mut changed));
        println!("change_writes={writes}");
        println!("changes={}", changed.len());
        Ok(())
    }

    fn service(n: u32) -> anyhow::Result<Name> {
        Ok(format!("s{n}").parse()?)
    }

    /// Which node has a backend, and its number among those of that node.
    fn place(&self, service: u32, backend: u32) -> (NodeId, u32) {
        let n = service * self.backends + backend;
        (NodeId(2 + u64::from(n % NODES)), n / NODES)
    }

    /// Address blocks of each node: one more than its backends need would do no harm either.
    fn blocks(&self) -> u32 {
        (self.services * self.backends).div_ceil(NODES).div_ceil(BLOCK)
    }

    fn offset(&self, node: NodeId, number: u32) -> u32 {
        let first = self.network.vip_pool() / BLOCK;
        let node = u32::try_from(node.0 - 2).unwrap_or(0);
        (first + node * self.blocks() + number / BLOCK) * BLOCK + number % BLOCK
    }

    fn intent(&self) -> anyhow::Result<Intent> {
        let mut intent = Intent {
            revision: 1,
            cluster: "0123456789abcdef0123456789abcdef".into(),
            ..Intent::default()
        };
        let network: Name = "bench".parse()?;
        intent.networks.insert(network.clone(), self.network.clone());
        for n in 1..=NODES + 1 {
            let node = Node {
                hostname: format!("n{n}"),
                role: Role::Worker,
                availability: Availability::Active,
                down: false,
                key: Vec::new(),
                rpc: None,
                raft: None,
                labels: BTreeMap::new(),
                max_tasks: None,
                machine: Machine::default(),
            };
            intent.nodes.insert(NodeId(u64::from(n)), node);
        }
        let first = self.network.vip_pool() / BLOCK;
        let blocks = (0..NODES * self.blocks()).map(|b| (first + b, NodeId(2 + u64::from(b / self.blocks()))));
        intent.blocks.insert(self.vni, blocks.collect());
        for n in 0..self.services {
            let port: PortSpec = format!("{}:80", FIRST_PORT + n).parse()?;
            let spec = ServiceSpec {
                networks: vec![network.clone()],
                publish: vec![port],
                lb: self.lb,
                ..ServiceSpec::default()
            };
            let vip = Vip {
                v4: self.network.v4(1 + n),
                v6: None,
            };
            let published = PublishedPort {
                spec: port,
                auto: false,
                mark: 1 + n,
            };
            let service = Service {
                index: 1 + n,
                spec,
                vips: [(network.clone(), vip)].into(),
                ports: [(port.key(), published)].into(),
                generation: 1,
                ..Service::default()
            };
            intent.services.insert(Self::service(n)?, service);
        }
        Ok(intent)
    }

    fn facts(&self) -> anyhow::Result<Facts> {
        let mut rows: BTreeMap<NodeId, BTreeMap<RowKey, Row>> = BTreeMap::new();
        for n in 0..=NODES {
            let id = NodeId(1 + u64::from(n));
            let address = IpAddr::V4(Ipv4Addr::from(0xc612_0064 + n));
            let row = NodeRow {
                hostname: format!("n{id}"),
                datapath_addr: address,
                datapath_port: 4789,
                gossip: SocketAddr::new(address, 7946),
                mac: node_mac(id),
                datapath: Datapath::Ipvs,
                version: String::new(),
            };
            rows.entry(id)
                .or_default()
                .insert(RowKey::Node, row_of(id, RowKey::Node, RowBody::Node(row)));
        }
        for service in 0..self.services {
            for backend in 0..self.backends {
                let (node, number) = self.place(service, backend);
                let offset = self.offset(node, number);
                let row = EndpointRow {
                    vni: self.vni,
                    v4: Some(self.network.v4(offset)),
                    v6: None,
                    mac: self.mac(offset),
                    service: Some(Self::service(service)?),
                    slot: None,
                    state: EndpointState::Ready,
                    listening: Vec::new(),
                };
                let key = RowKey::Endpoint(Self::endpoint(service, backend)?);
                rows.entry(node)
                    .or_default()
                    .insert(key.clone(), row_of(node, key, RowBody::Endpoint(row)));
            }
        }
        Ok(Facts {
            health: rows.keys().map(|id| (*id, NodeHealth::Ready)).collect(),
            rows: rows.into_iter().map(|(id, rows)| (id, Arc::new(rows))).collect(),
            seq: 1,
        })
    }

    fn mac(&self, offset: u32) -> Mac {
        endpoint_mac(&self.network, offset)
    }

    fn endpoint(service: u32, backend: u32) -> anyhow::Result<EndpointId> {
        Ok(format!("s{service}.{backend}").parse()?)
    }

    /// The first backend of a service drains, or takes new flows again.
    fn set(&self, facts: &mut Facts, service: u32, state: EndpointState) -> anyhow::Result<()> {
        let (node, _) = self.place(service, 0);
        let key = RowKey::Endpoint(Self::endpoint(service, 0)?);
        let rows = facts.rows.get_mut(&node).map(Arc::make_mut);
        let row = rows.and_then(|r| r.get_mut(&key)).context("no such backend")?;
        row.version += 1;
        if let RowBody::Endpoint(e) = &mut row.body {
            e.state = state;
        }
        facts.seq += 1;
        Ok(())
    }
}

fn row_of(owner: NodeId, key: RowKey, body: RowBody) -> Row {
    Row {
        owner,
        key,
        version: 1,
        body,
    }
}

fn addresses(vtep: IpAddr) -> Addresses {
    let at = |port| SocketAddr::new(vtep, port);
    Addresses {
        advertise: vtep,
        interface: None,
        rpc: at(2377),
        gossip: at(7946),
        data_path: vtep,
        source: vtep,
    }
}

/// Milliseconds; sorts.
fn median(all: &mut [Duration]) -> f64 {
    all.sort_unstable();
    all.get(all.len() / 2).map_or(0.0, |d| d.as_secs_f64() * 1e3)
}
