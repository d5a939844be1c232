//! `netctl`: the command that people type. It asks netd on its Unix socket and waits until what was asked for is true.
//!
//! A file per noun; each builds requests, and tables from the answers. What all share: [`cli`] (options), [`output`]
//! (tables, JSON, colours), [`progress`] and [`wait`] (until every living node has it), [`when`] (times).
#![allow(clippy::disallowed_methods, reason = "a shell may ask the clock")]

mod availability;
mod backup;
mod cli;
mod cluster;
mod dial;
mod endpoint;
mod identity;
mod logs;
mod managers;
mod network;
mod node;
mod output;
mod progress;
mod service;
mod settings;
mod status;
mod task;
mod wait;
mod when;

#[cfg(test)]
mod fixture;

use std::{io, process::ExitCode};

use clap::{
    CommandFactory, Parser,
    error::{ContextKind, ContextValue},
};
use model::{ApiError, Code};

use cli::{Cli, Context, Noun};

/// What a verb comes to.
type Run = Result<(), ApiError>;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(cli));
            // Standard input may still be waited for.
            runtime.shutdown_background();
            outcome
        }
        Err(e) => Err(ApiError::new(Code::Internal, format!("cannot start: {e}"), "ulimit -n")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            output::stderr(&explain(&e));
            ExitCode::from(e.code.exit())
        }
    }
}

/// Help on standard output, a slip on standard error, with the command that was probably meant.
fn usage(e: &clap::Error) -> ExitCode {
    // Where it cannot be printed nobody reads it.
    let _ = e.print();
    if let Some(meant) = meant(e, std::env::args().skip(1)) {
        output::stderr(&format!("try: netctl {meant}\n"));
    }
    // clap's own: 0 for help and version, else 2.
    ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2))
}

/// The words that were typed, with the unknown noun or verb replaced by the nearest known one.
fn meant(e: &clap::Error, words: impl Iterator<Item = String>) -> Option<String> {
    let ContextValue::String(wrong) = e.get(ContextKind::InvalidSubcommand)? else {
        return None;
    };
    let known = match e.get(ContextKind::SuggestedSubcommand)? {
        ContextValue::String(one) => one.clone(),
        // Sorted by likeness, the best last.
        ContextValue::Strings(all) => all.last()?.clone(),
        _ => return None,
    };
    let mut words: Vec<String> = words.collect();
    let at = words.iter().position(|w| w == wrong)?;
    words.get_mut(at)?.clone_from(&known);
    Some(words.join(" "))
}

async fn run(cli: Cli) -> Run {
    let context = Context::new(&cli.common);
    match cli.noun {
        Noun::Cluster(verb) => cluster::run(&context, verb).await,
        Noun::Node(verb) => node::run(&context, verb).await,
        Noun::Network(verb) => network::run(&context, verb).await,
        Noun::Endpoint(verb) => endpoint::run(&context, verb).await,
        Noun::Service(verb) => service::run(&context, verb).await,
        Noun::Task(verb) => task::run(&context, verb).await,
        Noun::Discover(args) => cluster::discover(&context, args).await,
        Noun::DialStdio => dial::run(&context).await,
        Noun::Status(args) => status::run(&context, args).await,
        Noun::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "netctl", &mut io::stdout());
            Ok(())
        }
    }
}

/// `error: what, why`, then a line `try: command` for each line of the hint.
fn explain(e: &ApiError) -> String {
    let mut text = format!("error: {}\n", e.message);
    for line in e.hint.lines().filter(|l| !l.trim().is_empty()) {
        text.push_str(&format!("try: {}\n", line.trim()));
    }
    // What the user can put right needs no look into the log.
    if e.code == Code::Internal && !e.request_id.is_empty() {
        text.push_str(&format!("request {} in netd's log\n", e.request_id));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn errors_say_what_why_and_what_to_try() {
        let mut e = ApiError::new(
            Code::Conflict,
            "port 80/tcp is in use on n2 (beta) by nginx",
            "netctl service publish web 8080:80\nnetctl service ls",
        );
        assert_eq!(
            explain(&e),
            "error: port 80/tcp is in use on n2 (beta) by nginx\ntry: netctl service publish web 8080:80\ntry: netctl service ls\n"
        );
        e = ApiError::new(Code::Internal, "disk full", "");
        e.request_id = "00ff".into();
        assert_eq!(explain(&e), "error: disk full\nrequest 00ff in netd's log\n");
    }

    /// Every verb's help has a sentence and an example, so that nobody needs the manual for a first try.
    #[test]
    fn every_help_has_an_example() {
        fn walk(command: &clap::Command, path: &str, missing: &mut Vec<String>) {
            if command.has_subcommands() {
                for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
                    walk(sub, &format!("{path} {}", sub.get_name()), missing);
                }
                return;
            }
            let example = command.get_after_help().map(|h| h.to_string());
            let shown = example.is_some_and(|e| e.contains(path));
            if !shown || command.get_about().is_none() {
                missing.push(path.to_owned());
            }
        }
        let mut missing = Vec::new();
        walk(&Cli::command(), "netctl", &mut missing);
        assert_eq!(missing, Vec::<String>::new());
    }
}
