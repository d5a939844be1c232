//! Where this node is: which of the host's addresses the others use, and who holds the ports.
//!
//! An address is an attribute, not the identity. One that was asked for stays as asked; one that was chosen follows the
//! host: `choose` says which it is now, [`Place`] remembers how that was decided.

mod choose;
mod ports;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use model::{ApiError, BadValue};
use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    daemon::internal,
    reconcile::{carries_ipv6, host},
};

pub use choose::{Local, choose};
pub use ports::{PortUse, auto_ports_in_use, port_use, refuse_taken};

/// This node's address on disk, in the state directory.
const FILE: &str = "node.json";
/// Documentation address (RFC 5737): asking for the way there sends nothing and yields the default route's source.
const ANYWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The same for IPv6 (RFC 3849).
const ANYWHERE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// An address of this host, or the device that has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Where {
    /// This one; it need not be here (a node behind NAT is reached by another one).
    Address(IpAddr),
    /// The first of a device, whichever that is.
    Interface(String),
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Where::Address(a) => write!(f, "{a}"),
            Where::Interface(i) => f.write_str(i),
        }
    }
}

impl From<Where> for String {
    fn from(w: Where) -> String {
        w.to_string()
    }
}

impl TryFrom<String> for Where {
    type Error = BadValue;
    fn try_from(s: String) -> Result<Self, BadValue> {
        s.parse()
    }
}

impl FromStr for Where {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        let bad = |why| BadValue::new("address", s, why, "198.51.100.1 or eth0");
        if let Ok(a) = s.parse::<IpAddr>() {
            let a = a.to_canonical();
            // A link-local one is told apart by its device, which others do not know.
            let local = matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
            return match local || a.is_unspecified() || a.is_multicast() || a == IpAddr::V4(Ipv4Addr::BROADCAST) {
                true => Err(bad("is no address of one host")),
                false => Ok(Where::Address(a)),
            };
        }
        // dev_valid_name() of net/core/dev.c. A name with dots and digits alone is a mistyped address.
        let name = (1..16).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':'));
        match name && s.bytes().any(|b| b.is_ascii_alphabetic()) {
            true => Ok(Where::Interface(s.to_owned())),
            false => Err(bad("is neither an IP address nor the name of a device")),
        }
    }
}

/// [`Where`] with a port: `198.51.100.1`, `198.51.100.1:2377`, `[2001:db8::1]:2377`, `eth0:2377`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// Where.
    pub at: Where,
    /// Port, when one is said.
    pub port: Option<u16>,
}

impl FromStr for Spot {
    type Err = BadValue;
    fn from_str(s: &str) -> Result<Self, BadValue> {
        match s.parse::<Where>() {
            Ok(at) => return Ok(Spot { at, port: None }),
            Err(e) if s.parse::<IpAddr>().is_ok() => return Err(e),
            Err(_) => {}
        }
        let bad = |why| BadValue::new("address", s, why, "198.51.100.1:2377, [2001:db8::1]:2377 or eth0:2377");
        let (at, port) = s
            .rsplit_once(':')
            .ok_or_else(|| bad("is neither an IP address nor the name of a device"))?;
        let port = port.parse::<u16>().ok().filter(|p| *p > 0);
        let at = at.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(at);
        Ok(Spot {
            at: at.parse()?,
            port: Some(port.ok_or_else(|| bad("has no port between 1 and 65535"))?),
        })
    }
}

/// How this node's address was decided, and what it was last. Kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Address that others reach it by; none: not chosen yet.
    pub advertise: Option<IpAddr>,
    /// Device that had it last.
    #[serde(default)]
    pub interface: Option<String>,
    /// As asked for; none: chosen, and chosen anew when the host's addresses change.
    #[serde(default)]
    pub asked: Option<Where>,
    /// Port that others reach the managers' RPC at, where it is not the one listened on (NAT).
    #[serde(default)]
    pub port: Option<u16>,
    /// Where VXLAN is sent to; none: the advertised address.
    #[serde(default)]
    pub data_path: Option<Where>,
    /// Where the managers' RPC listens; none: as the configuration says.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// Port of gossip; none: as the configuration says.
    #[serde(default)]
    pub gossip_port: Option<u16>,
    /// The manager that it joined at: of several addresses the one that leads there is chosen.
    #[serde(default)]
    pub toward: Option<IpAddr>,
    /// Managers' gossip addresses when it joined.
    #[serde(default)]
    pub seeds: Vec<SocketAddr>,
    /// Registry that this node is announced in; none: as the configuration says.
    #[serde(default)]
    pub announce: Option<String>,
    /// Where it has found the manager that it joined at: asked again when all managers are elsewhere.
    #[serde(default)]
    pub discover: Option<String>,
}

/// Where this node is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Address that others reach it by.
    pub advertise: IpAddr,
    /// Device that has it; none: it is not here (NAT).
    pub interface: Option<String>,
    /// Address and port of its managers' RPC, as others reach it.
    pub rpc: SocketAddr,
    /// The same of gossip.
    pub gossip: SocketAddr,
    /// Where the others send VXLAN to.
    pub data_path: IpAddr,
    /// Address of this host that VXLAN is sent from; the same as `data_path`, but behind NAT.
    pub source: IpAddr,
}

/// What init and join are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flags<'a> {
    /// `--advertise-addr`
    pub advertise: Option<&'a str>,
    /// `--listen-addr`
    pub listen: Option<&'a str>,
    /// `--data-path-addr`
    pub data_path: Option<&'a str>,
    /// `--gossip-port`
    pub gossip_port: Option<u16>,
    /// `--announce`
    pub announce: Option<&'a str>,
    /// `--discover`
    pub discover: Option<&'a str>,
    /// The manager that is joined.
    pub toward: Option<IpAddr>,
}

impl Place {
    /// A place as flags say it; nothing is chosen yet. `Err`: one does not read, or names a device that is not there.
    pub async fn asked(flags: Flags<'_>, config: &Config) -> Result<Place, ApiError> {
        let advertise: Option<Spot> = flags.advertise.map(str::parse).transpose()?;
        let listen: Option<Spot> = flags.listen.map(str::parse_listen).transpose()?;
        let listen = match listen {
            None => None,
            Some(spot) => {
                let port = spot.port.unwrap_or(config.cluster.listen.port());
                let ip = match spot.at {
                    Where::Address(a) => a,
                    Where::Interface(name) => choose::of_interface(&locals().await?, &name, false)?,
                };
                Some(SocketAddr::new(ip, port))
            }
        };
        Ok(Place {
            advertise: None,
            interface: None,
            port: advertise.as_ref().and_then(|a| a.port),
            asked: advertise.map(|a| a.at),
            data_path: flags.data_path.map(str::parse).transpose()?,
            listen,
            gossip_port: flags.gossip_port,
            toward: flags.toward,
            seeds: Vec::new(),
            announce: flags.announce.map(str::to_owned),
            discover: flags.discover.map(str::to_owned),
        })
    }

    /// The configuration with what was asked for at init or join.
    pub fn effective(&self, config: &Config) -> Config {
        let mut config = config.clone();
        if let Some(listen) = self.listen {
            config.cluster.listen = listen;
        }
        if let Some(port) = self.gossip_port {
            config.cluster.gossip_port = port;
        }
        if self.announce.is_some() {
            config.cluster.announce.clone_from(&self.announce);
        }
        if self.asked.is_some() {
            config.cluster.advertise.clone_from(&self.asked);
        }
        if self.data_path.is_some() {
            config.datapath.address.clone_from(&self.data_path);
        }
        config
    }

    /// Looks at the host and says where this node is now. `config`: the effective one.
    pub async fn look(&self, config: &Config) -> Result<Addresses, ApiError> {
        let here = locals().await?;
        let toward = self.toward;
        let looked = config.clone();
        let (way, able) = tokio::task::spawn_blocking(move || {
            let way = match toward {
                Some(manager) => host::source_towards(manager),
                None => host::source_towards(ANYWHERE.into()).or_else(|| host::source_towards(ANYWHERE6.into())),
            };
            (way, carries_ipv6(&looked))
        })
        .await
        .map_err(|e| internal("the way to the manager", e))?;
        choose(self, config, &here, way, able)
    }

    /// Where this node was last, as far as that is known.
    pub fn last(&self, config: &Config) -> Option<Addresses> {
        let advertise = self.advertise?;
        let data_path = match &config.datapath.address {
            Some(Where::Address(a)) => *a,
            _ => advertise,
        };
        if data_path.is_ipv6() && !carries_ipv6(config) {
            return None;
        }
        Some(Addresses {
            advertise,
            interface: self.interface.clone(),
            rpc: SocketAddr::new(advertise, self.port.unwrap_or(config.cluster.listen.port())),
            gossip: SocketAddr::new(advertise, config.cluster.gossip_port),
            data_path,
            source: data_path,
        })
    }

    /// Takes over where this node is.
    pub fn settle(&mut self, now: &Addresses) {
        self.advertise = Some(now.advertise);
        self.interface.clone_from(&now.interface);
    }

    /// Keeps it.
    pub fn save(&self, config: &Config) -> Result<(), ApiError> {
        let bytes = serde_json::to_vec(self).map_err(|e| internal("this node's address", e))?;
        crate::disk::write_atomic(&config.node.state_dir.join(FILE), &bytes, 0o600)
            .map_err(|e| internal("this node's address", e))
    }

    /// Reads it.
    pub fn load(config: &Config) -> Result<Place, ApiError> {
        let bytes = std::fs::read(config.node.state_dir.join(FILE)).map_err(|e| internal("this node's address", e))?;
        serde_json::from_slice(&bytes).map_err(|e| internal("this node's address", e))
    }
}

trait ParseListen {
    fn parse_listen(&self) -> Result<Spot, BadValue>;
}

impl ParseListen for str {
    /// As [`Spot`], where `0.0.0.0` and `::` are good: all addresses.
    fn parse_listen(&self) -> Result<Spot, BadValue> {
        let all = |ip: IpAddr, port| Spot {
            at: Where::Address(ip),
            port,
        };
        if let Ok(a) = self.parse::<SocketAddr>()
            && a.ip().is_unspecified()
            && a.port() > 0
        {
            return Ok(all(a.ip(), Some(a.port())));
        }
        match self.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => Ok(all(ip, None)),
            _ => self.parse(),
        }
    }
}

async fn locals() -> Result<Vec<Local>, ApiError> {
    tokio::task::spawn_blocking(host::local_addresses)
        .await
        .map_err(|e| internal("addresses of this host", e))?
        .map_err(|e| internal("addresses of this host", e))
}
