//! Programs at devices: tcx links where the kernel has them (6.6), clsact filters else.
//!
//! What is attached is remembered in the bpffs: a tcx link by its own pin, a clsact filter by a pin of the program it
//! runs. Both are named `link_<program>_<ifindex>` or `filter_<program>_<ifindex>`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};

use super::{BpfError, bpffs, sys};

/// Where a program runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Hook {
    /// Ingress of a device that can receive for an address of the host.
    Netdev,
    /// Ingress of the host's `lo`.
    Host,
    /// Ingress of the external VXLAN device.
    Overlay,
    /// Ingress of an endpoint's host side veth.
    Endpoint,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Hook; 4] = [Hook::Netdev, Hook::Host, Hook::Overlay, Hook::Endpoint];

    /// Name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Hook::Netdev => "from_netdev",
            Hook::Host => "from_host",
            Hook::Overlay => "from_overlay",
            Hook::Endpoint => "from_ep",
        }
    }
}

/// What [`super::DataPath::attach`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attached {
    /// It ran there already.
    Kept,
    /// Another version ran there.
    Replaced,
    /// Nothing of ours ran there.
    New,
}

/// How a program hangs at a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A pinned tcx link.
    Link,
    /// A filter of the clsact qdisc, at [`PRIORITY`].
    Filter,
}

/// Priority and handle of our filter: one per device.
const PRIORITY: u16 = 0x6e64;
const HANDLE: u16 = 1;

/// What hangs where.
pub(super) type Devices = BTreeMap<(Hook, u32), Kind>;

fn pin(dir: &Path, hook: Hook, ifindex: u32, kind: Kind) -> PathBuf {
    let word = match kind {
        Kind::Link => "link",
        Kind::Filter => "filter",
    };
    dir.join(format!("{word}_{}_{ifindex}", hook.program()))
}

/// What the pins say.
pub(super) fn read(dir: &Path) -> Result<Devices, BpfError> {
    Ok(bpffs::names(dir)?.iter().filter_map(|n| parse(n)).collect())
}

fn parse(name: &str) -> Option<((Hook, u32), Kind)> {
    let (word, rest) = name.split_once('_')?;
    let kind = match word {
        "link" => Kind::Link,
        "filter" => Kind::Filter,
        _ => return None,
    };
    let (program, ifindex) = rest.rsplit_once('_')?;
    let hook = Hook::ALL.into_iter().find(|h| h.program() == program)?;
    Some(((hook, ifindex.parse().ok()?), kind))
}

/// What is found where a program should hang.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Our program, this version.
    Current,
    /// Our program, another version.
    Other,
    /// The device is gone, or the filter was taken away.
    Dead,
}

/// Looks at one pin.
pub(super) fn state(
    dir: &Path,
    hook: Hook,
    ifindex: u32,
    kind: Kind,
    program: &SchedClassifier,
) -> Result<State, BpfError> {
    let at = pin(dir, hook, ifindex, kind);
    let fail = |what| {
        move |source| BpfError::Attach {
            what,
            program: hook.program(),
            ifindex,
            source,
        }
    };
    let fd = match sys::get(&at) {
        Ok(fd) => fd,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::Dead),
        Err(e) => return Err(fail("open the pin of")(e)),
    };
    let ours = sys::program_id(fd_of(program, hook, ifindex)?).map_err(fail("identify"))?;
    let runs = match kind {
        Kind::Link => {
            let link = sys::link_info(fd.as_fd()).map_err(fail("examine"))?;
            if link.ifindex != ifindex {
                return Ok(State::Dead);
            }
            link.program
        }
        Kind::Filter => {
            if name(ifindex).is_err() || !super::filter::exists(ifindex, PRIORITY, HANDLE).map_err(fail("look for"))? {
                return Ok(State::Dead);
            }
            sys::program_id(fd.as_fd()).map_err(fail("identify"))?
        }
    };
    Ok(if runs == ours { State::Current } else { State::Other })
}

fn fd_of(program: &SchedClassifier, hook: Hook, ifindex: u32) -> Result<BorrowedFd<'_>, BpfError> {
    let fd = program
        .fd()
        .map_err(|e| attach_error("use", hook, ifindex, io::Error::other(e.to_string())))?;
    Ok(fd.as_fd())
}

fn attach_error(what: &'static str, hook: Hook, ifindex: u32, source: io::Error) -> BpfError {
    BpfError::Attach {
        what,
        program: hook.program(),
        ifindex,
        source,
    }
}

/// Attaches where nothing of ours hangs.
pub(super) fn create(
    dir: &Path,
    hook: Hook,
    ifindex: u32,
    program: &mut SchedClassifier,
    clsact: bool,
) -> Result<Kind, BpfError> {
    if !clsact {
        match sys::attach_tcx(fd_of(program, hook, ifindex)?, ifindex) {
            Ok(link) => {
                let at = pin(dir, hook, ifindex, Kind::Link);
                bpffs::unpin(&at)?;
                sys::pin(link.as_fd(), &at).map_err(|e| bpffs::path("pin a link at", &at, e))?;
                return Ok(Kind::Link);
            }
            // Linux before 6.6 knows no such attach type.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
            Err(e) => return Err(attach_error("attach", hook, ifindex, e)),
        }
    }
    let device = name(ifindex).map_err(|e| attach_error("attach", hook, ifindex, e))?;
    match tc::qdisc_add_clsact(&device) {
        Ok(()) | Err(tc::TcError::AlreadyAttached) => {}
        Err(e) if super::filter::has_clsact(ifindex).unwrap_or(false) => {
            tracing::debug!(ifindex, error = %e, "the device has a clsact qdisc already");
        }
        Err(e) => {
            return Err(BpfError::Missing {
                feature: "tc hook for programs",
                config: "CONFIG_NET_CLS_ACT=y, CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS",
                source: io::Error::other(e.to_string()),
            });
        }
    }
    let options = NlOptions {
        priority: PRIORITY,
        handle: TcHandle::from(u32::from(HANDLE)),
        classid: None,
    };
    let link = program
        .attach_with_options(&device, TcAttachType::Ingress, TcAttachOptions::Netlink(options))
        .and_then(|id| program.take_link(id))
        .map_err(|e| attach_error("attach", hook, ifindex, io::Error::other(e.to_string())))?;
    // Dropping it would take the filter away.
    std::mem::forget(link);
    remember_filter(dir, hook, ifindex, program)?;
    Ok(Kind::Filter)
}

fn remember_filter(dir: &Path, hook: Hook, ifindex: u32, program: &SchedClassifier) -> Result<(), BpfError> {
    let at = pin(dir, hook, ifindex, Kind::Filter);
    bpffs::unpin(&at)?;
    sys::pin(fd_of(program, hook, ifindex)?, &at).map_err(|e| bpffs::path("pin a program at", &at, e))
}

/// Replaces another version of our program; at no moment is there none.
pub(super) fn replace(
    dir: &Path,
    hook: Hook,
    ifindex: u32,
    kind: Kind,
    program: &mut SchedClassifier,
) -> Result<(), BpfError> {
    match kind {
        Kind::Link => {
            let link = sys::get(&pin(dir, hook, ifindex, kind));
            link.and_then(|l| sys::replace(l.as_fd(), fd_of(program, hook, ifindex).map_err(io::Error::other)?))
                .map_err(|e| attach_error("replace", hook, ifindex, e))
        }
        Kind::Filter => {
            let device = name(ifindex).map_err(|e| attach_error("replace", hook, ifindex, e))?;
            let old = attached(&device).map_err(|e| attach_error("replace", hook, ifindex, e))?;
            let link = program
                .attach_to_link(old)
                .and_then(|id| program.take_link(id))
                .map_err(|e| attach_error("replace", hook, ifindex, io::Error::other(e.to_string())))?;
            std::mem::forget(link);
            remember_filter(dir, hook, ifindex, program)
        }
    }
}

fn attached(device: &str) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(
        device,
        TcAttachType::Ingress,
        PRIORITY,
        TcHandle::from(u32::from(HANDLE)),
        None,
    )
}

/// Takes a program from a device; the device may be gone.
pub(super) fn remove(dir: &Path, hook: Hook, ifindex: u32, kind: Kind) -> Result<(), BpfError> {
    let at = pin(dir, hook, ifindex, kind);
    let fail = |source| attach_error("detach", hook, ifindex, source);
    match kind {
        Kind::Link => match sys::get(&at) {
            Ok(link) => sys::detach(link.as_fd()).map_err(fail)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(fail(e)),
        },
        Kind::Filter => {
            if let Ok(link) = name(ifindex).and_then(|device| attached(&device)) {
                if super::filter::exists(ifindex, PRIORITY, HANDLE).unwrap_or(false) {
                    aya::programs::links::Link::detach(link).map_err(|e| fail(io::Error::other(e.to_string())))?;
                } else {
                    std::mem::forget(link);
                }
            }
        }
    }
    bpffs::unpin(&at)
}

/// Name of a device of the calling thread's network namespace.
fn name(ifindex: u32) -> io::Result<String> {
    let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: writable for IF_NAMESIZE octets, which the call terminates.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    if found.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: terminated by the call.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

/// The (hook, interface) pairs.
pub(super) fn keys(devices: &Devices) -> BTreeSet<(Hook, u32)> {
    devices.keys().copied().collect()
}
