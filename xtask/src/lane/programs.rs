//! Test programs, built for a guest rather than run here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::build;

/// A program of tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TestProgram {
    /// Its target's name: of a crate, or of a file in `tests/`.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl TestProgram {
    /// The whole names of its tests for which `keep` holds.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    pub(super) fn list(&self, keep: impl Fn(&str) -> bool) -> anyhow::Result<Vec<String>> {
        let out = Command::new(&self.path)
            .args(["--list", "--format", "terse"])
            .output()
            .with_context(|| format!("running {}", self.path.display()))?;
        ensure!(out.status.success(), "{} --list failed", self.path.display());
        Ok(String::from_utf8_lossy(&out.stdout)
            .lines()
            .filter_map(|line| line.strip_suffix(": test"))
            .filter(|name| keep(name))
            .map(str::to_owned)
            .collect())
    }
}

/// Builds the test programs that `what` (words for `cargo test`) names.
///
/// # Errors
///
/// When the build fails, or makes none.
pub(super) fn build(what: &[&str]) -> anyhow::Result<Vec<TestProgram>> {
    let out = build::cargo()
        .args(["test", "--locked", "--no-run"])
        .args(what)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo test --no-run")?;
    ensure!(
        out.status.success(),
        "cargo test --no-run failed ({}): its messages stand above",
        out.status
    );
    let programs = executables(&String::from_utf8_lossy(&out.stdout));
    ensure!(
        !programs.is_empty(),
        "cargo named no test program of {}",
        what.join(" ")
    );
    Ok(programs)
}

/// The unit tests of a crate, of what [`build`] makes of `what`.
///
/// # Errors
///
/// As [`build`].
pub(super) fn of(krate: &str, what: &[&str]) -> anyhow::Result<TestProgram> {
    let all = build(what)?;
    all.into_iter()
        .find(|p| p.name == krate)
        .with_context(|| format!("cargo named no test program of `{krate}`"))
}

/// The test programs in cargo's messages, by name.
fn executables(messages: &str) -> Vec<TestProgram> {
    let mut found: Vec<TestProgram> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|m| m["profile"]["test"] == true)
        .filter_map(|m| {
            Some(TestProgram {
                name: m["target"]["name"].as_str()?.to_owned(),
                path: Path::new(m["executable"].as_str()?).to_owned(),
            })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"kernel"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"name":"model"},"profile":{"test":true},"executable":"/t/model-1"}
{"reason":"compiler-artifact","target":{"name":"kernel"},"profile":{"test":true},"executable":"/t/kernel-1"}
{"reason":"compiler-artifact","target":{"name":"netd"},"profile":{"test":false},"executable":"/t/netd"}
{"reason":"build-finished","success":true}"#;
        let names: Vec<(String, PathBuf)> = executables(messages).into_iter().map(|p| (p.name, p.path)).collect();
        let wanted = [("kernel", "/t/kernel-1"), ("model", "/t/model-1")];
        assert_eq!(names, wanted.map(|(name, path)| (name.to_owned(), path.into())));
        assert!(executables("noise").is_empty());
    }

    #[test]
    fn a_program_lists_its_tests() {
        let own = TestProgram {
            name: "xtask".to_owned(),
            path: std::env::current_exe().unwrap(),
        };
        let found = own.list(|name| name.ends_with("a_program_lists_its_tests")).unwrap();
        assert_eq!(found, ["lane::programs::tests::a_program_lists_its_tests"]);
    }
}
