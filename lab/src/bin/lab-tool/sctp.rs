//! SCTP in its one-to-one style, which reads and writes as TCP does (RFC 6458, 4).

use std::io::Result;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen as queue, socket,
};

fn open() -> Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Inet6,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Sctp,
    )?)
}

/// On all addresses of both families.
pub(crate) fn listen(port: u16, backlog: i32) -> Result<TcpListener> {
    let fd = open()?;
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    bind(fd.as_raw_fd(), &SockaddrStorage::from(at))?;
    queue(&fd, Backlog::new(backlog)?)?;
    Ok(fd.into())
}
