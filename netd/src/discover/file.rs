//! `nodes://` and `file://`: addresses that a person has written.

use std::path::PathBuf;

use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt;

use super::{DiscoverError, MAX_ADDRESSES, Registry, Url, ranges, sound};

/// Longest file, octets.
const MAX_FILE: u64 = 1 << 20;

/// Addresses in the URL, or in a file that is read at each look.
pub(super) struct Nodes {
    url: Url,
    file: Option<PathBuf>,
}

impl Nodes {
    pub(super) fn given(url: Url) -> Nodes {
        Nodes { url, file: None }
    }

    pub(super) fn in_file(url: Url) -> Nodes {
        Nodes {
            file: Some(PathBuf::from(&url.path)),
            url,
        }
    }
}

/// Addresses of a file: a range a line, or several with commas; `#` begins a comment.
pub(super) fn lines(text: &str) -> Result<Vec<String>, DiscoverError> {
    let mut out = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        out.extend(ranges(line.trim())?);
        if out.len() > MAX_ADDRESSES {
            return Err(super::url::bad(line, "is one of more than 4096 addresses", "a shorter file").into());
        }
    }
    Ok(out)
}

impl Registry for Nodes {
    fn list(&mut self) -> BoxFuture<'_, Result<Vec<String>, DiscoverError>> {
        Box::pin(async move {
            let Some(path) = &self.file else {
                return Ok(sound(self.url.hosts.clone()));
            };
            let mut text = String::new();
            let read = async {
                let file = tokio::fs::File::open(path).await?;
                file.take(MAX_FILE).read_to_string(&mut text).await
            };
            read.await.map_err(|e| DiscoverError::Unreachable {
                url: self.url.to_string(),
                why: e.to_string(),
            })?;
            Ok(sound(lines(&text)?))
        })
    }

    fn announce<'a>(&'a mut self, _addr: &'a str) -> BoxFuture<'a, Result<(), DiscoverError>> {
        Box::pin(async move {
            Err(DiscoverError::ReadOnly {
                url: self.url.to_string(),
                why: "it is written by a person",
            })
        })
    }

    fn withdraw(&mut self) -> BoxFuture<'_, Result<(), DiscoverError>> {
        Box::pin(async { Ok(()) })
    }
}
