//! What a process has used, from proc(5).

use anyhow::Context;

/// CPU seconds since its start, of all its threads.
///
/// # Errors
///
/// When there is no such process.
pub(super) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("reading a process's CPU time")?;
    // After the name, which may hold blanks: state is the first word, utime the 12th, stime the 13th.
    let words: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |n: usize| words.get(n).and_then(|w| w.parse::<f64>().ok()).unwrap_or(0.0);
    // USER_HZ is 100 on every Linux that netd runs on.
    Ok((ticks(11) + ticks(12)) / 100.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_very_process_is_seen() {
        let me = std::process::id();
        let before = super::cpu_seconds(me).unwrap();
        // 50 ms of work are five ticks.
        let begun = std::time::Instant::now();
        while begun.elapsed() < std::time::Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        assert!(super::cpu_seconds(me).unwrap() > before);
        assert!(super::cpu_seconds(u32::MAX).is_err());
    }
}
