//! netd's own pass over many services (netd/examples/passes.rs): from nothing, with nothing to do (with a look at all objects,
//! as each ten seconds, and without), and with one backend that changed; then by a process that comes anew and finds all of it, below strace.
//!
//! Beside IPVS a pass is about the overlay (here 20 nodes with the blocks of all backends), the VIPs' routes and the packet
//! filter, whose map of marks is a tree of chains where the kernel has no nf_tables, as this one.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Host, Lab, Options};

use super::program::{BACKENDS, pairs, value};
use super::{Effort, Figure, traced};
use crate::ui;

/// The example of crate `netd` that does it.
pub(super) const LOAD: &str = "passes";
const LIMIT: Duration = Duration::from_secs(900);

/// Services, and their name in figures.
const SIZES: [(&str, &str); 3] = [("100", "100"), ("1000", "1k"), ("10000", "10k")];

pub(super) fn run(programs: &Path, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let sizes = SIZES.get(..if effort.quick { 2 } else { 3 }).unwrap_or_default();
    for (services, name) in sizes {
        let [mut first, mut look, mut again, mut change, mut writes] = [const { Vec::new() }; 5];
        let what = format!("netd's passes over {services} services of {BACKENDS} backends, rr");
        ui::during(&what, || {
            for _ in 0..effort.rounds {
                let lab = lab(programs)?;
                let host = lab.host("n1")?;
                let said = passes(programs, host, services, &[])?;
                first.push(value(&said, "first_s")?);
                look.push(value(&said, "look_ms")?);
                again.push(value(&said, "again_ms")?);
                change.push(value(&said, "change_ms")?);
                let idle = value(&said, "again_writes")?;
                ensure!(idle == 0.0, "{idle} writes with nothing to do");
                writes.push(restarted(programs, host, services)?);
            }
            Ok(())
        })?;
        figures.extend([
            Figure::own("ipvs", format!("pass_first_{name}_s"), "s", &first),
            Figure::own("ipvs", format!("pass_look_{name}_ms"), "ms", &look),
            Figure::own("ipvs", format!("pass_idle_{name}_ms"), "ms", &again),
            Figure::own("ipvs", format!("pass_change_{name}_ms"), "ms", &change),
            Figure::own("ipvs", format!("pass_restart_{name}_writes"), "writes", &writes),
        ]);
    }
    Ok(figures)
}

/// One host, with nothing on it.
fn lab(programs: &Path) -> anyhow::Result<Lab> {
    Lab::new(
        "bench-passes",
        Options {
            nodes: 1,
            clients: 0,
            bin_dir: Some(programs.to_owned()),
            ..Options::default()
        },
    )
}

type Said = std::collections::BTreeMap<String, String>;

/// Runs the passes on a host; `before`: words before the program's.
fn passes(programs: &Path, host: &Host, services: &str, before: &[&str]) -> anyhow::Result<Said> {
    let load = programs.join("examples").join(LOAD).display().to_string();
    let (folder, vtep) = (host.folder().display().to_string(), host.v4().to_string());
    let mut argv = before.to_vec();
    argv.extend([&*load, &folder, &vtep, services, BACKENDS, "rr"]);
    let mut process = host.spawn(LOAD, &argv)?;
    let said = process.wait(LIMIT)?.ok().with_context(|| argv.join(" "))?;
    Ok(pairs(&said.stdout))
}

/// Writes of a process that finds all of it there, before it changes anything.
fn restarted(programs: &Path, host: &Host, services: &str) -> anyhow::Result<f64> {
    let trace = host.folder().join("passes.strace").display().to_string();
    let mut before = traced::words(&trace);
    before.extend(["env", "NETD_PASSES=again"]);
    let said = passes(programs, host, services, &before)?;
    let told = traced::read(&std::fs::read_to_string(&trace).with_context(|| format!("reading {trace}"))?);
    ensure!(told.reads > 0, "strace saw no question either");
    let own = value(&said, "first_writes")? + value(&said, "again_writes")?;
    eprintln!(
        "    again: {} writes and {} questions seen by strace, {own} writes by netd's own count; {} things tried \
         out; programs: {:?}; {:?}",
        told.written(),
        told.reads,
        told.tried,
        told.programs,
        told.writes
    );
    #[allow(clippy::cast_precision_loss, reason = "a count for people")]
    Ok(told.written() as f64)
}
