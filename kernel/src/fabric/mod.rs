//! Makes the overlay's plans real: reads what exists, carries out steps (`overlay` decides, nothing is decided here).
//!
//! ```text
//! want(desired, abilities()) -> Wanted -> observe(&wanted) -> Observed -> plan() -> apply(&plan) -> Report
//! ```
//!
//! [`reconcile`] goes through all of it. Everything is safe to repeat, and safe to be killed in.

mod apply;
mod carrier;
mod observe;
mod sandbox;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use overlay::{Abilities, Desired, Observed, Plan, Step, Wanted};

pub use self::{apply::apply, observe::observe};
use crate::{
    netfilter::FilterError,
    netlink::{NetlinkError, Refusal},
    netns::NetnsError,
    rtnl::{
        RtnlError,
        tc::{self, Lack},
    },
    sysctl::{self, SysctlError},
};

/// The host's own namespace could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// Links, addresses, routes.
    #[error("cannot read the network of the host")]
    Rtnl(#[from] RtnlError),
    /// Settings.
    #[error("cannot read the settings of the host")]
    Sysctl(#[from] SysctlError),
    /// Packet filter.
    #[error("cannot read the packet filter of the host")]
    Filter(#[from] FilterError),
    /// The host's namespace itself.
    #[error("cannot look at the namespace of the host")]
    Netns(#[from] NetnsError),
    /// Folder of the sandboxes.
    #[error("cannot list {path}; try: run as root")]
    Folder {
        /// Where.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The kernel said no.
    #[error("{0}")]
    Refused(Refusal),
    /// No answer.
    #[error("rtnetlink failed")]
    Rtnl(#[from] RtnlError),
    /// The namespace cannot be entered.
    #[error("the namespace cannot be used")]
    Netns(#[from] NetnsError),
    /// A setting.
    #[error("the setting cannot be written")]
    Sysctl(#[from] SysctlError),
    /// The packet filter.
    #[error("the packet filter cannot be written")]
    Filter(#[from] FilterError),
    /// The device that it is about is not there.
    #[error("there is no device {0}; try: wait, it is made again when it is wanted")]
    NoLink(String),
    /// A step that it builds on failed, and stands before it among the failures.
    #[error("left out, because {0} could not be made")]
    Skipped(String),
}

impl From<NetlinkError> for StepError {
    fn from(e: NetlinkError) -> Self {
        match e {
            NetlinkError::Refused(r) => StepError::Refused(r),
            other => StepError::Rtnl(other.into()),
        }
    }
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Report {
    /// Steps carried out.
    pub done: usize,
    /// Steps that failed, with the reason.
    pub failed: Vec<(Step, StepError)>,
}

/// What exists, and what could not be looked at.
#[derive(Debug)]
pub struct Survey {
    /// What exists.
    pub observed: Observed,
    /// Namespaces that are there but could not be read: nothing about them changes until they can.
    pub unreadable: Vec<(PathBuf, StepError)>,
}

/// One round.
#[derive(Debug)]
pub struct Round {
    /// What was wanted.
    pub wanted: Wanted,
    /// What had to be done, what stood in the way, what is gone.
    pub plan: Plan,
    /// What became of it.
    pub report: Report,
    /// What exists now; `overlay::rows` takes the devices' indices from here.
    pub survey: Survey,
}

impl Round {
    /// The kernel is as wanted: nothing failed, stands in the way, or could not be read.
    pub fn is_clean(&self) -> bool {
        self.report.failed.is_empty()
            && self.plan.conflicts.is_empty()
            && self.survey.unreadable.is_empty()
            && self.wanted.refused.is_empty()
    }
}

/// What this kernel can do, as far as it changes what is wanted.
pub fn abilities() -> Abilities {
    let has = |key| sysctl::read(key).is_ok_and(|v| v.is_some());
    Abilities {
        ipv6: has("net/ipv6/conf/all/forwarding"),
        force_forwarding: has("net/ipv6/conf/all/force_forwarding"),
    }
}

/// What this kernel lacks for the shape that it routes by itself ([`overlay::routed`]). Empty: nothing. Modules are loaded
/// by asking, where the host lets the kernel do so.
pub fn routed_lacks() -> Result<Vec<Lack>, RtnlError> {
    let mut lacks = tc::lacks()?;
    if !abilities().ipv6 {
        // A gateway is an IPv6 address, also for IPv4.
        lacks.push(Lack {
            what: "IPv6",
            option: "CONFIG_IPV6, and no ipv6.disable=1",
            module: "ipv6",
        });
    }
    Ok(lacks)
}

/// Which of the two shapes, and where sandboxes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape<'a> {
    /// For the eBPF programs. Sandboxes that the other shape left in the folder are removed.
    Programs {
        /// Folder of the namespaces' files.
        folder: &'a Path,
    },
    /// Routed by the kernel, for IPVS. The packet filter is not this plan's.
    Routed {
        /// Folder of the namespaces' files.
        folder: &'a Path,
        /// [`routed_lacks`] was empty; with `false` nobody checks who sends, so it is for tests alone.
        classifiers: bool,
    },
}

impl Shape<'_> {
    /// What `desired` is in this shape, on this kernel; for [`reconcile_wanted`].
    pub fn want(&self, desired: &Desired) -> Wanted {
        match *self {
            Shape::Programs { folder } => Wanted {
                sandbox_folder: Some(folder.to_owned()),
                ..overlay::want(desired, abilities())
            },
            Shape::Routed { folder, classifiers } => {
                let setting = overlay::routed::Setting {
                    folder,
                    abilities: abilities(),
                    ipvs: sysctl::read("net/ipv4/vs/conntrack").is_ok_and(|v| v.is_some()),
                    classifiers,
                };
                overlay::routed::want(desired, &setting)
            }
        }
    }
}

/// Brings the calling thread's namespace, as the host's, and the tasks' to what is desired. When nothing is to be done
/// nothing is written, and the tables are read once.
pub fn reconcile(desired: &Desired) -> Result<Round, ObserveError> {
    round(overlay::want(desired, abilities()), None, Extent::All)
}

/// As [`reconcile`], but only what is missing is added: for a view that may be older than what the kernel holds.
pub fn complete(desired: &Desired) -> Result<Round, ObserveError> {
    round(overlay::want(desired, abilities()), None, Extent::Additions)
}

/// As [`reconcile`], for an endpoint that has just come: of the tasks' namespaces only these are read and changed, so that
/// the cost does not grow with the number of those that stand already. `desired` is the whole all the same.
pub fn reconcile_tasks(desired: &Desired, only: &BTreeSet<PathBuf>) -> Result<Round, ObserveError> {
    round(overlay::want(desired, abilities()), Some(only), Extent::All)
}

/// As [`reconcile`], [`complete`] and [`reconcile_tasks`], for what [`Shape::want`] wants.
pub fn reconcile_wanted(
    wanted: Wanted,
    only: Option<&BTreeSet<PathBuf>>,
    extent: Extent,
) -> Result<Round, ObserveError> {
    round(wanted, only, extent)
}

/// How much of a plan is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    All,
    /// What only adds.
    Additions,
}

fn round(wanted: Wanted, only: Option<&BTreeSet<PathBuf>>, extent: Extent) -> Result<Round, ObserveError> {
    let survey = observe(&wanted, only)?;
    let plan = overlay::plan(&wanted, &survey.observed);
    let plan = match extent {
        Extent::All => plan,
        Extent::Additions => plan.additions(&survey.observed),
    };
    if plan.is_empty() {
        return Ok(Round {
            wanted,
            plan,
            report: Report::default(),
            survey,
        });
    }
    let report = apply(&plan);
    let survey = observe(&wanted, only)?;
    Ok(Round {
        wanted,
        plan,
        report,
        survey,
    })
}

#[cfg(test)]
mod tests;
