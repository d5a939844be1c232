//! Which matches the kernel has.

use std::{io, os::fd::AsRawFd};

use mesh::lower::ipvs::Family;

use crate::firewall::watch::{level, raw_socket};

/// `struct xt_get_revision` of linux/netfilter/x_tables.h.
#[repr(C)]
struct Revision {
    name: [u8; 29],
    revision: u8,
}

/// Whether there is a match of a name, of its first revision. The kernel loads its module, as it would for a rule. Before
/// iptables itself is loaded there is nobody to ask: then it is taken to be there, and the first rule loads iptables.
pub(in crate::firewall) fn has(family: Family, name: &str) -> io::Result<bool> {
    // IPT_SO_GET_REVISION_MATCH and IP6T_SO_GET_REVISION_MATCH.
    let option = match family {
        Family::V4 => 66,
        Family::V6 => 68,
    };
    let socket = raw_socket(family)?;
    let mut asked = Revision {
        name: [0; 29],
        revision: 0,
    };
    for (to, from) in asked.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let mut length = size_of::<Revision>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` octets at the pointer, which are those of `asked`, and writes none there.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level(family),
            option,
            (&raw mut asked).cast(),
            &raw mut length,
        )
    };
    // Its highest revision.
    if answer >= 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // No such match, or of later revisions alone.
        Some(libc::ENOENT | libc::EPROTONOSUPPORT) => Ok(false),
        Some(libc::ENOPROTOOPT) => Ok(true),
        _ => Err(error),
    }
}
