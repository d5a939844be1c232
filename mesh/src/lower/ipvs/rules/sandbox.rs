//! The rules of a network's namespace (IPVS, items 11 and 12).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    super::{Family, MARK_BASE, Mark},
    language::{Action, Device, Entry, Holds, Hook, Key, List, Match, Rules, TableName, Transport, Value},
};

/// First mark of those that lead replies back to an ingress node (CONTRACTS 9).
const LEAD: u32 = 0x6f00_0000;
/// The bits that tell the ranges of marks apart.
const RANGE: u32 = 0xff00_0000;
/// Mark of what a service leads back to where it came from: it goes by the node's namespace, whose tracking makes the
/// answer come back.
const TO_ITSELF: u32 = 0x6d00_0001;

/// What a network's namespace is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sandbox {
    /// The network's VXLAN device: `nx<vni>`.
    pub tunnel: String,
    /// What the devices of its tasks begin with, and the one towards the node too: `nv`.
    pub prefix: String,
    /// The one towards the node: `nvup`.
    pub up: String,
    /// The network's addresses.
    pub v4: Option<Ipv4Net>,
    /// The same for IPv6.
    pub v6: Option<Ipv6Net>,
    /// Marks by where a packet of a task, or of the node, goes to: VIPs with the ports of their services; this node's
    /// addresses with the ports that the network's services publish on them.
    pub marks: BTreeMap<Destination, Mark>,
    /// Addresses of the network's tasks on this node.
    pub tasks: BTreeSet<IpAddr>,
}

/// Where a packet goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Address.
    pub address: IpAddr,
    /// Protocol.
    pub transport: Transport,
    /// Port; none: every port that has no mark of its own.
    pub port: Option<u16>,
}

/// Marks of a destination and port, and of a destination whatever the port.
const MARKS: &str = "marks";
const ANY_PORT: &str = "anyport";

impl Sandbox {
    /// The whole rule set.
    pub fn rules(&self) -> Rules {
        use {Hook::*, Match::*, TableName::*};
        let mut r = Rules {
            locals: self.tasks.clone(),
            ..Rules::default()
        };
        let pools = || {
            let v4 = self.v4.map(IpNet::from);
            v4.into_iter().chain(self.v6.map(IpNet::from))
        };
        let (tunnel, tasks) = (Device::named(&self.tunnel), Device::prefix(&self.prefix));

        // What is between tasks and VIPs needs no tracking: where a flow comes in from outside, nothing is remembered.
        for pool in pools() {
            r.add(Raw, Prerouting, [From(pool), In(tunnel.clone())], Action::NoTrack);
            r.add(Raw, Prerouting, [To(pool), In(tasks.clone())], Action::NoTrack);
        }

        // From another node, and from outside our pools: the ingress node is remembered, with each packet, because the
        // same client may come by another node later. A filter at the task's device recalls it for the reply
        // (`overlay::routed`), around all that is here.
        let led = Match::Mark {
            value: LEAD,
            mask: RANGE,
        };
        r.add(Mangle, Prerouting, [In(tunnel), led], Action::SaveMark);
        let key = |port| Key {
            from: false,
            to: true,
            transport: true,
            port,
        };
        let list = |port| List::new(key(port), Holds::Marks);
        let mut lists = [(ANY_PORT, list(false)), (MARKS, list(true))];
        for (d, mark) in &self.marks {
            let entry = Entry {
                family: Family::of(d.address),
                from: None,
                to: Some(d.address),
                transport: Some(d.transport),
                port: d.port,
            };
            lists[usize::from(d.port.is_some())]
                .1
                .entries
                .insert(entry, Value::Mark(*mark));
        }
        for (name, list) in lists {
            if name == ANY_PORT && list.entries.is_empty() {
                continue;
            }
            // A port's own mark comes last, and counts.
            r.add(Mangle, Prerouting, [In(tasks.clone())], Action::MarkBy(name));
            r.lists.insert(name, list);
        }
        let balanced = Match::Mark {
            value: MARK_BASE,
            mask: RANGE,
        };
        r.add(Mangle, Output, [balanced, ToItself], Action::SetMark(TO_ITSELF));

        // rp_filter of the tasks' devices does this for IPv4. Not at the device towards the node: what a task answers to
        // itself comes back there, from the task's address.
        let up = [Of(Family::V6), In(Device::named(&self.up))];
        r.add(Raw, Prerouting, up, Action::Return);
        let spoofed = [Of(Family::V6), In(tasks), NoWayBack];
        r.add(Raw, Prerouting, spoofed, Action::Drop);
        r
    }
}
