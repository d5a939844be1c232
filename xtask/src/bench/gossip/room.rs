//! Room in the machine's table of neighbours, for as long as the bench runs.

use std::sync::{Arc, Weak};

use anyhow::Context;
use lab::neighbours::{Limit, Raised, needed};
use nix::sys::signal::{SigSet, Signal};

/// Makes room for both clusters until the answer is dropped, or the bench is broken off (Ctrl-C, SIGTERM). After a
/// `kill -9` the limit stays raised, which costs nothing.
pub(super) fn for_neighbours(members: usize) -> anyhow::Result<Arc<Raised>> {
    let raised = Limit::v4()
        .raise(2 * needed(members))
        .with_context(|| format!("two clusters of {members} need room in this machine's table of neighbours"))?;
    let raised = Arc::new(raised);
    if let Some((before, now)) = raised.change() {
        eprintln!("net.ipv4.neigh.default.gc_thresh3 is {now} instead of {before} during this bench");
        put_back_when_broken_off(Arc::downgrade(&raised))?;
    }
    Ok(raised)
}

/// Labs need no such care: their hosts end with this process.
fn put_back_when_broken_off(raised: Weak<Raised>) -> anyhow::Result<()> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGINT);
    ends.add(Signal::SIGTERM);
    // Threads made from here on do not take them either; processes do, std gives them an empty mask.
    ends.thread_block().context("blocking SIGINT and SIGTERM")?;
    std::thread::Builder::new()
        .name("broken-off".into())
        .spawn(move || {
            let Ok(signal) = ends.wait() else { return };
            if let Some(raised) = raised.upgrade() {
                raised.put_back();
            }
            // As a shell tells of a process that a signal has ended.
            std::process::exit(128 + signal as i32);
        })
        .context("a thread that waits for SIGINT")?;
    Ok(())
}
