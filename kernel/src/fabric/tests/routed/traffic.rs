//! What is sent there.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    thread,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, getsockopt, recv, sendto, setsockopt,
    sockopt::{ReceiveTimeout, TcpMaxSeg},
};

use super::*;

pub(super) fn at(address: &str, port: u16) -> String {
    SocketAddr::new(address.parse().unwrap(), port).to_string()
}

/// Echo requests until one is answered; the answer's source, `None`: none within five seconds. (A new cable may lose the
/// first: linkwatch of the kernel wakes some of them up to a second later.)
pub(super) fn ping(from: &Netns, to: &str) -> Option<IpAddr> {
    let to: IpAddr = to.parse().unwrap();
    let (family, protocol, ask, answer) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8u8, 0u8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    netns::run_in(from, || {
        let fd = nix::sys::socket::socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
        setsockopt(&fd, ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 250_000)).unwrap();
        let mut echo = [ask, 0, 0, 0, 0x6e, 0x65, 0, 1];
        // RFC 1071; of ICMPv6 the kernel fills it in.
        let sum: u32 = echo
            .chunks(2)
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
            .sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        let to_socket = SockaddrStorage::from(SocketAddr::new(to, 0));
        let start = Instant::now();
        let mut buffer = [0u8; 256];
        while start.elapsed() < Duration::from_secs(5) {
            // Refused is: not yet.
            let _ = sendto(fd.as_raw_fd(), &echo, &to_socket, MsgFlags::empty());
            let Ok(n) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) else {
                continue;
            };
            // IPv4 comes with its header.
            let icmp = if to.is_ipv4() { &buffer[20..n] } else { &buffer[..n] };
            if icmp[0] == answer && icmp[4..6] == [0x6e, 0x65] {
                return Some(if to.is_ipv4() {
                    IpAddr::from([buffer[12], buffer[13], buffer[14], buffer[15]])
                } else {
                    to
                });
            }
        }
        None
    })
    .unwrap()
}

/// A megabyte there and back; the segment size that was agreed.
pub(super) fn tcp(client: &Netns, server: &Netns, address: &str, port: u16, seen: &str) -> u32 {
    let listener = netns::run_in(server, || TcpListener::bind(at(address, port)).unwrap()).unwrap();
    let echo = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
        peer
    });
    let mut stream = netns::run_in(client, || {
        TcpStream::connect_timeout(&at(address, port).parse().unwrap(), Duration::from_secs(5)).unwrap()
    })
    .unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let segment = getsockopt(&stream, TcpMaxSeg).unwrap();
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let sent = data.clone();
    let out = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    out.join().unwrap();
    assert!(back == data);
    assert_eq!(
        echo.join().unwrap().ip().to_string(),
        seen,
        "no other source on the way"
    );
    segment
}

/// Whether datagrams over IPv6 leave without a checksum.
pub(super) fn without_checksum(socket: &UdpSocket, on: bool) {
    /// Of linux/udp.h.
    const UDP_NO_CHECK6_TX: libc::c_int = 101;
    let on = libc::c_int::from(on);
    let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel reads `length` octets at the pointer, which are those of `on`.
    let done = unsafe { libc::setsockopt(fd, libc::SOL_UDP, UDP_NO_CHECK6_TX, (&raw const on).cast(), length) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A frame of VXLAN: from `mac`, IPv4 UDP from `source` to port 700 of a task.
pub(super) fn frame(mac: Mac, to: Mac, source: [u8; 4], task: [u8; 4], text: u8) -> Vec<u8> {
    frame_to(mac, to, source, task, 700, text)
}

pub(super) fn frame_to(mac: Mac, to: Mac, source: [u8; 4], task: [u8; 4], port: u16, text: u8) -> Vec<u8> {
    let mut out = vec![8, 0, 0, 0];
    out.extend((4096u32 << 8).to_be_bytes());
    out.extend(to.0);
    out.extend(mac.0);
    out.extend([8, 0]);
    let mut ip = vec![0x45, 0, 0, 29, 0, 0, 0, 0, 9, 17, 0, 0];
    ip.extend(source);
    ip.extend(task);
    let sum: u32 = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    out.extend(ip);
    // Source and destination port, length, no checksum.
    out.extend([0x30, 0x39]);
    out.extend(port.to_be_bytes());
    out.extend([0, 9, 0, 0, text]);
    out
}
