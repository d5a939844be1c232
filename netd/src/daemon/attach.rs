//! Attaching, detaching and draining endpoints of this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use kernel::{
    netns::{self, Netns},
    sockdiag,
};
use model::{
    ApiError, Code, EndpointId, Intent, Name, Proto, Vni,
    api::{EndpointCreate, EndpointDrain, EndpointDrained, EndpointView},
};

use super::{Cluster, internal};
use crate::endpoints::{Endpoint, Made, NoAddress, endpoint_mac};

/// Longest wait for the kernel to hold a new endpoint.
const ATTACH: Duration = Duration::from_secs(10);
/// How long established flows may go on where no service says.
const DRAIN: Duration = Duration::from_secs(10);
/// Longest that they may, whoever says so.
const LONGEST_DRAIN: Duration = Duration::from_secs(24 * 3600);
/// Between two looks at the flows of an endpoint that drains.
const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for a manager to give a block.
const BLOCK: Duration = Duration::from_secs(5);

fn unknown(what: &str, have: Vec<String>, list: &str) -> ApiError {
    let have = if have.is_empty() {
        "there is none".to_owned()
    } else {
        format!("there are: {}", have.join(", "))
    };
    ApiError::new(Code::NotFound, format!("no {what}; {have}"), list)
}

/// An endpoint that is asked for.
struct Part {
    id: EndpointId,
    network: Name,
    vni: Vni,
}

/// Connections from outside to ports of a namespace; one that cannot be looked into has none.
async fn connections(netns: PathBuf, ports: BTreeSet<(Proto, u16)>) -> usize {
    let looked = tokio::task::spawn_blocking(move || {
        let netns = Netns::open(&netns).ok()?;
        netns::run_in(&netns, || sockdiag::connections(&ports)).ok()?.ok()
    });
    looked.await.ok().flatten().unwrap_or(0)
}

impl Cluster {
    /// Endpoints of this node.
    pub fn endpoint_views(&self) -> Vec<EndpointView> {
        let table = self.endpoints();
        table.all().iter().map(|(id, e)| self.endpoint_view(id, e)).collect()
    }

    fn endpoint_view(&self, id: &EndpointId, e: &Endpoint) -> EndpointView {
        let intent = self.intent();
        let network = intent.network_by_vni(e.vni).map(|(_, n)| n);
        EndpointView {
            id: id.clone(),
            node: self.me,
            network: e.network.clone(),
            vni: e.vni,
            netns: e.netns.display().to_string(),
            interface: e.interface.clone(),
            v4: network.map(|n| n.v4(e.offset)),
            v6: network.and_then(|n| n.v6(e.offset)),
            mac: network.map_or(model::Mac([0; 6]), |n| endpoint_mac(n, e.offset)),
            mtu: self
                .reconciled()
                .mtu
                .min(network.and_then(|n| n.mtu).unwrap_or(u16::MAX)),
            service: e.service.clone(),
            part_of: e.of.clone(),
            state: e.state(&intent),
            resolv_conf: format!("nameserver {}\noptions ndots:0\n", self.config.dns.address),
            problem: e.problem.clone(),
        }
    }

    /// Attaches a namespace to its networks; when it returns the kernel holds it all. The same request again gives the
    /// same answer. All of it is done, or nothing.
    pub async fn attach(&self, id: EndpointId, req: EndpointCreate) -> Result<EndpointView, ApiError> {
        let _turn = self.attaching.lock().await;
        let wanted = self.may_attach(&id, &req)?;
        let known = self.endpoints().group(&id);
        if let Some(e) = known.get(&id) {
            let same = e.of.is_none()
                && e.service == req.service
                && e.slot == req.slot
                && e.ours == (req.netns.is_none() && req.pid.is_none())
                && known.len() == wanted.len()
                && wanted.iter().all(|w| known.get(&w.id).is_some_and(|e| e.vni == w.vni));
            if !same || e.draining {
                let networks: Vec<&str> = known.values().map(|e| e.network.as_str()).collect();
                return Err(ApiError::new(
                    Code::Conflict,
                    format!(
                        "endpoint {id} exists already, on network {} with other settings",
                        networks.join(", ")
                    ),
                    format!("netctl endpoint rm {}", e.of.as_ref().unwrap_or(&id)),
                ));
            }
            if e.ours {
                self.namespace(&req, &id).await?;
            }
            return self.all_settled(&wanted).await;
        }
        if let Some(w) = wanted.iter().find(|w| self.endpoints().get(&w.id).is_some()) {
            return Err(ApiError::new(
                Code::Conflict,
                format!("endpoint {} exists already", w.id),
                format!("netctl endpoint rm {}", w.id),
            ));
        }
        let (path, ours) = self.namespace(&req, &id).await?;
        let added = async {
            let interfaces = self.interfaces(&path, wanted.len()).await?;
            let mut group = BTreeMap::new();
            for (w, interface) in wanted.iter().zip(interfaces) {
                let endpoint = Endpoint {
                    vni: w.vni,
                    network: w.network.clone(),
                    netns: path.clone(),
                    ours,
                    interface,
                    offset: self.offset(w.vni).await?,
                    service: req.service.clone(),
                    slot: req.slot,
                    of: (w.id != id).then(|| id.clone()),
                    draining: false,
                    healthy: None,
                    running: self.task_runs(&id),
                    made: Made::now(&self.intent(), req.service.as_ref(), req.slot),
                    listening: Default::default(),
                    attached: false,
                    problem: None,
                };
                group.insert(w.id.clone(), endpoint);
            }
            self.endpoints()
                .put(group)
                .map_err(|e| internal("the endpoint cannot be kept on disk", e))?;
            self.endpoints_changed();
            self.all_settled(&wanted).await
        };
        match added.await {
            Ok(view) => Ok(view),
            Err(e) => {
                // Nothing is half-made.
                if let Err(undo) = self.forget(&id).await {
                    tracing::warn!(endpoint = %id, "undoing an attach: {}", undo.message);
                }
                if ours {
                    self.remove_namespace(path).await;
                }
                Err(e)
            }
        }
    }

    /// The endpoints that a request is about, the first network's first.
    fn may_attach(&self, id: &EndpointId, req: &EndpointCreate) -> Result<Vec<Part>, ApiError> {
        let intent = self.intent();
        let mut parts: Vec<Part> = Vec::new();
        for network in [&req.network].into_iter().chain(&req.further) {
            let id = match parts.is_empty() {
                true => id.clone(),
                // What the client chose may be long already.
                false => id.on(network).as_str().parse()?,
            };
            let vni = self.may_join(&intent, network, req)?;
            if parts.iter().any(|p| p.vni == vni) {
                return Err(ApiError::new(
                    Code::Invalid,
                    format!("the network {network} is named twice"),
                    format!("--network {network} once"),
                ));
            }
            let network = network.clone();
            parts.push(Part { id, network, vni });
        }
        Ok(parts)
    }

    fn may_join(&self, intent: &Intent, on: &Name, req: &EndpointCreate) -> Result<Vni, ApiError> {
        let network = intent.networks.get(on).ok_or_else(|| {
            let have = intent.networks.keys().map(|n| n.to_string()).take(8).collect();
            unknown(&format!("network {on}"), have, "netctl network ls")
        })?;
        if let Some(name) = &req.service {
            let service = intent.services.get(name).ok_or_else(|| {
                let have = intent.services.keys().map(|n| n.to_string()).take(8).collect();
                unknown(&format!("service {name}"), have, "netctl service ls")
            })?;
            if !service.networks().any(|n| n == on) {
                let others: Vec<String> = service.spec.networks.iter().map(|n| n.to_string()).collect();
                return Err(ApiError::new(
                    Code::Conflict,
                    format!("service {name} is not on network {on} but on {}", others.join(", ")),
                    format!("--network {}", others.first().cloned().unwrap_or_default()),
                ));
            }
            match req.slot {
                None if !service.spec.attachable => {
                    return Err(ApiError::new(
                        Code::Forbidden,
                        format!("service {name} takes no endpoints by hand"),
                        "--service of another, or none",
                    ));
                }
                Some(slot) if !intent.holds(name, self.me, slot) => {
                    return Err(ApiError::new(
                        Code::Conflict,
                        format!("slot {slot} of service {name} is not placed on this node"),
                        format!("netctl service ps {name}"),
                    ));
                }
                _ => {}
            }
        }
        Ok(network.vni)
    }

    /// The namespace asked for, or one of ours. `true`: ours.
    async fn namespace(&self, req: &EndpointCreate, id: &EndpointId) -> Result<(PathBuf, bool), ApiError> {
        let (path, ours) = match (&req.netns, req.pid) {
            (Some(_), Some(_)) => {
                return Err(ApiError::new(
                    Code::Invalid,
                    "netns and pid are two ways to say one thing",
                    "--netns PATH or --pid PID",
                ));
            }
            (Some(path), None) => (PathBuf::from(path), false),
            (None, Some(pid)) => (PathBuf::from(format!("/proc/{pid}/ns/net")), false),
            (None, None) => (self.config.netns_dir().join(id.as_str()), true),
        };
        if !path.is_absolute() {
            return Err(ApiError::new(
                Code::Invalid,
                format!("{} is no absolute path", path.display()),
                "--netns /run/netns/NAME",
            ));
        }
        let opened = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || {
                if ours {
                    netns::open_or_create(&path)
                } else {
                    Netns::open(&path)
                }
            })
        };
        let opened = opened.await.map_err(|e| internal("the namespace", e))?;
        let here = Netns::current().map_err(|e| internal("the host's namespace", e))?;
        match opened {
            Ok(ns) if ns.id() == here.id() => Err(ApiError::new(
                Code::Invalid,
                format!("{} is the host's own namespace", path.display()),
                "ip netns add NAME",
            )),
            Ok(_) => Ok((path, ours)),
            Err(e) if e.is_absent() => Err(ApiError::new(
                Code::NotFound,
                e.to_string(),
                "ip netns list, lsns -t net",
            )),
            Err(e) => Err(internal("the namespace", e)),
        }
    }

    /// `eth0`, or the next ones that are free in the namespace.
    async fn interfaces(&self, path: &Path, count: usize) -> Result<Vec<String>, ApiError> {
        let there = {
            let path = path.to_owned();
            tokio::task::spawn_blocking(move || -> Result<Vec<String>, String> {
                let ns = Netns::open(&path).map_err(|e| e.to_string())?;
                let mut rtnl = kernel::rtnl::Rtnl::open_in(&ns).map_err(|e| e.to_string())?;
                Ok(rtnl
                    .links()
                    .map_err(|e| e.to_string())?
                    .into_iter()
                    .map(|l| l.name)
                    .collect())
            })
        };
        let mut taken = there
            .await
            .map_err(|e| internal("the namespace", e))?
            .map_err(|e| internal("the namespace's devices", e))?;
        let table = self.endpoints();
        taken.extend(
            table
                .all()
                .values()
                .filter(|e| e.netns == path)
                .map(|e| e.interface.clone()),
        );
        let free: Vec<String> = (0..1_000)
            .map(|i| format!("eth{i}"))
            .filter(|n| !taken.contains(n))
            .take(count)
            .collect();
        match free.len() == count {
            true => Ok(free),
            false => Err(ApiError::new(
                Code::Conflict,
                "the namespace has a thousand devices",
                "another namespace",
            )),
        }
    }

    /// A free address, with a new block from a manager when needed.
    async fn offset(&self, vni: Vni) -> Result<u32, ApiError> {
        let mut intent = self.intent_changes();
        for _ in 0..3 {
            let now = intent.borrow_and_update().clone();
            match self.endpoints().free_offset(&now, self.me, vni) {
                Ok(o) => return Ok(o),
                Err(NoAddress::NeedBlock) => {}
            }
            let got = tokio::time::timeout(BLOCK, async {
                self.need_block(vni).await?;
                let blocks = |i: &model::Intent| {
                    i.blocks
                        .get(&vni)
                        .map_or(0, |b| b.values().filter(|n| **n == self.me).count())
                };
                let had = blocks(&now);
                let _ = intent.wait_for(|i| blocks(i) > had).await;
                Ok::<_, ApiError>(())
            });
            match got.await {
                Ok(r) => r?,
                Err(_) => break,
            }
        }
        Err(ApiError::new(
            Code::Unavailable,
            "this node's address blocks are full, and no manager gave another one",
            "netctl cluster members (is a manager reachable?), netctl network inspect (is the subnet used up?)",
        ))
    }

    /// Waits until the kernel holds an endpoint, or says why not.
    async fn settled(&self, id: &EndpointId) -> Result<EndpointView, ApiError> {
        self.reconciler.look();
        let mut status = self.reconcile_changes();
        let wait = status.wait_for(|s| s.attached.contains_key(id) || s.endpoints.contains_key(id));
        let seen = match tokio::time::timeout(ATTACH, wait).await {
            Ok(Ok(s)) => s.endpoints.get(id).cloned(),
            Ok(Err(_)) => Some("netd is stopping".to_owned()),
            Err(_) => Some(format!("the kernel did not hold it within {} s", ATTACH.as_secs())),
        };
        if let Some(why) = seen {
            return Err(ApiError::new(
                Code::Internal,
                format!("endpoint {id}: {why}"),
                "netctl status",
            ));
        }
        let table = self.endpoints();
        let e = table
            .get(id)
            .ok_or_else(|| internal("the endpoint", "it was removed meanwhile"))?;
        Ok(self.endpoint_view(id, e))
    }

    /// As [`Cluster::settled`], for each, and names are answered there: whoever starts in the namespace may ask at once.
    /// Tells of the first.
    async fn all_settled(&self, parts: &[Part]) -> Result<EndpointView, ApiError> {
        let mut first = None;
        for part in parts {
            let view = self.settled(&part.id).await?;
            first.get_or_insert(view);
        }
        self.names_follow().await;
        first.ok_or_else(|| internal("the endpoint", "no network was named"))
    }

    /// Detaches an endpoint and those that belong to it; `false`: there was none.
    pub async fn detach(&self, id: &EndpointId) -> Result<bool, ApiError> {
        let _turn = self.attaching.lock().await;
        let Some(e) = self.by_itself(id)? else {
            return Ok(false);
        };
        self.forget(id).await?;
        if e.ours && !self.endpoints().all().values().any(|o| o.netns == e.netns) {
            self.remove_namespace(e.netns).await;
        }
        Ok(true)
    }

    /// An endpoint, if there is one; refused when it belongs to another one.
    fn by_itself(&self, id: &EndpointId) -> Result<Option<Endpoint>, ApiError> {
        let found = self.endpoints().get(id).cloned();
        match found.as_ref().and_then(|e| e.of.as_ref()) {
            Some(first) => Err(ApiError::new(
                Code::Conflict,
                format!("endpoint {id} belongs to {first}: the two are one task on several networks"),
                format!("netctl endpoint rm {first}"),
            )),
            None => Ok(found),
        }
    }

    async fn forget(&self, id: &EndpointId) -> Result<(), ApiError> {
        let removed = self
            .endpoints()
            .remove(id)
            .map_err(|e| internal("the endpoints on disk", e))?;
        if removed.is_empty() {
            return Ok(());
        }
        self.endpoints_changed();
        self.reconciler.look();
        let mut status = self.reconcile_changes();
        let gone = status.wait_for(|s| removed.keys().all(|id| !s.attached.contains_key(id)));
        let _ = tokio::time::timeout(ATTACH, gone).await;
        Ok(())
    }

    async fn remove_namespace(&self, path: PathBuf) {
        // The sockets of names are let go first: they would keep the namespace alive.
        self.names_follow().await;
        let done = tokio::task::spawn_blocking(move || netns::remove(&path)).await;
        if let Ok(Err(e)) = done {
            tracing::warn!("{e}");
        }
    }

    /// Takes an endpoint and those that belong to it out of new flows on every living node, and waits until its established ones have ended, as long
    /// as its service allows (CONTRACTS, Draining). TCP and SCTP: an UDP flow has no end that anybody could see.
    pub async fn drain(&self, id: &EndpointId, req: &EndpointDrain) -> Result<EndpointDrained, ApiError> {
        let Some(e) = self.by_itself(id)? else {
            return Err(ApiError::new(
                Code::NotFound,
                format!("no endpoint {id} on this node"),
                "netctl endpoint ls",
            ));
        };
        let (group, netns, ports, limit) = {
            let mut table = self.endpoints();
            let mut group = table.group(id);
            group.values_mut().for_each(|e| e.draining = true);
            let intent = self.intent();
            let spec = e.service.as_ref().and_then(|s| intent.services.get(s));
            let spec = spec.map(|s| e.slot.map_or(&s.spec, |slot| s.template(slot).0));
            let limit = req.timeout_ms.or(spec.map(|s| s.drain_timeout_ms));
            let limit = limit.map_or(DRAIN, |ms| Duration::from_millis(ms).min(LONGEST_DRAIN));
            // The VIP leads to every port that is listened on.
            let asked = spec.map(|s| s.publish.iter().map(|p| (p.proto, p.target)).collect());
            let asked: Vec<(Proto, u16)> = asked.unwrap_or_default();
            let ports: BTreeSet<(Proto, u16)> = e.listening.iter().chain(&asked).copied().collect();
            let netns = e.netns.clone();
            table
                .put(group.clone())
                .map_err(|e| internal("the endpoints on disk", e))?;
            (group, netns, ports, limit)
        };
        let version = group.keys().map(|id| self.publish_row(id)).max().unwrap_or(0);
        self.endpoints_changed();
        let acknowledged = self
            .held_everywhere(version, self.intent().settings.drain_ack_timeout())
            .await;
        let end = tokio::time::Instant::now() + limit;
        let cut = loop {
            // Who detached it meanwhile does not wait for anything.
            if self.endpoints().get(id).is_none_or(|e| !e.draining) {
                break 0;
            }
            let left = connections(netns.clone(), ports.clone()).await;
            if left == 0 || tokio::time::Instant::now() >= end {
                break left;
            }
            tokio::time::sleep_until(end.min(tokio::time::Instant::now() + LOOK)).await;
        };
        Ok(EndpointDrained { acknowledged, cut })
    }
}
