//! `cargo xtask test`.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::build::{self, Profile};
use crate::lane::ipvs::What;
use crate::lane::{self, Lane};
use crate::packages;
use crate::stories;
use crate::ui::table;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the end-to-end tests.
    #[arg(long, conflicts_with = "unit")]
    e2e: bool,
    /// Only unit and property tests (some of them need root too) and the simulation.
    #[arg(long)]
    unit: bool,
    /// Instead of them, a lane's tests on another kernel than this machine's.
    #[arg(long, value_enum)]
    lane: Option<Lane>,
    /// Lane ipvs: guests at once; default: as many as there are CPUs.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    guests: Option<u8>,
    /// Run only tests whose name contains this.
    filter: Option<String>,
}

/// The words for cargo that name the unit and property tests.
pub(crate) const UNIT: [&str; 3] = ["--workspace", "--exclude", "tests"];

/// The closing lines of one test program.
pub(crate) struct Part {
    pub(crate) name: String,
    passed: u64,
    failed: u64,
    ignored: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(lane) = args.lane {
        let what = What {
            unit: !args.e2e,
            short: false,
            e2e: args.e2e,
        };
        return lane::run(lane, what, args.filter.as_deref(), args.guests.map(usize::from));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the tests make network namespaces and need root; without it most of them would prove nothing\n\
             try: sudo -E env PATH=\"$PATH\" cargo xtask test"
        );
    }
    packages::ensure(packages::ALL)?;
    let start = Instant::now();
    let programs = build::programs(Profile::Debug, build::ALL)?;
    lab::sweep();
    let mut parts = Vec::new();
    let mut broken = Vec::new();
    let filter: Vec<&str> = args.filter.as_deref().into_iter().collect();
    if !args.e2e {
        let show = &mut |line: &str| println!("{line}");
        let status = cargo_test(&UNIT, &filter, &programs, &mut parts, show)?;
        broken.extend((!status).then_some("unit and property tests"));
    }
    let simulate = !args.e2e && filter.is_empty();
    // Most stories wait most of the time: the simulation takes what they leave.
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let simulation = simulate.then(|| scope.spawn(crate::sim::check_beside));
        if !args.unit {
            let status = stories::run(args.filter.as_deref(), &programs, &mut parts)?;
            broken.extend((!status).then_some("end-to-end tests"));
        }
        match simulation.map(std::thread::ScopedJoinHandle::join) {
            None | Some(Ok(Ok(()))) => {}
            Some(Ok(Err(e))) => {
                eprintln!("{e:#}");
                broken.push("the simulation");
            }
            Some(Err(_)) => broken.push("the simulation"),
        }
        Ok(())
    })?;
    let whole = !args.e2e && !args.unit && filter.is_empty();
    if whole && cfg!(not(target_arch = "x86_64")) {
        println!("the lane with IPVS is left out: User-Mode Linux is for x86-64 alone");
    } else if whole {
        let short = What {
            unit: true,
            short: true,
            e2e: false,
        };
        if let Err(e) = lane::run(Lane::Ipvs, short, None, args.guests.map(usize::from)) {
            eprintln!("{e:#}");
            broken.push("the lane with IPVS");
        }
    }
    lab::sweep();
    let mut rows = vec![["tests", "passed", "failed", "ignored"].map(str::to_owned).to_vec()];
    for part in parts.iter().filter(|p| p.passed + p.failed > 0) {
        rows.push(vec![
            part.name.clone(),
            part.passed.to_string(),
            part.failed.to_string(),
            part.ignored.to_string(),
        ]);
    }
    let sum = |f: fn(&Part) -> u64| parts.iter().map(f).sum::<u64>();
    let (passed, failed) = (sum(|p| p.passed), sum(|p| p.failed));
    rows.push(vec![
        "all".to_owned(),
        passed.to_string(),
        failed.to_string(),
        sum(|p| p.ignored).to_string(),
    ]);
    println!("\n{}", table(&rows));
    println!("{passed} passed, {failed} failed in {} s", start.elapsed().as_secs());
    if !broken.is_empty() {
        bail!("{} failed: the reasons stand above", broken.join(" and "));
    }
    if passed == 0 {
        bail!("no test was run; try: cargo xtask test, without a filter");
    }
    Ok(())
}

/// Runs `cargo test`, hands on what it says and keeps the sums. Answers whether it succeeded.
pub(crate) fn cargo_test(
    what: &[&str],
    threads: &[&str],
    programs: &std::path::Path,
    parts: &mut Vec<Part>,
    show: &mut dyn FnMut(&str),
) -> anyhow::Result<bool> {
    let mut child = build::cargo()
        .args(["test", "--locked", "--no-fail-fast"])
        .args(what)
        .arg("--")
        .args(threads)
        .env("NETD_BIN_DIR", programs)
        // The name of each test program is on cargo's stderr: one stream keeps both in order.
        .env("CARGO_TERM_COLOR", "never")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running cargo test")?;
    let (send, lines) = std::sync::mpsc::channel();
    let streams: [Option<Box<dyn std::io::Read + Send>>; 2] = [
        child.stdout.take().map(|s| Box::new(s) as _),
        child.stderr.take().map(|s| Box::new(s) as _),
    ];
    for stream in streams.into_iter().flatten() {
        let send = send.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
    }
    drop(send);
    let mut name = String::new();
    for line in lines {
        show(&line);
        if let Some(program) = program_of(&line) {
            name = program;
        }
        if let Some((passed, failed, ignored)) = sums_of(&line) {
            parts.push(Part {
                name: name.clone(),
                passed,
                failed,
                ignored,
            });
        }
    }
    Ok(child.wait().context("waiting for cargo test")?.success())
}

/// `     Running unittests src/lib.rs (target/debug/deps/lab-01aa560aa1dd19e8)` -> `lab: src/lib.rs`.
fn program_of(line: &str) -> Option<String> {
    let line = line.trim();
    if let Some(krate) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{krate}: examples in docs"));
    }
    let (source, program) = line.strip_prefix("Running ")?.split_once(" (")?;
    let file = program.trim_end_matches(')').rsplit('/').next()?;
    let krate = file.rsplit_once('-').map_or(file, |(krate, _hash)| krate);
    Some(format!("{krate}: {}", source.trim_start_matches("unittests ")))
}

/// Passed, failed and ignored of `test result: ok. 7 passed; 0 failed; 3 ignored; 0 measured; ...`
pub(crate) fn sums_of(line: &str) -> Option<(u64, u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let count = |word: &str| -> Option<u64> {
        rest.split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
    };
    Some((count("passed")?, count("failed")?, count("ignored")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_cargo_are_understood() {
        assert_eq!(
            program_of("     Running unittests src/lib.rs (target/debug/deps/lab-01aa560aa1dd19e8)").as_deref(),
            Some("lab: src/lib.rs")
        );
        assert_eq!(program_of("   Doc-tests lab").as_deref(), Some("lab: examples in docs"));
        assert_eq!(program_of("test x ... ok"), None);
        assert_eq!(
            sums_of(
                "test result: FAILED. 7 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 3.54s"
            ),
            Some((7, 1, 3))
        );
        assert_eq!(sums_of("running 3 tests"), None);
    }
}
