//! Tests on a kernel with IPVS, which not every machine's own kernel has: User-Mode Linux.
//!
//! Each test program runs in a guest of its own, so that one that brings its kernel down takes no other with it; a guest has
//! one CPU, so as many run at once as this machine has.
//!
//! What that kernel (Debian's 6.1) has and has not, as far as it matters:
//! - nf_tables without IPv4, IPv6 and inet: rules are those of iptables-legacy;
//! - bpf(2), bpffs and clsact, but neither BTF nor a BPF compiler, and no unaligned access (its verifier: "misaligned packet
//!   access"): netd's programs are not taken, so that a cluster of both data paths cannot be made in one guest;
//! - cgroups, and all namespaces;
//! - one CPU, a clock of 100 Hz with high resolution timers, and slow system calls (15 to 25 microseconds each, a page fault
//!   50, a program started 11 ms; with two hundred threads in a process a new one costs several ms): a lab takes longer than
//!   elsewhere, and what makes load in it has one thread and few calls;
//! - a session of its own, which `nice` does not reach where the machine's scheduler groups by session
//!   (`/proc/sys/kernel/sched_autogroup_enabled`): on a machine that does other work too, `/proc/<pid of linux.uml>/autogroup`
//!   is what counts;
//! - neither SMP nor preemption: what needs two CPUs to go wrong is not found here.

mod own;
mod uml;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use super::programs::{self, TestProgram};
use super::several::{self, Work};
use crate::build::{self, Profile};
use crate::packages;
pub(crate) use own::own;
pub(super) use own::visible;

/// Which tests of crate `kernel` are the lane's, by what their names begin with: IPVS, the rules of its mode (iptables'
/// here), the overlay of its mode. Each part has a guest of its own.
const KERNEL: [(&str, &str); 3] = [
    ("ipvs", "ipvs::"),
    ("firewall", "firewall::"),
    ("overlay", "fabric::tests::routed::"),
];
/// Those of them that are for kernels with nf_tables.
const NFTABLES: &str = "firewall::tests::nft::";
/// The end-to-end tests that are for kernels with both data paths (lane `kernel61`).
const BOTH: [&str; 2] = ["mixed::", "switch::"];
/// Which of this program's own: what becomes of a guest that goes wrong.
const LANE: &str = "lane::ipvs::uml::tests::";
/// The name of the check of rules made by hand.
const BY_HAND: &str = "rules-by-hand";
/// How long one test program may take.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// What of the lane is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct What {
    /// The tests of crate `kernel`.
    pub(crate) unit: bool,
    /// As a part of `cargo xtask test`: with the test programs that it has built, and without what others' figures are
    /// measured by.
    pub(crate) short: bool,
    /// The end-to-end tests.
    pub(crate) e2e: bool,
}

impl What {
    /// The words for cargo that build the unit tests of one crate. Those of all crates together have other features of what
    /// they depend on: what was built for them is not built once more.
    fn words<'w>(self, of_one: &'w [&'w str]) -> &'w [&'w str] {
        if self.short { &crate::test::UNIT } else { of_one }
    }
}

/// Runs the lane in `guests` guests at once.
///
/// # Errors
///
/// Something that the lane needs is missing, a test failed, or not every test was run.
pub(crate) fn run(what: What, filter: Option<&str>, guests: usize) -> anyhow::Result<()> {
    packages::ensure(packages::IPVS)?;
    if what.e2e {
        packages::ensure(packages::ALL)?;
    }
    if what.unit && filter.is_none() {
        itself(what)?;
    }
    let visible = visible()?;
    let visible: Vec<&Path> = visible.iter().map(PathBuf::as_path).collect();
    let mut work = Vec::new();
    if what.unit {
        let kernel = programs::of("kernel", what.words(&["-p", "kernel", "--lib"]))?;
        for (name, part) in KERNEL {
            // Some are ignored where they are run without being asked for: most machines have no IPVS.
            let mut some = chosen(vec![kernel.clone()], part, filter, " --include-ignored")?;
            for one in &mut some {
                name.clone_into(&mut one.name);
            }
            work.extend(some);
        }
    }
    if what.unit && !what.short && BY_HAND.contains(filter.unwrap_or_default()) {
        work.push(by_hand()?);
    }
    if what.e2e {
        // As people run them: the guests' one processor has no room for checks of a debug build.
        let built = build::programs(Profile::Release, build::ALL)?;
        let programs = programs::build(&["-p", "tests", "--tests"])?;
        // One lab at a time in a guest, as elsewhere.
        let mut all = chosen(programs, "", filter, " --test-threads=1")?;
        for one in &mut all {
            one.script.insert_str(0, &own::environment(&built));
        }
        work.extend(all);
    }
    if work.is_empty() {
        bail!(
            "no test of this lane has {:?} in its name\n  try: cargo xtask test --lane ipvs, without a filter",
            filter.unwrap_or_default()
        );
    }
    several::run(work, guests, &|script, each| uml::run(script, &visible, LIMIT, each))
}

/// The tests of the lane itself, which boot their guests: what it says of others could not be believed otherwise.
fn itself(what: What) -> anyhow::Result<()> {
    let program = programs::of("xtask", what.words(&["-p", "xtask", "--bins"]))?;
    let status = std::process::Command::new(&program.path)
        // Most of them wait most of the time.
        .args(["--ignored", "--test-threads=4", LANE])
        .status()
        .with_context(|| format!("running {}", program.path.display()))?;
    anyhow::ensure!(
        status.success(),
        "the lane itself failed ({status}): the reasons stand above"
    );
    Ok(())
}

/// What others' figures are measured by: their rules still carry, on the programs of this build.
fn by_hand() -> anyhow::Result<Work> {
    let programs = build::programs(Profile::Debug, build::LAB)?;
    let folder = programs.to_str().context("a folder whose name is no text")?;
    let words = ["bench", "ipvs", "--baseline", "--quick", "--inside", folder];
    Ok(Work {
        name: BY_HAND.to_owned(),
        script: own::script(&words, &programs)?,
        tests: None,
    })
}

/// The tests whose whole name, `program::test`, contains the filter; of those whose own begins with `within`.
fn chosen(programs: Vec<TestProgram>, within: &str, filter: Option<&str>, options: &str) -> anyhow::Result<Vec<Work>> {
    let keep = |name: &str| {
        let test = name.split_once("::").map_or(name, |(_, test)| test);
        let elsewhere = test.starts_with(NFTABLES) || BOTH.iter().any(|b| name.starts_with(b));
        test.starts_with(within) && !elsewhere && name.contains(filter.unwrap_or_default())
    };
    let work = programs.into_iter().map(|program| Work::of(program, options, keep));
    work.filter_map(Result::transpose).collect()
}
