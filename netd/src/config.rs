//! Settings: a TOML file, then the environment (`NETD_<SECTION>__<KEY>`), then defaults. Unknown keys are errors.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::place::Where;

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {source}; try: netd --config /etc/netd/config.toml")]
    Read {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("configuration {path}: {source}")]
    Syntax {
        /// File.
        path: PathBuf,
        /// Cause, with line and column.
        source: Box<toml::de::Error>,
    },
    /// A key is unknown or a value has the wrong shape.
    #[error("configuration: {0}; try: compare with the table of settings in README.md")]
    Shape(String),
    /// A value contradicts another or is out of range.
    #[error("configuration: {key} {why}; try: {hint}")]
    Value {
        /// Dotted key.
        key: &'static str,
        /// What is wrong.
        why: String,
        /// A good value.
        hint: &'static str,
    },
}

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This node and its places.
    pub node: NodeSection,
    /// Control plane.
    pub cluster: ClusterSection,
    /// Overlay and balancing.
    pub datapath: DatapathSection,
    /// Names.
    pub dns: DnsSection,
    /// Logs.
    pub log: LogSection,
}

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSection {
    /// Name shown to people; default: the host name.
    pub name: Option<String>,
    /// What must survive a reboot. Default `/var/lib/netd`.
    pub state_dir: PathBuf,
    /// Socket, namespaces: what need not. Default `/run/netd`.
    pub run_dir: PathBuf,
    /// Folder on a bpffs for maps and links. Default `/sys/fs/bpf/netd`. Where there is no bpffs yet, the eBPF data path
    /// mounts one on the folder above it: nothing else of netd's may be there.
    pub bpffs_dir: PathBuf,
}

/// `[cluster]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSection {
    /// Address and TCP port of the managers' RPC. Default `0.0.0.0:2377`.
    pub listen: SocketAddr,
    /// Address that others reach this node by, or the device that has it. Default: the only address that is not loopback,
    /// or, of several, the one that leads to the manager joined; it is chosen anew when the host's addresses change.
    pub advertise: Option<Where>,
    /// UDP and TCP port of gossip. Default 7946.
    pub gossip_port: u16,
    /// Managers to join at, at first boot, with the token in `token_file`: addresses, or URLs as `netctl discover` takes
    /// them. Each is tried, again and again. A node that is in a cluster joins none. Default: none.
    pub join: Vec<String>,
    /// File with the token. Default: none.
    pub token_file: Option<PathBuf>,
    /// Registry that this node is announced in while it is a manager: `etcd://`, `consul://` or `zk://`. Default: none.
    pub announce: Option<String>,
    /// Folder of the managers' log: a disk of its own makes changes faster. Default `raft` in the state folder.
    pub log_dir: Option<PathBuf>,
    /// From a node's confirmed death to its slots being placed elsewhere. Default `10s`. This and the next two are what a
    /// cluster made on this node begins with; later `netctl cluster update` changes them for all nodes.
    #[serde(deserialize_with = "duration")]
    pub node_grace: Duration,
    /// The same when only its daemon is silent. Default `10m`.
    #[serde(deserialize_with = "duration")]
    pub daemon_grace: Duration,
    /// Longest wait for all living nodes to acknowledge a drain. Default `5s`.
    #[serde(deserialize_with = "duration")]
    pub drain_ack_timeout: Duration,
}

/// `[datapath]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatapathSection {
    /// `auto` (IPVS where the kernel has it, else eBPF), `ebpf` or `ipvs`. A change counts from netd's next start on.
    /// Under endpoints that are here an explicit one cuts their connections through services for a moment, and `auto`
    /// changes nothing: drain the node before.
    pub mode: Mode,
    /// Address that VXLAN is sent to, or the device that has it: IPv4, or with IPVS either family, the same on all nodes.
    /// Default: the advertised one.
    pub address: Option<Where>,
    /// UDP port of VXLAN in a cluster made on this node. Default 4789 (RFC 7348). Later `netctl cluster update
    /// data-path-port=N` changes it, on all nodes.
    pub port: u16,
}

/// `[datapath] mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// IPVS where the kernel offers it, else eBPF; on a node that used eBPF last, once it is drained.
    #[default]
    Auto,
    /// eBPF programs.
    Ebpf,
    /// IPVS and MARK rules.
    Ipvs,
}

/// `[dns]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsSection {
    /// Address inside task namespaces, port 53. Default 127.0.0.11.
    pub address: Ipv4Addr,
    /// File that names the host's resolvers, for foreign names. Default `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a list such as `info,netd::gossip=debug`. Default `info`.
    pub level: String,
    /// Default `text`.
    pub format: LogFormat,
}

/// `[log] format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for NodeSection {
    fn default() -> Self {
        NodeSection {
            name: None,
            state_dir: "/var/lib/netd".into(),
            run_dir: "/run/netd".into(),
            bpffs_dir: "/sys/fs/bpf/netd".into(),
        }
    }
}

impl Default for ClusterSection {
    fn default() -> Self {
        ClusterSection {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 2377)),
            advertise: None,
            join: Vec::new(),
            token_file: None,
            announce: None,
            gossip_port: 7946,
            log_dir: None,
            node_grace: Duration::from_secs(10),
            daemon_grace: Duration::from_secs(600),
            drain_ack_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for DatapathSection {
    fn default() -> Self {
        DatapathSection {
            mode: Mode::Auto,
            address: None,
            port: 4789,
        }
    }
}

impl Default for DnsSection {
    fn default() -> Self {
        DnsSection {
            address: Ipv4Addr::new(127, 0, 0, 11),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

impl Default for LogSection {
    fn default() -> Self {
        LogSection {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

impl Config {
    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.node.run_dir.join("netd.sock")
    }

    /// Folder of the managers' log.
    pub fn log_dir(&self) -> PathBuf {
        let default = || self.node.state_dir.join("raft");
        self.cluster.log_dir.clone().unwrap_or_else(default)
    }

    /// Folder of the namespaces that netd makes.
    pub fn netns_dir(&self) -> PathBuf {
        self.node.run_dir.join("netns")
    }

    /// Reads the file, if one is given, and the environment.
    pub fn load(file: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Config, ConfigError> {
        let mut table = toml::Table::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.into(),
                source,
            })?;
            table = text.parse::<toml::Table>().map_err(|source| ConfigError::Syntax {
                path: path.into(),
                source: Box::new(source),
            })?;
        }
        overlay(&mut table, env)?;
        let config = Config::deserialize(toml::Value::Table(table)).map_err(|e| ConfigError::Shape(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |key, why: &str, hint| {
            Err(ConfigError::Value {
                key,
                why: why.to_owned(),
                hint,
            })
        };
        if self.datapath.port == 0 || self.cluster.gossip_port == 0 {
            return value("datapath.port / cluster.gossip_port", "is 0", "4789 and 7946");
        }
        if !self.cluster.join.is_empty() && self.cluster.token_file.is_none() {
            return value(
                "cluster.token_file",
                "is missing beside cluster.join",
                "token_file = \"/etc/netd/token\"",
            );
        }
        for (key, text) in (self.cluster.join.iter().map(|j| ("cluster.join", j)))
            .chain(self.cluster.announce.iter().map(|a| ("cluster.announce", a)))
        {
            if let Err(e) = text.parse::<crate::discover::Url>() {
                return value(key, &e.to_string(), e.hint);
            }
        }
        if !self.dns.address.is_loopback() || self.dns.address == Ipv4Addr::LOCALHOST {
            return value(
                "dns.address",
                "is not a loopback address other than 127.0.0.1",
                "127.0.0.11",
            );
        }
        let log_dir = self.log_dir();
        for (key, dir) in [
            ("cluster.log_dir", &log_dir),
            ("node.state_dir", &self.node.state_dir),
            ("node.run_dir", &self.node.run_dir),
            ("node.bpffs_dir", &self.node.bpffs_dir),
            ("dns.resolv_conf", &self.dns.resolv_conf),
        ] {
            if !dir.is_absolute() {
                return value(key, "is not an absolute path", "/var/lib/netd");
            }
        }
        match self.hidden() {
            Some(why) => value("node.bpffs_dir", &why, "/sys/fs/bpf/netd"),
            None => Ok(()),
        }
    }

    /// What would be hidden by the bpffs that the eBPF data path mounts where there is none, which `auto` may come to at any
    /// start. Found out later it is an EPERM for a file whose folder was there a moment ago.
    fn hidden(&self) -> Option<String> {
        if self.datapath.mode == Mode::Ipvs {
            return None;
        }
        let dir = &self.node.bpffs_dir;
        let mount = dir.parent().unwrap_or(dir);
        let log_dir = self.log_dir();
        let places = [
            ("node.state_dir", Some(&self.node.state_dir)),
            ("node.run_dir", Some(&self.node.run_dir)),
            ("cluster.log_dir", Some(&log_dir)),
            ("cluster.token_file", self.cluster.token_file.as_ref()),
            ("dns.resolv_conf", Some(&self.dns.resolv_conf)),
        ];
        let hides = |at: &Path| at.starts_with(mount) || real(at).starts_with(real(mount));
        let (key, at) = places
            .into_iter()
            .find_map(|(key, at)| Some((key, at.filter(|at| hides(at))?)))?;
        Some(format!(
            "= {} hides {key} = {}; the folder above it, {}, is mounted as a bpffs, which takes no files",
            dir.display(),
            at.display(),
            mount.display()
        ))
    }
}

/// A path without symbolic links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let known = path.ancestors().find_map(|a| {
        let rest = path.strip_prefix(a).ok()?;
        Some(a.canonicalize().ok()?.join(rest))
    });
    known.unwrap_or_else(|| path.to_owned())
}

/// `NETD_DATAPATH__PORT=4790` becomes `datapath.port`. A value that reads as TOML is taken as such, else as a string.
fn overlay(table: &mut toml::Table, env: impl Iterator<Item = (String, String)>) -> Result<(), ConfigError> {
    for (name, text) in env {
        let Some((section, key)) = name.strip_prefix("NETD_").and_then(|n| n.split_once("__")) else {
            continue;
        };
        let value = format!("v = {text}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut t| t.remove("v"))
            .unwrap_or(toml::Value::String(text));
        let section = table
            .entry(section.to_ascii_lowercase())
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        match section {
            toml::Value::Table(t) => t.insert(key.to_ascii_lowercase(), value),
            _ => {
                return Err(ConfigError::Shape(format!(
                    "{name} sets a key of something that is no section"
                )));
            }
        };
    }
    Ok(())
}

/// `10s`, `500ms`, `10m`.
pub fn parse_duration(s: &str) -> Option<Duration> {
    let at = s.find(|c: char| !c.is_ascii_digit())?;
    let n: u64 = s.get(..at)?.parse().ok()?;
    let ms = match s.get(at..)? {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(n.checked_mul(ms)?))
}

fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let s = String::deserialize(d)?;
    parse_duration(&s).ok_or_else(|| D::Error::custom(format!("{s:?} is no duration such as 10s, 500ms or 10m")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let dir = std::env::temp_dir().join(format!("netd-config-{}-{:p}", std::process::id(), text));
        std::fs::write(&dir, text).unwrap();
        let r = Config::load(Some(&dir), env.iter().map(|(a, b)| (a.to_string(), b.to_string())));
        std::fs::remove_file(&dir).unwrap();
        r
    }

    #[test]
    fn environment_wins_over_the_file() {
        let c = load(
            "[datapath]\nport = 4790\n[cluster]\nnode_grace = \"3s\"",
            &[("NETD_DATAPATH__PORT", "4791"), ("NETD_NODE__NAME", "a")],
        )
        .unwrap();
        assert_eq!(c.datapath.port, 4791);
        assert_eq!(c.cluster.node_grace, Duration::from_secs(3));
        assert_eq!(c.node.name.as_deref(), Some("a"));
    }

    #[test]
    fn what_is_unknown_or_wrong_is_refused_by_name() {
        for (text, env, part) in [
            ("[datapath]\nprot = 1", None, "prot"),
            ("[what]\na = 1", None, "what"),
            ("[cluster]\nnode_grace = \"fast\"", None, "fast"),
            ("[datapath]\nmode = \"lvs\"", None, "lvs"),
            ("[dns]\naddress = \"10.0.0.1\"", None, "dns.address"),
            ("", Some(("NETD_DATAPATH__PROT", "1")), "prot"),
            ("[node", None, "configuration"),
        ] {
            let e = load(text, env.as_slice()).unwrap_err().to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
    }

    #[test]
    fn nothing_of_ours_is_hidden_by_the_bpffs() {
        let refused = |text: &str, hidden: &str| {
            let e = load(text, &[]).expect_err(text).to_string();
            assert!(e.contains("node.bpffs_dir") && e.contains(hidden), "{text}: {e}");
            assert!(e.contains("try: /sys/fs/bpf/netd"), "{text}: {e}");
        };
        // Beside the rest of it: what is easily written.
        refused(
            "[node]\nbpffs_dir = \"/var/lib/netd/bpf\"",
            "node.state_dir = /var/lib/netd;",
        );
        refused("[node]\nbpffs_dir = \"/run/netd/bpf\"", "node.run_dir = /run/netd;");
        // Beneath, however that is written.
        refused(
            "[node]\nstate_dir = \"/run/one/state\"\nbpffs_dir = \"/run//one/./bpf\"",
            "node.state_dir",
        );
        refused("[node]\nbpffs_dir = \"/netd\"", "node.state_dir");
        refused("[node]\nbpffs_dir = \"/\"", "node.state_dir");
        // Other places of ours.
        refused(
            "[cluster]\nlog_dir = \"/fast/log\"\n[node]\nbpffs_dir = \"/fast/bpf\"",
            "cluster.log_dir = /fast/log;",
        );
        refused(
            "[cluster]\ntoken_file = \"/one/token\"\n[node]\nbpffs_dir = \"/one/bpf\"",
            "cluster.token_file",
        );
        refused("[node]\nbpffs_dir = \"/etc/bpf\"", "dns.resolv_conf");

        for good in [
            "",
            // A folder of its own is what it is mounted on.
            "[node]\nbpffs_dir = \"/run/netd/bpf/netd\"",
            // Whose name begins with the same letters is elsewhere.
            "[node]\nstate_dir = \"/run/one-state\"\nbpffs_dir = \"/run/one/bpf\"",
            // It mounts none.
            "[datapath]\nmode = \"ipvs\"\n[node]\nbpffs_dir = \"/run/netd/bpf\"",
        ] {
            load(good, &[]).expect(good);
        }
    }

    #[test]
    fn links_lead_to_what_is_hidden() {
        let dir = std::env::temp_dir().join(format!("netd-config-links-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("there")).unwrap();
        std::os::unix::fs::symlink(dir.join("there"), dir.join("link")).unwrap();
        let text = format!(
            "[node]\nstate_dir = \"{0}/there/new/state\"\nbpffs_dir = \"{0}/link/new/bpf\"",
            dir.display()
        );
        let e = load(&text, &[]).map(|_| ()).map_err(|e| e.to_string());
        std::fs::remove_dir_all(&dir).unwrap();
        let e = e.expect_err("the same folder by another name");
        assert!(e.contains("node.state_dir"), "{e}");
    }
}
