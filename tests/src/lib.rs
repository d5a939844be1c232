//! End-to-end tests: the real binaries on hosts of a lab. Needs root.
//!
//! Each file in `tests/` is one lab and one story. A step that falls short ends the test with the last lines of every
//! daemon's log.

pub mod load;
pub mod managers;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lab::wire::Tally;
use lab::{Host, Lab, Options, eventually};
use model::api::{ServiceView, Status, TaskState, TaskView};

/// The service that the steps below speak of.
pub const SERVICE: &str = "web";

/// Runs a story in a fresh lab of `nodes` nodes and a client; no daemon runs yet.
///
/// # Panics
///
/// When a step falls short, with the logs.
pub fn in_lab(name: &str, nodes: u8, story: impl FnOnce(&Lab) -> anyhow::Result<()>) {
    let options = Options {
        nodes,
        ..Options::default()
    };
    in_lab_with(name, options, story);
}

/// As [`in_lab`], with other options.
///
/// # Panics
///
/// As [`in_lab`].
pub fn in_lab_with(name: &str, options: Options, story: impl FnOnce(&Lab) -> anyhow::Result<()>) {
    let made = programs().and_then(|bin_dir| {
        Lab::new(
            name,
            Options {
                bin_dir: Some(bin_dir),
                ..options
            },
        )
    });
    let told = made.and_then(|lab| story(&lab).map_err(|error| error.context(lab.tail(60))));
    if let Err(error) = told {
        // The chain's first entry is the logs; the reason belongs at the end, where a person looks.
        let reasons: Vec<String> = error.chain().map(ToString::to_string).collect();
        panic!("\n{}", reasons.join("\n"));
    }
}

/// As [`in_lab`], with a cluster of all nodes.
///
/// # Panics
///
/// As [`in_lab`].
pub fn in_cluster(name: &str, nodes: u8, story: impl FnOnce(&Lab) -> anyhow::Result<()>) {
    in_lab(name, nodes, |lab| {
        lab.form_cluster().context("forming the cluster")?;
        story(lab)
    });
}

/// Whether the lab's nodes balance by IPVS. The few rows that one data path alone can do are listed in ARCHITECTURE.md.
pub fn by_ipvs() -> bool {
    std::env::var("NETD_LAB_DATAPATH").is_ok_and(|mode| mode == "ipvs")
}

/// Connections a second that a story asks for, as a word: a tenth of `n` where the CPUs are emulated.
pub fn rate(n: u32) -> String {
    let emulated = std::env::var("NETD_LANE").is_ok_and(|lane| lane == "kernel61");
    (if emulated { n / 10 } else { n }).to_string()
}

/// The device of the tunnel on a host that is in one network, and the words that run `ip` where it is: by IPVS in the
/// network's sandbox.
///
/// # Errors
///
/// When there is none.
pub fn tunnel(host: &Host) -> anyhow::Result<(String, String)> {
    if !by_ipvs() {
        return Ok(("nx0".to_owned(), "ip".to_owned()));
    }
    let all = host.sh("ls /run/netd/netns")?.ok()?.stdout;
    let vni = all.split_whitespace().find_map(|name| name.strip_prefix("net-"));
    let vni = vni.with_context(|| format!("{} has no sandbox: {all}", host.name()))?;
    let ip = format!("nsenter --net=/run/netd/netns/net-{vni} ip");
    Ok((format!("nx{vni}"), ip))
}

/// What of tasks and endpoints a host has: namespaces that netd made for them, and their veths' outer ends. By IPVS those
/// ends are in the sandboxes of the networks, which stay for as long as there are networks.
///
/// # Errors
///
/// When the host cannot be looked at.
pub fn attached(host: &Host) -> anyhow::Result<(Vec<String>, usize)> {
    let all = host.run(&["find", "/run/netd/netns", "-mindepth", "1"])?.stdout;
    let all: Vec<&str> = all.lines().collect();
    let network = |path: &&str| by_ipvs() && path.starts_with("/run/netd/netns/net-");
    let (networks, own): (Vec<&str>, Vec<&str>) = all.into_iter().partition(network);
    let mut links = host.sh("ip -o link")?.ok()?.stdout;
    for network in networks {
        links += &host.sh(&format!("nsenter --net={network} ip -o link"))?.ok()?.stdout;
    }
    // `nvh` and `nvup`: between the host and a network.
    let of = |name: &str| links.matches(&format!(": nv{name}")).count();
    let veths = if by_ipvs() { of("") - of("h") - of("up") } else { of("") };
    Ok((own.into_iter().map(str::to_owned).collect(), veths))
}

/// The folder of the binaries. `cargo xtask test` has built them; otherwise they are built here, so that
/// `cargo test -p tests` never tests old ones.
fn programs() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(dir) = std::env::var_os("NETD_BIN_DIR") {
        return Ok(PathBuf::from(dir));
    }
    BUILT
        .get_or_init(|| build().map_err(|e| format!("{e:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args([
            "build", "--quiet", "-p", "netd", "-p", "netctl", "-p", "runner", "-p", "lab",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("running cargo build")?;
    ensure!(status.success(), "cargo build failed ({status})");
    let exe = std::env::current_exe().context("asking for this program's path")?;
    exe.ancestors()
        .nth(2)
        .map(PathBuf::from)
        .context("this program lies in no target folder")
}

/// Creates [`SERVICE`] with tasks that answer on port 80, and waits until they run and every node leads to them.
///
/// # Errors
///
/// When netd refuses, or it is not so in time.
pub fn create_web(lab: &Lab, network: &str, replicas: usize) -> anyhow::Result<()> {
    let n1 = lab.host("n1")?;
    let (tool, count) = (n1.tool(), replicas.to_string());
    n1.run(&[
        "netctl",
        "service",
        "create",
        SERVICE,
        "--network",
        network,
        "--replicas",
        &count,
        "--",
        &tool,
        "serve",
        "--port",
        "80",
    ])?
    .ok()?;
    running(n1, replicas)?;
    known(lab, SERVICE, u32::try_from(replicas)?)
}

/// Waits until every node that is in a cluster sees `count` ready tasks of a service. Commands wait for what the log
/// says, and for the tasks as the node that is asked sees them; the other nodes are told of endpoints a moment later.
///
/// # Errors
///
/// When the time is over.
pub fn known(lab: &Lab, service: &str, count: u32) -> anyhow::Result<()> {
    let member = |n: &&Host| status(n).is_ok_and(|s| s.me.is_some());
    for node in lab.nodes().iter().filter(member) {
        let what = format!("{} to see {count} ready tasks of {service}", node.name());
        eventually(&what, Duration::from_secs(20), || {
            let seen: ServiceView = node.netctl(&format!("service inspect {service} -o json"))?.json()?;
            ensure!(seen.ready == count, "it sees {}", seen.ready);
            Ok(true)
        })?;
    }
    Ok(())
}

/// The tasks of [`SERVICE`], history included.
///
/// # Errors
///
/// When netctl fails.
pub fn tasks(host: &Host) -> anyhow::Result<Vec<TaskView>> {
    host.netctl(&format!("service ps {SERVICE} -o json"))?.json()
}

/// Waits until exactly `count` tasks of [`SERVICE`] are wanted and all run.
///
/// # Errors
///
/// When the time is over.
pub fn running(host: &Host, count: usize) -> anyhow::Result<()> {
    eventually(&format!("{count} running tasks"), Duration::from_secs(40), || {
        let wanted: Vec<TaskView> = tasks(host)?.into_iter().filter(|t| t.desired).collect();
        let run = wanted.iter().filter(|t| t.state == TaskState::Running).count();
        ensure!(
            wanted.len() == count && run == count,
            "{run} of {} wanted tasks run",
            wanted.len()
        );
        Ok(true)
    })?;
    Ok(())
}

/// The nodes of the wanted tasks of [`SERVICE`].
///
/// # Errors
///
/// When netctl fails.
pub fn homes(host: &Host) -> anyhow::Result<BTreeSet<String>> {
    Ok(tasks(host)?
        .into_iter()
        .filter(|t| t.desired)
        .map(|t| t.hostname)
        .collect())
}

/// `lab-tool tally` on a host, or in a namespace of it.
///
/// # Errors
///
/// When it cannot be run.
pub fn tally(host: &Host, netns: Option<&str>, words: &str) -> anyhow::Result<Tally> {
    let line = format!("lab-tool tally {words}");
    let argv: Vec<&str> = line.split_whitespace().collect();
    match netns {
        Some(netns) => host.in_netns(netns, &argv)?,
        None => host.run(&argv)?,
    }
    .json()
}

fn port_range(first: u16, count: u16) -> String {
    format!(
        "echo {first} {} >/proc/sys/net/ipv4/ip_local_port_range",
        first + count - 1
    )
}

/// Gives what is sent from now on from a host, or a namespace of it, the next `count` ports, which nobody in this story has used:
/// of two connections that a client has at one time by one port to one backend, IPVS keeps the later one. A story has 40,000.
///
/// # Errors
///
/// When there are none left, or the range cannot be set.
pub fn ports_apart(host: &Host, netns: Option<&str>, count: u16) -> anyhow::Result<()> {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let first = NEXT.fetch_add(count, Ordering::Relaxed);
    ensure!(first <= 60_000 - count, "this story has used all its ports");
    let argv = ["sh", "-c", &port_range(first, count)];
    match netns {
        Some(netns) => host.in_netns(netns, &argv)?,
        None => host.run(&argv)?,
    }
    .ok()?;
    Ok(())
}

/// As [`tally`], where every try must be answered.
///
/// # Errors
///
/// When one is not.
pub fn all_answered(host: &Host, netns: Option<&str>, words: &str) -> anyhow::Result<Tally> {
    let seen = tally(host, netns, words)?;
    if seen.errors() > 0 || seen.tried == 0 {
        bail!(
            "{}{}: tally {words}: {seen}",
            host.name(),
            netns.map(|n| format!("/{n}")).unwrap_or_default()
        );
    }
    Ok(seen)
}

/// As [`all_answered`], where the backends must have seen the client's own address.
///
/// # Errors
///
/// When a try was not answered, or an address was changed on the way.
pub fn address_kept(host: &Host, netns: Option<&str>, words: &str) -> anyhow::Result<Tally> {
    let seen = all_answered(host, netns, words)?;
    ensure!(
        seen.address_kept == seen.ok(),
        "tally {words}: the client was seen under another address: {seen}"
    );
    Ok(seen)
}

/// `netctl status` of a host.
///
/// # Errors
///
/// When netctl fails.
pub fn status(host: &Host) -> anyhow::Result<Status> {
    host.netctl("status -o json")?.json()
}

/// A counter of a host's data path; 0 when it is not told.
///
/// # Errors
///
/// When netctl fails.
pub fn counter(host: &Host, name: &str) -> anyhow::Result<u64> {
    Ok(status(host)?.counters.get(name).copied().unwrap_or(0))
}

/// Waits until a counter has grown by at least `by`.
///
/// # Errors
///
/// When it has not after 10 s.
pub fn grows(host: &Host, name: &str, before: u64, by: u64) -> anyhow::Result<()> {
    eventually(
        &format!("{name} on {} to grow by {by}", host.name()),
        Duration::from_secs(10),
        || {
            let grown = counter(host, name)?.saturating_sub(before);
            ensure!(grown >= by, "it grew by {grown}");
            Ok(true)
        },
    )?;
    Ok(())
}
