use mesh::lower::ipvs::Family;

use super::{held::world, *};
use crate::firewall::iptables::matches;

#[test]
fn a_match_that_the_kernel_has_not_is_told_before_a_rule_names_it() {
    let (folder, ns) = world("fw-matches");
    // Whoever has a rule has loaded iptables.
    for tool in ["iptables-legacy", "ip6tables-legacy"] {
        iptables(
            &ns,
            &folder,
            &format!("{tool} -A INPUT -p tcp -m tcp --dport 1 -j ACCEPT"),
        );
    }
    let has = |family, name| netns::run_in(&ns, || matches::has(family, name).unwrap()).unwrap();
    for family in [Family::V4, Family::V6] {
        assert!(has(family, "tcp"));
        assert!(!has(family, "netd-has-none"));
    }
    // It says of SCTP what the program finds.
    let rule = || {
        let mut command = Command::new("/usr/sbin/iptables-legacy");
        command.args([
            "-A", "INPUT", "-p", "sctp", "-m", "sctp", "--dport", "1", "-j", "ACCEPT",
        ]);
        command.env("XTABLES_LOCKFILE", lock(&folder)).output().unwrap()
    };
    let taken = netns::run_in(&ns, rule).unwrap().status.success();
    let told = firewall(&ns, Kind::Iptables, &folder).matches_sctp().unwrap();
    assert_eq!(told, taken);
    if has_nftables() {
        assert!(firewall(&ns, Kind::Nftables, &folder).matches_sctp().unwrap());
    }
}
