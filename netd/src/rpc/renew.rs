//! Keeps a node's credentials fresh: certificate, trusted roots, gossip keys.
//!
//! What is to be held stands in the intent (`trust`, the node's role, the life of certificates), so whatever was missed is
//! seen at the next look: a certificate of another root or role than the log's is renewed at once, otherwise at a random
//! point of its life, so that nodes do not come all together. A node that others do not accept any more trades its
//! certificate in (`returning`).

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use cluster::seal::Key;
use model::{
    ids::NodeId,
    intent::{Intent, Role},
};
use rand::seq::SliceRandom;
use tokio::sync::watch;

use super::{Local, ManagerPort, Uplink, returning::trade_in};
use crate::identity::{Credentials, Csr, Holding, IdentityError, Issued, NodeKey, Tls, Vault, fingerprint};

/// A certificate is renewed at a point of its life between these two, drawn by chance.
const EARLIEST: f64 = 0.5;
/// See above.
const LATEST: f64 = 0.8;
/// Pause after the first failure; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// A node that others refuse trades in its certificate this long after it did so last, longer with each failure.
const TRADE_MIN: Duration = Duration::from_secs(2);
/// See above; also after a trade that went well.
const TRADE_MAX: Duration = Duration::from_secs(60);
/// Longest wait for a manager while this node starts.
const REVIVE: Duration = Duration::from_secs(3);
/// Longest sleep: a clock that is set is seen by then.
const LONG: Duration = Duration::from_secs(60);

/// What [`keep_credentials`] works with.
pub struct Custody {
    /// What is held when it begins.
    pub held: Credentials,
    /// This node.
    pub me: NodeId,
    /// The way to managers.
    pub uplink: Uplink,
    /// The disk.
    pub vault: Arc<Vault>,
    /// This node's key.
    pub key: Arc<NodeKey>,
    /// What connections are made with.
    pub tls: Arc<Tls>,
    /// What the log says.
    pub intent: watch::Receiver<Arc<Intent>>,
    /// This node's own part as a manager, while it has one: it may certify itself from its own log when all others are away
    /// or have expired too.
    pub own: watch::Receiver<Option<Local>>,
    /// What this node holds now, for the report.
    pub holding: watch::Sender<Holding>,
    /// The role that the certificate says.
    pub certified: watch::Sender<Role>,
    /// Why it cannot be kept fresh, for people.
    pub trouble: watch::Sender<Option<String>>,
    /// A certificate that was got in another way, by a token.
    pub proved: watch::Receiver<Option<Issued>>,
}

/// What is held for a set of credentials.
pub(crate) fn holding(c: &Credentials, tls: &Tls) -> Holding {
    let until = tls.not_after().duration_since(SystemTime::UNIX_EPOCH);
    Holding {
        roots: pems(&c.ca).map(|p| fingerprint(&p)).collect(),
        issuer: c.issuer.clone(),
        until: until.map_or(0, |d| d.as_secs()),
        gossip: c.gossip.iter().map(|k| k.id).collect(),
    }
}

/// The certificates of a PEM one by one.
fn pems(all: &str) -> impl Iterator<Item = String> + '_ {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    all.split(BEGIN).skip(1).map(|p| format!("{BEGIN}{p}"))
}

/// Keeps them until it is dropped. `use_keys` puts gossip keys to use.
pub async fn keep_credentials(c: Custody, use_keys: impl Fn(&[Key]) -> Result<(), String> + Send) {
    let mut held = c.held.clone();
    let (mut intent, mut keys, mut connected) = (c.intent.clone(), c.uplink.keys(), c.uplink.connected());
    let mut due = renewal(&c.tls);
    let mut retry = Retry::default();
    let mut trades = Retry::default();
    let mut refused = false;
    // What managers say of it, as far as one was asked.
    let mut because: Option<String> = None;
    let mut proved = c.proved.clone();
    loop {
        if proved.has_changed().unwrap_or(false)
            && let Some(issued) = proved.borrow_and_update().clone()
        {
            take(&c, &mut held, issued, "proved by a token");
            due = renewal(&c.tls);
            (retry, trades, refused, because) = (Retry::default(), Retry::default(), false, None);
        }
        let now = intent.borrow_and_update().clone();
        let told = keys.borrow_and_update().clone();
        // A view of the disk may be older than the credentials.
        let fresh = *connected.borrow_and_update() || c.own().is_some();
        if let Err(e) = adopt(&c, &mut held, &now, told, fresh, &use_keys) {
            tracing::warn!("new keys or roots were not kept: {e}");
        }
        if refused && trades.due() {
            refused = false;
            match trade(&c.tls, &c.key, &held, &now).await {
                Ok(issued) => {
                    take(&c, &mut held, issued, "traded in for a new one");
                    due = renewal(&c.tls);
                    (retry, trades, because) = (Retry::default(), Retry::resting(), None);
                }
                Err(e) => {
                    trades.failed(TRADE_MIN, TRADE_MAX);
                    let why = format!("managers do not accept this node: {e:#}");
                    because = Some(why.clone());
                    c.trouble(why);
                }
            }
        }
        let expired = c.tls.not_after() <= SystemTime::now();
        let why = reason(&held, &now, c.me, fresh, due);
        // Past its end no stream is had with it.
        refused |= expired && c.own().is_none();
        if let Some(why) = why
            && retry.due()
            && !(refused && trades.due())
        {
            let renewed = tokio::select! {
                r = renew(&c, &now) => r,
                () = c.tls.refused() => {
                    refused = true;
                    Err(anyhow::anyhow!("managers do not accept the present one"))
                }
            };
            match renewed {
                Ok(issued) => {
                    take(&c, &mut held, issued, why);
                    due = renewal(&c.tls);
                    (retry, because) = (Retry::default(), None);
                }
                Err(e) => {
                    // The nearer the end, the more often; a short life has short pauses.
                    let left = c.tls.not_after().duration_since(SystemTime::now());
                    let longest = (left.unwrap_or(PAUSE_MAX) / 8).clamp(PAUSE_MIN * 4, PAUSE_MAX);
                    retry.failed(PAUSE_MIN, longest);
                    // What managers say of this node stays in status, however the next try ends.
                    let said = because.clone().unwrap_or_else(|| format!("{e:#}"));
                    c.trouble(format!("the certificate was not renewed ({why}): {said}"));
                }
            }
            // Whatever has changed meanwhile is looked at first.
            continue;
        }
        let until_due = due.duration_since(SystemTime::now()).unwrap_or_default();
        let mut sleep = if why.is_some() { retry.left() } else { until_due }.min(LONG);
        if refused {
            sleep = sleep.min(trades.left());
        }
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            () = c.tls.refused() => refused = true,
            r = intent.changed() => if r.is_err() { return },
            r = keys.changed() => if r.is_err() { return },
            r = connected.changed() => if r.is_err() { return },
            r = proved.changed() => {
                if r.is_err() {
                    return;
                }
                proved.mark_changed();
            }
        }
    }
}

#[derive(Default)]
struct Retry {
    pause: Duration,
    at: Option<Instant>,
}

impl Retry {
    fn due(&self) -> bool {
        self.left() == Duration::ZERO
    }

    fn left(&self) -> Duration {
        self.at
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }

    fn failed(&mut self, least: Duration, longest: Duration) {
        self.pause = (self.pause * 2).clamp(least, longest.max(least));
        self.at = Some(Instant::now() + self.pause);
    }

    /// After a trade that went well.
    fn resting() -> Retry {
        Retry {
            pause: Duration::ZERO,
            at: Some(Instant::now() + TRADE_MAX),
        }
    }
}

impl Custody {
    fn own(&self) -> Option<Arc<dyn ManagerPort>> {
        self.own.borrow().as_ref().map(|l| l.hub.port.clone())
    }

    fn trouble(&self, why: String) {
        tracing::warn!("{why}");
        self.trouble.send_replace(Some(why));
    }
}

/// When to renew: by chance, once a certificate.
fn renewal(tls: &Tls) -> SystemTime {
    let (from, until) = tls.life();
    let part = EARLIEST + (LATEST - EARLIEST) * rand::random::<f64>();
    from + until.duration_since(from).unwrap_or_default().mul_f64(part)
}

/// Why the certificate must be renewed now, if it must.
fn reason(held: &Credentials, intent: &Intent, me: NodeId, fresh: bool, due: SystemTime) -> Option<&'static str> {
    let role = intent.nodes.get(&me).map(|n| n.role);
    if fresh && role.is_some_and(|r| r != held.role) {
        return Some("the role has changed");
    }
    let trust = &intent.trust;
    if fresh && !trust.issuer.is_empty() && trust.issuer != held.issuer {
        return Some("the CA has changed");
    }
    (due <= SystemTime::now()).then_some("its time has come")
}

/// Takes over what needs no asking: roots and gossip keys.
fn adopt(
    c: &Custody,
    held: &mut Credentials,
    intent: &Intent,
    keys: Vec<Key>,
    fresh: bool,
    use_keys: &impl Fn(&[Key]) -> Result<(), String>,
) -> Result<(), IdentityError> {
    let mut new = held.clone();
    if fresh && !intent.trust.roots.is_empty() {
        new.ca = intent.trust.roots.concat();
    }
    if !keys.is_empty() && keys != new.gossip {
        match use_keys(&keys) {
            Ok(()) => new.gossip = keys,
            Err(e) => tracing::error!("the new gossip keys cannot be used: {e}"),
        }
    }
    if new != *held {
        // Before it is reported: what was reported must survive a crash.
        new.save(&c.vault)?;
        if new.ca != held.ca {
            c.tls.replace(&new, &c.key)?;
            tracing::info!(roots = pems(&new.ca).count(), "the trusted roots have changed");
        }
        *held = new;
    }
    let now = holding(held, &c.tls);
    c.holding.send_if_modified(|h| std::mem::replace(h, now.clone()) != now);
    Ok(())
}

fn take(c: &Custody, held: &mut Credentials, issued: Issued, why: &str) {
    let mut new = held.clone();
    new.take(issued);
    let kept = new.save(&c.vault).and_then(|()| c.tls.replace(&new, &c.key));
    match kept {
        Ok(()) => {
            tracing::info!(role = ?new.role, "the certificate was renewed: {why}");
            c.certified.send_replace(new.role);
            *held = new;
            c.trouble.send_replace(None);
        }
        Err(e) => c.trouble(format!("the new certificate cannot be used: {e}")),
    }
}

async fn renew(c: &Custody, intent: &Intent) -> anyhow::Result<Issued> {
    let csr = c.key.csr("netd")?;
    let own = async || -> anyhow::Result<Issued> {
        let port = c.own().ok_or_else(|| anyhow::anyhow!("this node is no manager"))?;
        let role = intent.nodes.get(&c.me).map_or(Role::Worker, |n| n.role);
        Ok(port.certify(Csr::parse(&csr)?, c.me, role).await?)
    };
    // Nobody lets in a manager that has expired, and all may have: its own log is enough.
    if c.own().is_some() && c.tls.not_after() <= SystemTime::now() {
        return own().await;
    }
    match c.uplink.renew(csr.clone()).await {
        Ok(issued) => Ok(issued),
        Err(e) if c.own().is_some() => own().await.map_err(|_| e.into()),
        Err(e) => Err(e.into()),
    }
}

/// Trades in a certificate that has ended, before anything else is begun: without it no other node says what this one has
/// missed.
pub(crate) async fn revive(held: &mut Credentials, intent: &Intent, key: &NodeKey, vault: &Vault, tls: &Tls) {
    if tls.not_after() > SystemTime::now() {
        return;
    }
    match tokio::time::timeout(REVIVE, trade(tls, key, held, intent)).await {
        Ok(Ok(issued)) => {
            held.take(issued);
            match held.save(vault).and_then(|()| tls.replace(held, key)) {
                Ok(()) => tracing::info!("the certificate had ended and was traded in for a new one"),
                Err(e) => tracing::warn!("the new certificate cannot be used: {e}"),
            }
        }
        Ok(Err(e)) => tracing::warn!("the certificate has ended, and no manager has taken it in trade yet: {e:#}"),
        Err(_) => tracing::warn!("the certificate has ended, and no manager answers yet"),
    }
}

/// Trades the certificate in at any manager that answers.
async fn trade(tls: &Tls, key: &NodeKey, held: &Credentials, intent: &Intent) -> anyhow::Result<Issued> {
    let others = intent
        .nodes
        .iter()
        .filter(|(id, n)| n.role == Role::Manager && **id != held.node);
    let known = others.filter_map(|(_, n)| n.rpc.as_ref()?.parse().ok());
    let first = held.managers.iter().filter_map(|m| m.parse().ok());
    let all: BTreeSet<SocketAddr> = known.chain(first).collect();
    let mut all: Vec<SocketAddr> = all.into_iter().collect();
    all.shuffle(&mut rand::rng());
    let mut last = anyhow::anyhow!("no other manager's address is known");
    for addr in all {
        match trade_in(tls, addr, key, held).await {
            Ok(issued) => return Ok(issued),
            Err(e) => last = e.context(addr.to_string()),
        }
    }
    Err(last)
}
