//! `cargo xtask fuzz`: changed octets at every door (`fuzz/`).

use std::{path::PathBuf, process::Command};

use anyhow::{Context, bail};

use crate::build::{self, Profile};

/// What makes the compiler count which edges are taken and which values are compared: libFuzzer is guided by that. All of
/// it is the stable compiler's; only the address sanitizer would need another one, and there is no unsafe code behind the
/// doors.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds in all.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Only this door.
    #[arg(long)]
    door: Option<String>,
    /// The same seed makes the same inputs.
    #[arg(long, conflicts_with = "guided")]
    seed: Option<u64>,
    /// Brings this file's octets to the door, and nothing else.
    #[arg(long, requires = "door", conflicts_with = "guided")]
    replay: Option<PathBuf>,
    /// Names the doors.
    #[arg(long)]
    list: bool,
    /// Have libFuzzer do it, guided by coverage. Built on its own the first time, which takes minutes.
    #[arg(long)]
    guided: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.guided {
        return guided(args);
    }
    let dir = build::programs(Profile::Debug, &[("fuzz", &["fuzz"])])?;
    let mut command = Command::new(dir.join("fuzz"));
    command.args(["--seconds", &args.seconds.to_string()]);
    if let Some(door) = &args.door {
        command.args(["--door", door]);
    }
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(file) = &args.replay {
        command.arg("--replay").arg(file);
    }
    if args.list {
        command.arg("--list");
    }
    well(&mut command)
}

/// libFuzzer's corpus and what it finds are in `<target>/fuzz/<door>`.
fn guided(args: &Args) -> anyhow::Result<()> {
    let target = build::target_dir()?.join("fuzz");
    // Names the doors and writes the examples: what counts edges can be linked with libFuzzer alone.
    let plain = build::programs(Profile::Debug, &[("fuzz", &["fuzz"])])?.join("fuzz");
    let build = [
        "build",
        "--locked",
        "--release",
        "-p",
        "fuzz",
        "--features",
        "guided",
        "--bin",
        "guided",
    ];
    let mut cargo = build::cargo();
    // A target is named so that build scripts and macros are built without.
    let host = "x86_64-unknown-linux-gnu";
    cargo
        .args(build)
        .args(["--target", host])
        .arg("--target-dir")
        .arg(&target);
    well(cargo.env("RUSTFLAGS", COVERAGE))?;
    let programs = target.join(host).join("release");
    let doors: Vec<String> = match &args.door {
        Some(door) => vec![door.clone()],
        None => {
            let listed = Command::new(&plain)
                .arg("--list")
                .output()
                .context("listing the doors")?;
            String::from_utf8_lossy(&listed.stdout)
                .lines()
                .map(str::to_owned)
                .collect()
        }
    };
    let each = (args.seconds / doors.len() as f64).ceil().max(1.0);
    let mut broken = Vec::new();
    for door in doors {
        let dir = target.join(&door);
        std::fs::create_dir_all(dir.join("corpus")).with_context(|| format!("making {}", dir.display()))?;
        let seeded = Command::new(&plain)
            .args(["--door", &door, "--write-seeds"])
            .arg(dir.join("corpus"))
            .status()
            .context("writing the examples")?;
        let mut fuzzer = Command::new(programs.join("guided"));
        fuzzer.env("NETD_DOOR", &door).current_dir(&dir).arg("corpus");
        fuzzer.args([
            &format!("-max_total_time={each}"),
            "-timeout=5",
            "-rss_limit_mb=1024",
            "-print_final_stats=1",
        ]);
        println!("== {door}, {each} s");
        if !seeded.success() || well(&mut fuzzer).is_err() {
            broken.push(door);
        }
    }
    if !broken.is_empty() {
        bail!("{}: what was found is in {}/DOOR", broken.join(", "), target.display());
    }
    Ok(())
}

fn well(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("running {command:?}"))?;
    if !status.success() {
        bail!("the fuzzer ended with {status}: what it found stands above");
    }
    Ok(())
}
