//! Who may send through a network's VXLAN device, what is remembered of it, and how replies find their way back.
//!
//! At the VXLAN device's ingress, in this order:
//!
//! 1. a member's frame with a source within the member's own blocks passes: a task of the network;
//! 2. any other frame with a source within the network is dropped: nobody else has those addresses;
//! 3. a member's frame gives its connection the member's mark, with each packet: it came from outside by that node, and
//!    its reply must leave by it;
//! 4. everything else is dropped: whoever sent it is no member.
//!
//! At its egress a packet with a member's mark gets that member's MAC, and no packet keeps a mark. Each step is one lookup in a table, however many
//! members there are (one more where single addresses are).
//!
//! At the device of a task, what the task sends to outside the network gets its connection's mark, and with a member's
//! mark it leaves by the VXLAN device at once. That is not left to routes, because IPVS would see it on its way: it knows
//! a flow by the same four numbers that the backend sees, and a client that has used a port through this node and then
//! through another is the same flow to it. So of several nodes the one that sent last gets the reply; what IPVS here
//! sends to the task takes the connection back (egress). Who sends with another source than its own gets no mark, and is
//! left to the check of sources. What IPVS leads back to the task that it came from goes to the host, whose connection
//! tracking gives it another source.

use ipnet::IpNet;
use model::{Mac, Vni};

use super::marks;
use crate::{
    classify::{Classifier, FIRST_PRIORITY, Hook, Match, Verdict},
    desired::{Desired, Endpoint, Network, Node},
};

const OWN4: u16 = FIRST_PRIORITY + 1;
const OWN6: u16 = FIRST_PRIORITY + 2;
const POOL4: u16 = FIRST_PRIORITY + 3;
const POOL6: u16 = FIRST_PRIORITY + 4;
const MEMBER: u16 = FIRST_PRIORITY + 5;
const REST: u16 = FIRST_PRIORITY + 6;
/// At an endpoint's device, after the pools.
const TASK4: u16 = FIRST_PRIORITY + 5;
const TASK6: u16 = FIRST_PRIORITY + 6;
const MARKED: u16 = FIRST_PRIORITY + 7;
const FRAGMENT: u16 = MARKED - 1;

fn ingress(priority: u16, mac: Option<model::Mac>, source: Option<IpNet>, verdict: Verdict) -> Classifier {
    Classifier {
        hook: Hook::Ingress,
        priority,
        on: Match::Frame {
            mac,
            source,
            destination: None,
        },
        verdict,
    }
}

fn of_family(net: IpNet, v4: u16, v6: u16) -> u16 {
    if net.addr().is_ipv4() { v4 } else { v6 }
}

pub(super) fn of_tunnel(desired: &Desired, vni: Vni, network: &Network) -> Vec<Classifier> {
    // What IPVS sends bears its service's mark still, which has done its work.
    let balanced = Classifier {
        hook: Hook::Egress,
        priority: REST,
        on: Match::Mark(marks::any(marks::SERVICE)),
        verdict: Verdict::SetMark(0),
    };
    let mut out = vec![ingress(REST, None, None, Verdict::Drop), balanced];
    for pool in network.subnets() {
        out.push(ingress(
            of_family(pool, POOL4, POOL6),
            None,
            Some(pool.trunc()),
            Verdict::Drop,
        ));
    }
    for (id, remote) in &desired.remotes {
        let mark = marks::lead_back(*id);
        let singles = remote.singles.iter().map(|(v, a)| (*v, IpNet::from(*a)));
        let own = remote.blocks.iter().copied().chain(singles).filter(|(v, _)| *v == vni);
        out.extend(own.map(|(_, net)| {
            ingress(
                of_family(net, OWN4, OWN6),
                Some(remote.mac),
                Some(net.trunc()),
                Verdict::Pass,
            )
        }));
        let kept = Verdict::Keep {
            connection: mark,
            packet: marks::OUTSIDE,
        };
        out.push(ingress(MEMBER, Some(remote.mac), None, kept));
        out.push(Classifier {
            hook: Hook::Egress,
            priority: MEMBER,
            on: Match::Mark(marks::exactly(mark)),
            verdict: Verdict::SetDestination(remote.mac),
        });
    }
    out
}

/// Filters at the device of an endpoint. `host`: MAC of the host's end of its veth to the sandbox.
pub(super) fn of_endpoint(node: &Node, ep: &Endpoint, network: &Network, host: Mac) -> Vec<Classifier> {
    let at = |hook, priority, on, verdict| Classifier {
        hook,
        priority,
        on,
        verdict,
    };
    let frame = |source: Option<IpNet>, destination: Option<IpNet>| Match::Frame {
        mac: None,
        source,
        destination,
    };
    let mut out = Vec::new();
    // First, as the others look into the packet, which costs each one.
    let outside = Match::Mark(marks::any(marks::OUTSIDE));
    out.push(at(Hook::Egress, FIRST_PRIORITY, outside, Verdict::Pass));
    // Within the network nobody is led back, and nothing is tracked.
    for pool in network.subnets().map(|p| p.trunc()) {
        let priority = of_family(pool, POOL4, POOL6);
        out.push(at(Hook::Ingress, priority, frame(None, Some(pool)), Verdict::Pass));
        out.push(at(Hook::Egress, priority, frame(Some(pool), None), Verdict::Pass));
    }
    for own in ep.addresses().chain(ep.extra.iter().copied()).map(IpNet::from) {
        let priority = of_family(own, TASK4, TASK6);
        out.push(at(Hook::Ingress, priority, frame(Some(own), None), Verdict::Recall));
        let priority = of_family(own, OWN4, OWN6);
        out.push(at(
            Hook::Egress,
            priority,
            frame(Some(own), None),
            Verdict::ToHost(host),
        ));
    }
    let back = Verdict::Redirect {
        tunnel: ep.vni,
        source: node.mac,
    };
    let by_member = Match::Mark(marks::any(marks::LEAD_BACK));
    out.push(at(Hook::Ingress, MARKED, by_member, back));
    // `ct` would put it together, and the whole is too long for the device. So datagrams in fragments take nothing back.
    out.push(at(Hook::Egress, FRAGMENT, Match::Fragment, Verdict::Pass));
    let balanced = Match::Mark(marks::any(marks::SERVICE));
    let taken_back = Verdict::Keep {
        connection: 0,
        packet: 0,
    };
    out.push(at(Hook::Egress, MARKED, balanced, taken_back));
    out
}
