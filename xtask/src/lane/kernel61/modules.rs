//! Which modules, in which order: each after those that it depends on. An unpacked kernel has no `modules.dep`, which
//! `depmod` makes when the package is installed; every module bears the names itself (`.modinfo`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The files of these modules and of all that they depend on, in the order of loading.
///
/// # Errors
///
/// The kernel has one of them neither as a module nor built in.
pub(super) fn in_order(dir: &Path, wanted: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    collect(&dir.join("kernel"), &mut found)?;
    let builtin = dir.join("modules.builtin");
    let builtin = fs::read_to_string(&builtin).with_context(|| format!("reading {}", builtin.display()))?;
    let built_in = |name: &str| builtin.lines().any(|line| name_of(line).as_deref() == Some(name));
    let depends = |path: &Path| {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(dependencies(&bytes))
    };
    let mut order = Vec::new();
    for name in wanted {
        visit(name, &found, &built_in, &depends, &mut order)?;
    }
    Ok(order)
}

fn visit(
    name: &str,
    found: &BTreeMap<String, PathBuf>,
    built_in: &impl Fn(&str) -> bool,
    depends: &impl Fn(&Path) -> anyhow::Result<Vec<String>>,
    order: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    let Some(path) = found.get(name) else {
        if built_in(name) {
            return Ok(());
        }
        bail!("the kernel has no module {name}");
    };
    if order.contains(path) {
        return Ok(());
    }
    // Modules cannot depend on each other in a circle: `depmod` refuses to install such a kernel.
    for other in depends(path)? {
        visit(&other, found, built_in, depends, order)?;
    }
    order.push(path.clone());
    Ok(())
}

fn collect(dir: &Path, found: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, found)?;
        } else if let Some(name) = path.to_str().and_then(name_of) {
            found.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/net/ipv4/udp_tunnel.ko` -> `udp_tunnel`. A file may be named with `-` where the kernel says `_`.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    Some(file.strip_suffix(".ko")?.replace('-', "_"))
}

/// The `depends=` of a module: its strings of `.modinfo` are each ended by a zero octet.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|w| w == KEY) else {
        return Vec::new();
    };
    let value = module.get(at + KEY.len()..).unwrap_or_default();
    let value = value.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(
            dependencies(b"xx\0license=GPL\0depends=udp_tunnel,ip6-udp-tunnel\0y"),
            ["udp_tunnel", "ip6_udp_tunnel"]
        );
        assert!(dependencies(b"\0depends=\0retpoline=Y").is_empty());
        assert!(dependencies(b"\0license=GPL\0").is_empty());
    }

    #[test]
    fn what_is_depended_on_comes_first_and_once() {
        let path = |n: &str| PathBuf::from(format!("kernel/{n}.ko"));
        let names = ["vxlan", "udp_tunnel", "bridge", "stp", "llc"];
        let found = names.map(|n| (n.to_owned(), path(n))).into_iter().collect();
        let depends = |p: &Path| {
            let of: &[&str] = match p.file_stem().and_then(|s| s.to_str()) {
                Some("vxlan") => &["udp_tunnel"],
                Some("bridge") => &["stp", "llc", "ipv6"],
                Some("stp") => &["llc"],
                _ => &[],
            };
            Ok(of.iter().map(|s| (*s).to_owned()).collect())
        };
        let mut order = Vec::new();
        for name in ["bridge", "vxlan", "llc", "ipv6"] {
            visit(name, &found, &|n| n == "ipv6", &depends, &mut order).unwrap();
        }
        assert_eq!(order, ["llc", "stp", "bridge", "udp_tunnel", "vxlan"].map(path));
        let error = visit("ip_vs", &found, &|_| false, &depends, &mut order).unwrap_err();
        assert!(error.to_string().contains("ip_vs"));
    }
}
