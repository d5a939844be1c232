//! Makes the kernel match the view: observe, plan, apply, status.
//!
//! One thread owns everything that writes to the kernel. It runs a pass whenever intent, facts, endpoints or the kernel
//! itself changed, and now and then without a reason. What failed stays in the status and is tried again; a second pass
//! over an unchanged world writes nothing.

mod absence;
mod choose;
mod conntrack;
mod ebpf;
mod former;
pub mod host;
mod ipvs;
mod pass;
mod places;
mod reserve;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use kernel::rtnl::Events;
use model::{EndpointId, Intent, NodeId, api::Writes};
use tokio::sync::watch;

use crate::{config::Config, endpoints::Endpoints, gossip::Facts, place::Addresses};

pub use choose::{Chosen, carries_ipv6, possible};
pub use pass::{Done, Kernel, KernelError};
pub use places::Places;

/// Changes that arrive together are one pass: a burst of rows costs one plan, and nobody notices the wait.
const GATHER: Duration = Duration::from_millis(3);
/// A look without a reason: what no event told of is found at the latest then.
const IDLE: Duration = Duration::from_secs(10);
/// The same for what the maps of the data path hold. They are ours alone and large: reading them was half of what an idle
/// daemon did.
const MAPS: Duration = Duration::from_secs(60);
/// Between two looks at whether others changed our rules, where the data path has some.
const RULES: Duration = Duration::from_millis(500);
/// First and longest pause after a pass that failed in part.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What a pass works from.
pub struct Inputs {
    /// This node.
    pub me: NodeId,
    /// Settings.
    pub config: Config,
    /// Where this node is.
    pub addresses: watch::Receiver<Addresses>,
    /// Intent.
    pub intent: watch::Receiver<Arc<Intent>>,
    /// Facts.
    pub facts: watch::Receiver<Arc<Facts>>,
    /// Endpoints of this node.
    pub endpoints: Arc<Mutex<Endpoints>>,
    /// The view may be older than what the kernel holds, and nobody tells of a newer one: what is missing is added, and
    /// nothing is taken away or replaced.
    pub only_add: bool,
}

/// What the last pass came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reconciled {
    /// Revision of the intent that the kernel holds, problems aside; 0: no pass yet.
    pub applied: u64,
    /// Revision of the intent that was tried last.
    pub tried: u64,
    /// Highest version of each owner's rows that the kernel holds.
    pub held: BTreeMap<NodeId, u64>,
    /// Writes.
    pub writes: Writes,
    /// What could not be done.
    pub problems: Vec<String>,
    /// What could not be done for an endpoint.
    pub endpoints: BTreeMap<EndpointId, String>,
    /// Host side interfaces of the endpoints that are fully there.
    pub attached: BTreeMap<EndpointId, u32>,
    /// MTU inside the overlay, octets.
    pub mtu: u16,
    /// Addresses of this host.
    pub addresses: BTreeSet<IpAddr>,
    /// Where it all is.
    pub places: Places,
}

/// The running reconciler.
pub struct Reconciler {
    wake: SyncSender<Wake>,
    bell: Bell,
    status: watch::Receiver<Arc<Reconciled>>,
    counters: Arc<Mutex<BTreeMap<String, u64>>>,
    chosen: Chosen,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

enum Wake {
    Look,
    /// Other nodes have told something.
    Heard,
    /// There is a newer intent, which may ask for nothing here.
    Decided,
    Count(SyncSender<()>),
    Stop,
    Unload(SyncSender<Result<(), String>>),
}

/// Asks for a look at all objects.
#[derive(Clone)]
struct Bell {
    wake: SyncSender<Wake>,
    /// It was asked for: other wakes may fill the channel.
    look: Arc<AtomicBool>,
}

impl Bell {
    /// `false`: the reconciler has ended.
    fn ring(&self) -> bool {
        self.look.store(true, Ordering::Release);
        // Full: a pass is due already.
        !matches!(self.wake.try_send(Wake::Look), Err(TrySendError::Disconnected(_)))
    }
}

impl Reconciler {
    /// Starts the thread.
    pub fn start(inputs: Inputs, kernel: Kernel) -> std::io::Result<Reconciler> {
        // One waiting wake is enough: it stands for all that happened since the pass began. A few more places let
        // requests (counters, stop) in beside it.
        let (wake, woken) = sync_channel(8);
        let (out, status) = watch::channel(Arc::new(Reconciled::default()));
        let counters = Arc::new(Mutex::new(BTreeMap::new()));
        let chosen = kernel.chosen().clone();
        let bell = Bell {
            wake: wake.clone(),
            look: Arc::new(AtomicBool::new(true)),
        };
        watch_kernel(bell.clone())?;
        watch_policies(bell.clone())?;
        let thread = std::thread::Builder::new().name("reconcile".into()).spawn({
            let counters = counters.clone();
            let look = bell.look.clone();
            move || {
                Loop {
                    inputs,
                    kernel,
                    woken,
                    out,
                    counters,
                    total: 0,
                    runs: 0,
                    look,
                    looked: Instant::now(),
                    passed: None,
                    read: Instant::now(),
                }
                .run()
            }
        })?;
        Ok(Reconciler {
            wake,
            bell,
            status,
            counters,
            chosen,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Something changed.
    pub fn look(&self) {
        self.bell.ring();
    }

    /// Facts changed: what others may have done to this host's kernel is no reason to look.
    pub fn heard(&self) {
        let _ = self.wake.try_send(Wake::Heard);
    }

    /// The intent changed.
    pub fn decided(&self) {
        let _ = self.wake.try_send(Wake::Decided);
    }

    /// The data path in use, and why.
    pub fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// What the last pass came to.
    pub fn status(&self) -> watch::Receiver<Arc<Reconciled>> {
        self.status.clone()
    }

    /// Counters of the data path that are not 0. Blocking.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let (tell, told) = sync_channel(1);
        if self.wake.send(Wake::Count(tell)).is_ok() {
            let _ = told.recv_timeout(Duration::from_secs(2));
        }
        self.counters.lock().map(|c| c.clone()).unwrap_or_default()
    }

    /// Ends the thread after the pass that runs; the kernel keeps what it has. Blocking.
    pub fn stop(&self) {
        let _ = self.wake.send(Wake::Stop);
        self.join();
    }

    /// Takes everything of ours out of the kernel, and ends. Blocking.
    pub fn unload(&self) -> Result<(), String> {
        let (tell, told) = sync_channel(1);
        let sent = self
            .wake
            .send(Wake::Unload(tell))
            .map_err(|_| "the reconciler has ended".to_owned());
        let done = sent.and_then(|()| {
            told.recv()
                .unwrap_or_else(|_| Err("the reconciler has ended".to_owned()))
        });
        self.join();
        done
    }

    fn join(&self) {
        if let Ok(mut t) = self.thread.lock()
            && let Some(t) = t.take()
        {
            let _ = t.join();
        }
    }
}

/// Wakes the reconciler when somebody touches links, addresses or routes of the host. The thread ends at the first event
/// after the reconciler's end.
fn watch_kernel(bell: Bell) -> std::io::Result<()> {
    let mut events = Events::open().map_err(std::io::Error::other)?;
    std::thread::Builder::new()
        .name("kernel-events".into())
        .spawn(move || {
            loop {
                match events.next() {
                    Ok(seen) if seen.is_empty() => {}
                    Ok(_) => {
                        if !bell.ring() {
                            return;
                        }
                    }
                    Err(e) => {
                        tracing::warn!(
                            "kernel events cannot be read: {e}; changes are found within {} s",
                            IDLE.as_secs()
                        );
                        return;
                    }
                }
            }
        })?;
    Ok(())
}

/// Wakes the reconciler when the host's IPsec policies change: packets must not pass by them. The thread ends at the
/// first event after the reconciler's end.
fn watch_policies(bell: Bell) -> std::io::Result<()> {
    let Some(mut events) = kernel::xfrm::Events::open().map_err(std::io::Error::other)? else {
        return Ok(());
    };
    std::thread::Builder::new().name("ipsec-events".into()).spawn(move || {
        loop {
            match events.wait() {
                Ok(()) => {
                    if !bell.ring() {
                        return;
                    }
                }
                Err(e) => {
                    tracing::warn!(
                        "IPsec policies cannot be followed: {e}; changes are found within {} s",
                        IDLE.as_secs()
                    );
                    return;
                }
            }
        }
    })?;
    Ok(())
}

/// Said while this node has neither a last view nor a manager.
const NOTHING_KNOWN: &str = "this node knows no intent, neither from its disk nor from a manager: what the kernel holds is left as it is; try: netctl cluster members, and start a manager";

struct Loop {
    inputs: Inputs,
    kernel: Kernel,
    woken: Receiver<Wake>,
    out: watch::Sender<Arc<Reconciled>>,
    counters: Arc<Mutex<BTreeMap<String, u64>>>,
    total: u64,
    runs: u64,
    /// The next pass looks at all objects.
    look: Arc<AtomicBool>,
    /// When one did last.
    looked: Instant,
    /// Intent of the last pass, if that left no problem.
    passed: Option<Arc<Intent>>,
    /// When the maps were read last.
    read: Instant,
}

/// What a wake leads to.
enum Heed {
    Pass,
    Wait,
    End,
}

/// How a pass ended.
enum Passed {
    /// With no problem.
    Whole,
    /// Some of it is to be tried again.
    InPart,
    /// Before it wrote anything, see [`Done::again`].
    NotYet(Duration),
}

/// Whether two intents ask for the same of a kernel: settings, keys and the like leave it alone.
fn same_kernel(a: &Intent, b: &Intent) -> bool {
    let parts = |i: &Intent| (i.cluster.is_empty(), i.revision == 0);
    parts(a) == parts(b)
        && a.nodes == b.nodes
        && a.networks == b.networks
        && a.services == b.services
        && a.blocks == b.blocks
        && a.placements == b.placements
        && a.leaving == b.leaving
        && a.settings.data_path_port == b.settings.data_path_port
}

impl Loop {
    fn run(mut self) {
        let mut retry = RETRY.0;
        loop {
            let passed = self.pass();
            if !matches!(passed, Passed::Whole) {
                self.passed = None;
            }
            if self.runs == 1 {
                // What was needed to load the programs lies about.
                kernel::heap::trim();
            }
            let pause = match passed {
                Passed::Whole => {
                    retry = RETRY.0;
                    // Passes for what others told put no look off.
                    IDLE.saturating_sub(self.looked.elapsed())
                }
                Passed::InPart => {
                    let now = retry;
                    retry = (retry * 2).min(RETRY.1);
                    now
                }
                Passed::NotYet(left) => left,
            };
            if !self.wait(pause) {
                return;
            }
        }
    }

    /// Waits for a reason to look. `false`: it is over.
    fn wait(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            let mut left = until.saturating_duration_since(Instant::now());
            if self.kernel.watches() && left > RULES {
                left = RULES;
            }
            match self.woken.recv_timeout(left) {
                Ok(wake) => match self.heed(wake) {
                    Heed::Pass => break,
                    // The bell may have found no place for its wake.
                    Heed::Wait if self.look.load(Ordering::Acquire) => break,
                    Heed::Wait => {}
                    Heed::End => return false,
                },
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {
                    if self.kernel.is_disturbed() {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.look.store(true, Ordering::Release);
                    if self.read.elapsed() >= MAPS {
                        self.read = Instant::now();
                        self.kernel.forget_mirrors();
                    }
                    return true;
                }
            }
        }
        std::thread::sleep(GATHER);
        // What has come meanwhile is seen by the same pass.
        while let Ok(wake) = self.woken.try_recv() {
            if matches!(self.heed(wake), Heed::End) {
                return false;
            }
        }
        true
    }

    fn heed(&mut self, wake: Wake) -> Heed {
        match wake {
            Wake::Look | Wake::Heard => Heed::Pass,
            Wake::Decided => self.decided(),
            Wake::Count(tell) => {
                self.count();
                let _ = tell.try_send(());
                Heed::Wait
            }
            Wake::Unload(tell) => {
                let _ = tell.send(self.kernel.unload().map_err(|e| e.to_string()));
                Heed::End
            }
            Wake::Stop => Heed::End,
        }
    }

    /// A newer intent that asks for nothing new here is applied by saying so: a pass looks at the whole kernel.
    fn decided(&mut self) -> Heed {
        let now = self.inputs.intent.borrow().clone();
        match &self.passed {
            Some(passed) if same_kernel(passed, &now) => {}
            _ => return Heed::Pass,
        }
        let revision = now.revision;
        self.passed = Some(now);
        self.out.send_modify(|status| {
            let status = Arc::make_mut(status);
            (status.applied, status.tried) = (revision, revision);
        });
        Heed::Wait
    }

    fn count(&mut self) {
        match self.kernel.counters() {
            Ok(now) => {
                if let Ok(mut c) = self.counters.lock() {
                    *c = now;
                }
            }
            Err(e) => tracing::warn!("counters of the data path: {e}"),
        }
    }

    fn pass(&mut self) -> Passed {
        let asked = self.look.swap(false, Ordering::AcqRel);
        if asked || self.looked.elapsed() >= IDLE || !self.kernel.watches() {
            self.kernel.look_again();
            self.looked = Instant::now();
        }
        let began = Instant::now();
        let intent = self.inputs.intent.borrow().clone();
        let facts = self.inputs.facts.borrow().clone();
        let endpoints = self
            .inputs
            .endpoints
            .lock()
            .map(|e| e.all().clone())
            .unwrap_or_default();
        let before = self.out.borrow().clone();
        if intent.revision == 0 {
            // Nothing is known, which is not the same as nothing to be there.
            self.runs += 1;
            let mut status = (*before).clone();
            status.writes.runs = self.runs;
            status.problems = vec![NOTHING_KNOWN.to_owned()];
            self.out.send_replace(Arc::new(status));
            return Passed::Whole;
        }
        let out = &self.out;
        let tell = |addresses: &BTreeSet<IpAddr>| {
            out.send_if_modified(|status| {
                let new = status.addresses != *addresses;
                if new {
                    Arc::make_mut(status).addresses.clone_from(addresses);
                }
                new
            });
        };
        let mut done = self.kernel.pass(&self.inputs, &intent, &facts, &endpoints, &tell);
        if let Some(left) = done.again {
            // What the last pass came to is still so.
            return Passed::NotYet(left);
        }
        self.total += done.writes;
        self.runs += 1;
        let clean = done.problems.is_empty();
        for note in done.notes.iter().filter(|n| !before.problems.contains(n)) {
            tracing::warn!("{note}");
        }
        if done.writes > 0 || done.problems != before.problems {
            tracing::info!(
                revision = intent.revision,
                writes = done.writes,
                problems = done.problems.len(),
                us = began.elapsed().as_micros() as u64,
                "reconciled"
            );
        }
        for p in done.problems.iter().filter(|p| !before.problems.contains(p)) {
            tracing::warn!("not applied: {p}");
        }
        done.problems.append(&mut done.notes);
        if let Ok(mut table) = self.inputs.endpoints.lock() {
            for (id, e) in &endpoints {
                let attached = done.attached.contains_key(id);
                let problem = done.endpoints.get(id).cloned();
                if e.attached != attached || e.problem != problem {
                    table.note(id, |e| (e.attached, e.problem) = (attached, problem));
                }
            }
        }
        let status = Reconciled {
            // An endpoint's own trouble (its namespace is gone) is not the intent's.
            applied: if clean { intent.revision } else { before.applied },
            tried: intent.revision,
            held: crate::view::held(&facts),
            writes: Writes {
                last: done.writes,
                total: self.total,
                runs: self.runs,
            },
            problems: done.problems,
            endpoints: done.endpoints,
            attached: done.attached,
            mtu: done.mtu,
            addresses: done.addresses.unwrap_or(before.addresses.clone()),
            places: done.places,
        };
        self.out.send_replace(Arc::new(status));
        self.passed = Some(intent);
        match clean {
            true => Passed::Whole,
            false => Passed::InPart,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_ask_nothing_of_the_kernel() {
        let one = Intent {
            revision: 7,
            cluster: "c".into(),
            ..Intent::default()
        };
        let mut other = one.clone();
        other.revision = 8;
        other.settings.task_history_limit += 1;
        other.trust.gossip.push(2);
        assert!(same_kernel(&one, &other));
        other.placements.insert("web".parse().unwrap(), Default::default());
        assert!(!same_kernel(&one, &other));
        assert!(!same_kernel(&Intent::default(), &one), "nothing known is another thing");
    }
}
