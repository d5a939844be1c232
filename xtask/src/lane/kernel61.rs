//! The eBPF tests on Debian's stock Linux 6.1.
//!
//! They load every program, so that the verifier of an older kernel is asked, and run real packets through them; the
//! kernel has no tcx, knows fewer flags, and is what a user's machine runs, not what a developer's does.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::initramfs::{self, Contents};
use super::{guest, linux, modules};
use crate::build;
use crate::packages;
use crate::test::sums_of;

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
/// What the guest says of the test program's end: not a line of the test program's own.
const ENDED: &str = "lane: the tests ended with ";

/// Runs the lane.
///
/// # Errors
///
/// Something that the lane needs is missing, a test failed, or not every test was run.
pub(crate) fn run(filter: Option<&str>) -> anyhow::Result<()> {
    packages::ensure(packages::KERNEL61)?;
    let start = Instant::now();
    let (folder, program) = test_program()?;
    let tests = list(&program, filter)?;
    if tests.is_empty() {
        bail!(
            "no eBPF test has {:?} in its name\n  try: cargo xtask test --lane kernel61, without a filter",
            filter.unwrap_or_default()
        );
    }
    let linux = linux::get(&folder.join("lanes/kernel61"), SERIES)?;
    let mut programs = vec![(program, "tests")];
    for tool in TOOLS {
        programs.push((packages::program(tool)?, tool));
    }
    let initramfs = initramfs::pack(&Contents {
        programs: &programs,
        modules: &modules::in_order(&linux.modules, MODULES)?,
        script: &script(&tests),
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

/// Builds the unit tests of crate `kernel`; answers the target folder and their program.
fn test_program() -> anyhow::Result<(PathBuf, PathBuf)> {
    let out = build::cargo()
        .args(["test", "--locked", "-p", "kernel", "--lib", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo test --no-run")?;
    ensure!(
        out.status.success(),
        "cargo test --no-run failed ({}): its messages stand above",
        out.status
    );
    let program =
        executable(&String::from_utf8_lossy(&out.stdout)).context("cargo named no test program of `kernel`")?;
    Ok((build::target_dir()?, program))
}

/// The test program in cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|m| m["target"]["name"] == "kernel" && m["profile"]["test"] == true)
        .find_map(|m| Some(PathBuf::from(m["executable"].as_str()?)))
}

/// Names of the lane's tests.
fn list(program: &Path, filter: Option<&str>) -> anyhow::Result<Vec<String>> {
    let out = Command::new(program)
        .args(["--list", "--format", "terse"])
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    ensure!(out.status.success(), "{} --list failed", program.display());
    Ok(String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| name.starts_with(TESTS) && name.contains(filter.unwrap_or_default()))
        .map(str::to_owned)
        .collect())
}

/// What the guest runs. Each test by its whole name: how many must answer is known before.
fn script(tests: &[String]) -> String {
    let mut script = String::from("tests --exact");
    for test in tests {
        // Names are Rust paths: the shell has nothing to expand in them.
        let _ = write!(script, " {test}");
    }
    let _ = write!(script, "\necho \"{ENDED}$?\"\n");
    script
}

/// What the guest's lines said.
#[derive(Debug, Default)]
struct Seen {
    /// Passed, failed, ignored.
    sums: Option<(u64, u64, u64)>,
    /// How the test program ended.
    status: Option<String>,
}

impl Seen {
    fn line(&mut self, line: &str) {
        if let Some(status) = line.strip_prefix(ENDED) {
            self.status = Some(status.to_owned());
        } else if let Some(sums) = sums_of(line) {
            self.sums = Some(sums);
        }
    }

    /// Tells the sums when every one of `wanted` tests was run and none failed.
    fn verdict(&self, wanted: usize) -> anyhow::Result<String> {
        let status = self.status.as_deref();
        let status = status.context("the guest ended before its tests did: the reasons stand above")?;
        let (passed, failed, ignored) = self
            .sums
            .with_context(|| format!("the tests ended with {status} and without a result: the reasons stand above"))?;
        let told = format!("{passed} passed, {failed} failed, {ignored} ignored");
        ensure!(failed == 0 && status == "0", "{told}: the reasons stand above");
        ensure!(passed > 0, "no test was run: {told}");
        ensure!(
            passed + ignored == wanted as u64,
            "{told}, but {wanted} tests were to be run"
        );
        Ok(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str =
        "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 3.54s";

    fn verdict(lines: &[&str], wanted: usize) -> anyhow::Result<String> {
        let mut seen = Seen::default();
        for line in lines {
            seen.line(line);
        }
        seen.verdict(wanted)
    }

    #[test]
    fn only_a_whole_run_without_failures_is_a_success() {
        let end = "lane: the tests ended with 0";
        assert_eq!(verdict(&[PASSED, end], 3).unwrap(), "2 passed, 0 failed, 1 ignored");
        for (why, lines, wanted) in [
            ("silence", &[][..], 3),
            ("it stopped before its end", &[PASSED], 3),
            ("no result", &[end], 3),
            (
                "a signal after the result",
                &[PASSED, "lane: the tests ended with 139"],
                3,
            ),
            ("one was not run", &[PASSED, end], 4),
            (
                "none was run",
                &[
                    "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out",
                    end,
                ],
                0,
            ),
            (
                "one failed",
                &[
                    "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
                    "lane: the tests ended with 101",
                ],
                3,
            ),
        ] {
            assert!(verdict(lines, wanted).is_err(), "{why}");
        }
    }

    #[test]
    fn the_test_program_is_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"kernel"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"name":"model"},"profile":{"test":true},"executable":"/t/model-1"}
{"reason":"compiler-artifact","target":{"name":"kernel"},"profile":{"test":true},"executable":"/t/kernel-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/kernel-1")));
        assert_eq!(executable("noise"), None);
    }

    #[test]
    fn the_script_runs_each_test_by_name() {
        let tests = ["bpf::a".to_owned(), "bpf::b".to_owned()];
        assert_eq!(
            script(&tests),
            "tests --exact bpf::a bpf::b\necho \"lane: the tests ended with $?\"\n"
        );
    }
}
