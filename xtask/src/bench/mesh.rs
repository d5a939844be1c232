//! `cargo xtask bench mesh`: client -> published port on n1 -> backend on n2.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use lab::wire::{self, Tally};
use lab::{Lab, Options, eventually};

use super::figure::Figure;
use super::{Effort, direct};
use crate::ui;

/// Metric, `lab-tool load`'s word for it, unit.
pub(super) const METRICS: [(&str, &str, &str); 3] = [
    ("short", "short", "conn/s"),
    ("requests", "requests", "requests/s"),
    ("bulk", "bulk", "Gbit/s"),
];

/// One of those that are measured in turns.
pub(super) struct Side {
    pub(super) lab: Lab,
    /// What the client asks.
    pub(super) target: String,
}

pub(super) fn run(programs: &Path, effort: Effort, baseline: bool) -> anyhow::Result<Vec<Figure>> {
    let (own, direct) = ui::during("two labs with the same hops", || {
        let own = if baseline {
            let (lab, target) = direct::lab("bench-second", programs)?;
            Side { lab, target }
        } else {
            netd("bench-netd", programs)?
        };
        let (lab, target) = direct::lab("bench-direct", programs)?;
        Ok((own, Side { lab, target }))
    })?;
    let contender = if baseline { "direct (itself)" } else { "direct" };
    let mut figures = Vec::new();
    for (metric, load, unit) in METRICS {
        let rounds = ui::during(metric, || {
            // Once each, thrown away: caches, neighbours and the CPU's clock are warm for both.
            measure(&own, load, 0.3)?;
            measure(&direct, load, 0.3)?;
            let mut rounds = Vec::new();
            for round in 0..effort.rounds {
                // Who comes first changes, so that a drift of the machine favours nobody.
                let pair = if round % 2 == 0 {
                    let own = measure(&own, load, effort.seconds)?;
                    (own, measure(&direct, load, effort.seconds)?)
                } else {
                    let other = measure(&direct, load, effort.seconds)?;
                    (measure(&own, load, effort.seconds)?, other)
                };
                eprintln!(
                    "    {metric}: {:.2} against {:.2} {unit}: {:.3}",
                    pair.0,
                    pair.1,
                    pair.0 / pair.1
                );
                rounds.push(pair);
            }
            Ok(rounds)
        })?;
        figures.extend(Figure::from_rounds("mesh", metric, contender, unit, &rounds));
    }
    Ok(figures)
}

pub(super) fn measure(side: &Side, load: &str, seconds: f64) -> anyhow::Result<f64> {
    let figure: wire::Figure = side
        .lab
        .client()?
        .run(&[
            "lab-tool",
            "load",
            load,
            "--to",
            &side.target,
            "--duration",
            &seconds.to_string(),
        ])?
        .json()?;
    // A failed connection costs its time limit: such a round is no measurement.
    anyhow::ensure!(
        figure.failed == 0,
        "{} of {} tries failed",
        figure.failed,
        figure.failed + figure.count
    );
    Ok(figure.per_second)
}

/// Two nodes with netd; the backend is a namespace on n2, published through n1.
pub(super) fn netd(name: &str, programs: &Path) -> anyhow::Result<Side> {
    let lab = Lab::new(
        name,
        Options {
            nodes: 2,
            clients: 1,
            bin_dir: Some(programs.to_owned()),
            ..Options::default()
        },
    )?;
    lab.form_cluster()?;
    let (n1, n2) = (lab.host("n1")?, lab.host("n2")?);
    n1.netctl("network create bench --subnet 10.88.0.0/16")?.ok()?;
    n1.netctl("service create web --network bench --replicas 0")?.ok()?;
    let backend = n2.attach("backend", "bench", Some("web"))?;
    n2.serve_in_netns(&backend.netns, "server", &["lab-tool", "serve", "--port", "80"])?;
    n1.netctl("service publish web 80")?.ok()?;
    let target = n1.at(80);
    eventually("the published port to answer", Duration::from_secs(10), || {
        let tally: Tally = lab
            .client()?
            .run(&["lab-tool", "tally", "--to", &target, "-n", "3", "--timeout-ms", "300"])?
            .json()?;
        anyhow::ensure!(tally.ok() == 3, "{tally}");
        Ok(true)
    })
    .context("netd's side")?;
    Ok(Side { lab, target })
}
