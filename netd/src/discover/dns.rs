//! `dns://name`: SRV records of `_netd._tcp.name`, else the name's own addresses.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{DiscoverError, EACH, Registry, Url, sound, url::bad};

/// Octets of a UDP answer that is read; more comes by TCP.
const MAX_UDP: usize = 4096;
/// Record types (RFC 1035 3.2.2, RFC 3596 2.1, RFC 2782).
const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
/// `NXDOMAIN` (RFC 1035 4.1.1).
const NXDOMAIN: u8 = 3;

/// Names.
pub(super) struct Dns {
    url: Url,
    resolv_conf: PathBuf,
}

impl Dns {
    pub(super) fn new(url: Url, resolv_conf: PathBuf) -> Dns {
        Dns { url, resolv_conf }
    }

    async fn look(&self) -> Result<Vec<String>, DiscoverError> {
        let mut out = Vec::new();
        for host in &self.url.hosts {
            let (name, port) = host.rsplit_once(':').unwrap_or((host, ""));
            if name.starts_with('[') {
                return Err(bad(host, "is an address, not a name", "dns://managers.example.net").into());
            }
            // A port that was said belongs to addresses.
            let srv = match (name.starts_with('_'), self.url.port_said) {
                (true, _) => Some(name.to_owned()),
                (false, false) => Some(format!("_netd._tcp.{name}")),
                (false, true) => None,
            };
            let found = match srv {
                Some(srv) => self.ask(&srv, SRV).await?,
                None => Vec::new(),
            };
            if !found.is_empty() || name.starts_with('_') {
                out.extend(found);
                continue;
            }
            for kind in [A, AAAA] {
                let found = self.ask(name, kind).await?;
                out.extend(found.into_iter().map(|a| format!("{a}:{port}")));
            }
        }
        Ok(sound(out))
    }

    async fn ask(&self, name: &str, kind: u16) -> Result<Vec<String>, DiscoverError> {
        let id: [u8; 2] = crate::identity::random().map_err(|e| self.odd(e.to_string()))?;
        let query = query(u16::from_be_bytes(id), name, kind)
            .ok_or_else(|| DiscoverError::Url(bad(name, "is too long for a name", "a shorter one")))?;
        let mut why = Vec::new();
        for server in crate::dns::resolvers(&self.resolv_conf) {
            let answer = match timeout(EACH, exchange(server, &query)).await {
                Ok(Ok(a)) => a,
                Ok(Err(e)) => {
                    why.push(format!("{server}: {e}"));
                    continue;
                }
                Err(_) => {
                    why.push(format!("{server}: no answer within {} s", EACH.as_secs()));
                    continue;
                }
            };
            return match records(&query, &answer, kind) {
                Some((0 | NXDOMAIN, found)) => Ok(found),
                Some((code, _)) => {
                    why.push(format!("{server}: response code {code}"));
                    continue;
                }
                None => Err(self.odd(format!("the answer of {server} does not read"))),
            };
        }
        Err(DiscoverError::Unreachable {
            url: self.url.to_string(),
            why: why.join("; "),
        })
    }

    fn odd(&self, why: String) -> DiscoverError {
        DiscoverError::Odd {
            url: self.url.to_string(),
            why,
        }
    }
}

/// A question (RFC 1035 4.1), recursion desired.
pub(super) fn query(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        let len = u8::try_from(label.len()).ok().filter(|l| (1..=63).contains(l))?;
        out.push(len);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    (out.len() <= 12 + 255 + 4).then_some(out)
}

/// Asks by UDP, and by TCP when the answer is cut.
async fn exchange(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = match server.is_ipv4() {
        true => (Ipv4Addr::UNSPECIFIED, 0).into(),
        false => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buf = vec![0; MAX_UDP];
    let cut = loop {
        let n = socket.recv(&mut buf).await?;
        let answer = buf.get(..n).unwrap_or_default();
        // Forged ones are waited past.
        if answer.get(..2) == query.get(..2) && answer.get(2).is_some_and(|f| f & 0x80 != 0) {
            if answer.get(2).is_some_and(|f| f & 2 == 0) {
                return Ok(answer.to_vec());
            }
            break true;
        }
    };
    debug_assert!(cut);
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(query.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), query].concat()).await?;
    let len = usize::from(stream.read_u16().await?);
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer).await?;
    match answer.get(..2) == query.get(..2) {
        true => Ok(answer),
        false => Err(std::io::Error::other("the answer is to another question")),
    }
}

fn u16_at(m: &[u8], at: usize) -> Option<u16> {
    m.get(at..)?.first_chunk::<2>().map(|b| u16::from_be_bytes(*b))
}

/// Response code and the addresses of an answer: `host:port` of SRV records, addresses of A and AAAA. `None`: malformed.
pub(super) fn records(query: &[u8], m: &[u8], kind: u16) -> Option<(u8, Vec<String>)> {
    let code = m.get(3)? & 15;
    if u16_at(m, 4)? != 1 || m.get(12..query.len())? != query.get(12..)? {
        // Some resolvers change the case of the name; then it is compared without.
        let same = |a: &[u8], b: &[u8]| a.eq_ignore_ascii_case(b);
        if u16_at(m, 4)? != 1 || !same(m.get(12..query.len())?, query.get(12..)?) {
            return None;
        }
    }
    let mut at = query.len();
    let mut out = Vec::new();
    for _ in 0..u16_at(m, 6)? {
        at = name(m, at)?.1;
        let (of, class, len) = (u16_at(m, at)?, u16_at(m, at + 2)?, usize::from(u16_at(m, at + 8)?));
        at += 10;
        let data = m.get(at..at + len)?;
        if of == kind && class == 1 {
            match kind {
                A => out.push(Ipv4Addr::from(*data.first_chunk::<4>()?).to_string()),
                AAAA => out.push(format!("[{}]", Ipv6Addr::from(*data.first_chunk::<16>()?))),
                _ => {
                    let port = u16_at(data, 4)?;
                    let (target, _) = name(m, at + 6)?;
                    // The root: decidedly not offered (RFC 2782).
                    if !target.is_empty() {
                        out.push(format!("{target}:{port}"));
                    }
                }
            }
        }
        at += len;
    }
    Some((code, out))
}

/// A name, and where it ends. Pointers lead backwards only, so it ends.
fn name(m: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels: Vec<String> = Vec::new();
    let mut end = None;
    let mut limit = at;
    loop {
        let len = usize::from(*m.get(at)?);
        match len {
            0 => return Some((labels.join("."), end.unwrap_or(at + 1))),
            1..=63 => {
                let label = m.get(at + 1..at + 1 + len)?;
                labels.push(String::from_utf8(label.to_vec()).ok()?);
                at += 1 + len;
                if labels.len() > 127 {
                    return None;
                }
            }
            0xc0.. => {
                let to = usize::from(u16_at(m, at)? & 0x3fff);
                end = end.or(Some(at + 2));
                if to >= limit {
                    return None;
                }
                (at, limit) = (to, to);
            }
            _ => return None,
        }
    }
}

impl Registry for Dns {
    fn list(&mut self) -> BoxFuture<'_, Result<Vec<String>, DiscoverError>> {
        Box::pin(self.look())
    }

    fn announce<'a>(&'a mut self, _addr: &'a str) -> BoxFuture<'a, Result<(), DiscoverError>> {
        Box::pin(async move {
            Err(DiscoverError::ReadOnly {
                url: self.url.to_string(),
                why: "a zone is written by its owner",
            })
        })
    }

    fn withdraw(&mut self) -> BoxFuture<'_, Result<(), DiscoverError>> {
        Box::pin(async { Ok(()) })
    }
}
