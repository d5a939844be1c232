//! What runs for as long as this node is in a cluster, and carries news from one room to another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use model::{EndpointId, Intent, NodeId};
use tokio::sync::{mpsc, oneshot, watch};

use super::Cluster;
use crate::{
    dns::EndpointNs,
    gossip::{Facts, Gossip},
    manager::routes_answer,
    place, reconcile,
    rpc::{Answer, Ask, Report, Uplink},
    tasks::logs::{self, LogFrom},
    view,
};

/// Longest wait for another node when this one starts.
const MEET: Duration = Duration::from_millis(1500);
/// Longest wait between a manager's greeting and its first increment.
const GREETING: Duration = Duration::from_millis(200);

/// Between a change and the report of it, so that a burst is one report.
const REPORTS_APART: Duration = Duration::from_millis(5);

impl Cluster {
    pub(super) async fn wake_reconciler(self: Arc<Self>) {
        let (mut intent, mut facts, mut endpoints) = (self.intent.clone(), self.facts.clone(), self.endpoint_changes());
        loop {
            let r = tokio::select! {
                r = intent.changed() => r.map(|()| self.reconciler.decided()),
                r = facts.changed() => r.map(|()| self.reconciler.heard()),
                r = endpoints.changed() => r.map(|()| self.reconciler.look()),
            };
            if r.is_err() {
                return;
            }
        }
    }

    /// Keeps managers informed: what this kernel holds, and how the tasks are.
    pub(super) async fn report(self: Arc<Self>) {
        let (mut reconciled, mut tasks, mut intent) =
            (self.reconciled.clone(), self.tasks.subscribe(), self.intent.clone());
        let (mut holding, mut addresses) = (self.holding.subscribe(), self.addresses.subscribe());
        loop {
            let now = reconciled.borrow_and_update().clone();
            let placed = intent.borrow_and_update().clone();
            // Of a service that is gone nobody wants to know.
            self.tasks.send_if_modified(|t| {
                t.prune(&placed, self.me);
                false
            });
            let (mine, past) = tasks.borrow_and_update().report(&placed, self.me);
            let mut problems = now.problems.clone();
            problems.extend(now.endpoints.iter().map(|(id, why)| format!("endpoint {id}: {why}")));
            self.uplink.report(Report {
                applied: now.applied,
                problems,
                tasks: mine,
                past,
                held: now.held.clone(),
                holds: holding.borrow_and_update().clone(),
                machine: crate::machine::look(addresses.borrow_and_update().data_path),
                datapath: self.reconciler.chosen().why.clone(),
            });
            let r = tokio::select! {
                r = holding.changed() => r,
                r = addresses.changed() => r,
                r = reconciled.changed() => r,
                r = tasks.changed() => r,
                r = intent.changed() => r,
            };
            if r.is_err() {
                return;
            }
            // Changes come in bursts: a report tells of all that came by then.
            tokio::time::sleep(REPORTS_APART).await;
        }
    }

    /// Answers what managers ask.
    pub(super) async fn answer(
        self: Arc<Self>,
        mut asked: mpsc::Receiver<(Ask, tokio::sync::oneshot::Sender<Answer>)>,
    ) {
        while let Some((ask, tell)) = asked.recv().await {
            if ask == Ask::ManagerAddress {
                let answer = match self.may_listen().await {
                    Ok(addr) => Answer::Address { addr },
                    Err(why) => Answer::Failed { why },
                };
                let _ = tell.send(answer);
                continue;
            }
            if let Ask::Logs {
                from,
                since_ms,
                max,
                follow,
            } = ask
            {
                let limits = logs::Limits { since_ms, max, follow };
                // It may take a while: the next question does not wait for it.
                tokio::spawn(read_logs(self.log_paths(from), limits, tell));
                continue;
            }
            let found = tokio::task::spawn_blocking(move || match ask {
                Ask::PortFree(port) => place::port_use(&port),
                Ask::PortsInUse => place::auto_ports_in_use(),
                Ask::HostRoutes => routes_answer(reconcile::host::routed_subnets()),
                Ask::ManagerAddress | Ask::Logs { .. } => Answer::Failed {
                    why: "answered elsewhere".into(),
                },
            });
            let _ = tell.send(found.await.unwrap_or_else(|e| Answer::Failed { why: e.to_string() }));
        }
    }

    /// Where the logs of tasks are, as their runner told.
    fn log_paths(&self, from: BTreeMap<EndpointId, LogFrom>) -> Vec<(EndpointId, LogFrom, Option<PathBuf>)> {
        let tasks = self.tasks.borrow();
        let path = |id: &EndpointId| tasks.log(id).map(PathBuf::from);
        from.into_iter()
            .map(|(id, from)| {
                let path = path(&id);
                (id, from, path)
            })
            .collect()
    }

    /// Names are answered in exactly the namespaces of this node's endpoints.
    pub(super) async fn names_follow(&self) {
        // What was read first must not be carried out last.
        let _turn = self.naming.lock().await;
        let address = self.config.dns.address;
        let views = view::views(self.endpoints().all());
        let wanted = views
            .into_iter()
            .map(|(path, view)| (EndpointNs { path, address }, view))
            .collect();
        for (path, why) in self.names.sync(wanted).await {
            tracing::warn!(netns = %path.display(), "names cannot be answered: {why}");
        }
    }

    pub(super) async fn keep_names(self: Arc<Self>) {
        let (mut reconciled, mut endpoints) = (self.reconciled.clone(), self.endpoint_changes());
        loop {
            self.names_follow().await;
            let r = tokio::select! {
                r = reconciled.changed() => r,
                r = endpoints.changed() => r,
            };
            if r.is_err() {
                return;
            }
        }
    }
}

async fn read_logs(
    wanted: Vec<(EndpointId, LogFrom, Option<PathBuf>)>,
    limits: logs::Limits,
    tell: oneshot::Sender<Answer>,
) {
    let each = logs::Limits {
        max: limits.max / wanted.len().max(1),
        ..limits
    };
    let read = tokio::task::spawn_blocking(move || {
        let (mut parts, mut problems) = (BTreeMap::new(), BTreeMap::new());
        for (id, from, path) in wanted {
            let part = match path {
                Some(path) => logs::read(&path, from, each).map_err(|e| format!("{}: {e}", path.display())),
                None => Err("its runner has told of no log".to_owned()),
            };
            match part {
                Ok(part) => drop(parts.insert(id, part)),
                Err(why) => drop(problems.insert(id, why)),
            }
        }
        Answer::Logs { parts, problems }
    });
    let _ = tell.send(read.await.unwrap_or_else(|e| Answer::Failed { why: e.to_string() }));
}

/// Asks the nodes that were known last for what this node has missed, before anything is compared with the kernel: the
/// view on disk may lack the last second, and what it lacks would be withdrawn. One answer is enough; none means that the
/// last view is the best there is.
pub(super) async fn meet(gossip: &Gossip, facts: &Facts, me: NodeId, seeds: &[SocketAddr]) {
    let known = facts
        .rows
        .keys()
        .filter(|id| **id != me)
        .filter_map(|id| view::node_row(facts, *id))
        .map(|r| r.gossip);
    let all: BTreeSet<SocketAddr> = seeds.iter().copied().chain(known).collect();
    let mut asked: FuturesUnordered<_> = all
        .iter()
        .map(|addr| {
            let gossip = gossip.clone();
            let addr = *addr;
            async move { gossip.join(&[addr]).await }
        })
        .collect();
    let one = async {
        while let Some(met) = asked.next().await {
            if met {
                return true;
            }
        }
        all.is_empty()
    };
    if !tokio::time::timeout(MEET, one).await.unwrap_or(false) {
        tracing::info!("no other node answers yet: going on from the last view");
    }
}

/// Names follow intent and facts.
pub(super) async fn keep_table(
    table: watch::Sender<Arc<dns::Table>>,
    mut intent: watch::Receiver<Arc<Intent>>,
    mut facts: watch::Receiver<Arc<Facts>>,
) {
    loop {
        let now = view::names(&intent.borrow_and_update(), &facts.borrow_and_update());
        table.send_if_modified(|t| {
            let new = **t != now;
            *t = Arc::new(now);
            new
        });
        let r = tokio::select! {
            r = intent.changed() => r,
            r = facts.changed() => r,
        };
        if r.is_err() {
            return;
        }
    }
}

/// Waits a moment for what managers decided while this node was away: its last view may still give it slots that run
/// elsewhere by now. Without managers the last view is the best there is.
pub(super) async fn newest_intent(uplink: &Uplink, mut intent: watch::Receiver<Arc<Intent>>) {
    intent.mark_unchanged();
    let mut connected = uplink.connected();
    let news = async {
        if connected.wait_for(|c| *c).await.is_ok() {
            // An increment comes right behind the greeting, or not at all.
            let _ = tokio::time::timeout(GREETING, intent.changed()).await;
        }
    };
    if tokio::time::timeout(MEET, news).await.is_err() {
        tracing::info!("no manager answers yet: going on from the last intent");
    }
}
