//! The contender: three members of etcd, asked in gRPC (its KV service, Put).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lab::{Host, Lab, Options, Process, eventually};
use tokio::net::TcpStream;

use super::{Cluster, Writer};
use crate::packages;

pub(super) struct Members {
    // The members end before their hosts.
    _members: Vec<Process>,
    lab: Lab,
}

impl Members {
    pub(super) fn new(programs: &Path, disk: &Path) -> anyhow::Result<Members> {
        packages::ensure(packages::ETCD)?;
        let lab = Lab::new(
            "raft-etcd",
            Options {
                nodes: 3,
                clients: 0,
                ipv6: false,
                bin_dir: Some(programs.to_owned()),
                ..Options::default()
            },
        )?;
        let peer = |h: &Host| format!("http://{}:2380", h.v4());
        let all: Vec<String> = lab
            .nodes()
            .iter()
            .map(|h| format!("{}={}", h.name(), peer(h)))
            .collect();
        let all = all.join(",");
        let mut members = Vec::new();
        for node in lab.nodes() {
            let data = disk.join(format!("etcd-{}", node.name())).display().to_string();
            let client = format!("http://{}:2379", node.v4());
            let argv = [
                "etcd",
                "--name",
                node.name(),
                "--data-dir",
                &data,
                "--listen-peer-urls",
                &peer(node),
                "--initial-advertise-peer-urls",
                &peer(node),
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
                "--initial-cluster",
                &all,
                "--initial-cluster-state",
                "new",
                "--logger",
                "zap",
                "--log-level",
                "error",
            ];
            members.push(node.spawn("etcd", &argv)?);
        }
        for node in lab.nodes() {
            eventually("etcd to be healthy", Duration::from_secs(30), || {
                let out = node.sh(&format!(
                    "etcdctl --endpoints http://{}:2379 endpoint health",
                    node.v4()
                ))?;
                ensure!(out.success(), "{}", out.all());
                Ok(true)
            })?;
        }
        Ok(Members { _members: members, lab })
    }
}

impl Cluster for Members {
    async fn writer(&self, server: usize) -> anyhow::Result<Writer> {
        let node = self.lab.nodes().get(server).context("no such member")?;
        let socket = node.connect(2379)?;
        socket.set_nodelay(true).context("a client's socket")?;
        socket.set_nonblocking(true).context("a client's socket")?;
        let stream = TcpStream::from_std(socket).context("a client's socket")?;
        let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .context("HTTP/2 with etcd")?;
        tokio::spawn(connection);
        Ok(Writer::Etcd(Connection { send }))
    }
}

pub(super) struct Connection {
    send: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Puts a value of some octets under one of a hundred keys.
    pub(super) async fn write(&mut self, n: u64) -> anyhow::Result<()> {
        let message = put(format!("settings/{}", n % 100).as_bytes(), n.to_string().as_bytes());
        let request = Request::post("http://etcd/etcdserverpb.KV/Put")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(message)))
            .context("a request")?;
        self.send.ready().await.context("etcd closed the connection")?;
        let answer = self.send.send_request(request).await.context("asking etcd")?;
        let early = answer.headers().get("grpc-status").cloned();
        let body = answer.into_body().collect().await.context("etcd's answer")?;
        let late = body.trailers().and_then(|t| t.get("grpc-status")).cloned();
        let status = early.or(late).context("etcd told no status")?;
        ensure!(status == "0", "etcd said gRPC status {status:?}");
        Ok(())
    }
}

/// `PutRequest { key = 1, value = 2 }` of etcd's rpc.proto in a gRPC frame: not compressed, four octets of length.
fn put(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    for (number, bytes) in [(1u8, key), (2, value)] {
        // Below 128 octets a length is one octet (protobuf's varint).
        message.extend([number << 3 | 2, u8::try_from(bytes.len()).unwrap_or(127).min(127)]);
        message.extend(bytes.iter().take(127));
    }
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    frame.extend(message);
    frame
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_put_is_framed() {
        assert_eq!(
            super::put(b"a", b"bc"),
            [0, 0, 0, 0, 7, 0x0a, 1, b'a', 0x12, 2, b'b', b'c']
        );
    }
}
