//! The packet filter of the IPVS data path: rules of one namespace, in nf_tables or in iptables.
//!
//! Which of the two is asked of the kernel ([`Firewall::open`]), not of the programs that are installed. Both hold the same
//! [`Rules`]; what is there is looked at first and nothing is written when it is as it should be. nf_tables: table
//! `inet netd`, by netlink, each change one transaction. iptables: chains `NETD-*`, one run of
//! `iptables-legacy-restore --noflush` for the tables of a family that differ; a table is replaced at once, several are not. Filters
//! that refuse come first then, translations last.
//!
//! What others have is neither read into ours nor written: their tables, chains and rules stay as they are. One of our names
//! that is somebody else's is refused. What others do to ours is seen by [`Firewall::changed`] and mended by the next
//! [`Firewall::apply`].

mod error;
mod iptables;
mod nft;
mod obstacle;
#[cfg(test)]
mod tests;
mod watch;

use std::os::fd::BorrowedFd;

use mesh::lower::ipvs::rules::Rules;

use self::watch::Watch;
pub use self::{error::FirewallError, obstacle::Obstacle};
use crate::netns::{self, Netns};

/// Which of the kernel's packet filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// nf_tables, over netlink.
    Nftables,
    /// iptables-legacy, by its own programs.
    Iptables,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Nftables => "nf_tables",
            Kind::Iptables => "iptables-legacy",
        })
    }
}

/// The rules of one namespace.
pub struct Firewall {
    netns: Netns,
    backend: Backend,
    lacks: Option<FirewallError>,
}

enum Backend {
    /// With what tells of changes since before the first look.
    Nft(nft::Nft, Watch),
    Iptables(iptables::Iptables),
}

impl Firewall {
    /// For a namespace, with what its kernel has. Nothing is written.
    pub fn open(netns: &Netns) -> Result<Self, FirewallError> {
        let lacks = netns::run_in(netns, nft::lacks)??;
        let kind = if lacks.is_none() {
            Kind::Nftables
        } else {
            Kind::Iptables
        };
        let opened = Self::open_as(netns, kind)?;
        Ok(Firewall { lacks, ..opened })
    }

    /// For a namespace, with this one.
    pub fn open_as(netns: &Netns, kind: Kind) -> Result<Self, FirewallError> {
        Ok(Firewall {
            netns: netns.try_clone()?,
            backend: match kind {
                Kind::Nftables => {
                    let (watch, nft) = netns::run_in(netns, || (Watch::events(), nft::Nft::open()))?;
                    Backend::Nft(nft?, watch?)
                }
                Kind::Iptables => Backend::Iptables(iptables::Iptables::default()),
            },
            lacks: None,
        })
    }

    /// Which one it is.
    pub fn kind(&self) -> Kind {
        match self.backend {
            Backend::Nft(..) => Kind::Nftables,
            Backend::Iptables(_) => Kind::Iptables,
        }
    }

    /// What nf_tables lacks here, where that is why it is not used.
    pub fn why_not_nftables(&self) -> Option<&FirewallError> {
        self.lacks.as_ref()
    }

    /// Whether a rule can name a port of SCTP here. A rule that the filter has no match for stops all others too.
    pub fn matches_sctp(&self) -> Result<bool, FirewallError> {
        match self.backend {
            Backend::Nft(..) => Ok(true),
            Backend::Iptables(_) => netns::run_in(&self.netns, iptables::matches_sctp)?,
        }
    }

    /// Chains of others that drop what ours let pass. With iptables there are none: our rules are in the chain itself.
    pub fn obstacles(&self) -> Result<Vec<Obstacle>, FirewallError> {
        match self.backend {
            Backend::Nft(..) => netns::run_in(&self.netns, obstacle::find)?,
            Backend::Iptables(_) => Ok(Vec::new()),
        }
    }

    /// Makes the namespace hold `rules` and no others of ours. `Ok(false)`: it did, nothing was written.
    pub fn apply(&mut self, rules: &Rules) -> Result<bool, FirewallError> {
        match &mut self.backend {
            Backend::Nft(nft, _) => nft.apply(rules),
            Backend::Iptables(iptables) => netns::run_in(&self.netns, || iptables.apply(rules))?,
        }
    }

    /// Leaves nothing of ours. `Ok(false)`: there was nothing.
    pub fn remove(&mut self) -> Result<bool, FirewallError> {
        match &mut self.backend {
            Backend::Nft(nft, _) => nft.remove(),
            Backend::Iptables(iptables) => netns::run_in(&self.netns, || iptables.remove())?,
        }
    }

    /// Leaves nothing of ours in the other filter, where a kernel that had less, or more, was told. `Ok(false)`: there was
    /// nothing. iptables' programs are run only if somebody uses its tables.
    pub fn remove_other(&mut self) -> Result<bool, FirewallError> {
        let other = match self.backend {
            Backend::Nft(..) => netns::run_in(&self.netns, iptables::Iptables::remove_if_used)?,
            Backend::Iptables(_) => netns::run_in(&self.netns, || nft::Nft::open()?.remove())?,
        };
        match other {
            Err(FirewallError::Missing { .. }) => Ok(false),
            other => other,
        }
    }

    /// Whether anything of ours is there, right or not.
    pub fn is_there(&mut self) -> Result<bool, FirewallError> {
        match &mut self.backend {
            Backend::Nft(nft, _) => nft.is_there(),
            Backend::Iptables(iptables) => netns::run_in(&self.netns, || iptables.is_there())?,
        }
    }

    /// Whether something happened to our rules since it was asked last. What happens after the look of the last
    /// [`Firewall::apply`] is not missed; our own writes may be told too, and then `apply` finds nothing to do. It does not
    /// block and may be called from any thread.
    pub fn changed(&mut self) -> Result<bool, FirewallError> {
        match &mut self.backend {
            Backend::Nft(_, watch) => watch.changed(),
            Backend::Iptables(iptables) => iptables.changed(),
        }
    }

    /// What can be read when there may have been a change; `None`: ask every few hundred milliseconds.
    pub fn readable(&self) -> Option<BorrowedFd<'_>> {
        match &self.backend {
            Backend::Nft(_, watch) => watch.readable(),
            Backend::Iptables(_) => None,
        }
    }
}
