use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Change, ClusterSettings, SettingError, Slot, show_time, text};

/// Name of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// `cert-expiry`
    CertExpiry,
    /// `dispatcher-heartbeat`
    DispatcherHeartbeat,
    /// `snapshot-interval`
    SnapshotInterval,
    /// `log-retention`
    LogRetention,
    /// `task-history-limit`
    TaskHistoryLimit,
    /// `autolock`
    Autolock,
    /// `node-grace`
    NodeGrace,
    /// `daemon-grace`
    DaemonGrace,
    /// `drain-ack-timeout`
    DrainAckTimeout,
    /// `gossip-key-rotation`
    GossipKeyRotation,
    /// `external-ca`
    ExternalCa,
    /// `default-addr-pool`
    DefaultAddrPool,
    /// `default-addr-pool-mask-length`
    DefaultAddrPoolMaskLength,
    /// `default-addr-pool6`
    #[serde(rename = "default-addr-pool6")]
    DefaultAddrPool6,
    /// `data-path-port`
    DataPathPort,
}

impl Key {
    /// All, in the order in which they are shown.
    pub const ALL: &[Key] = &[
        Key::CertExpiry,
        Key::ExternalCa,
        Key::Autolock,
        Key::GossipKeyRotation,
        Key::DispatcherHeartbeat,
        Key::NodeGrace,
        Key::DaemonGrace,
        Key::DrainAckTimeout,
        Key::TaskHistoryLimit,
        Key::SnapshotInterval,
        Key::LogRetention,
        Key::DefaultAddrPool,
        Key::DefaultAddrPoolMaskLength,
        Key::DefaultAddrPool6,
        Key::DataPathPort,
    ];

    /// As it is typed.
    pub const fn name(self) -> &'static str {
        match self {
            Key::CertExpiry => "cert-expiry",
            Key::DispatcherHeartbeat => "dispatcher-heartbeat",
            Key::SnapshotInterval => "snapshot-interval",
            Key::LogRetention => "log-retention",
            Key::TaskHistoryLimit => "task-history-limit",
            Key::Autolock => "autolock",
            Key::NodeGrace => "node-grace",
            Key::DaemonGrace => "daemon-grace",
            Key::DrainAckTimeout => "drain-ack-timeout",
            Key::GossipKeyRotation => "gossip-key-rotation",
            Key::ExternalCa => "external-ca",
            Key::DefaultAddrPool => "default-addr-pool",
            Key::DefaultAddrPoolMaskLength => "default-addr-pool-mask-length",
            Key::DefaultAddrPool6 => "default-addr-pool6",
            Key::DataPathPort => "data-path-port",
        }
    }

    /// What it does, in a line.
    pub const fn help(self) -> &'static str {
        match self {
            Key::CertExpiry => "life of a node's certificate, renewed at 50-80 % of it",
            Key::DispatcherHeartbeat => "between two signs of life on a node's stream",
            Key::SnapshotInterval => "log entries between two snapshots",
            Key::LogRetention => "log entries kept behind a snapshot, for managers that lag",
            Key::TaskHistoryLimit => "states kept of a slot, the present one among them",
            Key::Autolock => "managers' keys at rest are sealed with a key that you keep",
            Key::NodeGrace => "from a node's confirmed death to its slots being placed elsewhere",
            Key::DaemonGrace => "the same when only its daemon is silent",
            Key::DrainAckTimeout => "longest wait for all living nodes to acknowledge a drain",
            Key::GossipKeyRotation => "between two rotations of the gossip keys",
            Key::ExternalCa => "who signs certificates instead of the managers",
            Key::DefaultAddrPool => "pool that later networks without --subnet are cut from",
            Key::DefaultAddrPoolMaskLength => "prefix length of what is cut from it",
            Key::DefaultAddrPool6 => "the same for IPv6, cut in /64s",
            Key::DataPathPort => "UDP port of VXLAN; a change cuts the data path for a moment",
        }
    }

    /// What it may be: `10s to 87600h`.
    pub fn range(self) -> String {
        match ClusterSettings::default().slot(self) {
            Slot::Time(_, r) => format!("{} to {}", show_time(*r.start()), show_time(*r.end())),
            Slot::Count(_, r) => format!("{} to {}", r.start(), r.end()),
            Slot::Mask(_, r) => format!("{} to {}", r.start(), r.end()),
            Slot::Port(_, r) => format!("{} to {}", r.start(), r.end()),
            Slot::Switch(_) => "true or false".to_owned(),
            Slot::Pool(_) => "an IPv4 subnet, /8 to /24".to_owned(),
            Slot::Pool6(_) => "an IPv6 subnet, /48".to_owned(),
            Slot::Signers(_) => "url=https://HOST/PATH[,cacert=FILE][;url=...], empty for none".to_owned(),
        }
    }

    /// The value that it has when nobody says anything.
    pub fn default_text(self) -> String {
        match self {
            Key::DefaultAddrPool6 => "random ULA /48".to_owned(),
            _ => text::show(&ClusterSettings::default().slot(self)),
        }
    }

    /// An example of a good value, with its range.
    pub(super) fn hint(self) -> String {
        let example = match self {
            Key::ExternalCa => "url=https://ca.example.net/sign".to_owned(),
            Key::DefaultAddrPool6 => "fd12:3456:789a::/48".to_owned(),
            _ => self.default_text(),
        };
        format!("{}={example} ({})", self.name(), self.range())
    }
}

impl FromStr for Key {
    type Err = SettingError;
    fn from_str(s: &str) -> Result<Self, SettingError> {
        Key::ALL.iter().copied().find(|k| k.name() == s).ok_or_else(|| {
            let all: Vec<&str> = Key::ALL.iter().map(|k| k.name()).collect();
            let shown: String = s.chars().take(80).collect();
            SettingError {
                message: format!("{shown:?} is no setting of the cluster"),
                hint: format!("one of: {}", all.join(", ")),
            }
        })
    }
}

impl Change {
    /// Reads `key` and `value` as people type them, and checks the range.
    pub fn parse(key: &str, value: &str) -> Result<Change, SettingError> {
        let key: Key = key.parse()?;
        let mut scratch = ClusterSettings::default();
        let Some(value) = text::read(&scratch.slot(key), value) else {
            let shown: String = value.chars().take(80).collect();
            return Err(SettingError {
                message: format!("{}: {shown:?} is not {}", key.name(), key.range()),
                hint: key.hint(),
            });
        };
        let change = Change { key, value };
        scratch.set(&change)?;
        Ok(change)
    }
}
