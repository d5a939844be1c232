use std::{collections::BTreeMap, time::Duration};

use model::{
    ids::{EndpointId, Mac, Name, NodeId, Proto, Vni},
    intent::{Availability, Intent, Network, Node, Role, Service, SlotSet},
    row::{Datapath, EndpointRow, EndpointState, NodeRow, Row, RowBody, RowKey},
    spec::ServiceSpec,
};
use proptest::prelude::*;
use ring::signature::Ed25519KeyPair;

use super::{grant::Masked, *};

const T0: Duration = Duration::ZERO;

fn signer(node: u8) -> Signer {
    Signer::new("c1", Ed25519KeyPair::from_seed_unchecked(&[node; 32]).unwrap())
}

fn vni() -> Vni {
    Vni::try_from(4100).unwrap()
}

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

/// Three nodes; network `app` 10.77.0.0/20 with block 20 of n1 and 21 of n2; service `web`, slot 1 on n1.
fn intent() -> Intent {
    let mut i = Intent {
        revision: 1,
        cluster: "c1".into(),
        ..Intent::default()
    };
    for n in 1..=3u8 {
        let node = Node {
            hostname: format!("h{n}"),
            role: Role::Worker,
            availability: Availability::Active,
            key: signer(n).public().to_vec(),
            down: false,
            rpc: None,
            raft: None,
            labels: Default::default(),
            max_tasks: None,
            machine: Default::default(),
        };
        i.nodes.insert(NodeId(n.into()), node);
    }
    let network = Network {
        vni: vni(),
        subnet: "10.77.0.0/20".parse().unwrap(),
        subnet6: Some("fd00:77::/64".parse().unwrap()),
        internal: false,
        mtu: None,
    };
    i.networks.insert(name("app"), network);
    i.blocks
        .insert(vni(), BTreeMap::from([(20, NodeId(1)), (21, NodeId(2))]));
    let service = Service {
        index: 1,
        spec: ServiceSpec {
            networks: vec![name("app")],
            ..ServiceSpec::default()
        },
        generation: 1,
        ..Service::default()
    };
    i.services.insert(name("web"), service);
    let slots = BTreeMap::from([(NodeId(1), SlotSet(vec![(1, 1)]))]);
    i.placements.insert(name("web"), slots.into());
    i
}

fn endpoint() -> EndpointRow {
    EndpointRow {
        vni: vni(),
        v4: Some("10.77.1.65".parse().unwrap()),
        v6: Some("fd00:77::141".parse().unwrap()),
        mac: Mac([2, 0x6e, 0, 0, 0, 1]),
        service: Some(name("web")),
        slot: Some(1),
        state: EndpointState::Ready,
        listening: vec![(Proto::Tcp, 8080)],
    }
}

fn node_row() -> NodeRow {
    NodeRow {
        hostname: "h1".into(),
        datapath_addr: "198.18.0.1".parse().unwrap(),
        datapath_port: 4789,
        gossip: "198.18.0.1:7946".parse().unwrap(),
        mac: Mac([2, 0x6e, 0, 0, 0, 1]),
        datapath: Datapath::Ebpf,
        version: "0.1.0".into(),
    }
}

fn key(s: &str) -> RowKey {
    RowKey::Endpoint(s.parse::<EndpointId>().unwrap())
}

fn row(owner: u8, k: &str, version: u64, body: RowBody) -> SignedRow {
    let row = Row {
        owner: NodeId(owner.into()),
        key: key(k),
        version,
        body,
    };
    signer(owner).sign(row).unwrap()
}

fn up(owner: u8, k: &str, version: u64) -> SignedRow {
    row(owner, k, version, RowBody::Endpoint(endpoint()))
}

fn same(a: &Table, b: &Table) -> bool {
    a.root() == b.root() && a.iter().eq(b.iter())
}

#[test]
fn a_row_survives_its_octets() {
    let r = up(1, "web.1", 7);
    let mut out = Vec::new();
    r.encode(&mut out);
    assert_eq!(out.len(), r.size());
    assert_eq!(decode_all(&out).unwrap(), vec![r]);
}

#[test]
fn the_largest_row_fits_a_packet() {
    let ports = (1..=64).map(|i| (Proto::Udp, 65_000 + i)).collect();
    let body = EndpointRow {
        listening: ports,
        service: Some(name(&"s".repeat(63))),
        ..endpoint()
    };
    let r = row(1, &"k".repeat(128), u64::MAX, RowBody::Endpoint(body));
    assert!(r.size() < crate::seal::MAX_PLAIN);
}

#[test]
fn malformed_rows_are_refused() {
    let mut node = node_row();
    node.hostname = "x".repeat(300);
    let of = |key, version, body| {
        signer(1).sign(Row {
            owner: NodeId(1),
            key,
            version,
            body,
        })
    };
    let mut unsorted = endpoint();
    unsorted.listening = vec![(Proto::Tcp, 2), (Proto::Tcp, 1)];
    for (case, got) in [
        ("version 0", of(RowKey::Node, 0, RowBody::Node(node_row()))),
        ("long name", of(RowKey::Node, 1, RowBody::Node(node))),
        ("two kinds", of(RowKey::Node, 1, RowBody::Endpoint(endpoint()))),
        ("unsorted", of(key("a"), 1, RowBody::Endpoint(unsorted))),
    ] {
        assert!(matches!(got, Err(RowError::Malformed(_))), "{case}: {got:?}");
    }
}

#[test]
fn only_its_owner_changes_a_row() {
    let i = intent();
    let mut t = Table::new(NodeId(3));
    assert_eq!(t.merge(T0, &i, up(1, "web.1", 5), None), Ok(true));
    // n2 signs what claims to be n1's.
    let forged = Row {
        version: 6,
        ..up(1, "web.1", 6).row().clone()
    };
    let forged = signer(2).sign(forged).unwrap();
    assert_eq!(t.merge(T0, &i, forged.clone(), None), Err(Refused::Forged(NodeId(1))));
    // Also when n2 relays it over its own mTLS stream.
    assert_eq!(
        t.merge(T0, &i, forged, Some(NodeId(2))),
        Err(Refused::Forged(NodeId(1)))
    );
    // A row of another cluster with the same key.
    let other = Signer::new("c2", Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap());
    let foreign = other.sign(up(1, "web.1", 6).row().clone()).unwrap();
    assert_eq!(t.merge(T0, &i, foreign, None), Err(Refused::Forged(NodeId(1))));
    assert_eq!(
        t.merge(T0, &i, up(9, "web.1", 6), None),
        Err(Refused::Stranger(NodeId(9)))
    );
    assert_eq!(t.get(NodeId(1), &key("web.1")).unwrap().row().version, 5);
}

#[test]
fn a_tombstone_does_not_resurrect() {
    let i = intent();
    let mut t = Table::new(NodeId(3));
    let gone = row(1, "web.1", 6, RowBody::Tombstone);
    assert_eq!(t.merge(T0, &i, gone, None), Ok(true));
    assert_eq!(t.merge(T0, &i, up(1, "web.1", 5), None), Ok(false));
    t.expire(TOMBSTONE_KEEP - Duration::from_secs(1));
    assert_eq!(t.merge(T0, &i, up(1, "web.1", 5), None), Ok(false));
    t.expire(TOMBSTONE_KEEP);
    assert_eq!(t.iter().count(), 0);
    assert_eq!(t.root(), Table::new(NodeId(3)).root());
}

#[test]
fn own_versions_rise_above_all_that_was_seen() {
    let i = intent();
    let mut t = Table::new(NodeId(1));
    let body = || RowBody::Endpoint(endpoint());
    let s = signer(1);
    assert_eq!(t.put(T0, &s, key("web.1"), body(), || 10), Ok((10, true)));
    // Unchanged: no new version, the counter is not asked.
    let same = t.put(T0, &s, key("web.1"), body(), || unreachable!());
    assert_eq!(same, Ok((10, false)));
    // A peer gives back a newer row of ours, from before the disk was lost.
    assert_eq!(t.merge(T0, &i, up(1, "web.2", 50), None), Ok(true));
    let gone = t.put(T0, &s, key("web.1"), RowBody::Tombstone, || 11);
    assert_eq!(gone, Ok((51, true)));
    let never = t.put(T0, &s, key("web.9"), RowBody::Tombstone, || 12);
    assert_eq!(never, Ok((0, false)));
    // Own tombstones are kept.
    t.expire(TOMBSTONE_KEEP * 2);
    assert!(t.get(NodeId(1), &key("web.1")).is_some());
}

#[test]
fn a_removed_node_takes_its_rows_along() {
    let mut i = intent();
    let mut t = Table::new(NodeId(3));
    t.merge(T0, &i, up(1, "web.1", 1), None).unwrap();
    i.nodes.remove(&NodeId(1));
    assert_eq!(t.retain(&i), vec![NodeId(1)]);
    assert_eq!(
        t.merge(T0, &i, up(1, "web.1", 2), None),
        Err(Refused::Stranger(NodeId(1)))
    );
}

#[test]
fn grants() {
    let i = intent();
    let e = |f: fn(&mut EndpointRow)| {
        let mut e = endpoint();
        f(&mut e);
        RowBody::Endpoint(e)
    };
    let n = |f: fn(&mut NodeRow)| {
        let mut n = node_row();
        f(&mut n);
        RowBody::Node(n)
    };
    let by_hand = |e: &mut EndpointRow| e.slot = None;
    let table: Vec<(&str, u64, RowBody, Result<(), Masked>)> = vec![
        ("as placed", 1, e(|_| ()), Ok(())),
        ("by hand", 1, e(by_hand), Ok(())),
        ("no service", 1, e(|e| (e.service, e.slot) = (None, None)), Ok(())),
        ("tombstone", 1, RowBody::Tombstone, Ok(())),
        ("a stranger", 9, e(|_| ()), Err(Masked::Stranger)),
        ("another's block", 2, e(by_hand), Err(Masked::ForeignAddress)),
        (
            "the VIP pool",
            1,
            e(|e| e.v4 = Some("10.77.0.5".parse().unwrap())),
            Err(Masked::ForeignAddress),
        ),
        (
            "outside",
            1,
            e(|e| e.v4 = Some("10.78.1.65".parse().unwrap())),
            Err(Masked::ForeignAddress),
        ),
        (
            "another's IPv6",
            1,
            e(|e| e.v6 = Some("fd00:77::151".parse().unwrap())),
            Err(Masked::ForeignAddress),
        ),
        (
            "far IPv6",
            1,
            e(|e| e.v6 = Some("fd00:77::1:0:141".parse().unwrap())),
            Err(Masked::ForeignAddress),
        ),
        (
            "no address",
            1,
            e(|e| (e.v4, e.v6) = (None, None)),
            Err(Masked::NoAddress),
        ),
        (
            "no network",
            1,
            e(|e| e.vni = Vni::try_from(9).unwrap()),
            Err(Masked::NoNetwork),
        ),
        (
            "no such service",
            1,
            e(|e| e.service = Some("db".parse().unwrap())),
            Err(Masked::NoService),
        ),
        ("a slot of nothing", 1, e(|e| e.service = None), Err(Masked::NoService)),
        ("another slot", 1, e(|e| e.slot = Some(2)), Err(Masked::NotPlaced)),
        ("node", 1, n(|_| ()), Ok(())),
        (
            "loopback",
            1,
            n(|n| n.datapath_addr = "127.0.0.1".parse().unwrap()),
            Err(Masked::BadNodeAddress),
        ),
        (
            "inside",
            1,
            n(|n| n.datapath_addr = "10.77.1.65".parse().unwrap()),
            Err(Masked::BadNodeAddress),
        ),
        (
            "a group",
            1,
            n(|n| n.datapath_addr = "ff02::1".parse().unwrap()),
            Err(Masked::BadNodeAddress),
        ),
        (
            "an IPv6 underlay",
            1,
            n(|n| n.datapath_addr = "fd18::1".parse().unwrap()),
            Ok(()),
        ),
        (
            "inside, IPv6",
            1,
            n(|n| n.datapath_addr = "fd00:77::141".parse().unwrap()),
            Err(Masked::BadNodeAddress),
        ),
        (
            "of one link",
            1,
            n(|n| n.datapath_addr = "fe80::1".parse().unwrap()),
            Err(Masked::BadNodeAddress),
        ),
        (
            "IPv4 in IPv6's clothes",
            1,
            n(|n| n.datapath_addr = "::ffff:198.18.0.1".parse().unwrap()),
            Err(Masked::BadNodeAddress),
        ),
    ];
    for (case, owner, body, want) in table {
        let key = match body {
            RowBody::Node(_) => RowKey::Node,
            _ => key("web.1"),
        };
        let row = Row {
            owner: NodeId(owner),
            key,
            version: 1,
            body,
        };
        assert_eq!(grant::check(&i, &row), want, "{case}");
        // What counts is the row itself; of a slot that moved away, only that it drains; of anything else nothing.
        let counts = match (want, &row.body) {
            (Ok(()), RowBody::Tombstone) => None,
            (Ok(()), _) => Some(row.clone()),
            (Err(Masked::NotPlaced), RowBody::Endpoint(e)) => Some(Row {
                body: RowBody::Endpoint(EndpointRow {
                    state: EndpointState::Draining,
                    ..e.clone()
                }),
                ..row.clone()
            }),
            _ => None,
        };
        assert_eq!(grant::effective(&i, &row), counts, "{case}");
    }
    let mut closed = i.clone();
    closed.services.get_mut(&name("web")).unwrap().spec.attachable = false;
    let row = Row {
        owner: NodeId(1),
        key: key("x"),
        version: 1,
        body: e(by_hand),
    };
    assert_eq!(grant::check(&closed, &row), Err(Masked::NotAttachable));
    closed.services.get_mut(&name("web")).unwrap().spec.networks.clear();
    assert_eq!(grant::check(&closed, &row), Err(Masked::OffNetwork));
}

#[test]
fn deltas_are_bounded_and_send_the_newest() {
    let i = intent();
    let mut t = Table::new(NodeId(3));
    let size = up(1, "e0", 1).size();
    let mut d = Deltas::new(3 * size);
    for n in 0..5 {
        let r = up(1, &format!("e{n}"), n + 1);
        d.push(NodeId(2), NodeId(1), &r.row().key, r.size());
        t.merge(T0, &i, r, None).unwrap();
    }
    assert_eq!(d.dropped(), 2);
    // e4 changes while it waits: it goes out once, as it is now.
    let r = up(1, "e4", 9);
    d.push(NodeId(2), NodeId(1), &r.row().key, r.size());
    t.merge(T0, &i, r, None).unwrap();
    let first = decode_all(&d.take(NodeId(2), &t, 2 * size)).unwrap();
    let versions: Vec<u64> = first.iter().map(|r| r.row().version).collect();
    assert_eq!(versions, [3, 4]);
    let rest = decode_all(&d.take(NodeId(2), &t, 2 * size)).unwrap();
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].row().version, 9);
    assert!(d.peers().is_empty());
}

/// A small world of rows: few owners and keys, so that versions collide; also two rows of one version.
fn rows() -> impl Strategy<Value = Vec<SignedRow>> {
    let one = (1..=3u8, 0..4u8, 1..5u64, 0..3u8).prop_map(|(owner, k, version, body)| {
        let body = match body {
            0 => RowBody::Tombstone,
            b => RowBody::Endpoint(EndpointRow {
                slot: Some(b.into()),
                ..endpoint()
            }),
        };
        row(owner, &format!("e{k}"), version, body)
    });
    proptest::collection::vec(one, 0..12)
}

fn table_of(rows: &[SignedRow]) -> Table {
    let i = intent();
    let mut t = Table::new(NodeId(3));
    for r in rows {
        t.merge(T0, &i, r.clone(), None).unwrap();
    }
    t
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn merging_is_commutative_and_idempotent(rows in rows(), turn in 0..12usize) {
        let a = table_of(&rows);
        let mut other = rows.clone();
        other.reverse();
        let n = other.len().max(1);
        other.rotate_left(turn % n);
        other.extend(rows.iter().cloned());
        prop_assert!(same(&a, &table_of(&other)));
    }

    #[test]
    fn merging_is_associative(a in rows(), b in rows(), c in rows()) {
        let merged = |x: &[SignedRow], y: &[SignedRow]| -> Vec<SignedRow> {
            table_of(&[x, y].concat()).iter().cloned().collect()
        };
        let left = merged(&merged(&a, &b), &c);
        let right = merged(&a, &merged(&b, &c));
        prop_assert_eq!(left, right);
    }

    #[test]
    fn digests_make_tables_equal(a in rows(), b in rows(), max in 1..6usize, mut turn in 0..100usize) {
        let i = intent();
        let (mut a, mut b) = (table_of(&a), table_of(&b));
        // Small pages need several rounds, each from another place.
        for round in 0.. {
            prop_assert!(round < 200, "no end");
            if a.root() == b.root() {
                break;
            }
            let pages = a.pages(&b.summary(), max, turn);
            let diff = b.compare(&pages);
            let to_a: Vec<_> = diff.send.iter().filter_map(|(o, k)| b.get(*o, k)).cloned().collect();
            let to_b: Vec<_> = diff.want.iter().filter_map(|(o, k)| a.get(*o, k)).cloned().collect();
            for r in to_a { a.merge(T0, &i, r, None).unwrap(); }
            for r in to_b { b.merge(T0, &i, r, None).unwrap(); }
            turn += 1;
        }
        prop_assert!(same(&a, &b));
    }

    #[test]
    fn the_root_follows_the_content(rows in rows()) {
        let t = table_of(&rows);
        let again = table_of(&t.iter().cloned().collect::<Vec<_>>());
        prop_assert_eq!(t.root(), again.root());
        prop_assert_eq!(t.summary(), again.summary());
    }

    #[test]
    fn garbage_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode_all(&bytes);
    }

    #[test]
    fn a_changed_octet_is_noticed(at: prop::sample::Index, bit in 0..8) {
        let mut out = Vec::new();
        up(1, "web.1", 7).encode(&mut out);
        let i = at.index(out.len());
        out[i] ^= 1u8 << bit;
        let mut t = Table::new(NodeId(3));
        for r in decode_all(&out).unwrap_or_default() {
            prop_assert!(t.merge(T0, &intent(), r, None).is_err());
        }
    }
}
