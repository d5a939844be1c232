//! What this machine is, as placement asks.

use std::{net::IpAddr, sync::OnceLock};

use model::{intent::Machine, spec::Resources};

/// What this machine is; it is looked at once. `address`: where its data path is reached now.
pub(crate) fn look(address: IpAddr) -> Machine {
    static SEEN: OnceLock<Machine> = OnceLock::new();
    let seen = SEEN.get_or_init(|| Machine {
        os: std::env::consts::OS.into(),
        arch: std::env::consts::ARCH.into(),
        capacity: Resources {
            // Of the CPUs that this process may use: its tasks get no others.
            cpu_milli: std::thread::available_parallelism().map_or(0, |n| n.get() as u64 * 1000),
            memory: std::fs::read_to_string("/proc/meminfo").map_or(0, |text| memory(&text)),
        },
        address: None,
    });
    Machine {
        address: Some(address),
        ..seen.clone()
    }
}

/// Octets of memory in all; 0: it is not told.
fn memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told() {
        assert_eq!(memory("MemTotal:        2048 kB\nMemFree:  1 kB\n"), 2 << 20);
        assert_eq!(memory("MemFree:  1 kB\n") + memory("MemTotal: lots"), 0);
        let m = look("198.51.100.1".parse().unwrap());
        assert!(m.os == "linux" && !m.arch.is_empty() && m.capacity.cpu_milli >= 1000 && m.capacity.memory > 1 << 20);
    }
}
