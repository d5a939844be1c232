//! What managers do for the cluster's identity: tokens, the CA, gossip keys, sealed disks.
//!
//! The state is in the log. Whoever leads looks at it whenever something has changed, and takes the next step if one is
//! due ([`identity::next`](crate::identity::next)); a step counts only if nobody was faster, so a change of the leader at
//! any point does no harm.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use crate::{
    daemon::Cluster,
    identity::{
        CaPhase, ClusterSecrets, GossipPhase, Policy, Root, Seen, UnlockKey, Vault, ca_waits, gossip_waits, next,
    },
    manager::Manager,
    store::Store,
};
use cluster::state::{Command, Secret, State};
use model::{
    ApiError, Code, NodeId,
    api::{CaView, CustodyView, GossipKeysView, NodeHealth, RootView},
    intent::{Intent, Role},
};

/// Between two looks when nothing has changed.
const LOOK: Duration = Duration::from_secs(1);
/// After a look.
const PAUSE: Duration = Duration::from_millis(50);
/// Tries against others that change the secrets at the same time.
const TRIES: usize = 5;

/// What the log knows of the secrets, read at one moment.
pub struct Held {
    /// They.
    pub secrets: ClusterSecrets,
    /// Index of their last change.
    seen: u64,
    /// Index of the last removal of a node.
    pub removed_at: u64,
    old: BTreeMap<String, Option<Vec<u8>>>,
}

/// The secrets as they were read last. A thousand nodes that join, or are told of a change, ask for them as often.
#[derive(Debug, Default)]
pub(crate) struct LastRead(Mutex<Option<(u64, Arc<ClusterSecrets>)>>);

impl LastRead {
    /// Reads them; what the log has not changed since is not read again.
    pub(crate) fn now(&self, store: &Store) -> Result<Arc<ClusterSecrets>, ApiError> {
        let mut last = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let read = store.with(|s: &State| match &*last {
            Some((at, secrets)) if *at == s.secrets_at() => Ok((*at, secrets.clone())),
            _ => ClusterSecrets::from_map(|name| s.secret(name)).map(|new| (s.secrets_at(), Arc::new(new))),
        })?;
        *last = Some(read.clone());
        Ok(read.1)
    }
}

/// Reads them.
pub fn held(store: &Store) -> Result<Held, ApiError> {
    let read = store.with(|s: &State| {
        let secrets = ClusterSecrets::from_map(|name| s.secret(name))?;
        let old = secrets.to_map()?;
        Ok::<_, crate::identity::IdentityError>(Held {
            secrets,
            seen: s.secrets_at(),
            removed_at: s.removed_at(),
            old,
        })
    });
    Ok(read?)
}

/// Log time as of now: the log's own, and what has passed here since it was read first.
#[derive(Debug)]
pub struct LogClock {
    base_ms: u64,
    since: Instant,
}

impl LogClock {
    /// A clock that begins with the log's last time.
    pub fn new(store: &Store) -> LogClock {
        LogClock {
            base_ms: store.with(State::now_ms),
            since: Instant::now(),
        }
    }

    /// Now, ms.
    pub fn now_ms(&self, store: &Store) -> u64 {
        let passed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        store.with(State::now_ms).max(self.base_ms.saturating_add(passed))
    }
}

fn changed(
    old: BTreeMap<String, Option<Vec<u8>>>,
    new: BTreeMap<String, Option<Vec<u8>>>,
) -> BTreeMap<String, Option<Secret>> {
    new.into_iter()
        .filter(|(name, v)| old.get(name) != Some(v))
        .map(|(name, v)| (name, v.map(Secret)))
        .collect()
}

impl Manager {
    /// Changes the secrets, whoever else does so at the same time. `Ok(None)` of the change: nothing is to be done.
    pub async fn change_secrets<T>(
        &self,
        mut change: impl FnMut(&mut Held) -> Result<Option<T>, ApiError>,
    ) -> Result<Option<T>, ApiError> {
        for _ in 0..TRIES {
            let mut now = held(&self.store)?;
            let Some(out) = change(&mut now)? else { return Ok(None) };
            let command = Command::ReplaceSecrets {
                seen: now.seen,
                secrets: changed(now.old, now.secrets.to_map()?),
                trust: now.secrets.trust(),
            };
            match self.propose(command).await {
                Ok(_) => return Ok(Some(out)),
                Err(e) if e.code == Code::Conflict => {}
                Err(e) => return Err(e),
            }
        }
        Err(ApiError::new(
            Code::Unavailable,
            "others change the cluster's secrets at the same time",
            "the same command again",
        ))
    }

    /// The token of a role.
    pub fn token(&self, role: Role) -> Result<String, ApiError> {
        Ok(held(&self.store)?.secrets.token(role)?.to_string())
    }

    /// Makes the token of a role worthless, and gives the new one.
    pub async fn rotate_token(&self, role: Role) -> Result<String, ApiError> {
        self.change_secrets(|h| {
            h.secrets.rotate_token(role)?;
            Ok(Some(()))
        })
        .await?;
        tracing::info!(?role, "the token was changed: the old one is worth nothing");
        self.token(role)
    }

    /// Begins a change of the CA: to a new root of the managers' own, or to one whose key an external signer keeps.
    pub async fn rotate_ca(&self, intent: &Intent, given: Option<&str>) -> Result<(), ApiError> {
        let given = given.map(Root::given).transpose()?;
        if given.is_some() && intent.settings.external_ca.is_empty() {
            return Err(ApiError::new(
                Code::Conflict,
                "the key of that CA is not given, and no external signer is set that has it",
                "netctl cluster update external-ca=url=https://HOST/PATH first",
            ));
        }
        let now_ms = self.clock.now_ms(&self.store);
        self.change_secrets(|h| {
            h.secrets.ca.begin(&intent.cluster, given.clone(), now_ms)?;
            Ok(Some(()))
        })
        .await?;
        tracing::info!("a change of the CA has begun");
        Ok(())
    }

    /// The unlock key, made if there is none yet and `autolock` asks for one.
    pub async fn unlock_key(&self, intent: &Intent, rotate: bool) -> Result<UnlockKey, ApiError> {
        if !intent.settings.autolock {
            return Err(ApiError::new(
                Code::Conflict,
                "managers of this cluster do not lock themselves: there is no unlock key",
                "netctl cluster update autolock=true",
            ));
        }
        self.new_unlock_key(rotate).await?;
        let made = held(&self.store)?.secrets.unlock;
        made.ok_or_else(|| crate::daemon::internal("the unlock key", "autolock was switched off meanwhile"))
    }

    /// Makes an unlock key if there is none, or another one; managers seal their disks with it as they hear of it.
    async fn new_unlock_key(&self, another: bool) -> Result<(), ApiError> {
        let key = UnlockKey::create()?;
        self.change_secrets(|h| {
            // One that was made meanwhile may have been told to a person.
            if h.secrets.unlock.is_some() && !another {
                return Ok(None);
            }
            h.secrets.unlock = Some(key.clone());
            Ok(Some(()))
        })
        .await?;
        Ok(())
    }

    /// How the CA, the keys and the certificates stand.
    pub fn custody(&self, c: &Cluster) -> Result<CustodyView, ApiError> {
        let (intent, h) = (c.intent(), held(&self.store)?);
        let seen = self.seen(c, &intent);
        let now = self.clock.now_ms(&self.store);
        let (s, ago) = (&h.secrets, |since: u64| now.saturating_sub(since) / 1000);
        let root = |r: &Root| RootView {
            fingerprint: r.fingerprint(),
            key_here: r.signs(),
        };
        Ok(CustodyView {
            ca: CaView {
                signs: root(s.ca.root()),
                trusted: s.ca.trusted().into_iter().map(root).collect(),
                phase: s.ca.change.as_ref().map(|c| match c.phase {
                    CaPhase::Trust => "trust".to_owned(),
                    CaPhase::Renew => "renew".to_owned(),
                }),
                since_s: s.ca.change.as_ref().map(|c| ago(c.since_ms)),
                waits_for: ca_waits(s, &seen),
            },
            gossip: GossipKeysView {
                keys: s.gossip.keys().iter().map(|k| k.id).collect(),
                phase: s.gossip.phase.map(|p| match p {
                    GossipPhase::Receive => "receive".to_owned(),
                    GossipPhase::Send => "send".to_owned(),
                }),
                age_s: ago(s.gossip.made_ms),
                waits_for: gossip_waits(s, &seen),
            },
            autolock: s.unlock.is_some(),
            certificates: seen
                .iter()
                .filter_map(|(id, n)| Some((*id, n.holds.as_ref()?.until)))
                .collect(),
        })
    }

    fn seen(&self, c: &Cluster, intent: &Intent) -> BTreeMap<NodeId, Seen> {
        let (facts, reports) = (c.facts(), self.hub.snapshot());
        let seen = intent.nodes.iter().map(|(id, n)| {
            let health = match facts.health.get(id) {
                _ if *id == c.me => NodeHealth::Ready,
                _ if n.down => NodeHealth::Down,
                Some(h) => *h,
                None => NodeHealth::Unknown,
            };
            // What was reported on a stream that has ended may be true no more.
            let report = reports.get(id).filter(|r| r.connected);
            let holds = report.map(|r| r.report.holds.clone());
            (*id, Seen { health, holds })
        });
        seen.collect()
    }

    async fn look_after(&self, c: &Cluster) -> Result<(), ApiError> {
        let intent = c.intent();
        let mut now = held(&self.store)?;
        if vault_differs(&c.vault(), now.secrets.unlock.as_ref()) {
            // A log that was opened just now may lack its end: keys that are sealed are not laid open, nor sealed with the
            // key of before, because of what it does not know yet. It is looked again.
            if self.settle().await.is_err() {
                return Ok(());
            }
            now = held(&self.store)?;
        }
        let unlock = now.secrets.unlock.clone();
        if vault_differs(&c.vault(), unlock.as_ref()) {
            let sealed = unlock.is_some();
            c.seal(unlock).await?;
            tracing::info!(sealed, "this manager's keys on disk are as autolock says");
        }
        if !self.leads() {
            return Ok(());
        }
        let settings = &intent.settings;
        if settings.autolock != now.secrets.unlock.is_some() {
            return match settings.autolock {
                true => self.new_unlock_key(false).await,
                false => self.forget_unlock_key().await,
            };
        }
        let policy = Policy {
            gossip_every: Duration::from_millis(settings.gossip_key_rotation_ms),
        };
        let waits = now.secrets.ca.change.is_some() || now.secrets.gossip.phase.is_some();
        let seen = if waits { self.seen(c, &intent) } else { BTreeMap::new() };
        let now_ms = self.clock.now_ms(&self.store);
        let told = intent.trust == now.secrets.trust();
        let step = next(&now.secrets, now.removed_at, now_ms, &seen, &policy);
        if step.is_none() && told {
            return Ok(());
        }
        self.change_secrets(|h| {
            // Another look at what is there now: the step may have been taken meanwhile.
            let due = next(&h.secrets, h.removed_at, now_ms, &seen, &policy).filter(|s| Some(*s) == step);
            match due {
                Some(step) => {
                    h.secrets.step(step, h.removed_at, now_ms)?;
                    tracing::info!(?step, "a step of a change of keys");
                    Ok(Some(()))
                }
                None => Ok((!told).then_some(())),
            }
        })
        .await?;
        Ok(())
    }

    /// Managers' disks need no key any more.
    pub async fn forget_unlock_key(&self) -> Result<(), ApiError> {
        self.change_secrets(|h| {
            h.secrets.unlock = None;
            Ok(Some(()))
        })
        .await?;
        Ok(())
    }
}

/// Takes the steps that are due, and keeps this manager's disk sealed as the log says. Ends with the manager's part.
pub(crate) async fn keep(m: Weak<Manager>, c: Weak<Cluster>) {
    let Some((mut intents, mut reports)) = m.upgrade().map(|m| (m.store.intent(), m.hub.changed())) else {
        return;
    };
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            r = intents.changed() => if r.is_err() { return },
            r = reports.changed() => if r.is_err() { return },
            _ = tick.tick() => {}
        }
        intents.mark_unchanged();
        reports.mark_unchanged();
        let (Some(m), Some(c)) = (m.upgrade(), c.upgrade()) else {
            return;
        };
        // A manager that has just begun has an empty log: it waits for what the others send.
        if m.store.with(|s| !s.is_initialised()) {
            continue;
        }
        if let Err(e) = m.look_after(&c).await {
            tracing::warn!("the cluster's secrets: {}", e.message);
        }
        drop((m, c));
        // A burst of reports is one look.
        tokio::time::sleep(PAUSE).await;
    }
}

fn vault_differs(vault: &Vault, unlock: Option<&UnlockKey>) -> bool {
    match unlock {
        None => vault.is_sealed(),
        Some(key) => !vault.is_sealed_with(key),
    }
}

#[cfg(test)]
mod tests {
    use cluster::state::{InitCluster, NewNode};

    use super::*;

    #[tokio::test]
    async fn secrets_are_read_anew_when_the_log_has_changed_them() {
        let dir = std::env::temp_dir().join(format!("netd-last-read-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let first = ClusterSecrets::create("c1").unwrap();
        let given = first.to_map().unwrap().into_iter();
        let init = InitCluster {
            cluster: "0123456789abcdef0123456789abcdef".into(),
            node: NewNode {
                hostname: "host1".into(),
                role: Role::Manager,
                key: vec![1; 32],
                rpc: None,
            },
            settings: model::ClusterSettings {
                default_addr_pool6: Some("fd12:3456:789a::/48".parse().unwrap()),
                ..model::ClusterSettings::default()
            },
            default_network: model::NetworkSpec::default(),
            avoid: vec![],
            secrets: given.filter_map(|(k, v)| Some((k, Secret(v?)))).collect(),
        };
        let store = Store::create(&dir.join("raft"), [5; 32], init, crate::store::nobody()).unwrap();
        let read = LastRead::default();
        let old = read.now(&store).unwrap();
        // What is no change of the secrets is no reason to read them.
        let id = model::NodeId(1);
        let availability = model::intent::Availability::Pause;
        let other = Command::SetAvailability { node: id, availability };
        store.propose(other).await.unwrap();
        assert!(Arc::ptr_eq(&old, &read.now(&store).unwrap()));
        let mut rotated = held(&store).unwrap();
        rotated.secrets.rotate_token(Role::Worker).unwrap();
        let command = Command::ReplaceSecrets {
            seen: rotated.seen,
            secrets: changed(rotated.old, rotated.secrets.to_map().unwrap()),
            trust: rotated.secrets.trust(),
        };
        store.propose(command).await.unwrap();
        let new = read.now(&store).unwrap();
        let (old_token, new_token) = (old.token(Role::Worker).unwrap(), new.token(Role::Worker).unwrap());
        assert_eq!(new.role_of(&old_token.secret), None);
        assert_eq!(new.role_of(&new_token.secret), Some(Role::Worker));
        store.shutdown().await;
        let _ = std::fs::remove_dir_all(&dir);
    }
}
