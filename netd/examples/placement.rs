//! Three managers in one process, each with a log of its own in a real directory, synced as always; what they say to each
//! other goes through channels, encoded as on the wire. They place services on nodes that exist in the log alone.
//!
//! `placement DIR NODES TASKS SERVICES` prints one JSON object: seconds until the whole placement is committed and applied
//! on all three, what their logs grew by, what the process holds, and the seconds in which a dead node's slots were
//! placed anew. `cargo xtask bench placement` runs it.
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use cluster::{
    raft::{ConfChange, ConfStep, Message},
    state::{Command, InitCluster, NewNode, NodeUpdate},
};
use model::{ClusterSettings, Name, NetworkSpec, NodeId, ServiceSpec, intent::Role, spec::PlacementSpec};
use netd::store::{ProposeError, Store, Transport};
use tokio::task::JoinSet;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const KEY: [u8; 32] = [7; 32];
/// Values of the label that half of many services ask for.
const ZONES: u64 = 5;
/// Proposals under way.
const AT_ONCE: usize = 64;
/// An election takes so long at most.
const ELECTED: Duration = Duration::from_secs(10);
/// All is done by then, or something waits for ever.
const PATIENCE: Duration = Duration::from_secs(300);

/// The others, as soon as they are there.
type Stores = Arc<[OnceLock<Store>; 3]>;

struct Managers(Stores);

fn transport(stores: &Stores) -> Transport {
    let (tx, rx) = mpsc::channel::<(u64, Vec<u8>)>();
    let stores = stores.clone();
    std::thread::spawn(move || {
        for (to, octets) in rx {
            let to = usize::try_from(to).unwrap_or(0).wrapping_sub(1);
            let store = stores.get(to).and_then(OnceLock::get);
            if let (Some(store), Ok(message)) = (store, Message::decode(&octets)) {
                store.message(message);
            }
        }
    });
    Box::new(move |message| {
        if let Ok(octets) = message.encode() {
            let _ = tx.send((message.to, octets));
        }
    })
}

fn node(n: u64, role: Role) -> NewNode {
    let mut key = vec![0; 32];
    key[..8].copy_from_slice(&n.to_le_bytes());
    NewNode {
        hostname: format!("node{n}"),
        role,
        key,
        rpc: (role == Role::Manager).then(|| format!("198.18.0.{n}:2377")),
    }
}

impl Managers {
    async fn start(dir: &Path) -> Result<Managers> {
        let stores: Stores = Arc::default();
        let init = InitCluster {
            cluster: "0123456789abcdef0123456789abcdef".into(),
            node: node(1, Role::Manager),
            settings: ClusterSettings {
                default_addr_pool6: Some("fd12:3456:789a::/48".parse()?),
                ..ClusterSettings::default()
            },
            default_network: NetworkSpec::default(),
            avoid: Vec::new(),
            secrets: Default::default(),
        };
        let put = |n: u64, store: Store| {
            let at = usize::try_from(n).unwrap_or(0).wrapping_sub(1);
            stores.get(at).and_then(|s| s.set(store).ok()).ok_or("a store twice")
        };
        put(1, Store::create(&dir.join("1"), KEY, init, transport(&stores))?)?;
        let m = Managers(stores.clone());
        for n in 2..=3 {
            m.leader()
                .await?
                .propose(Command::AddNode(node(n, Role::Manager)))
                .await?;
            put(n, Store::join(&dir.join(n.to_string()), KEY, n, transport(&stores))?)?;
            for step in [ConfStep::Learner, ConfStep::Voter] {
                let change = ConfChange { steps: vec![(step, n)] };
                let until = Instant::now() + Duration::from_secs(20);
                // A learner that has not all of the log yet gets no vote.
                while let Err(e) = m.leader().await?.change(change.clone(), false).await {
                    if Instant::now() > until {
                        return Err(e.into());
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        Ok(m)
    }

    fn all(&self) -> impl Iterator<Item = &Store> {
        self.0.iter().filter_map(OnceLock::get)
    }

    /// Who leads; after a change of the lead it may be nobody for a moment.
    async fn leader(&self) -> Result<&Store> {
        let until = Instant::now() + ELECTED;
        loop {
            if let Some(store) = self.all().find(|s| s.status().leads) {
                return Ok(store);
            }
            if Instant::now() > until {
                return Err("nobody leads".into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Proposes a command, again if the lead changes meanwhile, as managers do.
    async fn put(self, command: Command) -> Result<()> {
        static REQUESTS: AtomicU64 = AtomicU64::new(1);
        let request = REQUESTS.fetch_add(1, Ordering::Relaxed).into();
        loop {
            match self.leader().await?.propose_as(request, command.clone()).await {
                Err(ProposeError::NotLeader { .. } | ProposeError::Unknown(_)) => {}
                done => return Ok(done.map(drop)?),
            }
        }
    }

    /// Proposes all of them, many at once, and waits until each manager has applied the last.
    async fn propose(&self, commands: Vec<Command>) -> Result<Duration> {
        let begun = Instant::now();
        let mut under_way = JoinSet::new();
        for command in commands {
            if under_way.len() >= AT_ONCE
                && let Some(done) = under_way.join_next().await
            {
                done??;
            }
            under_way.spawn(Managers(self.0.clone()).put(command));
        }
        while let Some(done) = under_way.join_next().await {
            done??;
        }
        let last = self.leader().await?.status().applied;
        for s in self.all() {
            s.reached(last).await;
        }
        Ok(begun.elapsed())
    }
}

fn octets(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        sum += match entry.file_type()?.is_dir() {
            true => octets(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(sum)
}

/// Memory of this process, octets.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")).ok_or("no VmRSS")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}

fn seconds(d: Duration) -> f64 {
    d.as_secs_f64()
}

async fn run(dir: PathBuf, nodes: u64, tasks: u32, services: u32) -> Result<String> {
    let m = Managers::start(&dir).await?;
    m.propose((4..=nodes).map(|n| Command::AddNode(node(n, Role::Worker))).collect())
        .await?;
    let label = |n| Command::UpdateNode {
        node: NodeId(n),
        update: NodeUpdate {
            labels: [("zone".to_owned(), Some((n % ZONES).to_string()))].into(),
            ..NodeUpdate::default()
        },
    };
    m.propose((1..=nodes).map(label).collect()).await?;
    let (log, memory) = (octets(&dir)?, resident()?);

    let service = |n: u32| -> Result<Command> {
        let constraint = format!("node.labels.zone=={}", u64::from(n) % ZONES);
        let name: Name = format!("s{n}").parse()?;
        let spec = ServiceSpec {
            replicas: tasks / services,
            command: vec!["./server".into()],
            placement: PlacementSpec {
                constraints: if services > 1 && n.is_multiple_of(2) {
                    vec![constraint]
                } else {
                    Vec::new()
                },
                ..PlacementSpec::default()
            },
            ..ServiceSpec::default()
        };
        Ok(Command::CreateService { name, spec })
    };
    let placed = m.propose((1..=services).map(service).collect::<Result<_>>()?).await?;
    let grown = octets(&dir)?.saturating_sub(log) / 3;
    let resident = resident()?;
    for s in m.all() {
        let has: u64 = s.with(|s| {
            let intent = s.intent();
            intent
                .placements
                .values()
                .flat_map(|p| p.values())
                .map(|s| u64::from(s.len()))
                .sum()
        });
        if has != u64::from(tasks / services * services) {
            return Err(format!("{has} tasks are placed, not {tasks}").into());
        }
    }
    let dead = Command::SetNodeDown {
        node: NodeId(nodes),
        down: true,
    };
    let lost = m.propose(vec![dead]).await?;
    let left: usize = m.leader().await?.with(|s| {
        let gone = NodeId(nodes);
        s.intent().placements.values().filter(|p| p.contains_key(&gone)).count()
    });
    if left > 0 {
        return Err("the dead node still has tasks".into());
    }
    for s in m.all() {
        s.shutdown().await;
    }
    Ok(serde_json::json!({
        "placed_s": seconds(placed),
        "log_bytes": grown,
        "before_bytes": memory,
        "rss_bytes": resident,
        "node_lost_s": seconds(lost),
    })
    .to_string())
}

#[tokio::main]
async fn main() -> Result<()> {
    // Changes of the lead are told: they belong to the time that was measured.
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, nodes, tasks, services] = args.as_slice() else {
        return Err("placement DIR NODES TASKS SERVICES".into());
    };
    let all = run(dir.into(), nodes.parse()?, tasks.parse()?, services.parse()?);
    println!("{}", tokio::time::timeout(PATIENCE, all).await??);
    Ok(())
}
