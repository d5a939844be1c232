//! The IPVS data path: objects, then in each network's namespace what balances and the rules that mark for it, then the
//! rules of the host's namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use kernel::{
    fabric::{self, Extent, Shape},
    firewall::Firewall,
    ipvs::{self, Abilities},
    netns::{self, Netns, NetnsId},
};
use mesh::{
    Problem,
    ipvs::{Family, Scheduler, Step, Table, lower, rules},
};
use model::{Proto, Vni};
use overlay::{Desired, SeenSandbox, names};

use super::{
    conntrack::Conntrack,
    pass::{Done, KernelError, World, chain, failures},
    places::{self, Places},
};
use crate::view::{self, Basis, Index};

/// Handles of what only this data path has.
pub(super) struct Ipvs {
    /// Folder of the sandboxes.
    folder: PathBuf,
    offers: Abilities,
    host: Filter<rules::Host>,
    networks: BTreeMap<Vni, Network>,
    /// Schedulers that the kernel does not have, with the number of virtual servers that do without.
    replaced: BTreeMap<Scheduler, usize>,
    /// Published ports of SCTP that are left out, as the packet filter has no match for it.
    unmatched: Vec<Problem>,
    conntrack: Conntrack,
    /// What the last pass came to, if it left no problem.
    last: Option<Last>,
    /// The next pass looks at all objects, whatever the last one came to.
    look: bool,
}

/// A pass that left no problem: the kernel holds what its view asked for.
struct Last {
    basis: Basis,
    desired: Arc<Desired>,
    /// Networks whose namespace is there.
    there: BTreeSet<Vni>,
    index: Index,
}

/// A network's namespace. The handles keep it alive, so they go before it does.
struct Network {
    id: NetnsId,
    ipvs: ipvs::Ipvs,
    /// What IPVS holds; none: it is to be looked at.
    table: Option<Table>,
    filter: Filter<rules::Sandbox>,
}

/// The packet filter of a namespace.
struct Filter<T> {
    firewall: Firewall,
    /// What its rules are about; none: they are to be looked at.
    holds: Option<T>,
}

impl Ipvs {
    /// Opens the data path in the calling thread's namespace. Nothing is written.
    pub(super) fn open(folder: &Path, offers: Abilities) -> Result<Ipvs, KernelError> {
        let host = Filter::open(&Netns::current()?)?;
        tracing::info!("data path opened: {offers}, rules in {}", host.firewall.kind());
        Ok(Ipvs {
            folder: folder.to_owned(),
            offers,
            host,
            networks: BTreeMap::new(),
            replaced: BTreeMap::new(),
            unmatched: Vec::new(),
            conntrack: Conntrack::default(),
            last: None,
            look: true,
        })
    }

    /// Takes what it left in the kernel out of it; what could not be taken.
    pub(super) fn remains(folder: &Path) -> Result<Vec<String>, KernelError> {
        // Whichever filter it was: the kernel may be another one than then.
        let mut host = Firewall::open(&Netns::current()?)?;
        host.remove()?;
        host.remove_other()?;
        let shape = Shape::Routed {
            folder,
            classifiers: true,
        };
        let round = fabric::reconcile_wanted(shape.want(&Desired::default()), None, Extent::All)?;
        Ok(failures(&round))
    }

    /// The next pass reads anew instead of trusting what was written.
    pub(super) fn forget_mirrors(&mut self) {
        if !self.replaced.is_empty()
            && let Ok(offers) = ipvs::probe()
        {
            // Somebody may have loaded what was missing.
            self.offers = offers;
        }
        self.host.holds = None;
        for network in self.networks.values_mut() {
            (network.table, network.filter.holds) = (None, None);
        }
    }

    /// Whether somebody touched our rules since the last pass, which is then due.
    pub(super) fn is_disturbed(&mut self) -> bool {
        let mut any = self.host.is_disturbed();
        for network in self.networks.values_mut() {
            any |= network.filter.is_disturbed();
        }
        any
    }

    /// Where it is.
    pub(super) fn places(&self) -> Places {
        let of = |(vni, n): (&Vni, &Network)| {
            let kind = n.filter.firewall.kind();
            (*vni, places::ipvs_network(&self.folder, *vni, kind, n.table.as_ref()))
        };
        Places {
            host: Some(places::ipvs_host(self.host.firewall.kind())),
            networks: self.networks.iter().map(of).collect(),
        }
    }

    /// What IPVS has counted for the services that are there now, as far as it is not 0.
    pub(super) fn counters(&mut self) -> Result<BTreeMap<String, u64>, KernelError> {
        let mut sum = ipvs::Counted::default();
        for network in self.networks.values_mut() {
            sum += network.ipvs.counted()?;
        }
        let named = [
            ("ipvs_flows", sum.flows),
            ("ipvs_packets_to_backends", sum.packets_in),
            ("ipvs_packets_from_backends", sum.packets_out),
            ("ipvs_octets_to_backends", sum.octets_in),
            ("ipvs_octets_from_backends", sum.octets_out),
        ];
        let some = named.into_iter().filter(|(_, n)| *n > 0);
        Ok(some.map(|(name, n)| (name.to_owned(), n)).collect())
    }

    /// The next pass looks at all objects.
    pub(super) fn look_again(&mut self) {
        self.look = true;
    }

    /// Takes everything of it out of the kernel.
    pub(super) fn unload(&mut self) -> Result<(), KernelError> {
        self.networks.clear();
        self.last = None;
        self.host.holds = None;
        // Published ports first: what they lead to is still there.
        self.host.firewall.remove()?;
        let wanted = self.shape().want(&Desired::default());
        let round = fabric::reconcile_wanted(wanted, None, Extent::All)?;
        for failure in failures(&round) {
            tracing::warn!("{failure}");
        }
        Ok(())
    }

    fn shape(&self) -> Shape<'_> {
        Shape::Routed {
            folder: &self.folder,
            classifiers: true,
        }
    }

    /// Objects are looked at when they should be others, or when it is time ([`Self::look_again`]); of services those alone
    /// whose view has changed since a pass that left no problem.
    pub(super) fn pass(&mut self, world: &mut World<'_>, done: &mut Done) -> Result<(), KernelError> {
        let extent = match world.inputs.only_add {
            true => Extent::Additions,
            false => Extent::All,
        };
        // Whatever goes wrong from here on, the next pass looks at all.
        let last = self.last.take().filter(|_| extent == Extent::All);
        let look = std::mem::replace(&mut self.look, false);
        let mut now = world.basis();
        let (desired, there) = match &last {
            Some(last) if !look && now.has_overlay_of(&last.basis) => {
                done.attached.clone_from(&last.basis.here.ifindex);
                (last.desired.clone(), last.there.clone())
            }
            _ => self.objects(world, extent, done)?,
        };
        done.mtu = desired.node.as_ref().map_or(0, |n| n.mtu);
        now.here.ifindex.clone_from(&done.attached);
        world.here.ifindex.clone_from(&done.attached);
        let mut same = last.filter(|last| last.desired == desired && last.there == there);
        let patched = same.as_mut().is_some_and(|last| self.patch(last, &now, done));
        if !patched {
            self.balance(world, &desired, &there, extent, done)?;
        }
        if extent == Extent::All && done.problems.is_empty() && done.endpoints.is_empty() {
            let index = same.filter(|_| patched).map(|last| last.index);
            self.last = Some(Last {
                index: index.unwrap_or_else(|| Index::new(&now.facts)),
                basis: now,
                desired,
                there,
            });
        }
        done.notes.extend(self.conntrack.problem()?);
        Ok(())
    }

    /// Objects as they should be, and the networks whose namespace is there.
    fn objects(
        &mut self,
        world: &mut World<'_>,
        extent: Extent,
        done: &mut Done,
    ) -> Result<(Arc<Desired>, BTreeSet<Vni>), KernelError> {
        let desired = view::overlay_desired(world.intent, world.facts, &world.here, world.endpoints);
        if extent == Extent::All {
            self.let_go(&desired);
        }
        let round = world.objects(self.shape().want(&desired), done)?;
        let sandboxes = &round.survey.observed.sandboxes;
        let space = |vni: Vni| match sandboxes.get(&names::sandbox(&self.folder, vni)) {
            Some(SeenSandbox::Ours(space)) => Some(space),
            _ => None,
        };
        for (id, endpoint) in &desired.endpoints {
            if let Some(link) = space(endpoint.vni).and_then(|space| space.links.get(&names::veth(id)))
                && !done.endpoints.contains_key(id)
            {
                done.attached.insert(id.clone(), link.index);
            }
        }
        let there = desired.networks.keys().copied().filter(|vni| space(*vni).is_some());
        let there = there.collect();
        Ok((Arc::new(desired), there))
    }

    /// Services, and the rules that mark for them: all of them.
    fn balance(
        &mut self,
        world: &World<'_>,
        desired: &Desired,
        there: &BTreeSet<Vni>,
        extent: Extent,
        done: &mut Done,
    ) -> Result<(), KernelError> {
        let mut wanted = view::mesh_wanted(world.intent, world.facts, &world.here, world.endpoints);
        self.unmatched.clear();
        let mut ports = wanted.services.values().flat_map(|s| &s.ports);
        if ports.any(|p| p.proto == Proto::Sctp) && !self.host.firewall.matches_sctp()? {
            self.unmatched = wanted.without_sctp();
        }
        done.notes.extend(self.unmatched.iter().map(|p| p.to_string()));
        let mut lowered = lower(&wanted);
        done.problems.extend(lowered.problems.iter().map(|p| p.to_string()));
        self.replaced.clear();
        for sandbox in lowered.networks.values_mut() {
            self.settle(&mut sandbox.table);
        }
        done.notes.extend(self.replaced.iter().map(|(was, servers)| {
            format!(
                "this kernel's IPVS has no scheduler {was}: {servers} virtual servers have rr instead; try: modprobe ip_vs_{was} (netd looks again within a minute)"
            )
        }));
        for (vni, rules) in view::sandbox_rules(desired, &lowered) {
            if !there.contains(&vni) {
                continue;
            }
            let table = lowered.networks.get_mut(&vni).map(|s| std::mem::take(&mut s.table));
            if let Err(e) = self.network(vni, table.unwrap_or_default(), rules, extent, done) {
                self.networks.remove(&vni);
                done.problems.push(format!("network {vni}: {}", chain(&e)));
            }
        }
        let rules = view::host_rules(desired, &lowered, &world.here);
        done.writes += self.host.apply(rules, extent, |host| host.rules())?;
        Ok(())
    }

    /// Makes the changes since the last pass, where they are of backends alone: no rule is about those. `false`: all has to
    /// be looked at.
    fn patch(&mut self, last: &mut Last, now: &Basis, done: &mut Done) -> bool {
        let is_held = |n: &Network| n.table.is_some() && n.filter.holds.is_some();
        let mut networks = last.there.iter().map(|vni| self.networks.get(vni));
        let all_held = self.host.holds.is_some() && networks.all(|n| n.is_some_and(is_held));
        if !all_held || !self.replaced.is_empty() || !self.unmatched.is_empty() {
            return false;
        }
        let Some(services) = now.services_changed(&last.basis) else {
            return false;
        };
        let services = last.index.follow(&last.basis.facts, &now.facts, services);
        if services.services.is_empty() {
            return true;
        }
        let mut before = lower(&last.basis.mesh_wanted_of(&services));
        let mut after = lower(&now.mesh_wanted_of(&services));
        if !before.differs_in_backends_alone(&after) {
            return false;
        }
        for sandbox in before.networks.values_mut().chain(after.networks.values_mut()) {
            self.settle(&mut sandbox.table);
        }
        if !self.replaced.is_empty() {
            return false;
        }
        for (vni, after) in after.networks {
            let before = before.networks.remove(&vni).unwrap_or_default().table;
            let Some(network) = self.networks.get_mut(&vni) else {
                continue;
            };
            let Some(mut held) = network.table.take() else {
                continue;
            };
            if network.tell(vni, &before, &after.table, Extent::All, done) {
                held.services.extend(after.table.services);
                network.table = Some(held);
            }
        }
        true
    }

    /// Closes what is about to go, or has gone: a namespace of which a handle is open stays, and its VXLAN device with it.
    fn let_go(&mut self, desired: &Desired) {
        let folder = &self.folder;
        self.networks.retain(|vni, network| {
            let there = || Netns::open(&names::sandbox(folder, *vni)).is_ok_and(|n| n.id() == network.id);
            desired.networks.contains_key(vni) && there()
        });
    }

    /// Does without what this kernel does not have.
    fn settle(&mut self, table: &mut Table) {
        if !self.offers.ipv6 {
            table.services.retain(|key, _| key.family == Family::V4);
        }
        for (_, was) in table.settle_for(&self.offers.schedulers) {
            *self.replaced.entry(was).or_default() += 1;
        }
    }

    /// One network's namespace: what balances before what is marked for it.
    fn network(
        &mut self,
        vni: Vni,
        table: Table,
        rules: rules::Sandbox,
        extent: Extent,
        done: &mut Done,
    ) -> Result<(), KernelError> {
        let network = match self.networks.entry(vni) {
            std::collections::btree_map::Entry::Occupied(held) => held.into_mut(),
            std::collections::btree_map::Entry::Vacant(free) => {
                let netns = Netns::open(&names::sandbox(&self.folder, vni))?;
                free.insert(Network {
                    id: netns.id(),
                    ipvs: netns::run_in(&netns, ipvs::Ipvs::open)??,
                    table: None,
                    filter: Filter::open(&netns)?,
                })
            }
        };
        if network.table.as_ref() != Some(&table) {
            let seen = match network.table.take() {
                Some(seen) => seen,
                None => network.ipvs.observe()?,
            };
            if network.tell(vni, &seen, &table, extent, done) {
                network.table = Some(table);
            }
        }
        done.writes += network.filter.apply(rules, extent, |sandbox| sandbox.rules())?;
        Ok(())
    }
}

impl Network {
    /// Tells IPVS what leads from one table to another; whether it holds that now.
    fn tell(&mut self, vni: Vni, seen: &Table, wanted: &Table, extent: Extent, done: &mut Done) -> bool {
        let mut steps = mesh::ipvs::plan(seen, wanted);
        if extent == Extent::Additions {
            steps.retain(adds);
        }
        for step in &steps {
            tracing::debug!("network {vni}: {step:?}");
        }
        let report = self.ipvs.apply(&steps);
        done.writes += report.done as u64;
        let failed = report.failed.iter();
        done.problems
            .extend(failed.map(|(step, e)| format!("network {vni}, {step:?}: {}", chain(e))));
        report.failed.is_empty() && extent == Extent::All
    }
}

/// Whether a step takes nothing away and replaces nothing.
fn adds(step: &Step) -> bool {
    matches!(
        step,
        Step::SetService { new: true, .. } | Step::SetDest { new: true, .. }
    )
}

impl<T: PartialEq> Filter<T> {
    fn open(netns: &Netns) -> Result<Self, KernelError> {
        Ok(Filter {
            firewall: Firewall::open(netns)?,
            holds: None,
        })
    }

    /// Makes the namespace hold the rules of `wanted`; the number of writes.
    fn apply(&mut self, wanted: T, extent: Extent, rules: impl Fn(&T) -> rules::Rules) -> Result<u64, KernelError> {
        if self.holds.as_ref() == Some(&wanted) {
            return Ok(0);
        }
        // A view that may be old replaces nothing that is there.
        if extent == Extent::Additions && self.firewall.is_there()? {
            return Ok(0);
        }
        self.holds = None;
        let wrote = self.firewall.apply(&rules(&wanted))?;
        self.holds = Some(wanted);
        Ok(u64::from(wrote))
    }

    fn is_disturbed(&mut self) -> bool {
        let changed = self.firewall.changed().unwrap_or(true);
        if changed {
            self.holds = None;
        }
        changed
    }
}

/// Why this host cannot have the IPVS data path; none: it can, and what IPVS offers.
pub(super) fn offers() -> Result<Abilities, String> {
    let offers = ipvs::probe().map_err(|e| chain(&e))?;
    let lacks = fabric::routed_lacks().map_err(|e| chain(&e))?;
    match lacks.first() {
        None => Ok(offers),
        Some(lack) => Err(format!(
            "this kernel lacks {}; try: modprobe {}, or a kernel with {}",
            lack.what, lack.module, lack.option
        )),
    }
}
