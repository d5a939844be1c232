//! Carries out what the tasks' machines say: asks netd, starts and ends processes, and feeds back what happened.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use kernel::netns::{Netns, NetnsId, Process, ProcessError};
use model::{
    EndpointId, NodeId,
    api::{Assignments, EndpointView, TaskStatus},
    client::Client,
    spec::Health,
};
use nix::sys::signal::Signal;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    health::{Checker, Subject},
    inbox::{Message, send, watch, watch_process},
    logs::Logs,
    netd::{Netd, Turn},
    process::{self, Marks},
    record::{Record, Store},
    report::Reports,
    task::{Action, Event, Found, Order, Task},
};

/// Messages that wait to be taken in; who sends more waits.
const QUEUE: usize = 1024;

/// Pause between two looks for what a leader left behind: the kernel tells the end of a process, not of a group.
const LOOK: Duration = Duration::from_millis(50);

/// Pause between two looks at the size of the logs, and at what tasks have left.
const TEND: Duration = Duration::from_secs(30);

/// How long the last reports may take when tasks were stopped with us.
const FLUSH: Duration = Duration::from_secs(2);

/// A task and what belongs to it outside its machine.
struct Slot {
    task: Task,
    turn: Turn,
    netns: PathBuf,
    /// Of `netns`, when something was started in it: for finding what is left.
    netns_id: Option<NetnsId>,
    resolv_conf: String,
    order: Option<Order>,
    restarts: u32,
    recent: u32,
    addresses: Vec<IpAddr>,
    health: Option<bool>,
    done: Option<TaskStatus>,
    process: Option<Process>,
    session: Option<u32>,
    drain: Option<JoinHandle<()>>,
    probe: Option<JoinHandle<()>>,
    sweep: Option<JoinHandle<()>>,
}

impl Slot {
    fn new(task: Task) -> Self {
        Slot {
            task,
            turn: Turn::default(),
            netns: PathBuf::new(),
            netns_id: None,
            resolv_conf: String::new(),
            order: None,
            restarts: 0,
            recent: 0,
            addresses: Vec::new(),
            health: None,
            done: None,
            process: None,
            session: None,
            drain: None,
            probe: None,
            sweep: None,
        }
    }
}

/// Runs the tasks of a node.
pub(crate) struct Supervisor {
    netd: Netd,
    client: Client,
    store: Store,
    logs: Logs,
    boot: String,
    slots: BTreeMap<EndpointId, Slot>,
    reports: Reports,
    checker: Checker,
    sender: mpsc::Sender<Message>,
    inbox: mpsc::Receiver<Message>,
    started: Instant,
    /// netd was away: at its next line it is told everything again.
    away: bool,
}

impl Supervisor {
    /// A supervisor that goes on with what an earlier life left.
    pub(crate) fn new(client: Client, store: Store, logs: Logs) -> anyhow::Result<Self> {
        let (sender, inbox) = mpsc::channel(QUEUE);
        let boot = process::boot_id().context("cannot read the machine's boot id from /proc")?;
        let mut supervisor = Supervisor {
            netd: Netd::new(client.clone()),
            client,
            store,
            logs,
            boot,
            slots: BTreeMap::new(),
            reports: Reports::default(),
            checker: Checker::default(),
            sender,
            inbox,
            started: Instant::now(),
            away: true,
        };
        for record in supervisor.store.load()? {
            supervisor.adopt(record);
        }
        Ok(supervisor)
    }

    /// Runs for ever.
    pub(crate) async fn run(&mut self) {
        tokio::spawn(watch(self.client.clone(), self.sender.clone()));
        tokio::spawn(self.reports.clone().run(self.client.clone()));
        let mut tend = tokio::time::interval(TEND);
        loop {
            tokio::select! {
                _ = tend.tick() => self.tend_logs(),
                () = self.step() => {}
            }
        }
    }

    /// Drains and stops every task; returns when no process of them is left.
    pub(crate) async fn stop_tasks(&mut self) {
        let ids: Vec<EndpointId> = self.slots.keys().cloned().collect();
        for id in ids {
            self.feed(&id, Event::Unwanted);
        }
        while !self.slots.values().all(|s| s.task.is_stopped()) {
            let Some(message) = self.next().await else {
                self.tick();
                continue;
            };
            // What netd wants meanwhile is no longer our concern.
            if !matches!(message, Message::Assignments(_)) {
                self.take(message);
            }
        }
        let _ = timeout(FLUSH, self.reports.flushed()).await;
    }

    async fn step(&mut self) {
        match self.next().await {
            Some(message) => self.take(message),
            None => self.tick(),
        }
    }

    /// The next message; `None`: a timer has run out. Nothing is lost when this is dropped.
    async fn next(&mut self) -> Option<Message> {
        let timer = self
            .slots
            .values()
            .filter_map(|s| s.task.next_timer())
            .min()
            .map(|at| self.started + at);
        tokio::select! {
            biased;
            message = self.inbox.recv() => message,
            () = sleep_until(timer.unwrap_or(self.started)), if timer.is_some() => None,
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn tick(&mut self) {
        let now = self.now();
        let due: Vec<EndpointId> = self
            .slots
            .values()
            .filter(|s| s.task.next_timer().is_some_and(|at| at <= now))
            .map(|s| s.task.id().clone())
            .collect();
        for id in due {
            self.feed(&id, Event::Tick);
        }
    }

    fn tend_logs(&self) {
        let logs = self.logs.clone();
        let living: BTreeSet<EndpointId> = self.slots.keys().cloned().collect();
        tokio::task::spawn_blocking(move || logs.tend(&living));
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Assignments(a) => self.assigned(*a),
            Message::Away(why) => {
                self.away = true;
                tracing::warn!("the tasks go on without netd: {why}");
            }
            Message::Attached(id, Ok(view)) => self.attached(&id, &view),
            Message::Attached(id, Err(why)) => self.feed(&id, Event::NotAttached(why)),
            Message::Started(id, Ok(process)) => self.process_started(&id, process),
            Message::Started(id, Err(e)) => {
                let why = process::why(&e);
                tracing::warn!("{id}: {why}");
                self.feed(&id, Event::NotStarted(why));
            }
            Message::Ended(id) => self.ended(&id),
            Message::Task(id, event) => self.feed(&id, event),
        }
    }

    /// The whole set of what should run here.
    fn assigned(&mut self, a: Assignments) {
        tracing::info!(revision = a.revision, node = %a.node, tasks = a.tasks.len(), "assignments");
        let node: NodeId = a.node;
        let wanted: BTreeMap<EndpointId, Order> = a
            .tasks
            .into_iter()
            // Without a command the tasks belong to another orchestrator.
            .filter(|t| !t.command.is_empty())
            .map(|task| (task.id.clone(), Order { node, task }))
            .collect();
        let gone: Vec<EndpointId> = self
            .slots
            .keys()
            .filter(|id| !wanted.contains_key(*id))
            .cloned()
            .collect();
        // Those that are new have told nothing yet.
        let told: Vec<EndpointId> = match std::mem::replace(&mut self.away, false) {
            true => self.slots.keys().cloned().collect(),
            false => Vec::new(),
        };
        for id in gone {
            self.feed(&id, Event::Unwanted);
        }
        for (id, order) in wanted {
            if !self.slots.contains_key(&id) {
                let task = Task::new(id.clone());
                self.slots.insert(id.clone(), Slot::new(task));
            }
            self.feed(&id, Event::Wanted(Box::new(order)));
        }
        for id in told {
            self.feed(&id, Event::Reconnected);
        }
    }

    fn attached(&mut self, id: &EndpointId, view: &EndpointView) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        slot.netns = PathBuf::from(&view.netns);
        slot.resolv_conf.clone_from(&view.resolv_conf);
        let (v4, v6) = (view.v4.map(IpAddr::V4), view.v6.map(IpAddr::V6));
        slot.addresses = v4.into_iter().chain(v6).collect();
        let same = match &slot.process {
            Some(p) => process::lives_in(p.pid(), &slot.netns),
            None => true,
        };
        if let Err(e) = self.store.save_resolv_conf(id, &view.resolv_conf) {
            return self.feed(id, Event::NotAttached(format!("its resolv.conf: {e}")));
        }
        self.feed(id, Event::Attached { same });
    }

    fn process_started(&mut self, id: &EndpointId, process: Process) {
        let pid = process.pid();
        let marks = self.marks(&process);
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        slot.session = Some(pid);
        watch_process(id.clone(), &process, self.sender.clone());
        slot.process = Some(process);
        self.save(id, Some(marks));
        tracing::info!(pid, "{id}: started");
        self.feed(id, Event::Started { pid });
    }

    /// The leader has ended: its group may live on.
    fn ended(&mut self, id: &EndpointId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let end = process::ending(slot.process.take().and_then(|mut p| p.reap()));
        tracing::info!("{id}: {}", end.how);
        if let Some(probe) = slot.probe.take() {
            probe.abort();
        }
        if let Some(netns) = slot.netns_id {
            let (id, session, sender) = (id.clone(), slot.session, self.sender.clone());
            slot.sweep = Some(tokio::spawn(async move {
                while !members(netns, &id, session).await.is_empty() {
                    sleep(LOOK).await;
                }
                send(&sender, Message::Task(id, Event::Empty)).await;
            }));
        }
        let known = slot.netns_id.is_some();
        self.feed(id, Event::Exited(end));
        if !known {
            self.feed(id, Event::Empty);
        }
    }

    fn marks(&self, process: &Process) -> Marks {
        Marks {
            pid: process.pid(),
            start: process.start(),
            boot: self.boot.clone(),
        }
    }

    /// Takes over what an earlier life left.
    fn adopt(&mut self, record: Record) {
        let id = record.order.task.id.clone();
        let found = process::find(record.process.as_ref(), &record.netns, &id);
        let pid = found.as_ref().map(Process::pid);
        let netns_id = Netns::open(&record.netns).ok().map(|n| n.id());
        let found_so = Found {
            order: record.order.clone(),
            pid,
            restarts: record.restarts,
            recent: record.recent,
            attached: netns_id.is_some(),
            health: record.health,
            done: record.done.clone().filter(|_| pid.is_none()),
        };
        let mut slot = Slot::new(Task::found(self.now(), found_so));
        slot.netns_id = netns_id;
        slot.netns.clone_from(&record.netns);
        slot.resolv_conf.clone_from(&record.resolv_conf);
        slot.restarts = record.restarts;
        slot.recent = record.recent;
        slot.addresses.clone_from(&record.addresses);
        slot.health = record.health;
        slot.done.clone_from(&record.done);
        slot.order = Some(record.order);
        slot.session = pid.or(record.process.as_ref().map(|m| m.pid));
        match &found {
            Some(p) => {
                tracing::info!(pid = p.pid(), "{id}: found running");
                self.logs.begin(&id);
                watch_process(id.clone(), p, self.sender.clone());
            }
            None => {
                tracing::info!("{id}: ended while netd-run was away");
                // What its leader left behind would be in the way of the next one.
                if let Some(netns) = slot.netns_id {
                    process::kill_all(&process::members(netns, &id, slot.session));
                }
            }
        }
        let marks = found.as_ref().map(|p| self.marks(p));
        slot.process = found;
        self.slots.insert(id.clone(), slot);
        if marks.is_some() && record.process.is_none() {
            self.save(&id, marks);
        }
    }

    fn save(&self, id: &EndpointId, process: Option<Marks>) {
        let Some(slot) = self.slots.get(id) else {
            return;
        };
        let Some(order) = slot.order.clone() else {
            return;
        };
        let record = Record {
            order,
            netns: slot.netns.clone(),
            resolv_conf: slot.resolv_conf.clone(),
            process,
            restarts: slot.restarts,
            recent: slot.recent,
            addresses: slot.addresses.clone(),
            health: slot.health,
            done: slot.done.clone(),
        };
        if let Err(e) = self.store.save(&record) {
            tracing::error!("{id}: cannot be recorded, a restart of netd-run may lose it: {e}");
        }
    }

    /// Lets a task's machine decide, and does what it says.
    fn feed(&mut self, id: &EndpointId, event: Event) {
        let now = self.now();
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        for action in slot.task.handle(now, event) {
            self.act(id, action);
        }
    }

    fn act(&mut self, id: &EndpointId, action: Action) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let sender = self.sender.clone();
        let netd = self.netd.clone();
        let (id, turn) = (id.clone(), slot.turn.clone());
        match action {
            Action::Attach(body) => {
                tokio::spawn(async move {
                    let answer = netd.attach(turn, &id, &body).await;
                    let answer = answer.map(Box::new).map_err(|e| e.message);
                    send(&sender, Message::Attached(id, answer)).await;
                });
            }
            Action::Start { order, restarts } => self.start(id, *order, restarts),
            Action::Drain { timeout_ms } => {
                slot.drain = Some(tokio::spawn(async move {
                    netd.drain(turn, &id, timeout_ms).await;
                    send(&sender, Message::Task(id, Event::Drained)).await;
                }));
            }
            Action::Terminate => {
                if let Some(Err(e)) = slot.process.as_ref().map(|p| p.signal(Signal::SIGTERM)) {
                    tracing::warn!("{id}: {}", process::why(&e));
                }
            }
            Action::Kill => {
                if let Some(Err(e)) = slot.process.as_ref().map(|p| p.signal(Signal::SIGKILL)) {
                    tracing::warn!("{id}: {}", process::why(&e));
                }
                if let Some(netns) = slot.netns_id {
                    process::kill_all(&process::members(netns, &id, slot.session));
                }
            }
            Action::Detach => {
                if let Some(drain) = slot.drain.take() {
                    drain.abort();
                }
                tokio::spawn(async move {
                    let event = match netd.detach(turn, &id).await {
                        Ok(()) => Event::Detached,
                        Err(e) => {
                            tracing::warn!("{id}: not detached: {e}");
                            Event::NotDetached(e.message)
                        }
                    };
                    send(&sender, Message::Task(id, event)).await;
                });
            }
            Action::Report(mut status) => {
                status.log = Some(self.logs.path(&id).display().to_string());
                let changed = slot.health != status.health;
                slot.health = status.health;
                self.reports.push(id.clone(), status);
                let process = self.slots.get(&id).and_then(|s| s.process.as_ref());
                if changed && let Some(marks) = process.map(|p| self.marks(p)) {
                    self.save(&id, Some(marks));
                }
            }
            Action::Probe { number, health } => self.probe(id, number, *health),
            Action::Remember { recent, done } => {
                slot.recent = recent;
                slot.done = done;
                self.save(&id, None);
            }
            Action::Forget => {
                self.store.forget(&id);
                self.logs.end(&id);
                self.slots.remove(&id);
            }
        }
    }

    fn probe(&mut self, id: EndpointId, number: u32, health: Health) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let at = Subject {
            netns: slot.netns.clone(),
            addresses: slot.addresses.clone(),
            leader: slot.process.as_ref().map(|p| (p.pid(), p.start())),
            order: slot.order.clone(),
            output: self.store.health_output(&id),
        };
        let (checker, sender) = (self.checker.clone(), self.sender.clone());
        slot.probe = Some(tokio::spawn(async move {
            let answer = checker.ask(&health, at).await;
            send(&sender, Message::Task(id, Event::Probed { number, answer })).await;
        }));
    }

    fn start(&mut self, id: EndpointId, order: Order, restarts: u32) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if let Some(sweep) = slot.sweep.take() {
            sweep.abort();
        }
        slot.order = Some(order.clone());
        slot.restarts = restarts;
        slot.done = None;
        slot.netns_id = Netns::open(&slot.netns).ok().map(|n| n.id());
        slot.session = None;
        let (netns, text) = (slot.netns.clone(), slot.resolv_conf.clone());
        let (store, logs, sender) = (self.store.clone(), self.logs.clone(), self.sender.clone());
        // Before it runs: a life that ends between the two looks for it in its namespace.
        self.save(&id, None);
        tokio::spawn(async move {
            let (name, log) = (id.clone(), logs.path(&id));
            let started = tokio::task::spawn_blocking(move || {
                logs.begin(&name);
                logs.trim(&name);
                let resolv_conf = store.save_resolv_conf(&name, &text).map_err(|source| {
                    let path = store.resolv_conf(&name);
                    ProcessError::ResolvConf { path, source }
                })?;
                process::start(&order, &netns, &resolv_conf, &log)
            });
            let answer = match started.await {
                Ok(answer) => Message::Started(id, answer),
                // The blocking pool ends with the program alone.
                Err(e) => Message::Task(id, Event::NotStarted(e.to_string())),
            };
            send(&sender, answer).await;
        });
    }
}

async fn members(netns: NetnsId, id: &EndpointId, session: Option<u32>) -> Vec<process::Member> {
    let id = id.clone();
    tokio::task::spawn_blocking(move || process::members(netns, &id, session))
        .await
        .unwrap_or_default()
}
