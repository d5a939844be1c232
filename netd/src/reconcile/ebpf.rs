//! The eBPF data path: objects, rows, programs, and the maps of balancing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use ebpf_abi::{Backend, MemberVal, NodeCfg};
use kernel::{
    bpf::{self, Attached, BpfError, DataPath, Hook},
    fabric::{self, Shape},
};
use mesh::ebpf::{Observed, Sizes, Step};
use model::Intent;

use super::{
    host,
    pass::{Done, KernelError, World, chain, failures},
    places::{self, Places},
};
use crate::view;

/// Index of the loopback in every namespace (LOOPBACK_IFINDEX of linux/net_namespace.h).
const LO: u32 = 1;

/// Handles of what only this data path has.
pub(super) struct Ebpf {
    bpffs: PathBuf,
    /// Where the other data path has its sandboxes.
    folder: PathBuf,
    /// None: it was taken out of the kernel.
    path: Option<DataPath>,
    stale: bool,
}

impl Ebpf {
    /// Opens the data path below a folder of a bpffs, adopting what is there. In the calling thread's namespace.
    pub(super) fn open(bpffs: &Path, folder: &Path) -> Result<Ebpf, KernelError> {
        let (path, report) = DataPath::open(bpffs)?;
        tracing::info!(
            adopted = report.adopted_maps,
            replaced = report.replaced_programs,
            "data path opened"
        );
        Ok(Ebpf {
            bpffs: bpffs.to_owned(),
            folder: folder.to_owned(),
            path: Some(path),
            stale: false,
        })
    }

    /// The next pass reads the maps anew instead of trusting what was written.
    pub(super) fn forget_mirrors(&mut self) {
        self.stale = true;
    }

    /// Counters that are not 0.
    pub(super) fn counters(&self) -> Result<BTreeMap<String, u64>, KernelError> {
        let Some(dp) = &self.path else {
            return Ok(BTreeMap::new());
        };
        Ok(dp
            .counters()?
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .map(|(name, n)| (name.to_owned(), n))
            .collect())
    }

    /// Where it is.
    pub(super) fn places(&self, intent: &Intent) -> Places {
        let Some(_) = &self.path else {
            return Places::default();
        };
        let place = places::ebpf(&self.bpffs);
        Places {
            networks: intent.networks.values().map(|n| (n.vni, place.clone())).collect(),
            host: Some(place),
        }
    }

    /// Takes what it left in the kernel out of it; what could not be taken.
    pub(super) fn remains(bpffs: &Path) -> Result<Vec<String>, KernelError> {
        // Programs go first: what they lead to is still there.
        bpf::remove(bpffs)?;
        Ok(failures(&fabric::reconcile(&overlay::Desired::default())?))
    }

    /// Takes everything of it out of the kernel.
    pub(super) fn unload(&mut self) -> Result<(), KernelError> {
        let round = fabric::reconcile(&overlay::Desired::default())?;
        for failure in failures(&round) {
            tracing::warn!("{failure}");
        }
        if let Some(dp) = self.path.take() {
            dp.unload()?;
        }
        Ok(())
    }

    /// Links, addresses, routes, neighbours, settings, filter; then who is here, before who may be reached, before what is
    /// balanced.
    pub(super) fn pass(&mut self, world: &mut World<'_>, done: &mut Done) -> Result<(), KernelError> {
        if self.path.is_none() {
            self.path = Some(DataPath::open(&self.bpffs)?.0);
        }
        let Some(dp) = self.path.as_mut() else {
            return Ok(());
        };
        let vtep = world.here.vtep;
        if vtep.is_ipv6() {
            // What the kernel holds stays: it carried what it could until now.
            done.problems.push(format!(
                "the data-path address {vtep} is IPv6, and this node's data path, eBPF, sends to IPv4 alone; try: [datapath] address with an IPv4 address or device, or datapath.mode = \"ipvs\""
            ));
            return Ok(());
        }
        let only_add = world.inputs.only_add;
        // In doubt the host's stack sees every packet, and so do its policies.
        let transforms = kernel::xfrm::has_policies().unwrap_or_else(|e| {
            done.problems.push(chain(&e));
            true
        });
        world.here.direct = !transforms;
        let desired = view::overlay_desired(world.intent, world.facts, &world.here, world.endpoints);
        done.mtu = desired.node.as_ref().map_or(0, |n| n.mtu);
        let shape = Shape::Programs { folder: &self.folder };
        let round = world.objects(shape.want(&desired), done)?;
        let observed = &round.survey.observed;
        let rows = overlay::rows(&desired, observed);
        let again = std::mem::take(&mut self.stale);
        if again {
            refresh(dp)?;
        }
        if let Some(config) = rows.config {
            done.writes += u64::from(dp.set_config(NodeCfg {
                object: dp.config().object,
                ..config
            })?);
        }
        done.writes += rows_into(dp, &rows, only_add)?;
        if rows.config.is_some() {
            done.writes += attach(dp, &rows, &world.seen, observed, only_add, &mut done.problems)?;
        }
        for id in desired.endpoints.keys() {
            let there = observed
                .host_index(&overlay::names::veth(id))
                .filter(|i| rows.ep_config.contains_key(i));
            if let Some(index) = there
                && !done.endpoints.contains_key(id)
            {
                done.attached.insert(id.clone(), index);
            }
        }
        world.here.ifindex = done.attached.clone();
        let wanted = view::mesh_wanted(world.intent, world.facts, &world.here, world.endpoints);
        balance(dp, &wanted, only_add, done)
    }
}

/// The rows of endpoints, nodes and routes; the number of writes.
fn rows_into(dp: &mut DataPath, rows: &overlay::Rows, only_add: bool) -> Result<u64, BpfError> {
    let wrote = |n: kernel::bpf::SyncCount| (n.added + n.changed + n.removed) as u64;
    if only_add {
        return Ok(wrote(dp.pools.add(&rows.pools)?)
            + wrote(dp.members.add(&rows.members)?)
            + wrote(dp.ep_config.add(&rows.ep_config)?)
            + wrote(dp.ep_extra.add(&rows.ep_extra)?)
            + wrote(dp.ep_by_addr.add(&rows.ep_by_addr)?)
            + wrote(dp.ep_by_mac.add(&rows.ep_by_mac)?)
            + wrote(dp.routes.add(&rows.routes)?));
    }
    let mut writes = wrote(dp.pools.sync(&rows.pools)?);
    let moved = moved(dp.members.get_all(), &rows.members);
    if !moved.is_empty() {
        writes += dp.move_nodes(&moved)? as u64;
    }
    writes += wrote(dp.members.sync(&rows.members)?)
        + wrote(dp.ep_config.sync(&rows.ep_config)?)
        + wrote(dp.ep_extra.sync(&rows.ep_extra)?)
        + wrote(dp.ep_by_addr.sync(&rows.ep_by_addr)?)
        + wrote(dp.ep_by_mac.sync(&rows.ep_by_mac)?)
        + wrote(dp.routes.sync(&rows.routes)?);
    Ok(writes)
}

/// Nodes whose data-path address changes: old to new.
fn moved(before: &BTreeMap<u32, MemberVal>, now: &BTreeMap<u32, MemberVal>) -> BTreeMap<u32, u32> {
    let at: BTreeMap<u32, u32> = now.iter().map(|(vtep, m)| (m.node, *vtep)).collect();
    let of = before.iter().filter_map(|(old, m)| Some((*old, *at.get(&m.node)?)));
    of.filter(|(old, new)| old != new).collect()
}

fn refresh(dp: &mut DataPath) -> Result<(), BpfError> {
    dp.pools.refresh()?;
    dp.members.refresh()?;
    dp.ep_config.refresh()?;
    dp.ep_extra.refresh()?;
    dp.ep_by_addr.refresh()?;
    dp.ep_by_mac.refresh()?;
    dp.routes.refresh()?;
    dp.services.refresh()?;
    dp.backends.refresh()?;
    dp.targets.refresh()?;
    Ok(())
}

/// Programs on every device that needs one, and (unless `only_add`) on no other.
fn attach(
    dp: &mut DataPath,
    rows: &overlay::Rows,
    seen: &host::Host,
    observed: &overlay::Observed,
    only_add: bool,
    problems: &mut Vec<String>,
) -> Result<u64, BpfError> {
    let mut writes = dp.sweep()?.len() as u64;
    let mut wanted: Vec<(Hook, u32)> = rows.ep_config.keys().map(|i| (Hook::Endpoint, *i)).collect();
    wanted.extend(observed.host_index(overlay::names::VXLAN).map(|i| (Hook::Overlay, i)));
    wanted.extend(seen.netdevs.iter().map(|i| (Hook::Netdev, *i)));
    wanted.push((Hook::Host, LO));
    for (hook, index) in dp.attached() {
        if !only_add && !wanted.contains(&(hook, index)) {
            writes += u64::from(dp.detach(hook, index)?);
        }
    }
    for (hook, index) in wanted {
        match dp.attach(hook, index) {
            Ok(Attached::Kept) => {}
            Ok(_) => writes += 1,
            Err(e) => problems.push(chain(&e)),
        }
    }
    Ok(writes)
}

/// Services, backends and their table.
fn balance(dp: &mut DataPath, wanted: &mesh::Wanted, only_add: bool, done: &mut Done) -> Result<(), KernelError> {
    let observed = mesh_observed(dp)?;
    let plan = mesh::ebpf::plan(wanted, &observed);
    let plan = if only_add { plan.additions(&observed) } else { plan };
    done.problems.extend(plan.problems.iter().map(|p| p.to_string()));
    for step in &plan.steps {
        tracing::debug!("mesh: {}", brief(step));
        done.writes += match step {
            Step::Backend { cell, value } if *value == Backend::default() => u64::from(dp.backends.remove(cell)?),
            Step::Backend { cell, value } => u64::from(dp.backends.upsert(*cell, *value)?),
            Step::Target { key, value } => u64::from(dp.targets.upsert(*key, *value)?),
            Step::Lut { off, cells } => dp.lut().write_row(*off, cells)? as u64,
            Step::Service { key, value } => u64::from(dp.services.upsert(*key, *value)?),
            Step::RemoveService { key } => u64::from(dp.services.remove(key)?),
            Step::RemoveTarget { key } => u64::from(dp.targets.remove(key)?),
            Step::Purge { gone } => {
                let mut n = 0;
                for g in gone {
                    let c = dp.purge_backend(g.cell, &g.backend)?;
                    n += c.affinity + c.reverse + c.forward;
                }
                n as u64
            }
        };
    }
    Ok(())
}

fn mesh_observed(dp: &mut DataPath) -> Result<Observed, BpfError> {
    let services = dp.services.get_all().clone();
    let targets = dp.targets.get_all().clone();
    let cells = dp
        .backends
        .get_all()
        .keys()
        .next_back()
        .map_or(0, |last| *last as usize + 1);
    let mut backends = vec![Backend::default(); cells];
    for (cell, b) in dp.backends.get_all() {
        if let Some(place) = backends.get_mut(*cell as usize) {
            *place = *b;
        }
    }
    let reach = services
        .values()
        .map(|s| s.lut_off.saturating_add(s.lut_len))
        .max()
        .unwrap_or(0);
    let lut = dp.lut();
    let sizes = Sizes {
        lut: lut.cells(),
        ..Sizes::default()
    };
    let lut = lut.read_row(0, reach.min(sizes.lut))?;
    Ok(Observed {
        services,
        backends,
        lut,
        targets,
        sizes,
    })
}

/// A step for the log: rows are long.
fn brief(step: &Step) -> String {
    match step {
        Step::Lut { off, cells } => format!("lut: {} cells from {off}", cells.len()),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_moved() {
        let members = |all: &[(u32, u32)]| -> BTreeMap<u32, MemberVal> {
            let of = |(vtep, node): &(u32, u32)| (*vtep, MemberVal { node: *node, flags: 0 });
            all.iter().map(of).collect()
        };
        let before = members(&[(10, 1), (20, 2), (30, 3), (40, 4)]);
        // 1 and 2 change places, 3 goes elsewhere, 4 is gone, 5 is new.
        let now = members(&[(20, 1), (10, 2), (31, 3), (50, 5)]);
        assert_eq!(moved(&before, &now), BTreeMap::from([(10, 20), (20, 10), (30, 31)]));
        assert_eq!(moved(&before, &before), BTreeMap::new());
        assert_eq!(moved(&members(&[]), &now), BTreeMap::new());
    }
}
