//! The rules of a node's namespace (IPVS, items 3 to 6).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{
    super::Family,
    language::{Action, Device, Entry, Holds, Hook, Key, List, Match, Rules, TableName, Transport, Value},
};

/// What a node's namespace is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// Data-path address and UDP port of this node's VXLAN. Its packets are not tracked: their source port differs for
    /// each inner flow, so each would be an entry.
    pub tunnel: Option<(IpAddr, u16)>,
    /// Addresses that other members send tunnel packets from; of others they are dropped. (A member's MAC can be guessed.)
    pub members: BTreeSet<IpAddr>,
    /// What the devices of `networks` begin with (`nvh`), and no other device's name.
    pub prefix: String,
    /// Networks of this node.
    pub networks: BTreeSet<HostNetwork>,
    /// Addresses of this node that those in a network see in place of 127.0.0.0/8, of themselves when a service leads
    /// them back to themselves, and of other networks. None: no such traffic in that family.
    pub v4: Option<Ipv4Addr>,
    /// The same for IPv6. There is no `[::1]`: it is refused.
    pub v6: Option<Ipv6Addr>,
    /// Published ports. No two are of one protocol, port and address.
    pub published: BTreeSet<Published>,
}

/// A network on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostNetwork {
    /// The host's end of the pair that leads into the network's namespace: `nvh<vni>`.
    pub device: String,
    /// Its addresses.
    pub pools: Vec<IpNet>,
    /// Its tasks reach the outside, by the node's address.
    pub outside: bool,
}

/// Who reaches a published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allow {
    /// Everybody.
    All,
    /// Sources within these, and nobody of a family that is not among them. The node itself and the service's own
    /// networks always do: they are not asked.
    Only(BTreeSet<IpNet>),
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// Protocol.
    pub transport: Transport,
    /// Port on the node, 1-65535.
    pub port: u16,
    /// Addresses of the node that it answers on; none: all.
    pub on: Option<BTreeSet<IpAddr>>,
    /// Where it leads: the service's VIP, of each family that it has.
    pub v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Port there.
    pub target: u16,
    /// Who reaches it.
    pub allow: Allow,
    /// Backends see the node's address in place of the client's.
    pub masquerade: bool,
}

/// What is published on every address of the node, and on one.
const PORTS: &str = "ports";
const PORTS_ON: &str = "portson";
/// Published ports with an allow list, and who is allowed; each for every address and for one.
const GUARDED: &str = "guarded";
const GUARDED_ON: &str = "guardedon";
const ALLOWED: &str = "allowed";
const ALLOWED_ON: &str = "allowedon";
/// VIPs and ports whose backends see the node's address.
const MASKED: &str = "masked";
/// Addresses of all networks, and of those that reach the outside.
const POOLS: &str = "pools";
/// Of whom tunnel packets are taken.
const MEMBERS: &str = "members";
const OUTSIDE: &str = "outside";

const SOURCE: Key = Key {
    from: true,
    to: false,
    transport: false,
    port: false,
};
const PORT: Key = Key {
    from: false,
    to: false,
    transport: true,
    port: true,
};

impl Host {
    /// The whole rule set.
    pub fn rules(&self) -> Rules {
        let mut r = Rules::default();
        self.raw(&mut r);
        self.guard(&mut r);
        self.translate(&mut r);
        self.sources(&mut r);
        self.forward(&mut r);
        r
    }

    fn inside(&self) -> Device {
        Device::prefix(&self.prefix)
    }

    /// The tunnel is not tracked; a source in our pools comes from a network or not at all.
    fn raw(&self, r: &mut Rules) {
        use {Hook::*, Match::*, TableName::Raw};
        if let Some((address, port)) = self.tunnel {
            let own = IpNet::from(address);
            r.add(Raw, Prerouting, [To(own), Port(Transport::Udp, port)], Action::NoTrack);
            r.add(Raw, Output, [From(own), Port(Transport::Udp, port)], Action::NoTrack);
            let here = [To(own), Port(Transport::Udp, port)];
            let members = self.members.iter().filter(|m| m.is_ipv4() == address.is_ipv4());
            let members = List {
                key: SOURCE,
                holds: Holds::Nothing,
                entries: members
                    .map(|m| (entry(Family::of(*m)).from(IpNet::from(*m)).0, Value::There))
                    .collect(),
            };
            r.lists.insert(MEMBERS, members);
            r.add(Raw, Prerouting, here.clone(), Action::AcceptBy(MEMBERS));
            r.add(Raw, Prerouting, here, Action::Drop);
        }
        for device in [self.inside(), Device::named("lo")] {
            r.add(Raw, Prerouting, [In(device)], Action::Return);
        }
        r.add(Raw, Prerouting, [Listed(POOLS)], Action::Drop);
        let sources = |nets: Vec<IpNet>| List {
            key: SOURCE,
            holds: Holds::Nothing,
            entries: IpNet::aggregate(&nets)
                .into_iter()
                .map(|n| (entry(Family::of(n.addr())).from(n).0, Value::There))
                .collect(),
        };
        let pools = |n: &HostNetwork| n.pools.clone();
        let all = self.networks.iter().flat_map(pools).collect();
        let outside = self.networks.iter().filter(|n| n.outside).flat_map(pools).collect();
        r.lists.insert(POOLS, sources(all));
        r.lists.insert(OUTSIDE, sources(outside));
    }

    /// Who is not allowed ends before the port is translated, so that nothing of the host's answers instead.
    fn guard(&self, r: &mut Rules) {
        use {Hook::Prerouting, Match::*, TableName::Mangle};
        let set = |key| List::new(key, Holds::Nothing);
        let mut lists = [
            (ALLOWED, set(Key { from: true, ..PORT })),
            (
                ALLOWED_ON,
                set(Key {
                    from: true,
                    to: true,
                    ..PORT
                }),
            ),
            (GUARDED, set(PORT)),
            (GUARDED_ON, set(Key { to: true, ..PORT })),
        ];
        for p in &self.published {
            let Allow::Only(nets) = &p.allow else { continue };
            let nets = IpNet::aggregate(&nets.iter().copied().collect());
            for at in p.at() {
                let (allowed, guarded) = if at.0.to.is_none() { (0, 2) } else { (1, 3) };
                for net in nets.iter().filter(|n| Family::of(n.addr()) == at.0.family) {
                    lists[allowed].1.entries.insert(at.from(*net).0, Value::There);
                }
                lists[guarded].1.entries.insert(at.0, Value::There);
            }
        }
        for (name, list) in lists {
            if list.entries.is_empty() {
                continue;
            }
            let then = if name == GUARDED || name == GUARDED_ON {
                Action::Drop
            } else {
                Action::Return
            };
            r.add(Mangle, Prerouting, [Listed(name), New, Local], then);
            r.lists.insert(name, list);
        }
    }

    /// Published ports lead to VIPs, for those who come and for the node's own.
    fn translate(&self, r: &mut Rules) {
        use {Hook::*, Match::*, TableName::Nat};
        let mut every = List::new(PORT, Holds::Targets);
        let mut one = List::new(Key { to: true, ..PORT }, Holds::Targets);
        for p in &self.published {
            for at in p.at() {
                let to = match at.0.family {
                    Family::V4 => p.v4.map(IpAddr::from),
                    Family::V6 => p.v6.map(IpAddr::from),
                };
                let list = if at.0.to.is_none() { &mut every } else { &mut one };
                list.entries.extend(to.map(|to| (at.0, Value::To(to, p.target))));
            }
        }
        let lists = [(PORTS_ON, one), (PORTS, every)];
        for hook in [Prerouting, Output] {
            for (name, list) in &lists {
                if *name == PORTS_ON && list.entries.is_empty() {
                    continue;
                }
                let local = IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST));
                r.add(Nat, hook, [Of(Family::V4), Local], Action::TranslateBy(name));
                r.add(Nat, hook, [NotTo(local), Local], Action::TranslateBy(name));
            }
        }
        r.lists.extend(
            lists
                .into_iter()
                .filter(|(name, l)| *name == PORTS || !l.entries.is_empty()),
        );
    }

    /// Whose source changes on the way.
    fn sources(&self, r: &mut Rules) {
        use {Hook::Postrouting, Match::*, TableName::Nat};
        let own = [self.v4.map(IpAddr::from), self.v6.map(IpAddr::from)];
        let own = || own.into_iter().flatten();
        if let Some(v4) = self.v4 {
            let local = "127.0.0.0/8".parse().map(From).ok();
            let matches = local.into_iter().chain([Out(self.inside())]);
            r.add(Nat, Postrouting, matches, Action::Source(v4.into()));
        }
        // Out of a network and into one: back to itself by a service, or to what another network publishes.
        for a in own() {
            r.add(
                Nat,
                Postrouting,
                [In(self.inside()), Out(self.inside())],
                Action::Source(a),
            );
        }
        let mut masked = List::new(Key { to: true, ..PORT }, Holds::Nothing);
        for p in self.published.iter().filter(|p| p.masquerade) {
            let vips = [p.v4.map(IpAddr::from), p.v6.map(IpAddr::from)];
            let entries = vips.into_iter().flatten().map(|vip| {
                let e = entry(Family::of(vip)).port(p.transport, p.target).to(vip).0;
                (e, Value::There)
            });
            masked.entries.extend(entries);
        }
        if !masked.entries.is_empty() {
            for a in own() {
                r.add(
                    Nat,
                    Postrouting,
                    [Out(self.inside()), Listed(MASKED)],
                    Action::Source(a),
                );
            }
            r.lists.insert(MASKED, masked);
        }
        r.add(Nat, Postrouting, [Out(self.inside())], Action::Return);
        r.add(Nat, Postrouting, [Listed(OUTSIDE)], Action::Masquerade);
    }

    /// Tasks are reached through their services and the overlay, and by nobody else; what comes from them passes, also
    /// where the host forwards nothing by itself.
    fn forward(&self, r: &mut Rules) {
        use {Hook::Forward, Match::*, TableName::Filter};
        // Packets of flows under way meet these two alone, however many networks there are.
        r.add(Filter, Forward, [Out(self.inside()), Known], Action::Accept);
        r.add(Filter, Forward, [In(self.inside()), Known], Action::Accept);
        r.add(Filter, Forward, [Out(self.inside()), Translated], Action::Accept);
        for n in &self.networks {
            let itself = Device::named(&n.device);
            r.add(Filter, Forward, [In(itself.clone()), Out(itself)], Action::Accept);
        }
        r.add(Filter, Forward, [Out(self.inside())], Action::Drop);
        r.add(Filter, Forward, [In(self.inside())], Action::Accept);
    }
}

impl Published {
    /// Families and addresses that it answers on.
    fn at(&self) -> Vec<Builder> {
        let has = |f: Family| match f {
            Family::V4 => self.v4.is_some(),
            Family::V6 => self.v6.is_some(),
        };
        let families = [Family::V4, Family::V6].into_iter().filter(|f| has(*f));
        let start = |f| entry(f).port(self.transport, self.port);
        match &self.on {
            None => families.map(start).collect(),
            Some(on) => on
                .iter()
                .filter(|a| has(Family::of(**a)))
                .map(|a| start(Family::of(*a)).to(*a))
                .collect(),
        }
    }
}

/// An entry, field by field.
#[derive(Clone, Copy)]
struct Builder(Entry);

fn entry(family: Family) -> Builder {
    Builder(Entry {
        family,
        from: None,
        to: None,
        transport: None,
        port: None,
    })
}

impl Builder {
    fn from(mut self, net: IpNet) -> Self {
        self.0.from = Some(net);
        self
    }
    fn to(mut self, address: IpAddr) -> Self {
        self.0.to = Some(address);
        self
    }
    fn port(mut self, transport: Transport, port: u16) -> Self {
        self.0.transport = Some(transport);
        self.0.port = Some(port);
        self
    }
}
