//! What the tests of this crate share.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
};

use crate::netns;

/// What the names of folders begin with; the process id follows.
const PREFIX: &str = "netd-test-";

/// Receives a datagram. Who waits with a time limit may be interrupted by the end of a program that another test runs.
pub(crate) fn hear(at: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    loop {
        match at.recv_from(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// A folder below `/run` with namespaces in it; all of it is removed when it goes out of scope. Those of runs that were
/// killed are removed by the next run.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(test: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        static SWEPT: std::sync::Once = std::sync::Once::new();
        SWEPT.call_once(sweep_the_dead);
        let path = PathBuf::from(format!("/run/{PREFIX}{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        sweep(&self.0);
    }
}

fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sweep(&path);
        } else if netns::remove(&path).is_err() {
            let _ = std::fs::remove_file(&path);
        }
    }
    let _ = std::fs::remove_dir(folder);
}

fn sweep_the_dead() {
    for entry in std::fs::read_dir("/run").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.split('-').next());
        if pid.is_some_and(|p| p.parse::<u32>().is_ok() && !Path::new("/proc").join(p).exists()) {
            sweep(&entry.path());
        }
    }
}
