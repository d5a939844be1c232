//! `cargo xtask ebpf`: builds the kernel programs, or checks that the committed object is what their sources say.
//!
//! The toolchain is Debian's (`rustc-web` has `core` for BPF, `llvm-22` the code generator): no nightly, no bpf-linker.
//! The object and `ebpf/netd.bpf.lock`, the hashes of everything that it was made of, are committed, so that nobody
//! else needs that toolchain; the build script of `kernel` compares the hashes.

mod btf;
mod elf;
mod stack;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

const TARGET: &str = "bpfel-unknown-none";
/// What apt-get is asked for when a tool is missing.
const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22"];
/// Their parts that are run, and the folder that holds `core` for BPF.
const NEEDED: [&str; 5] = [
    "/usr/bin/rustc",
    "/usr/bin/cargo",
    "/usr/bin/llc-22",
    "/usr/bin/llvm-objcopy-22",
    "/usr/lib/rustlib/bpfel-unknown-none",
];

/// Builds the object and its lock; with `check` only says whether the committed ones are current.
///
/// # Errors
/// A tool is missing and cannot be installed, the build fails, or (`check`) what is committed is not what was built.
pub fn run(check: bool) -> anyhow::Result<()> {
    let root = root()?;
    toolchain()?;
    let bitcode = compile(&root)?;
    let object = lower(&bitcode)?;
    stack::check(&object).context("older kernels will not take the programs")?;
    let lock = lock(&root, &object)?;
    let (object_path, lock_path) = (root.join("ebpf/netd.bpf.o"), root.join("ebpf/netd.bpf.lock"));
    if !check {
        write_changed(&object_path, &object)?;
        write_changed(&lock_path, lock.as_bytes())?;
        println!("ebpf/netd.bpf.o: {} octets, {}", object.len(), sha256(&object));
        return Ok(());
    }
    let committed = fs::read_to_string(&lock_path).with_context(|| format!("reading {}", lock_path.display()))?;
    ensure!(
        inputs(&committed) == inputs(&lock),
        "the eBPF sources are not those of ebpf/netd.bpf.lock\n  try: cargo xtask ebpf"
    );
    if tools(&committed) != tools(&lock) {
        println!(
            "ebpf/netd.bpf.lock is of another toolchain:\n  committed: {}\n  here:      {}\nThe bytes cannot be compared; the programs \
             built here are tried by the tests of `kernel`. The lock wants refreshing: cargo xtask ebpf",
            tools(&committed).join(", "),
            tools(&lock).join(", ")
        );
        return Ok(());
    }
    let there = fs::read(&object_path).with_context(|| format!("reading {}", object_path.display()))?;
    ensure!(
        there == object,
        "ebpf/netd.bpf.o ({}) is not what its sources build ({})\n  try: cargo xtask ebpf",
        sha256(&there),
        sha256(&object)
    );
    println!("ebpf/netd.bpf.o is what its sources build: {}", sha256(&object));
    Ok(())
}

fn root() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask lies in the workspace")?.to_path_buf())
}

fn missing() -> Vec<&'static str> {
    NEEDED.into_iter().filter(|p| !Path::new(p).exists()).collect()
}

/// Makes sure that the toolchain is there.
fn toolchain() -> anyhow::Result<()> {
    if missing().is_empty() {
        return Ok(());
    }
    if Path::new("/usr/bin/apt-get").exists() {
        println!("installing {}", PACKAGES.join(" "));
        let status = Command::new("apt-get")
            .args([
                "-o",
                "DPkg::Lock::Timeout=300",
                "install",
                "-y",
                "--no-install-recommends",
                "--no-remove",
            ])
            .args(PACKAGES)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status()
            .context("running apt-get")?;
        ensure!(
            status.success(),
            "apt-get install {} failed\n  try: apt-get update",
            PACKAGES.join(" ")
        );
    }
    let missing = missing();
    ensure!(
        missing.is_empty(),
        "building the eBPF programs needs {}\n  try: install the equivalents of Debian's {} (only whoever changes ebpf/ needs them)",
        missing.join(", "),
        PACKAGES.join(" ")
    );
    Ok(())
}

/// Flags that give every source file the same name on every machine. Of several prefixes that fit rustc takes the last;
/// the folder of downloaded sources bears the name of wherever they came from.
fn remapped(root: &Path, cargo_home: &Path) -> String {
    let mut flags = format!(
        "--remap-path-prefix={}=/netd --remap-path-prefix={}=/cargo",
        root.display(),
        cargo_home.display()
    );
    let downloads = fs::read_dir(cargo_home.join("registry/src"));
    let mut downloads: Vec<PathBuf> = downloads.into_iter().flatten().flatten().map(|d| d.path()).collect();
    downloads.sort();
    for d in downloads {
        flags.push_str(&format!(" --remap-path-prefix={}=/cargo/src", d.display()));
    }
    flags
}

/// Sources to bitcode. Nothing of the caller's environment gets in: the same sources give the same bytes.
fn compile(root: &Path) -> anyhow::Result<PathBuf> {
    let prog = root.join("ebpf/prog");
    let target = prog.join("target");
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let deps = target.join(TARGET).join("release/deps");
    // One bitcode file is looked for below: none of an older build may be found instead.
    if let Ok(files) = fs::read_dir(&deps) {
        for f in files
            .flatten()
            .filter(|f| f.path().extension().is_some_and(|e| e == "bc"))
        {
            fs::remove_file(f.path()).with_context(|| format!("removing {}", f.path().display()))?;
        }
        // Cargo takes the binary for fresh as long as its fingerprint is there.
        for f in fs::read_dir(target.join(TARGET).join("release/.fingerprint"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if f.file_name().to_string_lossy().starts_with("netd-bpf-") {
                fs::remove_dir_all(f.path()).with_context(|| format!("removing {}", f.path().display()))?;
            }
        }
    }
    let status = Command::new("/usr/bin/cargo")
        .args([
            "rustc",
            "--quiet",
            "--release",
            "--locked",
            "--target",
            TARGET,
            "--",
            "--emit=llvm-bc",
            "-C",
            "linker=/bin/true",
        ])
        .current_dir(&prog)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", &home)
        .env("CARGO_HOME", &cargo_home)
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &target)
        .env("AYA_BPF_TARGET_ARCH", "x86_64")
        .env("RUSTFLAGS", remapped(root, &cargo_home))
        .status()
        .context("running /usr/bin/cargo")?;
    ensure!(status.success(), "the eBPF programs do not compile");
    let found: Vec<PathBuf> = fs::read_dir(&deps)
        .with_context(|| format!("reading {}", deps.display()))?
        .flatten()
        .map(|f| f.path())
        .filter(|p| {
            p.extension().is_some_and(|e| e == "bc")
                && p.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with("netd_bpf-"))
        })
        .collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!(
            "expected one netd_bpf-*.bc in {}, found {}",
            deps.display(),
            found.len()
        ),
    }
}

/// Bitcode to the object: BPF code, debug sections stripped, BTF names that the kernel takes.
fn lower(bitcode: &Path) -> anyhow::Result<Vec<u8>> {
    let object = bitcode.with_extension("o");
    tool("/usr/bin/llc-22", |c| {
        c.args(["-march=bpf", "-mcpu=v3", "-O2", "-filetype=obj", "-o"])
            .arg(&object)
            .arg(bitcode)
    })?;
    // Without line numbers: a comment or a line break more in the sources is not another object.
    tool("/usr/bin/llvm-objcopy-22", |c| {
        c.args([
            "--strip-debug",
            "--remove-section=.BTF.ext",
            "--remove-section=.rel.BTF.ext",
        ])
        .arg(&object)
    })?;
    let mut bytes = fs::read(&object).with_context(|| format!("reading {}", object.display()))?;
    btf::fit(&mut bytes).context("rewriting the BTF")?;
    Ok(bytes)
}

fn tool(path: &str, args: impl FnOnce(&mut Command) -> &mut Command) -> anyhow::Result<()> {
    let status = args(&mut Command::new(path))
        .status()
        .with_context(|| format!("running {path}"))?;
    ensure!(status.success(), "{path} failed");
    Ok(())
}

/// The text of the lock: toolchain, object, inputs.
fn lock(root: &Path, object: &[u8]) -> anyhow::Result<String> {
    let mut files = BTreeMap::new();
    for dir in ["ebpf/prog/src", "ebpf/abi/src"] {
        collect(root, Path::new(dir), &mut files)?;
    }
    for file in ["ebpf/prog/Cargo.toml", "ebpf/prog/Cargo.lock", "ebpf/abi/Cargo.toml"] {
        let bytes = fs::read(root.join(file)).with_context(|| format!("reading {file}"))?;
        files.insert(PathBuf::from(file), sha256(&bytes));
    }
    let mut text =
        String::from("# Written by `cargo xtask ebpf`: what ebpf/netd.bpf.o was made of (SHA-256). Do not edit.\n");
    writeln!(text, "tool {}", first_line("/usr/bin/rustc")?)?;
    writeln!(text, "tool {}", version_line("/usr/bin/llc-22")?)?;
    writeln!(text, "object {}", sha256(object))?;
    for (path, hash) in files {
        writeln!(text, "input {hash} {}", path.display())?;
    }
    Ok(text)
}

fn collect(root: &Path, dir: &Path, files: &mut BTreeMap<PathBuf, String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(root.join(dir)).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let bytes = fs::read(root.join(&path)).with_context(|| format!("reading {}", path.display()))?;
            files.insert(path, sha256(&bytes));
        }
    }
    Ok(())
}

fn output(tool: &str) -> anyhow::Result<String> {
    let out = Command::new(tool)
        .arg("--version")
        .output()
        .with_context(|| format!("running {tool}"))?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn first_line(tool: &str) -> anyhow::Result<String> {
    Ok(output(tool)?.lines().next().unwrap_or_default().trim().to_owned())
}

fn version_line(tool: &str) -> anyhow::Result<String> {
    let text = output(tool)?;
    let line = text.lines().find(|l| l.contains("version")).unwrap_or_default();
    Ok(line.trim().to_owned())
}

fn inputs(lock: &str) -> Vec<&str> {
    lock.lines().filter(|l| l.starts_with("input ")).collect()
}

fn tools(lock: &str) -> Vec<&str> {
    lock.lines().filter_map(|l| l.strip_prefix("tool ")).collect()
}

fn write_changed(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}
