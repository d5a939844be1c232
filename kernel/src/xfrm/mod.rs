//! Whether the host transforms packets by policy (`NETLINK_XFRM`, linux/xfrm.h): IPsec, whichever daemon keeps it.
//!
//! Nothing is ever written here. The data path asks because packets that its programs send and take by themselves pass
//! by those policies.

#[cfg(test)]
mod tests;

use netlink_sys::protocols::NETLINK_XFRM;
use nix::{errno::Errno, sys::socket::MsgFlags};

use crate::netlink::{NetlinkError, Request, Socket};

/// `XFRM_MSG_GETPOLICY`.
const GET_POLICY: u16 = 0x15;
/// Octets of `struct xfrm_userpolicy_id`; zeros: every policy.
const POLICY_ID: usize = 64;
/// `XFRMNLGRP_POLICY`.
const POLICIES: u32 = 4;

/// The policies could not be asked for.
#[derive(Debug, thiserror::Error)]
#[error("cannot list the host's IPsec policies")]
pub struct XfrmError(#[from] NetlinkError);

/// Opens the socket; `None`: this kernel knows no transformations.
fn open() -> Result<Option<Socket>, NetlinkError> {
    match Socket::open(NETLINK_XFRM) {
        Ok(s) => Ok(Some(s)),
        Err(NetlinkError::Open { source, .. }) if source.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Whether the calling thread's namespace has any policy.
///
/// # Errors
/// The kernel knows policies and does not tell them.
pub fn has_policies() -> Result<bool, XfrmError> {
    let Some(mut socket) = open()? else { return Ok(false) };
    let policies = socket.dump(&Request {
        kind: GET_POLICY,
        flags: 0,
        body: vec![0; POLICY_ID],
    })?;
    Ok(!policies.is_empty())
}

/// A subscription to changes of policies.
pub struct Events(Socket);

impl Events {
    /// Subscribes in the calling thread's namespace. `None`: this kernel knows no transformations, nothing will come.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open() -> Result<Option<Self>, XfrmError> {
        let Some(mut socket) = open()? else { return Ok(None) };
        socket.join(POLICIES)?;
        socket.wait_for_ever()?;
        Ok(Some(Events(socket)))
    }

    /// Waits until policies have changed.
    ///
    /// # Errors
    /// The socket is broken: nothing more will come.
    pub fn wait(&mut self) -> Result<(), XfrmError> {
        match self.0.receive(MsgFlags::empty(), |_, _| Ok(())) {
            // Lost events are a change too.
            Ok(_) | Err(NetlinkError::Overrun) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}
