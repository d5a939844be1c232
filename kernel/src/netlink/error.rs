//! What the kernel says when it refuses.

use std::{fmt, io};

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED};
use nix::errno::Errno;

use super::{Attrs, HEADER};

/// `NLMSGERR_ATTR_MSG` of linux/netlink.h.
const ATTR_MESSAGE: u16 = 1;

/// A request that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub errno: Errno,
    /// The kernel's own words (extended ack), where it has some.
    pub text: Option<String>,
}

impl Refusal {
    /// The object that was to be removed is gone already.
    pub fn is_absent(&self) -> bool {
        matches!(
            self.errno,
            Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL | Errno::ENXIO
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.errno.desc(), self.errno)?;
        match &self.text {
            Some(text) => write!(f, ": {text}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

/// A failed exchange with the kernel.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket of family {family}; try: run as root, on a kernel with that family")]
    Open {
        /// `NETLINK_*` of linux/netlink.h.
        family: isize,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The request could not be sent.
    #[error("cannot send to the kernel by netlink")]
    Send(#[source] io::Error),
    /// The answer could not be read.
    #[error("cannot read the kernel's netlink answer")]
    Receive(#[source] io::Error),
    /// Answers were lost because the receive buffer was full: what is in the kernel must be read anew.
    #[error("the kernel's netlink answers overflowed the receive buffer; try: again, or raise net.core.rmem_max")]
    Overrun,
    /// No answer within ten seconds.
    #[error("the kernel gave no netlink answer within 10 s; try: again; see dmesg for a hung task")]
    Silent,
    /// A dump was interrupted by changes each time.
    #[error("the kernel's tables changed during each attempt to list them; try: again when fewer changes are made")]
    Unstable,
    /// A message that is shorter than its own header says.
    #[error("malformed netlink message; try: report it with the kernel's version")]
    Short,
    /// The kernel said no.
    #[error("the kernel refused")]
    Refused(#[source] Refusal),
}

impl NetlinkError {
    /// The refusal within, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            NetlinkError::Refused(r) => Some(r),
            _ => None,
        }
    }
    /// The kernel refused with this error number.
    pub fn is(&self, errno: Errno) -> bool {
        self.refusal().is_some_and(|r| r.errno == errno)
    }
}

/// Reads the payload of `NLMSG_ERROR` (`struct nlmsgerr`): error number 0 is an acknowledgement.
pub(super) fn parse_ack(flags: u16, body: &[u8]) -> Result<Result<(), Refusal>, NetlinkError> {
    let (code, rest) = body.split_first_chunk::<4>().ok_or(NetlinkError::Short)?;
    let code = i32::from_ne_bytes(*code);
    if code == 0 {
        return Ok(Ok(()));
    }
    // The request's header follows, and the request itself unless the kernel cut it off.
    let quoted = match rest.first_chunk::<4>() {
        Some(length) if flags & NLM_F_CAPPED == 0 => (u32::from_ne_bytes(*length) as usize).next_multiple_of(4),
        _ => HEADER,
    };
    let text = if flags & NLM_F_ACK_TLVS != 0 {
        rest.get(quoted..).and_then(text)
    } else {
        None
    };
    Ok(Err(Refusal {
        errno: Errno::from_raw(code.saturating_neg()),
        text,
    }))
}

/// Reads the payload of `NLMSG_DONE`: some dumps report their error there.
pub(super) fn parse_done(body: &[u8]) -> Option<Refusal> {
    let (code, rest) = body.split_first_chunk::<4>()?;
    let code = i32::from_ne_bytes(*code);
    (code < 0).then(|| Refusal {
        errno: Errno::from_raw(code.saturating_neg()),
        text: text(rest),
    })
}

fn text(attrs: &[u8]) -> Option<String> {
    Attrs(attrs)
        .find(|(kind, _)| *kind == ATTR_MESSAGE)
        .map(|(_, v)| String::from_utf8_lossy(v.strip_suffix(&[0]).unwrap_or(v)).into_owned())
}
