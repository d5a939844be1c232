//! The accept loop: who may connect, how many, and how long a head may take.

use std::{
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

/// Connections at once; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 256;
/// Longest time for a request's head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a daemon that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(3);

/// Makes the socket. A socket file that nobody answers on is a dead daemon's and replaced; a living one is an error.
pub async fn listen(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let until = Instant::now() + DYING;
    loop {
        match UnixStream::connect(path).await {
            Err(e) if e.kind() == ErrorKind::NotFound => break,
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
                break;
            }
            // A daemon that was killed keeps its socket until its last thread has come back from the kernel; when it
            // lets go of it just now, the connection is reset.
            _ if Instant::now() < until => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok(_) => {
                return Err(std::io::Error::other(format!(
                    "another netd answers on {}; try: systemctl status netd, or another [node] run_dir",
                    path.display()
                )));
            }
            Err(e) => return Err(e),
        }
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the task is dropped.
pub async fn serve(listener: UnixListener, router: Router) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((s, _)) => s,
            Err(e) => {
                // Out of descriptors, say: the listener stays, the next round may succeed.
                tracing::warn!("the socket cannot accept: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // The file's mode keeps others out; this holds where a copy of the descriptor was handed on.
        match stream.peer_cred() {
            Ok(c) if c.uid() == 0 || c.uid() == nix::unistd::geteuid().as_raw() => {}
            _ => continue,
        }
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _place = place;
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(e) = served {
                tracing::debug!("a connection on the socket ended: {e}");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_of_a_dying_daemon_is_taken_over_whenever_it_lets_go() {
        let dir = std::env::temp_dir().join(format!("netd-listen-{}", std::process::id()));
        let path = dir.join("netd.sock");
        std::fs::create_dir_all(&dir).unwrap();
        for n in 0..40 {
            let _ = std::fs::remove_file(&path);
            let dying = std::os::unix::net::UnixListener::bind(&path).unwrap();
            // At the moment of the look, at some time before or after it, or in the middle of it.
            let end = std::thread::spawn(move || {
                let until = Instant::now() + Duration::from_micros(n * 5);
                while Instant::now() < until {}
                drop(dying);
            });
            let taken = listen(&path).await;
            end.join().unwrap();
            assert!(taken.is_ok(), "after {} us: {taken:?}", n * 5);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
