//! netd's socket, asked over a connection that stays open: a process for each request would be most of what is measured.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use lab::Host;
use tokio::net::UnixStream;

pub(super) struct Socket {
    send: SendRequest<Full<Bytes>>,
}

impl Socket {
    /// Connects to the netd of a host.
    pub(super) async fn connect(host: &Host) -> anyhow::Result<Socket> {
        let socket: PathBuf = format!("/proc/{}/root/run/netd/netd.sock", host.init_pid()).into();
        let stream = UnixStream::connect(&socket).await.context("connecting to netd")?;
        let (send, connection) = handshake(TokioIo::new(stream)).await.context("HTTP with netd")?;
        tokio::spawn(connection);
        Ok(Socket { send })
    }

    /// Asks; the answer's body, of one that says that all went well.
    pub(super) async fn ask(&mut self, method: Method, path: &str, body: String) -> anyhow::Result<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "netd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .context("a request")?;
        self.send.ready().await.context("netd closed the connection")?;
        let answer = self.send.send_request(request).await.context("asking netd")?;
        let status = answer.status();
        let body = answer.into_body().collect().await.context("netd's answer")?.to_bytes();
        ensure!(
            status.is_success(),
            "netd said {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(body)
    }
}
