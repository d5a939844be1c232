//! A machine under emulation.

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use super::linux::Linux;
use super::machine::Machine;

/// What a stock kernel says of this odd hardware is of no interest; where it warns of itself or stumbles, the guest stops,
/// and its last words are shown. Fresh memory is not filled with zeros where nobody asks for it, and the string
/// instructions that processors do well and the emulator octet by octet (`REP_GOOD`, `ERMS`, `FSRM` of cpufeatures.h) are
/// left aside: a third of the time.
const COMMAND_LINE: &str =
    "console=ttyS0 loglevel=4 panic_on_warn=1 oops=panic panic=-1 init_on_alloc=0 clearcpuid=112,297,580";

/// The guest's memory in MiB: the archive, its unpacked self, and the maps of a few data paths at once.
const MEMORY: u32 = 2048;

/// Boots a kernel with a file system; calls `each` with every line that its script writes, until the guest switches
/// itself off. Answers the last lines of its console.
///
/// # Errors
///
/// The emulator does not start or fails, or the guest takes longer than `limit`; the end of its console is told.
pub(super) fn run(
    linux: &Linux,
    initramfs: File,
    limit: Duration,
    each: &mut dyn FnMut(&str),
) -> anyhow::Result<String> {
    let machine = Machine::start(&mut command(linux, initramfs)).context("running setpriv and qemu-system-x86_64")?;
    let ended = machine.follow(limit, each)?;
    let console = ended.console;
    match ended.status {
        Some(status) if status.success() => Ok(console),
        Some(status) => bail!("the emulator ended with {status}; the end of the console:\n{console}"),
        None => bail!(
            "the guest was not done after {} s and was switched off; the end of its console:\n{console}",
            limit.as_secs()
        ),
    }
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
    command.arg("-kernel").arg(&linux.vmlinuz);
    command.args(["-initrd", "/proc/self/fd/0"]);
    command.arg("-append").arg(COMMAND_LINE);
    command.stdin(initramfs);
    command
}
