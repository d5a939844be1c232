//! What iptables-restore reads leads from whatever is there to what is wanted, and is about what differs alone.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{super::super::MARK_BASE, *};

/// A table as iptables-restore --noflush reads it: chains with their rules.
type Held = BTreeMap<String, Vec<String>>;

/// Does what the lines say, as iptables-restore does, which refuses what cannot be done.
fn restore(held: &mut Held, input: &str) {
    for line in input.lines() {
        if let Some(chain) = line.strip_prefix(':') {
            held.insert(chain.split(' ').next().unwrap().to_owned(), Vec::new());
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|l| l.split_once(' ')) {
            held.get_mut(chain).unwrap().push(rule.to_owned());
        } else if let Some((chain, rule)) = line.strip_prefix("-I ").and_then(|l| l.split_once(" 1 ")) {
            held.get_mut(chain).unwrap().insert(0, rule.to_owned());
        } else if let Some((chain, rule)) = line.strip_prefix("-D ").and_then(|l| l.split_once(' ')) {
            let rules = held.get_mut(chain).unwrap();
            rules.remove(rules.iter().position(|r| r == rule).unwrap());
        } else if let Some(chain) = line.strip_prefix("-X ") {
            assert_eq!(held.remove(chain), Some(vec![]), "{chain} is not empty");
            assert!(
                !held.values().flatten().any(|r| r.ends_with(&format!(" {chain}"))),
                "{chain} is in use"
            );
        } else {
            assert!(line.starts_with('*') || line == "COMMIT", "{line}");
        }
    }
}

/// A table as iptables-save prints it.
fn save(table: TableName, held: &Held) -> Saved {
    let chains = held.keys().map(|c| format!(":{c} - [0:0]\n"));
    let rules = held
        .iter()
        .flat_map(|(c, rules)| rules.iter().map(move |r| format!("-A {c} {r}\n")));
    let text: String = chains.chain(rules).collect();
    Saved::parse(&format!("*{table}\n{text}COMMIT\n"))
}

/// The marks of services with these VIPs' last octets.
fn marks(vips: impl IntoIterator<Item = u32>) -> Rules {
    let marks = vips.into_iter().map(|n| {
        let at = Destination {
            address: std::net::Ipv4Addr::from(0x0a80_0000 + n).into(),
            transport: Transport::Tcp,
            port: Some(80),
        };
        (at, MARK_BASE + n)
    });
    Sandbox {
        marks: marks.collect(),
        prefix: "nv".into(),
        tunnel: "nx1".into(),
        ..Sandbox::default()
    }
    .rules()
}

/// The lines that lead from one to another in table raw, and what comes of them.
fn change(held: &mut Held, to: &Rules) -> String {
    let wanted: BTreeMap<_, _> = iptables::tables(to)
        .into_iter()
        .filter(|((t, f), _)| (*t, *f) == (TableName::Raw, Family::V4))
        .collect();
    let runs = iptables::change(Family::V4, &save(TableName::Raw, held), &wanted).unwrap();
    let input: String = runs.into_iter().map(|r| r.input).collect();
    restore(held, &input);
    assert_eq!(
        iptables::change(Family::V4, &save(TableName::Raw, held), &wanted),
        Ok(vec![])
    );
    input
}

fn empty() -> Held {
    ["PREROUTING", "OUTPUT"].map(|c| (c.to_owned(), Vec::new())).into()
}

#[test]
fn one_more_service_among_thousands_is_a_few_lines() {
    let mut held = empty();
    let all = change(&mut held, &marks(0..3000));
    assert!(all.lines().count() > 3000);
    let one = change(&mut held, &marks(0..3001));
    assert!(one.lines().count() < 150, "{one}");
    let back = change(&mut held, &marks(0..3000));
    assert!(back.lines().count() < 150, "{back}");
    let mut afresh = empty();
    change(&mut afresh, &marks(0..3000));
    assert_eq!(held, afresh, "nothing is left of it");
}

proptest! {
    #[test]
    fn whatever_was_there_what_is_wanted_is_there_then(
        before in prop::collection::btree_set(0u32..600, 0..200),
        now in prop::collection::btree_set(0u32..600, 0..200),
    ) {
        let mut held = empty();
        change(&mut held, &marks(before));
        change(&mut held, &marks(now.clone()));
        let mut afresh = empty();
        change(&mut afresh, &marks(now));
        prop_assert_eq!(held, afresh);
    }
}
