//! A private machine for a test: mounts, `/run`, bpffs and network namespaces that nobody else sees.

use std::{
    fs::File,
    io::PipeWriter,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread::JoinHandle,
};

use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
};

/// Runs a test twice: with the tunnel's headers made by the programs, and by the VXLAN device.
pub(super) fn both_tunnels(test: impl Fn(&World) + Send + Clone + 'static) {
    let by_device = test.clone();
    run_isolated(true, test);
    run_isolated(false, by_device);
}

/// Runs a test in namespaces of its own; panics pass through.
pub(super) fn isolated(test: impl FnOnce(&World) + Send + 'static) {
    run_isolated(true, test);
}

fn run_isolated(direct: bool, test: impl FnOnce(&World) + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
        ip("link set lo up");
        let (stop, stopped) = std::io::pipe().unwrap();
        let world = World {
            direct,
            home: File::open("/proc/thread-self/ns/net").unwrap(),
            stop: stop.into(),
            stopped: Some(stopped),
            helpers: Mutex::default(),
        };
        test(&world);
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// The namespace that the test began in, as a place to come back to.
pub(super) struct World {
    /// The programs make the tunnel's headers themselves.
    pub(super) direct: bool,
    home: File,
    /// Readable (hung up) when the test is over.
    stop: OwnedFd,
    stopped: Option<PipeWriter>,
    helpers: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for World {
    /// Ends the helpers: a thread would keep the namespaces, and with them every map, until the process ends.
    fn drop(&mut self) {
        self.stopped = None;
        for helper in self.helpers.get_mut().unwrap().drain(..) {
            let _ = helper.join();
        }
    }
}

impl World {
    /// Runs a helper of the test in a namespace; it must return when [`wait`] says so.
    pub(super) fn help(&self, netns: &str, run: impl FnOnce(OwnedFd) + Send + 'static) {
        let there = File::open(format!("/run/netns/{netns}")).unwrap();
        let stop = self.stop.try_clone().unwrap();
        let helper = std::thread::spawn(move || {
            setns(&there, CloneFlags::CLONE_NEWNET).unwrap();
            run(stop);
        });
        self.helpers.lock().unwrap().push(helper);
    }

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

/// Waits for `source`; false: the test is over.
pub(super) fn wait(source: &impl AsFd, stop: &OwnedFd) -> bool {
    let mut fds = [
        PollFd::new(source.as_fd(), PollFlags::POLLIN),
        PollFd::new(stop.as_fd(), PollFlags::POLLIN),
    ];
    poll(&mut fds, PollTimeout::NONE).unwrap();
    fds[1].revents().is_none_or(|r| r.is_empty())
}

/// Runs `ip` with words; fails the test when it fails. For tests alone: netd itself speaks netlink.
pub(super) fn ip(words: &str) {
    run("ip", words);
}

/// Runs a tool with words.
pub(super) fn run(tool: &str, words: &str) {
    let out = Command::new(tool).args(words.split_whitespace()).output().unwrap();
    assert!(
        out.status.success(),
        "{tool} {words}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Index of a device of the calling thread's namespace.
pub(super) fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}
