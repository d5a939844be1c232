//! What the supervisor's loop is told, and who tells it without being asked: netd's watch, and the ends of processes.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use kernel::netns::{Process, ProcessError};
use model::{
    EndpointId,
    api::{Assignments, EndpointView},
    client::{Client, WatchEvent},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};

use crate::task::Event;

/// What is told to the loop.
pub(crate) enum Message {
    /// A line of the watch.
    Assignments(Box<Assignments>),
    /// netd is away.
    Away(String),
    /// Answer to an attach.
    Attached(EndpointId, Result<Box<EndpointView>, String>),
    /// Answer to a start.
    Started(EndpointId, Result<Process, ProcessError>),
    /// A task's leader has ended.
    Ended(EndpointId),
    /// Anything that concerns the machine alone.
    Task(EndpointId, Event),
}

/// Whom the loop no longer hears, nobody hears: the program ends.
pub(crate) async fn send(sender: &mpsc::Sender<Message>, message: Message) {
    let _ = sender.send(message).await;
}

/// A descriptor that tokio tells when it is readable.
#[expect(
    deprecated,
    reason = "its successor is an unsafe function that asks for what an OwnedFd promises: one open descriptor for life"
)]
fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Tells the loop when a process ends.
pub(crate) fn watch_process(id: EndpointId, process: &Process, sender: mpsc::Sender<Message>) {
    let fd = process.as_fd().try_clone_to_owned().and_then(readable);
    tokio::spawn(async move {
        match fd {
            // A pidfd is readable once its process has ended (pidfd_open(2)).
            Ok(fd) => {
                if let Err(e) = fd.readable().await {
                    tracing::error!("{id}: cannot be watched: {e}");
                    return;
                }
            }
            Err(e) => {
                tracing::error!("{id}: cannot be watched: {e}");
                return;
            }
        }
        send(&sender, Message::Ended(id)).await;
    });
}

/// Hands on what should run here. No resume: a line is the whole set, and the revision alone does not tell a cluster that
/// was made anew.
pub(crate) async fn watch(netd: Client, sender: mpsc::Sender<Message>) {
    let mut watch = netd.watch::<Assignments>("/v1/watch?resource=assignments", |_| None);
    loop {
        let message = match watch.next().await {
            WatchEvent::Up => continue,
            WatchEvent::Item(a) => Message::Assignments(Box::new(a)),
            WatchEvent::Down(e) => Message::Away(e.message),
        };
        if sender.send(message).await.is_err() {
            return;
        }
    }
}
