//! `netd-run`: the orchestrator that ships with netd. It knows netd by its Unix socket alone: it watches what should run
//! on this node, asks for an endpoint for each task, runs the command in the endpoint's namespace, and reports.
//!
//! [`task`] decides (pure); [`supervisor`] carries out: [`netd`] asks the socket, [`process`] starts, finds and ends
//! processes, [`health`] asks how they are, [`record`] remembers them over a restart, [`report`] tells netd, [`logs`]
//! bounds their output.
//!
//! Tasks outlive this program and netd: a restart of either finds them and goes on.
#![allow(clippy::disallowed_methods, reason = "a shell may ask the clock")]

mod health;
mod inbox;
mod logs;
mod netd;
mod process;
mod record;
mod report;
mod supervisor;
mod task;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use model::client::{Client, DEFAULT_SOCKET, SOCKET_ENV};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Run the tasks that netd's cluster places on this node.
///
/// Each task is a process in a network namespace of its own that netd makes and attaches. Tasks go on when netd-run or
/// netd stops; a restarted netd-run finds them again.
#[derive(Debug, Parser)]
#[command(
    name = "netd-run",
    version,
    after_help = "Example:\n  netd-run --log-dir /var/log/netd-run --state-dir /run/netd-run\n\nLog level: RUST_LOG, e.g. RUST_LOG=debug."
)]
struct Cli {
    /// Unix socket of netd.
    #[arg(long, env = SOCKET_ENV, default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// Folder for the output of tasks, a file each.
    #[arg(
        long,
        env = "NETD_RUN_LOG_DIR",
        default_value = "/var/log/netd-run",
        value_name = "DIR"
    )]
    log_dir: PathBuf,
    /// Folder for what must survive a restart of netd-run (not of the machine): which process is which task.
    #[arg(
        long,
        env = "NETD_RUN_STATE_DIR",
        default_value = "/run/netd-run",
        value_name = "DIR"
    )]
    state_dir: PathBuf,
    /// At SIGTERM, drain and stop the tasks too.
    #[arg(long)]
    stop_tasks: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime; try: ulimit -n");
    match runtime.and_then(|r| r.block_on(run(cli))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{}", process::why(e.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let store = record::Store::open(&cli.state_dir)?;
    let logs = logs::Logs::open(&cli.log_dir)?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut supervisor = supervisor::Supervisor::new(Client::new(cli.socket), store, logs)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = supervisor.run() => {}
    }
    if cli.stop_tasks {
        tracing::info!("stopping the tasks");
        tokio::select! {
            () = supervisor.stop_tasks() => {}
            // Whoever asks twice is in a hurry.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    } else {
        tracing::info!("the tasks go on without netd-run");
    }
    Ok(())
}
