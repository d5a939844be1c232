//! User-Mode Linux: a kernel as a process, whose files are those of this machine.
//!
//! Debian's package ships it with IPVS, which many a machine's own kernel has not. It boots in two seconds on the file
//! system of this machine, so what was just built runs in it as it is. The guest sees all of it and writes none of it: its
//! root is mounted for reading, its process is nobody's and may read only, and what it writes lies in its own memory. All its
//! processes are in a PID namespace that ends with its first one, and its memory is a file in a mount of that namespace
//! alone: however a run ends, `kill -9` included, the kernel of this machine takes all of it away, and there is nothing for
//! a next run to sweep. That matters: what a guest's programs do are system calls that the guest's kernel catches by
//! ptrace(2), and must never become this machine's.

mod seat;

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::lane::init::{self, Guest};
use crate::lane::machine::Machine;
use seat::Seat;

/// The guest's memory in MiB, taken as it is used: a lab of six hosts with what it writes to its disks, which are memory too;
/// two daemons with ten thousand services.
const MEMORY: u32 = 4096;

/// Where the guest's memory and its first program lie, in a mount that it alone has.
const OWN: &str = "/dev/shm";

/// Where Debian's package has its modules.
const MODULES: &str = "/usr/lib/uml/modules";

/// Nobody's user and group.
const NOBODY: &str = "65534";

/// Run in the new namespaces, with the words that start the kernel; standard input is the first program.
const WRAP: &str = r#"mount -t tmpfs -o mode=1777 netd-lane /dev/shm || exit
cat >/dev/shm/init && chmod 755 /dev/shm/init || exit
exec "$@" </dev/null"#;

/// Where it stumbles or warns of itself, the guest ends, and its last words are shown. The script has a terminal of its own.
const COMMAND_LINE: &[&str] = &[
    "root=/dev/root",
    "rootfstype=hostfs",
    "rootflags=/",
    "ro",
    "init=/dev/shm/init",
    // Else it would cover /dev/shm before the first program is read; that one mounts it.
    "devtmpfs.mount=0",
    "con0=null,fd:2",
    "con1=null,fd:1",
    "con=null",
    "uml_dir=/dev/shm/",
    "umid=guest",
    "loglevel=4",
    "oops=panic",
    "panic_on_warn=1",
    "panic=-1",
];

/// Boots a guest that runs `script` in a shell, with `visible` folders of this machine where they are here; calls `each` with
/// every line that the script writes. Answers the script's status.
///
/// # Errors
///
/// The guest does not start, its kernel panics, or it takes longer than `limit`: the end of its console is told.
pub(crate) fn run(script: &str, visible: &[&Path], limit: Duration, each: &mut dyn FnMut(&str)) -> anyhow::Result<i32> {
    let guest = Guest {
        lane: "ipvs",
        terminal: "/dev/tty1",
        modules: Path::new(MODULES),
        visible,
    };
    let mut first = File::from(memfd_create("netd-lane", MFdFlags::MFD_CLOEXEC).context("making a file in memory")?);
    first
        .write_all(init::text(script, &guest)?.as_bytes())
        .and_then(|()| first.rewind())
        .context("writing the guest's first program")?;
    let root = nix::unistd::geteuid().is_root();
    let seat = Seat::take();
    let machine = Machine::start(command(root, seat.as_ref()).stdin(first))
        .context("running setpriv, unshare, taskset and linux.uml")?;
    init::follow(machine, limit, each)
}

/// As root the guest becomes nobody, who may read everything; else it is whoever runs us, in a user namespace.
fn command(root: bool, seat: Option<&Seat>) -> Command {
    let mut command = Command::new("setpriv");
    // All of it ends with us even when we are killed: this process with us, the guest's first one with this.
    command.args(["--pdeathsig", "KILL", "unshare", "--kill-child=KILL", "--fork"]);
    if !root {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "--pid", "--", "sh", "-c", WRAP, "sh"]);
    // A kernel that panics ends by a signal that the first process of a namespace does not take, after one to its group.
    command.args(["setsid", "--fork", "--wait", "setpriv"]);
    command.args(["--no-new-privs"]);
    if root {
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
        for set in ["--bounding-set", "--inh-caps", "--ambient-caps"] {
            command.args([set, "-all,+dac_read_search"]);
        }
    }
    if let Some(seat) = seat {
        command.args(["taskset", "--cpu-list", &seat.cpu().to_string()]);
    }
    command
        .arg("linux.uml")
        .arg(format!("mem={MEMORY}M"))
        .args(COMMAND_LINE);
    command.env("TMPDIR", OWN);
    command
}

#[cfg(test)]
mod tests;
