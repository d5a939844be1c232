//! Hosts as namespaces: real daemons on one machine, for xtask, the end-to-end tests and `netctl lab`.
//!
//! A host is a process tree below an *anchor* (`lab-anchor`): network, mount, PID, UTS and IPC namespaces of its own,
//! with its own `/proc`, `/sys`, `/run` and bpffs. The hosts hang on a bridge in one more host, the *switch*. Nothing
//! is made in the namespaces of the machine itself, and every anchor ends when the process that made the lab ends,
//! also by `kill -9`: the kernel then takes processes, links, mounts and BPF pins away, and the last anchor removes the
//! folder of logs.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let lab = lab::Lab::new("example", lab::Options::default())?;
//! for node in lab.nodes() {
//!     node.start_netd()?;
//! }
//! let n1 = lab.host("n1")?;
//! println!("{}", n1.netctl("cluster init")?.ok()?.stdout);
//! # Ok(())
//! # }
//! ```
//!
//! This is tooling: it asks the clock and runs `ip` and `nsenter`, which the daemon never does.
#![allow(
    clippy::disallowed_methods,
    reason = "tooling around the daemon: it measures time and waits"
)]

mod anchor;
mod cluster;
mod daemon;
mod exec;
mod fabric;
mod folder;
mod host;
pub mod neighbours;
mod proc;
mod reach;
mod wait;
pub mod wire;

pub use cluster::Attached;
pub use daemon::DaemonOptions;
pub use exec::{Output, Process};
pub use fabric::{OUTSIDE_V4, OUTSIDE_V6, SWITCH_V4, SWITCH_V6};
pub use folder::{end_kept, kept, leave, sweep};
pub use host::{Host, Lab, Options};
pub use proc::resident;
pub use wait::{eventually, until};
