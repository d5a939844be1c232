//! netd: the daemon of a node.
#![allow(clippy::disallowed_methods, reason = "a shell may ask the clock")]

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use netd::{
    api,
    config::{Config, LogFormat},
    daemon::Daemon,
    notify,
};
use tokio::signal::unix::{SignalKind, signal};

/// The networking daemon of a node: overlay, names, published ports, placement.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Every setting of the file can be given as NETD_<SECTION>__<KEY>, e.g. NETD_DATAPATH__PORT=4790.\nSIGTERM stops the daemon and leaves the data path standing."
)]
struct Args {
    /// Settings (TOML). Without it: defaults and the environment.
    #[arg(long, value_name = "FILE", env = "NETD_CONFIG")]
    config: Option<PathBuf>,
    /// Check the settings and exit.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("netd: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref(), std::env::vars())?;
    if args.check {
        println!("configuration is good");
        return Ok(());
    }
    logs(&config)?;
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!(
            "netd makes namespaces and loads kernel programs: it needs root; try: sudo netd, or systemctl start netd"
        );
    }
    netd::reconcile::possible(config.datapath.mode)?;
    keep_secrets_in()?;
    open_many();
    kernel::heap::share_arenas();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_name("netd")
        .build()
        .context("the async runtime cannot start")?;
    runtime.block_on(serve(config))?;
    // Blocking calls into the kernel that still run are cut: the next start finds what they left and goes on.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    Ok(())
}

/// Keys are in this process's memory: no core file of it, and no other user's debugger.
fn keep_secrets_in() -> anyhow::Result<()> {
    use nix::sys::{
        prctl,
        resource::{Resource, setrlimit},
    };
    prctl::set_dumpable(false).context("switching core files off")?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("switching core files off")
}

/// A manager has a socket open for each node, and systemd's soft limit is 1024 files.
fn open_many() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(e) = raised {
        tracing::warn!("the limit of open files stays as it is: {e}");
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let socket = config.socket();
    let listener = api::listen(&socket)
        .await
        .with_context(|| format!("socket {}", socket.display()))?;
    let (daemon, mut fatal) = Daemon::start(config).await?;
    let served = tokio::spawn(api::serve(listener, api::router(daemon.clone())));
    let ready = {
        let daemon = daemon.clone();
        tokio::spawn(async move {
            daemon.wait_ready().await;
            tracing::info!("ready: the first plan is applied");
            notify::ready();
        })
    };
    let ended = tokio::select! {
        _ = term.recv() => Ok("SIGTERM"),
        _ = int.recv() => Ok("SIGINT"),
        Some(why) = fatal.recv() => Err(anyhow::anyhow!(why)),
    };
    notify::stopping();
    ready.abort();
    served.abort();
    daemon.stop().await;
    // The file is ours alone: a second daemon would have refused to start.
    let _ = std::fs::remove_file(&socket);
    let why = ended?;
    tracing::info!("{why}: stopped; the data path stands");
    Ok(())
}

fn logs(config: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.level)
        .with_context(|| format!("[log] level {:?}; try: info", config.log.level))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(false).init(),
    }
    Ok(())
}
