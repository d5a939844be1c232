//! The embedded object: its maps made or adopted, its programs loaded.

use std::{
    collections::BTreeMap,
    fmt::Display,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    EbpfLoader,
    programs::{ProgramError, SchedClassifier},
};
use aya_obj::Object;

use super::{BpfError, bpffs, hooks::Hook, sys};

/// The programs as committed (`cargo xtask ebpf`).
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/netd.bpf.o");

/// First eight octets of the object's SHA-256, as `NodeCfg` bears them.
pub(super) const HASH: [u32; 2] = hash(env!("NETD_BPF_OBJECT").as_bytes());

/// A map that is not kept over restarts: it is room, not state.
const TRANSIENT: &str = "scratch";

const fn hash(hex: &[u8]) -> [u32; 2] {
    let mut words = [0u32; 2];
    let mut i = 0;
    while i < 16 {
        let c = hex[i];
        let digit = if c.is_ascii_digit() { c - b'0' } else { c - b'a' + 10 };
        words[i / 8] = words[i / 8] << 4 | digit as u32;
        i += 1;
    }
    words
}

/// Path of a map's pin.
pub(super) fn map_pin(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("map_{name}"))
}

/// Path of a program's pin.
pub(super) fn program_pin(dir: &Path, hook: Hook) -> PathBuf {
    dir.join(format!("prog_{}", hook.program()))
}

/// Shapes of the maps that are pinned, by name.
pub(super) fn shapes() -> Result<BTreeMap<String, sys::Shape>, BpfError> {
    let object = Object::parse(OBJECT).map_err(text)?;
    Ok(object
        .maps
        .iter()
        .filter(|(name, _)| name.as_str() != TRANSIENT)
        .map(|(name, m)| {
            let shape = sys::Shape {
                kind: m.map_type(),
                key: m.key_size(),
                value: m.value_size(),
                entries: m.max_entries(),
            };
            (name.clone(), shape)
        })
        .collect())
}

/// Compares what is pinned with what is needed; gives how many maps are there.
pub(super) fn compare(dir: &Path, shapes: &BTreeMap<String, sys::Shape>) -> Result<usize, BpfError> {
    let mut there = 0;
    for (name, wanted) in shapes {
        let path = map_pin(dir, name);
        let fd = match sys::get(&path) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(syscall("open pinned maps", e, &path)),
        };
        let found = sys::shape(fd.as_fd()).map_err(|e| bpffs::path("examine", &path, e))?;
        if found != *wanted {
            return Err(BpfError::Shape {
                path,
                found: describe(&found),
                wanted: describe(wanted),
            });
        }
        there += 1;
    }
    Ok(there)
}

fn describe(s: &sys::Shape) -> String {
    format!(
        "type {}, keys of {} and values of {} octets, {} entries",
        s.kind, s.key, s.value, s.entries
    )
}

/// Makes the maps that are missing, loads the programs with those that are there, and pins both.
pub(super) fn load(
    dir: &Path,
    shapes: &BTreeMap<String, sys::Shape>,
) -> Result<BTreeMap<Hook, SchedClassifier>, BpfError> {
    let mut loader = EbpfLoader::new();
    for name in shapes.keys() {
        loader.map_pin_path(name, map_pin(dir, name));
    }
    let mut bpf = loader.load(OBJECT).map_err(|e| loading(&e, dir))?;
    for hook in Hook::ALL {
        let program = program(&mut bpf, hook)?;
        undisturbed(|| program.load()).map_err(|e| BpfError::Program {
            program: hook.program(),
            reason: tail(&chain(&e)),
        })?;
        let pin = program_pin(dir, hook);
        bpffs::unpin(&pin)?;
        let fd = program.fd().map_err(text)?;
        sys::pin(fd.as_fd(), &pin).map_err(|e| bpffs::path("pin a program at", &pin, e))?;
    }
    pinned(dir)
}

/// The verifier gives up with EAGAIN when a signal comes for this thread, whatever it is about (kernel/bpf/verifier.c,
/// `do_check`): that is no verdict on the program.
fn undisturbed(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 0..100 {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            done => return done,
        }
    }
    load()
}

fn program(bpf: &mut aya::Ebpf, hook: Hook) -> Result<&mut SchedClassifier, BpfError> {
    let program = bpf.program_mut(hook.program());
    let program = program.ok_or_else(|| BpfError::Object(format!("it has no program {}", hook.program())))?;
    program.try_into().map_err(text)
}

/// The programs as they are pinned.
pub(super) fn pinned(dir: &Path) -> Result<BTreeMap<Hook, SchedClassifier>, BpfError> {
    Hook::ALL
        .into_iter()
        .map(|hook| {
            let pin = program_pin(dir, hook);
            let program = SchedClassifier::from_pin(&pin)
                .map_err(|e| bpffs::path("open the program at", &pin, io::Error::other(chain(&e))))?;
            Ok((hook, program))
        })
        .collect()
}

/// Whether every program is pinned.
pub(super) fn all_pinned(dir: &Path) -> bool {
    Hook::ALL
        .into_iter()
        .all(|hook| sys::get(&program_pin(dir, hook)).is_ok())
}

fn loading(e: &aya::EbpfError, dir: &Path) -> BpfError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(s) = source {
        match s.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            Some(code @ (libc::ENOSYS | libc::EPERM | libc::EACCES)) => {
                return syscall("create BPF maps", io::Error::from_raw_os_error(code), dir);
            }
            _ => source = s.source(),
        }
    }
    BpfError::Object(chain(e))
}

/// An error of bpf(2) itself.
pub(super) fn syscall(what: &'static str, source: io::Error, path: &Path) -> BpfError {
    match source.raw_os_error() {
        Some(libc::ENOSYS) => BpfError::Missing {
            feature: "bpf(2)",
            config: "CONFIG_BPF_SYSCALL=y",
            source,
        },
        Some(libc::EPERM | libc::EACCES) => BpfError::Denied { what, source },
        _ => bpffs::path(what, path, source),
    }
}

fn text(e: impl Display) -> BpfError {
    BpfError::Object(e.to_string())
}

/// An error with its causes.
fn chain(e: &(dyn std::error::Error + 'static)) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        text = format!("{text}: {s}");
        source = s.source();
    }
    text
}

/// The end of the verifier's log says what it objects to.
fn tail(log: &str) -> String {
    const KEEP: usize = 2000;
    let from = log.char_indices().rev().nth(KEEP).map_or(0, |(i, _)| i);
    log.get(from..).unwrap_or(log).to_owned()
}
