//! A machine under emulation, from its first line to its last.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::linux::Linux;

/// Lines of the kernel's console that are kept to be shown when something went wrong.
const CONSOLE_LINES: usize = 60;

/// What a stock kernel says of this odd hardware is of no interest; where it warns of itself or stumbles, the guest stops,
/// and its last words are shown. Fresh memory is not filled with zeros where nobody asks for it, and the string
/// instructions that processors do well and the emulator octet by octet (`REP_GOOD`, `ERMS`, `FSRM` of cpufeatures.h) are
/// left aside: a third of the time.
const COMMAND_LINE: &str =
    "console=ttyS0 loglevel=4 panic_on_warn=1 oops=panic panic=-1 init_on_alloc=0 clearcpuid=112,297,580";

/// The guest's memory in MiB: the archive, its unpacked self, and the maps of a few data paths at once.
const MEMORY: u32 = 2048;

/// Ends the emulator however the lane ends.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

enum Line {
    /// Of the script.
    Said(String),
    /// Of the kernel, or of the emulator itself.
    Console(String),
}

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
    let start = Instant::now();
    let mut machine = Machine(spawn(linux, initramfs)?);
    let (send, lines) = mpsc::channel();
    if let Some(stream) = machine.0.stdout.take() {
        forward(stream, Line::Said, send.clone());
    }
    if let Some(stream) = machine.0.stderr.take() {
        forward(stream, Line::Console, send.clone());
    }
    drop(send);
    let mut console = VecDeque::new();
    let ended = loop {
        match lines.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok(Line::Said(line)) => each(&line),
            Ok(Line::Console(line)) => {
                if console.len() == CONSOLE_LINES {
                    console.pop_front();
                }
                console.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => break None,
            Err(RecvTimeoutError::Disconnected) => break Some(machine.0.wait().context("waiting for the emulator")?),
        }
    };
    let console: Vec<String> = console.into();
    let console = console.join("\n");
    match ended {
        Some(status) if status.success() => Ok(console),
        Some(status) => bail!("the emulator ended with {status}; the end of the console:\n{console}"),
        None => bail!(
            "the guest was not done after {} s and was switched off; the end of its console:\n{console}",
            limit.as_secs()
        ),
    }
}

fn spawn(linux: &Linux, initramfs: File) -> anyhow::Result<Child> {
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
    command.stdin(initramfs).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("running setpriv and qemu-system-x86_64")
}

fn forward(stream: impl Read + Send + 'static, kind: fn(String) -> Line, to: mpsc::Sender<Line>) {
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line);
            if to.send(kind(text.trim_end().to_owned())).is_err() {
                return;
            }
            line.clear();
        }
    });
}
