//! What only a kernel with nf_tables can show.

use super::{
    super::nft::{Nft, testing as nft},
    held::world,
    *,
};

#[test]
fn the_kernel_is_asked_which_it_has_and_nothing_comes_of_it() {
    let (_folder, ns) = world("fw-kind");
    let before = nft::generation_of(&ns);
    assert_eq!(Firewall::open(&ns).unwrap().kind(), Kind::Nftables);
    assert_eq!(nft::generation_of(&ns), before);
}

#[test]
fn many_services_come_and_one_changes() {
    let (folder, ns) = world("fw-many");
    let mut fw = firewall(&ns, Kind::Nftables, &folder);
    fw.apply(&sandbox(20).rules()).unwrap();
    let many = sandbox(20_000).rules();
    assert!(fw.apply(&many).unwrap());
    assert!(!firewall(&ns, Kind::Nftables, &folder).apply(&many).unwrap());
    let mut other = sandbox(20_000);
    *other.marks.values_mut().next().unwrap() += 0x10_0000;
    assert!(fw.apply(&other.rules()).unwrap());
    assert!(!firewall(&ns, Kind::Nftables, &folder).apply(&other.rules()).unwrap());
}

#[test]
fn a_change_that_is_cut_leaves_the_old_and_none_is_ever_mixed() {
    let (_folder, ns) = world("fw-cut");
    let (one, two) = (sandbox(300).rules(), everything());
    netns::run_in(&ns, || {
        let mut nft = Nft::open().unwrap();
        nft.apply(&one).unwrap();
        // All of the other rules, refused at the last message.
        assert!(nft.cut_short(&two).is_err());
        assert!(!Nft::open().unwrap().apply(&one).unwrap(), "the old ones, all of them");
    })
    .unwrap();
    // Whoever looks while they change sees one or the other.
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            netns::run_in(&ns, || {
                let mut nft = Nft::open().unwrap();
                for _ in 0..25 {
                    assert!(nft.apply(&two).unwrap());
                    assert!(nft.apply(&one).unwrap());
                }
            })
            .unwrap();
        });
        netns::run_in(&ns, || {
            let mut looks = 0;
            while !writer.is_finished() || looks == 0 {
                if let Some(seen) = nft::stable_look() {
                    let of = |r: &Rules| mesh::lower::ipvs::rules::nft::table(r).seen();
                    assert!(seen == of(&one) || seen == of(&two));
                    looks += 1;
                }
            }
        })
        .unwrap();
    });
}

#[test]
fn a_policy_of_others_that_drops_is_named() {
    let (folder, ns) = world("fw-obstacle");
    let mut fw = firewall(&ns, Kind::Nftables, &folder);
    fw.apply(&everything()).unwrap();
    assert_eq!(fw.obstacles().unwrap(), []);
    // Asking made no table of iptables.
    assert_eq!(iptables(&ns, &folder, "iptables-legacy-save"), "");
    nft::dropping(&ns, "theirs");
    iptables(&ns, &folder, "iptables-legacy -A FORWARD -i docker0 -j ACCEPT");
    iptables(&ns, &folder, "ip6tables-legacy -A FORWARD -i docker0 -j ACCEPT");
    let chains = |fw: &Firewall| -> Vec<String> { fw.obstacles().unwrap().into_iter().map(|o| o.chain).collect() };
    assert_eq!(chains(&fw), ["chain forward of nf_tables table inet theirs"]);
    iptables(&ns, &folder, "iptables-legacy -P FORWARD DROP");
    iptables(&ns, &folder, "ip6tables-legacy -P FORWARD DROP");
    assert_eq!(
        chains(&fw)[1..],
        ["chain FORWARD of iptables-legacy", "chain FORWARD of ip6tables-legacy"]
    );
    assert!(fw.obstacles().unwrap()[0].to_string().contains("try:"));
}

#[test]
fn the_other_filter_is_left_without_ours() {
    let (folder, ns) = world("fw-other");
    let [mut nft, mut ipt] = BOTH.map(|kind| firewall(&ns, kind, &folder));
    assert!(
        !nft.remove_other().unwrap() && !ipt.remove_other().unwrap(),
        "nothing is there"
    );
    ipt.apply(&everything()).unwrap();
    nft.apply(&everything()).unwrap();
    assert!(nft.remove_other().unwrap());
    assert!(!iptables(&ns, &folder, "iptables-legacy-save").contains("NETD"));
    assert!(!nft.apply(&everything()).unwrap(), "its own stays");
    assert!(ipt.remove_other().unwrap());
    assert!(!nft::has_table(&ns, "netd"));
}
