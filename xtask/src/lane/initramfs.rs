//! The guest's whole file system, in memory: busybox, what the tests run, the modules, and the script that runs them.

use std::fs::{self, File};
use std::io::{BufWriter, Seek};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::archive::Archive;
use crate::packages;

/// What goes into a guest.
pub(super) struct Contents<'a> {
    /// Programs by the name that they get in `/bin`.
    pub(super) programs: &'a [(PathBuf, &'a str)],
    /// Modules in the order of loading.
    pub(super) modules: &'a [PathBuf],
    /// Run by busybox's shell when they are loaded; its output is the guest's second serial port.
    pub(super) script: &'a str,
}

/// Device nodes: the kernel opens the first for the script before `/dev` is mounted.
const CONSOLE: (u32, u32) = (5, 1);

/// Runs first. Everything written to the port has left it before the machine is switched off: the last `close` waits.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin HOME=/
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
busybox mount -t tmpfs tmpfs /run
busybox mount -t tmpfs tmpfs /tmp
{
    for module in /modules/*.ko; do
        busybox insmod "$module" || echo "module $module is not taken"
    done
    . /script
} >/dev/ttyS1 2>&1 </dev/null
busybox poweroff -f
"#;

/// Packs it. The archive has no name in any file system: however the lane ends, nothing of it is left.
///
/// # Errors
///
/// Something is missing or cannot be read.
pub(super) fn pack(contents: &Contents<'_>) -> anyhow::Result<File> {
    let memory = memfd_create("netd-lane", MFdFlags::MFD_CLOEXEC).context("making a file in memory")?;
    let mut archive = Archive::new(BufWriter::new(File::from(memory)));
    for folder in ["proc", "sys", "dev", "run", "tmp", "modules", "bin"] {
        archive.folder(folder)?;
    }
    archive.character_device("dev/console", CONSOLE)?;
    archive.program("init", INIT.as_bytes())?;
    archive.file("script", contents.script.as_bytes())?;
    let busybox = (packages::program("busybox")?, "busybox");
    let mut libraries = Vec::new();
    for (from, name) in contents.programs.iter().chain([&busybox]) {
        archive.program(&format!("bin/{name}"), &read(from)?)?;
        libraries.extend(libraries_of(from)?);
    }
    libraries.sort();
    libraries.dedup();
    for library in &libraries {
        // At the very place where the loader looked for it here.
        let to = library.to_str().context("a library whose name is no text")?;
        archive.program(to.trim_start_matches('/'), &read(library)?)?;
    }
    for (i, module) in contents.modules.iter().enumerate() {
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

/// Shared libraries of a program, with the loader.
fn libraries_of(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let out = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("running ldd")?;
    let (said, complaint) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    if complaint.contains("not a dynamic executable") || said.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !out.status.success() {
        bail!("ldd {}: {}", program.display(), complaint.trim_end());
    }
    let found = parse(&said);
    found.with_context(|| format!("the libraries of {}", program.display()))
}

/// Reads lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f...)` and
/// `/lib64/ld-linux-x86-64.so.2 (0x...)`; the kernel's own `linux-vdso.so.1 (0x...)` has no file.
fn parse(said: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in said.lines().map(str::trim) {
        let (name, place) = line.split_once(" => ").unwrap_or((line, line));
        if place.starts_with("not found") {
            bail!("{name} is not found");
        }
        if let Some(path) = place.split_whitespace().next().filter(|p| p.starts_with('/')) {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_file() {
        let said = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = parse(said).unwrap();
        assert_eq!(
            found,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
        let missing = parse("\tlibx.so => not found\n").unwrap_err();
        assert!(missing.to_string().contains("libx.so"));
    }

    #[test]
    fn a_program_of_this_machine_has_the_libraries_that_it_was_loaded_with() {
        let found = libraries_of(&std::env::current_exe().unwrap()).unwrap();
        assert!(
            found.iter().any(|p| p.to_string_lossy().contains("libc.so")),
            "{found:?}"
        );
        assert!(found.iter().all(|p| p.is_file()));
    }
}
