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
use crate::intent::SlotSet;
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
    /// Where it is in the kernel of the node that answers; none: it is not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub here: Option<super::KernelPlace>,
}

/// `GET /v1/services`, `GET /v1/services/NAME`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceView {
    /// Name.
    pub name: Name,
    /// As the log knows it.
    #[serde(flatten)]
    pub service: Service,
    /// Tasks that there should be: replicas, or, of a global service, nodes that it is meant for; 0 without a command.
    #[serde(default)]
    pub wanted: u32,
    /// Tasks, and endpoints attached by hand, that take new flows on each of their networks.
    pub ready: u32,
    /// Endpoints.
    pub backends: Vec<BackendView>,
    /// Why its change, or a move of its tasks, does not get on at present: the log did not take the next step, which is
    /// tried again. None too where no leader is reached.
    #[serde(default)]
    pub stuck: Option<String>,
}

impl ServiceView {
    /// What is wrong with it, for people; none: nothing.
    pub fn trouble(&self) -> Option<String> {
        let both: Vec<&str> = [&self.service.problem, &self.stuck]
            .into_iter()
            .filter_map(Option::as_deref)
            .collect();
        (!both.is_empty()).then(|| both.join("; "))
    }
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

/// `POST /v1/services/NAME/rebalance`. Answer: [`Rebalanced`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebalance {
    /// Most tasks to move.
    pub budget: u32,
}

/// Answer to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rebalanced {
    /// Revision of the change.
    pub revision: u64,
    /// Tasks that move.
    pub moved: u32,
}

/// `POST /v1/services/NAME/preview`: what would come of a change, without making it. Answer: [`PlacementView`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Preview {
    /// It is made, or becomes this.
    Spec(Box<ServiceSpec>),
    /// It is scaled.
    Replicas(u32),
    /// It is rebalanced, with a budget.
    Rebalance(u32),
}

/// Where a service's slots would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementView {
    /// Per node, by node: only nodes that have some now or would.
    pub nodes: Vec<PlacedOn>,
    /// Tasks that would go on on another node.
    pub moved: u32,
    /// What would be missing, and why.
    pub problem: Option<String>,
}

/// A node's part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedOn {
    /// Node.
    pub node: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Slots there now.
    pub before: SlotSet,
    /// Slots that would be there.
    pub after: SlotSet,
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
