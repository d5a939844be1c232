//! A manager that was restarted and waits for its unlock key: what it forwards and answers goes on as it was last known.
//!
//! The log, the node's key and the gossip keys are sealed, so there is no control plane here: no RPC, no gossip. The
//! kernel's state is adopted, and what is missing of it is added from the last view on disk; names are answered. That view
//! may lack the last moment before the restart, so nothing is withdrawn here: the unlocked manager does that, when it has
//! heard what counts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use model::{ApiError, Intent};
use tokio::{sync::watch, task::JoinSet};

use super::{internal, kept::last_intent, rows::look_who_listens};
use crate::{
    config::Config,
    dns::{DnsServer, EndpointNs, ForwardConfig},
    endpoints::Endpoints,
    gossip::{Facts, last_facts},
    identity::About,
    place::{Addresses, Place},
    reconcile::{self, Kernel, Reconciled, Reconciler},
    view,
};

/// Running rooms of a locked manager.
pub(super) struct Locked {
    reconciler: Reconciler,
    reconciled: watch::Receiver<Arc<Reconciled>>,
    names: Arc<DnsServer>,
    running: JoinSet<()>,
    /// Never changed; the rooms end when they are dropped.
    _intent: watch::Sender<Arc<Intent>>,
    _facts: watch::Sender<Arc<Facts>>,
    _addresses: watch::Sender<Addresses>,
}

impl Locked {
    pub(super) async fn start(config: &Config, about: &About) -> Result<Locked, ApiError> {
        let state = config.node.state_dir.clone();
        let place = Place::load(config)?;
        let config = &place.effective(config);
        let (_, now) = super::follow::where_now(place, config).await?;
        let addresses = watch::Sender::new(now);
        let kernel = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || Kernel::open(&config, true))
                .await
                .map_err(|e| internal("the kernel", e))??
        };
        let last = last_intent(&state).unwrap_or_default();
        let facts = last_facts(&state, about, last.clone()).map_err(|e| internal("the last view", e))?;
        let (intent, facts) = (watch::Sender::new(last), watch::Sender::new(facts));
        let endpoints = Endpoints::open(&state).map_err(|e| internal("endpoints", e))?;
        let endpoints = Arc::new(Mutex::new(endpoints));
        look_who_listens(&endpoints).await;
        let inputs = reconcile::Inputs {
            me: about.node,
            config: config.clone(),
            addresses: addresses.subscribe(),
            intent: intent.subscribe(),
            facts: facts.subscribe(),
            endpoints: endpoints.clone(),
            only_add: true,
        };
        let table = view::names(&intent.borrow(), &facts.borrow());
        let reconciler = Reconciler::start(inputs, kernel).map_err(|e| internal("the reconciler", e))?;
        let table = watch::Sender::new(Arc::new(table));
        let forward = ForwardConfig {
            resolv_conf: config.dns.resolv_conf.clone(),
            ..ForwardConfig::default()
        };
        let names = Arc::new(DnsServer::new(table.subscribe(), forward));
        let reconciled = reconciler.status();
        let mut running = JoinSet::new();
        running.spawn({
            let (names, address, mut reconciled) = (names.clone(), config.dns.address, reconciled.clone());
            async move {
                // Held for as long as names are answered.
                let _table = table;
                loop {
                    let views = {
                        let endpoints = endpoints.lock().unwrap_or_else(|e| e.into_inner());
                        view::views(endpoints.all())
                    };
                    let wanted = views
                        .into_iter()
                        .map(|(path, view)| (EndpointNs { path, address }, view))
                        .collect();
                    for (path, why) in names.sync(wanted).await {
                        tracing::warn!(netns = %path.display(), "names cannot be answered: {why}");
                    }
                    if reconciled.changed().await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Locked {
            reconciler,
            reconciled,
            names,
            running,
            _intent: intent,
            _facts: facts,
            _addresses: addresses,
        })
    }

    /// Changes when a pass over the kernel has ended.
    pub(super) fn reconciled(&self) -> watch::Receiver<Arc<Reconciled>> {
        self.reconciled.clone()
    }

    /// Ends the rooms; the kernel keeps its state.
    pub(super) async fn stop(mut self) {
        self.running.shutdown().await;
        let _ = tokio::task::spawn_blocking(move || self.reconciler.stop()).await;
    }

    /// Ends the rooms and takes what is ours out of the kernel.
    pub(super) async fn clear(mut self) -> Result<(), String> {
        self.running.shutdown().await;
        let _ = self.names.sync(BTreeMap::<EndpointNs, _>::new()).await;
        let done = tokio::task::spawn_blocking(move || self.reconciler.unload());
        done.await.map_err(|e| e.to_string())?
    }
}
