//! Filters at devices (tc's clsact hooks) as data. A filter has no name: it is what it matches and does, at a priority.

use std::fmt;

use ipnet::IpNet;
use model::{Mac, Vni};

use crate::{names, objects::MaskedMark};

/// First of the priorities that are netd's; the other filters of a device are somebody else's. `n` and 0.
pub const FIRST_PRIORITY: u16 = 0x6e00;
/// Last of them.
pub const LAST_PRIORITY: u16 = 0x6eff;

/// Direction of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// What it received.
    Ingress,
    /// What it is about to send.
    Egress,
}

/// What a filter looks at. All that is given must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// The frame (tc's `flower`); nothing given: every frame.
    Frame {
        /// Source MAC.
        mac: Option<Mac>,
        /// Source address; only frames of its family match.
        source: Option<IpNet>,
        /// Destination address, of the source's family when both are given.
        destination: Option<IpNet>,
    },
    /// A fragment of a packet.
    Fragment,
    /// The packet's mark (tc's `fw`), not 0. Filters of one priority have one mask.
    Mark(MaskedMark),
}

/// What becomes of a packet that matches. All but [`Verdict::Recall`] are the last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Goes on.
    Pass,
    /// Ends here.
    Drop,
    /// Gets a mark and goes on.
    SetMark(u32),
    /// Gets a destination MAC and no mark, and goes on. (With a mark a tunnel looks its outer route up for each packet.)
    SetDestination(Mac),
    /// Its connection is kept with a mark, also one that is known already (tc's `ct`), and it goes on with a mark of its own.
    Keep {
        /// The connection's.
        connection: u32,
        /// The packet's.
        packet: u32,
    },
    /// Its connection is looked up, and kept; it gets that one's mark, 0 when it is new, and the next filter looks at it.
    Recall,
    /// Leaves at once by a network's VXLAN device, with this source MAC: no route, no packet filter, no IPVS sees it.
    Redirect {
        /// The network.
        tunnel: Vni,
        /// Source MAC.
        source: Mac,
    },
    /// Leaves at once by the veth to the host, to this MAC.
    ToHost(Mac),
}

impl Verdict {
    /// The other device that it needs.
    pub fn device(&self) -> Option<String> {
        match self {
            Verdict::Redirect { tunnel, .. } => Some(names::tunnel(*tunnel)),
            Verdict::ToHost(_) => Some(names::SANDBOX_END.to_owned()),
            _ => None,
        }
    }
}

/// A filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Classifier {
    /// Where.
    pub hook: Hook,
    /// Lower comes first; within [`FIRST_PRIORITY`] and [`LAST_PRIORITY`]. Filters of one priority look at one protocol.
    pub priority: u16,
    /// What it looks at.
    pub on: Match,
    /// What it does.
    pub verdict: Verdict,
}

impl fmt::Display for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            Hook::Ingress => "ingress",
            Hook::Egress => "egress",
        };
        write!(f, "{hook} pref {}", self.priority)?;
        match self.on {
            Match::Frame {
                mac,
                source,
                destination,
            } => {
                f.write_str(" flower")?;
                mac.map_or(Ok(()), |m| write!(f, " src_mac {m}"))?;
                source.map_or(Ok(()), |s| write!(f, " src_ip {s}"))?;
                destination.map_or(Ok(()), |d| write!(f, " dst_ip {d}"))?;
            }
            Match::Fragment => f.write_str(" flower ip_flags frag")?,
            Match::Mark(MaskedMark { value, mask: u32::MAX }) => write!(f, " fw {value:#x}")?,
            Match::Mark(MaskedMark { value, mask }) => write!(f, " fw {value:#x}/{mask:#x}")?,
        }
        match self.verdict {
            Verdict::Pass => f.write_str(" pass"),
            Verdict::Drop => f.write_str(" drop"),
            Verdict::SetMark(mark) => write!(f, " mark {mark:#x}"),
            Verdict::SetDestination(mac) => write!(f, " dst_mac {mac} mark 0x0"),
            Verdict::Keep { connection, packet } => write!(f, " ct commit mark {connection:#x} mark {packet:#x}"),
            Verdict::Recall => f.write_str(" ct commit connmark"),
            Verdict::Redirect { tunnel, source } => {
                write!(f, " src_mac {source} redirect dev {}", names::tunnel(tunnel))
            }
            Verdict::ToHost(mac) => write!(f, " dst_mac {mac} redirect dev {}", names::SANDBOX_END),
        }
    }
}
