//! Who may send through a network's VXLAN device, and what is remembered of it.
//!
//! At the ingress, in this order:
//!
//! 1. a member's frame with a source within the member's own blocks passes: a task of the network;
//! 2. any other frame with a source within the network is dropped: nobody else has those addresses;
//! 3. a member's frame gets the member's mark: it came from outside by that node, and its reply must leave by it;
//! 4. everything else is dropped: whoever sent it is no member.
//!
//! At the egress a packet with a member's mark gets that member's MAC, in the place of the one that stands for all of
//! them. Each step is one lookup in a table, however many members there are (one more where single addresses are).

use ipnet::IpNet;
use model::Vni;

use super::marks;
use crate::{
    classify::{Classifier, FIRST_PRIORITY, Hook, Match, Verdict},
    desired::{Desired, Network},
};

const OWN4: u16 = FIRST_PRIORITY + 1;
const OWN6: u16 = FIRST_PRIORITY + 2;
const POOL4: u16 = FIRST_PRIORITY + 3;
const POOL6: u16 = FIRST_PRIORITY + 4;
const MEMBER: u16 = FIRST_PRIORITY + 5;
const REST: u16 = FIRST_PRIORITY + 6;

fn ingress(priority: u16, mac: Option<model::Mac>, source: Option<IpNet>, verdict: Verdict) -> Classifier {
    Classifier {
        hook: Hook::Ingress,
        priority,
        on: Match::Frame { mac, source },
        verdict,
    }
}

fn of_family(net: IpNet, v4: u16, v6: u16) -> u16 {
    if net.addr().is_ipv4() { v4 } else { v6 }
}

pub(super) fn of_tunnel(desired: &Desired, vni: Vni, network: &Network) -> Vec<Classifier> {
    let mut out = vec![ingress(REST, None, None, Verdict::Drop)];
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
        out.push(ingress(MEMBER, Some(remote.mac), None, Verdict::SetMark(mark)));
        out.push(Classifier {
            hook: Hook::Egress,
            priority: MEMBER,
            on: Match::Mark(mark),
            verdict: Verdict::SetDestination(remote.mac),
        });
    }
    out
}
