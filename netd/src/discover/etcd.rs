//! etcd v3, by its gateway (gRPC as JSON over HTTP): `/v3/...`, before etcd 3.4 `/v3beta/...`.

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{DiscoverError, FOLDER, MAX_ADDRESSES, Registry, Url, http, sound};

/// A registry in etcd.
pub(super) struct Etcd {
    url: Url,
    /// Key and lease of what was announced.
    held: Option<(String, String)>,
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Lease {
    #[serde(rename = "ID")]
    id: String,
}

impl Etcd {
    pub(super) fn new(url: Url) -> Etcd {
        Etcd { url, held: None }
    }

    fn folder(&self) -> String {
        match self.url.path.as_str() {
            "" => format!("/{FOLDER}/"),
            path => format!("/{path}/{FOLDER}/"),
        }
    }

    async fn ask(&self, what: &str, body: Value) -> Result<http::Answer, DiscoverError> {
        let body = body.to_string().into_bytes();
        let answer = http::ask(&self.url, Method::POST, &format!("/v3/{what}"), body.clone()).await?;
        // Of an unknown path the gateway says `Not Found`, of an unknown key or lease it says so in JSON.
        let unknown =
            answer.status == 404 && serde_json::from_slice::<Value>(&answer.body).map_or(true, |v| !v.is_object());
        match unknown {
            true => http::ask(&self.url, Method::POST, &format!("/v3beta/{what}"), body).await,
            false => Ok(answer),
        }
    }

    async fn put(&mut self, addr: &str) -> Result<(), DiscoverError> {
        // Each time a new lease: renewing is a stream in this API. The key goes over to it, the old one ends by itself.
        let ttl = self.url.ttl.as_secs().to_string();
        let lease: Lease = self.ask("lease/grant", json!({ "TTL": ttl })).await?.json(&self.url)?;
        let key = format!("{}{addr}", self.folder());
        let body = json!({ "key": STANDARD.encode(&key), "value": STANDARD.encode(addr), "lease": lease.id });
        let _: Value = self.ask("kv/put", body).await?.json(&self.url)?;
        let old = self.held.replace((key.clone(), lease.id));
        if let Some((old, _)) = old.filter(|(old, _)| *old != key) {
            self.delete(&old).await?;
        }
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), DiscoverError> {
        let body = json!({ "key": STANDARD.encode(key) });
        let _: Value = self.ask("kv/deleterange", body).await?.json(&self.url)?;
        Ok(())
    }
}

/// The first key behind all that begin with `prefix` (etcd's own rule: the last octet plus one).
fn behind(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // A folder ends with a slash, so there is something to add to.
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

/// The addresses in an answer.
pub(super) fn listed(answer: &http::Answer, url: &Url) -> Result<Vec<String>, DiscoverError> {
    let found: Range = answer.json(url)?;
    let text = |p: Pair| String::from_utf8(STANDARD.decode(p.value).ok()?).ok();
    Ok(sound(found.kvs.into_iter().filter_map(text)))
}

impl Registry for Etcd {
    fn list(&mut self) -> BoxFuture<'_, Result<Vec<String>, DiscoverError>> {
        Box::pin(async move {
            let folder = self.folder();
            let body = json!({
                "key": STANDARD.encode(&folder),
                "range_end": STANDARD.encode(behind(&folder)),
                "limit": MAX_ADDRESSES.to_string(),
            });
            listed(&self.ask("kv/range", body).await?, &self.url)
        })
    }

    fn announce<'a>(&'a mut self, addr: &'a str) -> BoxFuture<'a, Result<(), DiscoverError>> {
        Box::pin(self.put(addr))
    }

    fn withdraw(&mut self) -> BoxFuture<'_, Result<(), DiscoverError>> {
        Box::pin(async move {
            let Some((key, lease)) = self.held.take() else {
                return Ok(());
            };
            self.delete(&key).await?;
            // One that has ended already is as good as revoked.
            self.ask("lease/revoke", json!({ "ID": lease })).await.map(|_| ())
        })
    }
}
