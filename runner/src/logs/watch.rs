//! Seeing that logs grow, by inotify(7) on their folder: one watch, whatever the number of tasks, and nothing to do while
//! nobody writes.

use std::{
    collections::BTreeSet,
    os::fd::AsFd as _,
    sync::{Arc, Weak},
    time::Duration,
};

use model::EndpointId;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent},
};

use super::{Inner, Logs};

/// After the first sign of a write: what is written until then has one time.
const PACE: Duration = Duration::from_millis(5);
/// Most reads of events in a row: who writes without end does not keep the times from being written down.
const READS: usize = 256;

/// Watches for as long as the logs are used.
pub(super) fn start(logs: &Logs) -> std::io::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(&logs.0.folder, AddWatchFlags::IN_MODIFY)?;
    let logs = Arc::downgrade(&logs.0);
    let thread = std::thread::Builder::new().name("log-times".into());
    thread.spawn(move || {
        if let Err(e) = run(&inotify, &logs) {
            tracing::error!("log lines get times in steps of some seconds, their folder is watched no more: {e}");
        }
    })?;
    Ok(())
}

fn run(inotify: &Inotify, logs: &Weak<Inner>) -> nix::Result<()> {
    loop {
        let mut wait = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wait, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e),
        }
        std::thread::sleep(PACE);
        let events = all(inotify)?;
        let Some(inner) = logs.upgrade() else {
            return Ok(());
        };
        let logs = Logs(inner);
        if events.iter().any(|e| e.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)) {
            logs.see_all();
            continue;
        }
        let ids: BTreeSet<EndpointId> = events.iter().filter_map(written).collect();
        ids.iter().for_each(|id| logs.see(id));
    }
}

/// The events that wait.
fn all(inotify: &Inotify) -> nix::Result<Vec<InotifyEvent>> {
    let mut out = Vec::new();
    for _ in 0..READS {
        match inotify.read_events() {
            Ok(more) => out.extend(more),
            Err(Errno::EAGAIN) => break,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

/// Whose log was written to.
fn written(event: &InotifyEvent) -> Option<EndpointId> {
    event.name.as_ref()?.to_str()?.strip_suffix(".log")?.parse().ok()
}
