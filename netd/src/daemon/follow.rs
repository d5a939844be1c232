//! What changes while this node is in a cluster and every room must hear of: its address, the managers' addresses, the
//! cluster's settings.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, MutexGuard},
    time::Duration,
};

use cluster::state::Command;
use model::{ApiError, NodeId, intent::Role};

use super::Cluster;
use crate::{
    config::Config,
    discover,
    place::{Addresses, Place},
};

/// No manager is reached for this long: they are looked for.
const LOST: Duration = Duration::from_secs(5);
/// Between two tries to put this manager's address into the log.
const AGAIN: Duration = Duration::from_secs(1);

/// All addresses of the host; of both families where the kernel has IPv6.
pub(super) fn everywhere(port: u16) -> SocketAddr {
    match std::path::Path::new("/proc/net/if_inet6").exists() {
        true => (Ipv6Addr::UNSPECIFIED, port).into(),
        false => (Ipv4Addr::UNSPECIFIED, port).into(),
    }
}

/// Where the managers' RPC listens: as configured, and on IPv6 too when that is what is advertised.
pub(super) fn rpc_listen(config: &Config, now: &Addresses) -> SocketAddr {
    let listen = config.cluster.listen;
    match listen.ip().is_unspecified() && now.advertise.is_ipv6() {
        true => everywhere(listen.port()),
        false => listen,
    }
}

/// Where this node is at its start. An address that cannot be told now (the cable is out, DHCP is late) is the last one:
/// what the kernel forwards goes on, and the host's next change is looked at.
pub(super) async fn where_now(mut place: Place, config: &Config) -> Result<(Place, Addresses), ApiError> {
    let now = match (place.look(config).await, place.last(config)) {
        (Ok(now), _) => now,
        (Err(e), Some(last)) => {
            tracing::warn!(
                "{}; going on with the last address, {}; try: {}",
                e.message,
                last.advertise,
                e.hint
            );
            last
        }
        (Err(e), None) => return Err(e),
    };
    place.settle(&now);
    place.save(config)?;
    Ok((place, now))
}

async fn find(source: &str, context: &discover::Context, port: u16) -> Result<Vec<SocketAddr>, ApiError> {
    let named = discover::find(source, context).await?;
    super::reach::resolve(&named, port).await
}

impl Cluster {
    fn place(&self) -> MutexGuard<'_, Place> {
        // No code panics while it holds the lock; if one did, the place would still be whole.
        self.place.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Looks where this node is whenever the host's addresses change, and tells everybody.
    pub(super) async fn follow_addresses(self: Arc<Self>) {
        let mut reconciled = self.reconcile_changes();
        let mut seen = None;
        loop {
            let changed = reconciled.wait_for(|r| seen.as_ref() != Some(&r.addresses)).await;
            let Ok(now) = changed.map(|r| r.addresses.clone()) else {
                return;
            };
            seen = Some(now);
            let mut place = self.place().clone();
            match place.look(&self.config).await {
                Ok(now) if now != self.addresses() => {
                    tracing::info!(from = %self.addresses().advertise, to = %now.advertise, "this node has moved");
                    place.settle(&now);
                    if let Err(e) = place.save(&self.config) {
                        tracing::warn!("{}", e.message);
                    }
                    *self.place() = place;
                    self.moved(now);
                }
                Ok(_) => {}
                Err(e) => tracing::warn!("{}; going on with the last address; try: {}", e.message, e.hint),
            }
        }
    }

    fn moved(&self, now: Addresses) {
        let old = self.addresses.send_replace(now.clone());
        // First what carries the news, then the news.
        if old.gossip != now.gossip {
            self.gossip.moved(now.gossip);
        }
        self.publish_node();
        self.announce();
        self.reconciler.look();
        self.uplink.anew();
        if let Some(m) = self.manager_now() {
            m.peers.anew();
            m.forwarder.anew();
        }
    }

    /// A manager's address is in the log: nodes that have never met it find it there.
    async fn tell_log(&self) {
        loop {
            let rpc = Some(self.addresses().rpc.to_string());
            let intent = self.intent();
            let (Some(m), Some(node)) = (self.manager_now(), intent.nodes.get(&self.me)) else {
                return;
            };
            if node.role != Role::Manager || node.rpc == rpc {
                return;
            }
            let command = Command::SetRole {
                node: self.me,
                role: Role::Manager,
                rpc,
            };
            match m.propose(command).await {
                Ok(_) => return,
                Err(e) => tracing::warn!("this manager's address is not in the log yet: {}", e.message),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Tells whoever speaks to managers where they are now, as gossip knows it: a manager that has moved must be reached
    /// before the log can say so.
    pub(super) async fn follow_managers(self: Arc<Self>) {
        let (mut facts, mut intent) = (self.facts.clone(), self.intent_changes());
        loop {
            let (known, now) = (facts.borrow_and_update().clone(), intent.borrow_and_update().clone());
            let managers = now
                .nodes
                .iter()
                .filter(|(id, n)| n.role == Role::Manager && **id != self.me);
            let at: BTreeMap<NodeId, SocketAddr> = managers
                .filter_map(|(id, n)| {
                    let rpc: SocketAddr = n.rpc.as_ref()?.parse().ok()?;
                    let row = self.node_row(&known, *id)?;
                    Some((*id, SocketAddr::new(row.gossip.ip(), rpc.port())))
                })
                .collect();
            let mut reach = now;
            for (id, addr) in &at {
                let rpc = Some(addr.to_string());
                if reach.nodes.get(id).is_some_and(|n| n.rpc != rpc)
                    && let Some(n) = Arc::make_mut(&mut reach).nodes.get_mut(id)
                {
                    n.rpc = rpc;
                }
            }
            self.reach.send_if_modified(|old| {
                let new = !Arc::ptr_eq(old, &reach) && *old != reach;
                *old = reach;
                new
            });
            self.uplink.managers_at(at);
            let r = tokio::select! {
                r = facts.changed() => r,
                r = intent.changed() => r,
            };
            if r.is_err() {
                return;
            }
        }
    }

    /// Keeps this manager's address in the log.
    pub(super) async fn keep_told(self: Arc<Self>) {
        let (mut manager, mut addresses) = (self.manager.subscribe(), self.addresses.subscribe());
        let mut intent = self.intent_changes();
        loop {
            self.tell_log().await;
            let r = tokio::select! {
                r = manager.changed() => r,
                r = addresses.changed() => r,
                r = intent.changed() => r,
            };
            if r.is_err() {
                return;
            }
        }
    }

    /// A node is announced while it is a manager.
    pub(super) async fn keep_announced(self: Arc<Self>) {
        let mut manager = self.manager.subscribe();
        loop {
            self.announce();
            if manager.changed().await.is_err() {
                return;
            }
        }
    }

    /// All managers may be elsewhere while this node was away, or before it heard of it: then it looks for them where it
    /// has found the first one.
    pub(super) async fn look_for_managers(self: Arc<Self>) {
        let place = self.place().discover.clone();
        let sources: Vec<String> = place
            .into_iter()
            .chain(self.config.cluster.join.iter().cloned())
            .collect();
        if sources.is_empty() {
            return;
        }
        let context = discover::Context {
            resolv_conf: self.config.dns.resolv_conf.clone(),
        };
        let mut connected = self.uplink.connected();
        loop {
            let up = tokio::time::timeout(LOST, connected.wait_for(|c| *c)).await;
            match up.map(|r| r.map(|_| ())) {
                Ok(Ok(())) => {
                    if connected.wait_for(|c| !*c).await.is_err() {
                        return;
                    }
                    continue;
                }
                Ok(Err(_)) => return,
                Err(_) => {}
            }
            for source in &sources {
                match find(source, &context, self.config.cluster.listen.port()).await {
                    Ok(found) => {
                        let gossip = found
                            .iter()
                            .map(|a| SocketAddr::new(a.ip(), self.config.cluster.gossip_port));
                        let gossip: Vec<SocketAddr> = gossip.collect();
                        self.uplink.also(found);
                        self.gossip.join(&gossip).await;
                    }
                    Err(e) => tracing::info!("no manager is reached, and none is found: {}", e.message),
                }
            }
        }
    }

    /// What this node tells of itself depends on the cluster's settings.
    pub(super) async fn follow_settings(self: Arc<Self>) {
        let mut intent = self.intent_changes();
        let mut port = intent.borrow_and_update().settings.data_path_port;
        while intent
            .wait_for(|i| i.settings.data_path_port != port)
            .await
            .map(|i| port = i.settings.data_path_port)
            .is_ok()
        {
            self.publish_node();
        }
    }
}
