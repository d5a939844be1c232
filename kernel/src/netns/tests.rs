//! These need root. Every name bears the process id, and a guard removes it, also when a test panics.

use std::{ffi::OsString, time::Duration};

use nix::sys::signal::Signal;

use super::*;
use crate::{
    rtnl::{
        Rtnl,
        request::{VethEnd, create_veth},
    },
    testing::Folder,
};

fn sh(folder: &Folder, script: &str, resolv: Option<&Path>, netns: &Netns) -> Process {
    let args = [OsString::from("-c"), OsString::from(script)];
    let out = folder.path().join("out");
    Spawn {
        program: "sh".as_ref(),
        args: &args,
        env: &[("PATH".into(), "/usr/bin:/bin:/usr/sbin:/sbin".into())],
        folder: None,
        stdout: &out,
        stderr: &out,
        resolv_conf: resolv,
        hostname: None,
    }
    .start(netns)
    .unwrap()
}

#[test]
fn a_namespace_is_made_recognised_and_removed() {
    let folder = Folder::new("netns");
    let path = folder.path().join("deep").join("one");
    assert!(Netns::open(&path).unwrap_err().is_absent());
    let made = create(&path).unwrap();
    assert_ne!(made.id(), Netns::current().unwrap().id());
    assert_eq!(made.id(), Netns::open(&path).unwrap().id());
    assert!(matches!(create(&path), Err(NetnsError::Exists { .. })));
    assert_eq!(open_or_create(&path).unwrap().id(), made.id());
    let lo = Rtnl::open_in(&made).unwrap().link("lo").unwrap().unwrap();
    assert!(lo.up && lo.loopback && lo.index == 1);
    assert_eq!(run_in(&made, || Netns::current().unwrap().id()).unwrap(), made.id());
    remove(&path).unwrap();
    remove(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_file_left_behind_is_no_namespace_and_is_used_again() {
    let folder = Folder::new("netns-left");
    let path = folder.path().join("left");
    fs::write(&path, "").unwrap();
    assert!(matches!(Netns::open(&path), Err(NetnsError::Other { .. })));
    assert!(matches!(
        Netns::open(Path::new("/proc/self/ns/uts")),
        Err(NetnsError::Other { .. })
    ));
    create(&path).unwrap();
    remove(&path).unwrap();
    let foreign = folder.path().join("foreign");
    fs::write(&foreign, "text").unwrap();
    assert!(remove(&foreign).is_err());
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "text");
}

#[test]
#[should_panic(expected = "from within")]
fn a_panic_inside_is_a_panic_outside() {
    let here = Netns::current().unwrap();
    let _ = run_in(&here, || panic!("from within"));
}

#[test]
fn a_command_runs_in_the_namespace_with_its_own_resolv_conf() {
    let folder = Folder::new("netns-run");
    let netns = create(&folder.path().join("task")).unwrap();
    let resolv = folder.path().join("resolv.conf");
    fs::write(&resolv, "nameserver 127.0.0.11\n").unwrap();
    let mut p = sh(
        &folder,
        "readlink /proc/self/ns/net; cat /etc/resolv.conf; ps -o sid= -p $$; echo $$",
        Some(&resolv),
        &netns,
    );
    assert!(p.ended(Duration::from_secs(10)).unwrap());
    assert!(p.reap().unwrap().success());
    let out = fs::read_to_string(folder.path().join("out")).unwrap();
    let lines: Vec<&str> = out.lines().map(str::trim).collect();
    assert_eq!(lines[0], format!("net:[{}]", netns.id().inode));
    assert_eq!(lines[1], "nameserver 127.0.0.11");
    assert_eq!(lines.last().unwrap().parse::<u32>().unwrap(), p.pid());
    assert_ne!(
        fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        "nameserver 127.0.0.11\n",
        "the host's is untouched"
    );
}

#[test]
fn a_process_is_found_again_by_pid_and_start_and_killed_with_its_children() {
    let folder = Folder::new("netns-find");
    let netns = create(&folder.path().join("task")).unwrap();
    let mut p = sh(&folder, "sleep 1000 & sleep 1000", None, &netns);
    let found = Process::find(p.pid(), p.start()).unwrap().expect("it runs");
    assert!(
        Process::find(p.pid(), p.start() + 1).unwrap().is_none(),
        "same pid, another life"
    );
    assert!(!found.ended(Duration::ZERO).unwrap());
    assert!(found.signal(Signal::SIGKILL).unwrap());
    assert!(found.ended(Duration::from_secs(10)).unwrap());
    assert!(p.ended(Duration::from_secs(10)).unwrap());
    assert!(!p.reap().unwrap().success());
    assert!(Process::find(p.pid(), p.start()).unwrap().is_none());
    assert!(!found.signal(Signal::SIGTERM).unwrap());
}

#[test]
fn a_missing_program_or_resolv_conf_is_an_error_that_names_it() {
    let folder = Folder::new("netns-miss");
    let netns = create(&folder.path().join("task")).unwrap();
    let out = folder.path().join("out");
    let spawn = Spawn {
        program: "no-such-program".as_ref(),
        args: &[],
        env: &[],
        folder: None,
        stdout: &out,
        stderr: &out,
        resolv_conf: None,
        hostname: None,
    };
    assert!(spawn.start(&netns).unwrap_err().to_string().contains("no-such-program"));
    let missing = folder.path().join("missing");
    let spawn = Spawn {
        program: "true".as_ref(),
        resolv_conf: Some(&missing),
        ..spawn
    };
    assert!(matches!(spawn.start(&netns), Err(ProcessError::ResolvConf { .. })));
}

/// A task's mount namespace holds copies of all namespace mounts: removing a name must end its namespace all the same.
#[test]
fn a_task_elsewhere_does_not_keep_a_removed_namespace_alive() {
    let folder = Folder::new("netns-copy");
    let host = create(&folder.path().join("host")).unwrap();
    let path = folder.path().join("task");
    let task = create(&path).unwrap();
    let resolv = folder.path().join("resolv.conf");
    fs::write(&resolv, "").unwrap();
    let other = sh(&folder, "echo ready; sleep 1000", Some(&resolv), &host);
    let mut rtnl = Rtnl::open_in(&host).unwrap();
    let near = VethEnd {
        name: "near",
        mac: None,
        mtu: None,
        netns: None,
    };
    let far = VethEnd {
        name: "far",
        mac: None,
        mtu: None,
        netns: Some(task.as_fd()),
    };
    rtnl.execute_all(&[create_veth(&near, &far)]).unwrap();
    let mut events = run_in(&host, crate::rtnl::Events::open).unwrap().unwrap();
    drop(task);
    remove(&path).unwrap();
    // The veth goes with the namespace that its peer lay in.
    let gone = |e: &crate::rtnl::Event| matches!(e, crate::rtnl::Event::LinkGone(l) if l.name == "near");
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok(batch) = events.next() {
            if batch.iter().any(gone) {
                let _ = send.send(());
                return;
            }
        }
    });
    let seen = receive.recv_timeout(Duration::from_secs(10));
    other.signal(Signal::SIGKILL).unwrap();
    assert!(seen.is_ok(), "the namespace lives on: {:?}", rtnl.link("near").unwrap());
}

#[test]
fn a_command_beside_another_sees_what_that_one_sees() {
    let folder = Folder::new("netns-beside");
    let netns = create(&folder.path().join("task")).unwrap();
    let (resolv, out) = (folder.path().join("resolv.conf"), folder.path().join("beside"));
    fs::write(&resolv, "nameserver 127.0.0.11\n").unwrap();
    let host = nix::unistd::gethostname().unwrap();
    let first = folder.path().join("out");
    let args = [OsString::from("-c"), OsString::from("uname -n; exec sleep 1000")];
    let env = [("PATH".into(), "/usr/bin:/bin".into())];
    let spawn = Spawn {
        program: "sh".as_ref(),
        args: &args,
        env: &env,
        folder: None,
        stdout: &first,
        stderr: &first,
        resolv_conf: Some(&resolv),
        hostname: Some("web-1".as_ref()),
    };
    let task = spawn.start(&netns).unwrap();
    let args = [
        OsString::from("-c"),
        OsString::from("readlink /proc/self/ns/net; cat /etc/resolv.conf; uname -n"),
    ];
    let mut beside = Spawn {
        args: &args,
        stdout: &out,
        stderr: &out,
        ..spawn.clone()
    }
    .start_beside(&task)
    .unwrap();
    assert!(beside.ended(Duration::from_secs(10)).unwrap());
    assert!(beside.reap().unwrap().success());
    task.signal(Signal::SIGKILL).unwrap();
    let seen = fs::read_to_string(&out).unwrap();
    assert_eq!(
        seen.lines().collect::<Vec<_>>(),
        [
            format!("net:[{}]", netns.id().inode).as_str(),
            "nameserver 127.0.0.11",
            "web-1"
        ]
    );
    assert_eq!(fs::read_to_string(&first).unwrap(), "web-1\n");
    assert_eq!(nix::unistd::gethostname().unwrap(), host, "the host's name stays");
    let gone = Spawn { args: &args, ..spawn }.start_beside(&beside);
    assert!(gone.is_err(), "what has ended has no namespaces");
}
