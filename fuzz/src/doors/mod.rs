//! The doors of the cores, and those of the daemon.

mod api;
mod log;
mod names;
mod raft;
mod rows;
mod state;

pub use raft::raft_kinds;

use crate::Door;

/// Every door.
pub fn all() -> Vec<Door> {
    let mut out = vec![
        Door {
            name: "raft-messages",
            seeds: raft::seeds,
            open: raft::open,
        },
        Door {
            name: "log-segment",
            seeds: log::seeds,
            open: log::open,
        },
        Door {
            name: "log-snapshot",
            seeds: log::snapshot_seeds,
            open: log::open_snapshot,
        },
        Door {
            name: "state-snapshot",
            seeds: state::snapshot_seeds,
            open: state::open_snapshot,
        },
        Door {
            name: "state-commands",
            seeds: state::seeds,
            open: state::open,
        },
        Door {
            name: "membership",
            seeds: rows::swim_seeds,
            open: rows::open_swim,
        },
        Door {
            name: "row-stream",
            seeds: rows::seeds,
            open: rows::open,
        },
        Door {
            name: "sealed-packet",
            seeds: rows::sealed_seeds,
            open: rows::open_sealed,
        },
        Door {
            name: "dns-query",
            seeds: names::seeds,
            open: names::open,
        },
        Door {
            name: "dns-upstream",
            seeds: names::upstream_seeds,
            open: names::open_upstream,
        },
        Door {
            name: "api-json",
            seeds: api::seeds,
            open: api::open,
        },
        Door {
            name: "api-text",
            seeds: api::text_seeds,
            open: api::open_text,
        },
    ];
    out.extend(netd::doors::all());
    out
}

/// Lays pieces end to end, each behind its length in two octets.
fn join(pieces: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for p in pieces {
        out.extend_from_slice(&u16::try_from(p.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(p.get(..usize::from(u16::MAX)).unwrap_or(p));
    }
    out
}

/// The pieces that [`join`] laid end to end; what is left is the last one.
fn pieces(mut from: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while let Some((len, rest)) = from.split_first_chunk::<2>() {
        let (piece, rest) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
        out.push(piece);
        from = rest;
    }
    out
}

/// What the examples are made of is right by itself.
fn sure<T, E: std::fmt::Debug>(made: Result<T, E>) -> T {
    made.unwrap_or_else(|e| panic!("an example cannot be made: {e:?}"))
}
