//! `cargo xtask`: the one entry for whoever works on netd. CI runs the same verbs.
#![allow(clippy::disallowed_methods, reason = "tooling around the daemon: it measures time")]

mod bench;
mod build;
mod demo;
#[allow(unreachable_pub, reason = "its one door is written as of a library")]
mod ebpf;
mod fuzz;
mod lane;
mod load;
mod packages;
mod sim;
mod stories;
mod test;
mod ui;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, shows, tests and measures netd")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Three hosts and a client on this machine: the whole job, shown and measured.
    Demo(demo::Args),
    /// Unit, property and end-to-end tests.
    Test(test::Args),
    /// Figures beside those of other ways to do the same.
    Bench(bench::Args),
    /// Managers, agents and clients in one thread, with faults by seed and an oracle.
    Sim(sim::Args),
    /// Changed octets at every door that takes them from a wire or a disk.
    Fuzz(fuzz::Args),
    /// Build the eBPF object, or check that it is what the sources say.
    Ebpf {
        /// Change nothing; fail when the committed object is stale.
        #[arg(long)]
        check: bool,
    },
    /// Install the Debian packages that the demo and the tests need.
    Packages,
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Sim(args) => sim::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Ebpf { check } => ebpf::run(check),
        Verb::Packages => packages::ensure(packages::ALL),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
