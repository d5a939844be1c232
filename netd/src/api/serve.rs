//! The accept loop: who may connect, how many, and how long a head may take.

use std::{
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
            // A daemon that was killed keeps its socket until its last thread has come back from the kernel.
            Ok(_) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok(_) => {
                return Err(std::io::Error::other(format!(
                    "another netd answers on {}; try: systemctl status netd, or another [node] run_dir",
                    path.display()
                )));
            }
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
                break;
            }
            Err(_) => break,
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
