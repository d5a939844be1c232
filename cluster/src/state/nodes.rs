//! Commands about the cluster and its nodes.

use std::sync::Arc;

use model::{
    ClusterSettings, Code, Name, NodeId,
    intent::{Availability, Node, Role},
};

use super::{Applied, InitCluster, NewNode, Pools, Refusal, State, settings};
use crate::{
    ipam::BLOCK_REST_MS,
    mutant::{self, Mutant},
};

/// Longest host name, octets (RFC 1035 2.3.4).
const MAX_HOSTNAME: usize = 253;

impl State {
    pub(super) fn init(&mut self, index: u64, init: &InitCluster) -> Result<Applied, Refusal> {
        if self.pools.is_some() {
            return Err(Refusal::conflict(
                format!("this node is in cluster {} already", self.intent.cluster),
                "netctl status",
            ));
        }
        if init.cluster.len() != 32 || !init.cluster.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Refusal::invalid(
                "the id of a cluster is 32 hexadecimal digits",
                "netctl cluster init",
            ));
        }
        settings::check(&init.settings)?;
        check_node(&init.node)?;
        if init.node.role != Role::Manager {
            return Err(Refusal::invalid(
                "the first node of a cluster is a manager",
                "netctl cluster init",
            ));
        }
        let name: Name = "default"
            .parse()
            .map_err(|_| Refusal::new(Code::Internal, "`default` is no name", "report this"))?;
        // The network is the only part that can still be refused: so it is made first, and the pools are taken back.
        self.pools = Some(Pools::default());
        Arc::make_mut(&mut self.intent).settings.clone_from(&init.settings);
        if let Err(e) = self.create_network(index, &name, &init.default_network, &init.avoid) {
            self.pools = None;
            Arc::make_mut(&mut self.intent).settings = ClusterSettings::default();
            return Err(e);
        }
        self.change(index).cluster = init.cluster.to_ascii_lowercase();
        self.secrets = init.secrets.clone();
        Ok(Applied::Node(self.insert_node(index, &init.node, Availability::Active)))
    }

    pub(super) fn add_node(
        &mut self,
        index: u64,
        node: &NewNode,
        availability: Availability,
    ) -> Result<Applied, Refusal> {
        check_node(node)?;
        self.room_for(node)?;
        let known = self
            .intent
            .nodes
            .iter()
            .find(|(_, n)| n.key == node.key)
            .map(|(id, n)| (*id, n.clone()));
        let Some((id, old)) = known else {
            let id = self.insert_node(index, node, availability);
            self.place_missing(index);
            return Ok(Applied::Node(id));
        };
        if old.role != node.role {
            return Err(Refusal::conflict(
                format!("{id} ({}) is in the cluster with another role", old.hostname),
                format!("netctl node rm {id}, then join again"),
            ));
        }
        if (old.hostname != node.hostname || old.rpc != node.rpc)
            && let Some(n) = self.change(index).nodes.get_mut(&id)
        {
            n.hostname.clone_from(&node.hostname);
            n.rpc.clone_from(&node.rpc);
        }
        Ok(Applied::Node(id))
    }

    pub(super) fn insert_node(&mut self, index: u64, node: &NewNode, availability: Availability) -> NodeId {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        let raft = (node.role == Role::Manager).then(|| self.raft_id());
        self.change(index).nodes.insert(
            id,
            Node {
                hostname: node.hostname.clone(),
                role: node.role,
                availability,
                key: node.key.clone(),
                down: false,
                rpc: node.rpc.clone(),
                raft,
                labels: Default::default(),
                max_tasks: None,
                machine: Default::default(),
            },
        );
        id
    }

    pub(super) fn remove_node(&mut self, index: u64, id: NodeId) -> Result<Applied, Refusal> {
        let node = self.node(id)?;
        if node.role == Role::Manager && !mutant::on(Mutant::IgnoreRole) {
            self.not_last(id, node)?;
            return Err(Refusal::conflict(
                format!("{id} ({}) is a manager", node.hostname),
                format!("netctl node demote {id} first"),
            ));
        }
        let now = self.now_ms;
        self.removed_at = index;
        let intent = self.change(index);
        intent.nodes.remove(&id);
        let mut freed = Vec::new();
        for (vni, blocks) in intent.blocks.iter_mut() {
            let mine = blocks.iter().filter(|(_, owner)| **owner == id);
            freed.extend(mine.map(|(number, _)| (*vni, *number)));
            blocks.retain(|_, owner| *owner != id);
        }
        intent.blocks.retain(|_, blocks| !blocks.is_empty());
        for (vni, number) in freed {
            if let Some(net) = self.nets.get_mut(&vni) {
                net.blocks.release(number, now, BLOCK_REST_MS);
            }
        }
        self.place_around(index, id);
        Ok(Applied::Done)
    }

    pub(super) fn set_down(&mut self, index: u64, id: NodeId, down: bool) -> Result<Applied, Refusal> {
        if self.node(id)?.down == down {
            return Ok(Applied::Unchanged);
        }
        if let Some(n) = self.change(index).nodes.get_mut(&id) {
            n.down = down;
        }
        self.place_around(index, id);
        Ok(Applied::Done)
    }

    /// A node, or the refusal that lists those there are.
    pub(super) fn node(&self, id: NodeId) -> Result<&Node, Refusal> {
        self.intent.nodes.get(&id).ok_or_else(|| {
            let known: Vec<String> = self.intent.nodes.keys().map(NodeId::to_string).collect();
            Refusal::not_found(
                format!("there is no node {id}; nodes: {}", listed(known)),
                "netctl node ls",
            )
        })
    }
}

pub(super) fn check_node(node: &NewNode) -> Result<(), Refusal> {
    if node.key.len() != 32 {
        return Err(Refusal::invalid(
            format!("the node's key has {} octets, Ed25519 keys have 32", node.key.len()),
            "netctl cluster join",
        ));
    }
    let name = &node.hostname;
    if name.is_empty() || name.len() > MAX_HOSTNAME || name.chars().any(char::is_control) {
        return Err(Refusal::invalid(
            format!("the host name {name:?} is empty, longer than {MAX_HOSTNAME}, or has control characters"),
            "hostnamectl set-hostname NAME",
        ));
    }
    Ok(())
}

/// At most ten of `all`, and how many more there are.
pub(super) fn listed(all: Vec<String>) -> String {
    const SHOWN: usize = 10;
    if all.is_empty() {
        return "none".into();
    }
    let more = all.len().saturating_sub(SHOWN);
    let mut text = all.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
