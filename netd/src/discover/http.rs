//! One HTTP/1.1 request a connection, to whichever of a registry's hosts answers first.

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, time::timeout};

use super::{DiscoverError, EACH, Url};

/// Largest answer, octets.
const MAX_ANSWER: usize = 4 << 20;

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self, url: &Url) -> Result<T, DiscoverError> {
        if !(200..300).contains(&self.status) {
            return Err(self.odd(url));
        }
        serde_json::from_slice(&self.body).map_err(|e| DiscoverError::Odd {
            url: url.to_string(),
            why: format!("its JSON does not read: {e}"),
        })
    }

    /// What is wrong with it: status and the beginning of its text.
    pub(super) fn odd(&self, url: &Url) -> DiscoverError {
        let text = String::from_utf8_lossy(&self.body);
        let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
        DiscoverError::Odd {
            url: url.to_string(),
            why: format!("HTTP status {}: {text}", self.status),
        }
    }
}

/// Asks the hosts one after the other until one answers.
pub(super) async fn ask(url: &Url, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, DiscoverError> {
    let body = Bytes::from(body);
    let mut why = Vec::new();
    for host in &url.hosts {
        match timeout(EACH, one(host, method.clone(), path, body.clone())).await {
            Ok(Ok(a)) => return Ok(a),
            Ok(Err(e)) => why.push(format!("{host}: {e}")),
            Err(_) => why.push(format!("{host}: no answer within {} s", EACH.as_secs())),
        }
    }
    Err(DiscoverError::Unreachable {
        url: url.to_string(),
        why: why.join("; "),
    })
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn one(host: &str, method: Method, path: &str, body: Bytes) -> Result<Answer, Failed> {
    let stream = TcpStream::connect(host).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .body(Full::new(body))?;
    let talk = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await?.to_bytes();
        Ok::<_, Failed>(Answer { status, body })
    };
    tokio::pin!(talk, connection);
    tokio::select! {
        answer = &mut talk => answer,
        // The connection is driven beside; its end may come before the last of the body was taken.
        _ = &mut connection => talk.await,
    }
}
