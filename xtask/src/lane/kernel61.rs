//! The eBPF tests on Debian's stock Linux 6.1.
//!
//! They load every program, so that the verifier of an older kernel is asked, and run real packets through them; the
//! kernel has no tcx, knows fewer flags, and is what a user's machine runs, not what a developer's does.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::initramfs::{self, Contents};
use super::seen::{self, Seen};
use super::{guest, linux, modules, programs};
use crate::build;
use crate::packages;

/// Which kernel.
const SERIES: &str = "6.1.";
/// Which tests of crate `kernel`.
const TESTS: &str = "bpf::";
/// What the tests make that a stock kernel has as modules.
const MODULES: &[&str] = &["veth", "bridge", "vxlan", "sch_ingress", "cls_bpf"];
/// Programs of this machine that the tests run.
const TOOLS: &[&str] = &["ip", "tc", "ping"];
/// How long the guest may take.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Where the guest has the test program.
const PROGRAM: &str = "/bin/tests";

/// Runs the lane.
///
/// # Errors
///
/// Something that the lane needs is missing, a test failed, or not every test was run.
pub(crate) fn run(filter: Option<&str>) -> anyhow::Result<()> {
    packages::ensure(packages::KERNEL61)?;
    let start = Instant::now();
    let program = programs::of("kernel", &["-p", "kernel", "--lib"])?;
    let tests = program.list(|name| name.starts_with(TESTS) && name.contains(filter.unwrap_or_default()))?;
    if tests.is_empty() {
        bail!(
            "no eBPF test has {:?} in its name\n  try: cargo xtask test --lane kernel61, without a filter",
            filter.unwrap_or_default()
        );
    }
    let linux = linux::get(&build::target_dir()?.join("lanes/kernel61"), SERIES)?;
    let mut programs = vec![(program.path, "tests")];
    for tool in TOOLS {
        programs.push((packages::program(tool)?, tool));
    }
    let initramfs = initramfs::pack(&Contents {
        programs: &programs,
        modules: &modules::in_order(&linux.modules, MODULES)?,
        script: &seen::script(Path::new(PROGRAM), "", &tests),
    })?;
    println!(
        "... Linux {} boots under emulation to run {} tests",
        linux.release,
        tests.len()
    );
    let mut seen = Seen::default();
    let console = guest::run(&linux, initramfs, LIMIT, &mut |line| {
        println!("{line}");
        seen.line(line);
    })?;
    let told = seen.verdict(tests.len()).inspect_err(|_| println!("{console}"))?;
    println!("{told} on Linux {} in {} s", linux.release, start.elapsed().as_secs());
    Ok(())
}
