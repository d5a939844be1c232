//! Reaching into a host from the process that owns the lab.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

use crate::host::Host;

const PATIENCE: Duration = Duration::from_secs(5);

impl Host {
    /// A TCP connection to a port of the host's own address, opened within the host.
    ///
    /// # Errors
    ///
    /// When nobody listens there.
    pub fn connect(&self, port: u16) -> anyhow::Result<TcpStream> {
        let path = format!("/proc/{}/ns/net", self.init_pid());
        let namespace = File::open(&path).with_context(|| format!("opening {path}"))?;
        let to = SocketAddr::from((self.address(), port));
        // A thread of its own: the caller stays where it is.
        let connected = std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).context("entering the host's network")?;
            TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connecting to {to}"))
        });
        match connected.join() {
            Ok(connected) => connected,
            Err(_) => bail!("connecting to {to} panicked"),
        }
    }
}
