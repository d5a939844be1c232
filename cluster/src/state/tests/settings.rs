//! The cluster's settings.

use super::*;

fn update(changes: &[(&str, &str)]) -> Command {
    let changes = changes
        .iter()
        .map(|(k, v)| model::settings::Change::parse(k, v).unwrap());
    Command::UpdateSettings(changes.collect())
}

#[test]
fn settings_change_all_together_or_not_at_all() {
    let mut log = Log::new(1);
    let before = log.state.intent();
    assert_eq!(before.settings.node_grace_ms, 10_000);
    let applied = log.ok(update(&[("node-grace", "3s"), ("task-history-limit", "9")]));
    assert_eq!(applied, Applied::Done);
    let after = log.state.intent();
    assert_eq!(
        (after.settings.node_grace_ms, after.settings.task_history_limit),
        (3_000, 9)
    );
    assert_eq!(after.revision, log.index);
    // Nodes get it as an increment, and the same again is no news.
    let mut known = (*before).clone();
    assert!(known.apply(before.delta_to(&after)));
    assert_eq!(known, *after);
    assert_eq!(log.ok(update(&[("node-grace", "3s")])), Applied::Unchanged);
    assert_eq!(log.state.intent().revision, after.revision);

    let out_of_range = model::settings::Change {
        key: model::settings::Key::TaskHistoryLimit,
        value: model::settings::Value::Count(0),
    };
    let Command::UpdateSettings(mut both) = update(&[("node-grace", "4s")]) else {
        panic!("no update")
    };
    both.push(out_of_range);
    let e = log.no(Command::UpdateSettings(both));
    assert!(e.message.contains("task-history-limit: 0 is not 1 to 100"), "{e}");
    for (pool, why) in [
        ("127.0.0.0/8", "reserved"),
        ("10.0.0.0/7", "prefix"),
        ("10.1.2.3/16", "host bits"),
    ] {
        let e = log.no(update(&[("default-addr-pool", pool)]));
        assert!(e.message.contains(why), "{pool}: {e}");
    }
    let e = log.no(update(&[("default-addr-pool6", "2001:db8::/32")]));
    assert!(e.message.contains("/48"), "{e}");
    assert_eq!(*log.state.intent(), *after);
}

#[test]
fn another_pool_is_for_later_networks() {
    let mut log = Log::new(0);
    let of = |log: &mut Log, n: &str| {
        let spec = model::NetworkSpec {
            ipv6: true,
            ..Default::default()
        };
        log.ok(network(n, spec));
        let net = &log.state.intent.networks[&name(n)];
        (net.subnet.to_string(), net.subnet6.unwrap().to_string())
    };
    assert_eq!(
        of(&mut log, "a"),
        ("10.129.0.0/16".into(), "fd12:3456:789a::/64".into())
    );
    log.ok(update(&[
        ("default-addr-pool", "172.30.0.0/22"),
        ("default-addr-pool-mask-length", "24"),
        ("default-addr-pool6", "fd00:1:2::/48"),
    ]));
    assert_eq!(of(&mut log, "b"), ("172.30.0.0/24".into(), "fd00:1:2::/64".into()));
    assert_eq!(of(&mut log, "c"), ("172.30.1.0/24".into(), "fd00:1:2:1::/64".into()));
    log.ok(update(&[
        ("default-addr-pool", "10.128.0.0/9"),
        ("default-addr-pool-mask-length", "16"),
    ]));
    assert_eq!(of(&mut log, "d").0, "10.130.0.0/16", "what is in use is passed over");
    // A snapshot carries them.
    assert_eq!(State::decode(&log.state.encode().unwrap()).unwrap(), log.state);
}

#[test]
fn a_cluster_begins_with_the_settings_it_is_given() {
    let begin = |settings: model::ClusterSettings| {
        let Command::InitCluster(mut i) = init() else {
            panic!("no init")
        };
        i.settings = settings;
        let mut state = State::default();
        let envelope = Envelope {
            request: 1,
            time_ms: 0,
            command: Command::InitCluster(i),
        };
        let outcome = state.apply(1, &envelope);
        (state, outcome)
    };
    let good = model::ClusterSettings {
        daemon_grace_ms: 1,
        default_addr_pool6: Some("fd12:3456:789a::/48".parse().unwrap()),
        default_addr_pool: "172.30.0.0/20".parse().unwrap(),
        ..Default::default()
    };
    let (state, outcome) = begin(good.clone());
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(state.intent.settings, good);
    for (bad, why) in [
        (
            model::ClusterSettings {
                cert_expiry_ms: 1,
                ..good.clone()
            },
            "cert-expiry",
        ),
        (
            model::ClusterSettings {
                default_addr_pool6: None,
                ..good.clone()
            },
            "IPv6 pool",
        ),
    ] {
        let (state, outcome) = begin(bad);
        assert!(outcome.unwrap_err().message.contains(why));
        assert!(!state.is_initialised());
        assert_eq!(*state.intent, Intent::default());
    }
}
