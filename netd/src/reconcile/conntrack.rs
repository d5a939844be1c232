//! How full the kernel's table of connections is: where it is full, new connections through published ports are dropped by
//! the kernel without a word to anybody but its log.

use std::time::{Duration, Instant};

use kernel::sysctl::{self, SysctlError};

/// Entries of this namespace, and how many each namespace may have (Documentation/networking/nf_conntrack-sysctl.rst).
const COUNT: &str = "net/netfilter/nf_conntrack_count";
const MAX: &str = "net/netfilter/nf_conntrack_max";
/// From here on it is told, parts of a hundred: there is time left to do something.
const NEARLY: u64 = 95;
/// Between two looks: a burst of passes needs but one.
const PAUSE: Duration = Duration::from_secs(2);

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Conntrack {
    looked: Option<Instant>,
    fill: Option<Fill>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fill {
    count: u64,
    max: u64,
}

impl Conntrack {
    /// Looks at the calling thread's namespace if the last look is old; the trouble, if there is one.
    pub(super) fn problem(&mut self) -> Result<Option<String>, SysctlError> {
        if self.looked.is_none_or(|at| at.elapsed() >= PAUSE) {
            self.looked = Some(Instant::now());
            self.fill = fill()?;
        }
        Ok(self.fill.and_then(Fill::problem))
    }
}

/// None: this kernel does not track connections, yet.
fn fill() -> Result<Option<Fill>, SysctlError> {
    let number = |key| Ok(sysctl::read(key)?.and_then(|n| n.trim().parse().ok()));
    Ok(match (number(COUNT)?, number(MAX)?) {
        (Some(count), Some(max)) => Some(Fill { count, max }),
        _ => None,
    })
}

impl Fill {
    fn problem(self) -> Option<String> {
        let Fill { count, max } = self;
        // 0: no limit.
        if max == 0 || count.saturating_mul(100) < max.saturating_mul(NEARLY) {
            return None;
        }
        let state = match count >= max {
            true => "is full: new connections are dropped by the kernel",
            false => "is nearly full: new connections will be dropped by the kernel",
        };
        let more = max.saturating_mul(2);
        Some(format!(
            "the kernel's table of connections {state} ({count} of {max}); try: sysctl -w net.netfilter.nf_conntrack_max={more}, and conntrack -S for who fills it"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_before_it_is_full_and_when_it_is() {
        let told = |count, max| Fill { count, max }.problem();
        assert_eq!(told(0, 0), None, "no limit");
        assert_eq!(told(94, 100), None);
        assert!(told(95, 100).is_some_and(|t| t.contains("nearly full") && t.contains("95 of 100")));
        assert!(told(100, 100).is_some_and(|t| t.contains("is full") && t.contains("nf_conntrack_max=200")));
        assert!(told(u64::MAX, u64::MAX).is_some());
    }
}
