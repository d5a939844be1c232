//! Keeps the board, and moves the slots of nodes that are dead for longer than their grace. The leader alone does that.

use std::{
    collections::BTreeMap,
    sync::Weak,
    time::{Duration, Instant},
};

use cluster::state::Command;
use model::{
    ApiError, Code, Intent, Name, NodeId,
    api::NodeHealth,
    intent::{Machine, SlotSet},
};

use super::Manager;
use crate::{daemon::Cluster, gossip::Facts, rpc::Leader, tasks::TaskBoard};

/// Between two looks at who is dead for how long.
const OVERSEE: Duration = Duration::from_millis(500);
/// Before slots that no other node may take are tried to be moved again.
const AGAIN: Duration = Duration::from_secs(30);
/// Between two rounds: under many changes a round sees all that came by then.
const ROUNDS_APART: Duration = Duration::from_millis(20);

pub(super) async fn run(m: Weak<Manager>, c: Weak<Cluster>) {
    let Some((mut intents, mut reports, mut leader)) =
        m.upgrade().map(|m| (m.store.intent(), m.hub.changed(), m.leader()))
    else {
        return;
    };
    let mut since: BTreeMap<NodeId, (NodeHealth, Instant)> = BTreeMap::new();
    let mut relieved = Relieved::new();
    let mut tick = tokio::time::interval(OVERSEE);
    loop {
        tokio::select! {
            r = intents.changed() => if r.is_err() { return },
            r = reports.changed() => if r.is_err() { return },
            r = leader.changed() => if r.is_err() { return },
            _ = tick.tick() => {}
        }
        let (Some(m), Some(c)) = (m.upgrade(), c.upgrade()) else {
            return;
        };
        if *leader.borrow_and_update() != Leader::Me {
            // Who leads next begins with what the nodes report to it.
            since.clear();
            relieved.clear();
            m.with_board(|b| *b = TaskBoard::default());
            continue;
        }
        let (intent, facts, now) = (c.intent(), c.facts(), Instant::now());
        m.with_board(|board| {
            board.place(&intent, now);
            m.hub.each(|node, report| board.ended(node, &report.past));
        });
        if let Err(e) = judge(&m, &c, &intent, &facts, &mut since, now).await {
            tracing::warn!("a node's state cannot be put into the log: {}", e.message);
        }
        if let Err(e) = machines(&m, &intent).await {
            tracing::warn!("what a node is cannot be put into the log: {}", e.message);
        }
        relieve(&m, &intent, &mut relieved, now).await;
        drop((m, c));
        tokio::time::sleep(ROUNDS_APART).await;
    }
}

/// Which slots the log was asked to give to other nodes, and when.
type Relieved = BTreeMap<(Name, NodeId), (SlotSet, Instant)>;

/// Slots whose restarts are used up where they are go elsewhere, if they may.
async fn relieve(m: &Manager, intent: &Intent, relieved: &mut Relieved, now: Instant) {
    let told = m.hub.tasks(|_, t| t.exhausted);
    let used_up = m.with_board(|b| b.used_up(&told));
    relieved.retain(|key, _| used_up.contains_key(key));
    for ((service, node), slots) in used_up {
        let key = (service.clone(), node);
        let asked = relieved.get(&key);
        let again = |(before, at): &(SlotSet, Instant)| *before == slots && now.saturating_duration_since(*at) < AGAIN;
        if asked.is_some_and(again) || intent.nodes.len() < 2 {
            continue;
        }
        let command = Command::Avoid {
            service: service.clone(),
            node,
            slots: slots.clone(),
        };
        let why = match m.propose(command).await {
            Ok(_) => {
                tracing::info!(%service, %node, "restarts are used up: tried on other nodes");
                None
            }
            Err(e) if e.code == Code::Conflict => Some(e.message),
            Err(e) => {
                tracing::warn!(%service, %node, "restarts are used up, and it cannot be moved: {}", e.message);
                continue;
            }
        };
        m.with_board(|b| b.stays(&service, node, why));
        relieved.insert(key, (slots, now));
    }
}

impl Manager {
    pub(super) fn with_board<T>(&self, f: impl FnOnce(&mut TaskBoard) -> T) -> T {
        // No code panics while it holds the lock; if one did, the board would still be whole.
        f(&mut self.board.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

/// What nodes say of their machines goes into the log when it differs from what is there.
async fn machines(m: &Manager, intent: &Intent) -> Result<(), ApiError> {
    for (id, r) in m.hub.snapshot() {
        let (told, node) = (&r.report.machine, intent.nodes.get(&id));
        if *told != Machine::default() && node.is_some_and(|n| n.machine != *told) {
            m.propose(Command::SetMachine {
                node: id,
                machine: told.clone(),
            })
            .await?;
        }
    }
    Ok(())
}

async fn judge(
    m: &Manager,
    c: &Cluster,
    intent: &Intent,
    facts: &Facts,
    since: &mut BTreeMap<NodeId, (NodeHealth, Instant)>,
    now: Instant,
) -> Result<(), ApiError> {
    since.retain(|id, _| intent.nodes.contains_key(id));
    for (id, node) in intent.nodes.iter().filter(|(id, _)| **id != c.me) {
        let health = facts.health.get(id).copied().unwrap_or(NodeHealth::Unknown);
        let at = since.entry(*id).or_insert((health, now));
        if at.0 != health {
            tracing::info!(node = %id, ?health, "a node changed");
            *at = (health, now);
        }
        let grace = match health {
            NodeHealth::Down => intent.settings.node_grace(),
            NodeHealth::DaemonDown => intent.settings.daemon_grace(),
            NodeHealth::Unknown => continue,
            NodeHealth::Ready => Duration::ZERO,
        };
        let down = health != NodeHealth::Ready;
        if node.down != down && now.saturating_duration_since(at.1) >= grace {
            m.propose(Command::SetNodeDown { node: *id, down }).await?;
        }
    }
    Ok(())
}
