//! What happens to a cluster: made from a seed, kept as text, cut shorter while it still fails.

use serde::{Deserialize, Serialize};

use crate::{disk::Keep, rng::Rng};

/// Hosts at most.
pub(crate) const MAX_HOSTS: u8 = 7;
/// Clients that ask for changes and reads.
pub(crate) const CLIENTS: u8 = 4;

/// What a run is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// Decides all that the acts do not: delays, losses, jitter.
    pub seed: u64,
    /// The cluster.
    pub shape: Shape,
    /// When (ms) what happens.
    pub acts: Vec<(u64, Act)>,
}

/// The cluster, and its usual weather.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Hosts that are managers.
    pub managers: u8,
    /// Hosts that are workers.
    pub workers: u8,
    /// Whether there are agents: gossip, rows, endpoints. Without them a run is all about Raft.
    pub agents: bool,
    /// The weather.
    pub weather: Weather,
    /// Entries from snapshot to snapshot.
    pub entries: u64,
    /// Entries kept behind one.
    pub retain: u64,
    /// What a sync takes, µs.
    pub sync_us: u64,
    /// Octets that wait for one peer at most.
    pub queue: usize,
}

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weather {
    /// Messages lost, of a thousand.
    pub loss: u64,
    /// Messages that come twice, of a thousand.
    pub twice: u64,
    /// Shortest way, µs.
    pub near_us: u64,
    /// Longest way, µs: what lies between makes messages overtake each other.
    pub far_us: u64,
}

/// Something that happens. Hosts are counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// A client wants something.
    Want { client: u8, want: Want, twice: bool },
    /// The power of a host goes, and comes back.
    Crash { host: u8, keep: Keep, back_ms: u64 },
    /// That of the leader.
    KillLeader { keep: Keep, back_ms: u64 },
    /// That of the next manager that gives its vote to another, when it has.
    KillVoter { keep: Keep, back_ms: u64 },
    /// That of all.
    PowerCut { keep: Keep, back_ms: u64 },
    /// That of a host, within a write.
    Tear { host: u8, steps: u64, keep: Keep },
    /// Syncs fail from now on: the daemon exits.
    SyncFails { host: u8, keep: Keep },
    /// Syncs take so long, µs.
    Slow { host: u8, us: u64 },
    /// There is no room on the disk.
    Full { host: u8, full: bool },
    /// A new disk, the same identity.
    Wipe { host: u8, back_ms: u64 },
    /// The daemon stands still.
    Stop { host: u8, ms: u64 },
    /// A clock leaps: the host was suspended.
    Leap { host: u8, secs: u64 },
    /// Nothing goes from one to the other.
    Cut { from: u8, to: u8 },
    /// Nothing goes to or from a host.
    Isolate { host: u8 },
    /// Hosts whose bit is set, and the others, do not hear each other.
    Split { mask: u8 },
    /// Each hears its neighbours alone.
    Chain { first: u8 },
    /// All hear all.
    Heal,
    /// The weather changes.
    Weather(Weather),
    /// A worker becomes manager.
    Promote { host: u8 },
    /// A manager becomes worker.
    Demote { host: u8 },
    /// A node is removed for good.
    Remove { host: u8 },
    /// Leadership is handed over.
    Transfer { host: u8 },
    /// A manager makes a snapshot.
    Snapshot { host: u8 },
    /// A host tells rows of another one that it made up.
    Forge { host: u8, owner: u8 },
    /// An old packet of rows comes again.
    Replay { host: u8, packet: u16 },
}

/// What clients want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// Writes a register.
    Write { register: u8 },
    /// Reads one.
    Read { register: u8 },
    /// Creates a service.
    Create { service: u8, network: u8, replicas: u32 },
    /// Changes its replicas.
    Scale { service: u8, replicas: u32 },
    /// Changes its command; start-first or stop-first, so many at a time.
    Update {
        service: u8,
        release: u8,
        parallelism: u32,
        first: bool,
    },
    /// Goes back to what was.
    Rollback { service: u8 },
    /// Publishes a port.
    Publish { service: u8, port: u16 },
    /// Removes it.
    RemoveService { service: u8 },
    /// Creates a network.
    Network { network: u8 },
    /// Removes it.
    RemoveNetwork { network: u8 },
    /// Sets a node's availability: 0 active, 1 pause, 2 drain.
    Availability { host: u8, to: u8 },
    /// The verdict on a node.
    Down { host: u8, down: bool },
    /// A block for a node.
    Block { host: u8, network: u8 },
    /// Changes a setting.
    Setting { hours: u64 },
    /// Changes the workers' token if nobody changed a secret meanwhile; what was seen may be old.
    Swap { old: bool },
    /// A stranger joins with a token that is none.
    Stranger,
    /// Removes a node that is a manager: refused.
    Remove { host: u8 },
    /// Gives a node's highest block back.
    Release { host: u8, network: u8 },
}

impl Script {
    /// The script of a seed.
    pub fn generate(seed: u64) -> Script {
        let mut rng = Rng::new(seed, 1);
        let agents = rng.chance(400);
        let managers = *rng.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5]).unwrap_or(&3);
        let workers = match agents {
            true => rng.range(1, 2) as u8,
            false => rng.below(3) as u8,
        };
        let hosts = managers + workers;
        let far = rng.chance(150);
        let usual = Weather {
            loss: *rng.pick(&[0, 0, 10, 50]).unwrap_or(&0),
            twice: *rng.pick(&[0, 0, 20, 100]).unwrap_or(&0),
            near_us: if far { 5_000 } else { 100 },
            far_us: if far { 60_000 } else { rng.range(300, 10_000) },
        };
        let shape = Shape {
            managers,
            workers,
            agents,
            weather: usual,
            entries: rng.range(12, 80),
            retain: rng.range(40, 80),
            sync_us: *rng.pick(&[100, 500, 2_000, 8_000]).unwrap_or(&500),
            queue: *rng.pick(&[600, 2_000, 64_000]).unwrap_or(&2_000),
        };
        let mut acts = Vec::new();
        let length = rng.range(4_000, 9_000);
        let begin = 400 + 350 * u64::from(hosts);
        // Wants: a dense stream, in bursts.
        let mut at = begin;
        while at < begin + length {
            let burst = rng.range(1, 6);
            for _ in 0..burst {
                let want = Want::any(&mut rng, hosts);
                let client = rng.below(u64::from(CLIENTS)) as u8;
                let twice = rng.chance(150);
                acts.push((at, Act::Want { client, want, twice }));
            }
            at += rng.range(20, 400);
        }
        // Faults: one every few hundred ms, of a kind that a seed prefers.
        let tempers = [rng.below(FAULTS), rng.below(FAULTS), rng.below(FAULTS)];
        let mut at = begin;
        while at < begin + length {
            let kind = match rng.chance(500) {
                true => *rng.pick(&tempers).unwrap_or(&0),
                false => rng.below(FAULTS),
            };
            Act::fault(kind, &mut rng, hosts, usual, at, &mut acts);
            at += rng.range(50, 900);
        }
        acts.sort_by_key(|a| a.0);
        Script { seed, shape, acts }
    }

    /// As text: the head, then an act a line.
    pub fn print(&self) -> anyhow::Result<String> {
        let mut out = format!("# netd simulation, seed {}\n", self.seed);
        out.push_str(&serde_json::to_string(&(self.seed, &self.shape))?);
        out.push('\n');
        for act in &self.acts {
            out.push_str(&serde_json::to_string(act)?);
            out.push('\n');
        }
        Ok(out)
    }

    /// Reads [`Script::print`].
    pub fn parse(text: &str) -> anyhow::Result<Script> {
        let mut lines = text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
        let head = lines.next().ok_or_else(|| anyhow::anyhow!("the script is empty"))?;
        let (seed, shape) = serde_json::from_str(head)?;
        let acts = lines.map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(Script { seed, shape, acts })
    }

    /// When the last act comes, ms.
    pub fn end(&self) -> u64 {
        self.acts.last().map_or(0, |a| a.0)
    }
}

impl Want {
    fn any(rng: &mut Rng, hosts: u8) -> Want {
        let service = rng.below(6) as u8;
        let network = rng.below(3) as u8;
        let host = rng.below(u64::from(hosts)) as u8;
        let register = rng.below(3) as u8;
        match rng.below(100) {
            0..20 => Want::Write { register },
            20..38 => Want::Read { register },
            38..40 => Want::Swap { old: rng.chance(300) },
            40 => Want::Setting {
                hours: rng.range(1, 100),
            },
            41 => Want::Stranger,
            42..51 => Want::Create {
                service,
                network,
                replicas: rng.below(5) as u32,
            },
            51..56 => Want::Update {
                service,
                release: rng.below(4) as u8,
                parallelism: rng.below(3) as u32,
                first: rng.chance(500),
            },
            56 => Want::Rollback { service },
            57..63 => Want::Scale {
                service,
                replicas: rng.below(7) as u32,
            },
            63..68 => Want::Publish {
                service,
                port: 80 + rng.below(4) as u16,
            },
            68..73 => Want::RemoveService { service },
            78..81 => Want::Network { network },
            81..83 => Want::RemoveNetwork { network },
            73..78 | 83..88 => Want::Availability {
                host,
                to: rng.below(3) as u8,
            },
            88..92 => Want::Down {
                host,
                down: rng.chance(500),
            },
            92..96 => Want::Block { host, network },
            96 => Want::Remove { host },
            _ => Want::Release { host, network },
        }
    }
}

/// Kinds of [`Act::fault`].
const FAULTS: u64 = 19;

impl Act {
    fn fault(kind: u64, rng: &mut Rng, hosts: u8, usual: Weather, at: u64, out: &mut Vec<(u64, Act)>) {
        let host = rng.below(u64::from(hosts)) as u8;
        let other = rng.below(u64::from(hosts)) as u8;
        let keep = match rng.below(3) {
            0 => Keep::All,
            1 => Keep::Nothing,
            _ => Keep::Sectors(rng.word()),
        };
        let back_ms = rng.range(20, 1_500);
        let for_ms = rng.range(100, 2_500);
        let act = match kind {
            0 => Act::Crash { host, keep, back_ms },
            1 => Act::KillLeader { keep, back_ms },
            2 => {
                // Its death alone proves little: the others must vote.
                out.push((at + 1, Act::KillLeader { keep, back_ms }));
                Act::KillVoter {
                    keep,
                    back_ms: rng.range(1, 40),
                }
            }
            3 => Act::PowerCut { keep, back_ms },
            4 => Act::Tear {
                host,
                steps: rng.below(600),
                keep,
            },
            5 => Act::SyncFails { host, keep },
            6 => {
                out.push((at + for_ms, Act::Slow { host, us: 300 }));
                Act::Slow {
                    host,
                    us: rng.range(5_000, 400_000),
                }
            }
            7 => {
                out.push((at + for_ms, Act::Full { host, full: false }));
                Act::Full { host, full: true }
            }
            8 => Act::Wipe { host, back_ms },
            9 => Act::Stop { host, ms: for_ms },
            10 => match rng.chance(300) {
                true => Act::Leap {
                    host,
                    secs: *rng.pick(&[1, 30, 70, 700]).unwrap_or(&30),
                },
                false => Act::Transfer { host },
            },
            11 => {
                out.push((at + for_ms, Act::Heal));
                Act::Cut { from: host, to: other }
            }
            12 => {
                out.push((at + for_ms, Act::Heal));
                Act::Isolate { host }
            }
            13 => {
                out.push((at + for_ms, Act::Heal));
                Act::Split {
                    mask: rng.below(1 << hosts) as u8,
                }
            }
            14 => {
                out.push((at + for_ms, Act::Heal));
                Act::Chain { first: host }
            }
            15 => {
                out.push((at + for_ms, Act::Weather(usual)));
                Act::Weather(Weather {
                    loss: rng.range(0, 300),
                    twice: rng.range(0, 200),
                    near_us: 100,
                    far_us: rng.range(500, 150_000),
                })
            }
            16 => {
                out.push((at + for_ms, Act::Promote { host }));
                match rng.chance(200) {
                    true => Act::Remove { host },
                    false => Act::Demote { host },
                }
            }
            17 => match rng.chance(500) {
                true => Act::Promote { host },
                false => Act::Snapshot { host },
            },
            _ => match rng.chance(500) {
                true => Act::Forge { host, owner: other },
                false => Act::Replay {
                    host,
                    packet: rng.below(512) as u16,
                },
            },
        };
        out.push((at, act));
    }
}
