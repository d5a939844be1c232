//! Refuses to build with an eBPF object that is not of the sources beside it: `ebpf/netd.bpf.lock` holds the hashes of
//! both. Whoever only builds netd needs no toolchain for BPF.

use std::{fmt::Write as _, fs, path::Path, process::exit};

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let root = Path::new(&here).join("..");
    match check(&root) {
        Ok(object) => println!("cargo:rustc-env=NETD_BPF_OBJECT={object}"),
        Err(what) => {
            eprintln!("{what}\n  try: cargo xtask ebpf");
            exit(1);
        }
    }
}

/// Compares every hash of the lock; gives that of the object.
fn check(root: &Path) -> Result<String, String> {
    for watched in [
        "ebpf/netd.bpf.lock",
        "ebpf/netd.bpf.o",
        "ebpf/prog/src",
        "ebpf/prog/Cargo.toml",
        "ebpf/prog/Cargo.lock",
        "ebpf/abi",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    let lock = fs::read_to_string(root.join("ebpf/netd.bpf.lock")).map_err(|e| format!("ebpf/netd.bpf.lock: {e}"))?;
    let mut object = None;
    let mut known = Vec::new();
    for line in lock.lines() {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("object"), Some(hash), None) => {
                compare(root, "ebpf/netd.bpf.o", hash)?;
                object = Some(hash.to_owned());
            }
            (Some("input"), Some(hash), Some(path)) => {
                compare(root, path, hash)?;
                known.push(path.to_owned());
            }
            _ => {}
        }
    }
    for dir in ["ebpf/prog/src", "ebpf/abi/src"] {
        unknown(root, dir, &known)?;
    }
    object.ok_or_else(|| "ebpf/netd.bpf.lock names no object".to_owned())
}

fn compare(root: &Path, path: &str, wanted: &str) -> Result<(), String> {
    let bytes = fs::read(root.join(path)).map_err(|e| format!("eBPF sources changed: {path}: {e}"))?;
    if sha256(&bytes) == wanted {
        Ok(())
    } else {
        Err(format!(
            "eBPF sources changed: {path} is not that of ebpf/netd.bpf.lock"
        ))
    }
}

/// A source that the lock does not know is a change too.
fn unknown(root: &Path, dir: &str, known: &[String]) -> Result<(), String> {
    for entry in fs::read_dir(root.join(dir)).map_err(|e| format!("{dir}: {e}"))? {
        let entry = entry.map_err(|e| format!("{dir}: {e}"))?;
        let path = format!("{dir}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            unknown(root, &path, known)?;
        } else if path.ends_with(".rs") && !known.contains(&path) {
            return Err(format!("eBPF sources changed: {path} is not in ebpf/netd.bpf.lock"));
        }
    }
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}
