//! Debian's kernel, unpacked and kept: nothing is installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::packages;
use crate::ui::during;

/// The package that depends on the stock kernel of the Debian release.
const META: &str = "linux-image-amd64";

/// An unpacked kernel.
pub(super) struct Linux {
    /// As `uname -r` will say it.
    pub(super) release: String,
    /// The kernel itself.
    pub(super) vmlinuz: PathBuf,
    /// The folder that holds its modules and `modules.builtin`.
    pub(super) modules: PathBuf,
}

/// The kernel of a series (`6.1.`) below `dir`; it is fetched and unpacked where it is not there yet.
///
/// # Errors
///
/// This machine's Debian has no kernel of that series, or it cannot be fetched.
pub(super) fn get(dir: &Path, series: &str) -> anyhow::Result<Linux> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let lock = dir.join("lock");
    let lock = File::create(&lock).with_context(|| format!("making {}", lock.display()))?;
    // Two lanes at once: the second one finds what the first one has unpacked.
    lock.lock().context("waiting for another lane to unpack the kernel")?;
    let new = dir.join("new");
    // What a run left that was ended while it unpacked.
    remove(&new)?;
    let kept = dir.join("linux");
    if !kept.is_dir() {
        let got = fetch(&new, series).and_then(|()| Ok(fs::rename(&new, &kept)?));
        if got.is_err() {
            remove(&new)?;
        }
        got?;
    }
    let linux = find(&kept).with_context(|| {
        format!(
            "{} holds no whole kernel\n  try: rm -r {}",
            kept.display(),
            kept.display()
        )
    })?;
    depend(&kept, &linux)?;
    Ok(linux)
}

/// Makes what `modprobe` reads, as the package would when it is installed. Once: the file that is looked for is the last
/// that is written.
fn depend(kept: &Path, linux: &Linux) -> anyhow::Result<()> {
    if linux.modules.join("modules.devname").is_file() {
        return Ok(());
    }
    let base = linux.modules.ancestors().nth(3).unwrap_or(kept);
    let out = Command::new(packages::program("depmod")?)
        .arg("-b")
        .arg(base)
        .arg(&linux.release)
        .output()
        .context("running depmod")?;
    if !out.status.success() {
        bail!("depmod: {}", String::from_utf8_lossy(&out.stderr).trim_end());
    }
    Ok(())
}

fn remove(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Unpacks the kernel into a new folder.
fn fetch(new: &Path, series: &str) -> anyhow::Result<()> {
    let package = package(series)?;
    let download = new.join("download");
    fs::create_dir_all(&download).with_context(|| format!("making {}", download.display()))?;
    during(&format!("fetching {package}"), || {
        packages::download(&package, &download)
    })?;
    during(&format!("unpacking {package}"), || {
        let deb = one(&download, |_| true)?;
        let out = Command::new("dpkg-deb")
            .arg("-x")
            .arg(&deb)
            .arg(new)
            .output()
            .context("running dpkg-deb")?;
        if !out.status.success() {
            bail!("dpkg-deb -x: {}", String::from_utf8_lossy(&out.stderr).trim_end());
        }
        fs::remove_dir_all(&download).with_context(|| format!("removing {}", download.display()))
    })
}

/// Name of the package that holds the kernel itself.
fn package(series: &str) -> anyhow::Result<String> {
    let ask = || {
        let out = Command::new("apt-cache")
            .args(["depends", META])
            .env("LC_ALL", "C")
            .output()
            .context("running apt-cache\n  try: the lane on Debian bookworm, whose stock kernel it is")?;
        anyhow::Ok(dependency(&String::from_utf8_lossy(&out.stdout)))
    };
    let mut found = ask()?;
    if found.is_none() {
        packages::update()?;
        found = ask()?;
    }
    match found {
        Some(name) if name.starts_with(&format!("linux-image-{series}")) => Ok(name),
        Some(name) => bail!("{META} is {name} here, not a Linux {series}x\n  try: the lane on Debian bookworm"),
        None => bail!("apt-cache knows no {META}\n  try: the lane on Debian bookworm, amd64"),
    }
}

/// The kernel's package in what `apt-cache depends` says of [`META`].
fn dependency(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
}

fn find(kept: &Path) -> anyhow::Result<Linux> {
    let vmlinuz = one(&kept.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    let release = vmlinuz
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix("vmlinuz-"))
        .context("a kernel without a release")?
        .to_owned();
    // Releases after bookworm keep them in /usr.
    let modules = ["lib", "usr/lib"]
        .into_iter()
        .map(|lib| kept.join(lib).join("modules").join(&release))
        .find(|dir| dir.is_dir())
        .with_context(|| format!("no modules of {release}"))?;
    Ok(Linux {
        release,
        vmlinuz,
        modules,
    })
}

/// The one file of a folder whose name fits.
fn one(dir: &Path, fits: impl Fn(&str) -> bool) -> anyhow::Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() && fits(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    match found.as_slice() {
        [file] => Ok(file.clone()),
        _ => bail!("expected one file in {}, found {}", dir.display(), found.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_package_is_found() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Suggests: x\n";
        assert_eq!(dependency(text).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(dependency("linux-image-amd64\n  Suggests: linux-image-x\n"), None);
        assert_eq!(dependency(""), None);
    }
}
