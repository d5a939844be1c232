//! Where marked packets go.

use std::net::IpAddr;

use super::{HOST_END, LEAD_BACK, marks};
use crate::{
    desired::Network,
    names,
    objects::{MaskedMark, Route, RouteKey, RouteKind, Rule, Space},
    want::{MAIN, default_of},
};

/// Table of packets that are led back to the node that they came by.
const BACK: u32 = 100;
/// Table of packets that IPVS takes in.
const BALANCED: u32 = 110;
/// Table of hairpins.
const HAIRPIN: u32 = 120;

/// Rules and their tables, for the families of a network. In this order:
///
/// - a hairpin of IPVS goes out to the host, whose connection tracking gives it another source;
/// - what IPVS itself sends bears its service's mark still, and goes where its destination lies: the next rule would
///   lead it round;
/// - what bears a service's mark is taken in, whatever its destination: there IPVS waits;
/// - what bears a node's mark goes to that node: a filter at the device writes its MAC.
pub(super) fn marked(out: &mut Space, network: &Network, tunnel: &str) {
    for subnet in network.subnets() {
        let all = default_of(subnet.addr());
        let mut rule = |priority, own, mark: MaskedMark, table| {
            out.rules.insert(Rule {
                from: all,
                mark: Some(mark),
                own,
                table,
                priority,
            });
        };
        rule(880, true, marks::exactly(marks::HAIRPIN), HAIRPIN);
        rule(890, true, marks::any(marks::SERVICE), MAIN);
        rule(900, false, marks::any(marks::SERVICE), BALANCED);
        rule(1000, false, marks::any(marks::LEAD_BACK), BACK);
        let mut default = |table, route| {
            out.routes.insert(RouteKey { table, to: all }, route);
        };
        let gateway = |a| Some(IpAddr::V6(a));
        default(HAIRPIN, Route::unicast(names::SANDBOX_END, gateway(HOST_END), None));
        default(BALANCED, Route::ends(RouteKind::Local));
        default(BACK, Route::unicast(tunnel, gateway(LEAD_BACK), None));
    }
}
