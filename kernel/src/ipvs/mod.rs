//! IPVS in the calling thread's namespace: what the kernel offers, what is there, and steps carried out.
//!
//! The interface is generic netlink, family `IPVS` (linux/ip_vs.h). Own messages: no crate that speaks it is alive.
//! Only services by a firewall mark of netd's range are seen; those of others, by mark or by address, are not touched.
//!
//! The kernel lists services by their position in one table for all namespaces, a page at a time: while somebody else
//! makes services elsewhere (a Swarm on the same host), one of ours may be passed over or told twice. So a step that says
//! "new" may find its object there, and then changes it. There are no events: foreign changes are found by looking again.

mod genl;
mod message;
mod probe;
mod read;

use mesh::ipvs::{DestKey, Scheduler, ServiceKey, Step, Table};
use nix::errno::Errno;

pub use self::probe::{Abilities, probe};
use self::{genl::Genl, message::Forced};
use crate::{
    netlink::{NetlinkError, Refusal, Request},
    netns::NetnsError,
};

/// Steps that are turned into messages at a time: their octets stay below 200 KiB however long the plan is.
const WINDOW: usize = 1024;

/// IPVS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The kernel does not have it.
    #[error(
        "this kernel has no IPVS: it was built without CONFIG_IP_VS, or its module ip_vs is not there; try: modprobe ip_vs, or [datapath] mode = \"ebpf\""
    )]
    Missing(#[source] NetlinkError),
    /// It may not be used.
    #[error(
        "IPVS may not be used by this process; try: run as root, with CAP_NET_ADMIN in the namespace's user namespace"
    )]
    Denied(#[source] NetlinkError),
    /// The exchange failed.
    #[error("cannot {doing} of IPVS")]
    Netlink {
        /// Verb and object.
        doing: &'static str,
        /// Cause.
        #[source]
        source: NetlinkError,
    },
    /// No namespace to try things in.
    #[error("cannot try out IPVS in a namespace of its own")]
    Scratch(#[from] NetnsError),
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The scheduler is not there; another one has to be taken.
    #[error(
        "IPVS here has no scheduler {0}; try: modprobe ip_vs_{0} (CONFIG_IP_VS_{name}), or another --lb", name = .0.name().to_uppercase()
    )]
    NoScheduler(Scheduler),
    /// No IPv6.
    #[error(
        "IPVS here does not balance IPv6; try: a kernel with CONFIG_IP_VS_IPV6 that was not booted with ipv6.disable=1"
    )]
    NoIpv6,
    /// The service is not there: a step before could not make it, or somebody removed it.
    #[error(
        "there is no IPVS service of {0}; try: wait, it is made again when IPVS is looked at next; else see who runs ipvsadm"
    )]
    NoService(ServiceKey),
    /// The backend is not there: somebody removed it.
    #[error(
        "IPVS service of {0} has no backend {1}; try: wait, it is made again when IPVS is looked at next; else see who runs ipvsadm"
    )]
    NoDest(ServiceKey, DestKey),
    /// The backend's address cannot be one.
    #[error(
        "{0} cannot be a backend: the kernel takes unicast addresses that are not link-local alone; try: netctl endpoint inspect"
    )]
    BadAddress(DestKey),
    /// The kernel said no.
    #[error("IPVS refused: {0}; try: dmesg, where IPVS tells more")]
    Refused(Refusal),
    /// No answer, or none that can be read: it may have been carried out.
    #[error("IPVS was told, and what it made of it is not known")]
    Unknown(#[source] NetlinkError),
    /// A step before had no answer.
    #[error("left out, because the step before had no answer")]
    Skipped,
}

/// What was counted since services were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Flows.
    pub flows: u64,
    /// Packets to backends.
    pub packets_in: u64,
    /// Packets from backends.
    pub packets_out: u64,
    /// Octets to backends.
    pub octets_in: u64,
    /// Octets from backends.
    pub octets_out: u64,
}

impl std::ops::AddAssign for Counted {
    fn add_assign(&mut self, other: Counted) {
        self.flows += other.flows;
        self.packets_in += other.packets_in;
        self.packets_out += other.packets_out;
        self.octets_in += other.octets_in;
        self.octets_out += other.octets_out;
    }
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Report {
    /// Steps carried out, those included that found their object gone or there already.
    pub done: usize,
    /// Steps that failed, with the reason.
    pub failed: Vec<(Step, StepError)>,
}

impl Report {
    /// The schedulers that were asked for and are not there.
    pub fn missing_schedulers(&self) -> impl Iterator<Item = (ServiceKey, Scheduler)> + '_ {
        self.failed.iter().filter_map(|(step, error)| match (step, error) {
            (Step::SetService { key, .. }, StepError::NoScheduler(s)) => Some((*key, *s)),
            _ => None,
        })
    }
}

/// A way to the IPVS of one namespace: the one that the thread was in when it was opened. It keeps that namespace alive.
pub struct Ipvs(Genl);

impl Ipvs {
    /// Opens it, loading the module `ip_vs` where the kernel can.
    ///
    /// # Errors
    /// The kernel has no IPVS.
    pub fn open() -> Result<Self, IpvsError> {
        Genl::open().map(Ipvs)
    }

    /// What is there of netd's.
    ///
    /// # Errors
    /// The kernel does not tell; nothing is known then.
    pub fn observe(&mut self) -> Result<Table, IpvsError> {
        read::table(&mut self.0)
    }

    /// What was counted for netd's services that are there now; the kernel adds it up every 2 s
    /// (net/netfilter/ipvs/ip_vs_est.c).
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn counted(&mut self) -> Result<Counted, IpvsError> {
        read::counted(&mut self.0)
    }

    /// Carries out steps in order. One that fails stops none of the others, except where no answer came at all.
    pub fn apply(&mut self, steps: &[Step]) -> Report {
        let mut report = Report::default();
        let mut windows = steps.chunks(WINDOW);
        for window in windows.by_ref() {
            if let Err(e) = self.window(window, &mut report) {
                let mut first = Some(e);
                let each = |step: &Step| (*step, first.take().map_or(StepError::Skipped, StepError::Unknown));
                report.failed.extend(window.iter().map(each));
                break;
            }
        }
        report
            .failed
            .extend(windows.flatten().map(|step| (*step, StepError::Skipped)));
        report
    }

    fn window(&mut self, window: &[Step], report: &mut Report) -> Result<(), NetlinkError> {
        let family = self.0.family();
        let requests: Vec<Request> = window.iter().map(|s| message::step(family, s, Forced::No)).collect();
        let results = self.0.execute(&requests)?;
        let mut there = Vec::new();
        for (step, result) in window.iter().zip(results) {
            match result.map_err(|refusal| judge(step, refusal)) {
                Ok(()) | Err(Judged::Fine) => report.done += 1,
                Err(Judged::There) => there.push(*step),
                Err(Judged::Failed(e)) => report.failed.push((*step, e)),
            }
        }
        if there.is_empty() {
            return Ok(());
        }
        let requests: Vec<Request> = there.iter().map(|s| message::step(family, s, Forced::Change)).collect();
        let results = match self.0.execute(&requests) {
            Ok(results) => results,
            Err(e) => {
                let mut first = Some(e);
                let each = |step| (step, first.take().map_or(StepError::Skipped, StepError::Unknown));
                report.failed.extend(there.into_iter().map(each));
                return Ok(());
            }
        };
        for (step, result) in there.into_iter().zip(results) {
            match result.map_err(|refusal| judge(&step, refusal)) {
                Ok(()) | Err(Judged::Fine | Judged::There) => report.done += 1,
                Err(Judged::Failed(e)) => report.failed.push((step, e)),
            }
        }
        Ok(())
    }
}

/// What a refusal means.
enum Judged {
    /// It is as it should be.
    Fine,
    /// What should be new is there: it is to be changed.
    There,
    /// It failed.
    Failed(StepError),
}

fn judge(step: &Step, refusal: Refusal) -> Judged {
    let failed = Judged::Failed;
    match (step, refusal.errno) {
        // While a service is filled its scheduler comes in a later step, which would be undone.
        (
            Step::SetService {
                settings, new: true, ..
            },
            Errno::EEXIST,
        ) if settings.scheduler == Scheduler::None => Judged::Fine,
        (Step::SetService { new: true, .. } | Step::SetDest { new: true, .. }, Errno::EEXIST) => Judged::There,
        (Step::RemoveService { .. } | Step::RemoveDest { .. }, Errno::ESRCH | Errno::ENOENT) => Judged::Fine,
        (Step::SetService { settings, .. }, Errno::ENOENT) => failed(StepError::NoScheduler(settings.scheduler)),
        (Step::SetService { key, .. } | Step::SetDest { service: key, .. }, Errno::ESRCH) => {
            failed(StepError::NoService(*key))
        }
        (Step::SetDest { service, dest, .. }, Errno::ENOENT) => failed(StepError::NoDest(*service, *dest)),
        (Step::SetDest { dest, .. }, Errno::EINVAL) => failed(StepError::BadAddress(*dest)),
        (Step::SetService { .. } | Step::SetDest { .. }, Errno::EAFNOSUPPORT) => failed(StepError::NoIpv6),
        _ => failed(StepError::Refused(refusal)),
    }
}

/// Makes the calling thread's namespace hold `wanted`: looks, plans, applies. Nothing is written when nothing differs.
///
/// # Errors
/// The kernel has no IPVS, or does not tell what it holds.
pub fn reconcile(wanted: &Table) -> Result<Report, IpvsError> {
    let mut ipvs = Ipvs::open()?;
    let seen = ipvs.observe()?;
    Ok(ipvs.apply(&mesh::ipvs::plan(&seen, wanted)))
}

#[cfg(test)]
mod tests;
