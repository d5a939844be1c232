//! What becomes of one task: a pure machine. [`Task::handle`] takes the time and what happened and says what to do;
//! [`Task::next_timer`] says when to come again at the latest.
//!
//! ```text
//! Attaching -> Starting -> Running -> Draining -> Stopping -> Detaching -> (forgotten, or Attaching again)
//!     ^  pause      ^         | ended by itself                  ^
//!     +--------+    +- Pause <- Ending                           +- from any other phase, when it is not wanted
//! ```

mod backoff;
#[cfg(test)]
mod tests;

use std::time::Duration;

use model::{
    EndpointId, NodeId,
    api::{Assignment, EndpointCreate, TaskState, TaskStatus},
};
use serde::{Deserialize, Serialize};

pub(crate) use backoff::Backoff;

/// How long after SIGKILL it is sent again; only a process that hangs in the kernel lives on.
const KILL_AGAIN: Duration = Duration::from_secs(5);

/// How long a task that was found dead waits for netd before it is started again without it.
const ASK: Duration = Duration::from_secs(1);

/// A task that the log wants on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The node, as the cluster names it.
    pub(crate) node: NodeId,
    /// The task.
    pub(crate) task: Assignment,
}

impl Order {
    /// Whether a task that runs for `self` also serves `new`.
    fn serves(&self, new: &Order) -> bool {
        let key = |o: &Order| (o.node, o.task.generation);
        key(self) == key(new) && self.task.networks == new.task.networks
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The log wants it so.
    Wanted(Order),
    /// The log does not want it here any more.
    Unwanted,
    /// netd is back: it is told everything again, and asked for the endpoint again.
    Reconnected,
    /// The endpoint is there.
    Attached {
        /// Whether what runs, if anything does, runs in its namespace.
        same: bool,
    },
    /// It is not; why.
    NotAttached(String),
    /// The command was started.
    Started {
        /// Process id.
        pid: u32,
    },
    /// It was not; why.
    NotStarted(String),
    /// The started process has ended; how. What it started may live on.
    Exited(String),
    /// Nothing of it is left.
    Empty,
    /// No node sends new flows to it, or netd has waited long enough.
    Drained,
    /// The endpoint is gone.
    Detached,
    /// It is not; why.
    NotDetached(String),
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask netd for the endpoint; answered by [`Event::Attached`] or [`Event::NotAttached`].
    Attach(EndpointCreate),
    /// Start the command in the endpoint's namespace; answered by [`Event::Started`] or [`Event::NotStarted`].
    Start {
        /// What.
        order: Box<Order>,
        /// For the record.
        restarts: u32,
    },
    /// Ask netd to drain the endpoint; answered by [`Event::Drained`].
    Drain,
    /// SIGTERM to its process group.
    Terminate,
    /// SIGKILL to all that is left of it.
    Kill,
    /// Ask netd to remove the endpoint; answered by [`Event::Detached`] or [`Event::NotDetached`].
    Detach,
    /// Tell netd.
    Report(TaskStatus),
    /// Nothing is left and nothing is wanted: drop the task and its record.
    Forget,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Nothing is there.
    Void,
    Attaching,
    AttachPause {
        until: Duration,
    },
    Starting,
    Running {
        pid: u32,
        since: Duration,
        /// When to ask for the endpoint again, after a refusal.
        attach_at: Option<Duration>,
    },
    /// The leader ended by itself; what it left is being killed.
    Ending {
        how: String,
        ran: Duration,
        kill_at: Duration,
    },
    Pause {
        until: Duration,
    },
    Draining,
    Stopping {
        kill_at: Duration,
    },
    Detaching,
    DetachPause {
        until: Duration,
    },
}

/// A task of this node.
#[derive(Debug)]
pub(crate) struct Task {
    id: EndpointId,
    wanted: Option<Order>,
    /// What the endpoint and the process were made for.
    current: Option<Order>,
    phase: Phase,
    attach_pause: Backoff,
    run_pause: Backoff,
    restarts: u32,
    started_before: bool,
    /// The namespace is known and was not found wanting.
    attached: bool,
    /// Found dead after a restart: it waits a little for netd to say whether it is still wanted.
    asking: bool,
    last: Option<TaskStatus>,
}

impl Task {
    /// A task that nothing is known of yet.
    pub(crate) fn new(id: EndpointId) -> Self {
        Task {
            id,
            wanted: None,
            current: None,
            phase: Phase::Void,
            attach_pause: Backoff::default(),
            run_pause: Backoff::default(),
            restarts: 0,
            started_before: false,
            attached: false,
            asking: false,
            last: None,
        }
    }

    /// A task that an earlier life of this program left; with `pid` when it still runs; `attached` when its namespace is
    /// there. Until netd says otherwise it is wanted as it was.
    pub(crate) fn found(now: Duration, order: Order, pid: Option<u32>, restarts: u32, attached: bool) -> Self {
        let mut task = Task::new(order.task.id.clone());
        task.wanted = Some(order.clone());
        task.current = Some(order);
        task.restarts = restarts;
        task.started_before = true;
        task.attached = attached;
        task.asking = pid.is_none();
        task.phase = match pid {
            Some(pid) => {
                // Netd may have been away too: it is told at the first occasion.
                task.last = Some(TaskStatus {
                    state: TaskState::Running,
                    message: String::new(),
                    pid: Some(pid),
                    restarts,
                });
                Phase::Running {
                    pid,
                    since: now,
                    attach_at: None,
                }
            }
            None => Phase::Pause { until: now + ASK },
        };
        task
    }

    /// When to send [`Event::Tick`] at the latest.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        match self.phase {
            Phase::AttachPause { until } | Phase::Pause { until } | Phase::DetachPause { until } => Some(until),
            Phase::Ending { kill_at, .. } | Phase::Stopping { kill_at } => Some(kill_at),
            Phase::Running { attach_at, .. } => attach_at,
            Phase::Void | Phase::Attaching | Phase::Starting | Phase::Draining | Phase::Detaching => None,
        }
    }

    /// No process of it runs and none will: what is left to do is netd's.
    pub(crate) fn is_stopped(&self) -> bool {
        self.wanted.is_none() && matches!(self.phase, Phase::Void | Phase::DetachPause { .. })
    }

    /// Takes in what happened; says what to do, in this order.
    pub(crate) fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Wanted(order) => {
                if let Some(current) = self.current.as_mut().filter(|c| c.serves(&order)) {
                    // The time to stop may have changed; that needs no restart.
                    current.clone_from(&order);
                }
                self.wanted = Some(order);
                self.wish_changed(now, &mut out);
            }
            Event::Unwanted => {
                self.wanted = None;
                self.wish_changed(now, &mut out);
            }
            Event::Reconnected => self.reconnected(now, &mut out),
            Event::Tick => self.tick(now, &mut out),
            other => self.answered(now, other, &mut out),
        }
        out
    }

    /// What runs, or is being made, is not what is wanted.
    fn stale(&self) -> bool {
        match (&self.current, &self.wanted) {
            (Some(current), Some(wanted)) => !current.serves(wanted),
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    fn wish_changed(&mut self, now: Duration, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Void => self.begin(now, out),
            _ if !self.stale() => {}
            Phase::Running { pid, .. } => {
                self.phase = Phase::Draining;
                self.report(TaskState::Running, "draining", Some(pid), out);
                out.push(Action::Drain);
            }
            // Its requests are not on their way: the endpoint can go at once.
            Phase::AttachPause { .. } | Phase::Pause { .. } => self.detach(out),
            // What is on its way, or being stopped already, is looked at when it is answered.
            Phase::Attaching
            | Phase::Starting
            | Phase::Ending { .. }
            | Phase::Draining
            | Phase::Stopping { .. }
            | Phase::Detaching
            | Phase::DetachPause { .. } => {}
        }
    }

    fn reconnected(&mut self, now: Duration, out: &mut Vec<Action>) {
        out.extend(self.last.clone().map(Action::Report));
        if std::mem::take(&mut self.asking)
            && let Phase::Pause { until } = &mut self.phase
        {
            *until = now;
            return self.tick(now, out);
        }
        if let Phase::Running { attach_at, .. } = &mut self.phase {
            *attach_at = None;
            self.attach(out);
        }
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::AttachPause { until } if *until <= now => self.begin(now, out),
            Phase::Pause { until } if *until <= now => {
                if self.attached {
                    self.start(out);
                } else {
                    self.begin(now, out);
                }
            }
            Phase::DetachPause { until } if *until <= now => self.detach(out),
            Phase::Running { attach_at, .. } if attach_at.is_some_and(|t| t <= now) => {
                *attach_at = None;
                self.attach(out);
            }
            Phase::Ending { kill_at, .. } | Phase::Stopping { kill_at } if *kill_at <= now => {
                *kill_at = now + KILL_AGAIN;
                out.push(Action::Kill);
            }
            _ => {}
        }
    }

    /// Answers to our actions, and the ends of processes. An answer that fits no phase is late: it is dropped.
    fn answered(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        match (&mut self.phase, event) {
            (Phase::Attaching, Event::Attached { .. }) => {
                self.attached = true;
                self.attach_pause = Backoff::default();
                if self.stale() {
                    self.detach(out);
                } else {
                    self.start(out);
                }
            }
            (Phase::Attaching, Event::NotAttached(why)) => {
                if self.stale() {
                    return self.detach(out);
                }
                self.attach_failed(now, &why, out);
            }
            (Phase::Running { .. }, Event::Attached { same: false }) => {
                // Its namespace is not the one that netd serves (any more): it can reach nobody.
                out.push(Action::Kill);
            }
            (Phase::Running { attach_at, .. }, Event::NotAttached(_)) => {
                *attach_at = Some(now + self.attach_pause.fail());
            }
            (Phase::Running { .. }, Event::Attached { same: true }) => {
                self.attach_pause = Backoff::default();
            }
            (Phase::Starting, Event::Started { pid }) => {
                self.phase = Phase::Running {
                    pid,
                    since: now,
                    attach_at: None,
                };
                self.report(TaskState::Running, "", Some(pid), out);
                self.wish_changed(now, out);
            }
            (Phase::Starting, Event::NotStarted(why)) => {
                // Perhaps the namespace is gone: next time it is asked for first.
                self.attached = false;
                self.ended(now, &why, Duration::ZERO, out);
            }
            (Phase::Running { since, .. }, Event::Exited(how)) => {
                let ran = now.saturating_sub(*since);
                self.phase = Phase::Ending {
                    how,
                    ran,
                    kill_at: now + KILL_AGAIN,
                };
                out.push(Action::Kill);
            }
            (Phase::Ending { how, ran, .. }, Event::Empty) => {
                let (how, ran) = (std::mem::take(how), *ran);
                self.ended(now, &how, ran, out);
            }
            (Phase::Draining | Phase::Stopping { .. }, Event::Empty) => self.detach(out),
            (Phase::Draining, Event::Drained) => {
                let grace = self.current.as_ref().map_or(0, |o| o.task.stop_grace_ms);
                // A grace of centuries must not overflow the clock.
                let grace = Duration::from_millis(grace).min(Duration::from_secs(86_400));
                self.phase = Phase::Stopping { kill_at: now + grace };
                out.push(Action::Terminate);
            }
            (Phase::Detaching, Event::Detached) => {
                self.phase = Phase::Void;
                self.current = None;
                self.attached = false;
                self.attach_pause = Backoff::default();
                self.run_pause = Backoff::default();
                self.report(TaskState::Shutdown, "", None, out);
                self.begin(now, out);
            }
            (Phase::Detaching, Event::NotDetached(_)) => {
                let until = now + self.attach_pause.fail();
                self.phase = Phase::DetachPause { until };
            }
            _ => {}
        }
    }

    /// From nothing: attaches when it is wanted, else is forgotten.
    fn begin(&mut self, now: Duration, out: &mut Vec<Action>) {
        let Some(wanted) = self.wanted.clone() else {
            self.phase = Phase::Void;
            out.push(Action::Forget);
            return;
        };
        self.current = Some(wanted);
        self.phase = Phase::Attaching;
        self.report(TaskState::Preparing, "", None, out);
        if !self.attach(out) {
            self.attach_failed(now, "the service has no network", out);
        }
    }

    /// `false`: there is no network to attach to.
    fn attach(&mut self, out: &mut Vec<Action>) -> bool {
        let Some(order) = &self.current else {
            return false;
        };
        let Some((network, further)) = order.task.networks.split_first() else {
            return false;
        };
        out.push(Action::Attach(EndpointCreate {
            network: network.clone(),
            netns: None,
            pid: None,
            service: Some(order.task.service.clone()),
            slot: Some(order.task.slot),
            further: further.to_vec(),
        }));
        true
    }

    fn attach_failed(&mut self, now: Duration, why: &str, out: &mut Vec<Action>) {
        let pause = self.attach_pause.fail();
        self.phase = Phase::AttachPause { until: now + pause };
        let message = format!("not attached: {why}; next try in {} s", pause.as_secs_f64());
        self.report(TaskState::Preparing, &message, None, out);
    }

    fn start(&mut self, out: &mut Vec<Action>) {
        let Some(order) = self.current.clone() else {
            return;
        };
        if std::mem::replace(&mut self.started_before, true) {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.phase = Phase::Starting;
        self.report(TaskState::Starting, "", None, out);
        out.push(Action::Start {
            order: Box::new(order),
            restarts: self.restarts,
        });
    }

    /// Nothing of it runs any more, without our asking.
    fn ended(&mut self, now: Duration, how: &str, ran: Duration, out: &mut Vec<Action>) {
        if self.stale() {
            return self.detach(out);
        }
        if ran >= backoff::SOUND {
            self.run_pause = Backoff::default();
        }
        let pause = self.run_pause.fail();
        self.phase = Phase::Pause { until: now + pause };
        let message = format!("{how}, next try in {} s", pause.as_secs_f64());
        self.report(TaskState::Failed, &message, None, out);
    }

    fn detach(&mut self, out: &mut Vec<Action>) {
        self.phase = Phase::Detaching;
        out.push(Action::Detach);
    }

    fn report(&mut self, state: TaskState, message: &str, pid: Option<u32>, out: &mut Vec<Action>) {
        let status = TaskStatus {
            state,
            message: message.to_owned(),
            pid,
            restarts: self.restarts,
        };
        if self.last.as_ref() != Some(&status) {
            self.last = Some(status.clone());
            out.push(Action::Report(status));
        }
    }

    /// Its id.
    pub(crate) fn id(&self) -> &EndpointId {
        &self.id
    }
}
