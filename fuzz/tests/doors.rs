//! Every door for a moment, and what was found once; that the fuzzer finds what is there to be found.
#![allow(clippy::disallowed_methods, reason = "it is bounded in time")]

use std::time::{Duration, Instant, SystemTime};

use cluster::raft::Kind;
use fuzz::{Door, drive};

/// For each door, unless `NETD_FUZZ_MS` says otherwise: 25 doors are done in some ten seconds.
const EACH: Duration = Duration::from_millis(400);

#[test]
fn every_door_stands() {
    let each = std::env::var("NETD_FUZZ_MS").ok().and_then(|ms| ms.parse().ok());
    let each = each.map_or(EACH, Duration::from_millis);
    // Other inputs each time; what fails is kept, and told.
    let seed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let mut faults = Vec::new();
    for door in fuzz::all() {
        for (name, input) in fuzz::found(&door).unwrap() {
            if let Some(what) = drive::once(&door, &input) {
                faults.push(format!("found/{}/{name}: {what}", door.name));
            }
        }
        let (tried, fault) = drive::drive(&door, seed, each);
        println!("{:24} {tried} inputs", door.name);
        if let Some(fault) = fault {
            faults.push(format!(
                "{}: {}\ninput: {}",
                door.name,
                fault.what,
                fault.input.escape_ascii()
            ));
        }
    }
    assert!(faults.is_empty(), "seed {seed}\n{}", faults.join("\n"));
}

#[test]
fn examples_are_taken() {
    // A door that refuses its own examples tries nothing behind its first check.
    let all = fuzz::all();
    let seeds = |name: &str| (all.iter().find(|d| d.name == name).unwrap().seeds)();
    for m in seeds("row-stream") {
        assert!(!cluster::rows::decode_all(&m).unwrap().is_empty());
    }
    for s in seeds("state-snapshot") {
        cluster::state::State::decode(&s).unwrap();
    }
    let heard = fuzz::raft_kinds();
    for kind in [
        Kind::PreVote,
        Kind::Vote,
        Kind::Append,
        Kind::Heartbeat,
        Kind::Snapshot,
        Kind::TimeoutNow,
    ] {
        assert!(heard.contains(&kind), "manager 1 hears {kind:?}: {heard:?}");
    }
    assert!(seeds("gossip-packets").len() > 3, "two nodes talk");
    serde_json::from_slice::<model::ServiceSpec>(&seeds("api-json")[0]).unwrap();
    let update = seeds("api-json").into_iter();
    assert_eq!(
        update
            .filter(|s| serde_json::from_slice::<model::api::ClusterUpdate>(s).is_ok())
            .count(),
        1
    );
}

/// Doors with faults as people make them.
mod planted {
    /// `2 octets of length, text`; the length is believed.
    pub(crate) fn length_is_believed(octets: &[u8]) {
        if octets.first() != Some(&b'N') || octets.len() < 4 {
            return;
        }
        let len = usize::from(u16::from_be_bytes([octets[1], octets[2]]));
        let _ = std::str::from_utf8(&octets[3..3 + len]);
    }

    /// Adds up what another one says.
    pub(crate) fn sum_overflows(octets: &[u8]) {
        let json = serde_json::from_slice::<serde_json::Value>(octets);
        let from = json
            .ok()
            .and_then(|v| Some(v.get("from")?.as_u64()? + v.get("count")?.as_u64()?));
        let _ = from;
    }

    /// A range of keys that ends before it begins: what a page of rows once did.
    pub(crate) fn range_is_backwards(octets: &[u8]) {
        let map = std::collections::BTreeMap::from([(1u8, ()), (9, ())]);
        if let [b'R', from, to, ..] = octets {
            let _ = map
                .range((std::ops::Bound::Excluded(*from), std::ops::Bound::Included(*to)))
                .count();
        }
    }

    /// Steps by what it is told.
    pub(crate) fn never_ends(octets: &[u8]) {
        let [b'S', step, rest @ ..] = octets else {
            return;
        };
        let begun = std::time::Instant::now();
        let mut at = 0;
        // So that the test ends.
        while at < rest.len() && begun.elapsed() < fuzz::drive::SLOW + std::time::Duration::from_millis(100) {
            at += usize::from(*step);
        }
    }
}

#[test]
fn what_is_planted_is_found() {
    let door = |name, seeds, open| Door { name, seeds, open };
    let doors = [
        door("length", || vec![b"N\0\x05hello".to_vec()], planted::length_is_believed),
        door(
            "sum",
            || vec![br#"{"from":1,"count":2}"#.to_vec()],
            planted::sum_overflows,
        ),
        door("range", || vec![vec![b'R', 2, 8]], planted::range_is_backwards),
        door("step", || vec![b"S\x01some".to_vec()], planted::never_ends),
    ];
    for door in doors {
        let begun = Instant::now();
        let (tried, fault) = drive::drive(&door, 7, Duration::from_secs(10));
        let fault = fault.unwrap_or_else(|| panic!("{} was not found in {tried} inputs", door.name));
        println!(
            "{}: found by input {tried}, in {:?}: {}",
            door.name,
            begun.elapsed(),
            fault.what
        );
        assert!(fault.input.len() <= 40, "cut short: {}", fault.input.escape_ascii());
        if !fault.what.starts_with("panicked") {
            continue;
        }
        assert!(drive::once(&door, &fault.input).is_some(), "and does it again");
        let (again, same) = drive::drive(&door, 7, Duration::from_secs(10));
        assert_eq!(again, tried, "the same seed makes the same inputs");
        assert_eq!(same.map(|f| f.input), Some(fault.input));
    }
}
