//! The Debian packages that the demo, the tests and the benchmarks use: one list, in one place.
//!
//! netd itself needs none of them: it runs no program but the tasks it is asked to run. The packages that build the
//! eBPF object are `ebpf.rs`'s own matter, because nobody else needs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// A package, and the program by which its presence is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    /// Debian's name.
    name: &'static str,
    /// A program that it brings, or the whole path of another file of it.
    program: &'static str,
    /// Who needs it.
    purpose: &'static str,
}

const IPROUTE2: Package = Package {
    name: "iproute2",
    program: "ip",
    purpose: "the lab's wires",
};
const UTIL_LINUX: Package = Package {
    name: "util-linux",
    program: "nsenter",
    purpose: "entering the lab's hosts",
};
const CURL: Package = Package {
    name: "curl",
    program: "curl",
    purpose: "asking a published port",
};
const DIG: Package = Package {
    name: "bind9-dnsutils",
    program: "dig",
    purpose: "asking for names",
};
const PING: Package = Package {
    name: "iputils-ping",
    program: "ping",
    purpose: "pings between tasks",
};
const STRACE: Package = Package {
    name: "strace",
    program: "strace",
    purpose: "showing that netd runs no helper",
};
// Not zookeeperd: that one starts a daemon. A machine may well have Java without ZooKeeper.
const ZOOKEEPER: Package = Package {
    name: "libzookeeper-java",
    program: "/usr/share/java/zookeeper.jar",
    purpose: "another registry (ZooKeeper)",
};
const JAVA: Package = Package {
    name: "default-jre-headless",
    program: "java",
    purpose: "running ZooKeeper",
};
const NFTABLES: Package = Package {
    name: "nftables",
    program: "nft",
    purpose: "a router that translates addresses",
};

const OPENSSL: Package = Package {
    name: "openssl",
    program: "openssl",
    purpose: "an external signer of certificates",
};
const PYTHON: Package = Package {
    name: "python3",
    program: "python3",
    purpose: "its HTTPS",
};

const SERF_PACKAGE: Package = Package {
    name: "serf",
    program: "serf",
    purpose: "the contender of bench gossip",
};

const ETCD_SERVER: Package = Package {
    name: "etcd-server",
    program: "etcd",
    purpose: "a registry that managers are discovered in, and the contender of bench raft",
};
const ETCD_CLIENT: Package = Package {
    name: "etcd-client",
    program: "etcdctl",
    purpose: "asking the contender of bench raft how it is",
};

/// What bench raft compares with.
pub(crate) const ETCD: &[Package] = &[ETCD_SERVER, ETCD_CLIENT];
/// What bench gossip compares with.
pub(crate) const SERF: &[Package] = &[SERF_PACKAGE];
const QEMU: Package = Package {
    name: "qemu-system-x86",
    program: "qemu-system-x86_64",
    purpose: "another kernel under emulation",
};
const BUSYBOX: Package = Package {
    name: "busybox-static",
    program: "busybox",
    purpose: "starting the guest",
};

const USER_MODE_LINUX: Package = Package {
    name: "user-mode-linux",
    program: "linux.uml",
    purpose: "a kernel with IPVS",
};
const KMOD: Package = Package {
    name: "kmod",
    program: "modprobe",
    purpose: "another kernel's modules",
};
const IPTABLES: Package = Package {
    name: "iptables",
    program: "iptables-legacy",
    purpose: "rules where a kernel has no nf_tables, and reading them",
};
const IPVSADM: Package = Package {
    name: "ipvsadm",
    program: "ipvsadm",
    purpose: "reading its services, and those that are compared with",
};

const TCPDUMP: Package = Package {
    name: "tcpdump",
    program: "tcpdump",
    purpose: "seeing a reply's way",
};

/// What a lab needs.
pub(crate) const LAB: &[Package] = &[IPROUTE2, UTIL_LINUX];
/// What the demo and the end-to-end tests need.
pub(crate) const ALL: &[Package] = &[
    IPROUTE2,
    UTIL_LINUX,
    CURL,
    DIG,
    PING,
    STRACE,
    ETCD_SERVER,
    ZOOKEEPER,
    JAVA,
    NFTABLES,
    OPENSSL,
    PYTHON,
    IPTABLES,
];
/// What the lane on another kernel needs beside what runs in it.
pub(crate) const KERNEL61: &[Package] = &[
    QEMU, BUSYBOX, KMOD, IPTABLES, IPVSADM, NFTABLES, IPROUTE2, PING, UTIL_LINUX,
];
/// What the lane with IPVS needs beside what runs in it.
pub(crate) const IPVS: &[Package] = &[USER_MODE_LINUX, KMOD, IPTABLES, IPVSADM, IPROUTE2, UTIL_LINUX, TCPDUMP];

/// Folders that hold programs even where a person's PATH leaves them out.
const MORE: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Installs what is missing with apt-get.
///
/// # Errors
///
/// Names what is missing where there is no apt-get, no root, or no such package.
pub(crate) fn ensure(wanted: &[Package]) -> anyhow::Result<()> {
    let missing: Vec<&Package> = wanted.iter().filter(|p| find(p.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing
        .iter()
        .map(|p| format!("  {} (Debian package {}), for {}", p.program, p.name, p.purpose))
        .collect();
    let list = list.join("\n");
    let names: Vec<&str> = missing.iter().map(|p| p.name).collect();
    if find("apt-get").is_none() {
        bail!("missing programs:\n{list}\ntry: install them with this system's package manager");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "missing programs:\n{list}\ntry: sudo apt-get install {}",
            names.join(" ")
        );
    }
    eprintln!("installing {}", names.join(" "));
    apt_get("install", &names, None)
        .with_context(|| format!("missing programs:\n{list}\ntry: apt-get install {}", names.join(" ")))?;
    match wanted.iter().find(|p| find(p.program).is_none()) {
        None => Ok(()),
        Some(p) => bail!("package {} is installed, but {} is not in PATH", p.name, p.program),
    }
}

/// Fetches a package into a folder without installing it.
///
/// # Errors
///
/// There is no apt-get, no such package, or no way to its mirror.
pub(crate) fn download(name: &str, dir: &Path) -> anyhow::Result<()> {
    apt_get("download", &[name], Some(dir)).with_context(|| format!("fetching {name}"))
}

/// Fetches the lists of packages.
///
/// # Errors
///
/// There is no apt-get, or no way to its mirrors.
pub(crate) fn update() -> anyhow::Result<()> {
    run_apt_get("update", &[], None)
}

/// The file of a program.
///
/// # Errors
///
/// It is in none of the usual folders.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    find(name).with_context(|| format!("there is no {name} in PATH"))
}

/// Runs apt-get. The lists of packages may be absent or old: only then is it worth the time to fetch them.
fn apt_get(verb: &str, names: &[&str], dir: Option<&Path>) -> anyhow::Result<()> {
    if run_apt_get(verb, names, dir).is_err() {
        update()?;
        run_apt_get(verb, names, dir)?;
    }
    Ok(())
}

fn run_apt_get(verb: &str, names: &[&str], dir: Option<&Path>) -> anyhow::Result<()> {
    let out = Command::new("apt-get")
        .args(["-qq", "-y", "--no-install-recommends"])
        // Whoever owns this machine decides what goes from it.
        .arg("--no-remove")
        // Somebody else may be installing: wait for the lock rather than fail.
        .args(["-o", "DPkg::Lock::Timeout=300", verb])
        .args(names)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir(dir.unwrap_or(Path::new(".")))
        .output()
        .context("running apt-get")?;
    if !out.status.success() {
        bail!(
            "apt-get {verb} failed: {}",
            String::from_utf8_lossy(&out.stderr).trim_end()
        );
    }
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|file| file.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(MORE.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_path_and_absent_ones_are_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-as-this").is_none());
        // A file that is no program is known by its whole path alone.
        assert!(find("/etc/passwd").is_some() && find("passwd.jar").is_none());
        assert!(find("/usr/share/java/no-such-file.jar").is_none());
    }

    #[test]
    fn every_package_is_listed_once() {
        for list in [ALL, KERNEL61, IPVS] {
            let mut names: Vec<&str> = list.iter().map(|p| p.name).collect();
            names.sort_unstable();
            let all = names.len();
            names.dedup();
            assert_eq!(names.len(), all);
        }
        assert!(LAB.iter().all(|p| ALL.iter().any(|q| q.name == p.name)));
    }
}
