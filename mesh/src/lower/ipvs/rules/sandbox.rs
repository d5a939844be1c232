//! The rules of a network's namespace (IPVS, items 11 and 12).

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    super::{Family, Mark},
    language::{Action, Device, Entry, Holds, Hook, Key, List, Match, Rules, TableName, Transport, Value},
};

/// What a network's namespace is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sandbox {
    /// The network's VXLAN device: `nx<vni>`.
    pub tunnel: String,
    /// What the devices of its tasks begin with, and the one towards the node too: `nv`.
    pub prefix: String,
    /// The one towards the node: `nvup`.
    pub up: String,
    /// Marks by where a packet of a task, or of the node, goes to: VIPs with the ports of their services; this node's
    /// addresses with the ports that the network's services publish on them.
    pub marks: BTreeMap<Destination, Mark>,
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
        let mut r = Rules::default();
        let (tunnel, tasks) = (Device::named(&self.tunnel), Device::prefix(&self.prefix));

        // Nothing here asks for the tracking of connections, so the kernel's hooks for it are not there: what has to be
        // remembered of flows from outside is at the devices (`overlay::routed`).
        r.add(Raw, Prerouting, [In(tunnel)], Action::Return);

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
            // A port's own mark comes last, and counts. (In raw: each table more is more hooks that every packet passes.)
            r.add(Raw, Prerouting, [In(tasks.clone())], Action::MarkBy(name));
            r.lists.insert(name, list);
        }

        // rp_filter of the tasks' devices does this for IPv4. Not at the device towards the node: what a task answers to
        // itself comes back there, from the task's address.
        let up = [Of(Family::V6), In(Device::named(&self.up))];
        r.add(Raw, Prerouting, up, Action::Return);
        let spoofed = [Of(Family::V6), In(tasks), NoWayBack];
        r.add(Raw, Prerouting, spoofed, Action::Drop);
        r
    }
}
