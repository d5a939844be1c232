//! Clients of a published port that must not notice a change, and releases that tell who answers.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::wire::{Held, Tally};
use lab::{Host, Process};

/// Requests a second of short connections.
const RATE: &str = "500";

/// What the tasks run: the lab's server under a name that tells the release.
pub fn command(host: &Host, release: &str) -> String {
    format!("{} serve --port 80 --one-thread --task {release}", host.tool())
}

/// Clients with short and with long connections, for some seconds at least, and until what happens under them is over.
pub struct Load {
    /// None: long connections alone.
    short: Option<Process>,
    long: Process,
    /// They end when this file is there.
    over: PathBuf,
}

impl Load {
    /// Starts them; they have connected once when this returns.
    ///
    /// # Errors
    ///
    /// When they cannot be run, or nothing answers them.
    pub fn start(client: &Host, name: &str, to: &str, seconds: u32) -> anyhow::Result<Load> {
        let length = seconds.to_string();
        let over = client.folder().join(format!("{name}.over"));
        let until = over.display().to_string();
        // A connection that has ended keeps its port for a minute: by default there are fewer than are made in one.
        let ports = "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range";
        client.run(&["sh", "-c", ports])?.ok()?;
        let mut short = client.spawn(
            &format!("{name}-short"),
            &[
                "lab-tool",
                "tally",
                "--to",
                to,
                "--rate",
                RATE,
                "--duration",
                &length,
                "--until",
                &until,
                "--announce",
            ],
        )?;
        let load = Load::start_long(client, name, to, seconds)?;
        short.line("ready", Duration::from_secs(20))?;
        Ok(Load {
            short: Some(short),
            ..load
        })
    }

    /// As [`Load::start`], with long connections alone.
    ///
    /// # Errors
    ///
    /// As [`Load::start`].
    pub fn start_long(client: &Host, name: &str, to: &str, seconds: u32) -> anyhow::Result<Load> {
        let over = client.folder().join(format!("{name}.over"));
        let (seconds, until) = (seconds.to_string(), over.display().to_string());
        let mut long = client.spawn(
            &format!("{name}-long"),
            &[
                "lab-tool",
                "hold",
                "--to",
                to,
                "--duration",
                &seconds,
                "--until",
                &until,
                "--life",
                "2",
                "--announce",
            ],
        )?;
        long.line("ready", Duration::from_secs(20))?;
        Ok(Load {
            short: None,
            long,
            over,
        })
    }

    /// Whether it still runs: what is to happen under it must happen before it ends, at the latest after ten times its time.
    pub fn runs(&mut self) -> bool {
        let short = self.short.as_mut();
        short.is_none_or(|s| s.ended().is_none()) && self.long.ended().is_none()
    }

    /// Ends them, not before their time: nothing has failed.
    ///
    /// # Errors
    ///
    /// When something has.
    pub fn unharmed(mut self, what: &str) -> anyhow::Result<()> {
        fs::write(&self.over, "").context("ending the load")?;
        let short: Option<Tally> = self.short.as_mut().map(report).transpose()?;
        let long: Held = report(&mut self.long)?;
        println!("{what}: long {long:?}");
        if let Some(short) = short {
            println!("{what}: short {short}, longest gap {} ms", short.longest_gap_ms);
            ensure!(
                short.errors() == 0 && short.tried > 0,
                "{what}: short connections: {short}"
            );
        }
        ensure!(
            long.errors() == 0 && long.requests > 0,
            "{what}: long connections: {long:?}"
        );
        ensure!(
            long.cut == 0,
            "{what}: long connections were cut within the drain timeout: {long:?}"
        );
        Ok(())
    }
}

/// What a client printed last.
fn report<T: serde::de::DeserializeOwned>(process: &mut Process) -> anyhow::Result<T> {
    let done = process.wait(Duration::from_secs(90))?.ok()?;
    let line = done.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("not a report: {}", done.all()))
}

/// Which releases answer.
///
/// # Errors
///
/// When a request is not answered.
pub fn releases(client: &Host, to: &str) -> anyhow::Result<Vec<String>> {
    let seen = crate::all_answered(client, None, &format!("--to {to} -n 60"))?;
    let mut names: Vec<String> = seen
        .answered
        .keys()
        .filter_map(|who| Some(who.split_once('/')?.1.to_owned()))
        .collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}
