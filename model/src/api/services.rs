//! Networks, services, published ports.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::ids::EndpointId;
use crate::ids::Name;
use crate::ids::NodeId;
use crate::ids::Proto;
use crate::ids::Vni;
use crate::intent::Network;
use crate::intent::Service;
use crate::row::EndpointState;
use crate::spec::PortSpec;
use crate::spec::ServiceSpec;

/// `GET /v1/networks`, `GET /v1/networks/NAME`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkView {
    /// Name.
    pub name: Name,
    /// As the log knows it.
    #[serde(flatten)]
    pub network: Network,
    /// Services on it.
    pub services: Vec<Name>,
    /// Endpoints known on all nodes.
    pub endpoints: u32,
    /// Blocks given out: node -> prefixes.
    pub blocks: BTreeMap<NodeId, Vec<String>>,
}

/// `GET /v1/services`, `GET /v1/services/NAME`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceView {
    /// Name.
    pub name: Name,
    /// As the log knows it.
    #[serde(flatten)]
    pub service: Service,
    /// Tasks, and endpoints attached by hand, that take new flows on each of their networks.
    pub ready: u32,
    /// Endpoints.
    pub backends: Vec<BackendView>,
}

/// A backend as this node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackendView {
    /// Endpoint.
    pub endpoint: EndpointId,
    /// Node.
    pub node: NodeId,
    /// Host name of the node.
    pub hostname: String,
    /// Slot, for a task: one on several networks has a backend on each.
    #[serde(default)]
    pub slot: Option<u32>,
    /// Network.
    pub vni: Vni,
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
    /// State.
    pub state: EndpointState,
    /// Whether it is in the new-flow set here.
    pub in_use: bool,
    /// Why not, when it is not.
    pub why: Option<String>,
    /// Listening ports.
    pub listening: Vec<(Proto, u16)>,
}

impl BackendView {
    /// What it is counted as: a task has a backend on each of its networks.
    pub fn unit(&self, service: &Name) -> (NodeId, EndpointId) {
        let id = self.slot.map(|s| EndpointId::task(service, s));
        (self.node, id.unwrap_or_else(|| self.endpoint.clone()))
    }
}

/// `POST /v1/services/NAME/scale`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Tasks.
    pub replicas: u32,
}

/// `POST /v1/services/NAME/update`: what it should be, whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    /// All of it.
    pub spec: ServiceSpec,
    /// [`Service::changed`] of what was looked at: refused when somebody changed it since.
    pub seen: u64,
}

/// `POST /v1/publish` and `POST /v1/unpublish`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Service; none: the one whose tasks listen on the target port, or the only one there is.
    #[serde(default)]
    pub service: Option<Name>,
    /// Ports.
    pub port: PortSpec,
}

/// Answer to publish and unpublish.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PublishAnswer {
    /// Revision of the change.
    pub revision: u64,
    /// Service chosen.
    pub service: Name,
    /// Ports.
    pub port: PortSpec,
}
