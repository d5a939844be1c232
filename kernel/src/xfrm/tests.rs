use std::{process::Command, sync::mpsc, time::Duration};

use nix::sched::{CloneFlags, unshare};

use super::{Events, has_policies};

fn ip(words: &str) {
    let out = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(
        out.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Runs in a network namespace that goes with the thread.
fn isolated(test: impl FnOnce() + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_policy_is_seen_when_it_comes_and_when_it_goes() {
    isolated(|| {
        let Some(mut events) = Events::open().unwrap() else {
            assert!(!has_policies().unwrap());
            return;
        };
        let (tell, told) = mpsc::channel();
        let watcher = std::thread::spawn(move || {
            for _ in 0..2 {
                events.wait().unwrap();
                tell.send(()).unwrap();
            }
        });
        assert!(!has_policies().unwrap());
        let policy = "src 198.18.0.1 dst 198.18.0.2 proto udp dport 4789 dir out";
        ip(&format!(
            "xfrm policy add {policy} tmpl src 198.18.0.1 dst 198.18.0.2 proto esp mode transport"
        ));
        told.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(has_policies().unwrap());
        ip(&format!("xfrm policy delete {policy}"));
        told.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(!has_policies().unwrap());
        watcher.join().unwrap();
    });
}
