//! What is written, read back, mended and left alone.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{super::nft::testing as nft, *};

pub(super) fn world(name: &str) -> (Folder, Netns) {
    let folder = Folder::new(name);
    let ns = netns::create(&folder.path().join("a")).unwrap();
    (folder, ns)
}

#[test]
fn a_kernel_without_nf_tables_is_known_and_says_what_it_lacks() {
    let fw = Firewall::open(&Netns::current().unwrap()).unwrap();
    let lacks = fw.why_not_nftables().map(ToString::to_string);
    assert_eq!(lacks.is_some(), fw.kind() == Kind::Iptables);
    let lane = std::env::var("NETD_LANE").is_ok_and(|lane| lane == "ipvs");
    assert!(!lane || fw.kind() == Kind::Iptables, "that of the lane has none");
    assert!(lacks.as_ref().is_none_or(|l| l.contains("NF_TABLES")), "{lacks:?}");
}

#[test]
fn it_is_written_once_and_read_back() {
    for kind in kinds() {
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
fn others_rules_survive_everything() {
    if has_nftables() {
        let (folder, ns) = world("fw-others-nft");
        nft::foreign(&ns, "foreign", None);
        let mut fw = firewall(&ns, Kind::Nftables, &folder);
        fw.apply(&everything()).unwrap();
        fw.apply(&host([]).rules()).unwrap();
        fw.remove().unwrap();
        assert!(nft::has_table(&ns, "foreign"));
    }

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
    if has_nftables() {
        let (folder, ns) = world("fw-taken-nft");
        nft::foreign(&ns, "netd", Some("theirs"));
        let mut fw = firewall(&ns, Kind::Nftables, &folder);
        let said = fw.apply(&everything()).unwrap_err().to_string();
        assert!(said.contains("chain theirs") && said.contains("try:"), "{said}");
        assert!(fw.remove().is_err(), "nor is it removed");
        assert!(nft::has_table(&ns, "netd"));
    }

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
                // It may be interrupted.
                let _ = poll(&mut fds, PollTimeout::from(1000u16));
            }
            // There is nothing to wait on: iptables tells nobody.
            None => _ = poll(&mut step, PollTimeout::from(50u8)),
        }
    }
}

#[test]
fn a_foreign_flush_is_seen_and_mended() {
    let rules = everything();
    if has_nftables() {
        let (folder, ns) = world("fw-flush-nft");
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
