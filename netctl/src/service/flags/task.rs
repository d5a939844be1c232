//! What a task is: its command's surroundings, its life.

use std::{collections::BTreeSet, str::FromStr, time::Duration};

use clap::{Args, ValueEnum};
use model::{ApiError, Name, ServiceSpec, spec::Condition};

use super::{health::HealthFlag, twice};
use crate::cli::duration;

#[derive(Debug, Args)]
pub(super) struct TaskFlags {
    /// Network to join; may be repeated; default: the network `default`.
    #[arg(long = "network", value_name = "NAME")]
    networks: Vec<Name>,
    /// Number of tasks; default: 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    replicas: Option<u32>,
    /// Environment of the command; may be repeated. Values may have templates: {{.Service}}, {{.Slot}}, {{.Node}}.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<Pair>,
    /// Host name inside the tasks, with templates, e.g. '{{.Service}}-{{.Slot}}'; "": the node's.
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Label, for people and filters; may be repeated.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<Pair>,
    /// When a task is fit for new flows, and given up: http:PORT/PATH, tcp:PORT or cmd:COMMAND, then
    /// ,interval=5s,timeout=2s,retries=3,start=0s as wanted.
    #[arg(long, value_name = "CHECK", conflicts_with = "no_health")]
    health: Option<HealthFlag>,
    /// No health check: a task is fit when it listens.
    #[arg(long)]
    no_health: bool,
    /// After which ends a task is started again; default: any.
    #[arg(long, value_enum, value_name = "WHEN")]
    restart_condition: Option<When>,
    /// Before a start; while tasks end soon it doubles, up to 30s; default: 100ms.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    restart_delay: Option<Duration>,
    /// Restarts on one node after which another node is tried; 0: no limit, the default.
    #[arg(long, value_name = "N")]
    restart_max_attempts: Option<u32>,
    /// The time that restarts are counted in; 0s: for ever, the default.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    restart_window: Option<Duration>,
    /// Between SIGTERM and SIGKILL; default: 10s.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    stop_grace: Option<Duration>,
    /// How long established flows may go on after a task was asked to stop; default: 10s.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    drain_timeout: Option<Duration>,
}

/// Swarm's words.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum When {
    Any,
    OnFailure,
    None,
}

/// `NAME=VALUE`.
#[derive(Debug, Clone)]
pub(crate) struct Pair(pub(crate) String, pub(crate) String);

impl FromStr for Pair {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('=') {
            Some((k, v)) if !k.is_empty() => Ok(Pair(k.to_owned(), v.to_owned())),
            _ => Err(format!("{s:?} is not NAME=VALUE; try: LEVEL=debug")),
        }
    }
}

/// Milliseconds; the parser's bound of a year keeps them far below the limit.
pub(super) fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl TaskFlags {
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), ApiError> {
        pairs("--env", &self.env, &mut spec.env)?;
        pairs("--label", &self.labels, &mut spec.labels)?;
        if !self.networks.is_empty() {
            spec.networks.clone_from(&self.networks);
        }
        spec.replicas = self.replicas.unwrap_or(spec.replicas);
        if let Some(name) = &self.hostname {
            spec.hostname = Some(name.clone()).filter(|n| !n.is_empty());
        }
        if let Some(HealthFlag(health)) = &self.health {
            spec.health = Some(health.clone());
        } else if self.no_health {
            spec.health = None;
        }
        if let Some(when) = self.restart_condition {
            spec.restart.condition = match when {
                When::Any => Condition::Any,
                When::OnFailure => Condition::OnFailure,
                When::None => Condition::None,
            };
        }
        spec.restart.delay_ms = self.restart_delay.map_or(spec.restart.delay_ms, ms);
        if let Some(n) = self.restart_max_attempts {
            spec.restart.max_attempts = (n > 0).then_some(n);
        }
        spec.restart.window_ms = self.restart_window.map_or(spec.restart.window_ms, ms);
        spec.stop_grace_ms = self.stop_grace.map_or(spec.stop_grace_ms, ms);
        spec.drain_timeout_ms = self.drain_timeout.map_or(spec.drain_timeout_ms, ms);
        Ok(())
    }
}

fn pairs(flag: &str, given: &[Pair], into: &mut std::collections::BTreeMap<String, String>) -> Result<(), ApiError> {
    let mut seen = BTreeSet::new();
    for Pair(k, v) in given {
        if !seen.insert(k) {
            return Err(twice(&format!("{flag} {k}"), v));
        }
        into.insert(k.clone(), v.clone());
    }
    Ok(())
}
