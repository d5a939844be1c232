//! What talks inside a lab: a server that tells who answered whom, clients that count, and load generators.
//!
//! Its words on the wire and its reports are in `lab::wire`.
#![allow(clippy::disallowed_methods, reason = "a tool that measures time")]

mod answer;
mod crowd;
mod guests;
mod hold;
mod load;
mod names;
mod ports;
mod sctp;
mod serve;
mod steady;
mod tally;
mod transfer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "lab-tool", about = "Servers, clients and load for a lab")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Answer on TCP and UDP, IPv4 and IPv6, with `host/task client-address`.
    Serve(serve::Args),
    /// Make connections and count who answered.
    Tally(tally::Args),
    /// Take a stream and tell what was lost.
    Fetch(transfer::FetchArgs),
    /// Send datagrams from one socket, answer what came back.
    Send(transfer::SendArgs),
    /// Keep connections for a while, with a request now and then, and tell what failed.
    Hold(hold::Args),
    /// Load for a benchmark.
    Load(load::Args),
    /// A resolver that answers every A and AAAA question with one address.
    Names(names::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Serve(args) => serve::run(&args),
        Verb::Tally(args) => tally::run(&args),
        Verb::Fetch(args) => transfer::fetch(&args),
        Verb::Send(args) => transfer::send(&args),
        Verb::Hold(args) => hold::run(&args),
        Verb::Load(args) => load::run(&args),
        Verb::Names(args) => names::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-tool: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a report as one line of JSON.
fn report(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
