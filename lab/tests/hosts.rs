//! Hosts come and go, whatever happens to the process that made them. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::wire::{Tally, Transfer};
use lab::{Lab, OUTSIDE_V4, OUTSIDE_V6, Options, eventually};

fn bin_dir() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_lab-anchor")).parent().unwrap().to_owned()
}

fn options(nodes: u8) -> Options {
    Options {
        nodes,
        bin_dir: Some(bin_dir()),
        ..Options::default()
    }
}

fn links_of_this_machine() -> String {
    let out = Command::new("ip").args(["-o", "link"]).output().unwrap();
    // Counters and states of links that are not ours may change; names and indices may not.
    let mut names: Vec<String> = String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|l| l.split(": ").nth(1).map(str::to_owned))
        .filter(|name| name.contains("n1") || name.contains("client") || name == "br0" || name == "outside")
        .collect();
    names.sort();
    names.join(" ")
}

#[test]
fn hosts_are_apart_and_reach_each_other() {
    let lab = Lab::new("apart", options(2)).unwrap();
    let (n1, n2, client) = (lab.host("n1").unwrap(), lab.host("n2").unwrap(), lab.client().unwrap());
    assert_eq!(n1.sh("hostname").unwrap().ok().unwrap().stdout, "n1\n");
    assert_eq!(
        links_of_this_machine(),
        "",
        "nothing of a lab lies in the machine's own namespaces"
    );

    // Its own /run, /sys, /proc and bpffs.
    n1.sh("touch /run/only-here").unwrap().ok().unwrap();
    assert!(!n2.sh("ls /run/only-here").unwrap().success());
    assert!(!Path::new("/run/only-here").exists());
    let devices = n1.sh("ls /sys/class/net").unwrap().ok().unwrap().stdout;
    assert_eq!(devices.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);
    let mounts = n1.sh("cat /proc/mounts").unwrap().ok().unwrap().stdout;
    assert!(mounts.lines().any(|l| l.starts_with("bpf /sys/fs/bpf ")), "{mounts}");
    assert_eq!(n1.sh("cat /proc/1/comm").unwrap().ok().unwrap().stdout, "exe\n");

    // Both families, both protocols, and the client's address.
    n1.serve("web", &["lab-tool", "serve", "--port", "80", "--task", "t1"])
        .unwrap();
    for (to, own) in [
        (n1.at(80), client.v4().into()),
        (n1.at_v6(80), std::net::IpAddr::from(client.v6())),
    ] {
        for udp in [false, true] {
            let mut argv = vec!["lab-tool", "tally", "--to", &to, "-n", "20"];
            argv.extend(udp.then_some("--udp"));
            let tally: Tally = client.run(&argv).unwrap().json().unwrap();
            assert_eq!(
                (tally.answered.get("n1/t1"), tally.errors()),
                (Some(&20), 0),
                "{to} udp={udp}"
            );
            assert_eq!(tally.seen_as.keys().copied().collect::<Vec<_>>(), [own]);
            assert_eq!(tally.address_kept, 20);
        }
    }
    let page = client
        .run(&["curl", "-s", &format!("http://{}/", n1.at(80))])
        .unwrap()
        .ok()
        .unwrap();
    assert_eq!(page.stdout, format!("n1/t1 {}\n", client.v4()));

    // The outside, and names from it.
    lab.switch()
        .serve("web", &["lab-tool", "serve", "--port", "80", "--task", "out"])
        .unwrap();
    for outside in [format!("{OUTSIDE_V4}:80"), format!("[{OUTSIDE_V6}]:80")] {
        let tally: Tally = n1
            .run(&["lab-tool", "tally", "--to", &outside, "-n", "3"])
            .unwrap()
            .json()
            .unwrap();
        assert_eq!(tally.answered.get("switch/out"), Some(&3));
    }
    lab.switch()
        .serve("names", &["lab-tool", "names", "--listen", "198.18.0.1:53"])
        .unwrap();
    let found = n1.sh("getent ahostsv4 example.org").unwrap().ok().unwrap().stdout;
    assert!(found.contains("192.0.2.53"), "{found}");
    assert!(!n1.sh("getent ahostsv4 missing.example.org").unwrap().success());

    // A stream arrives whole.
    let transfer: Transfer = client
        .run(&["lab-tool", "fetch", "--to", &n1.at(80), "--octets", "3000000"])
        .unwrap()
        .json()
        .unwrap();
    assert_eq!((transfer.lost(), transfer.error), (0, None));
}

#[test]
fn a_cut_cable_is_seen_and_healed() {
    let lab = Lab::new("cut", options(1)).unwrap();
    let (n1, client) = (lab.host("n1").unwrap(), lab.client().unwrap());
    n1.serve("web", &["lab-tool", "serve", "--port", "80"]).unwrap();
    let to = n1.at(80);
    let ask = || -> Tally {
        client
            .run(&["lab-tool", "tally", "--to", &to, "-n", "1", "--timeout-ms", "1000"])
            .unwrap()
            .json()
            .unwrap()
    };
    assert_eq!(ask().ok(), 1);
    n1.cut().unwrap();
    let cut = ask();
    assert_eq!((cut.ok(), cut.errors()), (0, 1));
    assert!(cut.last_failure_at.is_some());
    n1.heal().unwrap();
    eventually("the healed cable to carry", Duration::from_secs(5), || {
        Ok(ask().ok() == 1)
    })
    .unwrap();
}

#[test]
fn processes_are_waited_for_signalled_and_killed() {
    let lab = Lab::new("processes", options(1)).unwrap();
    let n1 = lab.host("n1").unwrap();
    assert_eq!(n1.run(&["sh", "-c", "echo out; echo err >&2; exit 7"]).unwrap().code, 7);
    let mut sleeper = n1
        .spawn("sleeper", &["sh", "-c", "echo started; exec sleep 600"])
        .unwrap();
    assert_eq!(sleeper.line("started", Duration::from_secs(5)).unwrap(), "started");
    assert_eq!(sleeper.ended(), None);
    let pid = sleeper.pid().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(n1.processes("sleep 600").unwrap(), [pid]);
    assert!(
        lab.client().unwrap().processes("sleep 600").unwrap().is_empty(),
        "another host has none"
    );
    sleeper.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(sleeper.wait(Duration::from_secs(5)).unwrap().code, 143);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());

    let mut early = n1.spawn("early", &["sh", "-c", "echo no; exit 3"]).unwrap();
    let error = early.line("yes", Duration::from_secs(5)).unwrap_err().to_string();
    assert!(error.contains("ended with 3") && error.contains("no"), "{error}");
}

#[test]
fn a_task_namespace_of_a_host_can_be_entered() {
    let lab = Lab::new("netns", options(1)).unwrap();
    let n1 = lab.host("n1").unwrap();
    let path = n1.make_netns("t1").unwrap();
    assert!(n1.sh(&format!("test -e {path}")).unwrap().success());
    assert!(!Path::new("/run/netns/t1").exists());
    n1.serve_in_netns("t1", "inner", &["lab-tool", "serve", "--port", "80", "--task", "inner"])
        .unwrap();
    let tally: Tally = n1
        .in_netns("t1", &["lab-tool", "tally", "--to", "127.0.0.1:80", "-n", "2"])
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(tally.answered.get("n1/inner"), Some(&2));
    let outside: Tally = n1.sh("lab-tool tally --to 127.0.0.1:80 -n 1").unwrap().json().unwrap();
    assert_eq!(
        outside.failed.get("refused"),
        Some(&1),
        "the host itself has no such server"
    );
}

/// Not a test by itself: the process that the next test kills. It prints its hosts and waits.
#[test]
#[ignore = "run by kill_9_of_the_owner_leaves_nothing"]
fn owner_that_will_be_killed() {
    let lab = Lab::new("killed", options(1)).unwrap();
    let n1 = lab.host("n1").unwrap();
    n1.make_netns("inner").unwrap();
    n1.serve("web", &["lab-tool", "serve", "--port", "80"]).unwrap();
    println!("FOLDER {}", lab.folder().display());
    println!("INIT {}", n1.init_pid());
    std::thread::sleep(Duration::from_secs(600));
}

fn processes_that_mention(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(line) = std::fs::read(entry.path().join("cmdline")) {
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(text) {
                found.push(line);
            }
        }
    }
    found
}

#[test]
fn kill_9_of_the_owner_leaves_nothing() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "owner_that_will_be_killed"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let (mut folder, mut init) = (String::new(), String::new());
    for line in BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
    {
        // libtest may print its own words in front of the first line.
        if let Some((_, path)) = line.split_once("FOLDER ") {
            folder = path.to_owned();
        } else if let Some((_, pid)) = line.split_once("INIT ") {
            init = pid.to_owned();
            break;
        }
    }
    assert!(Path::new(&folder).is_dir(), "the lab was made: {folder:?}");
    assert!(Path::new(&format!("/proc/{init}/ns/net")).exists());
    assert!(!processes_that_mention(&folder).is_empty());

    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("every process of the lab to end", Duration::from_secs(10), || {
        Ok(processes_that_mention(&folder).is_empty() && !Path::new(&format!("/proc/{init}/ns/net")).exists())
    })
    .unwrap();
    eventually("the last anchor to remove the folder", Duration::from_secs(5), || {
        Ok(!Path::new(&folder).exists())
    })
    .unwrap();
}

#[test]
fn a_folder_that_nobody_owns_is_swept_and_a_living_one_is_not() {
    let lab = Lab::new("owned", options(0)).unwrap();
    let own = lab.folder().to_owned();
    let dead = own.parent().unwrap().join(format!("dead-{}", std::process::id()));
    std::fs::create_dir(&dead).unwrap();
    // No process has this number: it is above the kernel's limit (PID_MAX_LIMIT, linux/threads.h).
    std::fs::write(dead.join("owner"), "4194305 1\n").unwrap();
    lab::sweep();
    assert!(!dead.exists());
    assert!(own.is_dir());
    drop(lab);
    assert!(!own.exists());
}

#[test]
fn a_lab_that_panics_is_gone() {
    let folder = std::panic::catch_unwind(|| {
        let lab = Lab::new("panics", options(1)).unwrap();
        let folder = lab.folder().to_owned();
        std::panic::panic_any(folder);
    })
    .unwrap_err()
    .downcast::<PathBuf>()
    .unwrap();
    assert!(!folder.exists());
    assert!(processes_that_mention(&folder.display().to_string()).is_empty());
}

/// Not a test by itself: makes a lab that outlives it.
#[test]
#[ignore = "run by a_kept_lab_lives_on_until_it_is_ended"]
fn owner_that_keeps() {
    let lab = Lab::new("kept", options(1)).unwrap();
    lab.host("n1")
        .unwrap()
        .serve("web", &["lab-tool", "serve", "--port", "80"])
        .unwrap();
    lab.keep().unwrap();
}

#[test]
fn a_kept_lab_lives_on_until_it_is_ended() {
    // A base of its own: ending kept labs must not end one that a person keeps.
    let base = std::env::temp_dir().join(format!("netd-lab-kept-{}", std::process::id()));
    let run = |name: &str| {
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", name])
            .env("NETD_LAB_DIR", &base)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    };
    run("owner_that_keeps");
    let mention = base.display().to_string();
    assert!(!processes_that_mention(&mention).is_empty(), "it lives on");
    assert!(!processes_that_mention("lab-tool serve --port 80").is_empty());
    run("ends_what_is_kept");
    eventually("the kept lab to end", Duration::from_secs(10), || {
        Ok(processes_that_mention(&mention).is_empty())
    })
    .unwrap();
    assert!(!base.exists(), "the folder is gone too");
}

/// Not a test by itself: what `cargo xtask demo --down` does.
#[test]
#[ignore = "run by a_kept_lab_lives_on_until_it_is_ended"]
fn ends_what_is_kept() {
    assert_eq!(lab::end_kept().unwrap(), 1);
}
