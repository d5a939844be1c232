//! The disk of a manager's log: full, and failing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{DaemonOptions, Options, eventually, until};
use model::api::ServiceView;
use model::intent::RolloutState;
use tests::managers::{SETTLED, http, http_within, socket};
use tests::{in_lab, in_lab_with, status};

#[test]
fn a_full_disk_is_told_and_recovers_and_a_failing_one_ends_the_daemon() {
    in_lab("disks", 1, |lab| {
        let n1 = lab.host("n1")?;
        let raft = n1.folder().join("state/raft").display().to_string();
        std::fs::create_dir_all(&raft)?;
        // Room for one segment of the log, not for two.
        n1.sh(&format!("mount -t tmpfs -o size=24m none {raft}"))?.ok()?;
        n1.start_netd()?;
        n1.netctl(&format!("cluster init --advertise-addr {}", n1.v4()))?.ok()?;
        n1.netctl("network create kept")?.ok()?;
        n1.start_runner()?;
        // The delay is longer than the disk takes to fill.
        n1.netctl("service create web --replicas 2 --update-delay 10s -- sleep 1000")?
            .ok()?;
        n1.netctl("service update web --detach -- sleep 1001")?.ok()?;
        let change = || -> anyhow::Result<(RolloutState, String)> {
            let web: ServiceView = n1.netctl("service inspect web -o json")?.json()?;
            let rollout = web.service.rollout.context("no change is under way")?;
            Ok((rollout.state, web.stuck.unwrap_or_default()))
        };

        // 1. Full: nothing is changed, all is shown, and it is said.
        let at = socket(n1);
        let full = fill(&at)?;
        ensure!(full.contains("disk") && full.contains("full"), "{full}");
        let (seen, _) = until("status to say so", SETTLED, || {
            let seen = status(n1)?;
            let told = |p: &String| p.contains("disk of the managers' log is full");
            ensure!(seen.problems.iter().any(told), "{:?}", seen.problems);
            Ok(Some(seen))
        })?;
        ensure!(seen.networks.iter().any(|n| n.name.as_str() == "kept"), "reads go on");
        let members = n1.netctl("cluster members")?.ok()?;
        ensure!(members.stderr.contains("full"), "{}", members.stderr);
        // What goes on by itself is told where it is looked for.
        eventually("the update to be held up, and said to be", SETTLED * 2, || {
            let (state, why) = change()?;
            ensure!(state == RolloutState::Updating, "{state:?}");
            Ok(why.contains("the update is held up") && why.contains("full"))
        })?;
        let listed = n1.netctl("service ls")?.ok()?.stdout;
        ensure!(listed.contains("the update is held up"), "{listed}");
        // Room again: nothing needs to be started.
        n1.sh(&format!("mount -o remount,size=200m {raft}"))?.ok()?;
        eventually("changes to be taken again", SETTLED, || {
            Ok(n1.netctl("network create after --detach")?.success())
        })?;
        eventually("status to be clean", SETTLED, || {
            Ok(!status(n1)?.problems.iter().any(|p| p.contains("full")))
        })?;
        eventually("the update to go on to its end", SETTLED * 2, || {
            Ok(change()? == (RolloutState::Completed, String::new()))
        })?;

        // 2. A sync fails: nothing is acknowledged, and the daemon ends at once.
        let pid = n1.netd_pid()?;
        let mut strace = Command::new("strace")
            .args(["-f", "-q", "-p", &pid.to_string(), "-e", "trace=fdatasync"])
            .args(["-e", "inject=fdatasync:error=EIO", "-o", "/dev/null"])
            .stdin(Stdio::null())
            .spawn()
            .context("strace")?;
        traced(pid)?;
        let answer = http(&at, "PUT", "/v1/services/lost", None, "{}");
        ensure!(!matches!(&answer, Ok((200, _))), "acknowledged: {answer:?}");
        let took = eventually("the daemon to end", Duration::from_secs(10), || {
            Ok(!PathBuf::from(format!("/proc/{pid}/exe")).exists())
        })?;
        eprintln!("a sync failed: netd ended after {took:.2?}");
        let _ = strace.wait();
        ensure!(n1.netd_log()?.contains("the log cannot be written"), "it says why");
        n1.kill_netd()?;
        n1.start_netd()?;
        let seen = status(n1)?;
        ensure!(
            seen.networks.iter().any(|n| n.name.as_str() == "after"),
            "what was acknowledged is there"
        );
        Ok(())
    });
}

/// Makes and removes large services until the disk is full: what netd says then.
fn fill(at: &Path) -> anyhow::Result<String> {
    let body = format!("{{\"env\":{{\"A\":\"{}\"}}}}", "x".repeat(700_000));
    for _ in 0..60 {
        for (method, body) in [("PUT", body.as_str()), ("DELETE", "")] {
            let (code, said) = http_within(Duration::from_secs(20), at, method, "/v1/services/large", None, body)?;
            if code != 200 {
                return Ok(said);
            }
        }
    }
    anyhow::bail!("the disk never got full")
}

/// Waits until every thread of a process is traced.
fn traced(pid: u32) -> anyhow::Result<()> {
    eventually("strace to be attached", SETTLED, || {
        let mut all = true;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let text = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            all &= text.lines().any(|l| l.starts_with("TracerPid:") && !l.ends_with("\t0"));
        }
        Ok(all)
    })?;
    Ok(())
}

#[test]
fn the_log_has_a_folder_of_its_own() {
    // Without addresses in the configuration its section [cluster] is this story's to write.
    let options = Options {
        nodes: 1,
        daemon: DaemonOptions {
            no_addresses: true,
            ..DaemonOptions::default()
        },
        ..Options::default()
    };
    in_lab_with("log-dir", options, |lab| {
        let n1 = lab.host("n1")?;
        let (fast, other) = (n1.folder().join("fast"), n1.folder().join("other"));
        let set = |dir: &Path| n1.configure(&format!("[cluster]\nlog_dir = \"{}\"", dir.display()));
        let kept = || -> anyhow::Result<()> {
            let seen = status(n1)?;
            ensure!(seen.networks.iter().any(|n| n.name.as_str() == "kept"), "{seen:?}");
            Ok(())
        };
        set(&fast)?;
        n1.start_netd()?;
        n1.netctl(&format!("cluster init --advertise-addr {}", n1.v4()))?.ok()?;
        n1.netctl("network create kept")?.ok()?;
        ensure!(
            holds_log(&fast) && !holds_log(&n1.folder().join("state/raft")),
            "the log is not where it was to be"
        );
        n1.kill_netd()?;
        n1.start_netd()?;
        kept()?;

        // Another folder is set, and the log is not there: no new one is begun, and it is said where it is.
        n1.stop_netd()?;
        set(&other)?;
        let why = match n1.start_netd() {
            Ok(_) => anyhow::bail!("netd began without its log"),
            Err(e) => format!("{e:#}"),
        };
        for part in [
            &fast.display().to_string(),
            &other.display().to_string(),
            "log_dir",
            "move the folder",
        ] {
            ensure!(why.contains(part), "{part} is not in: {why}");
        }
        ensure!(!other.exists(), "nothing was made there");
        // As was said.
        std::fs::rename(&fast, &other)?;
        n1.start_netd()?;
        kept()?;
        n1.netctl("network create more")?.ok()?;
        Ok(())
    });
}

fn holds_log(dir: &Path) -> bool {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .into_iter()
        .any(|f| f.file_name().to_string_lossy().starts_with("log-"))
}
