//! How a service is balanced.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::ids::BadValue;

/// Who of a service's ready tasks gets a new flow. Nodes whose data path is eBPF know `maglev` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lb {
    /// Consistent hashing over the client's address and port: the same task through every node, and few flows that change
    /// when tasks come and go (Maglev, NSDI 2016).
    #[default]
    Maglev,
    /// One after the other.
    Rr,
    /// One after the other, as often as the weights of their nodes say (label `netd.weight`).
    Wrr,
    /// The one with the fewest flows.
    Lc,
    /// The one with the fewest flows by the weight of its node.
    Wlc,
    /// Hashing over the client's address: a client stays with its task.
    Sh,
}

impl Lb {
    /// All of them.
    pub const ALL: [Lb; 6] = [Lb::Maglev, Lb::Rr, Lb::Wrr, Lb::Lc, Lb::Wlc, Lb::Sh];
    /// Label of a node that says which share of new flows its tasks get: 0 to [`Lb::MAX_WEIGHT`], default 1.
    pub const WEIGHT: &str = "netd.weight";
    /// Highest weight.
    pub const MAX_WEIGHT: u16 = u16::MAX;

    /// As it is written.
    pub const fn word(self) -> &'static str {
        match self {
            Lb::Maglev => "maglev",
            Lb::Rr => "rr",
            Lb::Wrr => "wrr",
            Lb::Lc => "lc",
            Lb::Wlc => "wlc",
            Lb::Sh => "sh",
        }
    }
}

impl fmt::Display for Lb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Lb {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        Lb::ALL
            .into_iter()
            .find(|l| l.word() == s)
            .ok_or_else(|| BadValue::new("balancing", s, "is none of maglev, rr, wrr, lc, wlc, sh", "maglev"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for lb in Lb::ALL {
            assert_eq!(lb.to_string().parse(), Ok(lb));
            assert_eq!(serde_json::to_string(&lb).unwrap(), format!("\"{lb}\""));
        }
        assert!("random".parse::<Lb>().unwrap_err().to_string().contains("wlc"));
    }
}
