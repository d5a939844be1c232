//! One pass: look, plan, write, and say what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use kernel::{
    bpf::BpfError,
    fabric::{self, Extent, ObserveError, Round},
    firewall::FirewallError,
    ipvs::IpvsError,
    netns::NetnsError,
    rtnl::{Rtnl, RtnlError},
    sysctl::SysctlError,
};
use model::{ApiError, Code, EndpointId, Intent, row::Datapath};
use overlay::Wanted;

use super::{
    Inputs,
    absence::Absence,
    choose::{self, Before, Chosen, Memory, Offers},
    ebpf::Ebpf,
    former::Former,
    host,
    ipvs::Ipvs,
    places::Places,
    reserve::Reserve,
};
use crate::{
    config::Config,
    endpoints::{Endpoint, Endpoints},
    gossip::Facts,
    view::{self, Basis, Here},
};

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
    /// IPVS.
    #[error(transparent)]
    Ipvs(#[from] IpvsError),
    /// The rules of the IPVS data path.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The data path that is asked for cannot be had.
    #[error("datapath.mode is ipvs, and {0}, or datapath.mode = \"auto\"")]
    NoIpvs(String),
    /// Which data path was in use is not remembered.
    #[error("{path} cannot be written; try: df, ls -l", path = .0.display())]
    Memory(PathBuf, #[source] std::io::Error),
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
pub(super) fn chain(e: &dyn std::error::Error) -> String {
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

/// Steps that were not done, for people.
pub(super) fn failures(round: &Round) -> Vec<String> {
    let failed = round.report.failed.iter();
    failed.map(|(step, e)| format!("{step}: {}", chain(e))).collect()
}

/// Handles of everything that is written to.
pub struct Kernel {
    rtnl: Rtnl,
    reserve: Reserve,
    former: Former,
    memory: Memory,
    folders: Folders,
    chosen: Chosen,
    way: Way,
    absence: Absence,
}

/// Where the data paths have what is theirs.
struct Folders {
    /// Folder of the sandboxes.
    netns: PathBuf,
    /// Folder of the pins.
    bpffs: PathBuf,
}

/// The data path in use.
enum Way {
    Ebpf(Box<Ebpf>),
    Ipvs(Box<Ipvs>),
}

/// What a pass works from.
pub(super) struct World<'a> {
    pub(super) inputs: &'a Inputs,
    pub(super) intent: &'a Arc<Intent>,
    pub(super) facts: &'a Arc<Facts>,
    pub(super) endpoints: &'a BTreeMap<EndpointId, Endpoint>,
    pub(super) seen: host::Host,
    pub(super) former: &'a mut Former,
    /// For the view: what a data path finds out is added.
    pub(super) here: Here,
}

impl World<'_> {
    /// Brings the objects of a data path to what is wanted.
    pub(super) fn objects(&mut self, wanted: Wanted, done: &mut Done) -> Result<Round, KernelError> {
        let extent = match self.inputs.only_add {
            true => Extent::Additions,
            false => Extent::All,
        };
        self.former.note(&wanted.host.sysctls)?;
        let round = fabric::reconcile_wanted(wanted, None, extent)?;
        done.round(&round, self.endpoints);
        if extent == Extent::All {
            done.writes += self.former.give_back(&round.wanted.host.sysctls)?;
        }
        Ok(round)
    }

    /// What the view is made of.
    pub(super) fn basis(&self) -> Basis {
        Basis {
            intent: self.intent.clone(),
            facts: self.facts.clone(),
            here: self.here.clone(),
            endpoints: self.endpoints.clone(),
        }
    }
}

/// What a pass came to.
#[derive(Debug, Default)]
pub struct Done {
    /// Writes into the kernel.
    pub writes: u64,
    /// What could not be done.
    pub problems: Vec<String>,
    /// What was done, and still wants an operator's eye: it is told with the problems, and nothing is tried again for it.
    pub notes: Vec<String>,
    /// What could not be done for an endpoint.
    pub endpoints: BTreeMap<EndpointId, String>,
    /// Host side interfaces of the endpoints that are fully there.
    pub attached: BTreeMap<EndpointId, u32>,
    /// MTU inside the overlay, octets.
    pub mtu: u16,
    /// Addresses of this host, when they could be read.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// Where it all is.
    pub places: Places,
    /// The data-path address has just gone: nothing was written. The next pass is due when an event asks for it, and after
    /// this long at the latest.
    pub again: Option<Duration>,
}

impl Done {
    /// What became of the objects.
    fn round(&mut self, round: &Round, endpoints: &BTreeMap<EndpointId, Endpoint>) {
        self.writes += round.report.done as u64;
        for step in &round.plan.steps {
            tracing::debug!("overlay: {step}");
        }
        self.problems.extend(round.plan.conflicts.iter().map(|c| c.to_string()));
        self.problems.extend(failures(round));
        let unreadable = round.survey.unreadable.iter();
        self.problems
            .extend(unreadable.map(|(path, e)| format!("{}: {}", path.display(), chain(e))));
        self.endpoints.extend(round.wanted.refused.clone());
        for (id, e) in endpoints {
            if round.plan.gone.contains(&e.netns) {
                let why = format!(
                    "its namespace {} is gone; try: netctl endpoint rm {id}",
                    e.netns.display()
                );
                self.endpoints.insert(id.clone(), why);
            }
        }
    }
}

impl Kernel {
    /// Opens the data path that the settings and the kernel lead to, adopting what is there. In the calling thread's
    /// namespace. `only_add`: as in [`Inputs`].
    pub fn open(config: &Config, only_add: bool) -> Result<Kernel, KernelError> {
        let state = &config.node.state_dir;
        let mut memory = Memory::open(state);
        // A table that cannot be read is told of by who needs it, in a moment.
        let endpoints = Endpoints::open(state).map(|e| e.all().values().filter(|e| e.netns.exists()).count());
        let before = Before {
            last: memory.last(),
            endpoints: endpoints.unwrap_or_default(),
            only_add,
        };
        let (chosen, offers) = Chosen::new(config.datapath.mode, before).map_err(KernelError::NoIpvs)?;
        tracing::info!("data path: {}", chosen.why);
        if before.endpoints > 0 && before.last != chosen.datapath {
            tracing::warn!(
                "the data path changes from {} to {} under {} endpoints: they keep their addresses, and connections through virtual addresses and published ports are cut; try, another time: netctl node drain before",
                choose::word(before.last),
                choose::word(chosen.datapath),
                before.endpoints
            );
        }
        memory.begin(chosen.datapath)?;
        let folders = Folders {
            netns: config.netns_dir(),
            bpffs: config.node.bpffs_dir.clone(),
        };
        let way = match offers {
            Offers::Ipvs(offers) => Way::Ipvs(Box::new(Ipvs::open(&folders.netns, offers)?)),
            Offers::Ebpf => Way::Ebpf(Box::new(Ebpf::open(&folders.bpffs, &folders.netns)?)),
        };
        Ok(Kernel {
            rtnl: Rtnl::open()?,
            reserve: Reserve::open(state),
            former: Former::open(state),
            memory,
            folders,
            chosen,
            way,
            absence: Absence::default(),
        })
    }

    /// Of the data path that was in use before nothing stays: a node is wholly in one. Right before the first pass of the
    /// other one, so that endpoints that are here are without one for a moment only.
    fn leave(&mut self, done: &mut Done) -> Result<(), KernelError> {
        let Some(old) = self.memory.leaving() else {
            return Ok(());
        };
        let left = match old {
            Datapath::Ebpf => Ebpf::remains(&self.folders.bpffs)?,
            Datapath::Ipvs => Ipvs::remains(&self.folders.netns)?,
        };
        if left.is_empty() {
            tracing::info!("nothing of data path {} is left", choose::word(old));
            return self.memory.left();
        }
        let old = choose::word(old);
        done.problems
            .extend(left.iter().map(|e| format!("left of data path {old}: {e}")));
        Ok(())
    }

    /// The data path in use, and why.
    pub fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// The next pass reads anew what it trusts itself to have written.
    pub fn forget_mirrors(&mut self) {
        match &mut self.way {
            Way::Ebpf(e) => e.forget_mirrors(),
            Way::Ipvs(i) => i.forget_mirrors(),
        }
    }

    /// The next pass looks at all objects, also at those that should be as they were in the last one.
    pub fn look_again(&mut self) {
        match &mut self.way {
            // It always does.
            Way::Ebpf(_) => {}
            Way::Ipvs(i) => i.look_again(),
        }
    }

    /// How often to ask [`Kernel::is_disturbed`]; none: never.
    pub fn watches(&self) -> bool {
        matches!(self.way, Way::Ipvs(_))
    }

    /// Whether somebody touched what is ours without an event that tells of it.
    pub fn is_disturbed(&mut self) -> bool {
        match &mut self.way {
            Way::Ebpf(_) => false,
            Way::Ipvs(i) => i.is_disturbed(),
        }
    }

    /// Counters of the data path that are not 0.
    pub fn counters(&mut self) -> Result<BTreeMap<String, u64>, KernelError> {
        match &mut self.way {
            Way::Ebpf(e) => e.counters(),
            Way::Ipvs(i) => i.counters(),
        }
    }

    /// Takes everything of ours out of the kernel.
    pub fn unload(&mut self) -> Result<(), KernelError> {
        self.reserve.sync(&BTreeSet::new())?;
        match &mut self.way {
            Way::Ebpf(e) => e.unload()?,
            Way::Ipvs(i) => i.unload()?,
        }
        self.former.give_back(&BTreeMap::new())?;
        Ok(())
    }

    /// One pass. `tell` hears this host's addresses before anything is written: who follows where this node is waits for
    /// no rules, which may be about an address that is gone.
    pub fn pass(
        &mut self,
        inputs: &Inputs,
        intent: &Arc<Intent>,
        facts: &Arc<Facts>,
        endpoints: &BTreeMap<EndpointId, Endpoint>,
        tell: &dyn Fn(&BTreeSet<IpAddr>),
    ) -> Done {
        let mut done = Done::default();
        if let Err(e) = self.try_pass(inputs, intent, facts, endpoints, tell, &mut done) {
            done.problems.push(chain(&e));
        }
        done.places = match &self.way {
            Way::Ebpf(e) => e.places(intent),
            Way::Ipvs(i) => i.places(),
        };
        done
    }

    fn try_pass(
        &mut self,
        inputs: &Inputs,
        intent: &Arc<Intent>,
        facts: &Arc<Facts>,
        endpoints: &BTreeMap<EndpointId, Endpoint>,
        tell: &dyn Fn(&BTreeSet<IpAddr>),
        done: &mut Done,
    ) -> Result<(), KernelError> {
        let vtep = inputs.addresses.borrow().source;
        let seen = host::look(&mut self.rtnl, vtep)?;
        tell(&seen.addresses);
        done.addresses = Some(seen.addresses.clone());
        done.again = self.absence.wait(seen.underlay.is_some(), Instant::now());
        if done.again.is_some() {
            return Ok(());
        }
        let underlay_mtu = match &seen.underlay {
            Some((_, mtu)) => *mtu,
            None => {
                done.problems.push(format!(
                    "no device of this host holds the data-path address {vtep}; try: ip address show, then [datapath] address or [cluster] advertise in netd's configuration"
                ));
                1500
            }
        };
        let here = Here {
            me: inputs.me,
            datapath: self.chosen.datapath,
            vtep,
            vxlan_port: intent.settings.data_path_port,
            underlay_mtu,
            uplinks: seen.uplinks.clone(),
            direct: false,
            addresses: seen.addresses.clone(),
            devices: seen.devices.clone(),
            ifindex: BTreeMap::new(),
        };
        done.notes.extend(view::unreached(intent, facts, &here));
        let published = intent.services.values().flat_map(|s| s.ports.values());
        let mut published: BTreeSet<u16> = published.map(|p| p.spec.published).collect();
        if inputs.only_add {
            published.extend(self.reserve.held());
        }
        match self.reserve.sync(&published) {
            Ok(n) => done.writes += n,
            Err(e) => done.problems.push(chain(&e)),
        }
        if !inputs.only_add {
            self.leave(done)?;
        }
        let mut world = World {
            inputs,
            intent,
            facts,
            endpoints,
            seen,
            former: &mut self.former,
            here,
        };
        match &mut self.way {
            Way::Ebpf(e) => e.pass(&mut world, done),
            Way::Ipvs(i) => i.pass(&mut world, done),
        }
    }
}
