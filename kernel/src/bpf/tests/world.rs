//! A private machine for a test: mounts, `/run`, bpffs and network namespaces that nobody else sees.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// Runs a test in namespaces of its own; panics pass through.
pub(super) fn isolated(test: impl FnOnce(&World) + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
        ip("link set lo up");
        test(&World { home: File::open("/proc/thread-self/ns/net").unwrap() });
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// The namespace that the test began in, as a place to come back to.
pub(super) struct World {
    home: File,
}

impl World {
    /// A folder for a data path.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        Path::new("/sys/fs/bpf").join(name)
    }

    /// Does something in a network namespace made with `ip netns add`.
    pub(super) fn within<T>(&self, netns: &str, f: impl FnOnce() -> T) -> T {
        let there = File::open(format!("/run/netns/{netns}")).unwrap();
        setns(&there, CloneFlags::CLONE_NEWNET).unwrap();
        let result = f();
        setns(&self.home, CloneFlags::CLONE_NEWNET).unwrap();
        result
    }
}

/// Runs `ip` with words; fails the test when it fails. For tests alone: netd itself speaks netlink.
pub(super) fn ip(words: &str) {
    run("ip", words);
}

/// Runs a tool with words.
pub(super) fn run(tool: &str, words: &str) {
    let out = Command::new(tool).args(words.split_whitespace()).output().unwrap();
    assert!(out.status.success(), "{tool} {words}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Index of a device of the calling thread's namespace.
pub(super) fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}
