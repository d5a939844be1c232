//! Where managers can be found: the schemes that Swarm's users know, behind one trait.
//!
//! | URL | asks | can announce |
//! |---|---|---|
//! | `nodes://a,b,10.0.0.[1:9]:2377` | nobody | no |
//! | `file:///etc/netd/managers` | a file, one address or range a line, `#` comments | no |
//! | `dns://name[:port]` | the host's resolvers: SRV `_netd._tcp.name`, else A and AAAA | no |
//! | `token://host[:port]/TOKEN` | a manager: it proves that it holds the token's CA and lists all managers | it needs not |
//! | `etcd://host[:2379],.../path` | etcd v3 by its HTTP gateway | yes |
//! | `consul://host[:8500],.../path` | Consul's key-value store | yes |
//! | `zk://host[:2181],.../path` | ZooKeeper | yes |
//!
//! The stores hold `<path>/netd/nodes/<address>`, bound to a lease, a session or an ephemeral node: what is not renewed
//! within the time to live (`?ttl=30s`, default 180 s) is gone.

mod announce;
mod consul;
mod dns;
pub(crate) mod doors;
mod etcd;
mod file;
mod http;
#[cfg(test)]
mod tests;
mod token;
mod url;
mod zk;

use std::{path::PathBuf, time::Duration};

use futures_util::future::BoxFuture;
use model::{ApiError, Code};

pub use announce::Announcer;
pub use url::{BadUrl, MAX_ADDRESSES, Scheme, Url, addresses, ranges};

/// How long a registry may take for one question, and one of its hosts for its part of it.
pub const PATIENCE: Duration = Duration::from_secs(10);
const EACH: Duration = Duration::from_secs(3);
/// Folder of the addresses, below the URL's path.
const FOLDER: &str = "netd/nodes";

/// What goes wrong.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The URL does not read.
    #[error(transparent)]
    Url(#[from] BadUrl),
    /// None of the registry's hosts answers.
    #[error("{url} cannot be asked: {why}")]
    Unreachable {
        /// URL.
        url: String,
        /// Of each host, why.
        why: String,
    },
    /// It answers, but not what it should.
    #[error("{url} answers oddly: {why}")]
    Odd {
        /// URL.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// It has no addresses.
    #[error("{url} knows no managers")]
    Nothing {
        /// URL.
        url: String,
    },
    /// This scheme is read only.
    #[error("nothing can be announced in {url}: {why}")]
    ReadOnly {
        /// URL.
        url: String,
        /// Why.
        why: &'static str,
    },
}

impl From<DiscoverError> for ApiError {
    fn from(e: DiscoverError) -> ApiError {
        let (code, hint) = match &e {
            DiscoverError::Url(u) => (Code::Invalid, u.hint),
            DiscoverError::Unreachable { .. } => (Code::Unavailable, "curl or nc to the registry from this host"),
            DiscoverError::Odd { .. } => (Code::Unavailable, "the registry's own tools"),
            DiscoverError::Nothing { .. } => (
                Code::NotFound,
                "netctl cluster init --announce URL on a manager, or an address instead of --discover",
            ),
            DiscoverError::ReadOnly { .. } => (Code::Unsupported, "--announce etcd://, consul:// or zk://"),
        };
        ApiError::new(code, e.to_string(), hint)
    }
}

/// A place where managers can be found.
pub trait Registry: Send {
    /// The addresses there, `host:port` each, sorted.
    fn list(&mut self) -> BoxFuture<'_, Result<Vec<String>, DiscoverError>>;
    /// Puts `addr` there for the time to live, or renews it: called again after a third of it.
    fn announce<'a>(&'a mut self, addr: &'a str) -> BoxFuture<'a, Result<(), DiscoverError>>;
    /// Takes away what was announced.
    fn withdraw(&mut self) -> BoxFuture<'_, Result<(), DiscoverError>>;
}

/// What schemes need of this host.
#[derive(Debug, Clone)]
pub struct Context {
    /// Names the host's resolvers.
    pub resolv_conf: PathBuf,
}

/// The registry of a URL. Nothing is opened yet.
pub fn open(url: &str, context: &Context) -> Result<Box<dyn Registry>, DiscoverError> {
    let url: Url = url.parse()?;
    Ok(match url.scheme {
        Scheme::Nodes => Box::new(file::Nodes::given(url)),
        Scheme::File => Box::new(file::Nodes::in_file(url)),
        Scheme::Dns => Box::new(dns::Dns::new(url, context.resolv_conf.clone())),
        Scheme::Token => Box::new(token::Manager::new(url)?),
        Scheme::Etcd => Box::new(etcd::Etcd::new(url)),
        Scheme::Consul => Box::new(consul::Consul::new(url)),
        Scheme::Zk => Box::new(zk::Zk::new(url)),
    })
}

/// The managers that a URL leads to. `Err`: also when there is none.
pub async fn find(url: &str, context: &Context) -> Result<Vec<String>, DiscoverError> {
    let mut registry = open(url, context)?;
    let shown = url.to_owned();
    let found = tokio::time::timeout(PATIENCE, registry.list())
        .await
        .unwrap_or_else(|_| {
            Err(DiscoverError::Unreachable {
                url: shown.clone(),
                why: format!("no answer within {} s", PATIENCE.as_secs()),
            })
        })?;
    match found.is_empty() {
        true => Err(DiscoverError::Nothing { url: shown }),
        false => Ok(found),
    }
}

/// What a registry holds is anybody's: only what reads as an address counts.
fn sound(entries: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = entries
        .into_iter()
        .filter_map(|e| url::address(&e).ok())
        .take(MAX_ADDRESSES)
        .collect();
    all.sort();
    all.dedup();
    all
}
