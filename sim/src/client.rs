//! Clients: ask, ask again, and remember what they were told.

use std::collections::VecDeque;

use cluster::{
    manager::Unanswered,
    state::{Applied, Command, NewNode, Secret, ServiceUpdate, TOKEN_WORKER},
};
use model::{
    Name, NetworkSpec, NodeId, PortSpec, ServiceSpec,
    ids::Proto,
    intent::{Availability, Role, Trust},
    settings::{Change, Key, Value},
    spec::{Order, RollingUpdate},
};

use crate::{
    event::{Ask, Event, Told},
    oracle::{Check, gave},
    script::{CLIENTS, MAX_HOSTS, Want},
    world::World,
};

/// Whoever asks on behalf of a host: its place among the clients.
pub(crate) const fn of_host(host: usize) -> usize {
    CLIENTS as usize + host
}

/// Whoever administers the cluster.
pub(crate) const ADMIN: usize = CLIENTS as usize + MAX_HOSTS as usize;
/// Clients in all.
pub(crate) const ALL: usize = ADMIN + 1;
/// Tries of a client of the script before it gives up.
const TRIES: u32 = 14;

/// Why something is asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Purpose {
    /// The script wants it.
    Script,
    /// A host joins.
    Join(usize),
    /// A host that lost its log asks for its id.
    WhoAmI,
    /// It wants another one.
    Renew,
    /// Nothing waits for it.
    Other,
}

/// Something to ask.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// What.
    pub ask: Ask,
    /// Why.
    pub purpose: Purpose,
    /// To two managers at once.
    pub twice: bool,
}

/// A client.
#[derive(Debug, Default)]
pub(crate) struct Client {
    /// What waits.
    pub queue: VecDeque<Job>,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    job: Job,
    request: u128,
    floor: u64,
    turn: u32,
    hint: Option<usize>,
}

impl Client {
    /// Whether nothing is asked.
    pub(crate) fn is_idle(&self) -> bool {
        self.current.is_none() && self.queue.is_empty()
    }
}

fn name(kind: &str, n: u8) -> Name {
    // Letters, a hyphen and a digit are a name.
    format!("{kind}-{n}").parse().unwrap_or_else(|_| unreachable!())
}

impl World {
    /// What the script's `want` asks for. `None`: it makes no sense now.
    pub(crate) fn asked(&mut self, want: &Want) -> Option<Ask> {
        self.unique += 1;
        let node = |host: u8| self.hosts.get(usize::from(host)).and_then(|h| h.node);
        let network = |n: u8| match n {
            0 => "default".parse().unwrap_or_else(|_| unreachable!()),
            n => name("net", n),
        };
        let vni = |n: u8| self.oracle.state.intent().networks.get(&network(n)).map(|n| n.vni);
        let command = match *want {
            Want::Read { register } => return Some(Ask::Read(register)),
            Want::Write { register } => {
                let value = Secret(self.unique.to_le_bytes().to_vec());
                Command::SetSecrets([(format!("r{register}"), Some(value))].into())
            }
            Want::Create {
                service,
                network: n,
                replicas,
            } => Command::CreateService {
                name: name("svc", service),
                spec: ServiceSpec {
                    networks: vec![network(n)],
                    replicas,
                    command: vec!["run".into()],
                    ..ServiceSpec::default()
                },
            },
            Want::Scale { service, replicas } => Command::UpdateService {
                name: name("svc", service),
                update: ServiceUpdate {
                    replicas: Some(replicas),
                    ..ServiceUpdate::default()
                },
            },
            Want::Update {
                service,
                release,
                parallelism,
                first,
            } => {
                let name = name("svc", service);
                let intent = self.oracle.state.intent();
                let old = intent.services.get(&name)?;
                let update = RollingUpdate {
                    parallelism,
                    order: if first { Order::StartFirst } else { Order::StopFirst },
                    monitor_ms: 100,
                    ..RollingUpdate::default()
                };
                let spec = ServiceSpec {
                    command: vec![format!("run-{release}")],
                    rollback: update.clone(),
                    update,
                    ..old.spec.clone()
                };
                Command::ReplaceService {
                    spec,
                    seen: old.changed,
                    name,
                }
            }
            Want::Rollback { service } => Command::Rollback {
                name: name("svc", service),
            },
            Want::Publish { service, port } => Command::Publish {
                service: name("svc", service),
                port: PortSpec::new(port, port, Proto::Tcp),
            },
            Want::RemoveService { service } => Command::RemoveService {
                name: name("svc", service),
            },
            Want::Network { network: n } => Command::CreateNetwork {
                name: network(n),
                spec: NetworkSpec {
                    subnet: Some(World::subnet(n)),
                    ..NetworkSpec::default()
                },
                avoid: vec![],
            },
            Want::RemoveNetwork { network: n } => Command::RemoveNetwork { name: network(n) },
            Want::Availability { host, to } => Command::SetAvailability {
                node: node(host)?,
                availability: match to {
                    0 => Availability::Active,
                    1 => Availability::Pause,
                    _ => Availability::Drain,
                },
            },
            Want::Down { host, down } => Command::SetNodeDown {
                node: node(host)?,
                down,
            },
            Want::Block { host, network: n } => Command::AssignBlock {
                node: node(host)?,
                vni: vni(n)?,
            },
            Want::Setting { hours } => Command::UpdateSettings(vec![Change {
                key: Key::CertExpiry,
                value: Value::Time(hours * 3_600_000),
            }]),
            Want::Swap { old } => {
                let token = Secret(self.unique.to_be_bytes().to_vec());
                Command::ReplaceSecrets {
                    seen: self.oracle.state.secrets_at().saturating_sub(u64::from(old)),
                    secrets: [(TOKEN_WORKER.into(), Some(token))].into(),
                    trust: Trust {
                        gossip: vec![self.unique as u32],
                        ..Trust::default()
                    },
                }
            }
            Want::Stranger => Command::Join {
                node: self.newcomer(usize::from(MAX_HOSTS) + 1, Role::Worker),
                secret: Secret(b"what a stranger made up".to_vec()),
                availability: Availability::Active,
            },
            Want::Remove { host } => {
                let node = node(host)?;
                if !self.is_manager(node) {
                    return None;
                }
                Command::RemoveNode { node }
            }
            // Agents give back their own blocks, when nothing is in them.
            Want::Release { .. } if self.script.shape.agents => return None,
            Want::Release { host, network: n } => {
                let (node, vni) = (node(host)?, vni(n)?);
                let intent = self.oracle.state.intent();
                let blocks = intent.blocks.get(&vni)?;
                let last = blocks.iter().rev().find(|b| *b.1 == node)?;
                Command::ReleaseBlocks {
                    node,
                    vni,
                    blocks: vec![*last.0],
                }
            }
        };
        Some(Ask::Propose(Box::new(command)))
    }

    /// A node as it joins.
    pub(crate) fn newcomer(&self, host: usize, role: Role) -> NewNode {
        NewNode {
            hostname: format!("host{host}"),
            role,
            key: crate::agent::public_key(host),
            rpc: (role == Role::Manager).then(|| World::rpc(host)),
        }
    }

    /// Puts a job into a client's queue.
    pub(crate) fn ask(&mut self, client: usize, job: Job) {
        self.clients[client].queue.push_back(job);
        if self.clients[client].current.is_none() {
            self.next_job(client);
        }
    }

    /// A command on behalf of a host or the administrator.
    pub(crate) fn order(&mut self, client: usize, command: Command, purpose: Purpose) {
        let job = Job {
            ask: Ask::Propose(Box::new(command)),
            purpose,
            twice: false,
        };
        self.ask(client, job);
    }

    fn next_job(&mut self, client: usize) {
        let Some(job) = self.clients[client].queue.pop_front() else {
            return;
        };
        let request = self.new_request();
        self.clients[client].current = Some(Current {
            job,
            request,
            floor: self.oracle.floor,
            turn: 0,
            hint: None,
        });
        self.try_now(client);
    }

    /// A try's time has come; an old one's is passed over.
    pub(crate) fn on_try(&mut self, client: usize, request: u128, turn: u32) {
        let due = |c: &Current| c.request == request && c.turn == turn;
        if self.clients[client].current.as_ref().is_some_and(due) {
            self.try_now(client);
        }
    }

    fn try_now(&mut self, client: usize) {
        let request = self.new_request();
        let floor = self.oracle.floor;
        let Some(c) = self.clients[client].current.as_mut() else {
            return;
        };
        c.turn += 1;
        if c.turn > TRIES && c.job.purpose == Purpose::Script && !self.quiet {
            // What became of it nobody will know.
            self.clients[client].current = None;
            return self.next_job(client);
        }
        if !matches!(c.job.ask, Ask::Propose(_)) {
            // Each try is a read of its own.
            (c.request, c.floor) = (request, floor);
        }
        let (request, turn, ask, twice) = (c.request, c.turn, c.job.ask.clone(), c.job.twice);
        let hint = c.hint.take();
        let managers: Vec<usize> = self.managers().collect();
        let any = self.rng.pick(&managers).copied().unwrap_or(0);
        let host = hint.unwrap_or(any);
        self.send_ask(client, host, request, ask.clone());
        if twice && turn == 1 {
            let other = self.rng.pick(&managers).copied().unwrap_or(0);
            self.send_ask(client, other, request, ask);
        }
        let patience = self.rng.range(300_000, 900_000);
        self.plan(patience, Event::Try { client, request, turn });
    }

    fn send_ask(&mut self, client: usize, host: usize, request: u128, ask: Ask) {
        let (loss, way) = (self.net.weather.loss, self.net.way(&mut self.rng));
        if !self.rng.chance(loss) {
            self.plan(
                way,
                Event::Ask {
                    host,
                    client,
                    request,
                    ask,
                },
            );
        }
    }

    /// An answer has come.
    pub(crate) fn on_told(&mut self, client: usize, request: u128, told: Told) -> Check {
        let Some(c) = self.clients[client].current.as_mut().filter(|c| c.request == request) else {
            return Ok(());
        };
        match told {
            Told::Done(outcome) => {
                let floor = c.floor;
                let purpose = c.job.purpose.clone();
                self.oracle.acknowledged(request, &outcome, floor)?;
                self.acknowledged += 1;
                self.clients[client].current = None;
                self.done(client, &purpose, gave(&outcome).cloned());
                self.next_job(client);
            }
            Told::Read(index, value) => {
                match c.job.ask {
                    Ask::Read(register) => {
                        self.oracle.read(register, index, value, c.floor)?;
                        self.reads += 1;
                    }
                    Ask::Raft(_) => {
                        let host = client - of_host(0);
                        let h = &mut self.hosts[host];
                        if h.used == h.asked_with {
                            h.tainted = Some(value);
                        }
                    }
                    Ask::Propose(_) => {}
                }
                self.clients[client].current = None;
                self.next_job(client);
            }
            Told::Not(why) => {
                let turn = c.turn;
                let leader = match why {
                    Unanswered::NotLeader { leader } | Unanswered::Unknown { leader } => leader,
                    _ => None,
                };
                let hint = leader.and_then(|l| self.homes.get(&l).copied());
                if let Some(c) = self.clients[client].current.as_mut() {
                    c.hint = hint;
                }
                let pause = self.rng.range(5_000, 60_000);
                self.plan(pause, Event::Try { client, request, turn });
            }
            Told::Nobody => {
                let turn = c.turn;
                let pause = self.rng.range(5_000, 60_000);
                self.plan(pause, Event::Try { client, request, turn });
            }
        }
        Ok(())
    }

    fn done(&mut self, client: usize, purpose: &Purpose, applied: Option<Applied>) {
        match (purpose, applied) {
            (Purpose::Join(host), Some(Applied::Node(id))) => self.joined(*host, id),
            (Purpose::Renew, _) => self.hosts[client - of_host(0)].renewing = false,
            _ => {}
        }
    }

    fn joined(&mut self, host: usize, id: NodeId) {
        let floor = self.oracle.floor;
        let h = &mut self.hosts[host];
        h.node = Some(id);
        h.joined_at = floor;
        self.start_agent(host);
    }
}
