//! Both data paths on Debian's stock Linux 6.1, which is what a user's machine runs, and not what a developer's does.
//!
//! The eBPF programs are asked about by the verifier of an older kernel, which has no tcx and knows fewer flags; and nowhere
//! else in these tests are IPVS and nf_tables in one kernel, and both data paths on one host. A guest has this machine's
//! files, as in lane `ipvs`, and two emulated CPUs, each about a tenth of this machine's.

mod archive;
mod guest;
mod initramfs;
mod linux;
mod modules;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;

use super::init::quoted;
use super::ipvs::{What, visible};
use super::programs;
use super::several::{self, Work};
use crate::build::{self, Profile};
use crate::packages;

/// Which kernel.
const SERIES: &str = "6.1.";
/// Which tests of crate `kernel`, by what their names begin with, and options for them. Each part has a guest of its own.
const KERNEL: [(&str, &str, &str); 4] = [
    ("bpf", "bpf::", ""),
    // Some are ignored where they are run without being asked for: most machines have no IPVS.
    // One at a time: with two CPUs another namespace's services move while one lists its own (`kernel::ipvs`).
    ("ipvs", "ipvs::", " --include-ignored --test-threads=1"),
    ("firewall", "firewall::", " --include-ignored"),
    ("overlay", "fabric::tests::routed::", " --include-ignored"),
];
/// The end-to-end stories that are run, over each data path, where none is asked for.
const SMOKE: [&str; 2] = ["mesh", "names"];
/// Those that are of both.
const BOTH: [&str; 2] = ["switch", "mixed"];
/// How long one guest may take.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Runs the lane.
///
/// # Errors
///
/// Something that the lane needs is missing, a test failed, or not every test was run.
pub(crate) fn run(what: What, filter: Option<&str>) -> anyhow::Result<()> {
    packages::ensure(packages::KERNEL61)?;
    let wanted = filter.unwrap_or_default();
    let mut work = Vec::new();
    if what.unit {
        let kernel = programs::of("kernel", &["-p", "kernel", "--lib"])?;
        for (name, part, options) in KERNEL {
            let keep = |test: &str| test.starts_with(&format!("kernel::{part}")) && test.contains(wanted);
            work.extend(Work::of(kernel.clone(), options, keep)?.map(|work| named(work, name)));
        }
    }
    if what.e2e {
        packages::ensure(packages::ALL)?;
        work.extend(stories(filter)?);
    }
    if work.is_empty() {
        bail!(
            "no test of this lane has {wanted:?} in its name\n  try: cargo xtask test --lane kernel61, without a filter"
        );
    }
    let linux = linux::get(&build::target_dir()?.join("lanes/kernel61"), SERIES)?;
    println!("... Linux {} under emulation", linux.release);
    let visible = visible()?;
    let visible: Vec<&Path> = visible.iter().map(PathBuf::as_path).collect();
    // A guest has all of this machine's CPUs that it can use.
    several::run(work, 1, &|script, each| {
        guest::run(&linux, script, &visible, LIMIT, each)
    })
}

/// The stories, each over each data path; those of both once.
fn stories(filter: Option<&str>) -> anyhow::Result<Vec<Work>> {
    let built = build::programs(Profile::Debug, build::ALL)?;
    let programs = match filter {
        None => {
            let names = SMOKE.iter().chain(&BOTH).flat_map(|name| ["--test", name]);
            programs::build(&["-p", "tests"].into_iter().chain(names).collect::<Vec<_>>())?
        }
        Some(_) => programs::build(&["-p", "tests", "--tests"])?,
    };
    let mut all = Vec::new();
    for program in programs {
        let (modes, options): (&[&str], _) = match BOTH.contains(&program.name.as_str()) {
            // It is ignored where nobody asks for it: most kernels have one of them.
            true => (&[""], " --test-threads=1 --include-ignored"),
            // One lab at a time in a guest, as elsewhere.
            false => (&["ebpf", "ipvs"], " --test-threads=1"),
        };
        for mode in modes {
            let keep = |test: &str| test.contains(filter.unwrap_or_default());
            let Some(mut work) = Work::of(program.clone(), options, keep)? else {
                continue;
            };
            let folder = quoted(&built.display().to_string());
            let mut environment = format!("export NETD_BIN_DIR={folder}\n");
            if !mode.is_empty() {
                environment.push_str(&format!("export NETD_LAB_DATAPATH={mode}\n"));
                work = named(work, &format!("{}, {mode}", program.name));
            }
            work.script.insert_str(0, &environment);
            all.push(work);
        }
    }
    Ok(all)
}

fn named(mut work: Work, name: &str) -> Work {
    name.clone_into(&mut work.name);
    work
}
