//! Endpoints attached on this node: what was asked for, kept on disk, and their addresses, given out from the blocks
//! that the log assigned to this node. No round trip and no manager is needed while a block has room.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use model::{
    EndpointId, EndpointState, Intent, Mac, Name, NodeId, PortSpec, Proto, Vni,
    intent::{BLOCK, Network, PublishedPort, Service},
};
use serde::{Deserialize, Serialize};

/// How long an endpoint's address rests after use (CONTRACTS, Addresses).
pub const QUARANTINE: Duration = Duration::from_secs(60);

/// An endpoint of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Network.
    pub vni: Vni,
    /// Its name when attached.
    pub network: Name,
    /// Namespace.
    pub netns: PathBuf,
    /// Whether netd made the namespace, and removes it at the end.
    pub ours: bool,
    /// Interface in the namespace.
    pub interface: String,
    /// Host offset in the network's subnets.
    pub offset: u32,
    /// Service.
    pub service: Option<Name>,
    /// Slot.
    pub slot: Option<u32>,
    /// The endpoint that it belongs to, for a task's further networks: both live and end together.
    #[serde(default)]
    pub of: Option<EndpointId>,
    /// Ordered to drain: never ready again.
    pub draining: bool,
    /// What its health check said last: kept, so that a restart of netd withdraws nothing.
    #[serde(default)]
    pub healthy: Option<bool>,
    /// Whether its task runs, as its runner told last; none: nothing was told. Not kept.
    #[serde(skip)]
    pub running: Option<bool>,
    /// What its task was made for. Not kept: after a restart it is what the log says that it should be.
    #[serde(skip)]
    pub made: Option<Made>,
    /// What listens in the namespace, as last seen. Not kept.
    #[serde(skip)]
    pub listening: BTreeSet<(Proto, u16)>,
    /// Whether the kernel holds all of it. Not kept.
    #[serde(skip)]
    pub attached: bool,
    /// What is wrong with it. Not kept.
    #[serde(skip)]
    pub problem: Option<String>,
}

/// What a task was made for. The log tells which slots a change has not reached, but not which it has reached and not
/// replaced yet: these go on as they are until they end, and their endpoints with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    generation: u64,
    publish: Vec<PortSpec>,
}

impl Made {
    /// For what a slot should run now.
    pub fn now(intent: &Intent, service: Option<&Name>, slot: Option<u32>) -> Option<Made> {
        let (spec, generation) = intent.services.get(service?)?.template(slot?);
        let publish = spec.publish.clone();
        Some(Made { generation, publish })
    }
}

/// MAC of an endpoint: locally administered, and the IPv4 address, so unique within its network.
pub fn endpoint_mac(network: &Network, offset: u32) -> Mac {
    let [a, b, c, d] = network.v4(offset).octets();
    Mac([0x02, 0x6e, a, b, c, d])
}

/// MAC of a node on every network.
pub fn node_mac(id: NodeId) -> Mac {
    let [a, b, c, d] = (id.0 as u32).to_be_bytes();
    Mac([0x06, 0x6e, a, b, c, d])
}

/// Why an address cannot be given.
#[derive(Debug, PartialEq, Eq)]
pub enum NoAddress {
    /// No block of this network has room: ask for one.
    NeedBlock,
}

/// The table on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    endpoints: BTreeMap<EndpointId, Endpoint>,
    /// (network, offset) -> until when, seconds since 1970.
    resting: Vec<(Vni, u32, u64)>,
}

/// Endpoints of this node.
#[derive(Debug)]
pub struct Endpoints {
    file: PathBuf,
    kept: Kept,
}

fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

impl Endpoints {
    /// Reads the table; a missing file is an empty table, a damaged one an error (its endpoints' addresses must not be
    /// given out again).
    pub fn open(state_dir: &Path) -> std::io::Result<Endpoints> {
        let file = state_dir.join("endpoints.json");
        let kept = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                std::io::Error::other(format!(
                    "{}: {e}; try: remove it when no endpoint is attached",
                    file.display()
                ))
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(e) => return Err(e),
        };
        Ok(Endpoints { file, kept })
    }

    /// All of them.
    pub fn all(&self) -> &BTreeMap<EndpointId, Endpoint> {
        &self.kept.endpoints
    }

    /// One of them.
    pub fn get(&self, id: &EndpointId) -> Option<&Endpoint> {
        self.kept.endpoints.get(id)
    }

    /// Changes what is not kept on disk.
    pub fn note(&mut self, id: &EndpointId, change: impl FnOnce(&mut Endpoint)) {
        if let Some(e) = self.kept.endpoints.get_mut(id) {
            change(e);
        }
    }

    /// Takes notice of a newer intent: what is published around a task, it was made for too.
    pub fn follow(&mut self, intent: &Intent) {
        for e in self.kept.endpoints.values_mut() {
            let now = Made::now(intent, e.service.as_ref(), e.slot);
            let same = |now: &Made| e.made.as_ref().is_none_or(|made| made.generation == now.generation);
            if let Some(now) = now.filter(same) {
                e.made = Some(now);
            }
        }
    }

    /// Lowest free offset of a network in this node's blocks.
    pub fn free_offset(&self, intent: &Intent, me: NodeId, vni: Vni) -> Result<u32, NoAddress> {
        let now = now_s();
        let taken: BTreeSet<u32> = self
            .kept
            .endpoints
            .values()
            .filter(|e| e.vni == vni)
            .map(|e| e.offset)
            .chain(
                self.kept
                    .resting
                    .iter()
                    .filter(|(v, _, until)| *v == vni && *until > now)
                    .map(|(_, o, _)| *o),
            )
            .collect();
        let size = intent.network_by_vni(vni).map_or(0, |(_, n)| n.size());
        let blocks = intent
            .blocks
            .get(&vni)
            .into_iter()
            .flatten()
            .filter(|(_, owner)| **owner == me);
        blocks
            .flat_map(|(k, _)| k * BLOCK..(k + 1) * BLOCK)
            // The last address of a subnet is its broadcast address.
            .find(|o| !taken.contains(o) && *o + 1 < size)
            .ok_or(NoAddress::NeedBlock)
    }

    /// Addresses left in this node's blocks of a network.
    pub fn room(&self, intent: &Intent, me: NodeId, vni: Vni) -> u32 {
        let blocks = intent
            .blocks
            .get(&vni)
            .into_iter()
            .flatten()
            .filter(|(_, owner)| **owner == me)
            .count() as u32;
        let used = self.kept.endpoints.values().filter(|e| e.vni == vni).count() as u32;
        (blocks * BLOCK).saturating_sub(used)
    }

    /// An endpoint and those that belong to it; the first one first.
    pub fn group(&self, id: &EndpointId) -> BTreeMap<EndpointId, Endpoint> {
        let all = self.kept.endpoints.iter();
        all.filter(|(other, e)| *other == id || e.of.as_ref() == Some(id))
            .map(|(id, e)| (id.clone(), e.clone()))
            .collect()
    }

    /// Adds or replaces some, all of them or none, on disk before it is true.
    pub fn put(&mut self, group: BTreeMap<EndpointId, Endpoint>) -> std::io::Result<()> {
        let mut before = Vec::new();
        for (id, e) in group {
            before.push((id.clone(), self.kept.endpoints.insert(id, e)));
        }
        self.save().inspect_err(|_| {
            // Nothing is half-made: memory goes back to what the disk holds.
            for (id, e) in before {
                match e {
                    Some(e) => self.kept.endpoints.insert(id, e),
                    None => self.kept.endpoints.remove(&id),
                };
            }
        })
    }

    /// Takes what a runner tells of a task, for each of its endpoints. `true`: something has changed.
    pub fn told(&mut self, id: &EndpointId, running: bool, healthy: Option<bool>) -> std::io::Result<bool> {
        let task = id.slot();
        let of_task = |(key, e): &(&EndpointId, &mut Endpoint)| {
            let here = e.service.as_ref().zip(e.slot);
            *key == id || task.as_ref().is_some_and(|(name, slot)| here == Some((name, *slot)))
        };
        let (mut changed, mut keep) = (false, false);
        for (_, e) in self.kept.endpoints.iter_mut().filter(of_task) {
            changed |= (e.running, e.healthy) != (Some(running), healthy);
            keep |= e.healthy != healthy;
            (e.running, e.healthy) = (Some(running), healthy);
        }
        if keep {
            self.save()?;
        }
        Ok(changed)
    }

    /// Takes an endpoint and those that belong to it out; their addresses rest. Tells which there were.
    pub fn remove(&mut self, id: &EndpointId) -> std::io::Result<BTreeMap<EndpointId, Endpoint>> {
        let now = now_s();
        let group = self.group(id);
        if group.is_empty() {
            return Ok(group);
        }
        self.kept.resting.retain(|(_, _, until)| *until > now);
        for (id, e) in &group {
            self.kept.endpoints.remove(id);
            self.kept.resting.push((e.vni, e.offset, now + QUARANTINE.as_secs()));
        }
        self.save()?;
        Ok(group)
    }

    fn save(&self) -> std::io::Result<()> {
        let bytes = serde_json::to_vec_pretty(&self.kept).map_err(std::io::Error::other)?;
        crate::disk::write_atomic(&self.file, &bytes, 0o600)
    }
}

impl Endpoint {
    /// Life stage, for its row: ready when its task runs, is healthy, and listens on every published port of its service.
    pub fn state(&self, intent: &Intent) -> EndpointState {
        if self.draining {
            return EndpointState::Draining;
        }
        if !self.attached || !self.is_fit(intent) || !self.listens(intent) {
            EndpointState::Starting
        } else {
            EndpointState::Ready
        }
    }

    /// Whether nothing that its runner told speaks against it. Where the service asks for a health check, one must have
    /// succeeded; what was attached by hand is checked by who attached it, if at all.
    pub fn is_fit(&self, intent: &Intent) -> bool {
        let service = self.service.as_ref().and_then(|s| intent.services.get(s));
        let asks = service.is_some_and(|s| match self.slot {
            Some(slot) => s.template(slot).0.health.is_some(),
            None => s.spec.health.is_some(),
        });
        self.running != Some(false) && (!asks || self.healthy.unwrap_or(self.slot.is_none()))
    }

    /// Whether every published port of its service that it was made for is listened on.
    pub fn listens(&self, intent: &Intent) -> bool {
        let service = self.service.as_ref().and_then(|s| intent.services.get(s));
        let listens = |s: &Service| {
            let mut asked = s
                .ports
                .values()
                .filter_map(|p| Some((p.spec.proto, self.target(s, p)?)));
            asked.all(|port| self.listening.contains(&port))
        };
        service.is_none_or(listens)
    }

    /// The port that a published one of its service leads to here ([`Service::target`]).
    pub fn target(&self, service: &Service, port: &PublishedPort) -> Option<u16> {
        match &self.made {
            Some(made) => service.target_of(made.generation, &made.publish, port),
            None => service.target(self.slot, port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent() -> (Intent, Vni) {
        let vni = Vni::try_from(4096).unwrap();
        let net = Network {
            vni,
            subnet: "10.77.0.0/24".parse().unwrap(),
            subnet6: None,
            internal: false,
            mtu: None,
        };
        let mut i = Intent::default();
        i.networks.insert("app".parse().unwrap(), net);
        i.blocks
            .insert(vni, BTreeMap::from([(2, NodeId(1)), (3, NodeId(2)), (15, NodeId(1))]));
        (i, vni)
    }

    fn endpoint(vni: Vni, offset: u32) -> Endpoint {
        Endpoint {
            vni,
            network: "app".parse().unwrap(),
            netns: "/proc/1/ns/net".into(),
            ours: false,
            interface: "eth0".into(),
            offset,
            service: None,
            slot: None,
            of: None,
            draining: false,
            healthy: None,
            running: None,
            made: None,
            listening: BTreeSet::new(),
            attached: true,
            problem: None,
        }
    }

    #[test]
    fn addresses_come_from_own_blocks_and_rest_after_use() {
        let dir = std::env::temp_dir().join(format!("netd-endpoints-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (intent, vni) = intent();
        let me = NodeId(1);
        let mut t = Endpoints::open(&dir).unwrap();
        let mut given = Vec::new();
        while let Ok(o) = t.free_offset(&intent, me, vni) {
            t.put([(format!("e{o}").parse().unwrap(), endpoint(vni, o))].into())
                .unwrap();
            given.push(o);
        }
        // Blocks 2 and 15, less the broadcast address at the end of the /24.
        assert_eq!(given, (32..48).chain(240..255).collect::<Vec<_>>());
        t.remove(&"e40".parse().unwrap()).unwrap();
        assert_eq!(t.free_offset(&intent, me, vni), Err(NoAddress::NeedBlock), "40 rests");
        let again = Endpoints::open(&dir).unwrap();
        assert_eq!(again.all().len(), 30);
        assert_eq!(
            again.free_offset(&intent, me, vni),
            Err(NoAddress::NeedBlock),
            "also after a restart"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_tasks_endpoints_end_together() {
        let dir = std::env::temp_dir().join(format!("netd-endpoints-group-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (_, vni) = intent();
        let id = |t: &str| t.parse::<EndpointId>().unwrap();
        let mut t = Endpoints::open(&dir).unwrap();
        let part = |o| Endpoint {
            of: Some(id("web.1")),
            ..endpoint(vni, o)
        };
        let task = [(id("web.1"), endpoint(vni, 32)), (id("web.1.db"), part(33))];
        t.put(task.into()).unwrap();
        t.put([(id("web.10"), endpoint(vni, 34))].into()).unwrap();
        let mut again = Endpoints::open(&dir).unwrap();
        assert_eq!(again.group(&id("web.1")).len(), 2, "also after a restart");
        assert_eq!(again.remove(&id("web.1")).unwrap().len(), 2);
        assert_eq!(again.all().keys().collect::<Vec<_>>(), [&id("web.10")]);
        assert!(again.remove(&id("web.1")).unwrap().is_empty());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_task_is_ready_on_the_ports_that_it_was_made_for() {
        use model::intent::{Pending, Rollout, RolloutState, SlotSet};
        let (mut intent, vni) = intent();
        let ports = |text: &[&str]| {
            text.iter()
                .map(|p| p.parse().unwrap())
                .collect::<Vec<model::PortSpec>>()
        };
        let mut service = Service {
            generation: 2,
            ..Service::default()
        };
        service.spec.publish = ports(&["80:9090", "443"]);
        for spec in &service.spec.publish {
            let port = PublishedPort {
                spec: *spec,
                auto: false,
                mark: 1,
            };
            service.ports.insert(spec.key(), port);
        }
        let mut before = service.spec.clone();
        before.publish = ports(&["80:8080"]);
        service.rollout = Some(Rollout {
            state: RolloutState::Updating,
            pending: vec![Pending {
                spec: Box::new(before),
                generation: 1,
                slots: SlotSet(vec![(1, 1)]),
            }],
            surge: SlotSet::default(),
            message: String::new(),
        });
        let web: Name = "web".parse().unwrap();
        intent.services.insert(web.clone(), service);
        let listens = |slot, on: &[u16]| {
            let listening = on.iter().map(|p| (Proto::Tcp, *p)).collect();
            let e = Endpoint {
                service: Some(web.clone()),
                slot,
                listening,
                ..endpoint(vni, 32)
            };
            e.listens(&intent)
        };
        assert!(
            listens(Some(1), &[8080]) && !listens(Some(1), &[9090, 443]),
            "not reached yet"
        );
        assert!(listens(Some(2), &[9090, 443]) && !listens(Some(2), &[8080, 443]));
        assert!(listens(None, &[9090, 443]) && !listens(None, &[8080]));

        // The change has come as far as the slot, and its task is not replaced yet.
        let dir = std::env::temp_dir().join(format!("netd-endpoints-made-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut t = Endpoints::open(&dir).unwrap();
        let id: EndpointId = "web.1".parse().unwrap();
        let task = Endpoint {
            service: Some(web.clone()),
            slot: Some(1),
            listening: BTreeSet::from([(Proto::Tcp, 8080)]),
            ..endpoint(vni, 32)
        };
        t.put([(id.clone(), task)].into()).unwrap();
        let ready = |t: &Endpoints, i: &Intent| t.get(&id).map(|e| e.listens(i));
        t.follow(&intent);
        assert_eq!(ready(&t, &intent), Some(true));
        if let Some(s) = intent.services.get_mut(&web) {
            s.rollout = None;
        }
        t.follow(&intent);
        assert_eq!(ready(&t, &intent), Some(true), "its endpoint ends with it");
        t.note(&id, |e| e.made = None);
        assert_eq!(ready(&t, &intent), Some(false));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_task_that_is_checked_is_ready_when_it_was_found_healthy_also_after_a_restart() {
        use model::spec::{Health, Probe};
        let dir = std::env::temp_dir().join(format!("netd-endpoints-told-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (mut intent, vni) = intent();
        let web: Name = "web".parse().unwrap();
        let mut service = model::intent::Service {
            index: 1,
            generation: 1,
            ..model::intent::Service::default()
        };
        intent.services.insert(web.clone(), service.clone());
        let mut t = Endpoints::open(&dir).unwrap();
        let id: EndpointId = "web.1".parse().unwrap();
        let task = Endpoint {
            service: Some(web.clone()),
            slot: Some(1),
            ..endpoint(vni, 32)
        };
        t.put([(id.clone(), task.clone())].into()).unwrap();
        // On its second network, and a stranger.
        t.put([("web.1.db".parse().unwrap(), task)].into()).unwrap();
        t.put([("web.2".parse().unwrap(), endpoint(vni, 33))].into()).unwrap();
        let states = |t: &Endpoints, i: &Intent| t.all().values().map(|e| e.state(i)).collect::<Vec<_>>();
        use EndpointState::{Ready, Starting};
        assert_eq!(
            states(&t, &intent),
            [Ready, Ready, Ready],
            "nothing is told, nothing is asked for"
        );
        assert!(t.told(&id, false, None).unwrap());
        assert_eq!(states(&t, &intent), [Starting, Starting, Ready]);
        assert!(t.told(&id, true, None).unwrap() && !t.told(&id, true, None).unwrap());
        assert_eq!(states(&t, &intent), [Ready, Ready, Ready]);
        service.spec.health = Some(Health::of(Probe::Tcp { port: 80 }));
        intent.services.insert(web, service);
        assert_eq!(states(&t, &intent), [Starting, Starting, Ready]);
        t.told(&id, true, Some(true)).unwrap();
        assert_eq!(states(&t, &intent), [Ready, Ready, Ready]);
        let mut again = Endpoints::open(&dir).unwrap();
        for id in ["web.1", "web.1.db", "web.2"] {
            again.note(&id.parse().unwrap(), |e| e.attached = true);
        }
        assert_eq!(states(&again, &intent), [Ready, Ready, Ready], "after a restart");
        t.told(&id, true, Some(false)).unwrap();
        assert_eq!(states(&t, &intent), [Starting, Starting, Ready]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
