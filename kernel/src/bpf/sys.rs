//! bpf(2), as far as aya does not give it: batches, shapes, links by interface index, mapped arrays.
//!
//! Each command's attributes are a struct with the fields that we use, in the order of `union bpf_attr`
//! (include/uapi/linux/bpf.h); the kernel takes what is not passed for zero.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::AtomicU32,
};

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
#[cfg(test)]
pub(super) const PROG_TEST_RUN: libc::c_int = 10;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;
const MAP_DELETE_BATCH: libc::c_int = 27;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// Ingress of a device, as a link (Linux 6.6).
const BPF_TCX_INGRESS: u32 = 46;
/// Before the programs that are there.
const BPF_F_BEFORE: u32 = 1 << 3;

/// "The operation is not supported": an errno of the kernel's own that some maps answer batches with.
pub(super) const ENOTSUPP: i32 = 524;

/// Types that may be copied to and from the kernel as octets.
///
/// # Safety
/// `repr(C)` or a primitive integer, without padding, every pattern of bits valid.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($t:ty),* $(,)?) => {
        // SAFETY: integers, or layouts of `ebpf_abi`, which checks their sizes at compile time.
        $(unsafe impl Plain for $t {})*
    };
}

plain!(
    u32,
    u64,
    ebpf_abi::NodeCfg,
    ebpf_abi::SvcKey,
    ebpf_abi::SvcVal,
    ebpf_abi::Backend,
    ebpf_abi::EpMacKey,
    ebpf_abi::EpMacVal,
    ebpf_abi::EpAddrKey,
    ebpf_abi::EpAddrVal,
    ebpf_abi::EpCfg,
    ebpf_abi::EpExtraKey,
    ebpf_abi::RouteKey,
    ebpf_abi::RouteVal,
    ebpf_abi::MemberVal,
    ebpf_abi::PoolKey,
    ebpf_abi::Flow,
    ebpf_abi::AffVal,
    ebpf_abi::RevVal,
    ebpf_abi::FwdKey,
    ebpf_abi::FwdVal,
    ebpf_abi::FragKey,
    ebpf_abi::FragVal,
    ebpf_abi::TargetKey,
    ebpf_abi::TargetVal,
);

/// Calls bpf(2).
///
/// # Safety
/// Every address in `attr` must be valid for what the command does with it.
pub(super) unsafe fn bpf<T>(cmd: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is readable and writable for its size; what it points to is the caller's promise.
    let r = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            cmd,
            std::ptr::from_mut(attr),
            size_of::<T>() as libc::c_uint,
        )
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

pub(super) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

pub(super) fn addr<T>(p: *const T) -> u64 {
    p as usize as u64
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Writes one entry.
pub(super) fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut a = Element {
        map_fd: raw(map),
        key: addr(key),
        value: addr(value),
        ..Element::default()
    };
    // SAFETY: key and value are readable for the sizes that the map was compared with (`Shape`).
    unsafe { bpf(MAP_UPDATE_ELEM, &mut a) }.map(drop)
}

/// Deletes one entry; false: it was not there.
pub(super) fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut a = Element {
        map_fd: raw(map),
        key: addr(key),
        ..Element::default()
    };
    // SAFETY: as above.
    match unsafe { bpf(MAP_DELETE_ELEM, &mut a) } {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Reads one entry into `value`; false: it is not there.
fn lookup_into<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &mut [V]) -> io::Result<bool> {
    let mut a = Element {
        map_fd: raw(map),
        key: addr(key),
        value: addr(value.as_mut_ptr()),
        ..Element::default()
    };
    // SAFETY: `value` is writable for the map's value size, per possible CPU where the map is per CPU.
    match unsafe { bpf(MAP_LOOKUP_ELEM, &mut a) } {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Reads one entry.
pub(super) fn lookup<K: Plain, V: Plain + Default>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = [V::default()];
    let found = lookup_into(map, key, &mut value)?;
    let [value] = value;
    Ok(found.then_some(value))
}

/// Sums a cell of a per-CPU array over `cpus` possible CPUs.
pub(super) fn lookup_per_cpu(map: BorrowedFd<'_>, cell: u32, cpus: usize) -> io::Result<u64> {
    let mut values = vec![0u64; cpus];
    lookup_into(map, &cell, &mut values)?;
    Ok(values.iter().fold(0, |sum: u64, v| sum.wrapping_add(*v)))
}

/// The key behind `key`, or the first; `None`: the end.
fn next_key<K: Plain + Default>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = K::default();
    let mut a = Element {
        map_fd: raw(map),
        key: key.map_or(0, |k| addr(k)),
        value: addr(std::ptr::from_mut(&mut next)),
        ..Element::default()
    };
    // SAFETY: `key` is readable and `next` writable for the map's key size.
    match unsafe { bpf(MAP_GET_NEXT_KEY, &mut a) } {
        Ok(_) => Ok(Some(next)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Entries per batch.
const BATCH: usize = 4096;

/// Whether the kernel says that this map has no batches.
fn no_batch(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL))
}

/// Reads a whole map. Entries that come or go meanwhile may be missed or seen; no entry is seen in halves.
pub(super) fn read_all<K, V>(map: BorrowedFd<'_>, mut see: impl FnMut(K, V)) -> io::Result<()>
where
    K: Plain + Default,
    V: Plain + Default,
{
    let mut size = BATCH;
    let (mut keys, mut values) = (vec![K::default(); size], vec![V::default(); size]);
    // The cursor is the kernel's: a bucket number for hashes, a key for others.
    let (mut cursor, mut next) = ([0u64; 32], [0u64; 32]);
    let mut first = true;
    loop {
        let mut a = Batch {
            in_batch: if first { 0 } else { addr(cursor.as_ptr()) },
            out_batch: addr(next.as_mut_ptr()),
            keys: addr(keys.as_mut_ptr()),
            values: addr(values.as_mut_ptr()),
            count: size as u32,
            map_fd: raw(map),
            ..Batch::default()
        };
        // SAFETY: keys and values are writable for `count` entries, the cursors are larger than any key of ours.
        let end = match unsafe { bpf(MAP_LOOKUP_BATCH, &mut a) } {
            Ok(_) => false,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                // One bucket holds more than a batch.
                size *= 2;
                keys.resize(size, K::default());
                values.resize(size, V::default());
                continue;
            }
            Err(e) if first && no_batch(&e) => return read_singly(map, see),
            Err(e) => return Err(e),
        };
        for (k, v) in keys.iter().zip(&values).take(a.count as usize) {
            see(*k, *v);
        }
        if end {
            return Ok(());
        }
        first = false;
        cursor = next;
    }
}

fn read_singly<K, V>(map: BorrowedFd<'_>, mut see: impl FnMut(K, V)) -> io::Result<()>
where
    K: Plain + Default,
    V: Plain + Default,
{
    let mut key = next_key::<K>(map, None)?;
    while let Some(k) = key {
        if let Some(v) = lookup(map, &k)? {
            see(k, v);
        }
        key = next_key(map, Some(&k))?;
    }
    Ok(())
}

/// Writes entries; gives how many were written, and why it stopped.
pub(super) fn update_all<K: Plain, V: Plain>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> (usize, io::Result<()>) {
    let mut done = 0;
    for (ks, vs) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
        let mut a = Batch {
            keys: addr(ks.as_ptr()),
            values: addr(vs.as_ptr()),
            count: ks.len().min(vs.len()) as u32,
            map_fd: raw(map),
            ..Batch::default()
        };
        let wanted = a.count as usize;
        // SAFETY: keys and values are readable for `count` entries.
        let batch = unsafe { bpf(MAP_UPDATE_BATCH, &mut a) };
        match batch {
            Ok(_) => done += wanted,
            Err(e) if no_batch(&e) => {
                for (k, v) in ks.iter().zip(vs) {
                    if let Err(e) = update(map, k, v) {
                        return (done, Err(e));
                    }
                    done += 1;
                }
            }
            Err(e) => return (done + (a.count as usize).min(wanted), Err(e)),
        }
    }
    (done, Ok(()))
}

/// Deletes entries, also such as are gone already; gives how many are done, and why it stopped.
pub(super) fn delete_all<K: Plain>(map: BorrowedFd<'_>, keys: &[K]) -> (usize, io::Result<()>) {
    let mut done = 0;
    while let Some(rest) = keys.get(done..).filter(|r| !r.is_empty()) {
        let chunk = rest.get(..BATCH).unwrap_or(rest);
        let mut a = Batch {
            keys: addr(chunk.as_ptr()),
            count: chunk.len() as u32,
            map_fd: raw(map),
            ..Batch::default()
        };
        // SAFETY: keys are readable for `count` entries.
        match unsafe { bpf(MAP_DELETE_BATCH, &mut a) } {
            Ok(_) => done += chunk.len(),
            // It stops at one that is gone.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => done += (a.count as usize).min(chunk.len() - 1) + 1,
            Err(e) if no_batch(&e) => {
                for k in chunk {
                    if let Err(e) = delete(map, k) {
                        return (done, Err(e));
                    }
                    done += 1;
                }
            }
            Err(e) => return (done + (a.count as usize).min(chunk.len()), Err(e)),
        }
    }
    (done, Ok(()))
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

#[repr(C)]
#[derive(Default)]
struct Pinned {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens what is pinned at a path.
pub(super) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut a = Pinned {
        path: addr(path.as_ptr()),
        ..Pinned::default()
    };
    // SAFETY: the path is a C string.
    let fd = unsafe { bpf(OBJ_GET, &mut a) }?;
    // SAFETY: the kernel gave this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Pins an object.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut a = Pinned {
        path: addr(path.as_ptr()),
        fd: raw(fd),
        flags: 0,
    };
    // SAFETY: the path is a C string.
    unsafe { bpf(OBJ_PIN, &mut a) }.map(drop)
}

#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

fn info<const N: usize>(fd: BorrowedFd<'_>) -> io::Result<[u32; N]> {
    let mut words = [0u32; N];
    let mut a = Info {
        fd: raw(fd),
        len: (4 * N) as u32,
        info: addr(words.as_mut_ptr()),
    };
    // SAFETY: writable for `len` octets; the kernel writes no more.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut a) }?;
    Ok(words)
}

/// Shape of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) kind: u32,
    pub(super) key: u32,
    pub(super) value: u32,
    pub(super) entries: u32,
}

/// Shape of an open map (`struct bpf_map_info`).
pub(super) fn shape(fd: BorrowedFd<'_>) -> io::Result<Shape> {
    let [kind, _id, key, value, entries, _flags] = info::<6>(fd)?;
    Ok(Shape {
        kind,
        key,
        value,
        entries,
    })
}

/// Id of an open program (`struct bpf_prog_info`).
pub(super) fn program_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let [_kind, id] = info::<2>(fd)?;
    Ok(id)
}

/// A link at a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkInfo {
    /// Program that it runs.
    pub(super) program: u32,
    /// Device; 0: it is gone.
    pub(super) ifindex: u32,
}

/// What an open tcx link is (`struct bpf_link_info`).
pub(super) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let [_kind, _id, program, _pad, ifindex, _attach] = info::<6>(fd)?;
    Ok(LinkInfo { program, ifindex })
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

/// Attaches a program to the ingress of a device, ahead of the programs there.
pub(super) fn attach_tcx(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    let mut a = LinkCreate {
        prog_fd: raw(program),
        target: ifindex,
        attach_type: BPF_TCX_INGRESS,
        flags: BPF_F_BEFORE,
        ..LinkCreate::default()
    };
    // SAFETY: no addresses.
    let fd = unsafe { bpf(LINK_CREATE, &mut a) }?;
    // SAFETY: the kernel gave this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces the program of a link: no packet passes without one.
pub(super) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut a = LinkUpdate {
        link_fd: raw(link),
        prog_fd: raw(program),
        ..LinkUpdate::default()
    };
    // SAFETY: no addresses.
    unsafe { bpf(LINK_UPDATE, &mut a) }.map(drop)
}

/// Takes the program of a link off. Without this it stays on after the link's last reference is gone, until the kernel's
/// workers have come to it (`bpf_link_put_deferred`, kernel/bpf/syscall.c).
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut fd = raw(link);
    // SAFETY: no addresses.
    unsafe { bpf(LINK_DETACH, &mut fd) }.map(drop)
}

/// Octets from one element of an array to the next, for values of up to eight (`array_map_alloc`, kernel/bpf/arraymap.c).
const CELL: usize = 8;

/// Some cells of an array of words, mapped.
#[derive(Debug)]
pub(super) struct Words {
    at: NonNull<AtomicU32>,
    /// Of the mapping.
    octets: usize,
    /// Where the cells begin in it, and how many they are.
    first: usize,
    len: usize,
}

impl Words {
    /// Maps the `len` cells from `off` on of an array of 32-bit values made with `BPF_F_MMAPABLE` (Linux 5.5). Only they
    /// are mapped, and the few that share a page with them: the kernel counts every page of a mapping as the process's
    /// memory. They must be there, and be one at least.
    pub(super) fn map(fd: impl AsFd, off: usize, len: usize) -> io::Result<Words> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?
            .and_then(|p| usize::try_from(p).ok())
            .unwrap_or(4096);
        let begin = off * CELL / page * page;
        let octets = (off + len) * CELL - begin;
        let place = libc::off_t::try_from(begin).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), octets, protection, libc::MAP_SHARED, fd, place) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Words {
            at,
            octets,
            first: off - begin / CELL,
            len,
        })
    }

    /// The cells.
    pub(super) fn cells(&self) -> impl Iterator<Item = &AtomicU32> {
        // SAFETY: mapped from a page's begin for two words per cell, until drop.
        let words = unsafe { std::slice::from_raw_parts(self.at.as_ptr(), (self.first + self.len) * 2) };
        words.iter().skip(self.first * 2).step_by(2)
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: our own mapping, not used afterwards.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.octets) };
    }
}

/// Possible CPUs: what a per-CPU map has a value for.
pub(super) fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text
        .trim()
        .rsplit([',', '-'])
        .next()
        .and_then(|n| n.parse::<usize>().ok());
    last.map(|n| n + 1)
        .ok_or_else(|| io::Error::other(format!("/sys/devices/system/cpu/possible says {text:?}")))
}
