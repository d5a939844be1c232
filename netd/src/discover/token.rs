//! `token://host[:port]/TOKEN`: any manager of the cluster knows all the others. Swarm's hosted hub is gone; here the
//! cluster is its own: the manager proves that it holds the CA that the token pins before the secret is told, as when
//! joining. Nothing is announced: the log says who the managers are.

use futures_util::future::BoxFuture;
use tokio::net::lookup_host;

use super::{DiscoverError, Registry, Url, sound, url::bad};
use crate::{identity::Token, rpc};

/// A manager that is asked.
pub(super) struct Manager {
    url: Url,
    token: Token,
}

impl Manager {
    pub(super) fn new(url: Url) -> Result<Manager, DiscoverError> {
        let hint = "token://198.51.100.1:2377/TOKEN, with the token of netctl cluster token worker";
        // The token is no text for errors.
        let token = url
            .path
            .parse()
            .map_err(|_| bad("the path of token://", "is no token", hint))?;
        Ok(Manager { url, token })
    }

    async fn ask(&self) -> Result<Vec<String>, DiscoverError> {
        let mut why = Vec::new();
        for host in &self.url.hosts {
            let addrs = match lookup_host(host).await {
                Ok(a) => a.collect::<Vec<_>>(),
                Err(e) => {
                    why.push(format!("{host}: {e}"));
                    continue;
                }
            };
            for addr in addrs {
                match rpc::managers(&self.token, addr).await {
                    Ok(found) => return Ok(sound(found)),
                    Err(e) => why.push(e.to_string()),
                }
            }
        }
        Err(DiscoverError::Unreachable {
            url: self.url.to_string(),
            why: why.join("; "),
        })
    }
}

impl Registry for Manager {
    fn list(&mut self) -> BoxFuture<'_, Result<Vec<String>, DiscoverError>> {
        Box::pin(self.ask())
    }

    fn announce<'a>(&'a mut self, _addr: &'a str) -> BoxFuture<'a, Result<(), DiscoverError>> {
        Box::pin(async { Ok(()) })
    }

    fn withdraw(&mut self) -> BoxFuture<'_, Result<(), DiscoverError>> {
        Box::pin(async { Ok(()) })
    }
}
