//! The family `IPVS` of generic netlink.

use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use super::IpvsError;
use crate::netlink::{Answer, Attrs, NetlinkError, Refusal, Request, Socket, Writer};

/// `GENL_ID_CTRL` of linux/genetlink.h.
const CONTROL: u16 = 0x10;
/// `CTRL_CMD_GETFAMILY`.
const GET_FAMILY: u8 = 3;
/// Version of the controller's messages.
const CONTROL_VERSION: u8 = 1;
/// `CTRL_ATTR_FAMILY_ID`.
const FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`.
const FAMILY_NAME: u16 = 2;
/// `IPVS_GENL_NAME` of linux/ip_vs.h.
const NAME: &str = "IPVS";
/// `IPVS_GENL_VERSION`.
const VERSION: u8 = 1;
/// Octets of `struct genlmsghdr`: command, version, two reserved.
const HEADER: usize = 4;

/// A socket and the number that the kernel gave the family when its module was loaded.
pub(super) struct Genl {
    socket: Socket,
    family: Family,
}

/// The family by its number.
#[derive(Clone, Copy)]
pub(super) struct Family(pub(super) u16);

impl Family {
    /// A message.
    pub(super) fn request(self, command: u8, build: impl FnOnce(&mut Writer)) -> Request {
        request(self.0, command, VERSION, build)
    }
}

impl Genl {
    pub(super) fn open() -> Result<Self, IpvsError> {
        let mut socket = Socket::open(NETLINK_GENERIC).map_err(IpvsError::Missing)?;
        let answer = socket.get(&get_family(NAME)).map_err(|source| {
            if source.is(Errno::ENOENT) {
                IpvsError::Missing(source)
            } else {
                failed("find the family")(source)
            }
        })?;
        let family = family_id(&answer)
            .map(Family)
            .ok_or_else(|| failed("find the family")(NetlinkError::Short))?;
        Ok(Genl { socket, family })
    }

    /// Its messages.
    pub(super) fn family(&self) -> Family {
        self.family
    }

    pub(super) fn get(&mut self, command: u8) -> Result<Answer, NetlinkError> {
        let request = self.family.request(command, |_| {});
        self.socket.get(&request)
    }

    pub(super) fn dump(&mut self, request: &Request) -> Result<Vec<Answer>, NetlinkError> {
        self.socket.dump(request)
    }

    pub(super) fn execute(&mut self, requests: &[Request]) -> Result<Vec<Result<(), Refusal>>, NetlinkError> {
        self.socket.execute(requests)
    }
}

pub(super) fn get_family(name: &str) -> Request {
    request(CONTROL, GET_FAMILY, CONTROL_VERSION, |w| {
        w.string(FAMILY_NAME, name);
    })
}

pub(super) fn family_id(answer: &Answer) -> Option<u16> {
    attrs(answer).u16(FAMILY_ID)
}

/// What follows `struct genlmsghdr`.
pub(super) fn attrs(answer: &Answer) -> Attrs<'_> {
    Attrs(answer.body.get(HEADER..).unwrap_or_default())
}

pub(super) fn request(kind: u16, command: u8, version: u8, build: impl FnOnce(&mut Writer)) -> Request {
    let mut w = Writer(vec![command, version, 0, 0]);
    build(&mut w);
    Request {
        kind,
        flags: 0,
        body: w.0,
    }
}

/// Names what failed.
pub(super) fn failed(doing: &'static str) -> impl Fn(NetlinkError) -> IpvsError {
    move |source| {
        if source.is(Errno::EPERM) {
            IpvsError::Denied(source)
        } else {
            IpvsError::Netlink { doing, source }
        }
    }
}
