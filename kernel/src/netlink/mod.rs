//! The one executor of netlink messages: rtnetlink, nf_tables and sock_diag all pass here.
//!
//! A socket belongs to the network namespace of the thread that opened it, for ever; it may be used from any thread.
//! Requests travel in chains of at most [`CHAIN`] a system call. The kernel works on a chain inside `sendmsg`, goes on
//! after a message that it refused, and tells each refusal by its sequence number: so plans must be idempotent, and each
//! request has a result of its own. An acknowledgement is asked for the last one alone, which comes after all refusals:
//! each answer is a datagram of its own, and taking one for each request was most of what a chain cost.

mod attrs;
mod error;

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_sys::SocketAddr;
use nix::sys::{
    socket::{MsgFlags, recv, setsockopt, sockopt},
    time::TimeVal,
};

pub(crate) use attrs::{Attrs, Writer};
pub use error::{NetlinkError, Refusal};

/// Most requests in one send. With 256 the answers overflow the default receive buffer (ENOBUFS).
const CHAIN: usize = 128;
/// Most octets in one send; the socket's send buffer is 208 KiB by default (net.core.wmem_default).
const CHAIN_OCTETS: usize = 64 << 10;
/// Buffers asked of the kernel, octets: room for a chain's answers, a burst of events, a transaction in one piece.
const BUFFER: usize = 4 << 20;
/// Octets of one datagram. The kernel fills dumps up to 32 KiB (NLMSG_GOODSIZE) when the reader offers as much.
const DATAGRAM: usize = 64 << 10;
/// The kernel answers within `sendmsg`; waiting longer means that an answer was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a dump that changed under our eyes is begun anew.
const DUMP_RETRIES: usize = 10;
/// Octets of `struct nlmsghdr`.
const HEADER: usize = 16;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A request: what follows `struct nlmsghdr`, and what the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) body: Vec<u8>,
}

/// A message from the kernel, without its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

/// A blocking netlink socket.
pub(crate) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of a family (`NETLINK_ROUTE`, ...) in the calling thread's network namespace.
    pub(crate) fn open(family: isize) -> Result<Self, NetlinkError> {
        let open = |source| NetlinkError::Open { family, source };
        let mut inner = netlink_sys::Socket::new(family).map_err(open)?;
        inner.bind_auto().map_err(open)?;
        // Neither is vital: without them errors carry less text, or repeat the request.
        let _ = inner.set_ext_ack(true);
        let _ = inner.set_cap_ack(true);
        let _ = setsockopt(&inner, sockopt::RcvBufForce, &BUFFER);
        let _ = setsockopt(&inner, sockopt::SndBufForce, &BUFFER);
        let limit = TimeVal::new(ANSWER_TIMEOUT.as_secs() as i64, 0);
        setsockopt(&inner, sockopt::ReceiveTimeout, &limit).map_err(|e| open(e.into()))?;
        Ok(Socket {
            inner,
            sequence: 0,
            buffer: vec![0; DATAGRAM],
        })
    }

    /// Joins a multicast group.
    pub(crate) fn join(&mut self, group: u32) -> Result<(), NetlinkError> {
        self.inner.add_membership(group).map_err(NetlinkError::Receive)
    }

    /// Lets [`Socket::receive`] wait without end, as a subscriber does.
    pub(crate) fn wait_for_ever(&mut self) -> Result<(), NetlinkError> {
        setsockopt(&self.inner, sockopt::ReceiveTimeout, &TimeVal::new(0, 0))
            .map_err(|e| NetlinkError::Receive(e.into()))
    }

    /// Carries out requests in order; the result at index `i` is that of request `i`.
    pub(crate) fn execute(&mut self, requests: &[Request]) -> Result<Vec<Result<(), Refusal>>, NetlinkError> {
        let mut results = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let mut octets = 0;
            let n = rest
                .iter()
                .take(CHAIN)
                .take_while(|r| {
                    octets += HEADER + r.body.len() + 4;
                    octets <= CHAIN_OCTETS
                })
                .count()
                .max(1);
            let (chain, later) = rest.split_at(n);
            results.extend(self.chain(chain)?);
            rest = later;
        }
        Ok(results)
    }

    /// At least one.
    fn chain(&mut self, chain: &[Request]) -> Result<Vec<Result<(), Refusal>>, NetlinkError> {
        let last = chain.len() - 1;
        let first = self.send_with(chain, |i| {
            if i == last {
                NLM_F_REQUEST | NLM_F_ACK
            } else {
                NLM_F_REQUEST
            }
        })?;
        let mut results: Vec<Result<(), Refusal>> = vec![Ok(()); chain.len()];
        let mut over = false;
        while !over {
            self.receive(MsgFlags::empty(), |header, body| {
                let i = header.sequence.wrapping_sub(first) as usize;
                if let Some(slot) = results.get_mut(i).filter(|_| header.kind == NLMSG_ERROR) {
                    *slot = error::parse_ack(header.flags, body)?;
                    over |= i == last;
                }
                Ok(())
            })?;
        }
        Ok(results)
    }

    /// Sends requests of which all or none must happen (nf_tables batches). The error says which was the first refused.
    pub(crate) fn transaction(&mut self, batch: &[Request]) -> Result<(), (Option<usize>, NetlinkError)> {
        let first = self.send(batch, NLM_F_REQUEST).map_err(|e| (None, e))?;
        let wanted = batch.iter().filter(|r| r.flags & NLM_F_ACK != 0).count();
        let (mut acked, mut refused) = (0, None);
        while acked < wanted && refused.is_none() {
            let received = self.receive(MsgFlags::empty(), |header, body| {
                let index = header.sequence.wrapping_sub(first) as usize;
                if header.kind == NLMSG_ERROR && index < batch.len() {
                    match error::parse_ack(header.flags, body)? {
                        Ok(()) => acked += 1,
                        Err(r) => refused = refused.take().or(Some((Some(index), NetlinkError::Refused(r)))),
                    }
                }
                Ok(())
            });
            received.map_err(|e| (None, e))?;
        }
        match refused {
            Some(r) => {
                self.drain();
                Err(r)
            }
            None => Ok(()),
        }
    }

    /// Everything that a dump request answers. One that was interrupted by a change is begun anew.
    pub(crate) fn dump(&mut self, request: &Request) -> Result<Vec<Answer>, NetlinkError> {
        for _ in 0..DUMP_RETRIES {
            if let Some(answers) = self.dump_once(request)? {
                return Ok(answers);
            }
        }
        Err(NetlinkError::Unstable)
    }

    fn dump_once(&mut self, request: &Request) -> Result<Option<Vec<Answer>>, NetlinkError> {
        let sequence = self.send(std::slice::from_ref(request), NLM_F_REQUEST | NLM_F_DUMP)?;
        let (mut answers, mut done, mut interrupted, mut refused) = (Vec::new(), false, false, None);
        while !done {
            self.receive(MsgFlags::empty(), |header, body| {
                if header.sequence != sequence {
                    return Ok(());
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_NOOP => {}
                    NLMSG_DONE => {
                        done = true;
                        refused = error::parse_done(body);
                    }
                    NLMSG_ERROR => {
                        done = true;
                        refused = error::parse_ack(header.flags, body)?.err();
                    }
                    kind => answers.push(Answer {
                        kind,
                        body: body.to_vec(),
                    }),
                }
                Ok(())
            })?;
        }
        match refused {
            Some(r) => Err(NetlinkError::Refused(r)),
            None => Ok((!interrupted).then_some(answers)),
        }
    }

    /// The one message that answers a request.
    pub(crate) fn get(&mut self, request: &Request) -> Result<Answer, NetlinkError> {
        let sequence = self.send(std::slice::from_ref(request), NLM_F_REQUEST)?;
        let mut answer: Option<Result<Answer, Refusal>> = None;
        while answer.is_none() {
            self.receive(MsgFlags::empty(), |header, body| {
                if header.sequence == sequence && answer.is_none() {
                    answer = match header.kind {
                        NLMSG_ERROR => error::parse_ack(header.flags, body)?.err().map(Err),
                        kind => Some(Ok(Answer {
                            kind,
                            body: body.to_vec(),
                        })),
                    };
                }
                Ok(())
            })?;
        }
        answer.ok_or(NetlinkError::Short)?.map_err(NetlinkError::Refused)
    }

    /// Sends requests as one datagram; returns the sequence number of the first.
    fn send(&mut self, requests: &[Request], flags: u16) -> Result<u32, NetlinkError> {
        self.send_with(requests, |_| flags)
    }

    /// The same, with flags for each by its place.
    fn send_with(&mut self, requests: &[Request], flags: impl Fn(usize) -> u16) -> Result<u32, NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let mut out = Vec::with_capacity(requests.iter().map(|r| HEADER + r.body.len() + 4).sum());
        for (i, r) in requests.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let length = u32::try_from(HEADER + r.body.len()).map_err(|_| NetlinkError::Short)?;
            out.extend_from_slice(&length.to_ne_bytes());
            out.extend_from_slice(&r.kind.to_ne_bytes());
            out.extend_from_slice(&(r.flags | flags(i)).to_ne_bytes());
            out.extend_from_slice(&self.sequence.to_ne_bytes());
            out.extend_from_slice(&0u32.to_ne_bytes());
            out.extend_from_slice(&r.body);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        // The socket is not connected; a send without an address goes to the kernel (port 0).
        self.inner
            .send_to(&out, &SocketAddr::new(0, 0), 0)
            .map_err(NetlinkError::Send)?;
        Ok(first)
    }

    /// Takes one datagram and shows each of its messages. `Ok(false)`: nothing is there (only with `MSG_DONTWAIT`).
    pub(crate) fn receive(
        &mut self,
        flags: MsgFlags,
        mut each: impl FnMut(Header, &[u8]) -> Result<(), NetlinkError>,
    ) -> Result<bool, NetlinkError> {
        use std::os::fd::AsRawFd;
        let n = loop {
            match recv(self.inner.as_raw_fd(), &mut self.buffer, flags | MsgFlags::MSG_TRUNC) {
                Ok(n) => break n,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) if flags.contains(MsgFlags::MSG_DONTWAIT) => return Ok(false),
                Err(nix::Error::EAGAIN) => return Err(NetlinkError::Silent),
                Err(nix::Error::ENOBUFS) => return Err(NetlinkError::Overrun),
                Err(e) => return Err(NetlinkError::Receive(e.into())),
            }
        };
        let mut rest = self.buffer.get(..n).ok_or(NetlinkError::Short)?;
        while !rest.is_empty() {
            let (header, body, next) = Header::split(rest).ok_or(NetlinkError::Short)?;
            each(header, body)?;
            rest = next;
        }
        Ok(true)
    }

    /// Throws away what is queued, so that late answers are not taken for those of the next request.
    fn drain(&mut self) {
        while let Ok(true) = self.receive(MsgFlags::MSG_DONTWAIT, |_, _| Ok(())) {}
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// What of `struct nlmsghdr` is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
}

impl Header {
    /// Header, body and what follows of the first message in `data`.
    fn split(data: &[u8]) -> Option<(Header, &[u8], &[u8])> {
        let length = u32::from_ne_bytes(*data.first_chunk()?) as usize;
        let body = data.get(HEADER..length)?;
        let (_, tail) = data.split_at(4);
        let kind = u16::from_ne_bytes(*tail.first_chunk()?);
        let flags = u16::from_ne_bytes(*tail.get(2..)?.first_chunk()?);
        let sequence = u32::from_ne_bytes(*tail.get(4..)?.first_chunk()?);
        let next = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((Header { kind, flags, sequence }, body, next))
    }
}

#[cfg(test)]
mod tests;
