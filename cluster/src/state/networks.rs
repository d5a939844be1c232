//! Commands about networks and their address blocks.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{Name, NetworkSpec, NodeId, Vni, intent::Network};

use super::{Applied, NetPools, Refusal, State, nodes::listed};
use crate::ipam::{self, BLOCK_REST_MS, REST_MS, Taken};

/// Smallest MTU that IPv6 works with (RFC 8200 5) and that IPv4 must take (RFC 791).
const MIN_MTU6: u16 = 1280;
const MIN_MTU4: u16 = 576;

impl State {
    pub(super) fn create_network(
        &mut self,
        index: u64,
        name: &Name,
        spec: &NetworkSpec,
        avoid: &[IpNet],
    ) -> Result<Applied, Refusal> {
        if self.intent.networks.contains_key(name) {
            return Err(Refusal::conflict(
                format!("the network {name} exists already"),
                format!("netctl network inspect {name}"),
            ));
        }
        let six = spec.ipv6 || spec.subnet6.is_some();
        let least = if six { MIN_MTU6 } else { MIN_MTU4 };
        if let Some(mtu) = spec.mtu.filter(|m| *m < least) {
            return Err(Refusal::invalid(
                format!("an MTU of {mtu} is below {least}, which IP asks for"),
                format!("--mtu {least} or more, or none"),
            ));
        }
        let (subnet, next_v4) = self.choose_v4(spec, avoid)?;
        let (subnet6, next_v6) = match six {
            true => {
                let (net, next) = self.choose_v6(spec, avoid)?;
                (Some(net), next)
            }
            false => (None, None),
        };
        // Nothing may be refused after the number was taken.
        let vni = self.choose_vni(spec.vni)?;
        if let Some(pools) = &mut self.pools {
            pools.next_v4 = next_v4.unwrap_or(pools.next_v4);
            pools.next_v6 = next_v6.unwrap_or(pools.next_v6);
        }
        let network = Network {
            vni,
            subnet,
            subnet6,
            internal: spec.internal,
            mtu: spec.mtu,
        };
        self.nets.insert(vni, NetPools::new(&network));
        self.change(index).networks.insert(name.clone(), network);
        Ok(Applied::Network { vni, subnet, subnet6 })
    }

    fn choose_v4(&self, spec: &NetworkSpec, avoid: &[IpNet]) -> Result<(Ipv4Net, Option<u32>), Refusal> {
        let networks = self.intent.networks.iter();
        let taken: Vec<(String, Ipv4Net)> = networks
            .map(|(n, net)| (format!("the network {n} ({})", net.subnet), net.subnet))
            .chain(avoid.iter().filter_map(|r| match r {
                IpNet::V4(r) if r.prefix_len() > 0 => Some((format!("a host's route to {r}"), *r)),
                _ => None,
            }))
            .collect();
        if let Some(net) = spec.subnet {
            ipam::check_v4(net, 8, 24).map_err(|e| {
                Refusal::invalid(format!("the subnet {net} cannot be used: {e}"), "--subnet 10.77.0.0/16")
            })?;
            let clash = taken.iter().find(|(_, t)| t.contains(&net) || net.contains(t));
            if let Some((who, _)) = clash {
                return Err(Refusal::conflict(
                    format!("the subnet {net} overlaps {who}"),
                    "another --subnet, or none to get one from the default pool",
                ));
            }
            return Ok((net, None));
        }
        let (pools, settings) = (self.pools()?, &self.intent.settings);
        let pool = settings.default_addr_pool;
        let nets: Vec<Ipv4Net> = taken.iter().map(|t| t.1).collect();
        ipam::pick_v4(pool, settings.default_addr_pool_mask_length, pools.next_v4, &nets)
            .map(|(net, next)| (net, Some(next)))
            .ok_or_else(|| {
                Refusal::conflict(
                    format!("the default pool {pool} has no free subnet: each overlaps a network or a host's route"),
                    "--subnet 172.30.0.0/16 or another that is free, or netctl cluster update default-addr-pool=SUBNET",
                )
            })
    }

    fn choose_v6(&self, spec: &NetworkSpec, avoid: &[IpNet]) -> Result<(Ipv6Net, Option<u32>), Refusal> {
        let networks = self.intent.networks.iter();
        let taken: Vec<(String, Ipv6Net)> = networks
            .filter_map(|(n, net)| Some((n, net.subnet6?)))
            .map(|(n, net)| (format!("the network {n} ({net})"), net))
            .chain(avoid.iter().filter_map(|r| match r {
                IpNet::V6(r) if r.prefix_len() > 0 => Some((format!("a host's route to {r}"), *r)),
                _ => None,
            }))
            .collect();
        if let Some(net) = spec.subnet6 {
            ipam::check_v6(net, 48, 104).map_err(|e| {
                Refusal::invalid(
                    format!("the IPv6 subnet {net} cannot be used: {e}"),
                    "--ipv6 without a subnet, or --subnet6 fd00:77::/64",
                )
            })?;
            let clash = taken.iter().find(|(_, t)| t.contains(&net) || net.contains(t));
            if let Some((who, _)) = clash {
                return Err(Refusal::conflict(
                    format!("the IPv6 subnet {net} overlaps {who}"),
                    "another --subnet6, or --ipv6 alone to get one",
                ));
            }
            return Ok((net, None));
        }
        let next = self.pools()?.next_v6;
        let pool = self.intent.settings.default_addr_pool6.ok_or_else(|| {
            Refusal::conflict(
                "the cluster has no IPv6 pool",
                "netctl cluster update default-addr-pool6=fd12:3456:789a::/48, or --subnet6",
            )
        })?;
        let nets: Vec<Ipv6Net> = taken.iter().map(|t| t.1).collect();
        ipam::pick_v6(pool, next, &nets)
            .map(|(net, next)| (net, Some(next)))
            .ok_or_else(|| {
                Refusal::conflict(
                    format!("the IPv6 pool {pool} has no free /64"),
                    "--subnet6 fd00:77::/64 or another that is free",
                )
            })
    }

    fn choose_vni(&mut self, asked: Option<Vni>) -> Result<Vni, Refusal> {
        let Some(vni) = asked else {
            let number = self.vnis.take(self.now_ms).and_then(|n| Vni::try_from(n).ok());
            return number.ok_or_else(|| {
                Refusal::conflict("all VNIs are in use or rest", "netctl network rm one that is not used")
            });
        };
        let why = match self.vnis.claim(vni.get(), self.now_ms) {
            Ok(()) => return Ok(vni),
            Err(Taken::Used) => match self.intent.network_by_vni(vni) {
                Some((name, _)) => format!("the network {name} has it"),
                None => "it is in use".into(),
            },
            Err(Taken::Resting(ms)) => format!("it was used until now and rests for another {} s", ms.div_ceil(1000)),
            Err(Taken::Outside) => "it is outside 1 to 16777215".into(),
        };
        Err(Refusal::conflict(
            format!("the VNI {vni} cannot be had: {why}"),
            "another --vni, or none to get one",
        ))
    }

    fn pools(&self) -> Result<&super::Pools, Refusal> {
        self.pools.as_ref().ok_or_else(super::no_cluster)
    }

    pub(super) fn remove_network(&mut self, index: u64, name: &Name) -> Result<Applied, Refusal> {
        let vni = self.network(name)?.vni;
        if name.as_str() == "default" {
            return Err(Refusal::conflict(
                "the network default stays: services without a network join it",
                "netctl network ls",
            ));
        }
        let users: Vec<String> = self
            .intent
            .services
            .iter()
            .filter(|(_, s)| s.vips.contains_key(name) || s.networks().any(|n| n == name))
            .map(|(n, _)| n.to_string())
            .collect();
        if let Some(one) = users.first().cloned() {
            return Err(Refusal::conflict(
                format!("the network {name} is used by: {}", listed(users)),
                format!("netctl service rm {one}"),
            ));
        }
        let now = self.now_ms;
        let intent = self.change(index);
        intent.networks.remove(name);
        intent.blocks.remove(&vni);
        self.nets.remove(&vni);
        self.vnis.release(vni.get(), now, REST_MS);
        Ok(Applied::Done)
    }

    /// A network, or the refusal that lists those there are.
    pub(super) fn network(&self, name: &Name) -> Result<&Network, Refusal> {
        self.intent.networks.get(name).ok_or_else(|| {
            let known = self.intent.networks.keys().map(Name::to_string).collect();
            Refusal::not_found(
                format!("there is no network {name}; networks: {}", listed(known)),
                format!("netctl network create {name}"),
            )
        })
    }

    pub(super) fn assign_block(&mut self, index: u64, node: NodeId, vni: Vni) -> Result<Applied, Refusal> {
        self.node(node)?;
        let now = self.now_ms;
        let Some(net) = self.nets.get_mut(&vni) else {
            return Err(Refusal::not_found(
                format!("there is no network with VNI {vni}"),
                "netctl network ls",
            ));
        };
        let Some(number) = net.blocks.take(now) else {
            let total = net.blocks.size();
            let network = self.intent.network_by_vni(vni);
            let name = network.map_or_else(|| vni.to_string(), |(n, _)| n.to_string());
            return Err(Refusal::conflict(
                format!("the network {name} has no free address block: all {total} are given out or rest"),
                "netctl network create with a larger --subnet, and move services to it",
            ));
        };
        let blocks = self.change(index).blocks.entry(vni).or_default();
        blocks.insert(number, node);
        Ok(Applied::Block(number))
    }

    pub(super) fn release_blocks(
        &mut self,
        index: u64,
        node: NodeId,
        vni: Vni,
        numbers: &[u32],
    ) -> Result<Applied, Refusal> {
        let none = BTreeMap::new();
        let owned = self.intent.blocks.get(&vni).unwrap_or(&none);
        let mine: Vec<u32> = numbers
            .iter()
            .copied()
            .filter(|n| owned.get(n) == Some(&node))
            .collect();
        if mine.is_empty() {
            return Ok(Applied::Unchanged);
        }
        let now = self.now_ms;
        let intent = self.change(index);
        if let Some(blocks) = intent.blocks.get_mut(&vni) {
            blocks.retain(|n, _| !mine.contains(n));
        }
        intent.blocks.retain(|_, blocks| !blocks.is_empty());
        if let Some(net) = self.nets.get_mut(&vni) {
            for n in mine {
                net.blocks.release(n, now, BLOCK_REST_MS);
            }
        }
        Ok(Applied::Done)
    }
}
