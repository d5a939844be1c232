//! Settings below `/proc/sys`, of the calling thread's network namespace (net/ is looked up for each open anew).

use std::{fs, io, path::PathBuf};

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The key would leave `/proc/sys`.
    #[error("{0:?} is no sysctl key; try: net/ipv4/conf/lo/forwarding")]
    Key(String),
    /// The kernel does not have it.
    #[error("the kernel has no setting {key}; try: check that the device exists, and CONFIG_SYSCTL and CONFIG_IPV6")]
    Absent {
        /// Key.
        key: String,
    },
    /// Reading or writing failed.
    #[error("cannot {doing} {key}; try: run as root, with /proc/sys writable")]
    Io {
        /// Verb.
        doing: &'static str,
        /// Key.
        key: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Keys are written with slashes, because names of devices may hold dots.
fn path(key: &str) -> Result<PathBuf, SysctlError> {
    if key.is_empty() || key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(SysctlError::Key(key.to_owned()));
    }
    Ok(PathBuf::from("/proc/sys").join(key))
}

fn failed(doing: &'static str, key: &str, source: io::Error) -> SysctlError {
    let key = key.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => SysctlError::Absent { key },
        _ => SysctlError::Io { doing, key, source },
    }
}

/// Value of a setting, without the line's end. `Ok(None)`: the kernel does not have it.
pub fn read(key: &str) -> Result<Option<String>, SysctlError> {
    match fs::read_to_string(path(key)?).map_err(|e| failed("read", key, e)) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(SysctlError::Absent { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes a setting have a value. `Ok(false)`: it had it, nothing was written.
pub fn set(key: &str, value: &str) -> Result<bool, SysctlError> {
    let path = path(key)?;
    let now = fs::read_to_string(&path).map_err(|e| failed("read", key, e))?;
    if now.trim_end() == value {
        return Ok(false);
    }
    fs::write(&path, value).map_err(|e| failed("write", key, e))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{netns, testing::Folder};

    #[test]
    fn a_setting_belongs_to_its_namespace_and_is_written_once() {
        let folder = Folder::new("sysctl");
        let ns = netns::create(&folder.path().join("a")).unwrap();
        let key = "net/ipv4/conf/lo/accept_local";
        let here = read(key).unwrap();
        netns::run_in(&ns, || {
            assert_eq!(read(key).unwrap().as_deref(), Some("0"));
            assert!(set(key, "1").unwrap());
            assert!(!set(key, "1").unwrap());
            assert_eq!(read(key).unwrap().as_deref(), Some("1"));
        })
        .unwrap();
        assert_eq!(read(key).unwrap(), here);
    }

    #[test]
    fn keys_stay_below_proc_sys_and_absent_ones_say_so() {
        assert!(matches!(set("net/../../self/comm", "x"), Err(SysctlError::Key(_))));
        assert!(matches!(read("/etc/passwd"), Err(SysctlError::Key(_))));
        assert_eq!(read("net/ipv4/conf/no-such/forwarding").unwrap(), None);
        assert!(matches!(
            set("net/ipv4/conf/no-such/forwarding", "1"),
            Err(SysctlError::Absent { .. })
        ));
    }
}
