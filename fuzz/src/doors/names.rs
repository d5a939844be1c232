//! Names: what tasks ask, and what resolvers of the host answer.

use dns::{Table, Transport, View, answer, foreign::Foreign};
use model::Intent;

use super::{join, pieces, sure};

fn table() -> (Table, View) {
    let json = serde_json::json!({
        "revision": 9, "cluster": "c1", "nodes": {}, "blocks": {}, "placements": {},
        "networks": { "app": { "vni": 4096, "subnet": "10.77.0.0/16", "subnet6": "fd00:77::/64", "internal": false, "mtu": null } },
        "services": { "web": {
            "index": 1, "spec": { "networks": ["app"], "publish": [{ "published": 80, "target": 8080, "proto": "tcp" }] },
            "vips": { "app": { "v4": "10.77.0.1", "v6": "fd00:77::1" } },
            "ports": { "80/tcp": { "spec": { "published": 80, "target": 8080, "proto": "tcp" }, "mark": 1 } },
            "generation": 1, "problem": null,
        } },
    });
    let intent: Intent = sure(serde_json::from_value(json));
    let view = View {
        networks: intent.networks.values().map(|n| n.vni).collect(),
    };
    (Table::new(&intent, []), view)
}

fn query(name: &str, kind: u16, edns: bool) -> Vec<u8> {
    let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    for label in name.split('.').filter(|l| !l.is_empty()) {
        out.push(u8::try_from(label.len()).unwrap_or(63));
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    if edns {
        out.extend_from_slice(&[0, 0, 41, 16, 0, 0, 0, 128, 0, 0, 0]);
    }
    out
}

/// The first octet says how it came.
pub(super) fn open(octets: &[u8]) {
    let Some((what, query)) = octets.split_first() else {
        return;
    };
    let transport = match what & 1 {
        0 => Transport::Udp,
        _ => Transport::Tcp,
    };
    let (table, view) = table();
    let mut out = Vec::new();
    answer(&table, &view, query, transport, u32::from(*what), &mut out);
    if let Some(foreign) = Foreign::parse(query, transport) {
        let _ = foreign.ask(7);
        foreign.fail(2, &mut out);
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (name, kind) in [
        ("web", 1),
        ("web", 28),
        ("tasks.web", 1),
        ("web.app", 255),
        ("_8080._tcp.web", 33),
        ("1.0.77.10.in-addr.arpa", 12),
        ("example.com", 15),
        ("", 2),
    ] {
        for edns in [false, true] {
            out.push([&[0][..], &query(name, kind, edns)].concat());
            out.push([&[1][..], &query(name, kind, edns)].concat());
        }
    }
    out
}

/// Two pieces: what was asked, and what a resolver says.
pub(super) fn open_upstream(octets: &[u8]) {
    let all = pieces(octets);
    let [query, message, ..] = all.as_slice() else {
        return;
    };
    for transport in [Transport::Udp, Transport::Tcp] {
        let Some(foreign) = Foreign::parse(query, transport) else {
            return;
        };
        if let dns::foreign::Reaction::Answer(a) = foreign.judge(0x1234, message) {
            let mut out = Vec::new();
            let _ = (a.ttl(), a.truncated(), a.size());
            foreign.reply(&a, 1, &mut out);
        }
    }
}

pub(super) fn upstream_seeds() -> Vec<Vec<u8>> {
    let asked = query("example.com", 1, true);
    let mut said = query("example.com", 1, false);
    said[2..4].copy_from_slice(&[0x81, 0x80]);
    said[7] = 2;
    for n in 0..2 {
        said.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, n]);
    }
    let mut missing = query("example.com", 1, false);
    missing[2..4].copy_from_slice(&[0x81, 0x83]);
    vec![join(&[asked.clone(), said]), join(&[asked, missing])]
}
