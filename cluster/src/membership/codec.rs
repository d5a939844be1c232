//! SWIM messages as octets: fixed layout, big endian, every length checked before it is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Header, Identity, Message, State};
use model::ids::NodeId;
use serde::{Deserialize, Serialize};

/// Who a member is: the node, how often it has come anew, where it is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Node.
    pub node: NodeId,
    /// Rises with each start of its daemon, and when it was declared dead wrongly: of two members of one node the higher
    /// one counts.
    pub generation: u64,
    /// Gossip address (UDP and TCP).
    pub addr: SocketAddr,
}

impl Identity for Member {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Member {
            generation: self.generation.checked_add(1)?,
            ..*self
        })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        // The address decides only between two members that claim one generation, so that all choose alike.
        (self.generation, self.addr) > (other.generation, other.addr)
    }
}

/// Why octets are no SWIM message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum CodecError {
    #[error("no room")]
    Full,
    #[error("cut short")]
    Short,
    #[error("unknown kind {0}")]
    Kind(u8),
}

/// The codec given to foca.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Codec;

fn take<const N: usize>(buf: &mut impl Buf) -> Result<[u8; N], CodecError> {
    if buf.remaining() < N {
        return Err(CodecError::Short);
    }
    let mut out = [0; N];
    buf.copy_to_slice(&mut out);
    Ok(out)
}

fn byte(buf: &mut impl Buf) -> Result<u8, CodecError> {
    take::<1>(buf).map(|[b]| b)
}

pub(super) fn put_member(out: &mut Vec<u8>, m: &Member) {
    out.put_u64(m.node.0);
    out.put_u64(m.generation);
    match m.addr.ip() {
        IpAddr::V4(a) => {
            out.put_u8(4);
            out.put_slice(&a.octets());
        }
        IpAddr::V6(a) => {
            out.put_u8(6);
            out.put_slice(&a.octets());
        }
    }
    out.put_u16(m.addr.port());
}

fn get_member(buf: &mut impl Buf) -> Result<Member, CodecError> {
    let node = NodeId(u64::from_be_bytes(take(buf)?));
    let generation = u64::from_be_bytes(take(buf)?);
    let ip: IpAddr = match byte(buf)? {
        4 => Ipv4Addr::from(take::<4>(buf)?).into(),
        6 => Ipv6Addr::from(take::<16>(buf)?).into(),
        kind => return Err(CodecError::Kind(kind)),
    };
    let port = u16::from_be_bytes(take(buf)?);
    Ok(Member {
        node,
        generation,
        addr: SocketAddr::new(ip, port),
    })
}

/// Writes all or nothing.
fn flush(bytes: &[u8], mut buf: impl BufMut) -> Result<(), CodecError> {
    if buf.remaining_mut() < bytes.len() {
        return Err(CodecError::Full);
    }
    buf.put_slice(bytes);
    Ok(())
}

impl foca::Codec<Member> for Codec {
    type Error = CodecError;

    fn encode_header(&mut self, h: &Header<Member>, buf: impl BufMut) -> Result<(), CodecError> {
        let mut out = Vec::with_capacity(128);
        put_member(&mut out, &h.src);
        out.put_u16(h.src_incarnation);
        put_member(&mut out, &h.dst);
        let mut third = |kind: u8, other: &Member, n: u8| {
            out.put_slice(&[kind, n]);
            put_member(&mut out, other);
        };
        match &h.message {
            Message::PingReq { target, probe_number } => third(3, target, *probe_number),
            Message::IndirectPing { origin, probe_number } => third(4, origin, *probe_number),
            Message::IndirectAck { target, probe_number } => third(5, target, *probe_number),
            Message::ForwardedAck { origin, probe_number } => third(6, origin, *probe_number),
            Message::Ping(n) => out.put_slice(&[1, *n]),
            Message::Ack(n) => out.put_slice(&[2, *n]),
            Message::Announce => out.put_u8(7),
            Message::Feed => out.put_u8(8),
            Message::Gossip => out.put_u8(9),
            Message::Broadcast => out.put_u8(10),
            Message::TurnUndead => out.put_u8(11),
        }
        flush(&out, buf)
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Member>, CodecError> {
        let buf = &mut buf;
        let src = get_member(buf)?;
        let src_incarnation = u16::from_be_bytes(take(buf)?);
        let dst = get_member(buf)?;
        let kind = byte(buf)?;
        let message = match kind {
            1 => Message::Ping(byte(buf)?),
            2 => Message::Ack(byte(buf)?),
            3..=6 => {
                let probe_number = byte(buf)?;
                let m = get_member(buf)?;
                match kind {
                    3 => Message::PingReq {
                        target: m,
                        probe_number,
                    },
                    4 => Message::IndirectPing {
                        origin: m,
                        probe_number,
                    },
                    5 => Message::IndirectAck {
                        target: m,
                        probe_number,
                    },
                    _ => Message::ForwardedAck {
                        origin: m,
                        probe_number,
                    },
                }
            }
            7 => Message::Announce,
            8 => Message::Feed,
            9 => Message::Gossip,
            10 => Message::Broadcast,
            11 => Message::TurnUndead,
            other => return Err(CodecError::Kind(other)),
        };
        Ok(Header {
            src,
            src_incarnation,
            dst,
            message,
        })
    }

    fn encode_member(&mut self, m: &foca::Member<Member>, buf: impl BufMut) -> Result<(), CodecError> {
        let mut out = Vec::with_capacity(64);
        put_member(&mut out, m.id());
        out.put_u16(m.incarnation());
        out.put_u8(match m.state() {
            State::Alive => 1,
            State::Suspect => 2,
            State::Down => 3,
        });
        flush(&out, buf)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<foca::Member<Member>, CodecError> {
        let buf = &mut buf;
        let id = get_member(buf)?;
        let incarnation = u16::from_be_bytes(take(buf)?);
        let state = match byte(buf)? {
            1 => State::Alive,
            2 => State::Suspect,
            3 => State::Down,
            other => return Err(CodecError::Kind(other)),
        };
        Ok(foca::Member::new(id, incarnation, state))
    }
}
