use proptest::prelude::*;

use super::*;

fn parsed(key: &str, value: &str) -> Result<String, SettingError> {
    let mut s = ClusterSettings::default();
    let change = Change::parse(key, value)?;
    s.set(&change)?;
    let shown = s.list().into_iter().find(|(k, _)| k.name() == key);
    Ok(shown.map(|(_, v)| v).unwrap_or_default())
}

#[test]
fn what_is_typed_is_what_is_shown() {
    for (key, value, shown) in [
        ("cert-expiry", "2160h", "2160h"),
        ("cert-expiry", "10s", "10s"),
        ("cert-expiry", "120m", "2h"),
        ("dispatcher-heartbeat", "5s", "5s"),
        ("dispatcher-heartbeat", "1500ms", "1500ms"),
        ("snapshot-interval", "10000", "10000"),
        ("log-retention", "0", "0"),
        ("task-history-limit", "1", "1"),
        ("autolock", "on", "true"),
        ("autolock", "false", "false"),
        ("node-grace", "0s", "0s"),
        ("daemon-grace", "10m", "10m"),
        ("drain-ack-timeout", "300s", "5m"),
        ("gossip-key-rotation", "12h", "12h"),
        ("external-ca", "", ""),
        ("external-ca", "https://a/x", "url=https://a/x"),
        (
            "external-ca",
            "protocol=cfssl,url=https://a/x;url=https://b",
            "url=https://a/x;url=https://b",
        ),
        ("default-addr-pool", "172.30.0.0/16", "172.30.0.0/16"),
        ("default-addr-pool-mask-length", "24", "24"),
        ("default-addr-pool6", "fd00:1:2::/48", "fd00:1:2::/48"),
        ("data-path-port", "4790", "4790"),
    ] {
        assert_eq!(parsed(key, value).as_deref(), Ok(shown), "{key}={value}");
    }
}

#[test]
fn a_wrong_value_is_told_its_range_and_a_wrong_key_the_keys() {
    for (key, value, message, hint) in [
        (
            "cert-expirey",
            "1h",
            "\"cert-expirey\" is no setting",
            "cert-expiry, external-ca",
        ),
        ("", "", "\"\" is no setting", "node-grace"),
        ("cert-expiry", "9s", "9s is not 10s to 87600h", "cert-expiry=2160h"),
        ("cert-expiry", "90", "\"90\" is not 10s to 87600h", "cert-expiry=2160h"),
        ("cert-expiry", "99999999999999999999h", "is not 10s", "2160h"),
        ("cert-expiry", "9999999999999999999h", "is not 10s", "2160h"),
        ("dispatcher-heartbeat", "61s", "61s is not 500ms to 1m", "5s"),
        ("data-path-port", "80", "80 is not 1024 to 65535", "4789"),
        ("data-path-port", "70000", "70000 is not 1024 to 65535", "4789"),
        ("snapshot-interval", "9", "9 is not 10 to 10000000", "10000"),
        ("snapshot-interval", "-1", "\"-1\" is not", "10000"),
        ("task-history-limit", "0", "0 is not 1 to 100", "5"),
        ("autolock", "maybe", "\"maybe\" is not true or false", "autolock=false"),
        (
            "external-ca",
            "http://a",
            "is not url=https",
            "url=https://ca.example.net/sign",
        ),
        ("external-ca", "url=http://a", "is no https:// URL", "url=https"),
        ("external-ca", "url=https://a,url=https://b", "is not url", "url=https"),
        (
            "external-ca",
            "url=https://a,cacert=x",
            "is no PEM certificate",
            "url=https",
        ),
        (
            "external-ca",
            "https://a;https://b;https://c;https://d;https://e",
            "5 signers",
            "url=https",
        ),
        ("default-addr-pool", "10.0.0.0", "is not an IPv4 subnet", "10.128.0.0/9"),
        ("default-addr-pool-mask-length", "33", "33 is not 8 to 24", "16"),
        ("default-addr-pool-mask-length", "280", "280 is not 8 to 24", "16"),
        (
            "default-addr-pool6",
            "10.0.0.0/8",
            "is not an IPv6 subnet",
            "fd12:3456:789a::/48",
        ),
    ] {
        let e = parsed(key, value).unwrap_err();
        assert!(e.message.contains(message), "{key}={value}: {}", e.message);
        assert!(e.hint.contains(hint), "{key}={value}: {}", e.hint);
    }
}

#[test]
fn every_key_is_listed_once_with_a_default_that_it_takes() {
    let listed = ClusterSettings::default().list();
    assert_eq!(listed.len(), Key::ALL.len());
    for (key, shown) in listed {
        assert_eq!(key.name().parse(), Ok(key));
        assert_eq!(serde_json::to_value(key).unwrap(), key.name(), "one name everywhere");
        // A cluster always has an IPv6 pool, given at init.
        if key != Key::DefaultAddrPool6 {
            assert_eq!(parsed(key.name(), &shown).unwrap(), shown);
        }
    }
}

#[test]
fn what_comes_from_files_is_held_against_the_ranges() {
    assert_eq!(ClusterSettings::default().check(), Ok(()));
    let s = ClusterSettings {
        node_grace_ms: 25 * HOUR,
        ..Default::default()
    };
    assert!(s.check().unwrap_err().message.contains("node-grace: 25h"));
}

#[test]
fn a_value_of_another_kind_changes_nothing() {
    let mut s = ClusterSettings::default();
    let change = Change {
        key: Key::Autolock,
        value: Value::Count(1),
    };
    assert!(s.set(&change).is_err());
    assert_eq!(s, ClusterSettings::default());
}

#[test]
fn what_an_older_version_kept_is_filled_up_with_defaults() {
    let s: ClusterSettings = serde_json::from_str(r#"{"node_grace_ms": 3000}"#).unwrap();
    assert_eq!(s.node_grace_ms, 3000);
    assert_eq!(s.cert_expiry_ms, ClusterSettings::default().cert_expiry_ms);
}

proptest! {
    #[test]
    fn times_come_back(ms in 0u64..u64::MAX) {
        prop_assert_eq!(parse_time(&show_time(ms)), Some(ms));
    }

    #[test]
    fn no_text_is_a_panic(key in 0..Key::ALL.len(), text in ".{0,40}") {
        let _ = Change::parse(Key::ALL[key].name(), &text);
        let _ = Change::parse(&text, &text);
    }
}
