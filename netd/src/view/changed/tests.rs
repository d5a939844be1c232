use std::net::Ipv4Addr;

use model::{
    EndpointRow, EndpointState, NodeId, NodeRow, Row, Vni,
    api::NodeHealth,
    intent::{Network, Service},
    row::Datapath,
};

use super::*;
use crate::endpoints::node_mac;

fn vni() -> Vni {
    Vni::try_from(4097).unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn row(owner: u64, key: RowKey, body: RowBody) -> (RowKey, Row) {
    let row = Row {
        owner: NodeId(owner),
        key: key.clone(),
        version: 1,
        body,
    };
    (key, row)
}

fn node(n: u64) -> (RowKey, Row) {
    let at = Ipv4Addr::new(198, 18, 0, u8::try_from(n).unwrap());
    let body = NodeRow {
        hostname: format!("n{n}"),
        datapath_addr: at.into(),
        datapath_port: 4789,
        gossip: (at, 7946).into(),
        mac: node_mac(NodeId(n)),
        datapath: Datapath::Ipvs,
        version: String::new(),
    };
    row(n, RowKey::Node, RowBody::Node(body))
}

fn endpoint(id: &str, of: &str, state: EndpointState) -> (RowKey, Row) {
    let body = EndpointRow {
        vni: vni(),
        v4: Some(Ipv4Addr::new(10, 77, 16, 1)),
        v6: None,
        mac: node_mac(NodeId(9)),
        service: Some(name(of)),
        slot: None,
        state,
        listening: Vec::new(),
    };
    row(2, RowKey::Endpoint(id.parse().unwrap()), RowBody::Endpoint(body))
}

/// Two services; a backend of each on node 2.
fn basis() -> Basis {
    let mut intent = Intent::default();
    let network = Network {
        vni: vni(),
        subnet: "10.77.0.0/16".parse().unwrap(),
        subnet6: None,
        internal: false,
        mtu: None,
    };
    intent.networks.insert(name("app"), network);
    for (index, service) in [(1, "api"), (2, "web")] {
        let service_of = Service {
            index,
            ..Service::default()
        };
        intent.services.insert(name(service), service_of);
    }
    let backends = [
        endpoint("api.1", "api", EndpointState::Ready),
        endpoint("web.1", "web", EndpointState::Ready),
    ];
    let rows = [
        (NodeId(1), BTreeMap::from([node(1)])),
        (NodeId(2), BTreeMap::from([node(2)])),
    ];
    let mut rows = BTreeMap::from(rows);
    rows.get_mut(&NodeId(2)).unwrap().extend(backends);
    Basis {
        intent: Arc::new(intent),
        facts: Arc::new(Facts {
            rows: rows.into_iter().map(|(n, rows)| (n, Arc::new(rows))).collect(),
            health: [(NodeId(2), NodeHealth::Ready)].into(),
            seq: 1,
        }),
        here: Here {
            me: NodeId(1),
            datapath: Datapath::Ipvs,
            vtep: [198, 18, 0, 1].into(),
            vxlan_port: 4789,
            underlay_mtu: 1500,
            uplinks: BTreeSet::new(),
            direct: false,
            addresses: BTreeSet::new(),
            devices: BTreeMap::new(),
            ifindex: BTreeMap::new(),
        },
        endpoints: BTreeMap::new(),
    }
}

fn changed(facts: impl FnOnce(&mut Facts)) -> Option<Vec<String>> {
    let before = basis();
    let mut now = before.clone();
    facts(Arc::make_mut(&mut now.facts));
    let told = now.services_changed(&before)?;
    assert!(now.has_overlay_of(&before));
    // The index of before leads to what one from the beginning finds, and the rows of both are enough.
    let mut index = Index::new(&before.facts);
    let chosen = index.follow(&before.facts, &now.facts, told.clone());
    assert_eq!(index, Index::new(&now.facts));
    for basis in [&before, &now] {
        let mut all = super::super::mesh_wanted(&basis.intent, &basis.facts, &basis.here, &basis.endpoints);
        let of = |n: &Name| basis.intent.services.get(n).map(|s| s.index);
        let wanted: BTreeSet<u32> = told.iter().filter_map(of).collect();
        all.services.retain(|index, _| wanted.contains(index));
        assert_eq!(basis.mesh_wanted_of(&chosen).services, all.services);
    }
    Some(told.iter().map(Name::to_string).collect())
}

fn set(facts: &mut Facts, (key, row): (RowKey, Row)) {
    Arc::make_mut(facts.rows.get_mut(&NodeId(2)).unwrap()).insert(key, row);
}

#[test]
fn a_row_is_about_its_service_alone() {
    assert_eq!(changed(|_| ()), Some(vec![]));
    assert_eq!(changed(|f| f.seq += 1), Some(vec![]));
    let drains = endpoint("web.1", "web", EndpointState::Draining);
    assert_eq!(changed(|f| set(f, drains)), Some(vec!["web".to_owned()]));
    let comes = endpoint("web.0", "web", EndpointState::Ready);
    assert_eq!(changed(|f| set(f, comes)), Some(vec!["web".to_owned()]));
    let other = endpoint("web.1", "api", EndpointState::Ready);
    assert_eq!(
        changed(|f| set(f, other)),
        Some(vec!["api".to_owned(), "web".to_owned()])
    );
    let goes = |f: &mut Facts| {
        let rows = Arc::make_mut(f.rows.get_mut(&NodeId(2)).unwrap());
        rows.retain(|key, _| *key != RowKey::Endpoint("api.1".parse().unwrap()));
    };
    assert_eq!(changed(goes), Some(vec!["api".to_owned()]));
}

#[test]
fn a_node_is_about_all_services() {
    let dies = |f: &mut Facts| {
        f.health.insert(NodeId(2), NodeHealth::Down);
    };
    assert_eq!(changed(dies), None);
    assert_eq!(changed(|f| drop(f.rows.remove(&NodeId(1)))), None);
    let moved = node(3).1.body;
    let moves = |f: &mut Facts| {
        let rows = Arc::make_mut(f.rows.get_mut(&NodeId(2)).unwrap());
        rows.get_mut(&RowKey::Node).unwrap().body = moved;
    };
    assert_eq!(changed(moves), None);
}

#[test]
fn what_is_decided_is_about_its_service_or_about_all() {
    let before = basis();
    let mut now = before.clone();
    let intent = Arc::make_mut(&mut now.intent);
    intent.services.get_mut(&name("api")).unwrap().index = 7;
    intent.services.insert(name("new"), Service::default());
    intent.services.remove(&name("web"));
    let told = now.services_changed(&before).unwrap();
    assert_eq!(told, [name("api"), name("new"), name("web")].into());
    assert!(!now.has_overlay_of(&before), "VIPs have routes");

    let mut now = before.clone();
    Arc::make_mut(&mut now.intent).networks.clear();
    assert_eq!(now.services_changed(&before), None);

    let mut now = before.clone();
    now.here.addresses.insert(Ipv4Addr::LOCALHOST.into());
    assert_eq!(now.services_changed(&before), None);
    assert!(!now.has_overlay_of(&before));
}
