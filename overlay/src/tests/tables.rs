//! What exactly is wanted, told as text.

use ebpf_abi::{
    Addr, EP_BACKEND, EP_EXTRA, EpExtraKey, PoolKey, ROUTE_LOCAL, ROUTE_NODE, ROUTE_NONE, ROUTE_VIP, RouteKey,
};

use super::{kernel::Kernel, *};
use crate::{Desired, Network};

const FULL: Abilities = Abilities {
    ipv6: true,
    force_forwarding: false,
};

fn texts(p: &Plan) -> Vec<String> {
    p.steps.iter().map(ToString::to_string).collect()
}

#[test]
fn an_endpoint_from_nothing() {
    let mut d = cluster();
    d.endpoints.insert(id("web.1"), endpoint(4096, 5, "/t", "eth0"));
    let k = Kernel::new(&["/t"]);
    let nv = names::veth(&id("web.1"));
    let expected = [
        "[host] create vxlan nx0 external port 4789 mac 06:6e:00:00:00:01 mtu 65000",
        "[host] create veth NV mtu 1450 peer eth0 mac 02:6e:0a:00:10:05 in /t",
        "[host] set net/ipv4/conf/lo/accept_local = 1",
        "[host] set net/ipv4/conf/lo/route_localnet = 1",
        "[host] set net/ipv4/conf/NV/forwarding = 1",
        "[host] set net/ipv4/conf/NV/rp_filter = 0",
        "[host] set net/ipv4/conf/nx0/forwarding = 1",
        "[host] set net/ipv4/conf/up0/forwarding = 1",
        "[host] set net/ipv6/conf/NV/accept_ra = 0",
        "[host] set net/ipv6/conf/NV/forwarding = 1",
        "[host] set net/ipv6/conf/nx0/accept_ra = 0",
        "[host] set net/ipv6/conf/nx0/forwarding = 1",
        "[host] set net/ipv6/conf/up0/accept_ra = 2",
        "[host] set net/ipv6/conf/all/forwarding = 1",
        "[host] change link NV addrgenmode none up",
        "[host] change link nx0 addrgenmode none up",
        "[/t] set net/ipv4/conf/eth0/promote_secondaries = 1",
        "[/t] set net/ipv6/conf/eth0/accept_dad = 0",
        "[/t] set net/ipv6/conf/eth0/accept_ra = 0",
        "[/t] change link eth0 alias netd:ep:web.1 addrgenmode none up",
        "[/t] add address 10.77.16.5/16 dev eth0",
        "[/t] add address fd00:77::1005/64 dev eth0",
        "[/t] add address fe80::6e:aff:fe00:1005/64 dev eth0",
        "[/t] set neighbour 169.254.1.1 dev eth0 mac 06:6e:00:00:00:01",
        "[/t] set neighbour fe80::1 dev eth0 mac 06:6e:00:00:00:01",
        "[/t] add route 0.0.0.0/0 via 169.254.1.1 dev eth0 src 10.77.16.5 table 254",
        "[/t] add route ::/0 via fe80::1 dev eth0 src fd00:77::1005 table 254",
        "[host] set neighbour 10.77.16.5 dev NV mac 02:6e:0a:00:10:05",
        "[host] set neighbour fd00:77::1005 dev NV mac 02:6e:0a:00:10:05",
        "[host] add route 10.77.16.5/32 dev NV table 254",
        "[host] add route fd00:77::1005/128 dev NV table 254",
        "[host] set table inet netd: 3 pools, 2 of them reach outside",
    ];
    let mut got = texts(&plan(&want(&d, FULL), &k.seen));
    let mut expected: Vec<String> = expected.iter().map(|e| e.replace("NV", &nv)).collect();
    // 10.77.0.0/16 and 10.78.0.0/16 touch: one range.
    expected
        .last_mut()
        .unwrap()
        .replace_range(.., "[host] set table inet netd: 2 pools, 2 of them reach outside");
    got.iter_mut().for_each(|g| *g = g.trim().to_owned());
    assert_eq!(got, expected);
}

#[test]
fn a_kernel_that_forwards_by_device_leaves_the_host_a_host() {
    let mut d = cluster();
    d.endpoints.insert(id("web.1"), endpoint(4096, 5, "/t", "eth0"));
    let w = want(
        &d,
        Abilities {
            ipv6: true,
            force_forwarding: true,
        },
    );
    assert!(w.host.sysctls.contains_key("net/ipv6/conf/up0/force_forwarding"));
    assert!(
        !w.host
            .sysctls
            .keys()
            .any(|k| k.contains("/all/") || k.ends_with("up0/accept_ra"))
    );
    let none = want(&d, Abilities::default());
    assert!(!none.host.sysctls.keys().any(|k| k.contains("ipv6")));
}

#[test]
fn a_second_network_answers_where_it_was_asked() {
    let mut d = cluster();
    d.endpoints.insert(id("b"), endpoint(4096, 5, "/t", "eth0"));
    d.endpoints.insert(id("a"), endpoint(4097, 6, "/t", "eth1"));
    let w = want(&d, FULL);
    let routes: Vec<String> = w.tasks[&PathBuf::from("/t")]
        .routes
        .iter()
        .filter(|(k, _)| k.to.addr().is_ipv4())
        .map(|(k, r)| format!("{} {} {:?} {:x}", k.to, r.link, r.source, k.table))
        .collect();
    assert_eq!(
        routes,
        [
            "0.0.0.0/0 eth0 Some(10.77.16.5) fe",
            "10.78.0.0/16 eth1 Some(10.78.16.6) fe",
            "0.0.0.0/0 eth0 Some(10.77.16.5) 6e001000",
            "0.0.0.0/0 eth1 Some(10.78.16.6) 6e001001"
        ]
    );
    let rules: Vec<_> = w.tasks[&PathBuf::from("/t")]
        .rules
        .iter()
        .filter(|r| r.from.addr().is_ipv4())
        .map(|r| (r.from.to_string(), r.table))
        .collect();
    let of = |a: &str, table| (a.to_owned(), table);
    assert_eq!(
        rules,
        [of("10.77.16.5/32", 0x6e00_1000), of("10.78.16.6/32", 0x6e00_1001)],
        "also from the first: a peer's address may lie in the second network"
    );
}

#[test]
fn a_family_leaves_by_the_first_network_that_has_it() {
    let mut d = cluster();
    d.endpoints.insert(id("a"), endpoint(4096, 5, "/t", "eth0"));
    d.endpoints.insert(id("b"), endpoint(4097, 6, "/t", "eth1"));
    d.endpoints.get_mut(&id("a")).unwrap().v6 = None;
    d.endpoints.get_mut(&id("b")).unwrap().v6 = Some("fd00:78::1006".parse().unwrap());
    let w = want(&d, FULL);
    let default = |to: &str| {
        let to = to.parse().unwrap();
        &w.tasks[&PathBuf::from("/t")].routes[&crate::objects::RouteKey { table: 254, to }].link
    };
    assert_eq!(
        (default("0.0.0.0/0").as_str(), default("::/0").as_str()),
        ("eth0", "eth1")
    );
}

#[test]
fn what_cannot_be_is_refused_with_its_name() {
    let mut d = cluster();
    d.endpoints.insert(id("a"), endpoint(4096, 5, "/t", "eth0"));
    d.endpoints.insert(id("b"), endpoint(4096, 6, "/t", "eth0"));
    d.endpoints.insert(id("c"), endpoint(4096, 7, "/u", "../x"));
    d.endpoints.insert(id("e"), endpoint(4096, 5, "/v", "eth0"));
    d.endpoints.insert(id("f"), endpoint(4099, 8, "/w", "eth0"));
    d.endpoints.insert(id("g"), endpoint(4096, 9, "/t", "eth1"));
    let w = want(&d, FULL);
    let refused: Vec<&str> = w.refused.keys().map(EndpointId::as_str).collect();
    assert_eq!(refused, ["b", "c", "e", "f", "g"]);
    assert_eq!(w.host.links.len(), 2);
}

#[test]
fn a_foreign_device_is_named_and_left() {
    let mut d = cluster();
    d.endpoints.insert(id("web.1"), endpoint(4096, 5, "/t", "eth0"));
    let mut k = Kernel::new(&["/t"]);
    k.link(&Ns::Host, "nx0", None);
    k.link(&Ns::Task("/t".into()), "eth0", None);
    let p = plan(&want(&d, FULL), &k.seen);
    let text: Vec<String> = p.conflicts.iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 2);
    assert!(
        text[0].contains("nx0") && text[1].contains("/t") && text.iter().all(|t| t.contains("try:")),
        "{text:?}"
    );
    assert!(p.steps.iter().all(|s| !matches!(
        s,
        Step::DeleteLink { .. } | Step::ChangeLink { .. } | Step::CreateVeth { .. } | Step::CreateVxlan { .. }
    )));
}

#[test]
fn out_of_the_cluster_everything_goes() {
    let mut d = cluster();
    d.endpoints.insert(id("web.1"), endpoint(4096, 5, "/t", "eth0"));
    let mut k = Kernel::new(&["/t"]);
    k.run(&plan(&want(&d, FULL), &k.seen)).unwrap();
    let p = plan(&want(&Desired::default(), FULL), &k.seen);
    k.run(&p).unwrap();
    assert_eq!(k.seen.host.links.keys().collect::<Vec<_>>(), ["lo", "up0"]);
    assert!(!k.seen.filter_present && k.seen.host.routes.is_empty());
    assert!(plan(&Wanted::default(), &Observed::default()).is_empty());
}

#[test]
fn rows_of_a_node_with_one_endpoint() {
    let mut d = cluster();
    let mut ep = endpoint(4096, 5, "/t", "eth0");
    ep.extra.insert(ip("10.77.200.1"));
    d.endpoints.insert(id("web.1"), ep);
    let mut k = Kernel::new(&["/t"]);
    assert_eq!(rows(&d, &k.seen).ep_config.len(), 0, "no device, no row");
    assert_eq!(rows(&d, &k.seen).config, None);
    k.run(&plan(&want(&d, FULL), &k.seen)).unwrap();
    let r = rows(&d, &k.seen);
    let ifindex = k.seen.host_index(&names::veth(&id("web.1"))).unwrap();

    let config = r.config.unwrap();
    assert_eq!(
        (config.vtep.to_ne_bytes(), config.mtu, config.vxlan_port),
        ([198, 18, 0, 1], 1450, u32::from(4789u16.to_be()))
    );
    assert_eq!(
        r.members.keys().map(|k| k.to_ne_bytes()).collect::<Vec<_>>(),
        [[198, 18, 0, 2]]
    );
    // What the programs cannot say is not said: nothing of a node at an IPv6 address, no member at one.
    let mut six = d.clone();
    six.remotes.values_mut().for_each(|r| r.vtep = ip("fd18::2"));
    let far = rows(&six, &k.seen);
    assert!(far.members.is_empty() && far.routes.values().all(|r| r.kind != ebpf_abi::ROUTE_NODE));
    six.node.as_mut().unwrap().vtep = ip("fd18::1");
    assert_eq!(rows(&six, &k.seen), Rows::default());

    let key = |vni: u32, len: u32, a: [u8; 4]| RouteKey {
        prefix_len: 32 + 96 + len,
        vni_be: vni.to_be(),
        addr: Addr::v4(a),
    };
    let kinds: Vec<u32> = [
        key(4096, 16, [10, 77, 0, 0]),
        key(4096, 28, [10, 77, 16, 16]),
        key(4096, 28, [10, 77, 16, 0]),
        key(4096, 32, [10, 77, 0, 1]),
        key(4096, 32, [10, 77, 99, 9]),
        key(4096, 32, [10, 77, 200, 1]),
    ]
    .iter()
    .map(|k| r.routes[k].kind)
    .collect();
    assert_eq!(
        kinds,
        [ROUTE_NONE, ROUTE_NODE, ROUTE_LOCAL, ROUTE_VIP, ROUTE_NODE, ROUTE_LOCAL]
    );
    assert!(
        !r.routes.contains_key(&key(4096, 32, [10, 77, 16, 5])),
        "within a block no single entry is needed"
    );
    assert_eq!(r.pools.len(), 3);
    assert_eq!(
        r.pools[&PoolKey {
            prefix_len: 96 + 16,
            addr: Addr::v4([10, 78, 0, 0])
        }],
        4097
    );

    let cfg = r.ep_config[&ifindex];
    assert_eq!(
        (cfg.vni, cfg.flags, cfg.addr4.to_ne_bytes()),
        (4096, EP_BACKEND | EP_EXTRA, [10, 77, 16, 5])
    );
    assert_eq!(cfg.link6.octets()[..2], [0xfe, 0x80]);
    assert_eq!(
        r.ep_by_addr.len(),
        6,
        "v4, v6 and the extra one, each with and without its network"
    );
    assert_eq!(
        r.ep_extra[&EpExtraKey {
            addr: Addr::v4([10, 77, 200, 1]),
            ifindex
        }],
        1
    );
    assert_eq!(r.ep_by_mac.len(), 1);
}

#[test]
fn a_networks_mtu_is_never_more_than_the_nodes() {
    let mut d = cluster();
    for (asked, got) in [(Some(9000), 1450), (Some(1300), 1300), (None, 1450)] {
        d.networks.entry(vni(4096)).and_modify(|n: &mut Network| n.mtu = asked);
        d.endpoints.insert(id("web.1"), endpoint(4096, 5, "/t", "eth0"));
        let w = want(&d, FULL);
        assert_eq!(w.host.links[&names::veth(&id("web.1"))].mtu, got);
        assert_eq!(w.tasks[&PathBuf::from("/t")].links["eth0"].mtu, got);
    }
}

#[test]
fn a_namespace_that_cannot_be_read_is_not_taken_for_gone() {
    let mut d = cluster();
    d.endpoints.insert(id("web.1"), endpoint(4096, 5, "/t", "eth0"));
    let mut k = Kernel::new(&["/t"]);
    k.run(&plan(&want(&d, FULL), &k.seen)).unwrap();
    k.seen.tasks.clear();
    let p = plan(&want(&d, FULL), &k.seen);
    assert_eq!((p.steps, p.gone.len()), (vec![], 0));
    k.seen.tasks.insert("/t".into(), None);
    let p = plan(&want(&d, FULL), &k.seen);
    assert_eq!(texts(&p), [format!("[host] delete link {}", names::veth(&id("web.1")))]);
    assert_eq!(p.gone.len(), 1);
}

#[test]
fn an_old_view_adds_and_takes_nothing_away() {
    let mut now = cluster();
    now.endpoints.insert(id("web.1"), endpoint(4096, 5, "/t", "eth0"));
    let mut k = Kernel::new(&["/t", "/u"]);
    let made = plan(&want(&now, FULL), &k.seen);
    assert_eq!(
        made.clone().additions(&k.seen),
        made,
        "into an empty kernel all of it comes"
    );
    made.steps.iter().for_each(|s| k.apply(s).unwrap());

    // It knows neither the endpoint nor the other node, and one that has come since is missing from the kernel.
    let mut old = cluster();
    old.remotes.clear();
    old.networks.remove(&vni(4097));
    old.endpoints.insert(id("web.2"), endpoint(4096, 6, "/u", "eth0"));
    let all = plan(&want(&old, FULL), &k.seen);
    assert!(
        texts(&all).iter().any(|s| s.contains("delete link")),
        "{:?}",
        texts(&all)
    );
    let added = all.additions(&k.seen);
    let lines = texts(&added);
    let takes = |l: &&String| l.contains("delete") || l.contains("remove") || l.contains("replace");
    assert_eq!(lines.iter().find(takes), None);
    assert!(lines.iter().any(|l| l.contains("create veth")), "{lines:?}");
    assert!(
        !lines.iter().any(|l| l.contains("table inet netd")),
        "the filter stays as it is"
    );
    added.steps.iter().for_each(|s| k.apply(s).unwrap());
    let mut both = now.clone();
    both.endpoints.extend(old.endpoints.clone());
    assert!(plan(&want(&both, FULL), &k.seen).is_empty(), "both are there, whole");
    assert!(
        plan(&want(&old, FULL), &k.seen).additions(&k.seen).is_empty(),
        "and a second time is no change"
    );
}
