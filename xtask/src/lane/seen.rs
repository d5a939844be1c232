//! What a guest's lines say of the tests that it ran.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, ensure};

use crate::test::sums_of;

/// What the guest says of the test program's end: not a line of the test program's own.
const ENDED: &str = "lane: the tests ended with ";

/// Lines of a guest's script that run tests, each by its whole name: how many must answer is known before.
pub(super) fn script(program: &Path, options: &str, tests: &[String]) -> String {
    let mut script = format!("'{}' --exact{options}", program.display());
    for test in tests {
        // Names are Rust paths: the shell has nothing to expand in them.
        let _ = write!(script, " {test}");
    }
    let _ = write!(script, "\necho \"{ENDED}$?\"\n");
    script
}

/// Sums of a test program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) ignored: u64,
}

impl std::fmt::Display for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Sums {
            passed,
            failed,
            ignored,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {ignored} ignored")
    }
}

/// What the guest's lines said.
#[derive(Debug, Default)]
pub(super) struct Seen {
    sums: Option<Sums>,
    /// How the test program ended.
    status: Option<String>,
}

impl Seen {
    pub(super) fn line(&mut self, line: &str) {
        if let Some(status) = line.strip_prefix(ENDED) {
            self.status = Some(status.to_owned());
        } else if let Some((passed, failed, ignored)) = sums_of(line) {
            self.sums = Some(Sums {
                passed,
                failed,
                ignored,
            });
        }
    }

    /// The sums, as far as they were heard.
    pub(super) fn sums(&self) -> Option<Sums> {
        self.sums
    }

    /// The sums when every one of `wanted` tests was run and none failed.
    ///
    /// # Errors
    ///
    /// In every other case.
    pub(super) fn verdict(&self, wanted: usize) -> anyhow::Result<Sums> {
        let status = self.status.as_deref();
        let status = status.context("the guest ended before its tests did: the reasons stand above")?;
        let sums = self
            .sums
            .with_context(|| format!("the tests ended with {status} and without a result: the reasons stand above"))?;
        ensure!(sums.failed == 0 && status == "0", "{sums}: the reasons stand above");
        ensure!(sums.passed > 0, "no test was run: {sums}");
        ensure!(
            sums.passed + sums.ignored == wanted as u64,
            "{sums}, but {wanted} tests were to be run"
        );
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str =
        "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 3.54s";

    fn verdict(lines: &[&str], wanted: usize) -> anyhow::Result<Sums> {
        let mut seen = Seen::default();
        for line in lines {
            seen.line(line);
        }
        seen.verdict(wanted)
    }

    #[test]
    fn only_a_whole_run_without_failures_is_a_success() {
        let end = "lane: the tests ended with 0";
        let told = verdict(&[PASSED, end], 3).unwrap().to_string();
        assert_eq!(told, "2 passed, 0 failed, 1 ignored");
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
    fn the_script_runs_each_test_by_name() {
        let tests = ["bpf::a".to_owned(), "bpf::b".to_owned()];
        assert_eq!(
            script(Path::new("/a b/tests"), " --nocapture", &tests),
            "'/a b/tests' --exact --nocapture bpf::a bpf::b\necho \"lane: the tests ended with $?\"\n"
        );
    }
}
