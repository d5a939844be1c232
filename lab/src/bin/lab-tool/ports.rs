//! Connections whose port on this side is told.

use std::io::{ErrorKind, Result};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect as to, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// All addresses of this side that a socket towards `to` can have, with a port; none: the kernel chooses one.
pub(crate) fn any(to: SocketAddr, from: Option<u16>) -> SocketAddr {
    let port = from.unwrap_or(0);
    match to {
        SocketAddr::V4(_) => ([0; 4], port).into(),
        SocketAddr::V6(_) => ([0; 16], port).into(),
    }
}

/// By TCP, or by SCTP in its one-to-one style.
pub(crate) fn connect(at: SocketAddr, by: SockProtocol, from: Option<u16>, timeout: Duration) -> Result<TcpStream> {
    let family = if at.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, by)?;
    let limit = TimeVal::new(
        timeout.as_secs().try_into().unwrap_or(i64::MAX),
        timeout.subsec_micros().into(),
    );
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    if from.is_some() {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(any(at, from)))?;
    }
    match to(fd.as_raw_fd(), &SockaddrStorage::from(at)) {
        // What a connect says whose time is over.
        Err(Errno::EINPROGRESS) => Err(ErrorKind::TimedOut.into()),
        done => {
            done?;
            Ok(fd.into())
        }
    }
}
