//! `/v1/networks`

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use cluster::state::Command;
use model::{
    Code, Name, NetworkSpec, NodeId, RowBody,
    api::{Changed, NetworkView},
    intent::Network,
};

use super::{
    Shared,
    answer::{Answer, Body, Fail, segment},
};
use crate::daemon::Cluster;

/// A network as clients see it.
pub(super) fn view(c: &Cluster, name: &Name, network: &Network) -> NetworkView {
    let (intent, facts) = (c.intent(), c.facts());
    let mut blocks: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
    for (k, owner) in intent.blocks.get(&network.vni).into_iter().flatten() {
        let (v4, v6) = network.block(*k);
        let list = blocks.entry(*owner).or_default();
        list.push(v4.to_string());
        list.extend(v6.map(|n| n.to_string()));
    }
    let endpoints = facts
        .rows
        .values()
        .flat_map(|rows| rows.values())
        .filter(|r| matches!(&r.body, RowBody::Endpoint(e) if e.vni == network.vni))
        .count();
    NetworkView {
        name: name.clone(),
        network: network.clone(),
        services: intent
            .services
            .iter()
            .filter(|(_, s)| s.networks().any(|n| n == name))
            .map(|(n, _)| n.clone())
            .collect(),
        endpoints: endpoints as u32,
        blocks,
        here: c.reconciled().places.networks.get(&network.vni).cloned(),
    }
}

pub(super) fn views(c: &Cluster) -> Vec<NetworkView> {
    c.intent().networks.iter().map(|(name, n)| view(c, name, n)).collect()
}

pub(super) async fn list(State(d): State<Shared>) -> Result<Answer<Vec<NetworkView>>, Fail> {
    Ok(Answer(views(&*d.cluster()?)))
}

pub(super) async fn one(State(d): State<Shared>, path: Path<String>) -> Result<Answer<NetworkView>, Fail> {
    let name: Name = segment(path)?;
    let c = d.cluster()?;
    let intent = c.intent();
    match intent.networks.get(&name) {
        Some(n) => Ok(Answer(view(&c, &name, n))),
        None => Err(Fail::new(
            Code::NotFound,
            format!("no network {name}"),
            "netctl network ls",
        )),
    }
}

pub(super) async fn create(
    State(d): State<Shared>,
    path: Path<String>,
    Body(spec): Body<NetworkSpec>,
) -> Result<Answer<Changed>, Fail> {
    let name: Name = segment(path)?;
    let c = d.cluster()?;
    let m = c.manager()?;
    // Every living node is asked which subnets it routes: overlapping one would cut that host off from it.
    let routes = m.host_routes(&c).await?;
    if let Some(asked) = spec.subnet
        && let Some((node, route)) = routes.iter().find(|(_, r)| overlaps(&ipnet::IpNet::V4(asked), r))
    {
        return Err(Fail::new(
            Code::Conflict,
            format!("subnet {asked} overlaps {route}, which node {node} routes"),
            format!("netctl network create {name} (takes a free one), or another --subnet"),
        ));
    }
    if let Some(asked) = spec.subnet6
        && let Some((node, route)) = routes.iter().find(|(_, r)| overlaps(&ipnet::IpNet::V6(asked), r))
    {
        return Err(Fail::new(
            Code::Conflict,
            format!("subnet {asked} overlaps {route}, which node {node} routes"),
            "another --subnet6",
        ));
    }
    let avoid = routes.into_iter().map(|(_, r)| r).collect();
    let (revision, _) = m
        .propose(Command::CreateNetwork {
            name: name.clone(),
            spec,
            avoid,
        })
        .await?;
    let made = c.intent().networks.get(&name).cloned();
    let message = made.map_or_else(String::new, |n| {
        let v6 = n.subnet6.map(|s| format!(" and {s}")).unwrap_or_default();
        format!("network {name}: VNI {}, {}{v6}", n.vni, n.subnet)
    });
    Ok(Answer(Changed { revision, message }))
}

pub(super) async fn remove(State(d): State<Shared>, path: Path<String>) -> Result<Answer<Changed>, Fail> {
    let name: Name = segment(path)?;
    let c = d.cluster()?;
    let m = c.manager()?;
    if let Some(vni) = c.intent().networks.get(&name).map(|n| n.vni) {
        let facts = c.facts();
        let left: Vec<String> = facts
            .rows
            .iter()
            .flat_map(|(node, rows)| rows.iter().map(move |(k, r)| (node, k, r)))
            .filter_map(|(node, k, r)| match (&r.body, k) {
                (RowBody::Endpoint(e), model::RowKey::Endpoint(id)) if e.vni == vni => Some(format!("{id} on {node}")),
                _ => None,
            })
            .take(3)
            .collect();
        if !left.is_empty() {
            return Err(Fail::new(
                Code::Conflict,
                format!("network {name} is in use by endpoints: {}", left.join(", ")),
                "netctl service rm, or netctl endpoint rm on that node",
            ));
        }
    }
    let (revision, _) = m.propose(Command::RemoveNetwork { name: name.clone() }).await?;
    Ok(Answer(Changed {
        revision,
        message: format!("network {name} is removed"),
    }))
}

fn overlaps(a: &ipnet::IpNet, b: &ipnet::IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
