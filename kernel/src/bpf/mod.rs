//! The eBPF data path from user space: maps adopted and filled, programs loaded and attached.
//!
//! Everything lives in the kernel and is pinned below one folder of a bpffs: netd's death changes nothing, and the
//! next netd finds it. Nothing is cleared first, everything is compared: [`DataPath::open`] adopts maps and programs,
//! [`Table::sync`] and [`Lut::write_row`] write differences, [`DataPath::attach`] keeps what runs.
//!
//! All calls that name an interface mean the network namespace of the calling thread. aya is used here alone.

mod bpffs;
mod error;
mod filter;
mod hooks;
mod lut;
mod object;
mod sys;
mod table;
#[cfg(test)]
mod test_run;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::programs::SchedClassifier;
use ebpf_abi::{
    ABI, AffVal, Backend, COUNTERS, EpAddrKey, EpAddrVal, EpCfg, EpExtraKey, EpMacKey, EpMacVal, Flow, FwdKey, FwdVal,
    MemberVal, NodeCfg, PoolKey, RevVal, RouteKey, RouteVal, SvcKey, SvcVal, TargetKey, TargetVal,
};

use self::hooks::{Devices, State};
pub use self::{
    error::BpfError,
    hooks::{Attached, Hook},
    lut::Lut,
    sys::Plain,
    table::{SyncCount, Table},
};

/// What [`DataPath::open`] found and did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenReport {
    /// Every map was there.
    pub adopted_maps: bool,
    /// Programs of another version ran and were replaced.
    pub replaced_programs: bool,
    /// First eight octets of the SHA-256 of the object whose programs are loaded now.
    pub loaded_object: [u32; 2],
}

/// What [`DataPath::purge_backend`] deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PurgeCount {
    /// Flows that led to the backend.
    pub affinity: usize,
    /// Ways back from it.
    pub reverse: usize,
    /// Client ports that were rewritten for it.
    pub forward: usize,
}

/// The data path of one node.
#[derive(Debug)]
pub struct DataPath {
    dir: PathBuf,
    programs: BTreeMap<Hook, SchedClassifier>,
    devices: Devices,
    config: NodeCfg,
    cpus: usize,
    config_map: OwnedFd,
    affinity_map: OwnedFd,
    reverse_map: OwnedFd,
    forward_map: OwnedFd,
    counters_map: OwnedFd,
    /// For tests of the path that kernels before 6.6 take.
    clsact: bool,
    /// VIPs and published ports.
    pub services: Table<SvcKey, SvcVal>,
    /// Cells of backends; a cell of zeros is absent.
    pub backends: Table<u32, Backend>,
    /// Endpoints of this node by MAC.
    pub ep_by_mac: Table<EpMacKey, EpMacVal>,
    /// Endpoints of this node by address, each with its network and with network 0.
    pub ep_by_addr: Table<EpAddrKey, EpAddrVal>,
    /// What each endpoint's interface may do.
    pub ep_config: Table<u32, EpCfg>,
    /// Further source addresses of interfaces.
    pub ep_extra: Table<EpExtraKey, u32>,
    /// Who has which addresses of a network.
    pub routes: Table<RouteKey, RouteVal>,
    /// Who may send VXLAN.
    pub members: Table<u32, MemberVal>,
    /// Subnets of all networks.
    pub pools: Table<PoolKey, u32>,
    /// What endpoints of this node offer.
    pub targets: Table<TargetKey, TargetVal>,
    lut: Lut,
}

impl DataPath {
    /// Opens the data path below `dir`, a folder of a bpffs that may not exist yet (nor the bpffs, see CONTRACTS 10).
    /// Maps and programs that are there are adopted; programs of another version are replaced where they run.
    ///
    /// # Errors
    /// The kernel lacks something, refuses something, or what is pinned was made by a version with other layouts
    /// (nothing is touched then).
    pub fn open(dir: &Path) -> Result<(DataPath, OpenReport), BpfError> {
        bpffs::ensure(dir)?;
        let shapes = object::shapes()?;
        let there = object::compare(dir, &shapes)?;
        let before = pinned_config(dir)?;
        let fresh = before.object != object::HASH || !object::all_pinned(dir) || there != shapes.len();
        let programs = if fresh {
            object::load(dir, &shapes)?
        } else {
            object::pinned(dir)?
        };
        let map = |name: &'static str| -> Result<OwnedFd, BpfError> {
            let path = object::map_pin(dir, name);
            sys::get(&path).map_err(|e| bpffs::path("open the map at", &path, e))
        };
        let lut_cells = shapes.get("lut").map_or(0, |s| s.entries);
        let mut path = DataPath {
            dir: dir.to_owned(),
            programs,
            devices: hooks::read(dir)?,
            config: before,
            cpus: sys::possible_cpus()
                .map_err(|e| bpffs::path("read", Path::new("/sys/devices/system/cpu/possible"), e))?,
            config_map: map("config")?,
            affinity_map: map("affinity")?,
            reverse_map: map("reverse")?,
            forward_map: map("forward")?,
            counters_map: map("counters")?,
            clsact: false,
            services: Table::open("services", map("services")?, false)?,
            backends: Table::open("backends", map("backends")?, true)?,
            ep_by_mac: Table::open("ep_by_mac", map("ep_by_mac")?, false)?,
            ep_by_addr: Table::open("ep_by_addr", map("ep_by_addr")?, false)?,
            ep_config: Table::open("ep_config", map("ep_config")?, false)?,
            ep_extra: Table::open("ep_extra", map("ep_extra")?, false)?,
            routes: Table::open("routes", map("routes")?, false)?,
            members: Table::open("members", map("members")?, false)?,
            pools: Table::open("pools", map("pools")?, false)?,
            targets: Table::open("targets", map("targets")?, false)?,
            lut: Lut::new(map("lut")?, lut_cells),
        };
        let replaced_programs = if fresh { path.replace_all()? } else { false };
        if fresh && path.config.abi != 0 {
            // Only now: a netd that dies between two replacements is followed by one that does the rest.
            let config = path.config;
            path.set_config(config)?;
        }
        let report = OpenReport {
            adopted_maps: there == shapes.len(),
            replaced_programs,
            loaded_object: object::HASH,
        };
        Ok((path, report))
    }

    /// Brings every program that runs to the version loaded; true: there was another. Of a device that is gone nothing
    /// can be replaced, and its index may be another's by now: [`DataPath::sweep`] forgets it.
    fn replace_all(&mut self) -> Result<bool, BpfError> {
        let mut replaced = false;
        for ((hook, ifindex), kind) in self.devices.clone() {
            let program = self.programs.get_mut(&hook).ok_or_else(|| no_program(hook))?;
            if hooks::state(&self.dir, hook, ifindex, kind, program)? == State::Other {
                hooks::replace(&self.dir, hook, ifindex, kind, program)?;
                replaced = true;
            }
        }
        Ok(replaced)
    }

    /// The node's configuration as the programs read it; `abi` 0: none yet.
    pub fn config(&self) -> &NodeCfg {
        &self.config
    }

    /// Writes the node's configuration. `abi` and `object` are filled in. False: it was that already.
    ///
    /// # Errors
    /// The kernel refuses the write.
    pub fn set_config(&mut self, cfg: NodeCfg) -> Result<bool, BpfError> {
        let cfg = NodeCfg {
            abi: ABI,
            object: object::HASH,
            ..cfg
        };
        if cfg == self.config {
            return Ok(false);
        }
        sys::update(self.config_map.as_fd(), &0u32, &cfg).map_err(|source| BpfError::Map {
            map: "config",
            what: "write",
            source,
        })?;
        self.config = cfg;
        Ok(true)
    }

    /// Makes a hook's program run at the ingress of a device.
    ///
    /// # Errors
    /// The device is gone, or the kernel has neither tcx nor clsact.
    pub fn attach(&mut self, hook: Hook, ifindex: u32) -> Result<Attached, BpfError> {
        let program = self.programs.get_mut(&hook).ok_or_else(|| no_program(hook))?;
        if let Some(kind) = self.devices.get(&(hook, ifindex)).copied() {
            match hooks::state(&self.dir, hook, ifindex, kind, program)? {
                State::Current => return Ok(Attached::Kept),
                State::Other => {
                    hooks::replace(&self.dir, hook, ifindex, kind, program)?;
                    return Ok(Attached::Replaced);
                }
                // An interface index may be given to another device.
                State::Dead => {
                    hooks::remove(&self.dir, hook, ifindex, kind)?;
                    self.devices.remove(&(hook, ifindex));
                }
            }
        }
        let kind = hooks::create(&self.dir, hook, ifindex, program, self.clsact)?;
        self.devices.insert((hook, ifindex), kind);
        Ok(Attached::New)
    }

    /// Takes a hook's program from a device; false: it did not run there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn detach(&mut self, hook: Hook, ifindex: u32) -> Result<bool, BpfError> {
        let Some(kind) = self.devices.get(&(hook, ifindex)).copied() else {
            return Ok(false);
        };
        hooks::remove(&self.dir, hook, ifindex, kind)?;
        self.devices.remove(&(hook, ifindex));
        Ok(true)
    }

    /// Where programs of ours run.
    pub fn attached(&self) -> BTreeSet<(Hook, u32)> {
        hooks::keys(&self.devices)
    }

    /// Forgets programs whose device is gone; gives them.
    ///
    /// # Errors
    /// The kernel refuses to tell, or to remove a pin.
    pub fn sweep(&mut self) -> Result<Vec<(Hook, u32)>, BpfError> {
        let mut gone = Vec::new();
        for ((hook, ifindex), kind) in self.devices.clone() {
            let program = self.programs.get(&hook).ok_or_else(|| no_program(hook))?;
            if hooks::state(&self.dir, hook, ifindex, kind, program)? == State::Dead {
                hooks::remove(&self.dir, hook, ifindex, kind)?;
                self.devices.remove(&(hook, ifindex));
                gone.push((hook, ifindex));
            }
        }
        Ok(gone)
    }

    /// The lookup table.
    pub fn lut(&mut self) -> &mut Lut {
        &mut self.lut
    }

    /// Every counter by name, summed over the CPUs; names that begin with `drop_` are drops.
    ///
    /// # Errors
    /// The kernel refuses to read.
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>, BpfError> {
        COUNTERS
            .iter()
            .map(|(cell, name)| {
                let sum = sys::lookup_per_cpu(self.counters_map.as_fd(), *cell, self.cpus);
                Ok((
                    *name,
                    sum.map_err(|source| BpfError::Map {
                        map: "counters",
                        what: "read",
                        source,
                    })?,
                ))
            })
            .collect()
    }

    /// Deletes what flows remember of a backend that is gone, so that its cell and its address may be given to
    /// another: `cell` of `backends`, and what stood there.
    ///
    /// # Errors
    /// The kernel refuses a read or a deletion; call it again.
    pub fn purge_backend(&mut self, cell: u32, was: &Backend) -> Result<PurgeCount, BpfError> {
        let is_its = |a: &ebpf_abi::Addr| {
            if a.is_v4() {
                was.addr4 != 0 && a.w[3] == was.addr4
            } else {
                *a != ebpf_abi::Addr::default() && *a == was.addr6
            }
        };
        let affinity = purge(&self.affinity_map, "affinity", |_: &Flow, v: &AffVal| v.backend == cell)?;
        let mut rewritten = BTreeSet::new();
        let reverse = purge(&self.reverse_map, "reverse", |k: &Flow, v: &RevVal| {
            let its = k.net_proto >> 8 == was.vni && is_its(&k.saddr);
            if its && v.flags & ebpf_abi::REV_PORT != 0 {
                rewritten.insert((v.caddr, v.oaddr, v.cport, v.oport, v.vtep));
            }
            its
        })?;
        let forward = if rewritten.is_empty() {
            0
        } else {
            purge(&self.forward_map, "forward", |k: &FwdKey, _: &FwdVal| {
                let f = &k.flow;
                rewritten.contains(&(f.saddr, f.daddr, f.sport, f.dport, k.vtep))
            })?
        };
        Ok(PurgeCount {
            affinity,
            reverse,
            forward,
        })
    }

    /// Nodes have other data-path addresses (old to new, as on the wire): flows that came through them lead back to where
    /// they are now. To be done before their new addresses are members: a packet that came first would be taken for
    /// another flow. Answers how many entries changed.
    ///
    /// # Errors
    /// The kernel refuses a read or a write; call it again.
    pub fn move_nodes(&mut self, moved: &BTreeMap<u32, u32>) -> Result<usize, BpfError> {
        let failed = |map: &'static str| {
            move |source| BpfError::Map {
                map,
                what: "write",
                source,
            }
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        sys::read_all(self.reverse_map.as_fd(), |k: Flow, mut v: RevVal| {
            if let Some(new) = moved.get(&v.vtep) {
                v.vtep = *new;
                keys.push(k);
                values.push(v);
            }
        })
        .map_err(failed("reverse"))?;
        let (reverse, outcome) = sys::update_all(self.reverse_map.as_fd(), &keys, &values);
        outcome.map_err(failed("reverse"))?;
        // Here the address is part of the key.
        let (mut old, mut new, mut values) = (Vec::new(), Vec::new(), Vec::new());
        sys::read_all(self.forward_map.as_fd(), |k: FwdKey, v: FwdVal| {
            if let Some(vtep) = moved.get(&k.vtep) {
                old.push(k);
                new.push(FwdKey { vtep: *vtep, ..k });
                values.push(v);
            }
        })
        .map_err(failed("forward"))?;
        let (_, outcome) = sys::delete_all(self.forward_map.as_fd(), &old);
        outcome.map_err(failed("forward"))?;
        let (forward, outcome) = sys::update_all(self.forward_map.as_fd(), &new, &values);
        outcome.map_err(failed("forward"))?;
        Ok(reverse + forward)
    }

    /// Takes every program off and removes every pin: the node leaves its cluster.
    ///
    /// # Errors
    /// As [`remove`].
    pub fn unload(self) -> Result<(), BpfError> {
        let dir = self.dir.clone();
        drop(self);
        remove(&dir)
    }
}

/// Takes every program off that is pinned below `dir`, and removes every pin. No program is loaded for it: so it can be done
/// on a kernel that takes none. Nothing there: nothing is done.
///
/// # Errors
/// The kernel refuses; what is left can be removed by calling it again.
pub fn remove(dir: &Path) -> Result<(), BpfError> {
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    match fs::metadata(dir) {
        Err(e) if gone(&e) => return Ok(()),
        Err(e) => return Err(bpffs::path("examine", dir, e)),
        Ok(_) => {}
    }
    for ((hook, ifindex), kind) in hooks::read(dir)? {
        hooks::remove(dir, hook, ifindex, kind)?;
    }
    for name in bpffs::names(dir)? {
        if name.starts_with("map_") || name.starts_with("prog_") {
            bpffs::unpin(&dir.join(name))?;
        }
    }
    match fs::remove_dir(dir) {
        Err(e) if !gone(&e) => Err(bpffs::path("remove", dir, e)),
        _ => Ok(()),
    }
}

fn no_program(hook: Hook) -> BpfError {
    BpfError::Object(format!("it has no program {}", hook.program()))
}

/// The configuration of the maps that are there; all zeros when there are none.
fn pinned_config(dir: &Path) -> Result<NodeCfg, BpfError> {
    let path = object::map_pin(dir, "config");
    let fd = match sys::get(&path) {
        Ok(fd) => fd,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(NodeCfg::default()),
        Err(e) => return Err(object::syscall("open pinned maps", e, &path)),
    };
    let config: Option<NodeCfg> = sys::lookup(fd.as_fd(), &0u32).map_err(|e| bpffs::path("read", &path, e))?;
    let config = config.unwrap_or_default();
    if config.abi != 0 && config.abi != ABI {
        return Err(BpfError::Abi {
            path: dir.to_owned(),
            found: config.abi,
            wanted: ABI,
        });
    }
    Ok(config)
}

/// Deletes the entries that `goes` picks.
fn purge<K, V>(map: &OwnedFd, name: &'static str, mut goes: impl FnMut(&K, &V) -> bool) -> Result<usize, BpfError>
where
    K: Plain + Default,
    V: Plain + Default,
{
    let mut keys = Vec::new();
    sys::read_all(map.as_fd(), |k: K, v: V| {
        if goes(&k, &v) {
            keys.push(k);
        }
    })
    .map_err(|source| BpfError::Map {
        map: name,
        what: "read",
        source,
    })?;
    let (done, outcome) = sys::delete_all(map.as_fd(), &keys);
    outcome.map_err(|source| BpfError::Map {
        map: name,
        what: "delete",
        source,
    })?;
    Ok(done)
}
