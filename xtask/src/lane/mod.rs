//! Lanes: tests on another kernel than the one of this machine.

mod init;
pub(crate) mod ipvs;
mod kernel61;
mod machine;
mod programs;
mod seen;
mod several;

/// Which lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Lane {
    /// Both data paths on Debian's stock Linux 6.1, emulated: its verifier, clsact instead of tcx, IPVS beside nf_tables.
    Kernel61,
    /// The IPVS tests, and the end-to-end ones over IPVS, in User-Mode Linux.
    Ipvs,
}

/// Runs a lane's tests, or those whose name contains `filter`.
///
/// # Errors
///
/// What the lane needs is missing, a test failed, or none was run.
pub(crate) fn run(lane: Lane, what: ipvs::What, filter: Option<&str>, guests: Option<usize>) -> anyhow::Result<()> {
    match lane {
        Lane::Kernel61 => kernel61::run(what, filter),
        Lane::Ipvs => {
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            ipvs::run(what, filter, guests.unwrap_or(cpus))
        }
    }
}
