//! What can go wrong between netd and the kernel's BPF.

use std::{io, path::PathBuf};

/// Errors of [`crate::bpf`].
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel lacks something that the data path stands on.
    #[error("the kernel has no {feature} ({source})\n  try: a kernel with {config}")]
    Missing {
        /// What is missing, as a person calls it.
        feature: &'static str,
        /// The kernel's configuration options that bring it.
        config: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not privileged.
    #[error("not allowed to {what} ({source})\n  try: run netd as root (CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN)")]
    Denied {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file operation in the bpffs failed.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Path {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pinned map has another shape than ours.
    #[error(
        "the pinned map {path} has {found}, this netd needs {wanted}: it was left by another version\n  try: stop the \
         services of this node, `netctl cluster leave`, or remove the folder {folder}",
        path = path.display(), folder = path.parent().unwrap_or(path).display()
    )]
    Shape {
        /// The map.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What was expected.
        wanted: String,
    },
    /// The pinned maps are of another version of the layouts.
    #[error(
        "the maps below {path} are of layout {found}, this netd speaks {wanted}\n  try: the version of netd that made \
         them, or `netctl cluster leave` and join again",
        path = path.display()
    )]
    Abi {
        /// The folder.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Our version.
        wanted: u32,
    },
    /// The embedded object cannot be read or created in the kernel.
    #[error("loading the eBPF object failed: {0}")]
    Object(String),
    /// The verifier refused a program.
    #[error("the kernel refused the program {program}: {reason}\n  try: report this with `uname -r`")]
    Program {
        /// Its name.
        program: &'static str,
        /// The end of the verifier's log.
        reason: String,
    },
    /// A map operation failed.
    #[error("cannot {what} in map {map}: {source}{hint}", hint = full(source))]
    Map {
        /// The map.
        map: &'static str,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program could not be attached to or taken from a device.
    #[error("cannot {what} {program} on interface {ifindex}: {source}")]
    Attach {
        /// What was tried.
        what: &'static str,
        /// The program.
        program: &'static str,
        /// The interface.
        ifindex: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A row lies outside the lookup table.
    #[error("cells {off}..{end} lie outside the lookup table of {cells} cells")]
    Row {
        /// First cell.
        off: u32,
        /// Behind the last cell.
        end: u64,
        /// Cells of the table.
        cells: u32,
    },
}

fn full(e: &io::Error) -> &'static str {
    match e.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => {
            " (the map is full)\n  try: fewer services, networks or endpoints on this node"
        }
        Some(libc::ENOMEM) => " (out of memory)",
        _ => "",
    }
}
