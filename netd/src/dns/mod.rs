//! Names for tasks: sockets inside their namespaces, answered from the table of [`::dns`]; foreign names are asked of
//! the host's resolvers, from the host's namespace.

mod cache;
mod forward;
mod resolvers;
mod serve;
mod stats;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use ::dns::{Table, View};
use arc_swap::ArcSwap;
use kernel::netns::{Netns, NetnsError, NetnsId, run_in};
use tokio::sync::{Mutex, watch};

pub use forward::ForwardConfig;
pub use stats::Stats;

use forward::Forwarder;
use serve::{Context, Serving, Sockets};

/// The host's resolvers, in order, as a resolv.conf(5) names them now.
pub(crate) fn resolvers(file: &Path) -> Vec<std::net::SocketAddr> {
    resolvers::Resolvers::new(file.to_owned()).get(std::time::Instant::now())
}

/// Where names are asked for inside a task's namespace.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The same inside Docker's containers, where Docker holds [`ADDRESS`] (CONTRACTS 8).
pub const DOCKER_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 12);

/// A namespace to be served.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointNs {
    /// A file that the namespace is mounted on, or `/proc/<pid>/ns/net`.
    pub path: PathBuf,
    /// Address to listen on.
    pub address: Ipv4Addr,
}

impl EndpointNs {
    /// A namespace served on [`ADDRESS`].
    pub fn new(path: impl Into<PathBuf>) -> Self {
        EndpointNs {
            path: path.into(),
            address: ADDRESS,
        }
    }
}

impl From<PathBuf> for EndpointNs {
    fn from(path: PathBuf) -> Self {
        EndpointNs::new(path)
    }
}

/// Why a namespace has no names.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It is not there, or cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// The address cannot be listened on.
    #[error(
        "cannot listen for names on {address}:53 in the namespace {path}; try: ss -lnp 'sport = 53' inside it, and bring its loopback up"
    )]
    Listen {
        /// Address.
        address: Ipv4Addr,
        /// Namespace.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The work was cut short, because netd is stopping.
    #[error("netd is stopping")]
    Stopping,
}

/// Serves names in any number of namespaces. Dropping it closes all sockets.
pub struct DnsServer {
    context: Arc<Context>,
    serving: Mutex<BTreeMap<(NetnsId, Ipv4Addr), Serving>>,
}

impl DnsServer {
    /// A server that answers from the newest table. Nothing is opened yet.
    pub fn new(table: watch::Receiver<Arc<Table>>, forward: ForwardConfig) -> DnsServer {
        let context = Context::new(table, Forwarder::new(forward));
        DnsServer {
            context: Arc::new(context),
            serving: Mutex::default(),
        }
    }

    /// Opens and closes sockets so that exactly these namespaces are served, each with its view. What is served already
    /// goes on undisturbed. Returns what could not be served; calling again tries again.
    ///
    /// Several paths may lead to one namespace: it gets the networks of all of them, in the order of the paths.
    pub async fn sync<P: Into<EndpointNs>>(&self, wanted: BTreeMap<P, View>) -> Vec<(PathBuf, Problem)> {
        let wanted: BTreeMap<EndpointNs, View> = wanted.into_iter().map(|(place, view)| (place.into(), view)).collect();
        let mut problems = Vec::new();
        let mut serving = self.serving.lock().await;

        let Some(found) = blocking(move || identify(wanted)).await else {
            return vec![(PathBuf::new(), Problem::Stopping)];
        };
        let mut targets: BTreeMap<(NetnsId, Ipv4Addr), Target> = BTreeMap::new();
        for (place, view, netns) in found {
            match netns {
                Ok(netns) => merge(&mut targets, place, view, netns),
                Err(e) => problems.push((place.path, e.into())),
            }
        }

        let gone: Vec<_> = serving
            .extract_if(.., |key, s| !targets.contains_key(key) || s.is_dead())
            .collect();
        for (_, old) in gone {
            old.close().await;
        }
        for (key, target) in targets {
            if let Some(s) = serving.get(&key) {
                s.see(target.view);
                continue;
            }
            let path = target.path.clone();
            let opened = blocking(move || open(&target.netns, key.1, &target.path).map(|s| (s, target.view))).await;
            let started = opened.unwrap_or(Err(Problem::Stopping)).and_then(|(sockets, view)| {
                let view = Arc::new(ArcSwap::from_pointee(view));
                Serving::start(self.context.clone(), view, sockets).map_err(|source| Problem::Listen {
                    address: key.1,
                    path: path.clone(),
                    source,
                })
            });
            match started {
                Ok(s) => drop(serving.insert(key, s)),
                Err(e) => problems.push((path, e)),
            }
        }
        self.context.stats.namespaces(serving.len());
        problems
    }

    /// What was asked and answered since netd started.
    pub fn stats(&self) -> Stats {
        self.context.stats.read()
    }
}

/// A namespace to be served, found.
struct Target {
    path: PathBuf,
    netns: Netns,
    view: View,
}

type Found = (EndpointNs, View, Result<Netns, NetnsError>);

fn identify(wanted: BTreeMap<EndpointNs, View>) -> Vec<Found> {
    let open = |(place, view): (EndpointNs, View)| {
        let netns = Netns::open(&place.path);
        (place, view, netns)
    };
    wanted.into_iter().map(open).collect()
}

fn merge(targets: &mut BTreeMap<(NetnsId, Ipv4Addr), Target>, place: EndpointNs, view: View, netns: Netns) {
    let key = (netns.id(), place.address);
    match targets.get_mut(&key) {
        None => drop(targets.insert(
            key,
            Target {
                path: place.path,
                netns,
                view,
            },
        )),
        Some(target) => {
            let seen = &mut target.view.networks;
            for vni in view.networks {
                if !seen.contains(&vni) {
                    seen.push(vni);
                }
            }
        }
    }
}

fn open(netns: &Netns, address: Ipv4Addr, path: &Path) -> Result<Sockets, Problem> {
    run_in(netns, || Sockets::open(address))?.map_err(|source| Problem::Listen {
        address,
        path: path.to_owned(),
        source,
    })
}

/// None: the runtime is stopping.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(f).await {
        Ok(value) => Some(value),
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => None,
    }
}
