//! Settings of the cluster as a whole: values in the log, the same on every node, changed live.
//!
//! A node's own settings (addresses, ports, folders) are in its configuration file; what the nodes must agree on is here.

mod key;
#[cfg(test)]
mod tests;
mod text;

use std::{net::Ipv4Addr, ops::RangeInclusive, time::Duration};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use key::Key;
pub use text::{parse_time, show_time};

/// Most external signers.
pub const MAX_SIGNERS: usize = 4;
/// Longest URL of one, octets.
pub const MAX_URL: usize = 512;
/// Longest certificate of one, octets.
pub const MAX_PEM: usize = 16 << 10;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

/// What all nodes of a cluster agree on beside its objects. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSettings {
    /// Life of a node's certificate; it is renewed at 50-80 % of it. 10 s to 87,600 h, default 2,160 h (90 days).
    pub cert_expiry_ms: u64,
    /// Between two signs of life on a node's stream; four missed ones end it. 500 ms to 1 min, default 5 s.
    pub dispatcher_heartbeat_ms: u64,
    /// Log entries between two snapshots. 10 to 10,000,000, default 10,000.
    pub snapshot_interval: u64,
    /// Log entries kept behind a snapshot, for managers that lag. 0 to 1,000,000, default 500.
    pub log_retention: u64,
    /// States kept of a slot, the present one among them. 1 to 100, default 5.
    pub task_history_limit: u64,
    /// Managers' keys at rest are sealed with a key that a person holds. Default no.
    pub autolock: bool,
    /// From a node's confirmed death to its slots being placed elsewhere. 0 to 24 h, default 10 s.
    pub node_grace_ms: u64,
    /// The same when only its daemon is silent. 0 to 720 h, default 10 min.
    pub daemon_grace_ms: u64,
    /// Longest wait for all living nodes to acknowledge a drain. 0 to 5 min, default 5 s.
    pub drain_ack_timeout_ms: u64,
    /// Between two rotations of the gossip keys. 1 s to 8,760 h, default 12 h.
    pub gossip_key_rotation_ms: u64,
    /// Who signs certificates instead of the managers; the first that answers. At most [`MAX_SIGNERS`], default none.
    pub external_ca: Vec<ExternalCa>,
    /// Pool that networks without `--subnet` are cut from, /8 to /24. Default 10.128.0.0/9. A change concerns later
    /// networks alone.
    pub default_addr_pool: Ipv4Net,
    /// Prefix length of what is cut from it; a smaller pool is given whole. 8 to 24, default 16.
    pub default_addr_pool_mask_length: u8,
    /// The same for IPv6, a /48 cut in /64s. Always set in a cluster; default: a random ULA prefix (RFC 4193) at init.
    pub default_addr_pool6: Option<Ipv6Net>,
    /// UDP port of VXLAN on all nodes; a change cuts the data path for a moment. 1024 to 65535, default 4789 (RFC 7348).
    pub data_path_port: u16,
}

/// A signer outside of the cluster: takes a CSR by HTTPS, answers a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalCa {
    /// `https://...`, at most [`MAX_URL`] octets.
    pub url: String,
    /// Certificate (PEM) that its HTTPS is checked against; none: the cluster's own CA.
    #[serde(default)]
    pub ca: Option<String>,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        ClusterSettings {
            cert_expiry_ms: 2160 * HOUR,
            dispatcher_heartbeat_ms: 5_000,
            snapshot_interval: 10_000,
            log_retention: 500,
            task_history_limit: 5,
            autolock: false,
            node_grace_ms: 10_000,
            daemon_grace_ms: 10 * MINUTE,
            drain_ack_timeout_ms: 5_000,
            gossip_key_rotation_ms: 12 * HOUR,
            external_ca: Vec::new(),
            default_addr_pool: Ipv4Net::new_assert(Ipv4Addr::new(10, 128, 0, 0), 9),
            default_addr_pool_mask_length: 16,
            default_addr_pool6: None,
            data_path_port: 4789,
        }
    }
}

/// A value of a setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// Milliseconds.
    Time(u64),
    /// A number.
    Count(u64),
    /// Yes or no.
    Switch(bool),
    /// An IPv4 pool.
    Pool(Ipv4Net),
    /// An IPv6 pool.
    Pool6(Ipv6Net),
    /// Signers.
    Signers(Vec<ExternalCa>),
}

/// One setting with its new value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which.
    pub key: Key,
    /// To what.
    pub value: Value,
}

/// Why a setting cannot be changed so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SettingError {
    /// What and why.
    pub message: String,
    /// What would do: the keys there are, or the range.
    pub hint: String,
}

impl From<SettingError> for crate::ApiError {
    fn from(e: SettingError) -> Self {
        crate::ApiError::new(crate::Code::Invalid, e.message, e.hint)
    }
}

/// Where a setting lives, and what it may be.
enum Slot<'a> {
    Time(&'a mut u64, RangeInclusive<u64>),
    Count(&'a mut u64, RangeInclusive<u64>),
    Switch(&'a mut bool),
    Pool(&'a mut Ipv4Net),
    Mask(&'a mut u8, RangeInclusive<u8>),
    Port(&'a mut u16, RangeInclusive<u16>),
    Pool6(&'a mut Option<Ipv6Net>),
    Signers(&'a mut Vec<ExternalCa>),
}

impl ClusterSettings {
    /// The one table of what there is.
    fn slot(&mut self, key: Key) -> Slot<'_> {
        match key {
            Key::CertExpiry => Slot::Time(&mut self.cert_expiry_ms, 10_000..=87_600 * HOUR),
            Key::DispatcherHeartbeat => Slot::Time(&mut self.dispatcher_heartbeat_ms, 500..=MINUTE),
            Key::SnapshotInterval => Slot::Count(&mut self.snapshot_interval, 10..=10_000_000),
            Key::LogRetention => Slot::Count(&mut self.log_retention, 0..=1_000_000),
            Key::TaskHistoryLimit => Slot::Count(&mut self.task_history_limit, 1..=100),
            Key::Autolock => Slot::Switch(&mut self.autolock),
            Key::NodeGrace => Slot::Time(&mut self.node_grace_ms, 0..=24 * HOUR),
            Key::DaemonGrace => Slot::Time(&mut self.daemon_grace_ms, 0..=720 * HOUR),
            Key::DrainAckTimeout => Slot::Time(&mut self.drain_ack_timeout_ms, 0..=5 * MINUTE),
            Key::GossipKeyRotation => Slot::Time(&mut self.gossip_key_rotation_ms, 1_000..=8_760 * HOUR),
            Key::ExternalCa => Slot::Signers(&mut self.external_ca),
            Key::DefaultAddrPool => Slot::Pool(&mut self.default_addr_pool),
            Key::DefaultAddrPoolMaskLength => Slot::Mask(&mut self.default_addr_pool_mask_length, 8..=24),
            Key::DataPathPort => Slot::Port(&mut self.data_path_port, 1024..=u16::MAX),
            Key::DefaultAddrPool6 => Slot::Pool6(&mut self.default_addr_pool6),
        }
    }

    /// Sets one value. `Err`: out of its range, or of another kind; nothing is changed. Whether a pool is good for
    /// networks is the log's to say.
    pub fn set(&mut self, change: &Change) -> Result<(), SettingError> {
        let key = change.key;
        let wrong = |why: &str| {
            Err(SettingError {
                message: format!("{}: {why}", key.name()),
                hint: key.hint(),
            })
        };
        match (self.slot(key), &change.value) {
            (Slot::Time(at, range), Value::Time(v)) => {
                if !range.contains(v) {
                    return wrong(&format!("{} is not {}", show_time(*v), key.range()));
                }
                *at = *v;
            }
            (Slot::Count(at, range), Value::Count(v)) => {
                if !range.contains(v) {
                    return wrong(&format!("{v} is not {}", key.range()));
                }
                *at = *v;
            }
            (Slot::Mask(at, range), Value::Count(v)) => match u8::try_from(*v) {
                Ok(v) if range.contains(&v) => *at = v,
                _ => return wrong(&format!("{v} is not {}", key.range())),
            },
            (Slot::Port(at, range), Value::Count(v)) => match u16::try_from(*v) {
                Ok(v) if range.contains(&v) => *at = v,
                _ => return wrong(&format!("{v} is not {}", key.range())),
            },
            (Slot::Switch(at), Value::Switch(v)) => *at = *v,
            (Slot::Pool(at), Value::Pool(v)) => *at = *v,
            (Slot::Pool6(at), Value::Pool6(v)) => *at = Some(*v),
            (Slot::Signers(at), Value::Signers(v)) => {
                if let Some(why) = wrong_signers(v) {
                    return wrong(&why);
                }
                v.clone_into(at);
            }
            _ => return wrong("the value is of another kind"),
        }
        Ok(())
    }

    /// Holds every value against its range: those of init come from files and flags.
    pub fn check(&self) -> Result<(), SettingError> {
        let (mut all, mut scratch) = (self.clone(), ClusterSettings::default());
        for key in Key::ALL {
            let value = match all.slot(*key) {
                Slot::Time(v, _) => Value::Time(*v),
                Slot::Count(v, _) => Value::Count(*v),
                Slot::Mask(v, _) => Value::Count(u64::from(*v)),
                Slot::Port(v, _) => Value::Count(u64::from(*v)),
                Slot::Switch(v) => Value::Switch(*v),
                Slot::Pool(v) => Value::Pool(*v),
                Slot::Pool6(Some(v)) => Value::Pool6(*v),
                Slot::Pool6(None) => continue,
                Slot::Signers(v) => Value::Signers(v.clone()),
            };
            scratch.set(&Change { key: *key, value })?;
        }
        Ok(())
    }

    /// Every key with its value as [`Change::parse`] reads it.
    pub fn list(&self) -> Vec<(Key, String)> {
        let mut all = self.clone();
        Key::ALL.iter().map(|k| (*k, text::show(&all.slot(*k)))).collect()
    }

    /// [`ClusterSettings::cert_expiry_ms`].
    pub fn cert_expiry(&self) -> Duration {
        Duration::from_millis(self.cert_expiry_ms)
    }
    /// [`ClusterSettings::dispatcher_heartbeat_ms`].
    pub fn dispatcher_heartbeat(&self) -> Duration {
        Duration::from_millis(self.dispatcher_heartbeat_ms)
    }
    /// [`ClusterSettings::node_grace_ms`].
    pub fn node_grace(&self) -> Duration {
        Duration::from_millis(self.node_grace_ms)
    }
    /// [`ClusterSettings::daemon_grace_ms`].
    pub fn daemon_grace(&self) -> Duration {
        Duration::from_millis(self.daemon_grace_ms)
    }
    /// [`ClusterSettings::drain_ack_timeout_ms`].
    pub fn drain_ack_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_ack_timeout_ms)
    }
    /// [`ClusterSettings::gossip_key_rotation_ms`].
    pub fn gossip_key_rotation(&self) -> Duration {
        Duration::from_millis(self.gossip_key_rotation_ms)
    }
}

fn wrong_signers(all: &[ExternalCa]) -> Option<String> {
    if all.len() > MAX_SIGNERS {
        return Some(format!("{} signers, more than {MAX_SIGNERS}", all.len()));
    }
    all.iter().find_map(|s| {
        let url = s.url.chars().take(80).collect::<String>();
        if s.url.len() > MAX_URL || !s.url.starts_with("https://") || s.url.chars().any(char::is_whitespace) {
            return Some(format!("{url:?} is no https:// URL of at most {MAX_URL} octets"));
        }
        let pem = s.ca.as_deref()?;
        (pem.len() > MAX_PEM || !pem.contains("-----BEGIN CERTIFICATE-----"))
            .then(|| format!("the cacert of {url} is no PEM certificate of at most {MAX_PEM} octets"))
    })
}
