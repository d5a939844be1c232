//! Packets, streams and the last view of gossip.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cluster::{
    membership::{Liveness, Member, MemberState},
    rows::{Page, PageRow, Signer},
};
use model::{
    Intent, NodeId,
    row::{Row, RowBody, RowKey},
};
use ring::signature::{Ed25519KeyPair, KeyPair};
use tokio::sync::watch;

use super::{
    core::Core,
    disk::{Disk, View},
    link::Message,
};

fn pair(n: u8) -> Option<Ed25519KeyPair> {
    Ed25519KeyPair::from_seed_unchecked(&[n; 32]).ok()
}

fn member(n: u8) -> Member {
    Member {
        node: NodeId(u64::from(n)),
        generation: 1,
        addr: SocketAddr::from(([198, 18, 0, n], 7946)),
    }
}

fn intent() -> Intent {
    let mut intent = crate::doors::example_intent();
    for n in [1, 2] {
        if let (Some(node), Some(pair)) = (intent.nodes.get_mut(&NodeId(u64::from(n))), pair(n)) {
            node.key = pair.public_key().as_ref().to_vec();
        }
    }
    intent
}

/// Node `n`, which knows the other one.
fn core(n: u8, last: View) -> Option<Core> {
    let mut core = Core::new(
        member(n),
        Signer::new("c1", pair(n)?),
        Disk::nowhere(),
        last,
        Arc::new(intent()),
        1,
    );
    let other = MemberState {
        member: member(3 - n),
        incarnation: 0,
        liveness: Liveness::Alive,
    };
    core.take_members(Duration::ZERO, &[other]);
    Some(core)
}

/// Goes on for a while: timers, packets, facts.
fn live(core: &mut Core, now: &mut Duration) -> Vec<Vec<u8>> {
    *now += Duration::from_millis(150);
    core.tick(*now);
    core.housekeeping(*now);
    let _ = core.due(*now);
    let (out, _) = core.outgoing(*now);
    core.publish(&watch::Sender::new(Arc::default()));
    out.into_iter().map(|(_, bytes)| bytes).collect()
}

/// Contents of packets, each behind its length in two octets.
pub(crate) fn packets(mut octets: &[u8]) {
    let Some(mut core) = core(1, View::default()) else {
        return;
    };
    let mut now = Duration::ZERO;
    while let Some((len, rest)) = octets.split_first_chunk::<2>() {
        let (piece, rest) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
        core.on_packet(now, piece);
        live(&mut core, &mut now);
        octets = rest;
    }
}

/// What node 2 says of itself.
fn said() -> Vec<Vec<u8>> {
    let Some(mut other) = core(2, View::default()) else {
        return Vec::new();
    };
    let mut now = Duration::ZERO;
    let mut out = Vec::new();
    let _ = other.put(now, key(), RowBody::Tombstone);
    for _ in 0..12 {
        out.extend(live(&mut other, &mut now));
    }
    out
}

/// The key of a row.
fn key() -> RowKey {
    "web.1".parse().map_or(RowKey::Node, RowKey::Endpoint)
}

pub(crate) fn packet_seeds() -> Vec<Vec<u8>> {
    let framed = |p: &Vec<u8>| [&u16::try_from(p.len()).unwrap_or(0).to_be_bytes(), p.as_slice()].concat();
    let all: Vec<Vec<u8>> = said().iter().map(framed).collect();
    let mut out = vec![all.concat()];
    out.extend(all);
    out
}

/// A message over TCP, in whatever turn.
pub(crate) fn stream(octets: &[u8]) {
    let (Ok(m), Some(mut core)) = (postcard::from_bytes::<Message>(octets), core(1, View::default())) else {
        return;
    };
    let mut now = Duration::from_secs(1);
    let _ = core.put(now, key(), RowBody::Tombstone);
    match m {
        Message::Offer { root, members } => {
            if members != core.digest() || root != core.root() {
                let _ = (core.members(), core.summary());
            }
        }
        Message::Answer { members, summary } => {
            core.take_members(now, &members.unwrap_or_default());
            if let Some(summary) = summary {
                let _ = core.pages(&summary);
            }
        }
        Message::Differ { members, pages } => {
            core.take_members(now, &members.unwrap_or_default());
            let _ = core.compare(&pages.unwrap_or_default());
        }
        Message::Rows { rows, want } => {
            let _ = core.take_rows(now, &rows, NodeId(2));
            let _ = core.encode(&want);
        }
        Message::Ping | Message::Pong | Message::Done => {}
    }
    live(&mut core, &mut now);
}

pub(crate) fn stream_seeds() -> Vec<Vec<u8>> {
    let Some(mut other) = core(2, View::default()) else {
        return Vec::new();
    };
    let _ = other.put(Duration::ZERO, key(), RowBody::Tombstone);
    let members = other.members();
    let key = key();
    let page = Page {
        owner: NodeId(2),
        after: Some(RowKey::Node),
        upto: Some(key.clone()),
        rows: vec![PageRow {
            key: key.clone(),
            version: 1,
            hash: 2,
        }],
    };
    let rows = other.encode(&[(NodeId(2), key.clone())]);
    let all = [
        Message::Ping,
        Message::Offer {
            root: other.root(),
            members: other.digest(),
        },
        Message::Answer {
            members: Some(members.clone()),
            summary: Some(other.summary()),
        },
        Message::Differ {
            members: Some(members),
            pages: Some(vec![page]),
        },
        Message::Rows {
            rows,
            want: vec![(NodeId(2), key), (NodeId(1), RowKey::Node)],
        },
    ];
    all.iter().filter_map(|m| postcard::to_allocvec(m).ok()).collect()
}

/// The last view on disk.
pub(crate) fn last_view(octets: &[u8]) {
    if let Ok(view) = postcard::from_bytes::<View>(octets)
        && let Some(mut core) = core(1, view)
    {
        let mut now = Duration::ZERO;
        for _ in 0..3 {
            live(&mut core, &mut now);
        }
    }
}

pub(crate) fn view_seeds() -> Vec<Vec<u8>> {
    let mut view = View {
        members: vec![MemberState {
            member: member(2),
            incarnation: 3,
            liveness: Liveness::Alive,
        }],
        health: [(NodeId(2), model::api::NodeHealth::Ready)].into(),
        rows: Vec::new(),
    };
    let row = Row {
        owner: NodeId(2),
        key: key(),
        version: 4,
        body: RowBody::Tombstone,
    };
    if let Some(signed) = pair(2).and_then(|p| Signer::new("c1", p).sign(row).ok()) {
        signed.encode(&mut view.rows);
    }
    vec![postcard::to_allocvec(&view).unwrap_or_default()]
}
