//! What nodes gossip: who lives, rows, and the seal around both.

use std::{net::SocketAddr, time::Duration};

use cluster::{
    membership::{Liveness, Member, MemberState, Membership, Output},
    rows::{Page, PageRow, Signer, Summary, Table, decode_all},
    seal::{Key, Keyring},
};
use model::{
    EndpointRow, EndpointState, Intent, NodeId, Vni,
    row::{Datapath, NodeRow, Row, RowBody, RowKey},
};
use ring::signature::Ed25519KeyPair;

use super::{join, pieces, sure};

fn member(n: u64) -> Member {
    Member {
        node: NodeId(n),
        generation: 1,
        addr: SocketAddr::from(([198, 18, 0, u8::try_from(n).unwrap_or(0)], 7946)),
    }
}

fn meet(m: &mut Membership, others: std::ops::RangeInclusive<u64>) {
    let states: Vec<MemberState> = others
        .map(|n| MemberState {
            member: member(n),
            incarnation: 0,
            liveness: Liveness::Alive,
        })
        .collect();
    m.apply(Duration::ZERO, &states);
}

/// SWIM's packets, with a tenth of a second behind each.
pub(super) fn open_swim(octets: &[u8]) {
    let mut m = Membership::new(member(1), 1);
    meet(&mut m, 2..=4);
    let mut now = Duration::ZERO;
    for piece in pieces(octets) {
        let _ = m.handle_data(now, piece);
        now += Duration::from_millis(100);
        m.tick(now);
        while m.poll().is_some() {}
    }
}

/// What member 1 hears while four of them talk, and one falls silent.
pub(super) fn swim_seeds() -> Vec<Vec<u8>> {
    let mut all: Vec<Membership> = (1..=4).map(|n| Membership::new(member(n), n)).collect();
    all.iter_mut().for_each(|m| meet(m, 1..=4));
    let mut heard = Vec::new();
    let mut now = Duration::ZERO;
    for round in 0..60 {
        now += Duration::from_millis(100);
        let mut wire = Vec::new();
        for m in &mut all {
            m.tick(now);
            while let Some(o) = m.poll() {
                if let Output::Send { to, bytes } = o {
                    wire.push((to.node, bytes.to_vec()));
                }
            }
        }
        for (to, bytes) in wire {
            if to == NodeId(1) {
                heard.push(bytes.clone());
            }
            if round > 30 && to == NodeId(4) {
                continue;
            }
            let at = usize::try_from(to.0).unwrap_or(1) - 1;
            if let Some(m) = all.get_mut(at) {
                let _ = m.handle_data(now, &bytes);
            }
        }
    }
    heard.chunks(5).take(20).map(join).collect()
}

fn signer(n: u8) -> Signer {
    Signer::new("c1", sure(Ed25519KeyPair::from_seed_unchecked(&[n; 32])))
}

fn sample_rows() -> Vec<Row> {
    let endpoint = EndpointRow {
        vni: sure(Vni::try_from(4096)),
        v4: Some([10, 77, 1, 2].into()),
        v6: Some(sure("fd00::2".parse())),
        mac: sure("02:00:00:00:00:01".parse()),
        service: Some(sure("web".parse())),
        slot: Some(1),
        state: EndpointState::Ready,
        listening: vec![(model::Proto::Tcp, 80), (model::Proto::Udp, 53)],
    };
    let node = NodeRow {
        hostname: "host2".into(),
        gossip: member(2).addr,
        datapath_addr: [198, 18, 0, 2].into(),
        datapath_port: 4789,
        mac: sure("02:00:00:00:00:02".parse()),
        datapath: Datapath::Ebpf,
        version: "1.0.0".into(),
    };
    let row = |key, version, body| Row {
        owner: NodeId(2),
        key,
        version,
        body,
    };
    vec![
        row(RowKey::Node, 1, RowBody::Node(node)),
        row(RowKey::Endpoint(sure("web.1".parse())), 2, RowBody::Endpoint(endpoint)),
        row(RowKey::Endpoint(sure("web.2".parse())), 3, RowBody::Tombstone),
    ]
}

/// Rows as they came, merged by a node that knows their owner; a page of theirs compared.
pub(super) fn open(octets: &[u8]) {
    let Ok(rows) = decode_all(octets) else {
        return;
    };
    let mut table = Table::new(NodeId(1));
    let intent = intent();
    for row in rows {
        let (owner, key, version) = (row.row().owner, row.row().key.clone(), row.row().version);
        let _ = cluster::rows::grant::effective(&intent, row.row());
        let _ = table.merge(Duration::ZERO, &intent, row, None);
        let page = Page {
            owner,
            after: Some(key.clone()),
            upto: Some(key.clone()),
            rows: vec![PageRow { key, version, hash: 0 }],
        };
        let _ = table.compare(&[page]);
    }
    let _ = table.pages(&Summary::default(), 2, octets.len());
}

fn intent() -> Intent {
    let json = serde_json::json!({
        "revision": 9, "cluster": "c1",
        "nodes": { "2": {
            "hostname": "host2", "role": "worker", "availability": "active",
            "key": signer(2).public(), "down": false, "rpc": null,
        } },
        "networks": {}, "services": {}, "blocks": {}, "placements": {},
    });
    sure(serde_json::from_value(json))
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let signer = signer(2);
    let mut all = Vec::new();
    let mut out = Vec::new();
    for row in sample_rows() {
        let mut one = Vec::new();
        sure(signer.sign(row)).encode(&mut one);
        all.extend_from_slice(&one);
        out.push(one);
    }
    out.push(all);
    out
}

fn ring() -> Keyring {
    let key = |id| Key { id, secret: [9; 32] };
    sure(Keyring::new("c1", &[key(1), key(2)]))
}

pub(super) fn open_sealed(octets: &[u8]) {
    let _ = ring().open(octets);
}

pub(super) fn sealed_seeds() -> Vec<Vec<u8>> {
    [&b""[..], b"hello", &[0; 1000]]
        .into_iter()
        .map(|plain| sure(ring().seal([1; 12], plain)))
        .collect()
}
