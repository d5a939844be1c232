//! Steps as messages. Numbers are of linux/ip_vs.h, and in the machine's order where nothing else is said.

use std::net::IpAddr;

use mesh::ipvs::{Dest, DestKey, Family, Forward, ServiceKey, Settings, Step, Timeouts};

use super::genl;
use crate::netlink::{Request, Writer};

/// `IPVS_CMD_*`.
pub(super) mod command {
    pub(crate) const NEW_SERVICE: u8 = 1;
    pub(crate) const SET_SERVICE: u8 = 2;
    pub(crate) const DEL_SERVICE: u8 = 3;
    pub(crate) const GET_SERVICE: u8 = 4;
    pub(crate) const NEW_DEST: u8 = 5;
    pub(crate) const SET_DEST: u8 = 6;
    pub(crate) const DEL_DEST: u8 = 7;
    pub(crate) const GET_DEST: u8 = 8;
    pub(crate) const SET_CONFIG: u8 = 12;
    pub(crate) const GET_CONFIG: u8 = 13;
    pub(crate) const GET_INFO: u8 = 15;
}

/// `IPVS_CMD_ATTR_*`.
pub(super) mod top {
    pub(crate) const SERVICE: u16 = 1;
    pub(crate) const DEST: u16 = 2;
    pub(crate) const TIMEOUT_TCP: u16 = 4;
    pub(crate) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(crate) const TIMEOUT_UDP: u16 = 6;
}

/// `IPVS_SVC_ATTR_*`.
pub(super) mod svc {
    pub(crate) const FAMILY: u16 = 1;
    pub(crate) const FWMARK: u16 = 5;
    /// A string of at most 15 octets and a zero.
    pub(crate) const SCHED_NAME: u16 = 6;
    /// `struct ip_vs_flags`: flags, then which of them are meant.
    pub(crate) const FLAGS: u16 = 7;
    pub(crate) const TIMEOUT: u16 = 8;
    /// IPv4: a mask in network order. IPv6: the length of a prefix, in the machine's order.
    pub(crate) const NETMASK: u16 = 9;
    pub(crate) const PE_NAME: u16 = 11;
    pub(crate) const STATS64: u16 = 12;
}

/// `IPVS_STATS_ATTR_*`; numbers of 64 bits within [`svc::STATS64`].
pub(super) mod stats {
    pub(crate) const CONNS: u16 = 1;
    pub(crate) const INPKTS: u16 = 2;
    pub(crate) const OUTPKTS: u16 = 3;
    pub(crate) const INBYTES: u16 = 4;
    pub(crate) const OUTBYTES: u16 = 5;
}

/// `IPVS_DEST_ATTR_*`.
pub(super) mod dst {
    /// 16 octets (`union nf_inet_addr`), of which IPv4 takes the first four.
    pub(crate) const ADDRESS: u16 = 1;
    /// In network order.
    pub(crate) const PORT: u16 = 2;
    pub(crate) const FORWARD: u16 = 3;
    pub(crate) const WEIGHT: u16 = 4;
    pub(crate) const UPPER: u16 = 5;
    pub(crate) const LOWER: u16 = 6;
    pub(crate) const FAMILY: u16 = 11;
    pub(crate) const TUNNEL_TYPE: u16 = 13;
}

/// `IPVS_INFO_ATTR_*`.
pub(super) mod info {
    pub(crate) const VERSION: u16 = 1;
    pub(crate) const TABLE_SIZE: u16 = 2;
}

/// `IP_VS_SVC_F_*`.
pub(super) mod flag {
    pub(crate) const PERSISTENT: u32 = 0x1;
    pub(crate) const ONE_PACKET: u32 = 0x4;
    /// Also `IP_VS_SVC_F_SCHED_MH_FALLBACK` of net/netfilter/ipvs/ip_vs_mh.c.
    pub(crate) const FALLBACK: u32 = 0x8;
    /// Also `IP_VS_SVC_F_SCHED_MH_PORT`.
    pub(crate) const PORT: u32 = 0x10;
    pub(crate) const SCHED3: u32 = 0x20;
    /// All that user space may set.
    pub(crate) const ALL: u32 = PERSISTENT | ONE_PACKET | FALLBACK | PORT | SCHED3;
}

/// `IP_VS_CONN_F_*`, the ways to forward.
pub(super) mod forward {
    pub(crate) const MASQUERADE: u32 = 0;
    pub(crate) const TUNNEL: u32 = 2;
    pub(crate) const DIRECT: u32 = 3;
}

pub(super) const AF_INET: u16 = libc::AF_INET as u16;
pub(super) const AF_INET6: u16 = libc::AF_INET6 as u16;

/// Whether a step that says "new" is told as a change all the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Forced {
    No,
    Change,
}

pub(super) fn step(genl: genl::Family, step: &Step, forced: Forced) -> Request {
    let pick = |new: bool, make, change| if new && forced == Forced::No { make } else { change };
    match step {
        Step::SetTimeouts(t) => genl.request(command::SET_CONFIG, |w| timeouts(w, t)),
        Step::SetService { key, settings, new } => {
            genl.request(pick(*new, command::NEW_SERVICE, command::SET_SERVICE), |w| {
                w.nest(top::SERVICE, |w| {
                    service_key(w, key);
                    service_settings(w, key.family, settings);
                });
            })
        }
        Step::RemoveService { key } => genl.request(command::DEL_SERVICE, |w| service(w, key)),
        Step::SetDest {
            service: key,
            dest,
            value,
            new,
        } => genl.request(pick(*new, command::NEW_DEST, command::SET_DEST), |w| {
            service(w, key);
            w.nest(top::DEST, |w| {
                dest_key(w, dest);
                dest_value(w, value);
            });
        }),
        Step::RemoveDest { service: key, dest } => genl.request(command::DEL_DEST, |w| {
            service(w, key);
            w.nest(top::DEST, |w| dest_key(w, dest));
        }),
    }
}

/// The attribute that names a service.
pub(super) fn service(w: &mut Writer, key: &ServiceKey) {
    w.nest(top::SERVICE, |w| service_key(w, key));
}

fn service_key(w: &mut Writer, key: &ServiceKey) {
    let family = match key.family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    w.bytes(svc::FAMILY, &family.to_ne_bytes())
        .bytes(svc::FWMARK, &key.mark.to_ne_bytes());
}

/// All settings each time: what is not told the kernel takes for nought, or refuses. No persistence engine is told, so one
/// that is there goes.
fn service_settings(w: &mut Writer, family: Family, s: &Settings) {
    let on = |is, flag| if is { flag } else { 0 };
    let flags =
        on(s.timeout > 0, flag::PERSISTENT) | on(s.flags.port, flag::PORT) | on(s.flags.fallback, flag::FALLBACK);
    // A client is one address.
    let mask: u32 = match family {
        Family::V4 => u32::MAX,
        Family::V6 => 128,
    };
    w.string(svc::SCHED_NAME, s.scheduler.name())
        .bytes(svc::FLAGS, &[flags.to_ne_bytes(), flag::ALL.to_ne_bytes()].concat())
        .bytes(svc::TIMEOUT, &s.timeout.to_ne_bytes())
        .bytes(svc::NETMASK, &mask.to_ne_bytes());
}

fn dest_key(w: &mut Writer, dest: &DestKey) {
    let (family, octets) = match dest.address {
        IpAddr::V4(a) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&a.octets());
            (AF_INET, wide)
        }
        IpAddr::V6(a) => (AF_INET6, a.octets()),
    };
    w.bytes(dst::ADDRESS, &octets)
        .bytes(dst::PORT, &dest.port.to_be_bytes())
        .bytes(dst::FAMILY, &family.to_ne_bytes());
}

fn dest_value(w: &mut Writer, dest: &Dest) {
    let way = match dest.forward {
        Forward::Direct => forward::DIRECT,
        Forward::Tunnel => forward::TUNNEL,
        // `Other` is never asked for.
        Forward::Masquerade | Forward::Other => forward::MASQUERADE,
    };
    w.bytes(dst::FORWARD, &way.to_ne_bytes())
        .bytes(dst::WEIGHT, &dest.weight.to_ne_bytes())
        .bytes(dst::UPPER, &0u32.to_ne_bytes())
        .bytes(dst::LOWER, &0u32.to_ne_bytes());
}

/// Those that are 0 are not told: they stay.
fn timeouts(w: &mut Writer, t: &Timeouts) {
    let told = [
        (top::TIMEOUT_TCP, t.tcp),
        (top::TIMEOUT_TCP_FIN, t.tcp_fin),
        (top::TIMEOUT_UDP, t.udp),
    ];
    for (attr, seconds) in told.into_iter().filter(|(_, seconds)| *seconds > 0) {
        w.bytes(attr, &seconds.to_ne_bytes());
    }
}
