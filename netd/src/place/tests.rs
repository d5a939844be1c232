use proptest::prelude::*;

use super::*;

fn here(all: &[&str]) -> Vec<Local> {
    let local = |s: &&str| {
        let (interface, address) = s.split_once('=').unwrap();
        Local {
            interface: interface.into(),
            address: address.parse().unwrap(),
        }
    };
    all.iter().map(local).collect()
}

fn place() -> Place {
    Place {
        advertise: None,
        interface: None,
        asked: None,
        port: None,
        data_path: None,
        listen: None,
        gossip_port: None,
        toward: None,
        seeds: Vec::new(),
        announce: None,
        discover: None,
    }
}

/// `advertise data_path source`, or the message; where the data path is IPv4.
fn chosen(p: &Place, config: &Config, all: &[&str], way: Option<&str>) -> String {
    told(p, config, all, way, false)
}

fn told(p: &Place, config: &Config, all: &[&str], way: Option<&str>, able: bool) -> String {
    let way = way.map(|w| w.parse().unwrap());
    match choose(p, &p.effective(config), &here(all), way, able) {
        Ok(a) => format!("{} {} {}", a.advertise, a.data_path, a.source),
        Err(e) => format!("{:?}: {} | {}", e.code, e.message, e.hint),
    }
}

#[test]
fn an_address_is_found_or_all_are_listed() {
    let asked = |at: &str| Place {
        asked: Some(at.parse().unwrap()),
        ..place()
    };
    let joining = Place {
        toward: Some("198.51.100.9".parse().unwrap()),
        ..place()
    };
    let was = |a: &str, i: &str| Place {
        advertise: Some(a.parse().unwrap()),
        interface: Some(i.into()),
        ..place()
    };
    let two = ["eth0=198.51.100.1", "eth1=10.0.0.1"];
    let six = ["eth0=2001:db8::1", "eth0=198.51.100.1"];
    for (p, all, way, want) in [
        (
            place(),
            &["eth0=198.51.100.1"][..],
            None,
            "198.51.100.1 198.51.100.1 198.51.100.1",
        ),
        (place(), &six, None, "198.51.100.1 198.51.100.1 198.51.100.1"),
        (
            place(),
            &["eth0=198.51.100.1", "docker0=172.17.0.1", "br-12ab=172.18.0.1"],
            None,
            "198.51.100.1 198.51.100.1 198.51.100.1",
        ),
        (
            place(),
            &two,
            None,
            "Ambiguous: this host has several addresses: 198.51.100.1 (eth0), 10.0.0.1 (eth1) | --advertise-addr 198.51.100.1\n--advertise-addr 10.0.0.1",
        ),
        (
            place(),
            &[],
            None,
            "Conflict: this host has no IPv4 address that others could use; it has: none",
        ),
        (
            place(),
            &["eth0=2001:db8::1"],
            None,
            "Conflict: this host has no IPv4 address",
        ),
        // Asked for.
        (asked("10.0.0.1"), &two, None, "10.0.0.1 10.0.0.1 10.0.0.1"),
        (asked("eth1"), &two, None, "10.0.0.1 10.0.0.1 10.0.0.1"),
        (
            asked("eth9"),
            &two,
            None,
            "Invalid: \"eth9\" is no device of this host with an address | one of: 198.51.100.1 (eth0)",
        ),
        // Behind NAT: the others see another address, packets leave with one of ours.
        (
            asked("203.0.113.7"),
            &two,
            Some("10.0.0.1"),
            "203.0.113.7 203.0.113.7 10.0.0.1",
        ),
        (
            asked("203.0.113.7"),
            &two[..1],
            None,
            "203.0.113.7 203.0.113.7 198.51.100.1",
        ),
        (
            asked("203.0.113.7"),
            &two,
            None,
            "Ambiguous: this host has several addresses",
        ),
        (
            asked("2001:db8::1"),
            &six,
            None,
            "Unsupported: 2001:db8::1 cannot be the data path's address",
        ),
        // Who joins comes from where the manager is.
        (joining.clone(), &two, Some("10.0.0.1"), "10.0.0.1 10.0.0.1 10.0.0.1"),
        (joining, &two, None, "Ambiguous: this host has several addresses"),
        // What it was it stays; what was replaced is looked for where it was.
        (
            was("10.0.0.1", "eth1"),
            &two,
            Some("198.51.100.1"),
            "10.0.0.1 10.0.0.1 10.0.0.1",
        ),
        (
            was("10.0.0.9", "eth1"),
            &two,
            Some("198.51.100.1"),
            "10.0.0.1 10.0.0.1 10.0.0.1",
        ),
        (
            was("10.0.0.9", "eth7"),
            &two,
            None,
            "Ambiguous: this host has several addresses",
        ),
        (
            was("10.0.0.9", "eth7"),
            &two[..1],
            None,
            "198.51.100.1 198.51.100.1 198.51.100.1",
        ),
    ] {
        let got = chosen(&p, &Config::default(), all, way);
        assert!(got.starts_with(want), "{p:?} on {all:?}:\n{got}\nwanted\n{want}");
    }
}

#[test]
fn the_data_path_may_have_its_own() {
    let two = ["eth0=198.51.100.1", "eth1=10.0.0.1"];
    let mut config = Config::default();
    config.datapath.address = Some("eth1".parse().unwrap());
    // Who names it alone means the node's, where nothing else tells.
    assert_eq!(chosen(&place(), &config, &two, None), "10.0.0.1 10.0.0.1 10.0.0.1");
    config.cluster.advertise = Some("198.51.100.1".parse().unwrap());
    assert_eq!(chosen(&place(), &config, &two, None), "198.51.100.1 10.0.0.1 10.0.0.1");
    let six = ["eth0=2001:db8::1", "eth1=10.0.0.1"];
    config.cluster.advertise = Some("eth0".parse().unwrap());
    assert_eq!(chosen(&place(), &config, &six, None), "2001:db8::1 10.0.0.1 10.0.0.1");
    // Flags come before the configuration.
    let flags = Place {
        data_path: Some("198.51.100.1".parse().unwrap()),
        ..place()
    };
    config.cluster.advertise = None;
    assert_eq!(
        chosen(&flags, &config, &two, None),
        "198.51.100.1 198.51.100.1 198.51.100.1"
    );
}

#[test]
fn where_the_data_path_carries_ipv6_a_host_without_ipv4_is_one_too() {
    let only = ["eth0=2001:db8::1"];
    let both = ["eth0=2001:db8::1", "eth0=198.51.100.1"];
    let toward = |manager: &str| Place {
        toward: Some(manager.parse().unwrap()),
        ..place()
    };
    let asked = |at: &str| Place {
        asked: Some(at.parse().unwrap()),
        ..place()
    };
    let was = |a: &str| Place {
        advertise: Some(a.parse().unwrap()),
        interface: Some("eth0".into()),
        ..place()
    };
    let all_six = "2001:db8::1 2001:db8::1 2001:db8::1";
    let all_four = "198.51.100.1 198.51.100.1 198.51.100.1";
    let config = Config::default();
    for (p, all, way, want) in [
        (place(), &only[..], None, all_six),
        (place(), &both, None, all_four),
        (
            place(),
            &["eth0=2001:db8::1", "eth0=2001:db8::2"],
            None,
            "Ambiguous: this host has several addresses: 2001:db8::1 (eth0), 2001:db8::2 (eth0) | --advertise-addr 2001:db8::1\n",
        ),
        (
            place(),
            &["docker0=fd00::1"],
            None,
            "Conflict: this host has no IPv4 address",
        ),
        // Who joins takes the manager's family, if it has that.
        (toward("2001:db8::9"), &both, Some("2001:db8::1"), all_six),
        (toward("198.51.100.9"), &both, Some("198.51.100.1"), all_four),
        (
            toward("2001:db8::9"),
            &["eth0=2001:db8::1", "eth1=2001:db8::2"],
            Some("2001:db8::2"),
            "2001:db8::2 2001:db8::2 2001:db8::2",
        ),
        (toward("198.51.100.9"), &only, None, all_six),
        // What it was it stays.
        (was("2001:db8::1"), &both, None, all_six),
        (was("198.51.100.1"), &both, None, all_four),
        // Its address is gone for a moment: with one of the other family it would reach nobody.
        (
            was("198.51.100.9"),
            &only,
            None,
            "Conflict: this host has no IPv4 address",
        ),
        // Asked for.
        (asked("2001:db8::1"), &both, None, all_six),
        (asked("198.51.100.1"), &both, None, all_four),
        (asked("eth0"), &only, None, all_six),
        (asked("eth0"), &both, None, all_four),
        // Behind a translator of prefixes.
        (
            asked("2001:db8:7::1"),
            &both,
            Some("198.51.100.1"),
            "2001:db8:7::1 2001:db8:7::1 2001:db8::1",
        ),
        (
            asked("2001:db8:7::1"),
            &["eth0=198.51.100.1"],
            None,
            "Conflict: this host has no IPv6 address that others could use; it has: 198.51.100.1 (eth0)",
        ),
    ] {
        let got = told(&p, &config, all, way, true);
        assert!(got.starts_with(want), "{p:?} on {all:?}:\n{got}\nwanted\n{want}");
    }
    // Where it does not, it says what would.
    for p in [place(), asked("2001:db8::1")] {
        let got = chosen(&p, &config, &only, None);
        assert!(got.contains("[datapath] mode = \"ipvs\""), "{got}");
    }
    let mut by_device = Config::default();
    by_device.datapath.address = Some("eth0".parse().unwrap());
    by_device.cluster.advertise = Some("198.51.100.1".parse().unwrap());
    let two = ["eth1=198.51.100.1", "eth0=2001:db8::1"];
    assert_eq!(
        told(&place(), &by_device, &two, None, true),
        "198.51.100.1 2001:db8::1 2001:db8::1"
    );
    assert!(chosen(&place(), &by_device, &two, None).contains("with an IPv4 address"));
}

#[test]
fn the_last_address_counts_where_the_data_path_carries_it() {
    let was = Place {
        advertise: Some("2001:db8::1".parse().unwrap()),
        ..place()
    };
    let mut config = Config::default();
    config.node.state_dir = "/nonexistent".into();
    assert_eq!(was.last(&config), None);
    config.datapath.mode = crate::config::Mode::Ipvs;
    let last = was.last(&config).unwrap();
    assert_eq!(last.data_path, last.advertise);
    config.datapath.mode = crate::config::Mode::Ebpf;
    config.datapath.address = Some("198.51.100.1".parse().unwrap());
    let last = was.last(&config).unwrap();
    assert_eq!(
        (last.advertise.is_ipv6(), last.data_path),
        (true, "198.51.100.1".parse().unwrap())
    );
}

#[test]
fn ports_of_others_and_ours() {
    let p = Place {
        asked: Some("203.0.113.7".parse().unwrap()),
        port: Some(12377),
        gossip_port: Some(17946),
        listen: Some("198.51.100.1:2378".parse().unwrap()),
        ..place()
    };
    let config = p.effective(&Config::default());
    let now = choose(&p, &config, &here(&["eth0=198.51.100.1"]), None, false).unwrap();
    assert_eq!(config.cluster.listen, "198.51.100.1:2378".parse().unwrap());
    assert_eq!(now.rpc, "203.0.113.7:12377".parse().unwrap());
    assert_eq!(now.gossip, "203.0.113.7:17946".parse().unwrap());
}

#[test]
fn what_is_typed_is_read_or_refused() {
    for (text, want) in [
        ("198.51.100.1", "198.51.100.1 None"),
        ("198.51.100.1:2377", "198.51.100.1 Some(2377)"),
        ("2001:db8::1", "2001:db8::1 None"),
        ("[2001:db8::1]:2377", "2001:db8::1 Some(2377)"),
        ("[2001:db8::1]", "neither"),
        ("eth0", "eth0 None"),
        ("eth0.7:2377", "eth0.7 Some(2377)"),
        ("eth0:x", "no port"),
        ("eth0:0", "no port"),
        ("198.51.100.256", "neither"),
        ("0.0.0.0", "no address of one host"),
        ("224.0.0.1", "no address of one host"),
        ("fe80::1", "no address of one host"),
        ("", "neither"),
        ("a-name-that-is-too-long", "neither"),
        ("::ffff:198.51.100.1", "198.51.100.1 None"),
    ] {
        let got = match text.parse::<Spot>() {
            Ok(s) => format!("{} {:?}", s.at, s.port),
            Err(e) => e.why.to_owned(),
        };
        assert!(got.contains(want), "{text:?}: {got}");
    }
    assert_eq!("0.0.0.0:9".parse_listen().unwrap().port, Some(9));
    assert_eq!("::".parse_listen().unwrap().port, None);
}

#[test]
fn a_place_survives_on_disk() {
    let p = Place {
        advertise: Some("198.51.100.1".parse().unwrap()),
        asked: Some("eth0".parse().unwrap()),
        ..place()
    };
    let json = serde_json::to_vec(&p).unwrap();
    assert_eq!(serde_json::from_slice::<Place>(&json).unwrap(), p);
    // An older netd kept the address alone.
    let old: Place = serde_json::from_str(r#"{"advertise":"198.51.100.1"}"#).unwrap();
    assert_eq!(old.advertise, p.advertise);
}

#[test]
fn whoever_holds_a_port_is_named() {
    use kernel::netns;
    let folder = std::env::temp_dir().join(format!("netd-ports-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let paths = [folder.join("here"), folder.join("there")];
    let [ns, other] = paths.clone().map(|p| netns::create(&p).unwrap());
    let ip = |line: String| {
        let out = std::process::Command::new("ip")
            .args(line.split_whitespace())
            .output()
            .unwrap();
        assert!(out.status.success(), "ip {line}: {out:?}");
    };
    let told = || match refuse_taken(&PortUse {
        rpc: Some("198.51.100.1:2377".parse().unwrap()),
        gossip: 7946,
        vxlan: Some(4789),
        sandboxes: folder.clone(),
    }) {
        Ok(()) => String::new(),
        Err(e) => format!("{}\n{}", e.message, e.hint),
    };
    netns::run_in(&ns, || {
        ip("link set lo up".into());
        assert_eq!(told(), "");
        // On another address, and not gossip's: no harm.
        let elsewhere = std::net::TcpListener::bind("127.0.0.1:2377").unwrap();
        assert_eq!(told(), "");
        drop(elsewhere);
        let tcp = std::net::TcpListener::bind("[::]:2377").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:7946").unwrap();
        let said = told();
        let pid = std::process::id();
        assert!(said.contains("the managers' port 2377/tcp is held by"), "{said}");
        assert!(said.contains(&format!("(pid {pid}) on [::]:2377")), "{said}");
        assert!(said.contains("gossip's port 7946/udp is held by"), "{said}");
        assert!(
            said.ends_with("--listen-addr 0.0.0.0:12377\n--gossip-port 17946"),
            "{said}"
        );
        drop((tcp, udp));
        ip("link add vx0 type vxlan id 256 dstport 4789".into());
        let said = told();
        assert!(said.contains("4789/udp is held by the VXLAN device vx0"), "{said}");
        assert!(said.contains("--data-path-port 14789 (at init)"), "{said}");
    })
    .unwrap();
    // What dockerd does: the device goes elsewhere, its socket stays.
    netns::run_in(&ns, || {
        ip("link set vx0 up".into());
        ip(format!("link set vx0 netns {}", paths[1].display()));
    })
    .unwrap();
    netns::run_in(&other, || ip("link set vx0 up".into())).unwrap();
    let said = netns::run_in(&ns, told).unwrap();
    assert!(
        said.contains("4789/udp is held by a VXLAN device in another namespace"),
        "{said}"
    );
    // But one in a sandbox is ours, of a cluster that this node was in: it goes, or is taken up.
    let sandbox = folder.join("net-256");
    let own = netns::create(&sandbox).unwrap();
    netns::run_in(&other, || {
        ip(format!("link set vx0 netns {} name nx256", sandbox.display()));
    })
    .unwrap();
    netns::run_in(&own, || ip("link set nx256 up".into())).unwrap();
    assert_ne!(netns::run_in(&ns, told).unwrap(), "", "a device of another maker");
    netns::run_in(&own, || {
        let alias = overlay::names::tunnel_alias(256.try_into().unwrap());
        ip(format!("link set nx256 alias {alias}"));
    })
    .unwrap();
    assert_eq!(netns::run_in(&ns, told).unwrap(), "");
    drop((ns, other, own));
    for p in paths.iter().chain([&sandbox]) {
        netns::remove(p).unwrap();
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

proptest! {
    #[test]
    fn no_text_is_a_panic(text in ".{0,40}") {
        let _ = text.parse::<Spot>();
        let _ = text.as_str().parse_listen();
    }

    #[test]
    fn what_is_shown_reads_back(a in any::<u32>(), name in "[a-z][a-z0-9]{0,14}") {
        for w in [format!("{}", Ipv4Addr::from(a)), name] {
            if let Ok(w) = w.parse::<Where>() {
                prop_assert_eq!(w.to_string().parse::<Where>(), Ok(w));
            }
        }
    }
}
