//! What the kernel's IPVS can do, by trying it: distributions build and split its modules as they like.

use std::{collections::BTreeSet, fmt};

use mesh::ipvs::{Family, MARK_BASE, SchedFlags, Scheduler, ServiceKey, Settings, Step};

use super::{Ipvs, IpvsError, StepError, read};
use crate::netns;

/// What IPVS offers on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abilities {
    /// Its version: major, minor, patch.
    pub version: (u8, u8, u8),
    /// Rows of the table of connections (`ip_vs.conn_tab_bits`); more connections than that make it slower.
    pub table_rows: u32,
    /// Schedulers of [`Scheduler::ALL`] that work.
    pub schedulers: BTreeSet<Scheduler>,
    /// IPv6 is balanced too.
    pub ipv6: bool,
}

impl fmt::Display for Abilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = self.version;
        write!(f, "IPVS {major}.{minor}.{patch} with")?;
        for scheduler in &self.schedulers {
            write!(f, " {scheduler}")?;
        }
        f.write_str(if self.ipv6 { ", IPv4 and IPv6" } else { ", IPv4 alone" })
    }
}

/// Asks the kernel, in a namespace of its own that is gone again: modules are loaded where the kernel can, nothing else
/// changes.
///
/// # Errors
/// [`IpvsError::Missing`] where there is no IPVS.
pub fn probe() -> Result<Abilities, IpvsError> {
    // Told apart first, and without a new namespace: most hosts that are asked have none.
    let mut ipvs = Ipvs::open()?;
    let (version, table_rows) = read::version(&mut ipvs.0)?;
    let (schedulers, ipv6) = netns::run_in_new(try_out)??;
    Ok(Abilities {
        version,
        table_rows,
        schedulers,
        ipv6,
    })
}

fn try_out() -> Result<(BTreeSet<Scheduler>, bool), IpvsError> {
    let mut ipvs = Ipvs::open()?;
    let mut make = |scheduler, family| {
        let key = ServiceKey {
            mark: MARK_BASE,
            family,
        };
        let settings = Settings {
            scheduler,
            flags: SchedFlags::default(),
            timeout: 0,
        };
        let steps = [
            Step::SetService {
                key,
                settings,
                new: true,
            },
            Step::RemoveService { key },
        ];
        let report = ipvs.apply(&steps);
        match report.failed.into_iter().next() {
            None => Ok(true),
            Some((_, StepError::NoScheduler(_) | StepError::NoIpv6)) => Ok(false),
            Some((_, StepError::Unknown(source))) => Err(IpvsError::Netlink {
                doing: "try out a service",
                source,
            }),
            // Whatever it is, such a service cannot be made here.
            Some((step, e)) => {
                tracing::warn!(?step, "{e}");
                Ok(false)
            }
        }
    };
    let mut schedulers = BTreeSet::new();
    for scheduler in Scheduler::ALL {
        if make(scheduler, Family::V4)? {
            schedulers.insert(scheduler);
        }
    }
    Ok((schedulers, make(Scheduler::None, Family::V6)?))
}
