//! How long the kernel takes to be told: services from nothing, and one backend that changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::{Effort, Figure};

/// The example of crate `kernel` that does it.
pub(super) const LOAD: &str = "ipvs_load";
/// Backends of each service.
pub(super) const BACKENDS: &str = "10";

/// Services, scheduler, and the names of what is told: all of them from nothing, and one change.
const SIZES: [(&str, &str, Option<&str>, &str); 4] = [
    ("100", "rr", None, "change_100_ms"),
    ("1000", "rr", None, "change_1k_ms"),
    ("10000", "rr", Some("program_10k_s"), "change_10k_ms"),
    ("1000", "mh", Some("program_1k_mh_s"), "change_1k_mh_ms"),
];

pub(super) fn run(programs: &Path, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let load = programs.join("examples").join(LOAD);
    let mut figures = Vec::new();
    for (services, scheduler, program, change) in SIZES {
        let what = format!("{services} services of {BACKENDS} backends, {scheduler}");
        let (mut programmed, mut changed) = (Vec::new(), Vec::new());
        crate::ui::during(&what, || {
            for _ in 0..effort.rounds {
                let said = said_by(&load, &[services, BACKENDS, scheduler])?;
                programmed.push(value(&said, "program_s")?);
                changed.push(value(&said, "change_us")? / 1000.0);
            }
            Ok(())
        })?;
        figures.extend(program.map(|metric| Figure::own("ipvs", metric, "s", &programmed)));
        figures.push(Figure::own("ipvs", change, "ms", &changed));
    }
    Ok(figures)
}

/// The `key=value` lines of a program.
fn said_by(program: &Path, words: &[&str]) -> anyhow::Result<BTreeMap<String, String>> {
    let out = Command::new(program)
        .args(words)
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    ensure!(
        out.status.success(),
        "{} {} ended with {}: {}",
        program.display(),
        words.join(" "),
        out.status,
        String::from_utf8_lossy(&out.stderr).trim_end()
    );
    Ok(pairs(&String::from_utf8_lossy(&out.stdout)))
}

/// `key=value` lines.
pub(super) fn pairs(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

pub(super) fn value(said: &BTreeMap<String, String>, key: &str) -> anyhow::Result<f64> {
    let text = said.get(key).with_context(|| format!("{key} is not told"))?;
    text.parse().with_context(|| format!("{key}={text} is no number"))
}
