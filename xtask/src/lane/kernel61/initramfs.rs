//! What a guest boots with, in memory: busybox and the modules that lead to this machine's files, where the rest is.

use std::fs::{self, File};
use std::io::{BufWriter, Seek};
use std::path::Path;

use anyhow::Context;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::archive::Archive;
use super::modules;
use crate::packages;

/// What leads there; a stock kernel has all of it as modules.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p"];

/// Device nodes: the kernel opens the first for this program before `/dev` is mounted.
const CONSOLE: (u32, u32) = (5, 1);

/// Runs first. Nothing changes these files while the guest runs: what it has read, it need not ask for again. The program
/// that goes on lies in the guest's own `/dev`.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin HOME=/
off() {
    echo "lane: $* failed"
    busybox poweroff -f
}
busybox mount -t proc proc /proc || off mounting /proc
for module in /modules/*.ko; do
    busybox insmod "$module" || off loading "$module"
done
busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose files /root || off mounting the files
busybox mount -t devtmpfs devtmpfs /root/dev || off mounting /dev
busybox cp /next /root/dev/init || off writing /dev/init
busybox chmod 755 /root/dev/init
busybox umount /proc
exec busybox switch_root /root /dev/init
"#;

/// Packs it, for a kernel with these modules; `next` is the program that goes on when this machine's files are there. The
/// archive has no name in any file system: however the lane ends, nothing of it is left.
///
/// # Errors
///
/// Something is missing or cannot be read.
pub(super) fn pack(modules: &Path, next: &str) -> anyhow::Result<File> {
    let memory = memfd_create("netd-lane", MFdFlags::MFD_CLOEXEC).context("making a file in memory")?;
    let mut archive = Archive::new(BufWriter::new(File::from(memory)));
    for folder in ["proc", "dev", "root", "modules", "bin"] {
        archive.folder(folder)?;
    }
    archive.character_device("dev/console", CONSOLE)?;
    archive.program("init", INIT.as_bytes())?;
    archive.file("next", next.as_bytes())?;
    archive.program("bin/busybox", &read(&packages::program("busybox")?)?)?;
    for (i, module) in modules::in_order(modules, MODULES)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        // The shell sorts names.
        archive.file(&format!("modules/{i:03}-{name}"), &read(module)?)?;
    }
    let mut file = archive.finish()?.into_inner().context("writing the archive")?;
    file.rewind()?;
    Ok(file)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
