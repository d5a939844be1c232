//! Network namespaces: made, kept by name, opened, recognised, entered.
//!
//! A thread that enters a namespace is a thread of its own that ends there ([`run_in`]), so no thread of the daemon is
//! ever in the wrong one.

mod process;

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{stat::fstat, statfs::fstatfs},
};

pub use process::{Process, ProcessError, Spawn};

use crate::rtnl::{
    NetlinkError, RtnlError,
    request::{LinkChange, Which, change_link},
};

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// What went wrong with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing at that path.
    #[error("there is no network namespace at {path}; try: lsns -t net")]
    Absent {
        /// Where.
        path: PathBuf,
    },
    /// Something else is there.
    #[error(
        "{path} is not a network namespace (an ordinary file is left where a namespace was unmounted); try: lsns -t net"
    )]
    Other {
        /// Where.
        path: PathBuf,
    },
    /// It exists already.
    #[error("{path} exists already; try: another name, or remove it")]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {doing} {path}; try: run as root with CAP_SYS_ADMIN, on a kernel with CONFIG_NET_NS")]
    System {
        /// Verb.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A thread could not enter.
    #[error("cannot enter a network namespace; try: run as root with CAP_SYS_ADMIN")]
    Enter(#[source] io::Error),
    /// The loopback could not be brought up.
    #[error("cannot bring the loopback of a new namespace up")]
    Loopback(#[source] Box<RtnlError>),
}

impl NetnsError {
    /// The namespace is not there (any more).
    pub fn is_absent(&self) -> bool {
        matches!(self, NetnsError::Absent { .. } | NetnsError::Other { .. })
    }
}

fn system(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetnsError {
    let path = path.to_owned();
    move |source| NetnsError::System { doing, path, source }
}

/// What tells one namespace from another while both exist (an inode number may be used again after the end of one).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    /// Device number of nsfs.
    pub dev: u64,
    /// Inode number; `lsns -t net` shows it.
    pub inode: u64,
}

/// An open network namespace; it lives as long as this.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
}

impl Netns {
    /// By path: a file that a namespace is mounted on, or `/proc/<pid>/ns/net`.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = fs::File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => NetnsError::Absent { path: path.to_owned() },
            _ => system("open", path)(e),
        })?;
        Self::check(file.into(), path)
    }

    /// The same once more.
    pub fn try_clone(&self) -> Result<Self, NetnsError> {
        let fd = self.fd.try_clone();
        Ok(Netns {
            fd: fd.map_err(system("open", Path::new("a network namespace once more")))?,
            id: self.id,
        })
    }

    /// That of a process.
    pub fn of_process(pid: u32) -> Result<Self, NetnsError> {
        Self::open(&PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// That of the calling thread.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    fn check(fd: OwnedFd, path: &Path) -> Result<Self, NetnsError> {
        let kind = fstatfs(&fd)
            .map_err(|e| system("look at", path)(e.into()))?
            .filesystem_type()
            .0;
        // SAFETY: NS_GET_NSTYPE takes no argument and writes nothing; `fd` is open.
        let netns =
            || unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&fd), NS_GET_NSTYPE) } == libc::CLONE_NEWNET;
        #[allow(clippy::unnecessary_cast, reason = "the type differs between C libraries")]
        if kind as i64 != NSFS_MAGIC || !netns() {
            return Err(NetnsError::Other { path: path.to_owned() });
        }
        let stat = fstat(&fd).map_err(|e| system("look at", path)(e.into()))?;
        Ok(Netns {
            fd,
            id: NetnsId {
                dev: stat.st_dev,
                inode: stat.st_ino,
            },
        })
    }

    /// Its identity.
    pub fn id(&self) -> NetnsId {
        self.id
    }
}

/// `NS_GET_NSTYPE`, `_IO(0xb7, 3)` of linux/nsfs.h.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs `f` on a thread of its own inside a namespace. A panic of `f` is a panic here.
pub fn run_in<T: Send>(netns: &Netns, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    on_thread(|| {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Enter(e.into()))?;
        Ok(f())
    })
}

/// Runs `f` on a thread of its own inside a new namespace, with its loopback up, that nobody else knows and that ends with
/// what `f` opened in it.
pub fn run_in_new<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Enter(e.into()))?;
        loopback_up().map_err(|e| NetnsError::Loopback(Box::new(e)))?;
        Ok(f())
    })
}

fn on_thread<T: Send>(f: impl FnOnce() -> Result<T, NetnsError> + Send) -> Result<T, NetnsError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, f);
        thread
            .map_err(NetnsError::Enter)?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes a namespace, with its loopback up, and mounts it on a new file at `path` so that it lives until [`remove`].
///
/// Missing folders are made. A file that is left from a namespace which is gone (a reboot, a crash) is used again.
pub fn create(path: &Path) -> Result<Netns, NetnsError> {
    create_prepared(path, loopback_up)
}

/// As [`create`], with an alias on the loopback: the owner's mark, which is there before the namespace has a name.
pub fn create_marked(path: &Path, alias: &str) -> Result<Netns, NetnsError> {
    create_prepared(path, || {
        let change = LinkChange {
            up: Some(true),
            alias: Some(alias),
            ..LinkChange::default()
        };
        let mut rtnl = crate::rtnl::Rtnl::open()?;
        Ok(rtnl.execute_all(&[change_link(&Which::Index(1), &change)])?)
    })
}

fn create_prepared(path: &Path, prepare: impl FnOnce() -> Result<(), RtnlError> + Send) -> Result<Netns, NetnsError> {
    match Netns::open(path) {
        Ok(_) => return Err(NetnsError::Exists { path: path.to_owned() }),
        Err(e) if e.is_absent() => {}
        Err(e) => return Err(e),
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(system("make the folder of", path))?;
    }
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(system("make", path))?;
    let made = on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| system("make a network namespace for", path)(e.into()))?;
        prepare().map_err(|e| NetnsError::Loopback(Box::new(e)))?;
        mount(
            Some("/proc/thread-self/ns/net"),
            path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .map_err(|e| system("mount a network namespace on", path)(e.into()))
    });
    match made {
        Ok(()) => Netns::open(path),
        Err(e) => {
            let _ = fs::remove_file(path);
            Err(e)
        }
    }
}

/// Opens the namespace at `path`, or makes it.
pub fn open_or_create(path: &Path) -> Result<Netns, NetnsError> {
    match Netns::open(path) {
        Err(e) if e.is_absent() => create(path),
        other => other,
    }
}

/// Takes the name away; the namespace ends when nobody uses it any more. Removing what is not there is no error; a file
/// with content is not ours and stays.
pub fn remove(path: &Path) -> Result<(), NetnsError> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL) => {}
        Err(nix::Error::ENOENT) => return Ok(()),
        Err(e) => return Err(system("unmount", path)(e.into())),
    }
    match fs::metadata(path) {
        Ok(m) if m.is_file() && m.len() == 0 => {}
        Ok(_) => return Err(NetnsError::Other { path: path.to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(system("look at", path)(e)),
    }
    // Unlinking also unmounts the copies that other mount namespaces hold (each process task has one), since Linux 3.18.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(system("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Brings the loopback of the calling thread's namespace up; nothing is written when it is.
pub fn loopback_up() -> Result<(), RtnlError> {
    let mut rtnl = crate::rtnl::Rtnl::open()?;
    // The loopback has index 1 in every namespace (LOOPBACK_IFINDEX of linux/net_namespace.h).
    let lo = rtnl.link_by_index(1)?.ok_or_else(|| RtnlError::NoLink("lo".into()))?;
    if lo.up {
        return Ok(());
    }
    let up = change_link(
        &Which::Index(1),
        &LinkChange {
            up: Some(true),
            ..LinkChange::default()
        },
    );
    Ok(rtnl.execute_all(&[up]).map_err(|e: NetlinkError| e)?)
}

#[cfg(test)]
mod tests;
