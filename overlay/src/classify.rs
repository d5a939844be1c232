//! Filters at devices (tc's clsact hooks) as data. A filter has no name: it is what it matches and does, at a priority.

use std::fmt;

use ipnet::IpNet;
use model::Mac;

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
    },
    /// The packet's mark (tc's `fw`), not 0.
    Mark(u32),
}

/// What becomes of a packet that matches. It is always the last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Goes on.
    Pass,
    /// Ends here.
    Drop,
    /// Gets a mark and goes on.
    SetMark(u32),
    /// Gets a destination MAC and goes on.
    SetDestination(Mac),
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
            Match::Frame { mac, source } => {
                f.write_str(" flower")?;
                mac.map_or(Ok(()), |m| write!(f, " src_mac {m}"))?;
                source.map_or(Ok(()), |s| write!(f, " src_ip {s}"))?;
            }
            Match::Mark(mark) => write!(f, " fw {mark:#x}")?,
        }
        match self.verdict {
            Verdict::Pass => f.write_str(" pass"),
            Verdict::Drop => f.write_str(" drop"),
            Verdict::SetMark(mark) => write!(f, " mark {mark:#x}"),
            Verdict::SetDestination(mac) => write!(f, " dst_mac {mac}"),
        }
    }
}
