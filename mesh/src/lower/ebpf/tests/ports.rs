//! Which backends the published ports and VIPs of a service lead to, and to which port there.

use ebpf_abi::{SVC_NETWORKS, SVC_TARGETS, TARGET_HERE};

use super::*;

/// Endpoint `n` on network 5000, of the task whose first endpoint is `backend(n, node)`.
fn further(n: u8, node: u8) -> (BackendId, Backend) {
    let (mut id, mut b) = backend(n, node);
    id.endpoint = id.endpoint.on(&"db".parse().unwrap());
    (b.vni, b.v4) = (vni(5000), Some(Ipv4Addr::new(10, 78, 1, n)));
    b.mac = Mac([2, 0x6e, 1, 0, node, 100 + n]);
    (id, b)
}

#[test]
fn a_task_on_two_networks_is_one_door_and_two_vips() {
    let (one, two) = (backend(1, 1), backend(2, 2));
    let mut w = web(&["80:8080", "53/udp"], [one, further(1, 1), two, further(2, 2)]);
    let vip = Vip {
        v4: Ipv4Addr::new(10, 78, 0, 2),
        v6: None,
    };
    let s = w.services.get_mut(&7).unwrap();
    s.vips.insert(vni(5000), vip);
    let mut o = small();
    assert_eq!(settle(&w, &mut o).problems, []);
    for (ip, port, proto) in [
        ("198.18.0.1", 80, 6),
        ("198.18.0.1", 53, 17),
        ("2001:db8::1", 80, 6),
        ("2001:db8::1", 53, 17),
    ] {
        assert_eq!(leads_to(&o, &key(ip, 0, port, proto)), Some([1, 2].into()), "{ip}");
    }
    assert_eq!(leads_to(&o, &key("10.77.0.2", 4096, 80, 6)), Some([1, 2].into()));
    assert_eq!(leads_to(&o, &key("10.78.0.2", 5000, 80, 6)), Some([101, 102].into()));
    // A task of the second network that asks a node is led there; every other one as anybody.
    let flags = |o: &Observed, ip: &str, net| o.services.get(&key(ip, net, 80, 6)).map(|v| v.flags);
    for ip in ["198.18.0.1", "2001:db8::1"] {
        for (port, proto) in [(80, 6), (53, 17)] {
            assert_eq!(
                leads_to(&o, &key(ip, 5000, port, proto)),
                Some([101, 102].into()),
                "{ip}"
            );
        }
        assert_eq!(flags(&o, ip, 0), Some(SVC_NETWORKS), "{ip}");
        assert_eq!(flags(&o, ip, 4096), None, "{ip}");
    }
    assert_eq!(leads_to(&o, &key("127.0.0.1", 5000, 80, 6)), None, "no task reaches it");
    // A task that is not there yet is asked on its own network all the same.
    let mut some = w.clone();
    let s = some.services.get_mut(&7).unwrap();
    s.backends.remove(&further(2, 2).0);
    settle(&some, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 5000, 80, 6)), Some([101, 2].into()));
    settle(&w, &mut o);
    // Where the first network is IPv4 alone, the second one is the way in for IPv6.
    let s = w.services.get_mut(&7).unwrap();
    for b in s.backends.values_mut().filter(|b| b.vni == vni(4096)) {
        b.v6 = None;
    }
    settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([1, 2].into()));
    assert_eq!(leads_to(&o, &key("2001:db8::1", 0, 80, 6)), Some([101, 102].into()));
    assert_eq!(flags(&o, "2001:db8::1", 0), Some(0));
    assert_eq!(flags(&o, "2001:db8::1", 5000), None, "the way in is there already");
}

#[test]
fn a_port_of_the_node_leads_to_its_own_task() {
    let spec = ["80:8080,mode=host", "53/udp,mode=host", "90"];
    let mut w = web(&spec, [backend(1, 1), backend(2, 2)]);
    let mut o = small();
    assert_eq!(settle(&w, &mut o).problems, []);
    for ip in ["127.0.0.1", "198.18.0.1", "2001:db8::1"] {
        for (number, proto) in [(80, 6), (53, 17)] {
            assert_eq!(leads_to(&o, &key(ip, 0, number, proto)), Some([1].into()), "{ip}");
        }
        assert_eq!(leads_to(&o, &key(ip, 0, 90, 6)), Some([1, 2].into()), "{ip}");
    }
    assert_eq!(
        leads_to(&o, &key("10.77.0.2", 4096, 80, 6)),
        None,
        "VIPs have every port unchanged"
    );
    assert!(
        o.targets.keys().all(|t| t.port == 90u16.to_be() || t.port == 0),
        "nobody sends it from elsewhere"
    );
    // It drains: new flows are refused here, none is sent to another node.
    let s = w.services.get_mut(&7).unwrap();
    s.backends.values_mut().next().unwrap().state = BackendState::Draining;
    settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some(BTreeSet::new()));
    // It is gone: the port is the host's again.
    w.services.get_mut(&7).unwrap().backends.pop_first();
    settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), None);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 90, 6)), Some([2].into()));
}

#[test]
fn a_port_of_one_address_is_the_hosts_on_others() {
    let spec = [
        "198.18.0.1:80:8080",
        "[2001:db8::1]:53/udp",
        "eth0:90,mode=host",
        "192.0.2.9:70",
    ];
    let w = web(&spec, [backend(1, 1), backend(2, 2)]);
    let mut o = small();
    assert_eq!(settle(&w, &mut o).problems, []);
    let both: Option<BTreeSet<u8>> = Some([1, 2].into());
    for (ip, number, proto, leads) in [
        ("198.18.0.1", 80, 6, both.clone()),
        ("127.0.0.1", 80, 6, None),
        ("2001:db8::1", 80, 6, None),
        ("2001:db8::1", 53, 17, both.clone()),
        ("198.18.0.1", 53, 17, None),
        ("198.18.0.1", 90, 6, Some([1].into())),
        ("127.0.0.1", 90, 6, None),
        ("192.0.2.9", 70, 6, None),
    ] {
        assert_eq!(leads_to(&o, &key(ip, 0, number, proto)), leads, "{ip} {number}");
    }
    assert_eq!(
        leads_to(&o, &key("10.77.0.2", 4096, 80, 6)),
        both,
        "the VIP has it all the same"
    );
    // Two services on one port of two addresses.
    let mut two = web(&["198.18.0.1:80"], [backend(1, 1)]);
    let mut other = service(&["127.0.0.1:80"], [backend(3, 1)]);
    other.vips.clear();
    two.services.insert(8, other);
    let mut o = small();
    assert_eq!(settle(&two, &mut o).problems, []);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([1].into()));
    assert_eq!(leads_to(&o, &key("127.0.0.1", 0, 80, 6)), Some([3].into()));
}

#[test]
fn a_changed_target_holds_where_the_change_has_come() {
    // Two here, two elsewhere; 1 and 3 are not reached yet.
    let all = [backend(1, 1), backend(2, 1), backend(3, 2), backend(4, 2)];
    let ids: Vec<BackendId> = all.iter().map(|b| b.0.clone()).collect();
    let mut w = web(&["80:9090", "53/udp"], all);
    let old = |at: Option<u16>| BTreeMap::from([(port("80:9090"), at)]);
    let s = w.services.get_mut(&7).unwrap();
    s.others = BTreeMap::from([(ids[0].clone(), old(Some(8080))), (ids[2].clone(), old(Some(8080)))]);
    let mut o = small();
    assert_eq!(settle(&w, &mut o).problems, []);
    let seen = |o: &Observed| {
        let keys = [
            key("198.18.0.1", 0, 80, 6),
            key("2001:db8::1", 0, 80, 6),
            key("10.77.0.2", 4096, 80, 6),
        ];
        let told = keys.map(|k| {
            (
                leads_to(o, &k).unwrap(),
                u16::from_be(o.services[&k].tport),
                o.services[&k].flags,
            )
        });
        assert!(told.iter().all(|t| *t == told[0]), "{told:?}");
        let dns = leads_to(o, &key("198.18.0.1", 0, 53, 17)).unwrap();
        assert_eq!(dns.len(), w_active(o), "others' ports are as ever");
        assert_eq!(o.services[&key("198.18.0.1", 0, 53, 17)].flags, 0);
        told[0].clone()
    };
    fn w_active(o: &Observed) -> usize {
        leads_to(o, &key("10.77.0.2", 4096, 0, 0)).unwrap().len()
    }
    let at = |o: &Observed, n: u8, proto: u16| {
        let v4 = Addr::v4([10, 77, 1, n]);
        let wanted = |k: &TargetKey| k.addr == v4 && (k.port, k.proto) == (80u16.to_be(), proto);
        let found = o.targets.iter().find(|(k, _)| wanted(k));
        found.map(|(_, v)| u16::from_be(v.tport))
    };
    // All take new flows; the programs look up the port of the one that the change has not reached.
    assert_eq!(seen(&o), ([1, 2, 3, 4].into(), 9090, SVC_TARGETS));
    assert_eq!(
        [at(&o, 1, 6), at(&o, 2, 6)],
        [Some(8080), Some(9090)],
        "each as its task was made"
    );
    let here = 6 | TARGET_HERE;
    assert_eq!([at(&o, 1, here), at(&o, 2, here)], [Some(8080), None]);
    // It drains: its flows go on, where it listens, also when all others of the old port are gone.
    let state = |w: &mut Wanted, n: usize, state| {
        w.services.get_mut(&7).unwrap().backends.get_mut(&ids[n]).unwrap().state = state;
    };
    state(&mut w, 0, BackendState::Draining);
    for n in [2, 3] {
        state(&mut w, n, BackendState::Draining);
    }
    settle(&w, &mut o);
    assert_eq!(seen(&o), ([2].into(), 9090, SVC_TARGETS));
    assert_eq!(at(&o, 1, here), Some(8080));
    // It has come.
    for n in [2, 3] {
        state(&mut w, n, BackendState::Active);
    }
    let s = w.services.get_mut(&7).unwrap();
    s.backends.remove(&ids[0]);
    s.others.remove(&ids[0]);
    settle(&w, &mut o);
    assert_eq!(seen(&o), ([2, 3, 4].into(), 9090, 0), "the other node knows its own");
    assert!(
        o.targets.keys().all(|k| k.proto & TARGET_HERE == 0),
        "nothing is looked up any more"
    );
    // A port of single nodes as well.
    let host = |at: u16| BTreeMap::from([(port("80:9090,mode=host"), Some(at))]);
    let mut own = web(&["80:9090,mode=host"], [backend(1, 1)]);
    own.services.get_mut(&7).unwrap().others = BTreeMap::from([(ids[0].clone(), host(8080))]);
    let mut o2 = small();
    settle(&own, &mut o2);
    assert_eq!(o2.services[&key("198.18.0.1", 0, 80, 6)].flags, SVC_TARGETS);
    assert_eq!(
        [at(&o2, 1, 6), at(&o2, 1, here)],
        [None, Some(8080)],
        "nobody sends it from elsewhere"
    );
    // What a node that balances by IPVS has is translated to here, so its ports are looked up here.
    let far = |n: u8| {
        let mut b = backend(n, 2);
        b.1.place = Place::Remote {
            vtep: IpAddr::from([198, 18, 0, 2]),
            datapath: Datapath::Ipvs,
        };
        b
    };
    let mut early = web(&["80:9090"], [far(3), far(4)]);
    early.services.get_mut(&7).unwrap().others = BTreeMap::from([(ids[2].clone(), old(Some(8080)))]);
    let mut o3 = small();
    settle(&early, &mut o3);
    assert_eq!(o3.services[&key("198.18.0.1", 0, 80, 6)].flags, SVC_TARGETS);
    assert_eq!([at(&o3, 3, here), at(&o3, 4, here)], [Some(8080), None]);
    assert_eq!(
        [at(&o3, 3, 6), at(&o3, 4, 6)],
        [None, None],
        "that node's packets are not told so"
    );
    // A task from before the port was published has none for it.
    w.services.get_mut(&7).unwrap().others = BTreeMap::from([(ids[2].clone(), old(None)), (ids[1].clone(), old(None))]);
    settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([4].into()));
    let here = Addr::v4([10, 77, 1, 2]);
    assert!(!o.targets.keys().any(|k| k.addr == here && k.port == 80u16.to_be()));
}
