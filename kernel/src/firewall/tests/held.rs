//! What is written, read back, mended and left alone.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    super::nft::{Nft, testing as nft},
    *,
};

fn world(name: &str) -> (Folder, Netns) {
    let folder = Folder::new(name);
    let ns = netns::create(&folder.path().join("a")).unwrap();
    (folder, ns)
}

#[test]
fn it_is_written_once_and_read_back() {
    for kind in BOTH {
        let (folder, ns) = world(&format!("fw-{kind}"));
        for (first, second) in [
            (everything(), host([]).rules()),
            (sandbox(100).rules(), sandbox(130).rules()),
        ] {
            let mut fw = firewall(&ns, kind, &folder);
            assert!(!fw.remove().unwrap(), "{kind}: nothing is there");
            for rules in [&first, &second, &first] {
                assert!(fw.apply(rules).unwrap(), "{kind}");
                assert!(!fw.apply(rules).unwrap(), "{kind}: twice");
                // After a restart it is read from the kernel, and nothing is written either.
                let mut again = firewall(&ns, kind, &folder);
                assert!(!again.apply(rules).unwrap(), "{kind}: after a restart");
            }
            assert!(fw.is_there().unwrap());
            assert!(fw.remove().unwrap());
            assert!(!fw.is_there().unwrap());
            assert!(!fw.remove().unwrap());
        }
        if kind == Kind::Iptables {
            for family in ["iptables", "ip6tables"] {
                let left = iptables(&ns, &folder, &format!("{family}-legacy-save"));
                assert!(!left.contains("NETD") && !left.contains("\n-A "), "{left}");
            }
        }
    }
}

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
fn others_rules_survive_everything() {
    let (folder, ns) = world("fw-others-nft");
    nft::foreign(&ns, "foreign", None);
    let mut fw = firewall(&ns, Kind::Nftables, &folder);
    fw.apply(&everything()).unwrap();
    fw.apply(&host([]).rules()).unwrap();
    fw.remove().unwrap();
    assert!(nft::has_table(&ns, "foreign"));

    let (folder, ns) = world("fw-others-ipt");
    for command in [
        "iptables-legacy -t nat -N DOCKER",
        "iptables-legacy -t nat -A DOCKER -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80",
        "iptables-legacy -t nat -A PREROUTING -j DOCKER",
        "iptables-legacy -A FORWARD -i docker0 -m comment --comment netd-is-not-me -j ACCEPT",
        "iptables-legacy -P FORWARD DROP",
        "ip6tables-legacy -t mangle -A PREROUTING -j MARK --set-mark 7",
    ] {
        iptables(&ns, &folder, command);
    }
    let save = || {
        let of = |tool| iptables(&ns, &folder, tool);
        let text = of("iptables-legacy-save") + &of("ip6tables-legacy-save");
        // Ours, the kernel's empty chains (which tables have as soon as they are looked at) and the time of the day.
        let theirs = |l: &&str| {
            let kernels = l.starts_with(':') && l.contains(" ACCEPT ");
            !l.contains("NETD-") && !kernels && !l.starts_with(['#', '*']) && *l != "COMMIT"
        };
        let lines: Vec<String> = text
            .lines()
            .filter(theirs)
            .map(|l| l.split(" [").next().unwrap().to_owned())
            .collect();
        lines
    };
    let before = save();
    assert_eq!(before.len(), 6, "{before:?}");
    let mut fw = firewall(&ns, Kind::Iptables, &folder);
    fw.apply(&everything()).unwrap();
    assert_eq!(save(), before);
    // What came while ours was there stays as well.
    iptables(&ns, &folder, "iptables-legacy -I FORWARD 1 -i theirs -j DROP");
    let before = save();
    fw.apply(&host([]).rules()).unwrap();
    assert_eq!(save(), before);
    fw.remove().unwrap();
    assert_eq!(save(), before);
}

#[test]
fn what_bears_our_name_and_is_not_ours_is_refused() {
    let (folder, ns) = world("fw-taken-nft");
    nft::foreign(&ns, "netd", Some("theirs"));
    let mut fw = firewall(&ns, Kind::Nftables, &folder);
    let said = fw.apply(&everything()).unwrap_err().to_string();
    assert!(said.contains("chain theirs") && said.contains("try:"), "{said}");
    assert!(fw.remove().is_err(), "nor is it removed");
    assert!(nft::has_table(&ns, "netd"));

    let (folder, ns) = world("fw-taken-ipt");
    iptables(&ns, &folder, "ip6tables-legacy -t nat -N NETD-PORTS");
    iptables(&ns, &folder, "ip6tables-legacy -t nat -A NETD-PORTS -p tcp -j RETURN");
    let mut fw = firewall(&ns, Kind::Iptables, &folder);
    let said = fw.apply(&everything()).unwrap_err().to_string();
    for part in ["NETD-PORTS", "ip6tables-legacy -t nat", "-p tcp -j RETURN", "try:"] {
        assert!(said.contains(part), "{said}");
    }
    let v4 = iptables(&ns, &folder, "iptables-legacy-save");
    assert!(!v4.contains("NETD"), "nothing half-made: {v4}");
    fw.remove().unwrap();
    assert!(iptables(&ns, &folder, "ip6tables-legacy-save").contains("-A NETD-PORTS -p tcp -j RETURN"));
}

/// Asks until it says yes: within a second, as often as the daemon does.
fn seen_within_a_second(fw: &mut Firewall) {
    let start = Instant::now();
    let mut step = [];
    while !fw.changed().unwrap() {
        assert!(start.elapsed() < Duration::from_secs(1), "nothing was seen");
        match fw.readable() {
            Some(fd) => {
                let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(1000u16)).unwrap();
            }
            // There is nothing to wait on: iptables tells nobody.
            None => _ = poll(&mut step, PollTimeout::from(50u8)).unwrap(),
        }
    }
}

#[test]
fn a_foreign_flush_is_seen_and_mended() {
    let (folder, ns) = world("fw-flush-nft");
    let rules = everything();
    let mut fw = firewall(&ns, Kind::Nftables, &folder);
    fw.apply(&rules).unwrap();
    // Our own write is told; the look that follows writes nothing.
    assert!(fw.changed().unwrap());
    assert!(!fw.changed().unwrap());
    // What others do to their own is not our business.
    nft::foreign(&ns, "foreign", Some("chain"));
    assert!(!fw.changed().unwrap());
    for damage in [
        nft::Damage::Rules,
        nft::Damage::Elements,
        nft::Damage::Table,
        nft::Damage::Chain,
    ] {
        nft::damage(&ns, damage);
        seen_within_a_second(&mut fw);
        assert!(fw.apply(&rules).unwrap(), "{damage:?} is mended");
        assert!(!firewall(&ns, Kind::Nftables, &folder).apply(&rules).unwrap());
        fw.changed().unwrap();
        assert!(!fw.apply(&rules).unwrap());
        assert!(!fw.changed().unwrap());
    }

    let (folder, ns) = world("fw-flush-ipt");
    let mut fw = firewall(&ns, Kind::Iptables, &folder);
    fw.apply(&rules).unwrap();
    assert!(!fw.changed().unwrap());
    for damage in [
        "iptables-legacy -t nat -F",
        "iptables-legacy -F FORWARD",
        "ip6tables-legacy -t raw -F NETD-PREROUTING",
        "iptables-legacy -D FORWARD -m comment --comment netd -j NETD-FORWARD",
        "iptables-legacy -I FORWARD 1 -m comment --comment netd -j NETD-FORWARD",
    ] {
        iptables(&ns, &folder, damage);
        seen_within_a_second(&mut fw);
        assert!(fw.apply(&rules).unwrap(), "{damage} is mended");
        assert!(!firewall(&ns, Kind::Iptables, &folder).apply(&rules).unwrap());
        fw.changed().unwrap();
        assert!(!fw.changed().unwrap());
    }
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
fn a_locked_iptables_is_told_with_its_holder_and_done_later() {
    let (folder, ns) = world("fw-lock");
    let mut fw = firewall(&ns, Kind::Iptables, &folder);
    let file = std::fs::File::create(lock(&folder)).unwrap();
    let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).unwrap();
    let start = Instant::now();
    let error = fw.apply(&everything()).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(matches!(error, FirewallError::Locked { .. }), "{error}");
    let said = error.to_string();
    let me = format!("(pid {})", std::process::id());
    assert!(said.contains(&me) && said.contains("try:"), "{said}");
    assert!(held.as_fd().try_clone_to_owned().is_ok());
    drop(held);
    assert!(fw.apply(&everything()).unwrap());
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
