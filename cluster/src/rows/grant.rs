//! Whether a row counts: only within what the log grants its owner.

use std::net::{IpAddr, Ipv6Addr};

use model::{
    ids::NodeId,
    intent::{BLOCK, Intent, Network},
    row::{EndpointRow, EndpointState, NodeRow, Row, RowBody},
};

/// Why a row does not count now. The intent that grants it may still be on its way, so it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Masked {
    /// Its owner is not in the cluster.
    #[error("its owner is not in the cluster")]
    Stranger,
    /// There is no network with its VNI.
    #[error("there is no network with its VNI")]
    NoNetwork,
    /// It has no address.
    #[error("it has no address")]
    NoAddress,
    /// An address lies outside the blocks of its owner.
    #[error("an address lies outside its owner's blocks")]
    ForeignAddress,
    /// There is no such service.
    #[error("there is no such service")]
    NoService,
    /// Its service is not on its network.
    #[error("its service is not on its network")]
    OffNetwork,
    /// The slot is not placed on its owner.
    #[error("its slot is not placed on its owner")]
    NotPlaced,
    /// The service takes no endpoints attached by hand.
    #[error("its service takes no endpoints attached by hand")]
    NotAttachable,
    /// A node claims a data-path address that cannot be one.
    #[error("its data-path address cannot be a node's")]
    BadNodeAddress,
}

/// Whether the intent grants the row to its owner. Tombstones always count.
pub fn check(intent: &Intent, row: &Row) -> Result<(), Masked> {
    if !intent.nodes.contains_key(&row.owner) {
        return Err(Masked::Stranger);
    }
    match &row.body {
        RowBody::Tombstone => Ok(()),
        RowBody::Node(n) => node(intent, n),
        RowBody::Endpoint(e) => endpoint(intent, row.owner, e),
    }
}

/// The row as it counts, if it does. A slot that the log has taken from its owner (a scale-down, a move) gets no new
/// flows from that moment on, but its established flows are not cut: the row says so, whatever its owner still believes,
/// until the owner has drained and removed it.
pub fn effective(intent: &Intent, row: &Row) -> Option<Row> {
    match (check(intent, row), &row.body) {
        (Ok(()), RowBody::Tombstone) => None,
        (Ok(()), _) => Some(row.clone()),
        (Err(Masked::NotPlaced), RowBody::Endpoint(e)) => Some(Row {
            body: RowBody::Endpoint(EndpointRow {
                state: EndpointState::Draining,
                ..e.clone()
            }),
            ..row.clone()
        }),
        (Err(_), _) => None,
    }
}

/// A data path to a loopback, a group or an address inside a network would lead packets in circles; an IPv6 one that is
/// link-local is told apart by its device, and one that stands for an IPv4 address is none on the wire.
fn node(intent: &Intent, n: &NodeRow) -> Result<(), Masked> {
    let a = n.datapath_addr;
    let inside = |net: &Network| match a {
        IpAddr::V4(a) => net.subnet.contains(&a),
        IpAddr::V6(a) => net.subnet6.is_some_and(|s| s.contains(&a)),
    };
    let of_no_host = match a {
        IpAddr::V4(a) => a.is_broadcast(),
        IpAddr::V6(a) => a.is_unicast_link_local() || a.to_ipv4_mapped().is_some(),
    };
    if a.is_unspecified()
        || a.is_loopback()
        || a.is_multicast()
        || of_no_host
        || n.datapath_port == 0
        || intent.networks.values().any(inside)
    {
        return Err(Masked::BadNodeAddress);
    }
    Ok(())
}

fn endpoint(intent: &Intent, owner: NodeId, e: &EndpointRow) -> Result<(), Masked> {
    let (name, net) = intent.network_by_vni(e.vni).ok_or(Masked::NoNetwork)?;
    if e.v4.is_none() && e.v6.is_none() {
        return Err(Masked::NoAddress);
    }
    let owns = |offset: Option<u32>| {
        offset
            // The VIP pool is never cut into blocks; said once more, because a VIP taken over would be worst.
            .filter(|o| *o >= net.vip_pool())
            .and_then(|o| intent.blocks.get(&e.vni)?.get(&(o / BLOCK)))
            == Some(&owner)
    };
    let v4_ok = e.v4.is_none_or(|a| owns(net.offset(a)));
    let v6_ok = e.v6.is_none_or(|a| owns(offset6(net, a)));
    if !v4_ok || !v6_ok {
        return Err(Masked::ForeignAddress);
    }
    let Some(service) = &e.service else {
        return match e.slot {
            None => Ok(()),
            Some(_) => Err(Masked::NoService),
        };
    };
    let known = intent.services.get(service).ok_or(Masked::NoService)?;
    // Also a network that the service is leaving, until the last task on it was replaced.
    if !known.networks().any(|n| n == name) {
        return Err(Masked::OffNetwork);
    }
    match e.slot {
        Some(slot) if intent.holds(service, owner, slot) => Ok(()),
        Some(_) => Err(Masked::NotPlaced),
        None if known.spec.attachable => Ok(()),
        None => Err(Masked::NotAttachable),
    }
}

/// Host offset of an IPv6 address, as [`Network::offset`] for IPv4.
fn offset6(net: &Network, a: Ipv6Addr) -> Option<u32> {
    let subnet = net.subnet6.filter(|s| s.contains(&a))?;
    u32::try_from(u128::from(a) - u128::from(subnet.network())).ok()
}
