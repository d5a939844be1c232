//! What the mesh should do on this node.

use std::collections::{BTreeMap, BTreeSet};

use mesh::{Backend, BackendId, BackendState, Place, Port};
use model::{
    EndpointId, EndpointRow, EndpointState, Intent, Name, NodeId, On, Proto, PublishMode,
    intent::{PublishedPort, Service, Vip},
    spec::Lb,
};

use super::{
    Chosen, Here, Seen, endpoints, endpoints_at, forwards, node_row, out_because, reach, some_translate_early,
};
use crate::{
    endpoints::{Endpoint, endpoint_mac},
    gossip::Facts,
};

/// What the mesh should do here. `own`: this node's endpoints; they are in the maps from the moment that the kernel holds
/// them, before anybody can have read in their rows that they are ready: the first packet of another node finds them.
pub fn mesh_wanted(intent: &Intent, facts: &Facts, here: &Here, own: &BTreeMap<EndpointId, Endpoint>) -> mesh::Wanted {
    mesh_wanted_of(intent, facts, here, own, None)
}

/// The same with some services alone; none: all.
pub fn mesh_wanted_of(
    intent: &Intent,
    facts: &Facts,
    here: &Here,
    own: &BTreeMap<EndpointId, Endpoint>,
    only: Option<&Chosen>,
) -> mesh::Wanted {
    let known = |name: Option<&Name>| {
        let name = name.filter(|n| only.is_none_or(|only| only.services.contains(*n)))?;
        intent.services.get(name)
    };
    let all: Box<dyn Iterator<Item = &Service>> = match only {
        None => Box::new(intent.services.values()),
        Some(only) => Box::new(only.services.iter().filter_map(|n| intent.services.get(n))),
    };
    let told: Box<dyn Iterator<Item = Seen<'_>>> = match only {
        None => Box::new(endpoints(intent, facts)),
        Some(only) => Box::new(endpoints_at(intent, facts, &only.rows)),
    };
    let mut services: BTreeMap<u32, mesh::Service> = BTreeMap::new();
    for service in all {
        let vips = || {
            let known = |(net, vip): (_, &Vip)| Some((intent.networks.get(net)?, *vip));
            service.vips.iter().filter_map(known)
        };
        let ports = service.ports.values().map(|p| port(p, here)).collect();
        services.insert(
            service.index,
            mesh::Service {
                vips: vips().map(|(net, vip)| (net.vni, vip)).collect(),
                vip_marks: vips()
                    .filter_map(|(net, vip)| Some((net.vni, net.offset(vip.v4)?)))
                    .collect(),
                lb: service.spec.lb,
                source_ip: service.spec.source_ip,
                allow_from: service.spec.allow_from.clone(),
                timeouts: service.spec.timeouts,
                ports,
                ..mesh::Service::default()
            },
        );
    }
    for e in told {
        let Some(service) = known(e.row.service.as_ref()) else {
            continue;
        };
        let Some(wanted) = services.get_mut(&service.index) else {
            continue;
        };
        let state = match (out_because(intent, facts, e), e.row.state) {
            // Of our own endpoints we know better than the row from before a restart.
            (None, _) if e.node == here.me && !own.get(e.id).is_some_and(|o| o.listens(intent)) => {
                BackendState::Draining
            }
            (None, _) => BackendState::Active,
            (Some(_), EndpointState::Draining) if forwards(facts, e.node) => BackendState::Draining,
            _ => continue,
        };
        let Some(place) = place(facts, here, e) else { continue };
        let backend = Backend {
            vni: e.row.vni,
            v4: e.row.v4,
            v6: e.row.v6,
            mac: e.row.mac,
            place,
            slot: e.row.slot,
            state,
            weight: weight(intent, e.node),
        };
        let id = BackendId {
            node: e.node,
            endpoint: e.id.clone(),
        };
        let listens = |port: (Proto, u16)| e.row.listening.contains(&port);
        let others = others(service, here, |p| target_there(service, e.row, p), listens);
        wanted.others.extend(others.map(|o| (id.clone(), o)));
        wanted.backends.insert(id, backend);
    }
    for (id, e) in own {
        let Some(service) = known(e.service.as_ref()) else {
            continue;
        };
        let (Some(wanted), Some((_, network)), Some(ifindex)) = (
            services.get_mut(&service.index),
            intent.network_by_vni(e.vni),
            here.ifindex.get(id),
        ) else {
            continue;
        };
        let key = BackendId {
            node: here.me,
            endpoint: id.clone(),
        };
        // Of our own endpoints we know better than the row.
        let target = |p: &PublishedPort| e.target(service, p);
        let others = others(service, here, target, |port| e.listening.contains(&port));
        match others {
            Some(o) => drop(wanted.others.insert(key.clone(), o)),
            None => drop(wanted.others.remove(&key)),
        }
        wanted.backends.entry(key).or_insert_with(|| Backend {
            vni: e.vni,
            v4: Some(network.v4(e.offset)),
            v6: network.v6(e.offset),
            mac: endpoint_mac(network, e.offset),
            place: Place::Local { ifindex: *ifindex },
            slot: e.slot,
            state: BackendState::Draining,
            weight: weight(intent, here.me),
        });
    }
    let node = mesh::Node {
        id: here.me,
        vtep: here.vtep,
        datapath: here.datapath,
    };
    mesh::Wanted {
        node,
        local: here.addresses.clone(),
        early: some_translate_early(intent, facts),
        services,
    }
}

/// The share of new flows that a node's label asks for.
fn weight(intent: &Intent, node: NodeId) -> u16 {
    let label = intent.nodes.get(&node).and_then(|n| n.labels.get(Lb::WEIGHT));
    label.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Where a published port leads at another node's endpoint. The log says what its slot is to run, and its node what is there:
/// a task that is about to be replaced goes on where it listens until it is drained.
fn target_there(service: &Service, row: &EndpointRow, port: &PublishedPort) -> Option<u16> {
    let target = service.target(row.slot, port);
    let listens = |at: u16| row.listening.contains(&(port.spec.proto, at));
    match (row.slot, target) {
        (Some(_), Some(at)) if !listens(at) => service.targets_before(port).find(|at| listens(*at)).or(target),
        _ => target,
    }
}

/// Where published ports lead at a task that a change of its service has not reached: to what it was made for, and for
/// ports that came since, to what it happens to listen on. None: where they lead everywhere.
fn others(
    service: &Service,
    here: &Here,
    target: impl Fn(&PublishedPort) -> Option<u16>,
    listens: impl Fn((Proto, u16)) -> bool,
) -> Option<BTreeMap<Port, Option<u16>>> {
    let other = |p: &PublishedPort| {
        let now = p.spec.target;
        let at = target(p).or_else(|| listens((p.spec.proto, now)).then_some(now));
        (at != Some(now)).then(|| (port(p, here), at))
    };
    let all: BTreeMap<Port, Option<u16>> = service.ports.values().filter_map(other).collect();
    (!all.is_empty()).then_some(all)
}

/// A published port, with the addresses of this host that are meant.
fn port(published: &PublishedPort, here: &Here) -> Port {
    let spec = &published.spec;
    Port {
        published: spec.published,
        target: spec.target,
        proto: spec.proto,
        host: spec.mode == PublishMode::Host,
        on: match spec.on {
            On::All => None,
            On::Address(a) => Some(BTreeSet::from([a])),
            On::Device(d) => Some(here.devices.get(d.as_str()).cloned().unwrap_or_default()),
        },
        mark: published.mark,
    }
}

/// Where an endpoint is, seen from here; `None`: not reachable (yet: its interface or its node's row is still on its way).
fn place(facts: &Facts, here: &Here, e: Seen<'_>) -> Option<Place> {
    if e.node == here.me {
        return here.ifindex.get(e.id).map(|i| Place::Local { ifindex: *i });
    }
    let row = node_row(facts, e.node)?;
    let vtep = reach::way(here, row).ok()?;
    Some(Place::Remote {
        vtep,
        datapath: row.datapath,
    })
}

#[cfg(test)]
mod tests {
    use model::{Vni, intent::Network};

    use super::*;

    #[test]
    fn an_endpoint_of_ours_is_in_the_maps_before_its_row_is() {
        let vni = Vni::try_from(4097).unwrap();
        let mut intent = Intent::default();
        let network = Network {
            vni,
            subnet: "10.77.0.0/16".parse().unwrap(),
            subnet6: None,
            internal: false,
            mtu: None,
        };
        intent.networks.insert("app".parse().unwrap(), network);
        let service = Service {
            index: 7,
            generation: 1,
            ..Service::default()
        };
        intent.services.insert("web".parse().unwrap(), service);
        let id: EndpointId = "web.1".parse().unwrap();
        let endpoint = Endpoint {
            vni,
            network: "app".parse().unwrap(),
            netns: "/t".into(),
            ours: true,
            interface: "eth0".into(),
            offset: 4096,
            service: Some("web".parse().unwrap()),
            slot: Some(1),
            of: None,
            draining: false,
            healthy: None,
            running: None,
            made: None,
            listening: Default::default(),
            attached: false,
            problem: None,
        };
        let own = BTreeMap::from([(id.clone(), endpoint)]);
        let mut here = Here {
            me: NodeId(1),
            datapath: model::row::Datapath::Ebpf,
            vtep: [198, 18, 0, 1].into(),
            vxlan_port: 4789,
            underlay_mtu: 1500,
            uplinks: Default::default(),
            direct: true,
            addresses: Default::default(),
            devices: Default::default(),
            ifindex: BTreeMap::new(),
        };
        let wanted = mesh_wanted(&intent, &Facts::default(), &here, &own);
        assert!(wanted.services[&7].backends.is_empty(), "no interface yet");
        here.ifindex.insert(id, 5);
        let wanted = mesh_wanted(&intent, &Facts::default(), &here, &own);
        let states: Vec<BackendState> = wanted.services[&7].backends.values().map(|b| b.state).collect();
        assert_eq!(states, [BackendState::Draining], "known, but takes no new flows");
    }

    #[test]
    fn where_ports_lead_at_a_task_that_a_change_has_not_reached() {
        use model::intent::{Pending, Rollout, RolloutState, SlotSet};
        let here = Here {
            me: NodeId(1),
            datapath: model::row::Datapath::Ebpf,
            vtep: [198, 18, 0, 1].into(),
            vxlan_port: 4789,
            underlay_mtu: 1500,
            uplinks: Default::default(),
            direct: true,
            addresses: Default::default(),
            devices: Default::default(),
            ifindex: BTreeMap::new(),
        };
        let mut service = Service {
            generation: 2,
            ..Service::default()
        };
        service.spec.publish = vec!["80:9090".parse().unwrap(), "443".parse().unwrap()];
        for spec in &service.spec.publish {
            let port = PublishedPort {
                spec: *spec,
                auto: false,
                mark: 1,
            };
            service.ports.insert(spec.key(), port);
        }
        let mut before = service.spec.clone();
        before.publish = vec!["80:8080".parse().unwrap()];
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
        let told = |slot, on: &[u16]| {
            let target = |p: &PublishedPort| service.target(slot, p);
            let all = others(&service, &here, target, |(_, port)| on.contains(&port));
            let flat = all.into_iter().flatten();
            flat.map(|(p, at)| (p.published, at)).collect::<Vec<_>>()
        };
        assert_eq!(told(Some(1), &[8080]), [(80, Some(8080)), (443, None)]);
        assert_eq!(
            told(Some(1), &[8080, 443]),
            [(80, Some(8080))],
            "it happens to listen there"
        );
        for slot in [Some(2), None] {
            assert_eq!(told(slot, &[]), []);
        }
    }

    #[test]
    fn a_task_elsewhere_is_asked_where_it_listens_until_it_is_replaced() {
        let mut service = Service {
            generation: 2,
            ..Service::default()
        };
        let port = PublishedPort {
            spec: "80:9090".parse().unwrap(),
            auto: false,
            mark: 1,
        };
        service.spec.publish = vec![port.spec];
        service.ports.insert(port.spec.key(), port);
        let mut before = service.spec.clone();
        before.publish = vec!["80:8080".parse().unwrap()];
        service.previous = Some(Box::new(before));
        let at = |slot, on: &[u16]| {
            let row = EndpointRow {
                vni: Vni::try_from(4097).unwrap(),
                v4: None,
                v6: None,
                mac: model::Mac([0; 6]),
                service: None,
                slot,
                state: EndpointState::Ready,
                listening: on.iter().map(|port| (Proto::Tcp, *port)).collect(),
            };
            target_there(&service, &row, &port)
        };
        assert_eq!(at(Some(1), &[8080]), Some(8080), "its slot is the new one's, it is not");
        assert_eq!(at(Some(1), &[9090]), Some(9090));
        assert_eq!(at(Some(1), &[8080, 9090]), Some(9090));
        assert_eq!(at(Some(1), &[]), Some(9090), "nothing is there yet");
        assert_eq!(at(None, &[8080]), Some(9090), "whoever attached it is told where");
    }
}
