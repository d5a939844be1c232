//! Client of the Unix socket, here or behind `ssh`: one request a connection, and watch streams that reconnect.
//!
//! For netctl, netd-run and tests. Every failure is an [`ApiError`], so that a caller has one shape to print: what netd
//! answered, or [`Code::Unreachable`] with a hint when netd could not be asked.

mod target;
mod watch;

#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{task::JoinHandle, time::timeout};

use self::target::Helper;
use crate::{ApiError, Code, api::STALE_HEADER};

pub use target::{Ssh, Target};
pub use watch::{MAX_LINE, Watch, WatchEvent};

/// Where netd listens when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/netd/netd.sock";

/// Environment variable that names another one: a path, or `ssh://[user@]host[:port][/path]`.
pub const SOCKET_ENV: &str = "NETD_SOCKET";

/// How long an answer is waited for, unless [`Client::with_timeout`] says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest answer that is read, octets. A thousand nodes with a hundred thousand backends stay below it.
pub const MAX_ANSWER: usize = 64 << 20;

/// A client of one netd. Cheap to clone; holds no connection.
#[derive(Debug, Clone)]
pub struct Client {
    target: Target,
    timeout: Duration,
    notice: Option<fn(&str)>,
}

impl Client {
    /// A client of the netd that listens on `socket`. Nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Client::to(Target::Unix(socket.into()))
    }

    /// A client of a netd here or behind ssh. Nothing is opened yet.
    pub fn to(target: Target) -> Self {
        Client {
            target,
            timeout: DEFAULT_TIMEOUT,
            notice: None,
        }
    }

    /// The same client with another limit for a whole request; a watch has it for its head alone.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same client, which tells why an answer may be old: no leader could be asked.
    pub fn with_notice(mut self, notice: fn(&str)) -> Self {
        self.notice = Some(notice);
        self
    }

    /// Which netd is asked.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// `GET path`.
    ///
    /// # Errors
    /// What netd answered, or [`Code::Unreachable`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// `PUT path` with a JSON body: an idempotent upsert.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> Result<T, ApiError> {
        self.call(Method::PUT, path, encode(body)?).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> Result<T, ApiError> {
        self.call(Method::POST, path, encode(body)?).await
    }

    /// `DELETE path`. An empty answer reads as `null`: take `()` or [`serde::de::IgnoredAny`].
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call(Method::DELETE, path, Bytes::new()).await
    }

    /// The lines of `GET path`, for ever. `resume` reads from a line what is sent as `resume=` when the stream is opened
    /// again, so that netd may leave out what is known; `None` asks for a snapshot each time.
    pub fn watch<T: DeserializeOwned>(&self, path: &str, resume: fn(&T) -> Option<String>) -> Watch<T> {
        Watch::new(self.clone(), path.to_owned(), resume)
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, ApiError> {
        let what = format!("{method} {path}");
        let exchange = async {
            let (response, _connection) = self.send(method, path, body).await?;
            let status = response.status();
            if let Some(tell) = self.notice
                && let Some(why) = response.headers().get(STALE_HEADER).and_then(|v| v.to_str().ok())
            {
                tell(why);
            }
            let bytes = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|e| self.unreachable(format!("the answer to {what} broke off: {e}")))?
                .to_bytes();
            Ok::<_, ApiError>((status, bytes))
        };
        let (status, bytes) = timeout(self.timeout, exchange).await.map_err(|_| self.slow(&what))??;
        decode(&what, status, &bytes)
    }

    /// Sends a request and reads the head of the answer. The connection lives as long as the guard.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, Connection), ApiError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "netd")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(body))
            .map_err(|e| ApiError::new(Code::Invalid, format!("{path:?} is not a path: {e}"), ""))?;
        let (mut sender, mut connection) = self.connect().await?;
        match sender.send_request(request).await {
            Ok(response) => Ok((response, connection)),
            Err(e) => Err(match connection.helper.complaint().await {
                said if said.is_empty() => self.unreachable(format!("netd closed the connection: {e}")),
                said => self.unreachable(said),
            }),
        }
    }

    async fn connect(&self) -> Result<(SendRequest<Full<Bytes>>, Connection), ApiError> {
        let (stream, helper) = target::connect(&self.target).await.map_err(|e| self.no_socket(&e))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.unreachable(format!("no HTTP on the socket: {e}")))?;
        let task = tokio::spawn(async move {
            // Its error reaches the one who waits for the answer, too.
            let _ = connection.await;
        });
        Ok((sender, Connection { task, helper }))
    }

    fn no_socket(&self, e: &io::Error) -> ApiError {
        let socket = match &self.target {
            Target::Unix(path) => path.display(),
            Target::Ssh(_) => {
                return ApiError::new(
                    Code::Unreachable,
                    format!("cannot reach netd: the program ssh cannot be started: {e}"),
                    "apt-get install openssh-client",
                );
            }
        };
        match e.kind() {
            io::ErrorKind::NotFound => ApiError::new(
                Code::Unreachable,
                format!("cannot reach netd: there is no socket {socket}, so it is not running here"),
                "systemctl status netd",
            ),
            io::ErrorKind::ConnectionRefused => ApiError::new(
                Code::Unreachable,
                format!("cannot reach netd: nobody listens on {socket}, so it has stopped"),
                "systemctl status netd",
            ),
            io::ErrorKind::PermissionDenied => ApiError::new(
                Code::Unreachable,
                format!("cannot reach netd: {socket} is not open to this user"),
                "sudo netctl ...",
            ),
            _ => self.unreachable(format!("connect: {e}")),
        }
    }

    fn unreachable(&self, why: String) -> ApiError {
        let hint = match &self.target {
            Target::Unix(_) => "systemctl status netd".to_owned(),
            Target::Ssh(ssh) => format!("ssh {} netctl status", ssh.host),
        };
        ApiError::new(
            Code::Unreachable,
            format!("cannot reach netd on {}: {why}", self.target),
            hint,
        )
    }

    fn slow(&self, what: &str) -> ApiError {
        self.unreachable(format!("no answer to {what} within {} s", self.timeout.as_secs_f32()))
    }
}

/// Ends the task that drives a connection when the request is over or given up.
#[derive(Debug)]
struct Connection {
    task: JoinHandle<()>,
    helper: Helper,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn encode(body: &impl Serialize) -> Result<Bytes, ApiError> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|e| ApiError::new(Code::Invalid, format!("the request cannot be written as JSON: {e}"), ""))
}

fn decode<T: DeserializeOwned>(what: &str, status: StatusCode, bytes: &[u8]) -> Result<T, ApiError> {
    if !status.is_success() {
        return Err(refusal(what, status, bytes));
    }
    let text: &[u8] = if bytes.is_empty() { b"null" } else { bytes };
    serde_json::from_slice(text).map_err(|e| foreign(what, &e))
}

/// The error in an answer; one is made up when it holds none (another program on the socket, an older netd).
fn refusal(what: &str, status: StatusCode, bytes: &[u8]) -> ApiError {
    if let Ok(e) = serde_json::from_slice::<ApiError>(bytes) {
        return e;
    }
    let text: String = String::from_utf8_lossy(bytes).trim().chars().take(200).collect();
    let code = match status.as_u16() {
        400 => Code::Invalid,
        403 => Code::Forbidden,
        404 => Code::NotFound,
        409 => Code::Conflict,
        501 => Code::Unsupported,
        503 => Code::Unavailable,
        _ => Code::Internal,
    };
    ApiError::new(
        code,
        format!("{what}: netd answered {status} {text}").trim_end().to_owned(),
        "netd --version; netctl --version",
    )
}

fn foreign(what: &str, e: &serde_json::Error) -> ApiError {
    ApiError::new(
        Code::Internal,
        format!("the answer to {what} is not understood, is netd of another version? {e}"),
        "netd --version; netctl --version",
    )
}
