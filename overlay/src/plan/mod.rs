//! From what is wanted and what is seen to the steps between them, in order.

mod links;
mod space;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use crate::{
    objects::{Ns, Observed, SeenSandbox, SeenSpace, Wanted},
    step::{Step, device_of},
};

/// Something foreign stands where one of ours should be. It is not touched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// Where.
    pub ns: Ns,
    /// The device's name; empty: the namespace itself.
    pub link: String,
    /// What it is for.
    pub wanted_as: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conflict { ns, link, wanted_as } = self;
        if link.is_empty() {
            return write!(
                f,
                "[{ns}] a namespace exists there that is not netd's (its lo has no alias {wanted_as}); try: give it another name, or remove it with `umount {ns} && rm {ns}`"
            );
        }
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
        let devices = |step: &Step| match step {
            Step::CreateVxlan { name, .. } => vec![(Ns::Host, name.clone())],
            Step::CreateTunnel { sandbox, name, .. } => {
                vec![(Ns::Host, name.clone()), (Ns::Sandbox(sandbox.clone()), name.clone())]
            }
            Step::CreateVeth {
                ns, name, far, peer, ..
            } => vec![(ns.clone(), name.clone()), (far.clone(), peer.clone())],
            Step::DeleteLink { ns, name } => vec![(ns.clone(), name.clone())],
            _ => Vec::new(),
        };
        // A device in whose place another one would come stays, so that one does not come.
        let stays: BTreeSet<(Ns, String)> = self
            .steps
            .iter()
            .filter(|s| matches!(s, Step::DeleteLink { .. }))
            .flat_map(devices)
            .collect();
        self.steps.retain(|step| match step {
            Step::DeleteLink { .. }
            | Step::DeleteStray(_)
            | Step::DeleteAddress { .. }
            | Step::DeleteNeighbour { .. }
            | Step::DeleteFdb { .. }
            | Step::DeleteClassifier { .. }
            | Step::DeleteRoute { .. }
            | Step::DeleteRule { .. }
            | Step::RemoveSandbox { .. }
            | Step::RemoveFilter => false,
            Step::AddRoute { replace, .. } => !replace,
            Step::SetFdb { ns, link, mac, .. } => {
                let seen = observed.space(ns).into_iter().flat_map(|s| &s.fdb);
                !seen.into_iter().any(|(l, m, _)| l == link && m == mac)
            }
            Step::SetFilter(_) => !observed.filter_present,
            Step::CreateVxlan { .. } | Step::CreateTunnel { .. } | Step::CreateVeth { .. } => {
                !devices(step).iter().any(|d| stays.contains(d))
            }
            Step::CreateSandbox { .. }
            | Step::ChangeLink { .. }
            | Step::SetSysctl { .. }
            | Step::AddAddress { .. }
            | Step::SetNeighbour { .. }
            | Step::AddClsact { .. }
            | Step::AddClassifier { .. }
            | Step::AddRule { .. } => true,
        });
        self
    }
}

/// When a step's turn comes. What is referred to comes first and is removed last; within a stage the steps of one
/// namespace stand together, so that they travel in one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Devices of ours that are wrong and whose name, network or port is needed.
    MakeWay,
    /// Sandboxes that are not wanted any more, emptied by now.
    Clear,
    /// Namespaces and devices that are made from the host's, and its settings.
    Host,
    /// Devices, filters and settings of the sandboxes.
    Sandboxes,
    /// Everything inside the tasks.
    Tasks,
    /// What leads to the tasks of a sandbox.
    LeadInside,
    /// What leads to the tasks, or to the sandboxes.
    Lead,
    /// What is not wanted any more.
    Remove,
}

/// Order within a stage and namespace.
fn rank(step: &Step) -> u8 {
    match step {
        Step::CreateSandbox { .. } => 0,
        // Devices that are made after it take it over.
        Step::SetSysctl {
            ns: Ns::Sandbox(_),
            key,
            ..
        } if device_of(key).is_none() => 0,
        Step::CreateVxlan { .. } | Step::CreateTunnel { .. } => 1,
        Step::CreateVeth { .. } => 2,
        // The host stays a host on its uplinks before it becomes a router.
        Step::SetSysctl { key, .. } if key == "net/ipv6/conf/all/forwarding" => 4,
        Step::SetSysctl { .. } => 3,
        // A device comes up with its filters. The kernel holds one filter of each kind of packet, so the old one goes first.
        Step::AddClsact { .. } => 5,
        Step::DeleteClassifier { .. } => 6,
        Step::AddClassifier { .. } => 7,
        Step::ChangeLink { .. } => 8,
        Step::AddAddress { .. } => 9,
        Step::SetNeighbour { .. } => 10,
        Step::SetFdb { .. } => 11,
        Step::AddRoute { .. } => 12,
        Step::AddRule { .. } => 13,
        Step::SetFilter(_) => 14,
        Step::DeleteRule { .. } => 15,
        Step::DeleteRoute { .. } => 16,
        Step::DeleteFdb { .. } => 17,
        Step::DeleteNeighbour { .. } => 18,
        Step::DeleteAddress { .. } => 19,
        Step::DeleteLink { .. } => 20,
        Step::DeleteStray(_) => 21,
        Step::RemoveSandbox { .. } => 22,
        Step::RemoveFilter => 23,
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
    p.links();
    p.space(&Ns::Host, &wanted.host, &observed.host);
    for (path, sandbox) in &wanted.sandboxes {
        match observed.sandboxes.get(path) {
            Some(SeenSandbox::Ours(seen)) => p.space(&Ns::Sandbox(path.clone()), &sandbox.space, seen),
            Some(SeenSandbox::Absent) => p.space(&Ns::Sandbox(path.clone()), &sandbox.space, &EMPTY),
            Some(SeenSandbox::Foreign) | None => {}
        }
    }
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

/// What a namespace holds that is not there yet.
static EMPTY: SeenSpace = SeenSpace {
    links: BTreeMap::new(),
    addresses: BTreeSet::new(),
    neighbours: BTreeMap::new(),
    routes: BTreeMap::new(),
    rules: BTreeSet::new(),
    fdb: BTreeSet::new(),
    clsact: BTreeSet::new(),
    classifiers: BTreeMap::new(),
    sysctls: BTreeMap::new(),
};

struct Planner<'a> {
    wanted: &'a Wanted,
    observed: &'a Observed,
    staged: Vec<(Stage, Step)>,
    out: Plan,
    /// Devices that this plan makes: nothing that was seen on them is there any more.
    fresh: BTreeSet<(Ns, String)>,
    /// Wanted devices that cannot be had: nothing is put on them.
    dropped: BTreeSet<(Ns, String)>,
    /// Devices of namespaces that could not be looked into, and their other ends: they stay as they are.
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
}
