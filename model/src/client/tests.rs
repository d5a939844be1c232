//! Against a socket that plays netd, octet by octet.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use super::{Client, MAX_LINE, WatchEvent, watch::Lines};
use crate::{ApiError, Code};

/// A folder that is removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("netd-client-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
    fn socket(&self) -> PathBuf {
        self.0.join("netd.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn head(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    while !text.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut one = [0; 1];
        if stream.read(&mut one).await.unwrap() == 0 {
            break;
        }
        text.extend_from_slice(&one);
    }
    String::from_utf8(text).unwrap()
}

/// Answers each connection with the next of `answers`, verbatim; gives back the request lines.
async fn serve(listener: UnixListener, answers: Vec<String>) -> Vec<String> {
    let mut asked = Vec::new();
    for answer in answers {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = head(&mut stream).await;
        asked.push(request.lines().next().unwrap_or_default().to_owned());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    asked
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn stream(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}")
}

#[tokio::test]
async fn absent_and_refused_sockets_say_what_to_look_at() {
    let folder = Folder::new();
    let client = Client::new(folder.socket());
    let absent = client.get::<u32>("/v1/nodes").await.unwrap_err();
    assert_eq!(absent.code, Code::Unreachable);
    assert_eq!(absent.hint, "systemctl status netd");
    assert!(absent.retryable);

    drop(UnixListener::bind(folder.socket()).unwrap());
    let refused = client.get::<u32>("/v1/nodes").await.unwrap_err();
    assert_eq!(refused.code, Code::Unreachable);
    assert!(refused.message.contains("nobody listens"), "{refused}");
}

#[tokio::test]
async fn answers_and_refusals() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let client = Client::new(folder.socket());
    let refusal = ApiError::new(Code::Ambiguous, "two fit", "netctl service publish web 80");
    let server = tokio::spawn(serve(
        listener,
        vec![
            http("200 OK", "[1,2]"),
            http("204 No Content", ""),
            http("409 Conflict", &serde_json::to_string(&refusal).unwrap()),
            http("404 Not Found", "no such page"),
            http("200 OK", "<html>"),
        ],
    ));
    assert_eq!(client.get::<Vec<u32>>("/a").await.unwrap(), [1, 2]);
    client.delete::<()>("/b").await.unwrap();
    assert_eq!(client.post::<()>("/c", &"body").await.unwrap_err(), refusal);
    let unknown = client.put::<()>("/d", &1).await.unwrap_err();
    assert_eq!(unknown.code, Code::NotFound);
    assert!(unknown.message.contains("no such page"), "{unknown}");
    let foreign = client.get::<u32>("/e").await.unwrap_err();
    assert_eq!(foreign.code, Code::Internal);
    assert_eq!(
        server.await.unwrap(),
        [
            "GET /a HTTP/1.1",
            "DELETE /b HTTP/1.1",
            "POST /c HTTP/1.1",
            "PUT /d HTTP/1.1",
            "GET /e HTTP/1.1"
        ]
    );
}

#[tokio::test]
async fn silence_ends_with_the_timeout() {
    let folder = Folder::new();
    let _listener = UnixListener::bind(folder.socket()).unwrap();
    let client = Client::new(folder.socket()).with_timeout(Duration::from_millis(50));
    let e = client.get::<u32>("/v1/status").await.unwrap_err();
    assert_eq!(e.code, Code::Unreachable);
    assert!(e.message.contains("/v1/status"), "{e}");
}

#[tokio::test]
async fn a_request_that_is_no_path_is_refused_before_anything_is_sent() {
    let client = Client::new("/nonexistent/netd.sock");
    let e = client.get::<u32>("/v1/a b").await.unwrap_err();
    assert_eq!(e.code, Code::Invalid);
}

#[derive(Debug, PartialEq, Deserialize)]
struct Line {
    revision: u64,
}

async fn item(watch: &mut super::Watch<Line>) -> u64 {
    match watch.next().await {
        WatchEvent::Item(l) => l.revision,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_watch_reconnects_and_resumes() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let client = Client::new(folder.socket());
    let server = tokio::spawn(serve(
        listener,
        vec![
            stream("{\"revision\":1}\n\n{\"revision\":2}\n{\"revi"),
            http("503 Service Unavailable", ""),
            stream("{\"revision\":3}\n"),
        ],
    ));
    let mut watch = client.watch::<Line>("/v1/watch?resource=x", |l| Some(l.revision.to_string()));
    assert!(matches!(watch.next().await, WatchEvent::Up));
    assert_eq!(item(&mut watch).await, 1);
    assert_eq!(item(&mut watch).await, 2);
    assert!(matches!(watch.next().await, WatchEvent::Down(e) if e.code == Code::Unreachable));
    // The refused attempt in between is not told again.
    assert!(matches!(watch.next().await, WatchEvent::Up));
    assert_eq!(item(&mut watch).await, 3);
    assert_eq!(
        server.await.unwrap(),
        [
            "GET /v1/watch?resource=x HTTP/1.1",
            "GET /v1/watch?resource=x&resume=2 HTTP/1.1",
            "GET /v1/watch?resource=x&resume=2 HTTP/1.1",
        ]
    );
}

#[tokio::test]
async fn a_watch_may_be_dropped_in_between() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let client = Client::new(folder.socket());
    let mut watch = client.watch::<Line>("/v1/watch", |_| None);
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"rev")
            .await
            .unwrap();
        stream
    });
    assert!(matches!(watch.next().await, WatchEvent::Up));
    let mut stream = server.await.unwrap();
    for _ in 0..20 {
        tokio::select! {
            biased;
            e = watch.next() => panic!("{e:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    stream.write_all(b"ision\":7}\n").await.unwrap();
    assert_eq!(item(&mut watch).await, 7);
}

#[tokio::test]
async fn a_line_that_is_no_json_breaks_the_stream() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let client = Client::new(folder.socket());
    let server = tokio::spawn(serve(
        listener,
        vec![stream("nonsense\n"), stream("{\"revision\":4}\n")],
    ));
    let mut watch = client.watch::<Line>("/v1/watch", |_| None);
    assert!(matches!(watch.next().await, WatchEvent::Up));
    assert!(matches!(watch.next().await, WatchEvent::Down(e) if e.code == Code::Internal));
    assert!(matches!(watch.next().await, WatchEvent::Up));
    assert_eq!(item(&mut watch).await, 4);
    server.await.unwrap();
}

#[test]
fn lines_are_bounded() {
    let mut lines = Lines::default();
    lines.push(b"a\nb").unwrap();
    lines.push(b"c\n\n").unwrap();
    assert_eq!(lines.pop().unwrap(), b"a");
    assert_eq!(lines.pop().unwrap(), b"bc");
    assert_eq!(lines.pop().unwrap(), b"");
    assert!(lines.pop().is_none());
    let chunk = vec![b'x'; MAX_LINE / 2];
    lines.push(&chunk).unwrap();
    lines.push(&chunk).unwrap();
    assert!(lines.push(b"x").is_err());
}
