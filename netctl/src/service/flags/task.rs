//! What a task is: its command's surroundings, its life.

use std::{collections::BTreeSet, str::FromStr, time::Duration};

use clap::Args;
use model::{ApiError, Name, ServiceSpec};

use super::twice;
use crate::cli::duration;

#[derive(Debug, Args)]
pub(super) struct TaskFlags {
    /// Network to join; may be repeated; default: the network `default`.
    #[arg(long = "network", value_name = "NAME")]
    networks: Vec<Name>,
    /// Number of tasks; default: 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    replicas: Option<u32>,
    /// Environment of the command; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<Env>,
    /// Between SIGTERM and SIGKILL; default: 10s.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    stop_grace: Option<Duration>,
    /// How long established flows may go on after a task was asked to stop; default: 10s.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    drain_timeout: Option<Duration>,
}

/// `NAME=VALUE`.
#[derive(Debug, Clone)]
pub(crate) struct Env(pub(crate) String, pub(crate) String);

impl FromStr for Env {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('=') {
            Some((k, v)) if !k.is_empty() => Ok(Env(k.to_owned(), v.to_owned())),
            _ => Err(format!("{s:?} is not NAME=VALUE; try: --env LEVEL=debug")),
        }
    }
}

/// Milliseconds; the parser's bound of a year keeps them far below the limit.
pub(super) fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl TaskFlags {
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), ApiError> {
        let mut seen = BTreeSet::new();
        for Env(k, v) in &self.env {
            if !seen.insert(k) {
                return Err(twice(&format!("--env {k}"), v));
            }
            spec.env.insert(k.clone(), v.clone());
        }
        if !self.networks.is_empty() {
            spec.networks.clone_from(&self.networks);
        }
        spec.replicas = self.replicas.unwrap_or(spec.replicas);
        spec.stop_grace_ms = self.stop_grace.map_or(spec.stop_grace_ms, ms);
        spec.drain_timeout_ms = self.drain_timeout.map_or(spec.drain_timeout_ms, ms);
        Ok(())
    }
}
