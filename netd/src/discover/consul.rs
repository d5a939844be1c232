//! Consul: keys that a session holds go with it.

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{DiscoverError, FOLDER, Registry, Url, http, sound};

/// Consul takes no shorter time to live, seconds.
const SHORTEST: u64 = 10;

/// A registry in Consul.
pub(super) struct Consul {
    url: Url,
    session: Option<String>,
    key: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    value: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
struct Session {
    id: String,
}

impl Consul {
    pub(super) fn new(url: Url) -> Consul {
        Consul {
            url,
            session: None,
            key: None,
        }
    }

    fn folder(&self) -> String {
        match self.url.path.as_str() {
            "" => format!("/v1/kv/{FOLDER}/"),
            path => format!("/v1/kv/{path}/{FOLDER}/"),
        }
    }

    async fn put(&self, path: &str, body: Vec<u8>) -> Result<http::Answer, DiscoverError> {
        http::ask(&self.url, Method::PUT, path, body).await
    }

    /// A session of ours that lives: the old one renewed, or a new one.
    async fn session(&mut self) -> Result<String, DiscoverError> {
        if let Some(id) = self.session.take() {
            let renewed = self.put(&format!("/v1/session/renew/{id}"), Vec::new()).await?;
            match renewed.status {
                200 => {
                    self.session = Some(id.clone());
                    return Ok(id);
                }
                // It has ended: the key went with it.
                404 => {}
                _ => return Err(renewed.odd(&self.url)),
            }
        }
        let ttl = self.url.ttl.as_secs().max(SHORTEST);
        let body = json!({ "Name": "netd", "TTL": format!("{ttl}s"), "Behavior": "delete", "LockDelay": "0s" });
        let made = self.put("/v1/session/create", body.to_string().into_bytes()).await?;
        let Session { id } = made.json(&self.url)?;
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(made.odd(&self.url));
        }
        self.session = Some(id.clone());
        Ok(id)
    }

    async fn hold(&mut self, addr: &str) -> Result<(), DiscoverError> {
        let session = self.session().await?;
        let key = format!("{}{}", self.folder(), encoded(addr));
        if let Some(old) = self.key.replace(key.clone()).filter(|old| *old != key) {
            self.delete(&old).await?;
        }
        let acquire = format!("{key}?acquire={session}");
        for _ in 0..2 {
            if self
                .put(&acquire, addr.as_bytes().to_vec())
                .await?
                .json::<bool>(&self.url)?
            {
                return Ok(());
            }
            // A session of this node's former life holds it.
            self.delete(&key).await?;
        }
        Err(DiscoverError::Odd {
            url: self.url.to_string(),
            why: format!("another session holds {addr}"),
        })
    }

    async fn delete(&self, key: &str) -> Result<(), DiscoverError> {
        let gone = http::ask(&self.url, Method::DELETE, key, Vec::new()).await?;
        gone.json::<Value>(&self.url).map(|_| ())
    }
}

/// An address in a path: brackets and colons of IPv6 are no letters of one.
fn encoded(addr: &str) -> String {
    let one = |b: u8| match b {
        b if b.is_ascii_alphanumeric() || b"-._~:".contains(&b) => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    addr.bytes().map(one).collect()
}

/// The addresses in an answer.
pub(super) fn listed(answer: &http::Answer, url: &Url) -> Result<Vec<String>, DiscoverError> {
    let found: Vec<Pair> = answer.json(url)?;
    let text = |p: Pair| String::from_utf8(STANDARD.decode(p.value?).ok()?).ok();
    Ok(sound(found.into_iter().filter_map(text)))
}

impl Registry for Consul {
    fn list(&mut self) -> BoxFuture<'_, Result<Vec<String>, DiscoverError>> {
        Box::pin(async move {
            let path = format!("{}?recurse=true", self.folder());
            let answer = http::ask(&self.url, Method::GET, &path, Vec::new()).await?;
            if answer.status == 404 {
                return Ok(Vec::new());
            }
            listed(&answer, &self.url)
        })
    }

    fn announce<'a>(&'a mut self, addr: &'a str) -> BoxFuture<'a, Result<(), DiscoverError>> {
        Box::pin(self.hold(addr))
    }

    fn withdraw(&mut self) -> BoxFuture<'_, Result<(), DiscoverError>> {
        Box::pin(async move {
            if let Some(key) = self.key.take() {
                self.delete(&key).await?;
            }
            match self.session.take() {
                Some(id) => {
                    let path = format!("/v1/session/destroy/{id}");
                    self.put(&path, Vec::new()).await?.json::<Value>(&self.url).map(|_| ())
                }
                None => Ok(()),
            }
        })
    }
}
