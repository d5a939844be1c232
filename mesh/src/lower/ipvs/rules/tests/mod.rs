mod change;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use proptest::prelude::*;

use super::{super::Family, iptables::Saved, *};

fn ip(a: &str) -> IpAddr {
    a.parse().unwrap()
}

fn nets(all: &[&str]) -> BTreeSet<IpNet> {
    all.iter().map(|n| n.parse().unwrap()).collect()
}

fn published(transport: Transport, port: u16, target: u16) -> Published {
    Published {
        transport,
        port,
        on: None,
        v4: Some("10.128.0.2".parse().unwrap()),
        v6: Some("fd00:80::2".parse().unwrap()),
        target,
        allow: Allow::All,
        masquerade: false,
    }
}

/// A node with a network that reaches the outside and an internal one; ports for all, for some, on one address, masked.
fn host() -> Host {
    let network = |device: &str, pools: &[&str], outside| HostNetwork {
        device: device.to_owned(),
        pools: nets(pools).into_iter().collect(),
        outside,
    };
    Host {
        tunnel: Some((ip("198.18.0.1"), 4789)),
        members: [ip("198.18.0.2"), ip("198.18.0.3")].into(),
        prefix: "nvh".into(),
        networks: BTreeSet::from([
            network("nvh100", &["10.128.0.0/16", "fd00:80::/64"], true),
            network("nvh101", &["10.129.0.0/16"], false),
        ]),
        v4: Some("198.18.0.1".parse().unwrap()),
        v6: Some("fd18::1".parse().unwrap()),
        published: BTreeSet::from([
            published(Transport::Tcp, 8080, 80),
            published(Transport::Udp, 8080, 80),
            Published {
                allow: Allow::Only(nets(&["198.18.0.0/25", "198.18.0.128/25", "fd18::/64"])),
                ..published(Transport::Tcp, 8443, 443)
            },
            Published {
                on: Some(BTreeSet::from([ip("198.18.0.7")])),
                allow: Allow::Only(nets(&["198.18.9.0/24"])),
                masquerade: true,
                ..published(Transport::Sctp, 3868, 3868)
            },
        ]),
    }
}

fn to(address: &str, transport: Transport, port: Option<u16>) -> Destination {
    Destination {
        address: ip(address),
        transport,
        port,
    }
}

fn sandbox() -> Sandbox {
    use Transport::*;
    let marks = [
        (to("10.128.0.2", Tcp, Some(80)), 1),
        (to("fd00:80::2", Tcp, Some(80)), 1),
        (to("10.128.0.2", Udp, Some(80)), 2),
        (to("fd00:80::2", Udp, Some(80)), 2),
        (to("10.128.0.3", Sctp, Some(3868)), 3),
        (to("10.128.0.3", Tcp, None), 4),
        (to("198.18.0.1", Tcp, Some(8080)), 1),
        (to("fd18::1", Tcp, Some(8080)), 1),
    ];
    Sandbox {
        tunnel: "nx100".into(),
        prefix: "nv".into(),
        up: "nvup".into(),
        marks: marks
            .into_iter()
            .map(|(d, n)| (d, super::super::MARK_BASE + n))
            .collect(),
    }
}

#[test]
fn the_rules_of_a_node() {
    let rules = host().rules();
    insta::assert_snapshot!("host_iptables", iptables::text(&iptables::tables(&rules)));
    insta::assert_snapshot!("host_nft", nft::table(&rules).to_string());
}

#[test]
fn a_tunnel_over_ipv6_is_not_tracked_either() {
    let six = Host {
        tunnel: Some((ip("fd18::1"), 4789)),
        networks: BTreeSet::new(),
        published: BTreeSet::new(),
        ..host()
    };
    let tables = iptables::text(&iptables::tables(&six.rules()));
    insta::assert_snapshot!("host_six_iptables", tables);
    insta::assert_snapshot!("host_six_nft", nft::table(&six.rules()).to_string());
}

#[test]
fn the_rules_of_a_network() {
    let rules = sandbox().rules();
    insta::assert_snapshot!("sandbox_iptables", iptables::text(&iptables::tables(&rules)));
    insta::assert_snapshot!("sandbox_nft", nft::table(&rules).to_string());
}

/// What iptables-save would print after all runs, beside others' tables.
fn saved(rules: &Rules, family: Family) -> Saved {
    let tables: BTreeMap<_, _> = iptables::tables(rules)
        .into_iter()
        .filter(|((_, f), _)| *f == family)
        .collect();
    Saved::parse(&iptables::text(&tables))
}

#[test]
fn after_the_change_nothing_is_to_change() {
    for rules in [host().rules(), sandbox().rules()] {
        let table = nft::table(&rules);
        assert_eq!(nft::change(None, &table), nft::Change::Rebuild);
        assert_eq!(nft::change(Some(&table.seen()), &table), nft::Change::None);
        let tables = iptables::tables(&rules);
        for family in [Family::V4, Family::V6] {
            let there = saved(&rules, family);
            assert_eq!(iptables::change(family, &there, &tables), Ok(vec![]));
            let runs = iptables::change(family, &Saved::default(), &tables).unwrap();
            let of_family = tables.keys().filter(|(_, f)| *f == family).count();
            assert_eq!(runs.len(), of_family, "one run a table");
            assert!(iptables::removal(family, &Saved::default()).is_empty());
            let removed = iptables::removal(family, &there);
            assert_eq!(removed.len(), of_family);
            assert!(removed.iter().all(|r| !r.input.contains("\n-A ")), "{removed:?}");
        }
    }
}

#[test]
fn nothing_wanted_is_nothing_made() {
    let rules = Rules::default();
    assert!(nft::table(&rules).chains.is_empty());
    assert!(iptables::tables(&rules).is_empty());
}

#[test]
fn services_change_elements_and_no_rules() {
    let before = nft::table(&sandbox().rules());
    let mut more = sandbox();
    for i in 0..3000u32 {
        let vip = IpAddr::V4((0x0a80_0100 + i).into());
        more.marks.insert(
            Destination {
                address: vip,
                transport: Transport::Tcp,
                port: Some(80),
            },
            0x6e00_1000 + i,
        );
    }
    more.marks
        .insert(to("10.128.0.2", Transport::Tcp, Some(80)), 0x6e00_0009);
    let after = nft::table(&more.rules());
    assert_eq!(before.chains, after.chains);
    let nft::Change::Elements(sets) = nft::change(Some(&before.seen()), &after) else {
        panic!("the table would be made anew");
    };
    let counts: Vec<_> = sets
        .iter()
        .map(|s| (s.set.as_str(), s.remove.len(), s.add.len(), s.clear))
        .collect();
    assert_eq!(counts, [("marks4", 1, 3001, false)]);

    // A node: ports come and go; networks too, but for the one rule that names a device.
    let before = nft::table(&host().rules());
    let mut more = host();
    more.published
        .extend((1..=2000).map(|p| published(Transport::Tcp, 20_000 + p, 80)));
    let after = nft::table(&more.rules());
    assert_eq!(before.chains, after.chains);
}

#[test]
fn sources_of_an_allow_list_are_merged() {
    let table = nft::table(&host().rules());
    let allowed = &table.sets["allowed4"];
    assert_eq!(allowed.elements.len(), 1, "two halves are one range: {allowed:?}");
    assert_eq!(table.sets["guarded6"].elements.len(), 1);
    // Nobody of a family without a source is allowed.
    let only_v4 = Host {
        published: BTreeSet::from([Published {
            allow: Allow::Only(nets(&["198.18.0.0/24"])),
            ..published(Transport::Tcp, 8443, 443)
        }]),
        ..host()
    };
    let table = nft::table(&only_v4.rules());
    assert_eq!(table.sets["guarded6"].elements.len(), 1);
    assert!(table.sets["allowed6"].elements.is_empty());
}

#[test]
fn a_chain_of_our_name_that_is_not_ours_is_refused_by_name() {
    let tables = iptables::tables(&host().rules());
    let theirs = "*nat\n:PREROUTING ACCEPT [0:0]\n:NETD-OUTPUT - [0:0]\n-A NETD-OUTPUT -p tcp -j RETURN\nCOMMIT\n";
    let refused = iptables::change(Family::V4, &Saved::parse(theirs), &tables).unwrap_err();
    assert_eq!((refused.table, refused.chain.as_str()), (TableName::Nat, "NETD-OUTPUT"));
    assert_eq!(refused.rule, "-p tcp -j RETURN");
    assert!(
        iptables::removal(Family::V4, &Saved::parse(theirs)).is_empty(),
        "it is not touched"
    );
    // A comment of theirs does not make it ours; a name alone does not either.
    for comment in ["netd:nothing", "netd:00112233445566zz", "netd"] {
        let theirs = theirs.replace("-p tcp", &format!("-m comment --comment \"{comment}\""));
        assert!(
            iptables::change(Family::V4, &Saved::parse(&theirs), &tables).is_err(),
            "{comment}"
        );
    }
}

#[test]
fn a_flush_is_mended_and_others_rules_are_not_in_the_way() {
    let rules = host().rules();
    let tables = iptables::tables(&rules);
    let whole = iptables::text(
        &tables
            .clone()
            .into_iter()
            .filter(|((_, f), _)| *f == Family::V4)
            .collect(),
    );
    // `iptables -t nat -F`: chains are left, rules are not, the others' neither.
    let mut table = "";
    let flushed: Vec<&str> = whole
        .lines()
        .filter(|l| {
            table = l.strip_prefix('*').unwrap_or(table);
            !(table == "nat" && l.starts_with("-A "))
        })
        .collect();
    let runs = iptables::change(Family::V4, &Saved::parse(&flushed.join("\n")), &tables).unwrap();
    assert_eq!(runs.iter().map(|r| r.table).collect::<Vec<_>>(), [TableName::Nat]);
    assert!(
        runs[0]
            .input
            .contains("-I POSTROUTING 1 -m comment --comment netd -j NETD-POSTROUTING\n")
    );

    // Others' rules, before and after ours, in the kernel's chains.
    let beside = whole.replace(
        "-A PREROUTING -m comment --comment netd -j NETD-PREROUTING",
        "-A PREROUTING -j DOCKER\n-A PREROUTING -m comment --comment netd -j NETD-PREROUTING\n-A PREROUTING -j LOG",
    );
    assert_ne!(beside, whole);
    assert_eq!(
        iptables::change(Family::V4, &Saved::parse(&beside), &tables),
        Ok(vec![])
    );
    // Our way in twice (somebody restored a file): once is left. Theirs stay.
    let twice = whole.replace(
        "-A FORWARD -m comment --comment netd -j NETD-FORWARD",
        "-A FORWARD -m comment --comment netd -j NETD-FORWARD\n-A FORWARD -j DROP\n\
         -A FORWARD -m comment --comment netd -j NETD-FORWARD",
    );
    let runs = iptables::change(Family::V4, &Saved::parse(&twice), &tables).unwrap();
    assert_eq!(runs.len(), 1);
    let of_forward: Vec<&str> = runs[0].input.lines().filter(|l| l.contains(" FORWARD ")).collect();
    let jump = "-m comment --comment netd -j NETD-FORWARD";
    assert_eq!(
        of_forward,
        [
            format!("-D FORWARD {jump}"),
            format!("-D FORWARD {jump}"),
            format!("-I FORWARD 1 {jump}")
        ]
    );

    // A chain that we want no more goes, unless others lead to it.
    let mut old = host();
    old.published
        .extend((0..40).map(|p| published(Transport::Tcp, 30_000 + p, 80)));
    let old = iptables::text(&iptables::tables(&old.rules()));
    let v4 = old.split("# ip6tables").next().unwrap();
    let runs = iptables::change(Family::V4, &Saved::parse(v4), &tables).unwrap();
    assert_eq!(runs.len(), 1);
    assert!(runs[0].input.contains("-X NETD-PORTS-1\n"), "{}", runs[0].input);
    let used = v4.replace("*nat\n", "*nat\n-A OUTPUT -p udp -j NETD-PORTS-1\n");
    let runs = iptables::change(Family::V4, &Saved::parse(&used), &tables).unwrap();
    assert!(!runs[0].input.contains("-X NETD-PORTS-1\n"));
    assert!(runs[0].input.contains(":NETD-PORTS-1 - [0:0]\n"), "it is emptied");
}

#[test]
fn a_spelling_that_netd_does_not_know_is_still_known_by_its_hashes() {
    let rules = host().rules();
    let tables = iptables::tables(&rules);
    let text = iptables::text(
        &tables
            .clone()
            .into_iter()
            .filter(|((_, f), _)| *f == Family::V4)
            .collect(),
    );
    let other = Saved::parse(&text.replace("-j CT --notrack", "-j NOTRACK"));
    assert!(!iptables::change(Family::V4, &other, &tables).unwrap().is_empty());
    let raw = &tables[&(TableName::Raw, Family::V4)];
    assert!(other.looks_like(TableName::Raw, raw));
    let shorter = Saved::parse(
        &text
            .lines()
            .filter(|l| !l.contains("--notrack"))
            .collect::<Vec<_>>()
            .join("\n"),
    );
    assert!(!shorter.looks_like(TableName::Raw, raw));
}

/// Walks the chains of a list as the kernel does: what is done at last, and how many rules were looked at.
fn walk(chains: &BTreeMap<String, Vec<String>>, root: &str, at: (IpAddr, Transport, u16)) -> (Option<String>, usize) {
    let (mut chain, mut looked, mut done) = (root.to_owned(), 0, None);
    'chains: loop {
        for rule in &chains[&chain] {
            looked += 1;
            let words: Vec<&str> = rule.split(' ').collect();
            let after = |flag: &str| words.iter().position(|w| *w == flag).map(|i| words[i + 1]);
            let to = after("-d").is_none_or(|n| n.parse::<IpNet>().unwrap().contains(&at.0));
            let transport = after("-p").is_none_or(|p| p == at.1.to_string());
            let port = after("--dport").is_none_or(|p| {
                let (from, to) = p.split_once(':').unwrap_or((p, p));
                (from.parse().unwrap()..=to.parse::<u16>().unwrap()).contains(&at.2)
            });
            if !(to && transport && port) {
                continue;
            }
            match after("-g") {
                Some(next) => {
                    chain = next.to_owned();
                    continue 'chains;
                }
                None if rule.ends_with("RETURN") => return (done, looked),
                None => {
                    done = after("--set-xmark")
                        .or_else(|| after("--to-destination"))
                        .map(str::to_owned);
                    if rule.contains("-j DNAT") {
                        return (done, looked);
                    }
                }
            }
        }
        return (done, looked);
    }
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![Just(Transport::Tcp), Just(Transport::Udp), Just(Transport::Sctp)]
}

proptest! {
    #[test]
    fn a_tree_of_chains_says_what_the_list_says(
        vips in prop::collection::btree_map(
            (0u32..5000, transport(), prop_oneof![Just(80u16), Just(443), 1u16..2000]), 0u32..0xffffff, 0..300),
        wide in any::<bool>(),
        stranger in (any::<u32>(), transport(), any::<u16>()),
    ) {
        let address = |n: u32| -> IpAddr {
            if wide {
                std::net::Ipv6Addr::from(0xfd00_0080_u128 << 96 | u128::from(n) << 40 | u128::from(n % 7)).into()
            } else {
                std::net::Ipv4Addr::from(0x0a80_0000 + n * 3).into()
            }
        };
        let marks: BTreeMap<_, _> = vips.iter().map(|((a, t, p), m)| {
            (Destination { address: address(*a), transport: *t, port: Some(*p) }, super::super::MARK_BASE + m)
        }).collect();
        let rules = Sandbox { marks: marks.clone(), prefix: "nv".into(), tunnel: "nx1".into(), up: "nvup".into() }.rules();
        let family = if wide { Family::V6 } else { Family::V4 };
        let tables = iptables::tables(&rules);
        let chains = &tables[&(TableName::Raw, family)].ours;
        if marks.is_empty() {
            prop_assert!(!chains.contains_key("NETD-MARKS"));
            return Ok(());
        }
        let packets = marks.keys().map(|d| (d.address, d.transport, d.port.unwrap()));
        for at in packets.chain([(address(stranger.0 % 6000), stranger.1, stranger.2)]) {
            let mark = marks.get(&Destination { address: at.0, transport: at.1, port: Some(at.2) });
            let (done, looked) = walk(chains, "NETD-MARKS", at);
            prop_assert_eq!(done, mark.map(|m| format!("{m:#x}/0xffffffff")));
            prop_assert!(looked <= 17 * 6, "{} rules", looked);
        }
        prop_assert!(chains.keys().all(|c| c.len() <= 28), "XT_EXTENSION_MAXNAMELEN");
    }

    #[test]
    fn a_tree_of_ports_says_what_the_list_says(ports in prop::collection::btree_map((transport(), 1u16..), 1u16.., 1..400)) {
        let all = ports.iter().map(|((t, p), target)| published(*t, *p, *target));
        let rules = Host { prefix: "nvh".into(), published: all.collect(), ..Host::default() }.rules();
        let tables = iptables::tables(&rules);
        for (family, vip) in [(Family::V4, "10.128.0.2"), (Family::V6, "[fd00:80::2]")] {
            let chains = &tables[&(TableName::Nat, family)].ours;
            for ((t, p), target) in &ports {
                let (done, looked) = walk(chains, "NETD-PORTS", (ip("198.18.0.1"), *t, *p));
                prop_assert_eq!(done, Some(format!("{vip}:{target}")));
                prop_assert!(looked <= 17 * 4, "{} rules", looked);
            }
        }
    }

    /// Whatever iptables-save prints, and whatever somebody puts in its place.
    #[test]
    fn what_is_read_never_panics(text in "(\\*(nat|raw|filter|x)\n|:[A-Z-]{0,9} [A-Z-]* ?\\[|-A [A-Z]* -j NETD-[A-Z]*\n|-m comment --comment \"?netd:?|COMMIT\n|\\PC{0,8}\n){0,30}") {
        let saved = Saved::parse(&text);
        let _ = saved.has_ours();
        let _ = iptables::change(Family::V4, &saved, &iptables::tables(&host().rules()));
        let _ = iptables::removal(Family::V4, &saved);
    }
}
