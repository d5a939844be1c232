//! A service.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Health, Lb, PlacementSpec, PortSpec, Restart, RollingUpdate, SourceIp, Timeouts};
use crate::ids::Name;

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As many as `replicas` says.
    #[default]
    Replicated,
    /// One on each node that its constraints allow; its slot is the node's number. `replicas` is not looked at.
    Global,
}

/// What the service's name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// A virtual address, balanced.
    #[default]
    Vip,
    /// The addresses of its ready tasks, in turn; nothing can be published by the mesh.
    Dnsrr,
}

/// A service as asked for. This is its form in JSON; that of the log is in `packed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct ServiceSpec {
    /// Networks to join; empty: `default`.
    pub networks: Vec<Name>,
    /// Replicated or global.
    pub mode: Mode,
    /// Tasks of a replicated service, 0 to [`ServiceSpec::MAX_REPLICAS`].
    pub replicas: u32,
    /// Command and arguments that netd-run starts for each task; empty: an orchestrator attaches the endpoints.
    pub command: Vec<String>,
    /// Environment of the command, beside `NETD_SERVICE`, `NETD_SLOT`, `NETD_NODE`. Values may have templates, as
    /// `hostname`.
    pub env: BTreeMap<String, String>,
    /// Host name inside each task, with [templates](super::template): `{{.Service}}`, `{{.Slot}}`, `{{.Node}}`. None: the
    /// host's. Without `{{.Slot}}` all tasks have the same one, which is no conflict: it is theirs alone, names on networks
    /// are those of services and tasks.
    pub hostname: Option<String>,
    /// For people and filters; not looked at by netd.
    pub labels: BTreeMap<String, String>,
    /// Ports on every node, or on the nodes of its tasks.
    pub publish: Vec<PortSpec>,
    /// What its name leads to.
    pub endpoint_mode: EndpointMode,
    /// Who of its tasks gets a new flow. Default: maglev.
    pub lb: Lb,
    /// When a task is fit to be used, beyond listening on the published ports.
    pub health: Option<Health>,
    /// What happens when a task ends.
    pub restart: Restart,
    /// How changes are carried out.
    pub update: RollingUpdate,
    /// How a rollback is carried out.
    pub rollback: RollingUpdate,
    /// Which nodes.
    pub placement: PlacementSpec,
    /// How long SIGTERM is given before SIGKILL, ms.
    pub stop_grace_ms: u64,
    /// How long established flows may go on after a drain began, ms.
    pub drain_timeout_ms: u64,
    /// Whether endpoints may be attached by hand (`netctl endpoint add --service`).
    pub attachable: bool,
    /// What its backends see as the source of what comes by a published port. Default: the client.
    #[serde(skip_serializing_if = "is_default")]
    pub source_ip: SourceIp,
    /// Who reaches its published ports: sources within these, at most [`ServiceSpec::MAX_ALLOW_FROM`]; empty: everybody.
    /// A node reaches its own, and the tasks of its networks always do. It is asked when a flow begins.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub allow_from: BTreeSet<IpNet>,
    /// How long its flows are remembered without a packet.
    #[serde(skip_serializing_if = "is_default")]
    pub timeouts: Timeouts,
}

/// What is not said is not shown: so a netd that does not know it reads all the rest.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl ServiceSpec {
    /// Most tasks of one service.
    pub const MAX_REPLICAS: u32 = 1_000_000;
    /// Most sources that are named as allowed.
    pub const MAX_ALLOW_FROM: usize = 256;

    /// Whether a task that runs for `self` must be replaced to serve `new`: what its process or its endpoints were made
    /// from differs, or the port of it that a published one leads to. Replicas, published ports that come and go, placement
    /// and the rules of updates and restarts change around it.
    pub fn replaces(&self, new: &ServiceSpec) -> bool {
        let made_from = |s: &ServiceSpec| (s.command.clone(), s.env.clone(), s.hostname.clone(), s.networks.clone());
        let leads_elsewhere = |p: &PortSpec| {
            let mut there = new.publish.iter().filter(|q| p.same_place(q));
            there.any(|q| q.target != p.target)
        };
        made_from(self) != made_from(new) || self.publish.iter().any(leads_elsewhere)
    }
}

impl Default for ServiceSpec {
    fn default() -> Self {
        ServiceSpec {
            networks: Vec::new(),
            mode: Mode::default(),
            replicas: 1,
            command: Vec::new(),
            env: BTreeMap::new(),
            hostname: None,
            labels: BTreeMap::new(),
            publish: Vec::new(),
            endpoint_mode: EndpointMode::default(),
            lb: Lb::default(),
            health: None,
            restart: Restart::default(),
            update: RollingUpdate::default(),
            rollback: RollingUpdate::default(),
            placement: PlacementSpec::default(),
            stop_grace_ms: 10_000,
            drain_timeout_ms: 10_000,
            attachable: true,
            source_ip: SourceIp::default(),
            allow_from: BTreeSet::new(),
            timeouts: Timeouts::default(),
        }
    }
}
