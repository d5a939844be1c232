//! A machine under emulation, on this machine's files.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::initramfs;
use super::linux::Linux;
use crate::lane::init::{self, Guest};
use crate::lane::machine::Machine;

/// What a stock kernel says of this odd hardware is of no interest; where it warns of itself or stumbles, the guest stops,
/// and its last words are shown. Fresh memory is not filled with zeros where nobody asks for it, and the string
/// instructions that processors do well and the emulator octet by octet (`REP_GOOD`, `ERMS`, `FSRM` of cpufeatures.h) are
/// left aside: a third of the time.
const COMMAND_LINE: &str =
    "console=ttyS0 loglevel=4 panic_on_warn=1 oops=panic panic=-1 init_on_alloc=0 clearcpuid=112,297,580";

/// The guest's memory in MiB, taken as it is used: a lab of six hosts with what it writes to its disks, which are memory too.
const MEMORY: u32 = 3072;

/// This machine's root, for reading: the guest's kernel can ask for nothing else.
const FILES: &str = "local,id=files,path=/,security_model=none,readonly=on,multidevs=remap";

/// Boots a guest that runs `script` in a shell, with `visible` folders of this machine; calls `each` with every line that the
/// script writes. Answers the script's status.
///
/// # Errors
///
/// The emulator does not start, the guest's kernel panics, or it takes longer than `limit`: the end of its console is told.
pub(super) fn run(
    linux: &Linux,
    script: &str,
    visible: &[&Path],
    limit: Duration,
    each: &mut dyn FnMut(&str),
) -> anyhow::Result<i32> {
    let guest = Guest {
        lane: "kernel61",
        terminal: "/dev/ttyS1",
        modules: linux.modules.parent().context("modules without a folder")?,
        visible,
    };
    let initramfs = initramfs::pack(&linux.modules, &init::text(script, &guest)?)?;
    let machine = Machine::start(&mut command(linux, initramfs)).context("running setpriv and qemu-system-x86_64")?;
    init::follow(machine, limit, each)
}

fn command(linux: &Linux, initramfs: File) -> Command {
    let mut command = Command::new("setpriv");
    // The emulator ends with us even when we are killed.
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args(["-accel", "tcg", "-cpu", "max", "-smp", "2"]);
    command.arg("-m").arg(MEMORY.to_string());
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    for (port, path) in [("console", "/dev/stderr"), ("script", "/dev/stdout")] {
        command.arg("-chardev").arg(format!("file,id={port},path={path}"));
        command.arg("-serial").arg(format!("chardev:{port}"));
    }
    command.args(["-fsdev", FILES]);
    command.args(["-device", "virtio-9p-pci,fsdev=files,mount_tag=files"]);
    command.arg("-kernel").arg(&linux.vmlinuz);
    command.args(["-initrd", "/proc/self/fd/0"]);
    command.arg("-append").arg(COMMAND_LINE);
    command.stdin(initramfs);
    command
}
