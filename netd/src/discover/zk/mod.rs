//! ZooKeeper: an ephemeral node for each manager, which goes with its session.

mod jute;
#[cfg(test)]
mod tests;

use std::{
    io::{Error, ErrorKind, Result},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::{interval, timeout},
};

use self::jute::{In, Out};
use super::{DiscoverError, EACH, FOLDER, MAX_ADDRESSES, Registry, Url, sound};

/// Largest message, octets (ZooKeeper's own `jute.maxbuffer`).
const MAX_MESSAGE: usize = 1 << 20;
/// Session of a look.
const LOOK: Duration = Duration::from_secs(10);

/// A registry in ZooKeeper.
pub(super) struct Zk {
    url: Url,
    held: Option<Held>,
}

/// An announcement: the task keeps its session alive.
struct Held {
    addr: String,
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Zk {
    pub(super) fn new(url: Url) -> Zk {
        Zk { url, held: None }
    }

    fn folder(&self) -> String {
        match self.url.path.as_str() {
            "" => format!("/{FOLDER}"),
            path => format!("/{path}/{FOLDER}"),
        }
    }

    async fn session(&self, time: Duration) -> std::result::Result<Session, DiscoverError> {
        let mut why = Vec::new();
        for host in &self.url.hosts {
            match timeout(EACH, Session::open(host, time)).await {
                Ok(Ok(s)) => return Ok(s),
                Ok(Err(e)) => why.push(format!("{host}: {e}")),
                Err(_) => why.push(format!("{host}: no answer within {} s", EACH.as_secs())),
            }
        }
        Err(DiscoverError::Unreachable {
            url: self.url.to_string(),
            why: why.join("; "),
        })
    }

    fn failed(&self, e: &Error) -> DiscoverError {
        DiscoverError::Odd {
            url: self.url.to_string(),
            why: e.to_string(),
        }
    }

    async fn hold(&mut self, addr: &str) -> std::result::Result<(), DiscoverError> {
        if self
            .held
            .as_ref()
            .is_some_and(|h| h.addr == addr && !h.task.is_finished())
        {
            return Ok(());
        }
        self.release().await;
        let mut session = self.session(self.url.ttl).await?;
        let folder = self.folder();
        let made = async {
            let parents = folder.match_indices('/').skip(1).map(|(i, _)| &folder[..i]);
            for parent in parents.chain([folder.as_str()]) {
                session.create(parent, b"", jute::PERSISTENT).await?;
            }
            let path = format!("{folder}/{addr}");
            if !session.create(&path, addr.as_bytes(), jute::EPHEMERAL).await? {
                // It belongs to a session of this node's former life, which has not ended yet.
                session.delete(&path).await?;
                if !session.create(&path, addr.as_bytes(), jute::EPHEMERAL).await? {
                    return Err(Error::other(format!("another session holds {path}")));
                }
            }
            Ok(())
        };
        made.await.map_err(|e| self.failed(&e))?;
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(session.keep(ended));
        self.held = Some(Held {
            addr: addr.to_owned(),
            end,
            task,
        });
        Ok(())
    }

    async fn release(&mut self) {
        if let Some(Held { end, task, .. }) = self.held.take() {
            let _ = end.send(());
            let _ = timeout(EACH, task).await;
        }
    }
}

impl Registry for Zk {
    fn list(&mut self) -> BoxFuture<'_, std::result::Result<Vec<String>, DiscoverError>> {
        Box::pin(async move {
            let mut session = self.session(LOOK).await?;
            let found = session.children(&self.folder()).await.map_err(|e| self.failed(&e))?;
            let _ = session.close().await;
            Ok(sound(found))
        })
    }

    fn announce<'a>(&'a mut self, addr: &'a str) -> BoxFuture<'a, std::result::Result<(), DiscoverError>> {
        Box::pin(self.hold(addr))
    }

    fn withdraw(&mut self) -> BoxFuture<'_, std::result::Result<(), DiscoverError>> {
        Box::pin(async move {
            self.release().await;
            Ok(())
        })
    }
}

/// A connection with a session of its own. One request after the other.
struct Session {
    stream: TcpStream,
    xid: i32,
    /// As the server grants it.
    time: Duration,
}

impl Session {
    async fn open(host: &str, time: Duration) -> Result<Session> {
        let mut stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        let ms = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        stream.write_all(&jute::connect(ms)).await?;
        let answer = read(&mut stream).await?;
        let granted = granted(&answer).ok_or_else(odd)?;
        if granted.is_zero() {
            return Err(Error::other("the session was refused"));
        }
        Ok(Session {
            stream,
            xid: 0,
            time: granted,
        })
    }

    /// The body of the answer, or the server's code.
    async fn ask(&mut self, op: i32, body: impl FnOnce(Out) -> Out) -> Result<std::result::Result<Vec<u8>, i32>> {
        self.xid = self.xid.wrapping_add(1).max(1);
        let xid = self.xid;
        let talk = async {
            self.stream.write_all(&body(Out::request(xid, op)).frame()).await?;
            loop {
                let message = read(&mut self.stream).await?;
                let mut m = In(&message);
                let of = m.int().ok_or_else(odd)?;
                let (_zxid, code) = (m.long().ok_or_else(odd)?, m.int().ok_or_else(odd)?);
                match of {
                    of if of == xid => return Ok(if code == 0 { Ok(m.0.to_vec()) } else { Err(code) }),
                    jute::PING_XID | jute::EVENT_XID => {}
                    _ => return Err(odd()),
                }
            }
        };
        timeout(EACH, talk).await?
    }

    /// `false`: it is there already.
    async fn create(&mut self, path: &str, data: &[u8], mode: i32) -> Result<bool> {
        let body = |o: Out| o.bytes(path.as_bytes()).bytes(data).open_to_all().int(mode);
        match self.ask(jute::CREATE, body).await? {
            Ok(_) => Ok(true),
            Err(jute::NODE_EXISTS) => Ok(false),
            Err(code) => Err(refused("create", path, code)),
        }
    }

    async fn delete(&mut self, path: &str) -> Result<()> {
        match self.ask(jute::DELETE, |o| o.bytes(path.as_bytes()).int(-1)).await? {
            Ok(_) | Err(jute::NO_NODE) => Ok(()),
            Err(code) => Err(refused("delete", path, code)),
        }
    }

    async fn children(&mut self, path: &str) -> Result<Vec<String>> {
        match self
            .ask(jute::GET_CHILDREN, |o| o.bytes(path.as_bytes()).flag(false))
            .await?
        {
            Ok(body) => In(&body).strings(MAX_ADDRESSES).ok_or_else(odd),
            Err(jute::NO_NODE) => Ok(Vec::new()),
            Err(code) => Err(refused("list", path, code)),
        }
    }

    async fn close(mut self) -> Result<()> {
        self.ask(jute::CLOSE, |o| o).await.map(|_| ())
    }

    /// Says that it lives until it is told to end, or the connection breaks.
    async fn keep(mut self, mut end: oneshot::Receiver<()>) {
        let mut beat = interval(self.time / 3);
        loop {
            tokio::select! {
                _ = &mut end => {
                    let _ = self.close().await;
                    return;
                }
                _ = beat.tick() => {
                    let ping = Out::request(jute::PING_XID, jute::PING).frame();
                    let pinged = timeout(EACH, async {
                        self.stream.write_all(&ping).await?;
                        read(&mut self.stream).await
                    });
                    if !matches!(pinged.await, Ok(Ok(_))) {
                        return;
                    }
                }
            }
        }
    }
}

/// Session time in the answer to the first message; 0: refused.
fn granted(message: &[u8]) -> Option<Duration> {
    let mut m = In(message);
    let _protocol = m.int()?;
    let ms = u64::try_from(m.int()?).ok()?;
    let (_session, _password) = (m.long()?, m.bytes()?);
    Some(Duration::from_millis(ms))
}

/// What an answer says, whatever was asked.
pub(super) fn look_at(message: &[u8]) {
    let _ = granted(message);
    let mut m = In(message);
    if let (Some(_), Some(_), Some(_)) = (m.int(), m.long(), m.int()) {
        let _ = m.strings(MAX_ADDRESSES);
    }
}

fn odd() -> Error {
    Error::new(ErrorKind::InvalidData, "an answer that ZooKeeper does not give")
}

fn refused(what: &str, path: &str, code: i32) -> Error {
    Error::other(format!("it refuses to {what} {path} (code {code})"))
}

async fn read(stream: &mut TcpStream) -> Result<Vec<u8>> {
    crate::rpc::frame::read_bytes(stream, MAX_MESSAGE).await
}
