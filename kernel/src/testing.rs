//! What the tests of this crate share.

use std::path::{Path, PathBuf};

use crate::netns;

/// A folder below `/run` with namespaces in it; all of it is removed when it goes out of scope.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(test: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let path = PathBuf::from(format!("/run/netd-test-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
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
        sweep(&self.0);
    }
}
