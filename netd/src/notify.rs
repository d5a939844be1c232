//! The service manager's notification protocol (sd_notify(3)): a datagram to `$NOTIFY_SOCKET`.

use std::os::{
    linux::net::SocketAddrExt,
    unix::net::{SocketAddr, UnixDatagram},
};

/// Tells that the first plan is applied.
pub fn ready() {
    send("READY=1");
}

/// Tells that netd is stopping.
pub fn stopping() {
    send("STOPPING=1");
}

fn send(text: &str) {
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(e) = try_send(&path, text) {
        tracing::warn!("NOTIFY_SOCKET {path}: {e}");
    }
}

fn try_send(path: &str, text: &str) -> std::io::Result<()> {
    let addr = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &addr)?;
    Ok(())
}
