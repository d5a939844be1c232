//! Where octets come in: from peers, registries and the disk. A door is the very code that takes them, with examples of
//! what it takes, so that the workspace's fuzzer can bring it everything else. Nothing of the daemon calls this.

use model::Intent;

use crate::{
    discover, gossip,
    identity::{Csr, NodeKey, PeerId, Root, Subject, Token, UnlockKey},
    peers, rpc, view,
};

/// Code that takes octets from outside.
#[derive(Clone, Copy)]
pub struct Door {
    /// Its name: small letters and hyphens.
    pub name: &'static str,
    /// Examples of what it takes.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Takes octets; must come back soon, and never panics.
    pub open: fn(&[u8]),
}

/// The daemon's doors.
pub fn all() -> Vec<Door> {
    vec![
        Door {
            name: "peer-frames",
            seeds: peers::doors::seeds,
            open: peers::doors::open,
        },
        Door {
            name: "rpc-stranger",
            seeds: rpc::doors::stranger_seeds,
            open: rpc::doors::stranger,
        },
        Door {
            name: "rpc-from-node",
            seeds: rpc::doors::node_seeds,
            open: rpc::doors::node,
        },
        Door {
            name: "rpc-from-manager",
            seeds: rpc::doors::manager_seeds,
            open: rpc::doors::manager,
        },
        Door {
            name: "gossip-packets",
            seeds: gossip::doors::packet_seeds,
            open: gossip::doors::packets,
        },
        Door {
            name: "gossip-stream",
            seeds: gossip::doors::stream_seeds,
            open: gossip::doors::stream,
        },
        Door {
            name: "gossip-view",
            seeds: gossip::doors::view_seeds,
            open: gossip::doors::last_view,
        },
        Door {
            name: "discover-url",
            seeds: discover::doors::url_seeds,
            open: discover::doors::url,
        },
        Door {
            name: "discover-answer",
            seeds: discover::doors::answer_seeds,
            open: discover::doors::answer,
        },
        Door {
            name: "certificate",
            seeds: certificate_seeds,
            open: certificate,
        },
        Door {
            name: "token",
            seeds: token_seeds,
            open: token,
        },
        Door {
            name: "backup-file",
            seeds: backup_seeds,
            open: backup,
        },
        Door {
            name: "last-intent",
            seeds: intent_seeds,
            open: intent,
        },
    ]
}

/// Octets as PEM, with a label.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .filter_map(|l| std::str::from_utf8(l).ok())
        .collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// What PEM holds.
fn der(pem: &str) -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
    STANDARD.decode(body).unwrap_or_default()
}

/// A request for a certificate, a certificate, a CA's: DER, which any stranger may send.
fn certificate(octets: &[u8]) {
    let _ = Csr::parse(&pem("CERTIFICATE REQUEST", octets));
    let as_pem = pem("CERTIFICATE", octets);
    let _ = PeerId::of_pem(&as_pem);
    let _ = crate::identity::former(&as_pem, std::iter::once(as_pem.as_str()));
    let _ = Root::given(&as_pem);
    let _ = crate::identity::fingerprint(&as_pem);
}

fn certificate_seeds() -> Vec<Vec<u8>> {
    let made = || {
        let key = NodeKey::generate()?;
        let csr = key.csr("host1")?;
        let root = Root::create("c1", 1)?;
        let who = Subject {
            cluster: "c1".into(),
            node: model::NodeId(1),
            role: model::intent::Role::Worker,
        };
        let leaf = root.sign(&Csr::parse(&csr)?, &who, std::time::Duration::from_secs(3600))?;
        Ok::<_, crate::identity::IdentityError>([der(&csr), der(&leaf), der(root.cert())])
    };
    made().map(Vec::from).unwrap_or_default()
}

fn token(octets: &[u8]) {
    let text = String::from_utf8_lossy(octets);
    let _ = text.parse::<Token>();
    let _ = text.parse::<UnlockKey>();
}

fn token_seeds() -> Vec<Vec<u8>> {
    let token = Token {
        pin: [7; 32],
        secret: std::array::from_fn(|i| i as u8),
    };
    let mut out = vec![token.to_string().into_bytes()];
    out.extend(UnlockKey::create().ok().map(|k| k.reveal().into_bytes()));
    out
}

/// A file whose rounds are few: how long they take is not the question here.
fn backup(octets: &[u8]) {
    let mut file = octets.to_vec();
    if let Some(rounds) = file.get_mut(12..16) {
        rounds.copy_from_slice(&2u32.to_le_bytes());
    }
    // With the right digest what is behind it is read too.
    let end = file.len().saturating_sub(32);
    let sum = file
        .get(..end)
        .map(|body| ring::digest::digest(&ring::digest::SHA256, body));
    if let (Some(sum), Some(place)) = (sum, file.get_mut(end..)) {
        let n = place.len();
        place.copy_from_slice(sum.as_ref().get(..n).unwrap_or_default());
    }
    let _ = crate::backup::open(&file, b"long enough");
}

fn backup_seeds() -> Vec<Vec<u8>> {
    vec![crate::backup::example(b"long enough")]
}

/// The view on disk, and what is made of it.
fn intent(octets: &[u8]) {
    if let Ok(intent) = serde_json::from_slice::<Intent>(octets) {
        look_at(&intent);
    }
}

fn intent_seeds() -> Vec<Vec<u8>> {
    vec![serde_json::to_vec(&example_intent()).unwrap_or_default()]
}

/// Everything that a node makes of an intent.
pub(crate) fn look_at(intent: &Intent) {
    let facts = gossip::Facts::default();
    let here = view::Here {
        me: model::NodeId(1),
        datapath: model::row::Datapath::Ebpf,
        vtep: [198, 18, 0, 1].into(),
        vxlan_port: 4789,
        underlay_mtu: 1500,
        uplinks: ["eth0".to_owned()].into(),
        direct: true,
        addresses: Default::default(),
        devices: Default::default(),
        ifindex: Default::default(),
    };
    let none = Default::default();
    let _ = view::names(intent, &facts);
    let _ = view::overlay_desired(intent, &facts, &here, &none);
    let _ = view::mesh_wanted(intent, &facts, &here, &none);
}

/// An intent that has one of everything.
pub(crate) fn example_intent() -> Intent {
    let json = serde_json::json!({
        "revision": 9, "cluster": "c1",
        "nodes": {
            "1": { "hostname": "host1", "role": "manager", "availability": "active", "key": [1, 2], "down": false,
                    "rpc": "198.18.0.1:2377", "raft": 1 },
            "2": { "hostname": "host2", "role": "worker", "availability": "drain", "key": [3], "down": false, "rpc": null },
        },
        "networks": {
            "app": { "vni": 4096, "subnet": "10.77.0.0/16", "subnet6": "fd00:77::/64", "internal": false, "mtu": 1400 },
        },
        "services": { "web": {
            "index": 1, "spec": { "networks": ["app"], "replicas": 3,
                "publish": [{ "published": 80, "target": 8080, "proto": "tcp" }] },
            "vips": { "app": { "v4": "10.77.0.1", "v6": "fd00:77::1" } },
            "ports": { "80/tcp": { "spec": { "published": 80, "target": 8080, "proto": "tcp" }, "mark": 1 } },
            "generation": 1, "problem": null,
        } },
        "blocks": { "4096": { "256": 1, "257": 2 } },
        "placements": { "web": { "1": [[1, 2]], "2": [[3, 3]] } },
    });
    // A test says that it reads.
    serde_json::from_value(json).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_door_has_examples() {
        assert_eq!(example_intent().placements.len(), 1);
        let mut names = std::collections::BTreeSet::new();
        for door in all() {
            assert!(!(door.seeds)().is_empty(), "{}", door.name);
            assert!((door.seeds)().iter().any(|s| !s.is_empty()), "{}", door.name);
            assert!(names.insert(door.name), "{} twice", door.name);
        }
        assert!(crate::backup::open(&crate::backup::example(b"long enough"), b"long enough").is_ok());
    }
}
