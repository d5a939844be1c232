//! Waiting until a change is true: on every living node, and, for a service, at its tasks.
//!
//! What counts as true is decided by [`judge`] and [`judge_service`], which only look at answers; [`everywhere`] and
//! [`service_ready`] ask until they are content or the time is over.

use std::time::Duration;

use model::{
    ApiError, Code, Name,
    api::{BackendView, Convergence, NodeProgress, ServiceView, TaskState, TaskView},
    intent::RolloutState,
    spec::Mode,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

use crate::{
    cli::{Context, WaitArgs},
    progress::Progress,
};

/// First and longest pause between two questions.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// How far the nodes are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Every living node has it.
    pub(crate) done: bool,
    /// Living nodes that have it.
    pub(crate) have: usize,
    /// Living nodes.
    pub(crate) living: usize,
    /// Living nodes that lag, each with what it says.
    pub(crate) lag: Vec<String>,
    /// Dead nodes: named, not waited for.
    pub(crate) dead: Vec<String>,
}

/// Reads a convergence answer.
pub(crate) fn judge(c: &Convergence) -> Verdict {
    let label = |n: &NodeProgress| format!("{} ({})", n.id, n.hostname);
    let living: Vec<&NodeProgress> = c.nodes.iter().filter(|n| n.living).collect();
    let lag: Vec<String> = living
        .iter()
        .filter(|n| n.applied < c.revision)
        .map(|n| {
            let mut text = format!("{} has applied {} of {}", label(n), n.applied, c.revision);
            if !n.problems.is_empty() {
                text.push_str(": ");
                text.push_str(&n.problems.join("; "));
            }
            text
        })
        .collect();
    Verdict {
        done: c.converged,
        have: living.len() - lag.len(),
        living: living.len(),
        lag,
        dead: c.nodes.iter().filter(|n| !n.living).map(label).collect(),
    }
}

/// How far a service is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServiceVerdict {
    /// As many endpoints take new flows as were asked for, and nothing runs that should not.
    pub(crate) done: bool,
    /// Endpoints that take new flows.
    pub(crate) ready: usize,
    /// Wanted ones: replicas, or, without a command, those attached.
    pub(crate) wanted: usize,
    /// Why it is not done, a line each.
    pub(crate) lag: Vec<String>,
}

/// Reads a service and its tasks; without tasks its endpoints alone decide what is ready.
pub(crate) fn judge_service(service: &ServiceView, tasks: &[TaskView]) -> ServiceVerdict {
    let unit = |b: &BackendView| b.unit(&service.name);
    let mut endpoints: Vec<_> = service.backends.iter().map(unit).collect();
    endpoints.sort_unstable();
    endpoints.dedup();
    // A task on two networks has two backends: it counts once, when both are in use.
    let ready = endpoints
        .iter()
        .filter(|e| {
            let mut own = service.backends.iter().filter(|b| unit(b) == **e);
            // An endpoint may be ready while its command dies again and again.
            let fails = |t: &TaskView| t.desired && t.state != TaskState::Running && (t.node, &t.id) == (e.0, &e.1);
            own.all(|b| b.in_use) && !tasks.iter().any(fails)
        })
        .count();
    let managed = !service.service.spec.command.is_empty();
    // What has ended well and is not to be started again is as it should be.
    let ended = |t: &&TaskView| t.desired && t.state == TaskState::Complete;
    let wanted = if managed {
        let asked = match service.service.spec.mode {
            Mode::Replicated => service.service.spec.replicas as usize,
            Mode::Global => service.wanted as usize,
        };
        asked.saturating_sub(tasks.iter().filter(ended).count())
    } else {
        endpoints.len()
    };
    let mut lag: Vec<String> = Vec::new();
    lag.extend(service.trouble());
    for t in tasks {
        let runs = t.state <= TaskState::Running;
        if t.desired && !matches!(t.state, TaskState::Running | TaskState::Complete) {
            lag.push(format!("{} on {}: {}", t.id, t.hostname, told(t)));
        } else if !t.desired && runs {
            lag.push(format!("{} on {} is not stopped yet", t.id, t.hostname));
        }
    }
    // Placed by the log, no longer wanted, and still there: it drains.
    let desired = |b: &BackendView| tasks.iter().any(|t| t.desired && (t.node, t.id.clone()) == unit(b));
    let told = |b: &BackendView| tasks.iter().any(|t| t.id == unit(b).1);
    let drains: Vec<&BackendView> = service.backends.iter().filter(|b| told(b) && !desired(b)).collect();
    for b in &drains {
        let line = format!("{} on {} is not stopped yet", unit(b).1, b.hostname);
        if !lag.contains(&line) {
            lag.push(line);
        }
    }
    if lag.is_empty() {
        for b in service.backends.iter().filter(|b| !b.in_use) {
            let why = b.why.as_deref().unwrap_or("not ready yet");
            lag.push(format!("{} on {}: {why}", b.endpoint, b.hostname));
        }
    }
    let running = tasks
        .iter()
        .filter(|t| t.desired && t.state == TaskState::Running)
        .count();
    let leftover = !drains.is_empty() || tasks.iter().any(|t| !t.desired && t.state <= TaskState::Running);
    ServiceVerdict {
        done: ready >= wanted && (!managed || (running >= wanted && !leftover)),
        ready: ready.min(wanted),
        wanted,
        lag,
    }
}

/// A task's state and message.
pub(crate) fn told(t: &TaskView) -> String {
    let state = crate::service::state_word(t.state);
    if t.message.is_empty() {
        state.to_owned()
    } else {
        format!("{state}, {}", t.message)
    }
}

/// Time left, and pauses that grow.
pub(crate) struct Patience {
    begin: Instant,
    end: Instant,
    pause: Duration,
    /// Ctrl-C ends the waiting, not the change: that is told instead of dying in silence.
    interrupt: Option<Signal>,
}

impl Patience {
    pub(crate) fn new(timeout: Duration) -> Self {
        let begin = Instant::now();
        Patience {
            begin,
            end: begin + timeout,
            pause: PAUSE.0,
            interrupt: signal(SignalKind::interrupt()).ok(),
        }
    }

    /// Something has happened: there is time again.
    pub(crate) fn extend(&mut self, timeout: Duration) {
        self.end = Instant::now() + timeout;
        self.pause = PAUSE.0;
    }

    /// Time waited so far, whole tenths of a second.
    pub(crate) fn waited(&self) -> Duration {
        let tenths = self.begin.elapsed().as_millis() / 100;
        Duration::from_millis(u64::try_from(tenths).unwrap_or_default() * 100)
    }

    /// Sleeps; `false`: the time or the user's patience is over.
    pub(crate) async fn wait(&mut self) -> bool {
        if Instant::now() >= self.end {
            return false;
        }
        let until = self.end.min(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSE.1);
        match &mut self.interrupt {
            Some(interrupt) => tokio::select! {
                _ = interrupt.recv() => false,
                () = sleep_until(until) => true,
            },
            None => {
                sleep_until(until).await;
                true
            }
        }
    }
}

/// Waits until every living node has applied `revision`. The dead are named on standard error.
///
/// # Errors
/// [`Code::NotConverged`] naming the living nodes that lag.
pub(crate) async fn everywhere(
    cx: &Context,
    args: &WaitArgs,
    revision: u64,
    progress: &mut Progress,
) -> Result<Verdict, ApiError> {
    let mut patience = Patience::new(args.timeout);
    let path = format!("/v1/convergence?revision={revision}");
    loop {
        let outcome = cx.client.get::<Convergence>(&path).await;
        let late = match outcome {
            Ok(c) => {
                let v = judge(&c);
                if v.done {
                    for node in &v.dead {
                        progress.note(&format!("note: {node} is down and was not waited for"));
                    }
                    return Ok(v);
                }
                progress.say(&format!("revision {revision}: {} of {} living nodes", v.have, v.living));
                not_converged(
                    format!(
                        "accepted as revision {revision}, but after {} not every living node has it: {}",
                        span(patience.waited()),
                        v.lag.join("; ")
                    ),
                    "netctl status",
                )
            }
            // The change stands; a leader that changes or a daemon that restarts is waited for.
            Err(e) if e.retryable => {
                progress.say(&format!("revision {revision}: {}", e.message));
                not_converged(
                    format!(
                        "accepted as revision {revision}, but its progress cannot be seen: {}",
                        e.message
                    ),
                    "netctl status",
                )
            }
            Err(e) => return Err(e),
        };
        if !patience.wait().await {
            return Err(late);
        }
    }
}

/// Waits until a service has what was asked for.
///
/// # Errors
/// [`Code::NotConverged`] when nothing of it is ready in time, [`Code::Degraded`] when less than all is.
pub(crate) async fn service_ready(
    cx: &Context,
    args: &WaitArgs,
    name: &Name,
    progress: &mut Progress,
) -> Result<ServiceVerdict, ApiError> {
    let mut patience = Patience::new(args.timeout);
    loop {
        let late = match look(cx, name).await {
            Ok(v) if v.done => return Ok(v),
            Ok(v) => {
                let mut line = format!("{name}: {} of {} ready", v.ready, v.wanted);
                if let Some(first) = v.lag.first() {
                    line.push_str(&format!(" ({first})"));
                }
                progress.say(&line);
                unready(name, patience.waited(), &v)
            }
            Err(e) if e.retryable => {
                progress.say(&format!("{name}: {}", e.message));
                not_converged(e.message, "netctl status")
            }
            Err(e) => return Err(e),
        };
        if !patience.wait().await {
            return Err(late);
        }
    }
}

/// Where a rollout is to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// To what was asked for.
    Update,
    /// Back.
    Rollback,
}

/// How far a rollout is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RolloutVerdict {
    /// Whether it is over, and well.
    pub(crate) done: bool,
    /// It will not get there: why.
    pub(crate) failed: Option<String>,
    /// What to show meanwhile.
    pub(crate) line: String,
}

/// Reads how far a service's rollout is.
pub(crate) fn judge_rollout(view: &ServiceView, aim: Aim) -> RolloutVerdict {
    let name = &view.name;
    let verdict = |done, failed, line| RolloutVerdict { done, failed, line };
    let Some(r) = &view.service.rollout else {
        return verdict(true, None, String::new());
    };
    let pending: u32 = r.pending.iter().map(|p| p.slots.len()).sum();
    let all = view.wanted.max(pending);
    let why = match r.message.is_empty() {
        true => String::new(),
        false => format!(": {}", r.message),
    };
    let count = format!("{} of {all} tasks", all - pending);
    let back = format!("{name}: {count} are what they were");
    let stuck = view.stuck.as_ref().map(|s| format!("; {s}")).unwrap_or_default();
    match (r.state, aim) {
        (RolloutState::Updating, _) => verdict(false, None, format!("{name}: {count} are updated{stuck}")),
        (RolloutState::RollbackStarted, _) => verdict(false, None, format!("{back}{why}{stuck}")),
        (RolloutState::Completed, _) | (RolloutState::RollbackCompleted, Aim::Rollback) => {
            verdict(true, None, String::new())
        }
        (RolloutState::Paused, _) => {
            let failed = format!("the update of {name} is paused, {count} are updated{why}");
            verdict(false, Some(failed), String::new())
        }
        (RolloutState::RollbackPaused, _) => {
            let failed = format!("the rollback of {name} is paused, {count} are what they were{why}");
            verdict(false, Some(failed), String::new())
        }
        (RolloutState::RollbackCompleted, Aim::Update) => {
            let failed = format!("the update of {name} was taken back{why}");
            verdict(false, Some(failed), String::new())
        }
    }
}

/// Waits until a rollout is over. As long as it gets on, there is time.
///
/// # Errors
/// [`Code::NotConverged`] with the reason when it was paused or rolled back, or does not get on.
pub(crate) async fn rolled_out(
    cx: &Context,
    args: &WaitArgs,
    name: &Name,
    aim: Aim,
    progress: &mut Progress,
) -> Result<(), ApiError> {
    let mut patience = Patience::new(args.timeout);
    let path = format!("/v1/services/{name}");
    let mut last = String::new();
    loop {
        let late = match cx.client.get::<ServiceView>(&path).await {
            Ok(view) => {
                let v = judge_rollout(&view, aim);
                if let Some(why) = v.failed {
                    return Err(not_converged(why, &format!("netctl service ps {name}")));
                }
                if v.done {
                    return Ok(());
                }
                if v.line != last {
                    last.clone_from(&v.line);
                    patience.extend(args.timeout);
                }
                progress.say(&v.line);
                let waited = span(patience.waited());
                not_converged(
                    format!("accepted, but not over after {waited}: {}", v.line),
                    &format!("netctl service ps {name}"),
                )
            }
            Err(e) if e.retryable => {
                progress.say(&format!("{name}: {}", e.message));
                not_converged(e.message, "netctl status")
            }
            Err(e) => return Err(e),
        };
        if !patience.wait().await {
            return Err(late);
        }
    }
}

async fn look(cx: &Context, name: &Name) -> Result<ServiceVerdict, ApiError> {
    let service: ServiceView = cx.client.get(&format!("/v1/services/{name}")).await?;
    let tasks: Vec<TaskView> = cx.client.get(&format!("/v1/services/{name}/tasks")).await?;
    Ok(judge_service(&service, &tasks))
}

fn unready(name: &Name, waited: Duration, v: &ServiceVerdict) -> ApiError {
    let mut message = format!(
        "{name} is accepted, but {} of {} is ready after {}",
        v.ready,
        v.wanted,
        span(waited)
    );
    for line in &v.lag {
        message.push_str("\n  ");
        message.push_str(line);
    }
    let code = if v.ready > 0 {
        Code::Degraded
    } else {
        Code::NotConverged
    };
    ApiError::new(code, message, format!("netctl service ps {name}"))
}

fn not_converged(message: String, hint: &str) -> ApiError {
    ApiError::new(Code::NotConverged, message, hint)
}

/// `60 s`, `1.5 s`.
fn span(d: Duration) -> String {
    format!("{} s", d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_dead_are_named_and_not_waited_for() {
        let mut c = fixture::convergence();
        let v = judge(&c);
        assert!(v.done && v.lag.is_empty());
        assert_eq!((v.have, v.living), (2, 2));
        assert_eq!(v.dead, ["n3 (gamma)"]);

        c.converged = false;
        c.nodes[1].applied = 41;
        c.nodes[1].problems = vec!["port 80/tcp is in use".into()];
        let v = judge(&c);
        assert!(!v.done);
        assert_eq!((v.have, v.living), (1, 2));
        assert_eq!(v.lag, ["n2 (beta) has applied 41 of 42: port 80/tcp is in use"]);
    }

    #[test]
    fn a_service_is_ready_when_all_its_tasks_are() {
        let mut service = fixture::service();
        let mut tasks = fixture::tasks();
        tasks.retain(|t| t.desired);
        let v = judge_service(&service, &tasks);
        assert!(!v.done, "one of the two drains");
        assert_eq!((v.ready, v.wanted), (1, 2));
        assert_eq!(v.lag, ["web.2 on beta: draining"]);
        for b in &mut service.backends {
            b.in_use = true;
        }
        assert!(judge_service(&service, &tasks).done);
        tasks[0].state = TaskState::Failed;
        let v = judge_service(&service, &tasks);
        assert_eq!((v.done, v.ready), (false, 1));
        // A job that has ended well is no endpoint any more, and none is missed.
        tasks[0].state = TaskState::Complete;
        service.backends.remove(0);
        let v = judge_service(&service, &tasks);
        assert_eq!((v.done, v.ready, v.wanted), (true, 1, 1));
    }

    #[test]
    fn what_should_have_stopped_is_waited_for() {
        let mut service = fixture::service();
        service.service.spec.replicas = 1;
        service.backends.truncate(1);
        let mut tasks = fixture::tasks();
        tasks.retain(|t| t.desired);
        tasks[1].desired = false;
        let v = judge_service(&service, &tasks);
        assert!(!v.done);
        assert_eq!(v.lag, ["web.2 on beta is not stopped yet"]);
        // Its task counts as ended, its endpoint still drains.
        tasks[1].state = TaskState::Shutdown;
        service.backends = fixture::service().backends;
        let v = judge_service(&service, &tasks);
        assert!(!v.done);
        assert_eq!((v.ready, v.wanted), (1, 1));
        assert_eq!(v.lag, ["web.2 on beta is not stopped yet"]);
        service.backends.truncate(1);
        tasks[1].state = TaskState::Shutdown;
        assert!(judge_service(&service, &tasks).done);
    }

    #[test]
    fn without_a_command_the_attached_ones_count() {
        let mut service = fixture::service();
        service.service.spec.command.clear();
        service.backends.truncate(1);
        let v = judge_service(&service, &[]);
        assert!(v.done);
        assert_eq!((v.ready, v.wanted), (1, 1));
        service.backends.clear();
        assert!(judge_service(&service, &[]).done);
    }

    #[test]
    fn a_change_of_a_global_service_counts_nodes() {
        let mut service = fixture::service();
        service.service.spec.mode = Mode::Global;
        service.service.spec.replicas = 1;
        service.wanted = 3;
        service.service.rollout = Some(model::intent::Rollout {
            state: RolloutState::Updating,
            pending: vec![model::intent::Pending {
                spec: Box::default(),
                generation: 39,
                slots: model::intent::SlotSet(vec![(2, 2)]),
            }],
            surge: Default::default(),
            message: String::new(),
        });
        let v = judge_rollout(&service, Aim::Update);
        assert_eq!(v.line, "web: 2 of 3 tasks are updated");
        service.stuck = Some("the update is held up: the disk is full".into());
        let v = judge_rollout(&service, Aim::Update);
        assert_eq!(
            v.line,
            "web: 2 of 3 tasks are updated; the update is held up: the disk is full"
        );
        assert!(!v.done && v.failed.is_none(), "it is tried again");
    }

    #[test]
    fn an_endpoint_on_two_networks_counts_once() {
        let mut service = fixture::service();
        service.service.spec.replicas = 1;
        service.backends.truncate(1);
        let mut second = service.backends[0].clone();
        second.in_use = false;
        service.backends.push(second);
        assert_eq!(judge_service(&service, &[]).ready, 0);
        service.backends[1].in_use = true;
        assert_eq!(judge_service(&service, &[]).ready, 1);
    }

    #[test]
    fn failing_tasks_are_told_with_their_message() {
        let service = {
            let mut s = fixture::service();
            s.backends.clear();
            s
        };
        let mut tasks = fixture::tasks();
        tasks.retain(|t| t.desired);
        tasks[0].state = TaskState::Failed;
        tasks[0].message = "exit status 1, next try in 2 s".into();
        let v = judge_service(&service, &tasks);
        assert_eq!(v.lag, ["web.1 on alpha: failed, exit status 1, next try in 2 s"]);
        let e = unready(&service.name, Duration::from_secs(60), &v);
        assert_eq!(e.code.exit(), 3);
        assert!(e.message.contains("0 of 2 is ready after 60 s"), "{e}");
    }
}
