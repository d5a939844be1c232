//! The lane itself: what becomes of a guest that goes wrong. Each boots one; `cargo xtask test --lane ipvs` runs them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use lab::eventually;

use super::*;

/// For what takes seconds, on a machine that is busy too.
const LIMIT: Duration = Duration::from_secs(300);

fn guest(script: &str, limit: Duration) -> (anyhow::Result<i32>, Vec<String>) {
    let mut said = Vec::new();
    let told = run(script, &[], limit, &mut |line| said.push(line.to_owned()));
    (told, said)
}

#[test]
#[ignore = "boots User-Mode Linux: cargo xtask test --lane ipvs"]
fn a_script_has_a_status_and_a_kernel_with_ipvs() {
    let (told, said) = guest("ipvsadm -A -f 7 -s mh && ipvsadm -Sn; exit 3", LIMIT);
    assert_eq!((told.unwrap(), said), (3, vec!["-A -f 7 -s mh".to_owned()]));
}

#[test]
#[ignore = "boots User-Mode Linux: cargo xtask test --lane ipvs"]
fn a_guest_writes_nothing_of_this_machine() {
    let here = std::env::temp_dir().join(format!("netd-lane-{}", std::process::id()));
    fs::create_dir(&here).unwrap();
    let seen = here.join("seen");
    fs::write(&seen, "yes\n").unwrap();
    // Whoever runs a guest may write here, its guest may not, in neither of its views.
    let script = format!(
        "cat {0}/seen; echo >{0}/seen || echo refused; umount {0}; umount /tmp; echo >{0}/seen || echo refused",
        here.display()
    );
    let mut said = Vec::new();
    let told = run(&script, &[&here], LIMIT, &mut |line| said.push(line.to_owned()));
    let left = fs::read_to_string(&seen).unwrap();
    fs::remove_dir_all(&here).unwrap();
    assert_eq!(told.unwrap(), 0);
    said.retain(|line| !line.contains("cannot create"));
    assert_eq!(said, ["yes", "refused", "refused"]);
    assert_eq!(left, "yes\n");
}

#[test]
#[ignore = "boots User-Mode Linux: cargo xtask test --lane ipvs"]
fn a_kernel_that_panics_is_a_failure_with_its_last_words() {
    // What was said a moment before is on its way through a pipe still.
    let (told, said) = guest("echo before; sleep 1; echo c >/proc/sysrq-trigger; echo after", LIMIT);
    let why = told.unwrap_err().to_string();
    assert_eq!(said, ["before"]);
    assert!(
        why.contains("before its work was done") && why.contains("its last line: before"),
        "{why}"
    );
    assert!(why.contains("Kernel panic"), "{why}");
}

#[test]
#[ignore = "boots User-Mode Linux: cargo xtask test --lane ipvs"]
fn a_guest_that_hangs_is_a_failure_and_ended() {
    // A machine that is busy may take longer to boot one.
    for limit in [10, 60, 300] {
        let (told, said) = guest("echo before; exec sleep 600", Duration::from_secs(limit));
        let why = told.unwrap_err().to_string();
        let end = format!("not done after {limit} s");
        assert!(why.contains(&end), "{why}");
        if !said.is_empty() {
            assert_eq!(said, ["before"]);
            assert!(why.contains("its last line: before"), "{why}");
            return;
        }
    }
    panic!("no guest has ever booted");
}

/// Run by the next one, as a process of its own.
#[test]
#[ignore = "a part of the next test"]
fn a_guest_that_stays() {
    if std::env::var_os("NETD_LANE_STAY").is_some() {
        // Again and again: what a guest says last may stay in its terminal until it says more.
        let script = "sleep 600 & while echo here; do sleep 1; done";
        let _ = run(script, &[], LIMIT, &mut |line| println!("{line}"));
    }
}

#[test]
#[ignore = "boots User-Mode Linux: cargo xtask test --lane ipvs"]
fn who_is_killed_leaves_no_guest() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--ignored",
            "--nocapture",
            "lane::ipvs::uml::tests::a_guest_that_stays",
        ])
        .env("NETD_LANE_STAY", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "here"));
    let all = below(owner.id());
    // What waits for it (unshare, sh, setsid) has its words too, but not as its own name.
    let kernels: Vec<_> = all.iter().filter(|(_, line)| line.starts_with("linux.uml")).collect();
    // The kernel, and a process for each of the guest's.
    assert!(kernels.len() > 2, "{all:?}");
    let cpus: BTreeSet<String> = kernels
        .iter()
        .filter_map(|(pid, _)| fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .filter_map(|status| {
            Some(
                status
                    .split_once("Cpus_allowed_list:")?
                    .1
                    .lines()
                    .next()?
                    .trim()
                    .to_owned(),
            )
        })
        .collect();
    assert!(
        matches!(&*Vec::from_iter(&cpus), [one] if one.parse::<usize>().is_ok()),
        "all of it is on one CPU: {cpus:?}"
    );
    owner.kill().unwrap();
    owner.wait().unwrap();
    let left = || {
        all.iter()
            .filter(|(pid, line)| command_line(*pid).as_ref() == Some(line))
    };
    let gone = eventually("all of it to be gone", Duration::from_secs(60), || {
        Ok(left().next().is_none())
    });
    assert!(gone.is_ok(), "{:?}", left().collect::<Vec<_>>());
}

/// The processes below one, with their command lines.
fn below(pid: u32) -> BTreeSet<(u32, String)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let children = fs::read_to_string(entry.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            found.extend(command_line(child).map(|line| (child, line)));
            found.extend(below(child));
        }
    }
    found
}

/// `None`: it has ended.
fn command_line(pid: u32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    (!line.is_empty()).then(|| String::from_utf8_lossy(&line).replace('\0', " "))
}
