//! One pass: look, plan, write, and say what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use ebpf_abi::{Backend, MemberVal, NodeCfg};
use kernel::{
    bpf::{Attached, BpfError, DataPath, Hook},
    fabric::{self, ObserveError},
    rtnl::{Rtnl, RtnlError},
    sysctl::SysctlError,
};
use mesh::ebpf::{Observed, Sizes, Step};
use model::{ApiError, Code, EndpointId, Intent};

use super::{Inputs, host, reserve::Reserve};
use crate::{
    endpoints::Endpoint,
    gossip::Facts,
    view::{self, Here},
};

/// Index of the loopback in every namespace (LOOPBACK_IFINDEX of linux/net_namespace.h).
const LO: u32 = 1;

/// What stops the data path as a whole.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Maps and programs.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Links, addresses, filter.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The host could not be looked at.
    #[error(transparent)]
    Rtnl(#[from] RtnlError),
    /// Reserved ports.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

impl From<KernelError> for ApiError {
    fn from(e: KernelError) -> ApiError {
        ApiError::new(
            Code::Unsupported,
            chain(&e),
            "netd with a kernel of 5.15 or newer, as root; the message names what is missing",
        )
    }
}

/// An error with its causes: the operator reads one line.
fn chain(e: &dyn std::error::Error) -> String {
    let mut out = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        let text = c.to_string();
        if !out.contains(&text) {
            out = format!("{out}: {text}");
        }
        cause = c.source();
    }
    out
}

/// Handles of everything that is written to.
pub struct Kernel {
    rtnl: Rtnl,
    datapath: Option<DataPath>,
    reserve: Reserve,
    stale: bool,
}

/// What a pass came to.
#[derive(Debug, Default)]
pub struct Done {
    /// Writes into the kernel.
    pub writes: u64,
    /// What could not be done.
    pub problems: Vec<String>,
    /// What could not be done for an endpoint.
    pub endpoints: BTreeMap<EndpointId, String>,
    /// Host side interfaces of the endpoints that are fully there.
    pub attached: BTreeMap<EndpointId, u32>,
    /// MTU inside the overlay, octets.
    pub mtu: u16,
    /// Addresses of this host, when they could be read.
    pub addresses: Option<BTreeSet<IpAddr>>,
}

impl Kernel {
    /// Opens the data path below a folder of a bpffs, adopting what is there. In the calling thread's namespace.
    pub fn open(bpffs: &Path, state_dir: &Path) -> Result<Kernel, KernelError> {
        let (datapath, report) = DataPath::open(bpffs)?;
        tracing::info!(
            adopted = report.adopted_maps,
            replaced = report.replaced_programs,
            "data path opened"
        );
        Ok(Kernel {
            rtnl: Rtnl::open()?,
            datapath: Some(datapath),
            reserve: Reserve::open(state_dir),
            stale: false,
        })
    }

    /// The next pass reads the maps anew instead of trusting what was written.
    pub fn forget_mirrors(&mut self) {
        self.stale = true;
    }

    /// Counters of the data path that are not 0.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>, KernelError> {
        let Some(dp) = &self.datapath else {
            return Ok(BTreeMap::new());
        };
        Ok(dp
            .counters()?
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .map(|(name, n)| (name.to_owned(), n))
            .collect())
    }

    /// Takes everything of ours out of the kernel.
    pub fn unload(&mut self) -> Result<(), KernelError> {
        let round = fabric::reconcile(&overlay::Desired::default())?;
        for (step, e) in &round.report.failed {
            tracing::warn!("{step}: {}", chain(e));
        }
        self.reserve.sync(&BTreeSet::new())?;
        if let Some(dp) = self.datapath.take() {
            dp.unload()?;
        }
        Ok(())
    }

    /// One pass.
    pub fn pass(
        &mut self,
        inputs: &Inputs,
        intent: &Intent,
        facts: &Facts,
        endpoints: &BTreeMap<EndpointId, Endpoint>,
    ) -> Done {
        let mut done = Done::default();
        if let Err(e) = self.try_pass(inputs, intent, facts, endpoints, &mut done) {
            done.problems.push(chain(&e));
        }
        done
    }

    fn try_pass(
        &mut self,
        inputs: &Inputs,
        intent: &Intent,
        facts: &Facts,
        endpoints: &BTreeMap<EndpointId, Endpoint>,
        done: &mut Done,
    ) -> Result<(), KernelError> {
        if self.datapath.is_none() {
            self.datapath = Some(DataPath::open(&inputs.config.node.bpffs_dir)?.0);
        }
        let vtep = inputs.addresses.borrow().source;
        let seen = host::look(&mut self.rtnl, vtep)?;
        done.addresses = Some(seen.addresses.clone());
        let underlay_mtu = match &seen.underlay {
            Some((_, mtu)) => *mtu,
            None => {
                done.problems.push(format!(
                    "no device of this host holds the data-path address {vtep}; try: ip address show, then [datapath] address or [cluster] advertise in netd's configuration"
                ));
                1500
            }
        };
        // In doubt the host's stack sees every packet, and so do its policies.
        let transforms = kernel::xfrm::has_policies().unwrap_or_else(|e| {
            done.problems.push(chain(&e));
            true
        });
        let mut here = Here {
            me: inputs.me,
            vtep,
            vxlan_port: intent.settings.data_path_port,
            underlay_mtu,
            uplinks: seen.uplinks.clone(),
            direct: !transforms,
            addresses: seen.addresses.clone(),
            devices: seen.devices.clone(),
            ifindex: BTreeMap::new(),
        };
        let desired = view::overlay_desired(intent, facts, &here, endpoints);
        done.mtu = desired.node.as_ref().map_or(0, |n| n.mtu);

        // Links, addresses, routes, neighbours, settings, filter.
        let round = match inputs.only_add {
            true => fabric::complete(&desired)?,
            false => fabric::reconcile(&desired)?,
        };
        done.writes += round.report.done as u64;
        for step in &round.plan.steps {
            tracing::debug!("overlay: {step}");
        }
        done.problems.extend(round.plan.conflicts.iter().map(|c| c.to_string()));
        done.problems.extend(
            round
                .report
                .failed
                .iter()
                .map(|(step, e)| format!("{step}: {}", chain(e))),
        );
        done.problems.extend(
            round
                .survey
                .unreadable
                .iter()
                .map(|(path, e)| format!("{}: {}", path.display(), chain(e))),
        );
        done.endpoints.extend(round.wanted.refused.clone());
        for (id, e) in endpoints {
            if round.plan.gone.contains(&e.netns) {
                done.endpoints.insert(
                    id.clone(),
                    format!(
                        "its namespace {} is gone; try: netctl endpoint rm {id}",
                        e.netns.display()
                    ),
                );
            }
        }
        let observed = &round.survey.observed;

        // Who is here, before who may be reached, before what is balanced.
        let rows = overlay::rows(&desired, observed);
        let Some(dp) = self.datapath.as_mut() else {
            return Ok(());
        };
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
        done.writes += rows_into(dp, &rows, inputs.only_add)?;
        if rows.config.is_some() {
            done.writes += attach(dp, &rows, &seen, observed, inputs.only_add, &mut done.problems)?;
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
        let published = intent.services.values().flat_map(|s| s.ports.values());
        let mut published: BTreeSet<u16> = published.map(|p| p.spec.published).collect();
        if inputs.only_add {
            published.extend(self.reserve.held());
        }
        match self.reserve.sync(&published) {
            Ok(n) => done.writes += n,
            Err(e) => done.problems.push(chain(&e)),
        }
        here.ifindex = done.attached.clone();
        let wanted = view::mesh_wanted(intent, facts, &here, endpoints);
        balance(dp, &wanted, inputs.only_add, done)
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
