//! Connections at a steady rate beside what is shown or measured.

use std::time::Duration;

use anyhow::Context;
use lab::wire::Tally;
use lab::{Host, Process};

/// Connections a second while something changes.
pub(crate) const RATE: u32 = 50;

/// Connections to `to` for so many seconds, each with a time limit of 1 s; returns once they flow. `name`: of its log.
pub(crate) fn steady(client: &Host, name: &str, to: &str, seconds: u32) -> anyhow::Result<Process> {
    let (rate, seconds) = (RATE.to_string(), seconds.to_string());
    let argv = [
        "lab-tool",
        "tally",
        "--announce",
        "--to",
        to,
        "--rate",
        &rate,
        "--duration",
        &seconds,
    ];
    let mut load = client.spawn(name, &argv)?;
    load.line("ready", Duration::from_secs(5))?;
    Ok(load)
}

/// Waits for its end; what became of them.
pub(crate) fn finish(load: &mut Process) -> anyhow::Result<Tally> {
    let out = load.wait(Duration::from_secs(60))?;
    let json = out
        .stdout
        .lines()
        .find(|l| l.starts_with('{'))
        .with_context(|| format!("no report in: {}", out.stdout))?;
    serde_json::from_str(json).context("reading the tally")
}
