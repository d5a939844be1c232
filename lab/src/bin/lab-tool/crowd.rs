//! Many connections in one thread, in as few system calls as it takes: what a client costs is not what is measured, and where
//! system calls are slow (User-Mode Linux: 25 microseconds each) it would be most of it.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

/// The longest answer.
const LINE: usize = 512;

/// Begins a connection; the first request can be written when it is writable, and a failure is told then.
pub(super) fn begin(to: SocketAddr) -> Result<TcpStream> {
    open(to, SockType::Stream)
}

/// A socket of its own for datagrams; reading and writing are the same. The first one can be written at once.
pub(super) fn datagrams(to: SocketAddr) -> Result<TcpStream> {
    open(to, SockType::Datagram)
}

fn open(to: SocketAddr, kind: SockType) -> Result<TcpStream> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, kind, flags, None)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd.into()),
        Err(error) => Err(error.into()),
    }
}

/// Writes a request, which is short: the kernel takes all of it at once.
pub(super) fn ask(mut stream: &TcpStream, request: &[u8]) -> Result<()> {
    match stream.write(request)? {
        n if n == request.len() => Ok(()),
        _ => Err(ErrorKind::WriteZero.into()),
    }
}

/// What was read of an answer.
pub(super) struct Line {
    octets: [u8; LINE],
    length: usize,
}

/// How far an answer has come.
pub(super) enum Came {
    /// There is more to wait for.
    Part,
    /// To its end of line.
    Whole,
    /// The other side has closed.
    End,
}

impl Line {
    pub(super) const fn new() -> Line {
        Line {
            octets: [0; LINE],
            length: 0,
        }
    }

    /// Reads what is there.
    pub(super) fn read(&mut self, mut stream: &TcpStream) -> Result<Came> {
        let rest = self.octets.get_mut(self.length..).unwrap_or_default();
        if rest.is_empty() {
            return Err(std::io::Error::new(ErrorKind::InvalidData, "an answer without end"));
        }
        match stream.read(rest) {
            Ok(0) => Ok(Came::End),
            Ok(n) => {
                self.length += n;
                match self.text().ends_with('\n') {
                    true => Ok(Came::Whole),
                    false => Ok(Came::Part),
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(Came::Part),
            Err(e) => Err(e),
        }
    }

    /// Empty where it is no text.
    pub(super) fn text(&self) -> &str {
        let octets = self.octets.get(..self.length).unwrap_or_default();
        std::str::from_utf8(octets).unwrap_or_default()
    }

    pub(super) fn clear(&mut self) {
        self.length = 0;
    }
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// That it can be written to, or has failed.
    Writable,
    /// That there is something to read, the end included.
    Readable,
}

/// Waits until one of the connections has what it waits for, or until `due`; tells of each whether it has.
pub(super) fn wait<'s>(
    all: impl Iterator<Item = (&'s TcpStream, For)>,
    now: Instant,
    due: Option<Instant>,
) -> Result<Vec<bool>> {
    let mut asked: Vec<PollFd<'s>> = all
        .map(|(stream, what)| {
            let flags = match what {
                For::Writable => PollFlags::POLLOUT,
                For::Readable => PollFlags::POLLIN,
            };
            PollFd::new(stream.as_fd(), flags)
        })
        .collect();
    // A part of a millisecond is a whole one: else the last one is a circle of questions.
    let time = |due: Instant| {
        let left = due.saturating_duration_since(now) + Duration::from_micros(999);
        i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
    };
    let time = due.map_or(PollTimeout::NONE, |due| {
        PollTimeout::try_from(time(due)).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut asked, time) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    // Errors and hang-ups too: who reads or writes is told what it is.
    Ok(asked.iter().map(|fd| fd.any().unwrap_or(true)).collect())
}
