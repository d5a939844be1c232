//! Holds one host of a lab: `lab-anchor hold` makes the namespaces, its child `lab-anchor init` is PID 1 in them.
//!
//! Life is a pipe: standard input is held open by the process that owns the lab. When that ends, however it ends, PID 1
//! reads end-of-file and exits, and the kernel ends every process of the host with it. (A parent-death signal for the
//! anchor would fire when the *thread* that started it ends, and a test's thread ends before its lab.) A host that is
//! told `stay` through the pipe lives on until its anchor is killed: `cargo xtask demo --down`.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{sethostname, setsid};

#[derive(Parser)]
#[command(about = "Holds the namespaces of one host of a lab")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Make the namespaces and wait until PID 1 in them has ended.
    Hold(HostArgs),
    /// Be PID 1 of the host: mount, reap, end with standard input.
    Init(HostArgs),
}

#[derive(Args)]
struct HostArgs {
    /// Host name.
    #[arg(long)]
    name: String,
    /// Folder of the whole run; visible at the same path inside the host.
    #[arg(long)]
    run_dir: PathBuf,
    /// A file that the host shall see as /etc/resolv.conf.
    #[arg(long)]
    resolv_conf: PathBuf,
}

fn main() -> ExitCode {
    let done = match Cli::parse().role {
        Role::Hold(args) => hold(&args),
        Role::Init(args) => init(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab-anchor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn hold(args: &HostArgs) -> anyhow::Result<ExitCode> {
    // Ctrl-C at the terminal is for the owner, who ends its hosts in its own way.
    setsid().context("leaving the terminal")?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
        .context("making the namespaces of a host; try: as root, on a kernel with CONFIG_NET_NS and CONFIG_PID_NS")?;
    let mut init = Command::new("/proc/self/exe");
    init.arg0("lab-init")
        .arg("init")
        .args(["--name", &args.name])
        .arg("--run-dir")
        .arg(&args.run_dir)
        .arg("--resolv-conf")
        .arg(&args.resolv_conf)
        .stdin(Stdio::inherit());
    let mut init = init.spawn().context("starting PID 1 of the host")?;
    say(&format!("init {}", init.id()));
    let status = init.wait().context("waiting for PID 1 of the host")?;
    lab::leave(&args.run_dir);
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn init(args: &HostArgs) -> anyhow::Result<ExitCode> {
    set_pdeathsig(Signal::SIGKILL).context("asking to end with the anchor")?;
    sethostname(&args.name).context("setting the host name")?;
    mounts(args, &OwnMounts::unshare()?)?;
    // Addresses that are tentative for a second would make each start of a lab wait for them.
    for file in [
        "all/accept_dad",
        "default/accept_dad",
        "all/accept_ra",
        "default/accept_ra",
    ] {
        let path = Path::new("/proc/sys/net/ipv6/conf").join(file);
        if path.exists() {
            fs::write(&path, "0").with_context(|| format!("writing {}", path.display()))?;
        }
    }
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().context("blocking SIGCHLD")?;
    let children =
        SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("making a signalfd")?;
    say("ready");
    let stdin = std::io::stdin();
    let mut stays = false;
    loop {
        let mut fds = vec![PollFd::new(children.as_fd(), PollFlags::POLLIN)];
        if !stays {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => bail!("waiting for children: {error}"),
        }
        if fds.get(1).and_then(PollFd::any).unwrap_or(false) {
            if nix::unistd::read(stdin.as_fd(), &mut [0; 64]).unwrap_or(0) == 0 {
                return Ok(ExitCode::SUCCESS);
            }
            stays = true;
        }
        while matches!(children.read_signal(), Ok(Some(_))) {}
        reap();
    }
}

/// Takes every zombie: orphans of the host's processes come to PID 1.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// Proof that this process has left the machine's mount namespace. Without it one mount here would cover the machine's
/// own /proc or /run.
struct OwnMounts(());

impl OwnMounts {
    /// In PID 1 and not in the anchor, which must see the machine's own folders at the end.
    fn unshare() -> anyhow::Result<OwnMounts> {
        let namespace = || fs::read_link("/proc/self/ns/mnt").context("reading the mount namespace's identity");
        let before = namespace()?;
        unshare(CloneFlags::CLONE_NEWNS).context("making the mount namespace of a host")?;
        if namespace()? == before {
            bail!(
                "still in the machine's mount namespace {}: nothing is mounted",
                before.display()
            );
        }
        Ok(OwnMounts(()))
    }
}

fn mounts(args: &HostArgs, _own: &OwnMounts) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making all mounts private")?;
    fresh("proc", Path::new("/proc"))?;
    fresh("sysfs", Path::new("/sys"))?;
    fresh("bpf", Path::new("/sys/fs/bpf")).context("try: a kernel with CONFIG_BPF_SYSCALL")?;

    // Both may lie below /run, or lead there by a link: taken hold of before /run is covered.
    let run_dir = fs::File::open(&args.run_dir).with_context(|| format!("opening {}", args.run_dir.display()))?;
    let resolv_target = fs::canonicalize("/etc/resolv.conf").unwrap_or_else(|_| PathBuf::from("/etc/resolv.conf"));
    let resolv_inside =
        fs::File::open(&args.resolv_conf).with_context(|| format!("opening {}", args.resolv_conf.display()))?;
    fresh("tmpfs", Path::new("/run"))?;
    fs::create_dir_all(&args.run_dir).with_context(|| format!("making {}", args.run_dir.display()))?;
    bind(run_dir.as_raw_fd(), &args.run_dir)?;
    if resolv_target.starts_with("/run") {
        if let Some(parent) = resolv_target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        fs::write(&resolv_target, "").with_context(|| format!("making {}", resolv_target.display()))?;
    }
    bind(resolv_inside.as_raw_fd(), &resolv_target)
}

fn fresh(kind: &str, at: &Path) -> anyhow::Result<()> {
    let data = (kind == "tmpfs").then_some("mode=755");
    mount(Some(kind), at, Some(kind), MsFlags::empty(), data)
        .with_context(|| format!("mounting {kind} on {}", at.display()))
}

fn bind(fd: i32, at: &Path) -> anyhow::Result<()> {
    let source = format!("/proc/self/fd/{fd}");
    mount(Some(source.as_str()), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("binding a file of the lab on {}", at.display()))
}

/// One line to whoever started the lab. It may have gone: then there is nobody to tell.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
