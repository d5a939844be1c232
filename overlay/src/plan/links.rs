//! Devices and namespaces.

use super::{Conflict, EMPTY, Planner, Stage};
use crate::{
    names,
    objects::{Link, LinkKind, Ns, Observed, PeerIn, SeenLink, SeenSandbox, SeenSpace, Space, Tunnel, Wanted},
    step::{Change, Step},
};

/// Whether the other end of a device lies in a namespace, as far as somebody looked.
fn lies(device: &SeenLink, ns: &Ns) -> Option<bool> {
    match &device.peer_in {
        PeerIn::Unasked => None,
        PeerIn::Known(there) => Some(there == ns),
        PeerIn::Elsewhere => Some(false),
    }
}

/// Whether two devices of different namespaces are the ends of one veth.
fn paired((a_ns, a): (&Ns, &SeenLink), (b_ns, b): (&Ns, &SeenLink)) -> bool {
    let both_tasks = matches!((a_ns, b_ns), (Ns::Task(_), Ns::Task(_)));
    if both_tasks || a.peer != Some(b.index) || b.peer != Some(a.index) {
        return false;
    }
    match (lies(a, b_ns), lies(b, a_ns)) {
        (Some(false), _) | (_, Some(false)) => false,
        (Some(true), _) | (_, Some(true)) => true,
        // Both ends of a veth of ours bear one mark. An end that was made a moment ago may have none yet: then an index
        // tells the host's devices apart; those of sandboxes have the same few again and again.
        (None, None) => match (&a.alias, &b.alias) {
            (Some(a), Some(b)) => a == b,
            (one, other) => {
                let with_sandbox = [a_ns, b_ns].iter().any(|n| matches!(n, Ns::Sandbox(_)));
                let of_sandbox = [one, other].into_iter().flatten().any(|a| names::is_sandbox(a));
                !with_sandbox && !of_sandbox
            }
        },
    }
}

fn is_ours(device: &SeenLink) -> bool {
    names::is_ours(device.alias.as_deref())
}

/// Whether any VXLAN device is wanted: two must not ask for one port.
fn tunnels_are_wanted(wanted: &Wanted) -> bool {
    !wanted.sandboxes.is_empty()
        || wanted
            .host
            .links
            .values()
            .any(|l| matches!(l.kind, LinkKind::Vxlan { .. }))
}

/// What is known of a namespace.
enum Look<'a> {
    There(&'a SeenSpace),
    Gone,
    Foreign,
    Unknown,
}

/// Devices of a space, and the other ends of those that are near sides.
fn devices<'a>(ns: &'a Ns, space: &'a Space) -> impl Iterator<Item = (Ns, String)> + 'a {
    space.links.iter().flat_map(move |(name, link)| {
        let far = match &link.kind {
            LinkKind::Veth { far, peer } => Some((far.clone(), peer.clone())),
            _ => None,
        };
        std::iter::once((ns.clone(), name.clone())).chain(far)
    })
}

fn look<'a>(observed: &'a Observed, ns: &Ns) -> Look<'a> {
    match ns {
        Ns::Host => Look::There(&observed.host),
        Ns::Sandbox(path) => match observed.sandboxes.get(path) {
            Some(SeenSandbox::Ours(space)) => Look::There(space),
            Some(SeenSandbox::Absent) => Look::There(&EMPTY),
            Some(SeenSandbox::Foreign) => Look::Foreign,
            None => Look::Unknown,
        },
        Ns::Task(path) => match observed.tasks.get(path) {
            Some(Some(space)) => Look::There(space),
            Some(None) => Look::Gone,
            None => Look::Unknown,
        },
    }
}

impl Planner<'_> {
    /// Namespaces and devices, from the near sides: both ends of a veth at once.
    pub(super) fn links(&mut self) {
        let (wanted, observed) = (self.wanted, self.observed);
        for (path, sandbox) in &observed.sandboxes {
            if let SeenSandbox::Ours(space) = sandbox
                && !wanted.sandboxes.contains_key(path)
            {
                let ns = Ns::Sandbox(path.clone());
                // One by one: what goes with a namespace goes a moment later, and its port and names are in use until then.
                // (The veth's end to the host may have no mark yet.)
                let goes = |name: &str, l: &SeenLink| name != "lo" && is_ours(l) || name == names::SANDBOX_END;
                for (name, _) in space.links.iter().filter(|(n, l)| goes(n, l)) {
                    self.condemn(Stage::MakeWay, ns.clone(), name);
                }
                self.push(Stage::Clear, Step::RemoveSandbox { path: path.clone() });
            }
        }
        for stray in &observed.strays {
            self.push(Stage::MakeWay, Step::DeleteStray(stray.clone()));
        }
        for (path, sandbox) in &wanted.sandboxes {
            let ns = Ns::Sandbox(path.clone());
            match observed.sandboxes.get(path) {
                Some(SeenSandbox::Ours(_)) => {}
                Some(SeenSandbox::Absent) => {
                    let step = Step::CreateSandbox {
                        path: path.clone(),
                        alias: sandbox.alias.clone(),
                    };
                    self.push(Stage::Host, step);
                }
                Some(SeenSandbox::Foreign) => {
                    self.conflict(ns.clone(), "", &sandbox.alias);
                    self.dropped.extend(devices(&ns, &sandbox.space));
                }
                None => self.unknown.extend(devices(&ns, &sandbox.space)),
            }
        }
        let sandboxes = wanted
            .sandboxes
            .iter()
            .map(|(path, s)| (Ns::Sandbox(path.clone()), &s.space));
        let mut spaces: Vec<(Ns, &Space, &SeenSpace)> = vec![(Ns::Host, &wanted.host, &observed.host)];
        spaces.extend(sandboxes.filter_map(|(ns, space)| match look(observed, &ns) {
            Look::There(seen) => Some((ns, space, seen)),
            Look::Gone | Look::Foreign | Look::Unknown => None,
        }));
        for (ns, wanted, seen) in &spaces {
            self.near(ns, wanted, seen);
        }
        // What is left over goes at the end, unless something wanted needs its place.
        for (ns, wanted, seen) in &spaces {
            self.left(ns, wanted, seen);
        }
    }

    /// Devices of a namespace that near sides of veths lie in.
    fn near(&mut self, ns: &Ns, wanted: &Space, seen: &SeenSpace) {
        for (name, link) in &wanted.links {
            match &link.kind {
                LinkKind::Vxlan { port } => self.vxlan(name, link, *port),
                LinkKind::Tunnel(tunnel) => self.tunnel(ns, seen, name, link, *tunnel),
                LinkKind::Veth { far, peer } => self.veth(ns, seen, (name, link), far, peer),
                LinkKind::Peer { .. } => {}
            }
        }
    }

    /// Devices of ours that are not wanted.
    fn left(&mut self, ns: &Ns, wanted: &Space, seen: &SeenSpace) {
        for (name, device) in seen.links.iter().filter(|(n, l)| *n != "lo" && is_ours(l)) {
            if !wanted.links.contains_key(name) || self.is_dropped(ns, name) {
                let in_the_way = device.kind.as_deref() == Some("vxlan") && tunnels_are_wanted(self.wanted);
                let stage = if in_the_way { Stage::MakeWay } else { Stage::Remove };
                self.condemn(stage, ns.clone(), name);
            }
        }
    }

    fn is_dropped(&self, ns: &Ns, name: &str) -> bool {
        self.dropped.contains(&(ns.clone(), name.to_owned()))
    }

    /// Removes a device; a veth's other end goes with it.
    fn condemn(&mut self, stage: Stage, ns: Ns, name: &str) {
        if self.condemned.insert((ns.clone(), name.to_owned())) {
            self.condemned.extend(self.other_end(&ns, name));
            self.push(
                stage,
                Step::DeleteLink {
                    ns,
                    name: name.to_owned(),
                },
            );
        }
    }

    /// All namespaces that could be read.
    fn spaces(&self) -> impl Iterator<Item = (Ns, &SeenSpace)> {
        let sandboxes = self.observed.sandboxes.iter().filter_map(|(path, s)| match s {
            SeenSandbox::Ours(space) => Some((Ns::Sandbox(path.clone()), space)),
            _ => None,
        });
        let tasks = self
            .observed
            .tasks
            .iter()
            .filter_map(|(path, s)| Some((Ns::Task(path.clone()), s.as_ref()?)));
        // Of sandboxes' devices it is known where they lead.
        sandboxes
            .chain(std::iter::once((Ns::Host, &self.observed.host)))
            .chain(tasks)
    }

    fn other_end(&self, ns: &Ns, name: &str) -> Option<(Ns, String)> {
        let device = self.observed.space(ns)?.links.get(name)?;
        device.peer?;
        self.spaces()
            .filter(|(other, _)| other != ns)
            .find_map(|(other, space)| {
                let (end, _) = space
                    .links
                    .iter()
                    .find(|(_, far)| paired((ns, device), (&other, far)))?;
                Some((other.clone(), end.clone()))
            })
    }

    fn conflict(&mut self, ns: Ns, name: &str, alias: &str) {
        self.out.conflicts.insert(Conflict {
            ns,
            link: name.to_owned(),
            wanted_as: alias.to_owned(),
        });
    }

    fn vxlan(&mut self, name: &str, link: &Link, port: u16) {
        if let Some(seen) = self.observed.host.links.get(name) {
            if !is_ours(seen) {
                self.dropped.insert((Ns::Host, name.to_owned()));
                return self.conflict(Ns::Host, name, &link.alias);
            }
            if seen.vxlan_port == Some(port) {
                return self.change(Stage::Host, &Ns::Host, name, link, seen);
            }
            self.condemn(Stage::MakeWay, Ns::Host, name);
        }
        self.fresh.insert((Ns::Host, name.to_owned()));
        self.push(
            Stage::Host,
            Step::CreateVxlan {
                name: name.to_owned(),
                port,
                mac: link.mac,
                mtu: link.mtu,
                alias: link.alias.clone(),
            },
        );
        self.finish_new(Stage::Host, &Ns::Host, name, None);
    }

    fn tunnel(&mut self, ns: &Ns, seen: &SeenSpace, name: &str, link: &Link, tunnel: Tunnel) {
        let Ns::Sandbox(sandbox) = ns else { return };
        // It is made in the host's namespace, under its name: who has that there is in the way as well.
        let theirs = [(&Ns::Host, &self.observed.host), (ns, seen)]
            .into_iter()
            .find(|(_, space)| space.links.get(name).is_some_and(|l| !is_ours(l)));
        if let Some((at, _)) = theirs {
            self.dropped.insert((ns.clone(), name.to_owned()));
            return self.conflict(at.clone(), name, &link.alias);
        }
        if let Some(seen) = seen.links.get(name) {
            if seen.tunnel == Some(tunnel) {
                return self.change(Stage::Sandboxes, ns, name, link, seen);
            }
            self.condemn(Stage::MakeWay, ns.clone(), name);
        }
        self.fresh.insert((ns.clone(), name.to_owned()));
        self.push(
            Stage::Host,
            Step::CreateTunnel {
                sandbox: sandbox.clone(),
                name: name.to_owned(),
                tunnel,
                mac: link.mac,
                mtu: link.mtu,
                alias: link.alias.clone(),
            },
        );
        self.finish_new(Stage::Sandboxes, ns, name, None);
    }

    fn veth(&mut self, ns: &Ns, near: &SeenSpace, (name, link): (&str, &Link), far: &Ns, peer: &str) {
        let (wanted, observed) = (self.wanted, self.observed);
        let (here, there) = ((ns.clone(), name.to_owned()), (far.clone(), peer.to_owned()));
        let space = match look(observed, far) {
            Look::There(space) => space,
            // The task is gone: its device, if it is left, is not wanted. Likewise where somebody else's namespace is.
            Look::Gone | Look::Foreign => {
                self.dropped.insert(here);
                return;
            }
            Look::Unknown => {
                self.unknown.extend([here, there]);
                return;
            }
        };
        let wanted_space = match far {
            Ns::Host => Some(&wanted.host),
            Ns::Sandbox(path) => wanted.sandboxes.get(path).map(|s| &s.space),
            Ns::Task(path) => wanted.tasks.get(path),
        };
        let Some(wanted_peer) = wanted_space.and_then(|s| s.links.get(peer)) else {
            return;
        };
        let of = |ns: &Ns| match ns {
            Ns::Host => Stage::Host,
            Ns::Sandbox(_) => Stage::Sandboxes,
            Ns::Task(_) => Stage::Tasks,
        };
        let (seen, seen_peer) = (near.links.get(name), space.links.get(peer));
        if seen.is_some_and(|s| !is_ours(s)) {
            self.dropped.extend([here, there]);
            return self.conflict(ns.clone(), name, &link.alias);
        }
        if let (Some(a), Some(b)) = (seen, seen_peer)
            && paired((ns, a), (far, b))
        {
            self.change(of(ns), ns, name, link, a);
            return self.change(of(far), far, peer, wanted_peer, b);
        }
        if let Some(b) = seen_peer {
            // The end of another device of ours: that one is wanted elsewhere, or not at all, and goes with this end. An
            // end whose other end is out of sight is known by its alias.
            let owner = self.spaces().filter(|(ns, _)| ns != far).find_map(|(ns, space)| {
                let mut ours = space.links.iter().filter(|(_, l)| is_ours(l));
                let (name, _) = ours.find(|(_, l)| paired((&ns, l), (far, b)))?;
                Some((ns.clone(), name.clone()))
            });
            match owner {
                Some((owner_ns, owner)) => self.condemn(Stage::MakeWay, owner_ns, &owner),
                None if is_ours(b) => self.condemn(Stage::MakeWay, far.clone(), peer),
                None => {
                    self.dropped.extend([here, there]);
                    return self.conflict(far.clone(), peer, &link.alias);
                }
            }
        }
        if seen.is_some() {
            self.condemn(Stage::MakeWay, ns.clone(), name);
        }
        self.push(
            of(ns),
            Step::CreateVeth {
                ns: ns.clone(),
                name: name.to_owned(),
                mac: link.mac,
                mtu: link.mtu,
                alias: link.alias.clone(),
                far: far.clone(),
                peer: peer.to_owned(),
                peer_mac: wanted_peer.mac,
            },
        );
        self.fresh.extend([here, there]);
        self.finish_new(of(ns), ns, name, None);
        self.finish_new(of(far), far, peer, Some(&wanted_peer.alias));
    }

    /// What a new device still needs. It comes up when its settings have been written.
    fn finish_new(&mut self, stage: Stage, ns: &Ns, name: &str, alias: Option<&str>) {
        let change = Change {
            alias: alias.map(str::to_owned),
            no_generated_addresses: true,
            up: true,
            ..Change::default()
        };
        self.push(
            stage,
            Step::ChangeLink {
                ns: ns.clone(),
                name: name.to_owned(),
                change,
            },
        );
    }

    fn change(&mut self, stage: Stage, ns: &Ns, name: &str, link: &Link, seen: &SeenLink) {
        let change = Change {
            mac: (seen.mac != Some(link.mac)).then_some(link.mac),
            mtu: (seen.mtu != link.mtu).then_some(link.mtu),
            alias: (seen.alias.as_ref() != Some(&link.alias)).then(|| link.alias.clone()),
            no_generated_addresses: seen.generates_addresses,
            up: !seen.up,
        };
        if change.mac.is_some() {
            self.forgetful.insert((ns.clone(), name.to_owned()));
        }
        if change != Change::default() {
            self.push(
                stage,
                Step::ChangeLink {
                    ns: ns.clone(),
                    name: name.to_owned(),
                    change,
                },
            );
        }
    }
}
