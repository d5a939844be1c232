//! `cargo xtask demo`: three hosts and a client as namespaces; every promise shown with its command, its output and
//! what was measured.

mod death;
mod kernel;
mod mesh;
mod names;
mod nodes;
mod overlay;
mod restart;
mod services;
mod show;
mod traces;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::{DaemonOptions, Lab, Options};

use crate::build::{self, Profile};
use crate::lane::{Lane, ipvs};
use crate::packages;
use crate::ui;
use show::Show;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the lab up and say how to enter it.
    #[arg(long)]
    keep: bool,
    /// End the labs that --keep left.
    #[arg(long, conflicts_with_all = ["keep", "strace"])]
    down: bool,
    /// Record every program that netd executes (there must be none).
    #[arg(long)]
    strace: bool,
    /// Unoptimised programs: quicker to build while the demo itself is worked on.
    #[arg(long)]
    debug: bool,
    /// On another kernel than this machine's: `ipvs`, in User-Mode Linux.
    #[arg(long, value_enum, conflicts_with_all = ["keep", "down"])]
    lane: Option<Lane>,
    /// This is the guest, and the programs are in this folder.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// How long the demo may take in a guest, whose system calls are slow.
const IN_GUEST: Duration = Duration::from_secs(20 * 60);

type Step = fn(&Lab, &mut Show) -> anyhow::Result<()>;

/// In the order in which they build on one another; the numbers in the headings are those of the README.
const STEPS: [(&str, Step); 9] = [
    ("Cluster: one command makes it, one joins it", nodes::form),
    ("Overlay: tasks on different nodes talk", overlay::talk),
    ("Services: two tasks, placed and run", services::place),
    ("Names: every task can ask for them", names::ask),
    ("Mesh: port 80 on every node", mesh::publish),
    ("A daemon dies: nothing is withdrawn", death::daemon),
    ("A node dies: its backends are out at once", death::node),
    ("Restart: kill -9 netd under a transfer", restart::adopt),
    ("Status: one screen", nodes::status),
];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.down {
        println!("{} kept lab(s) ended", lab::end_kept()?);
        return Ok(());
    }
    if let Some(lane) = args.lane {
        return in_guest(lane, args);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo makes network namespaces and needs root; try: sudo -E env PATH=\"$PATH\" cargo xtask demo");
    }
    packages::ensure(packages::ALL)?;
    let programs = match &args.inside {
        Some(folder) => folder.clone(),
        None => build::programs(profile(args), build::ALL)?,
    };
    let start = Instant::now();
    let before = kernel::Machine::look()?;
    let options = Options {
        bin_dir: Some(programs),
        daemon: DaemonOptions {
            strace: args.strace,
            ..DaemonOptions::default()
        },
        ..Options::default()
    };
    let lab = ui::during("three hosts and a client, as namespaces", || Lab::new("demo", options))?;
    let mut show = Show::default();
    for (number, (title, step)) in STEPS.into_iter().enumerate() {
        show.heading(number + 1, title);
        if let Err(error) = step(&lab, &mut show) {
            show.expect("the step", "goes through", format!("{error:#}"), false);
            // What follows builds on it: its failures would only hide this one.
            eprintln!("{}", lab.tail(30));
            break;
        }
    }
    if args.strace {
        show.heading(STEPS.len() + 1, "What netd executed");
        traces::nothing(&lab, &mut show);
    }
    if args.keep {
        println!("\nThe lab stays up. To enter a host:");
        for (host, entrance) in lab.entrances() {
            println!("  {host:8} {entrance}");
        }
        println!(
            "  logs     {}\nTo end it: cargo xtask demo --down",
            lab.folder().display()
        );
        lab.keep()?;
    } else {
        let folder = lab.folder().to_owned();
        ui::during("cleaning up", || {
            drop(lab);
            Ok(())
        })?;
        show.heading(STEPS.len() + 2, "Nothing is left");
        before.compare(&folder, &mut show);
    }
    println!("\n{}", show.table());
    println!("{} s in all", start.elapsed().as_secs());
    match show.short() {
        0 => Ok(()),
        n => bail!("{n} expectation(s) fell short"),
    }
}

fn profile(args: &Args) -> Profile {
    match args.debug {
        true => Profile::Debug,
        false => Profile::Release,
    }
}

/// The same demo, in a guest.
fn in_guest(lane: Lane, args: &Args) -> anyhow::Result<()> {
    if lane != Lane::Ipvs {
        bail!("the demo runs on a machine that works as one; try: --lane ipvs");
    }
    ipvs::offered()?;
    packages::ensure(packages::IPVS)?;
    packages::ensure(packages::ALL)?;
    let programs = build::programs(profile(args), build::ALL)?;
    let folder = programs.to_str().context("a folder whose name is no text")?;
    let mut words = vec!["demo", "--inside", folder];
    words.extend(args.strace.then_some("--strace"));
    match ipvs::own(&words, &programs, IN_GUEST, &mut |line| println!("{line}"))? {
        0 => Ok(()),
        status => bail!("the demo ended with {status} in the guest: its reasons stand above"),
    }
}
