//! The owner's side of `lab-anchor`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, bail};

/// A living host: its anchor, and PID 1 of its namespaces as seen from here.
#[derive(Debug)]
pub(crate) struct Anchor {
    child: Child,
    /// Closed, it ends the host, unless the host was told to stay.
    lifeline: Option<ChildStdin>,
    init: u32,
}

impl Anchor {
    pub(crate) fn start(program: &Path, name: &str, run_dir: &Path, resolv_conf: &Path) -> anyhow::Result<Anchor> {
        let log = run_dir.join(format!("{name}.anchor"));
        let mut child = Command::new(program)
            .args(["hold", "--name", name, "--run-dir"])
            .arg(run_dir)
            .arg("--resolv-conf")
            .arg(resolv_conf)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Not our own: a host that stays would hold open what a person's shell or a pipe waits for.
            .stderr(File::create(&log).context("making the anchor's log")?)
            .spawn()
            .with_context(|| format!("starting {}; try: cargo build -p lab", program.display()))?;
        let lifeline = child.stdin.take();
        let stdout = child.stdout.take().context("the anchor has no output")?;
        let (mut init, mut ready) = (None, false);
        for line in BufReader::new(stdout).lines() {
            let line = line.context("reading from the anchor")?;
            match line.strip_prefix("init ") {
                Some(pid) => init = Some(pid.parse().context("the anchor told no process number")?),
                None => ready |= line == "ready",
            }
            if ready && init.is_some() {
                break;
            }
        }
        match (init, ready) {
            (Some(init), true) => Ok(Anchor { child, lifeline, init }),
            _ => {
                drop(lifeline);
                let _ = child.wait();
                bail!(
                    "host {name} did not start: {}",
                    fs::read_to_string(&log).unwrap_or_default().trim_end()
                )
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// PID 1 of the host, numbered as the owner sees it.
    pub(crate) fn init(&self) -> u32 {
        self.init
    }

    /// Lets the host live on when its owner ends.
    pub(crate) fn stay(&mut self) -> anyhow::Result<()> {
        if let Some(mut lifeline) = self.lifeline.take() {
            lifeline.write_all(b"stay\n").context("telling a host to stay")?;
        }
        Ok(())
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        // None: it was told to stay.
        if let Some(lifeline) = self.lifeline.take() {
            drop(lifeline);
            // PID 1 may be busy dying; the anchor follows it. The kernel has then ended every process of the host.
            let _ = self.child.wait();
        }
    }
}
