//! Of many addresses those where somebody answers, the quickest first.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use model::{ApiError, Code};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

/// How long an address has to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Addresses tried at once.
const AT_ONCE: usize = 64;

/// `host[:port]`, a name or an address, as socket addresses.
pub(super) async fn resolve(named: &[String], port: u16) -> Result<Vec<SocketAddr>, ApiError> {
    let mut out = Vec::new();
    let mut wrong = None;
    for text in named {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            out.push(addr);
        } else if let Ok(ip) = text.parse::<IpAddr>() {
            out.push(SocketAddr::new(ip, port));
        } else {
            let name = match text.contains(':') {
                true => text.clone(),
                false => format!("{text}:{port}"),
            };
            match lookup_host(&name).await {
                Ok(found) => out.extend(found),
                Err(e) => wrong = Some(format!("{text:?} is no address, and no name that resolves: {e}")),
            }
        }
    }
    match wrong {
        Some(why) if out.is_empty() => Err(ApiError::new(
            Code::Invalid,
            why,
            "netctl cluster join TOKEN 192.0.2.1:2377",
        )),
        _ => Ok(out),
    }
}

/// Each address as it answers, or why it does not.
pub(super) fn answering(all: Vec<SocketAddr>) -> impl Stream<Item = (SocketAddr, Result<(), String>)> + Unpin {
    let one = |addr: SocketAddr| async move {
        let reached = match timeout(ANSWER, TcpStream::connect(addr)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
        };
        (addr, reached)
    };
    Box::pin(stream::iter(all).map(one).buffer_unordered(AT_ONCE))
}

/// None of them let this node in. The first few say why.
pub(super) fn nobody(why: &[String]) -> ApiError {
    const SHOWN: usize = 5;
    let mut lines: Vec<&str> = why.iter().take(SHOWN).map(String::as_str).collect();
    let more = format!("and {} more", why.len().saturating_sub(SHOWN));
    if why.len() > SHOWN {
        lines.push(&more);
    }
    ApiError::new(
        Code::Unavailable,
        format!(
            "none of {} addresses let this node in:\n{}",
            why.len(),
            lines.join("\n")
        ),
        "the token and address that netctl cluster token worker shows on a manager",
    )
}
