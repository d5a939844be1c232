//! Where marked packets go.

use super::marks;
use crate::{
    desired::Network,
    objects::{MaskedMark, Route, RouteKey, RouteKind, Rule, Space},
    want::{MAIN, default_of},
};

/// Table of packets that IPVS takes in.
const BALANCED: u32 = 110;

/// Rules and their tables, for the families of a network. In this order:
///
/// - what IPVS itself sends bears its service's mark still, and goes where its destination lies: the next rule would
///   lead it round;
/// - what bears a service's mark is taken in, whatever its destination: there IPVS waits.
pub(super) fn marked(out: &mut Space, network: &Network) {
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
        rule(890, true, marks::any(marks::SERVICE), MAIN);
        rule(900, false, marks::any(marks::SERVICE), BALANCED);
        let mut default = |table, route| {
            out.routes.insert(RouteKey { table, to: all }, route);
        };
        default(BALANCED, Route::ends(RouteKind::Local));
    }
}
