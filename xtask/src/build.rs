//! Building what is shown, tested and measured.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// A package and the programs that it brings.
pub(crate) type Programs = (&'static str, &'static [&'static str]);

/// What makes hosts and talks in them.
pub(crate) const LAB: &[Programs] = &[("lab", &["lab-anchor", "lab-tool"])];
/// That, and what is shown in them.
pub(crate) const ALL: &[Programs] = &[
    ("lab", &["lab-anchor", "lab-tool"]),
    ("netd", &["netd"]),
    ("netctl", &["netctl"]),
    ("runner", &["netd-run"]),
];

/// Which profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Unoptimised, with debug assertions.
    Debug,
    /// What is shipped.
    Release,
}

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    // xtask is run from its own checkout: cargo has just built it there.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// cargo, as the toolchain that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What cargo tells this program of its own package is not for the build: build scripts that look at it (ring's) would
    // run again, and much would be built anew, whenever one goes from `cargo` to `cargo xtask` and back.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name.as_ref());
        }
    }
    command
}

/// Builds programs; answers the folder that they are in.
///
/// # Errors
///
/// When the build fails: cargo has said why.
pub(crate) fn programs(profile: Profile, wanted: &[Programs]) -> anyhow::Result<PathBuf> {
    programs_with(profile, wanted, &[])
}

/// As [`programs`], with features.
///
/// # Errors
///
/// As there.
pub(crate) fn programs_with(profile: Profile, wanted: &[Programs], features: &[&str]) -> anyhow::Result<PathBuf> {
    match features {
        [] => built(profile, wanted, &[]),
        _ => built(profile, wanted, &["--features", &features.join(",")]),
    }
}

/// As [`programs`], with examples of the packages, which lie in the folder `examples` below the programs.
///
/// # Errors
///
/// As there.
pub(crate) fn programs_and_examples(
    profile: Profile,
    wanted: &[Programs],
    examples: &[&str],
) -> anyhow::Result<PathBuf> {
    let examples = examples.iter().flat_map(|example| ["--example", example]);
    let more: Vec<&str> = std::iter::once("--bins").chain(examples).collect();
    built(profile, wanted, &more)
}

fn built(profile: Profile, wanted: &[Programs], more: &[&str]) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.arg("build").arg("--locked").args(more);
    for (package, _) in wanted {
        command.args(["-p", package]);
    }
    if profile == Profile::Release {
        command.arg("--release");
    }
    let status = command.status().context("running cargo build")?;
    if !status.success() {
        bail!("cargo build failed ({status}): its messages stand above");
    }
    let dir = target_dir()?.join(match profile {
        Profile::Debug => "debug",
        Profile::Release => "release",
    });
    for program in wanted.iter().flat_map(|(_, programs)| *programs) {
        if !dir.join(program).is_file() {
            bail!("cargo build left no {program} in {}", dir.display());
        }
    }
    Ok(dir)
}

/// The target folder, which settings and environment may have moved.
///
/// # Errors
///
/// When cargo does not tell it.
pub(crate) fn target_dir() -> anyhow::Result<PathBuf> {
    let out = cargo()
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .output()
        .context("running cargo metadata")?;
    let seen: serde_json::Value = serde_json::from_slice(&out.stdout).context("reading cargo metadata")?;
    Ok(PathBuf::from(
        seen["target_directory"]
            .as_str()
            .context("cargo metadata names no target folder")?,
    ))
}
