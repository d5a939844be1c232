//! Health checks of tasks, made by the node that runs them, inside their namespace.

use serde::{Deserialize, Serialize};

/// When a task is fit for new flows, and when it is given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// Between two probes, ms; 100 to a day. Before the first success probes come sooner; what counts as a failure lies an
    /// interval apart all the same. Default: 5,000.
    #[serde(default = "Health::interval")]
    pub interval_ms: u64,
    /// How long an answer may take, ms; 1 to a day. Default: 2,000. What hangs longer is ended, and has failed.
    #[serde(default = "Health::timeout")]
    pub timeout_ms: u64,
    /// Failures in a row after which the task is unhealthy: it gets no new flows, and is replaced; 1 to 100. Default: 3.
    #[serde(default = "Health::retries")]
    pub retries: u32,
    /// After its start, for so long, failures do not count, ms; it gets no new flows before the first success either way.
    /// Default: 0.
    #[serde(default)]
    pub start_period_ms: u64,
}

impl Health {
    /// A check with the defaults.
    pub fn of(probe: Probe) -> Health {
        Health {
            probe,
            interval_ms: Health::interval(),
            timeout_ms: Health::timeout(),
            retries: Health::retries(),
            start_period_ms: 0,
        }
    }
    fn interval() -> u64 {
        5_000
    }
    fn timeout() -> u64 {
        2_000
    }
    fn retries() -> u32 {
        3
    }
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// `GET path` on a port of the task: well with an answer from 200 to 399.
    Http {
        /// 1-65535.
        port: u16,
        /// Begins with `/`.
        path: String,
    },
    /// A connection to a port of the task: well when it is accepted.
    Tcp {
        /// 1-65535.
        port: u16,
    },
    /// A command in the task's namespaces and environment: well when it ends with 0.
    Command(Vec<String>),
}
