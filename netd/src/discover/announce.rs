//! Keeps this node in a registry while it is a manager.

use std::time::Duration;

use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{Context, DiscoverError, PATIENCE, Registry, Url, open};

/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Announces an address again and again. Ends with [`Announcer::end`]; when it is only dropped, the registry forgets the
/// address after the time to live.
pub struct Announcer {
    addr: watch::Sender<Option<String>>,
    pub(super) problem: watch::Receiver<Option<String>>,
    task: JoinHandle<()>,
}

impl Announcer {
    /// Begins. `Err`: the URL does not read, or nothing can be announced there.
    pub fn start(url: &str, context: &Context) -> Result<Announcer, DiscoverError> {
        let ttl = url.parse::<Url>()?.ttl;
        let registry = open(url, context)?;
        let addr = watch::Sender::new(None);
        let problem = watch::Sender::new(None);
        let told = problem.subscribe();
        let task = tokio::spawn(keep(registry, ttl, addr.subscribe(), problem));
        Ok(Announcer {
            addr,
            problem: told,
            task,
        })
    }

    /// What is announced; none: nothing, e.g. while this node is a worker.
    pub fn say(&self, addr: Option<String>) {
        self.addr.send_if_modified(|old| {
            let new = *old != addr;
            *old = addr;
            new
        });
    }

    /// Why it is not announced.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// Takes it away and ends.
    pub async fn end(self) {
        let Announcer { addr, task, .. } = self;
        addr.send_replace(None);
        drop(addr);
        // A registry that does not answer forgets by itself.
        let _ = timeout(PATIENCE, task).await;
    }
}

async fn keep(
    mut registry: Box<dyn Registry>,
    ttl: Duration,
    mut addr: watch::Receiver<Option<String>>,
    problem: watch::Sender<Option<String>>,
) {
    let mut retry = RETRY.0;
    let mut there = false;
    loop {
        let now = addr.borrow_and_update().clone();
        let done = match &now {
            Some(a) => timeout(PATIENCE, registry.announce(a)).await,
            None if there => timeout(PATIENCE, registry.withdraw()).await,
            None => Ok(Ok(())),
        };
        let failed = match done {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        let wait = match &failed {
            None => {
                (there, retry) = (now.is_some(), RETRY.0);
                ttl / 3
            }
            Some(why) => {
                there |= now.is_some();
                let wait = retry.min(ttl / 3);
                retry = (retry * 2).min(RETRY.1);
                if *problem.borrow() != failed {
                    tracing::warn!("this manager cannot be announced: {why}");
                }
                wait
            }
        };
        problem.send_replace(failed.map(|why| format!("this manager cannot be announced: {why}")));
        if now.is_none() && addr.has_changed().is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = addr.changed() => if changed.is_err() && !there {
                return;
            }
        }
    }
}
