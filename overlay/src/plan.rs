//! From what is wanted and what is seen to the steps between them, in order.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use crate::{
    names,
    objects::{Link, LinkKind, Ns, Observed, SeenLink, SeenSpace, Space, Wanted},
    step::{Change, Step},
};

/// Something foreign stands where one of ours should be. It is not touched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// Where.
    pub ns: Ns,
    /// The device's name.
    pub link: String,
    /// What it is for.
    pub wanted_as: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conflict { ns, link, wanted_as } = self;
        write!(
            f,
            "[{ns}] a device {link} exists that is not netd's (no alias {wanted_as}); try: rename it, or remove it with `ip link del {link}`"
        )
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Cannot be done.
    pub conflicts: BTreeSet<Conflict>,
    /// Namespaces that endpoints want and that are gone.
    pub gone: BTreeSet<PathBuf>,
}

impl Plan {
    /// The kernel is as it should be, as far as it can be.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What of it only adds to `observed`: nothing that is there goes, or gives way to something else. For a view that may
    /// be older than what the kernel holds.
    pub fn additions(mut self, observed: &Observed) -> Plan {
        let device = |step: &Step| match step {
            Step::CreateVeth { task, peer, .. } => vec![(Ns::Task(task.clone()), peer.clone())],
            Step::DeleteLink { ns, name } => vec![(ns.clone(), name.clone())],
            _ => Vec::new(),
        };
        // A device in whose place another one would come stays, so that one does not come.
        let stays: BTreeSet<(Ns, String)> = self
            .steps
            .iter()
            .filter(|s| matches!(s, Step::DeleteLink { .. }))
            .flat_map(device)
            .collect();
        self.steps.retain(|step| match step {
            Step::DeleteLink { .. }
            | Step::DeleteAddress { .. }
            | Step::DeleteNeighbour { .. }
            | Step::DeleteRoute { .. }
            | Step::DeleteRule { .. }
            | Step::RemoveFilter => false,
            Step::AddRoute { replace, .. } => !replace,
            Step::SetFilter(_) => !observed.filter_present,
            Step::CreateVxlan { name, .. } => !stays.contains(&(Ns::Host, name.clone())),
            Step::CreateVeth { name, .. } => {
                !stays.contains(&(Ns::Host, name.clone())) && !device(step).iter().any(|d| stays.contains(d))
            }
            Step::ChangeLink { .. }
            | Step::SetSysctl { .. }
            | Step::AddAddress { .. }
            | Step::SetNeighbour { .. }
            | Step::AddRule { .. } => true,
        });
        self
    }
}

/// When a step's turn comes. What is referred to comes first and is removed last; within a stage the steps of one
/// namespace stand together, so that they travel in one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Devices of ours that are wrong and whose name is needed.
    MakeWay,
    /// Devices of the host's namespace and its settings.
    Host,
    /// Everything inside the tasks.
    Tasks,
    /// What leads to the tasks.
    Lead,
    /// What is not wanted any more.
    Remove,
}

/// Order within a stage and namespace.
fn rank(step: &Step) -> u8 {
    match step {
        // The host stays a host on its uplinks before it becomes a router.
        Step::SetSysctl { key, .. } if key == "net/ipv6/conf/all/forwarding" => 3,
        Step::CreateVxlan { .. } => 0,
        Step::CreateVeth { .. } => 1,
        Step::SetSysctl { .. } => 2,
        Step::ChangeLink { .. } => 4,
        Step::AddAddress { .. } => 5,
        Step::SetNeighbour { .. } => 6,
        Step::AddRoute { .. } => 7,
        Step::AddRule { .. } => 8,
        Step::SetFilter(_) => 9,
        Step::DeleteRule { .. } => 10,
        Step::DeleteRoute { .. } => 11,
        Step::DeleteNeighbour { .. } => 12,
        Step::DeleteAddress { .. } => 13,
        Step::DeleteLink { .. } => 14,
        Step::RemoveFilter => 15,
    }
}

/// The steps that lead from `observed` to `wanted`.
pub fn plan(wanted: &Wanted, observed: &Observed) -> Plan {
    let mut p = Planner {
        wanted,
        observed,
        staged: Vec::new(),
        out: Plan::default(),
        fresh: BTreeSet::new(),
        dropped: BTreeSet::new(),
        unknown: BTreeSet::new(),
        forgetful: BTreeSet::new(),
        condemned: BTreeSet::new(),
    };
    p.out.gone = wanted
        .tasks
        .keys()
        .filter(|path| matches!(observed.tasks.get(*path), Some(None)))
        .cloned()
        .collect();
    p.host_links();
    p.space(&Ns::Host, &wanted.host, &observed.host);
    for (path, space) in &wanted.tasks {
        if let Some(Some(seen)) = observed.tasks.get(path) {
            p.space(&Ns::Task(path.clone()), space, seen);
        }
    }
    match (&wanted.filter, &observed.filter) {
        (Some(w), seen) if seen.as_ref() != Some(w) => p.push(Stage::Lead, Step::SetFilter(w.clone())),
        (None, _) if observed.filter_present => p.push(Stage::Remove, Step::RemoveFilter),
        _ => {}
    }
    let Planner {
        mut staged, mut out, ..
    } = p;
    staged.sort_by(|(a, x), (b, y)| (a, x.ns(), rank(x)).cmp(&(b, y.ns(), rank(y))));
    out.steps = staged.into_iter().map(|(_, step)| step).collect();
    out
}

/// Whether two devices of different namespaces are the ends of one veth.
fn paired(a: &SeenLink, b: &SeenLink) -> bool {
    a.peer == Some(b.index) && b.peer == Some(a.index)
}

struct Planner<'a> {
    wanted: &'a Wanted,
    observed: &'a Observed,
    staged: Vec<(Stage, Step)>,
    out: Plan,
    /// Devices that this plan makes: nothing that was seen on them is there any more.
    fresh: BTreeSet<(Ns, String)>,
    /// Wanted devices that cannot be had: nothing is put on them.
    dropped: BTreeSet<(Ns, String)>,
    /// Devices of tasks that could not be looked into: they stay as they are.
    unknown: BTreeSet<(Ns, String)>,
    /// Devices that get another MAC: the kernel forgets their neighbours, permanent ones too (`neigh_changeaddr()` of
    /// net/core/neighbour.c).
    forgetful: BTreeSet<(Ns, String)>,
    /// Devices that this plan removes: what hangs on them goes with them.
    condemned: BTreeSet<(Ns, String)>,
}

impl Planner<'_> {
    fn push(&mut self, stage: Stage, step: Step) {
        self.staged.push((stage, step));
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

    fn other_end(&self, ns: &Ns, name: &str) -> Option<(Ns, String)> {
        let find = |near: &SeenLink, space: &SeenSpace| {
            space
                .links
                .iter()
                .find(|(_, far)| paired(near, far))
                .map(|(n, _)| n.clone())
        };
        match ns {
            Ns::Host => {
                let near = self.observed.host.links.get(name)?;
                let mut tasks = self.observed.tasks.iter();
                tasks.find_map(|(path, space)| Some((Ns::Task(path.clone()), find(near, space.as_ref()?)?)))
            }
            Ns::Task(path) => {
                let near = self.observed.tasks.get(path)?.as_ref()?.links.get(name)?;
                find(near, &self.observed.host).map(|n| (Ns::Host, n))
            }
        }
    }

    fn conflict(&mut self, ns: Ns, name: &str, alias: &str) {
        self.out.conflicts.insert(Conflict {
            ns,
            link: name.to_owned(),
            wanted_as: alias.to_owned(),
        });
    }

    /// Devices are made from the host's side, both ends of a veth at once.
    fn host_links(&mut self) {
        let (wanted, observed) = (self.wanted, self.observed);
        for (name, link) in &wanted.host.links {
            match &link.kind {
                LinkKind::Vxlan { port } => self.vxlan(name, link, *port),
                LinkKind::Veth { task, peer } => self.veth(name, link, task, peer),
                LinkKind::Peer { .. } => {}
            }
        }
        for (name, seen) in &observed.host.links {
            if names::is_ours(seen.alias.as_deref())
                && (!wanted.host.links.contains_key(name) || self.is_dropped(&Ns::Host, name))
            {
                self.condemn(Stage::Remove, Ns::Host, name);
            }
        }
    }

    fn is_dropped(&self, ns: &Ns, name: &str) -> bool {
        self.dropped.contains(&(ns.clone(), name.to_owned()))
    }

    fn vxlan(&mut self, name: &str, link: &Link, port: u16) {
        if let Some(seen) = self.observed.host.links.get(name) {
            if !names::is_ours(seen.alias.as_deref()) {
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

    fn veth(&mut self, name: &str, link: &Link, task: &PathBuf, peer: &str) {
        let inside = Ns::Task(task.clone());
        let (here, there) = ((Ns::Host, name.to_owned()), (inside.clone(), peer.to_owned()));
        let space = match self.observed.tasks.get(task) {
            Some(Some(space)) => space,
            // The task is gone: its device, if it is left, is not wanted.
            Some(None) => {
                self.dropped.insert(here);
                return;
            }
            None => {
                self.unknown.insert(here);
                return;
            }
        };
        let Some(wanted_peer) = self.wanted.tasks.get(task).and_then(|s| s.links.get(peer)) else {
            return;
        };
        let (seen, seen_peer) = (self.observed.host.links.get(name), space.links.get(peer));
        if seen.is_some_and(|s| !names::is_ours(s.alias.as_deref())) {
            self.dropped.extend([here, there]);
            return self.conflict(Ns::Host, name, &link.alias);
        }
        if let (Some(a), Some(b)) = (seen, seen_peer)
            && paired(a, b)
        {
            self.change(Stage::Host, &Ns::Host, name, link, a);
            return self.change(Stage::Tasks, &inside, peer, wanted_peer, b);
        }
        if let Some(b) = seen_peer {
            // The end of another device of ours: that one is wanted elsewhere, or not at all, and goes with this end. An
            // end whose other end is out of sight is known by its alias.
            let owner = self
                .observed
                .host
                .links
                .iter()
                .find(|(_, l)| names::is_ours(l.alias.as_deref()) && paired(l, b));
            match owner {
                Some((owner, _)) => self.condemn(Stage::MakeWay, Ns::Host, owner),
                None if names::is_ours(b.alias.as_deref()) => self.condemn(Stage::MakeWay, inside.clone(), peer),
                None => {
                    self.dropped.extend([here, there]);
                    return self.conflict(inside, peer, &link.alias);
                }
            }
        }
        if seen.is_some() {
            self.condemn(Stage::MakeWay, Ns::Host, name);
        }
        self.push(
            Stage::Host,
            Step::CreateVeth {
                name: name.to_owned(),
                mac: link.mac,
                mtu: link.mtu,
                alias: link.alias.clone(),
                task: task.clone(),
                peer: peer.to_owned(),
                peer_mac: wanted_peer.mac,
            },
        );
        self.fresh.extend([here, there]);
        self.finish_new(Stage::Host, &Ns::Host, name, None);
        self.finish_new(Stage::Tasks, &inside, peer, Some(&wanted_peer.alias));
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

    /// Everything but devices.
    fn space(&mut self, ns: &Ns, wanted: &Space, seen: &SeenSpace) {
        let add = if *ns == Ns::Host { Stage::Lead } else { Stage::Tasks };
        let set = if *ns == Ns::Host { Stage::Host } else { Stage::Tasks };
        let named = |set: &BTreeSet<(Ns, String)>| {
            set.iter()
                .filter(|(n, _)| n == ns)
                .map(|(_, l)| l.clone())
                .collect::<BTreeSet<String>>()
        };
        let (fresh, dropped, condemned) = (named(&self.fresh), named(&self.dropped), named(&self.condemned));
        let (unknown, forgetful) = (named(&self.unknown), named(&self.forgetful));
        // A device that is made anew starts empty; one that is removed takes along what hangs on it.
        let stays = |link: &String| !fresh.contains(link) && !condemned.contains(link) && !unknown.contains(link);
        let usable = |link: &String| !dropped.contains(link) && !unknown.contains(link);
        let at = || ns.clone();
        let mut steps: Vec<(Stage, Step)> = Vec::new();

        for (key, sysctl) in &wanted.sysctls {
            let step = Step::SetSysctl {
                ns: at(),
                key: key.clone(),
                value: sysctl.value.to_owned(),
            };
            let device = step.link().map(str::to_owned);
            // An uplink that was unplugged has no settings to write.
            let exists = |d: &String| fresh.contains(d) || seen.links.contains_key(d);
            if device.as_ref().is_some_and(|d| !usable(d) || !exists(d)) {
                continue;
            }
            let now = seen.sysctls.get(key).filter(|_| device.as_ref().is_none_or(stays));
            let due = match sysctl.only_from {
                Some(from) => now.is_some_and(|v| v == from),
                None => now.is_none_or(|v| v != sysctl.value),
            };
            if due {
                steps.push((set, step));
            }
        }

        let wanted_addresses: BTreeSet<_> = wanted.addresses.iter().filter(|(l, _)| usable(l)).collect();
        let seen_addresses: BTreeSet<_> = seen.addresses.iter().filter(|(l, _)| stays(l)).collect();
        for (link, net) in wanted_addresses.difference(&seen_addresses) {
            steps.push((
                add,
                Step::AddAddress {
                    ns: at(),
                    link: link.clone(),
                    net: *net,
                },
            ));
        }
        for (link, net) in seen_addresses.difference(&wanted_addresses) {
            steps.push((
                Stage::Remove,
                Step::DeleteAddress {
                    ns: at(),
                    link: link.clone(),
                    net: *net,
                },
            ));
        }

        for (key @ (link, address), mac) in &wanted.neighbours {
            let there = seen.neighbours.get(key) == Some(mac) && stays(link) && !forgetful.contains(link);
            if usable(link) && !there {
                steps.push((
                    add,
                    Step::SetNeighbour {
                        ns: at(),
                        link: link.clone(),
                        address: *address,
                        mac: *mac,
                    },
                ));
            }
        }
        for key @ (link, address) in seen.neighbours.keys() {
            let unwanted = !wanted.neighbours.contains_key(key) || !usable(link);
            if unwanted && stays(link) && !forgetful.contains(link) {
                steps.push((
                    Stage::Remove,
                    Step::DeleteNeighbour {
                        ns: at(),
                        link: link.clone(),
                        address: *address,
                    },
                ));
            }
        }

        for (key, route) in wanted.routes.iter().filter(|(_, r)| usable(&r.link)) {
            let now = seen.routes.get(key).filter(|r| stays(&r.link));
            if now != Some(route) {
                // Ours may still hang on a device that goes only at the end.
                let replace = seen.routes.contains_key(key);
                steps.push((
                    add,
                    Step::AddRoute {
                        ns: at(),
                        key: key.clone(),
                        route: route.clone(),
                        replace,
                    },
                ));
            }
        }
        for (key, route) in seen.routes.iter().filter(|(_, r)| stays(&r.link)) {
            if wanted.routes.get(key).is_none_or(|r| !usable(&r.link)) {
                steps.push((
                    Stage::Remove,
                    Step::DeleteRoute {
                        ns: at(),
                        key: key.clone(),
                        route: route.clone(),
                    },
                ));
            }
        }

        for rule in wanted.rules.difference(&seen.rules) {
            steps.push((
                add,
                Step::AddRule {
                    ns: at(),
                    rule: rule.clone(),
                },
            ));
        }
        for rule in seen.rules.difference(&wanted.rules) {
            steps.push((
                Stage::Remove,
                Step::DeleteRule {
                    ns: at(),
                    rule: rule.clone(),
                },
            ));
        }
        self.staged.extend(steps);
    }
}
