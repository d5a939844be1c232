//! What managers keep secret in the log: the CA, tokens, gossip keys, the key that unlocks managers' disks.
//!
//! The leader alone changes it ([`custody`](super::custody) says when), by commands that count only if nobody was faster.
//! Changes of the CA and of gossip keys go in phases that are kept here, so that any later leader goes on with them.

use std::{collections::BTreeMap, time::Duration};

use cluster::{
    seal::{Key, MAX_KEYS},
    state::{TOKEN_MANAGER, TOKEN_WORKER},
};
use model::intent::{Role, Trust};
use serde::{Deserialize, Serialize};

use super::{
    Csr, IdentityError, Issued, Root, Subject, UnlockKey,
    ca::same,
    random,
    token::{SECRET, Token},
};

/// Names of the parts in the managers' secrets.
const CA: &str = "ca";
const GOSSIP: &str = "gossip";
const UNLOCK: &str = "unlock";

/// Former roots that are remembered: their certificates may be traded in, and they vouch for their successors.
const FORMER: usize = 4;

/// Where a change of the CA stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaPhase {
    /// All nodes learn to trust the new root; the old one signs.
    Trust,
    /// The new root signs; all nodes renew their certificates.
    Renew,
}

/// A change of the CA under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaChange {
    /// Where it stands.
    pub phase: CaPhase,
    /// The other root beside the one that signs: the new one, or the old one.
    other: Root,
    /// Since when, log time, ms.
    pub since_ms: u64,
}

/// The CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ca {
    /// Signs now.
    root: Root,
    /// Under way.
    pub change: Option<CaChange>,
    /// How many roots there have been.
    number: u32,
    /// Certificates by which roots vouch for their successors, newest first, PEM.
    #[serde(default)]
    crosses: Vec<String>,
    /// Certificates of roots that are not trusted any more, newest first, PEM.
    #[serde(default)]
    former: Vec<String>,
}

impl Ca {
    fn create(cluster: &str) -> Result<Ca, IdentityError> {
        Ok(Ca {
            root: Root::create(cluster, 1)?,
            change: None,
            number: 1,
            crosses: Vec::new(),
            former: Vec::new(),
        })
    }

    /// The root that signs.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Roots that are trusted, the one that signs first.
    pub fn trusted(&self) -> Vec<&Root> {
        let other = self.change.iter().map(|c| &c.other);
        std::iter::once(&self.root).chain(other).collect()
    }

    /// Certificates of all roots, also of those that are not trusted any more, PEM.
    pub fn known(&self) -> impl Iterator<Item = &str> {
        let trusted = self.trusted().into_iter().map(Root::cert);
        trusted.chain(self.former.iter().map(String::as_str))
    }

    /// The root that nodes learn to trust, and later get their certificates from.
    pub fn coming(&self) -> &Root {
        match &self.change {
            Some(c) if c.phase == CaPhase::Trust => &c.other,
            _ => &self.root,
        }
    }

    /// Begins a change to a new root of our own, or to one whose key an external signer keeps.
    pub fn begin(&mut self, cluster: &str, given: Option<Root>, now_ms: u64) -> Result<(), IdentityError> {
        if self.change.is_some() {
            return Err(IdentityError::UnderWay);
        }
        let new = match given {
            Some(root) if root.cert() == self.root.cert() => return Err(IdentityError::UnderWay),
            Some(root) => root,
            None => Root::create(cluster, self.number + 1)?,
        };
        // Without the old key nobody can vouch: nodes that are away meanwhile need a token to come back.
        if self.root.signs() {
            self.crosses.insert(0, self.root.vouch(&new)?);
            self.crosses.truncate(FORMER);
        }
        self.number += 1;
        self.change = Some(CaChange {
            phase: CaPhase::Trust,
            other: new,
            since_ms: now_ms,
        });
        Ok(())
    }

    /// All trust the new root: it signs from now on, and the old key is forgotten.
    pub(super) fn renew(&mut self, now_ms: u64) {
        if let Some(c) = self.change.take() {
            let old = std::mem::replace(&mut self.root, c.other).without_key();
            self.change = Some(CaChange {
                phase: CaPhase::Renew,
                other: old,
                since_ms: now_ms,
            });
        }
    }

    /// All have renewed: the old root counts for nothing.
    pub(super) fn finish(&mut self) {
        if let Some(c) = self.change.take() {
            self.former.insert(0, c.other.cert().to_owned());
            self.former.truncate(FORMER);
        }
    }

    /// Trusted roots in one PEM.
    pub fn bundle(&self) -> String {
        self.trusted().into_iter().map(Root::cert).collect()
    }

    /// What is handed out with a node's certificate (PEM).
    pub fn issued(&self, certificate: &str, role: Role) -> Issued {
        let chain = std::iter::once(certificate).chain(self.crosses.iter().map(String::as_str));
        Issued {
            certificate: chain.collect(),
            ca: self.bundle(),
            issuer: self.root.fingerprint(),
            role,
        }
    }

    /// Signs a node's certificate. Fails where an external signer keeps the key.
    pub fn sign(&self, csr: &Csr, who: &Subject, life: Duration) -> Result<Issued, IdentityError> {
        Ok(self.issued(&self.root.sign(csr, who, life)?, who.role))
    }
}

/// Where a change of gossip keys stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GossipPhase {
    /// All nodes learn to open with the new key; the old one seals.
    Receive,
    /// The new key seals.
    Send,
}

/// The gossip keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipKeys {
    /// The one to seal with first.
    keys: Vec<Key>,
    /// Highest number given out.
    last: u32,
    /// Under way.
    pub phase: Option<GossipPhase>,
    /// Since when, log time, ms.
    pub since_ms: u64,
    /// When the newest key was made, log time, ms.
    pub made_ms: u64,
    /// The last removal of a node that the newest key was made after: who was removed before does not know it.
    pub after: u64,
    /// A removed node knows the older keys: they end with this change.
    purge: bool,
}

impl GossipKeys {
    fn create() -> Result<GossipKeys, IdentityError> {
        Ok(GossipKeys {
            keys: vec![Key {
                id: 1,
                secret: random()?,
            }],
            last: 1,
            phase: None,
            since_ms: 0,
            made_ms: 0,
            after: 0,
            purge: false,
        })
    }

    /// All, the one to seal with first.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Number of the newest key.
    pub fn newest(&self) -> u32 {
        self.last
    }

    /// A new key for all to open with. `removed_at`: the last removal of a node.
    pub(super) fn receive(&mut self, removed_at: u64, now_ms: u64) -> Result<(), IdentityError> {
        self.last += 1;
        let key = Key {
            id: self.last,
            secret: random()?,
        };
        self.keys.insert(1.min(self.keys.len()), key);
        self.keys.truncate(MAX_KEYS);
        self.phase = Some(GossipPhase::Receive);
        self.purge |= removed_at > self.after;
        (self.since_ms, self.made_ms, self.after) = (now_ms, now_ms, removed_at);
        Ok(())
    }

    /// All can open with the new key: it seals from now on.
    pub(super) fn send(&mut self, now_ms: u64) {
        self.keys.sort_by_key(|k| std::cmp::Reverse(k.id));
        self.phase = Some(GossipPhase::Send);
        self.since_ms = now_ms;
    }

    /// All seal with the new key.
    pub(super) fn finish(&mut self) {
        self.phase = None;
        if std::mem::take(&mut self.purge) {
            self.keys.truncate(1);
        }
    }
}

/// What only managers know.
#[derive(Clone)]
pub struct ClusterSecrets {
    /// The CA.
    pub ca: Ca,
    /// Gossip keys.
    pub gossip: GossipKeys,
    /// Key that managers' disks are sealed with; none: they are not.
    pub unlock: Option<UnlockKey>,
    worker: [u8; SECRET],
    manager: [u8; SECRET],
}

impl std::fmt::Debug for ClusterSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterSecrets").finish_non_exhaustive()
    }
}

impl ClusterSecrets {
    /// New secrets for a new cluster.
    pub fn create(cluster: &str) -> Result<Self, IdentityError> {
        Ok(ClusterSecrets {
            ca: Ca::create(cluster)?,
            gossip: GossipKeys::create()?,
            unlock: None,
            worker: random()?,
            manager: random()?,
        })
    }

    /// As named octets, for the log; `None`: there is no such secret.
    pub fn to_map(&self) -> Result<BTreeMap<String, Option<Vec<u8>>>, IdentityError> {
        let json = |r: serde_json::Result<Vec<u8>>| r.map_err(|e| unreadable("the managers' secrets", &e.to_string()));
        let map = [
            (CA, Some(json(serde_json::to_vec(&self.ca))?)),
            (GOSSIP, Some(json(serde_json::to_vec(&self.gossip))?)),
            (TOKEN_WORKER, Some(self.worker.to_vec())),
            (TOKEN_MANAGER, Some(self.manager.to_vec())),
            (UNLOCK, self.unlock.as_ref().map(|k| k.octets().to_vec())),
        ];
        Ok(map.map(|(name, v)| (name.to_owned(), v)).into())
    }

    /// From named octets.
    pub fn from_map<'a>(get: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Self, IdentityError> {
        let octets = |name| get(name).ok_or_else(|| unreadable(name, "it is missing"));
        let secret = |name| {
            octets(name)?
                .try_into()
                .map_err(|_| unreadable(name, "it has another length"))
        };
        let gossip: GossipKeys =
            serde_json::from_slice(octets(GOSSIP)?).map_err(|e| unreadable(GOSSIP, &e.to_string()))?;
        if gossip.keys.is_empty() || gossip.keys.len() > MAX_KEYS {
            return Err(unreadable(GOSSIP, "there is no key"));
        }
        let unlock = get(UNLOCK).map(|k| k.try_into().map(UnlockKey::from_octets));
        Ok(ClusterSecrets {
            ca: serde_json::from_slice(octets(CA)?).map_err(|e| unreadable(CA, &e.to_string()))?,
            gossip,
            unlock: unlock
                .transpose()
                .map_err(|_| unreadable(UNLOCK, "it has another length"))?,
            worker: secret(TOKEN_WORKER)?,
            manager: secret(TOKEN_MANAGER)?,
        })
    }

    /// What all nodes are told.
    pub fn trust(&self) -> Trust {
        Trust {
            roots: self.ca.trusted().into_iter().map(|r| r.cert().to_owned()).collect(),
            issuer: self.ca.root().fingerprint(),
            gossip: self.gossip.keys().iter().map(|k| k.id).collect(),
        }
    }

    /// The token to join with in a role.
    pub fn token(&self, role: Role) -> Result<Token, IdentityError> {
        Ok(Token {
            pin: self.ca.root().pin()?,
            secret: match role {
                Role::Worker => self.worker,
                Role::Manager => self.manager,
            },
        })
    }

    /// The role that a secret opens. Takes the same time whatever the secret is.
    pub fn role_of(&self, secret: &[u8]) -> Option<Role> {
        let worker = same(secret, &self.worker);
        let manager = same(secret, &self.manager);
        match (worker, manager) {
            (_, true) => Some(Role::Manager),
            (true, _) => Some(Role::Worker),
            _ => None,
        }
    }

    /// New secrets for a role: the old token is worth nothing.
    pub fn rotate_token(&mut self, role: Role) -> Result<(), IdentityError> {
        let new = random()?;
        match role {
            Role::Worker => self.worker = new,
            Role::Manager => self.manager = new,
        }
        Ok(())
    }
}

fn unreadable(what: &str, why: &str) -> IdentityError {
    IdentityError::Secrets {
        what: what.to_owned(),
        why: why.to_owned(),
    }
}
