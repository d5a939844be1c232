//! What becomes of one task: a pure machine. [`Task::handle`] takes the time and what happened and says what to do;
//! [`Task::next_timer`] says when to come again at the latest.
//!
//! ```text
//! Attaching -> Starting -> Running -> Draining -> Stopping -> Detaching -> (forgotten, or Attaching again)
//!     ^  pause      ^         | ended by itself                  ^   |
//!     +--------+    +- Pause <- Ending, or Stopping (unhealthy)  |   +-> Done, when it is not started again here
//!                                                                +- from any other phase, when it is not wanted
//! ```
//!
//! [`policy`] says what comes after an end, [`checks`] when a running task is asked for its health.

mod backoff;
mod checks;
mod policy;
#[cfg(test)]
mod tests;
mod words;

use std::time::Duration;

use model::{
    EndpointId,
    api::{EndpointCreate, TaskState, TaskStatus},
};

pub(crate) use backoff::Backoff;
use checks::{Checks, Verdict};
use policy::{Next, Policy};
pub(crate) use words::{Action, End, Event, Found, Order};

/// How long after SIGKILL it is sent again; only a process that hangs in the kernel lives on.
const KILL_AGAIN: Duration = Duration::from_secs(5);

/// How long a task that was found dead waits for netd before it is started again without it.
const ASK: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
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
        checks: Option<Checks>,
    },
    /// The leader ended by itself; what it left is being killed.
    Ending {
        end: End,
        ran: Duration,
        kill_at: Duration,
    },
    Pause {
        until: Duration,
    },
    Draining,
    Stopping {
        kill_at: Duration,
        /// It was found unhealthy after it ran so long: another start follows, not the end.
        unhealthy: Option<(String, Duration)>,
    },
    Detaching,
    DetachPause {
        until: Duration,
    },
    /// Ended, and not started again here.
    Done,
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
    policy: Policy,
    restarts: u32,
    /// Something was begun in this slot before what is begun next.
    begun_before: bool,
    /// What was begun last has not ended.
    open: bool,
    health: Option<bool>,
    /// What was told when it was decided not to start it again here.
    finished: Option<TaskStatus>,
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
            policy: Policy::default(),
            restarts: 0,
            begun_before: false,
            open: false,
            health: None,
            finished: None,
            attached: false,
            asking: false,
            last: None,
        }
    }

    /// A task that an earlier life of this program left. Until netd says otherwise it is wanted as it was.
    pub(crate) fn found(now: Duration, found: Found) -> Self {
        let Found { order, pid, .. } = found;
        let mut task = Task::new(order.task.id.clone());
        let checks = order.task.health.clone();
        task.wanted = Some(order.clone());
        task.current = Some(order);
        task.restarts = found.restarts;
        task.policy = Policy::found(now, found.recent);
        task.begun_before = true;
        task.attached = found.attached;
        if let Some(status) = found.done {
            task.last = Some(status.clone());
            task.finished = Some(status);
            task.phase = Phase::Done;
            return task;
        }
        task.asking = pid.is_none();
        task.phase = match pid {
            Some(pid) => {
                task.open = true;
                task.health = found.health;
                // Netd may have been away too: it is told at the first occasion.
                task.last = Some(task.status(TaskState::Running, "", Some(pid)));
                let healthy = found.health == Some(true);
                Phase::Running {
                    pid,
                    since: now,
                    attach_at: None,
                    checks: checks.map(|c| Checks::new(c, now, healthy)),
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
            Phase::Ending { kill_at, .. } | Phase::Stopping { kill_at, .. } => Some(kill_at),
            Phase::Running {
                attach_at, ref checks, ..
            } => [attach_at, checks.as_ref().and_then(Checks::due)]
                .into_iter()
                .flatten()
                .min(),
            Phase::Void | Phase::Attaching | Phase::Starting | Phase::Draining | Phase::Detaching | Phase::Done => None,
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
                let order = *order;
                let mut anew = false;
                let used_up = self.finished.as_ref().is_some_and(|f| f.exhausted);
                if let Some(current) = self.current.as_mut().filter(|c| c.serves(&order)) {
                    let (had, has) = (&current.task.restart, &order.task.restart);
                    anew = had.condition != has.condition || (used_up && had != has);
                    // Rules of its life may have changed; that needs no restart.
                    current.clone_from(&order);
                }
                self.wanted = Some(order);
                self.follow_checks(now, &mut out);
                match self.phase {
                    // Other rules may allow another start.
                    Phase::Done if anew => self.begin_again(now, &mut out),
                    _ => self.wish_changed(now, &mut out),
                }
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
            Phase::Done => self.begin_again(now, out),
            Phase::Running { pid, .. } => {
                self.phase = Phase::Draining;
                self.report(TaskState::Running, "draining", Some(pid), out);
                let timeout_ms = self.current.as_ref().map_or(0, |o| o.task.drain_timeout_ms);
                out.push(Action::Drain { timeout_ms });
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

    /// Out of the end: what is wanted now begins, or all is forgotten.
    fn begin_again(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.finished = None;
        self.current = None;
        self.policy = Policy::default();
        self.begin(now, out);
    }

    /// The service asks for another health check than the running task is given.
    fn follow_checks(&mut self, now: Duration, out: &mut Vec<Action>) {
        let rules = self.current.as_ref().and_then(|o| o.task.health.clone());
        let (Phase::Running { pid, checks, .. }, false) = (&mut self.phase, self.current.is_none()) else {
            return;
        };
        if checks.as_ref().map(Checks::rules) == rules.as_ref() {
            return;
        }
        let pid = *pid;
        let healthy = self.health == Some(true);
        *checks = rules.map(|r| Checks::new(r, now, healthy));
        if checks.is_none() {
            self.health = None;
            self.report(TaskState::Running, "", Some(pid), out);
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
            Phase::Running { attach_at, checks, .. } => {
                if let Some(checks) = checks.as_mut().filter(|c| c.due().is_some_and(|at| at <= now)) {
                    out.push(Action::Probe {
                        number: checks.ask(),
                        health: Box::new(checks.rules().clone()),
                    });
                }
                if attach_at.is_some_and(|t| t <= now) {
                    *attach_at = None;
                    self.attach(out);
                }
            }
            Phase::Ending { kill_at, .. } | Phase::Stopping { kill_at, .. } if *kill_at <= now => {
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
                let rules = self.current.as_ref().and_then(|o| o.task.health.clone());
                self.phase = Phase::Running {
                    pid,
                    since: now,
                    attach_at: None,
                    checks: rules.map(|r| Checks::new(r, now, false)),
                };
                self.report(TaskState::Running, "", Some(pid), out);
                self.wish_changed(now, out);
            }
            (Phase::Starting, Event::NotStarted(why)) => {
                // Perhaps the namespace is gone: next time it is asked for first.
                self.attached = false;
                let end = End { how: why, well: false };
                self.ended(now, TaskState::Rejected, &end, Duration::ZERO, out);
            }
            (Phase::Running { since, .. }, Event::Exited(end)) => {
                let ran = now.saturating_sub(*since);
                self.health = None;
                self.phase = Phase::Ending {
                    end,
                    ran,
                    kill_at: now + KILL_AGAIN,
                };
                out.push(Action::Kill);
            }
            (Phase::Running { .. }, Event::Probed { number, answer }) => self.probed(now, number, answer, out),
            (Phase::Ending { end, ran, .. }, Event::Empty) => {
                let (end, ran) = (end.clone(), *ran);
                self.ended(now, TaskState::Failed, &end, ran, out);
            }
            (Phase::Stopping { unhealthy, .. }, Event::Empty) if unhealthy.is_some() => {
                let (how, ran) = unhealthy.take().unwrap_or_default();
                self.ended(now, TaskState::Failed, &End { how, well: false }, ran, out);
            }
            (Phase::Draining | Phase::Stopping { .. }, Event::Empty) => self.detach(out),
            (Phase::Draining, Event::Drained) => self.stop(now, None, out),
            (Phase::Detaching, Event::Detached) => {
                self.attached = false;
                self.attach_pause = Backoff::default();
                if self.finished.is_some() && !self.stale() {
                    self.phase = Phase::Done;
                    return;
                }
                if std::mem::take(&mut self.open) {
                    self.health = None;
                    self.report(TaskState::Shutdown, "", None, out);
                }
                self.begin_again(now, out);
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
        self.open();
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

    /// What is begun now is another task in the same slot, unless the last one has not ended.
    fn open(&mut self) {
        if std::mem::replace(&mut self.open, true) {
            return;
        }
        if std::mem::replace(&mut self.begun_before, true) {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.health = None;
    }

    fn start(&mut self, out: &mut Vec<Action>) {
        let Some(order) = self.current.clone() else {
            return;
        };
        self.open();
        self.phase = Phase::Starting;
        self.report(TaskState::Starting, "", None, out);
        out.push(Action::Start {
            order: Box::new(order),
            restarts: self.restarts,
        });
    }

    /// SIGTERM, and SIGKILL after the grace.
    fn stop(&mut self, now: Duration, unhealthy: Option<(String, Duration)>, out: &mut Vec<Action>) {
        let grace = self.current.as_ref().map_or(0, |o| o.task.stop_grace_ms);
        // A grace of centuries must not overflow the clock.
        let grace = Duration::from_millis(grace).min(Duration::from_secs(86_400));
        self.phase = Phase::Stopping {
            kill_at: now + grace,
            unhealthy,
        };
        out.push(Action::Terminate);
    }

    fn probed(&mut self, now: Duration, number: u32, answer: Result<(), String>, out: &mut Vec<Action>) {
        let Phase::Running {
            pid,
            since,
            checks: Some(checks),
            ..
        } = &mut self.phase
        else {
            return;
        };
        let (pid, ran) = (*pid, now.saturating_sub(*since));
        match checks.answer(now, number, answer) {
            None => {}
            Some(Verdict::Healthy(doubt)) => {
                self.health = Some(true);
                self.report(TaskState::Running, &doubt.unwrap_or_default(), Some(pid), out);
            }
            Some(Verdict::NotYet(why)) => self.report(TaskState::Running, &why, Some(pid), out),
            Some(Verdict::Unhealthy(why)) => {
                self.health = Some(false);
                self.report(TaskState::Running, &why, Some(pid), out);
                // Its flows are not waited for: it does not answer.
                self.stop(now, Some((why, ran)), out);
            }
        }
    }

    /// Nothing of it runs any more, without the log asking.
    fn ended(&mut self, now: Duration, failure: TaskState, end: &End, ran: Duration, out: &mut Vec<Action>) {
        self.health = None;
        let Some(order) = self.current.as_ref().filter(|_| !self.stale()) else {
            return self.detach(out);
        };
        self.open = false;
        let next = self.policy.ended(&order.task.restart, now, ran, end.well);
        let how = &end.how;
        let (state, message) = match next {
            Next::Again(pause) if pause.is_zero() => (failure, format!("{how}, tried again at once")),
            Next::Again(pause) => (failure, format!("{how}, next try in {} s", pause.as_secs_f64())),
            Next::Enough if end.well => (TaskState::Complete, String::new()),
            Next::Enough => (failure, format!("{how}, not restarted")),
            Next::UsedUp => (failure, format!("{how}, restarts on this node are used up")),
        };
        let mut status = self.status(state, &message, None);
        status.exhausted = next == Next::UsedUp;
        let recent = self.policy.recent();
        self.tell(status.clone(), out);
        if let Next::Again(pause) = next {
            self.phase = Phase::Pause { until: now + pause };
            out.push(Action::Remember { recent, done: None });
            return;
        }
        self.finished = Some(status.clone());
        out.push(Action::Remember {
            recent,
            done: Some(status),
        });
        self.detach(out);
    }

    fn detach(&mut self, out: &mut Vec<Action>) {
        self.phase = Phase::Detaching;
        out.push(Action::Detach);
    }

    fn report(&mut self, state: TaskState, message: &str, pid: Option<u32>, out: &mut Vec<Action>) {
        let status = self.status(state, message, pid);
        self.tell(status, out);
    }

    fn status(&self, state: TaskState, message: &str, pid: Option<u32>) -> TaskStatus {
        TaskStatus {
            message: message.to_owned(),
            pid,
            restarts: self.restarts,
            generation: self.generation(),
            health: self.health,
            ..TaskStatus::of(state)
        }
    }

    fn tell(&mut self, status: TaskStatus, out: &mut Vec<Action>) {
        if self.last.as_ref() != Some(&status) {
            self.last = Some(status.clone());
            out.push(Action::Report(status));
        }
    }

    /// Of what is there, or is wanted where nothing is.
    fn generation(&self) -> u64 {
        let order = self.current.as_ref().or(self.wanted.as_ref());
        order.map_or(0, |o| o.task.generation)
    }

    /// Its id.
    pub(crate) fn id(&self) -> &EndpointId {
        &self.id
    }
}
