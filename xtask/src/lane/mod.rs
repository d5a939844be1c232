//! Lanes: tests on another kernel than the one of this machine.

mod archive;
mod guest;
mod initramfs;
mod kernel61;
mod linux;
mod modules;

/// Which lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Lane {
    /// The eBPF tests on Debian's stock Linux 6.1, emulated: its verifier, and clsact instead of tcx.
    Kernel61,
}

/// Runs a lane's tests, or those whose name contains `filter`.
///
/// # Errors
///
/// What the lane needs is missing, a test failed, or none was run.
pub(crate) fn run(lane: Lane, filter: Option<&str>) -> anyhow::Result<()> {
    match lane {
        Lane::Kernel61 => kernel61::run(filter),
    }
}
