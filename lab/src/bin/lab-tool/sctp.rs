//! SCTP in its one-to-one style, which reads and writes as TCP does (RFC 6458, 4).

use std::io::Result;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect as to, listen as queue,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

fn open(six: bool) -> Result<OwnedFd> {
    let family = if six { AddressFamily::Inet6 } else { AddressFamily::Inet };
    Ok(socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Sctp,
    )?)
}

/// On all addresses of both families.
pub(crate) fn listen(port: u16, backlog: i32) -> Result<TcpListener> {
    let fd = open(true)?;
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    bind(fd.as_raw_fd(), &SockaddrStorage::from(at))?;
    queue(&fd, Backlog::new(backlog)?)?;
    Ok(fd.into())
}

pub(crate) fn connect(at: SocketAddr, timeout: Duration) -> Result<TcpStream> {
    let fd = open(at.is_ipv6())?;
    let limit = TimeVal::new(
        timeout.as_secs().try_into().unwrap_or(i64::MAX),
        timeout.subsec_micros().into(),
    );
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    to(fd.as_raw_fd(), &SockaddrStorage::from(at))?;
    Ok(fd.into())
}
