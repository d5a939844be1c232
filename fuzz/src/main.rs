//! Tries the doors: `cargo xtask fuzz`.
#![allow(
    clippy::disallowed_methods,
    reason = "a tool around the cores: it asks the clock for a seed"
)]

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use clap::Parser;
use fuzz::{Door, drive};

#[derive(Parser)]
#[command(name = "fuzz", about = "Brings changed octets to every door of netd")]
struct Cli {
    /// Seconds in all.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Only this door; all of them are listed by --list.
    #[arg(long)]
    door: Option<String>,
    /// The same seed makes the same inputs. Default: another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Brings this file's octets to the door, and nothing else.
    #[arg(long, requires = "door")]
    replay: Option<PathBuf>,
    /// Names the doors.
    #[arg(long)]
    list: bool,
    /// Writes the door's examples, and what was found once, into this folder: where libFuzzer begins.
    #[arg(long, requires = "door")]
    write_seeds: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let doors: Vec<Door> = fuzz::all()
        .into_iter()
        .filter(|d| cli.door.as_deref().is_none_or(|n| n == d.name))
        .collect();
    if doors.is_empty() {
        bail!("there is no such door; try: --list");
    }
    if cli.list {
        doors.iter().for_each(|d| println!("{}", d.name));
        return Ok(());
    }
    if let (Some(file), [door]) = (&cli.replay, doors.as_slice()) {
        let input = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        return match drive::once(door, &input) {
            Some(what) => bail!("{}: {what}", door.name),
            None => {
                println!("{}: taken or refused, as it should be", door.name);
                Ok(())
            }
        };
    }
    if let (Some(dir), [door]) = (&cli.write_seeds, doors.as_slice()) {
        let found = fuzz::found(door)?.into_iter().map(|(_, input)| input);
        for (i, input) in (door.seeds)().into_iter().chain(found).enumerate() {
            let path = dir.join(format!("example-{i}"));
            std::fs::write(&path, input).with_context(|| format!("writing {}", path.display()))?;
        }
        return Ok(());
    }
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seed = cli.seed.unwrap_or(now.as_secs());
    println!("seed {seed}");
    let each = Duration::from_secs_f64(cli.seconds / doors.len() as f64);
    let mut faults = 0;
    for door in &doors {
        for (name, input) in fuzz::found(door)? {
            if let Some(what) = drive::once(door, &input) {
                faults += 1;
                eprintln!("{}: found/{}/{name}: {what}", door.name, door.name);
            }
        }
        let (tried, fault) = drive::drive(door, seed, each);
        println!("{:24} {tried} inputs", door.name);
        if let Some(fault) = fault {
            faults += 1;
            let kept = fuzz::keep(door, &fault.input)?;
            eprintln!("{}: {}\n  kept in {}", door.name, fault.what, kept.display());
        }
    }
    if faults > 0 {
        bail!("{faults} faults: they stand above");
    }
    Ok(())
}
