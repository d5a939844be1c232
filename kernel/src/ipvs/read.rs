//! What IPVS holds.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mesh::ipvs::{
    Dest, DestKey, Family, Forward, MARK_BASE, MARK_COUNT, SchedFlags, Scheduler, Service, ServiceKey, Settings, Table,
    Timeouts,
};

use super::{
    Counted, IpvsError,
    genl::{Genl, attrs, failed},
    message::{self, AF_INET, AF_INET6, command, dst, flag, forward, info, stats, svc, top},
};
use crate::netlink::{Attrs, NetlinkError};

/// The whole table: timeouts, services, and the backends of each.
pub(super) fn table(genl: &mut Genl) -> Result<Table, IpvsError> {
    let config = genl.get(command::GET_CONFIG).map_err(failed("read the timeouts"))?;
    let mut table = Table {
        timeouts: timeouts(attrs(&config)),
        ..Table::default()
    };
    let family = genl.family();
    let list = family.request(command::GET_SERVICE, |_| {});
    let services = genl.dump(&list).map_err(failed("list the services"))?;
    for answer in &services {
        let Some((key, settings)) = service(attrs(answer)) else {
            continue;
        };
        table.services.insert(
            key,
            Service {
                scheduler: settings.scheduler,
                flags: settings.flags,
                timeout: settings.timeout,
                dests: BTreeMap::new(),
            },
        );
    }
    for (key, service) in &mut table.services {
        let list = family.request(command::GET_DEST, |w| message::service(w, key));
        let dests = genl.dump(&list).map_err(failed("list the backends"))?;
        service.dests = dests.iter().filter_map(|a| dest(key.family, attrs(a))).collect();
    }
    Ok(table)
}

/// What was counted for all services.
pub(super) fn counted(genl: &mut Genl) -> Result<Counted, IpvsError> {
    let list = genl.family().request(command::GET_SERVICE, |_| {});
    let services = genl.dump(&list).map_err(failed("list the services"))?;
    let mut sum = Counted::default();
    for answer in services.iter().filter(|a| service(attrs(a)).is_some()) {
        sum += counted_of(attrs(answer)).unwrap_or_default();
    }
    Ok(sum)
}

/// What was counted for a service; `None`: it is not told (Linux before 4.0).
pub(super) fn counted_of(attrs: Attrs<'_>) -> Option<Counted> {
    let service = attrs.get(top::SERVICE).map(Attrs)?;
    let a = service.get(svc::STATS64).map(Attrs)?;
    let number = |attr| a.get(attr)?.first_chunk().map(|b| u64::from_ne_bytes(*b));
    Some(Counted {
        flows: number(stats::CONNS)?,
        packets_in: number(stats::INPKTS)?,
        packets_out: number(stats::OUTPKTS)?,
        octets_in: number(stats::INBYTES)?,
        octets_out: number(stats::OUTBYTES)?,
    })
}

/// Version as (major, minor, patch) and rows of the table of connections.
pub(super) fn version(genl: &mut Genl) -> Result<((u8, u8, u8), u32), IpvsError> {
    let answer = genl.get(command::GET_INFO).map_err(failed("read the version"))?;
    version_of(attrs(&answer)).ok_or_else(|| failed("read the version")(NetlinkError::Short))
}

pub(super) fn version_of(attrs: Attrs<'_>) -> Option<((u8, u8, u8), u32)> {
    // `NVERSION` of linux/ip_vs.h.
    let [_, major, minor, patch] = attrs.u32(info::VERSION)?.to_be_bytes();
    Some(((major, minor, patch), attrs.u32(info::TABLE_SIZE)?))
}

pub(super) fn timeouts(attrs: Attrs<'_>) -> Timeouts {
    let seconds = |attr| attrs.u32(attr).unwrap_or(0);
    Timeouts {
        tcp: seconds(top::TIMEOUT_TCP),
        tcp_fin: seconds(top::TIMEOUT_TCP_FIN),
        udp: seconds(top::TIMEOUT_UDP),
    }
}

/// A service of ours; `None`: another's, or nothing that can be read.
pub(super) fn service(attrs: Attrs<'_>) -> Option<(ServiceKey, Settings)> {
    let a = attrs.get(top::SERVICE).map(Attrs)?;
    let mark = a.u32(svc::FWMARK)?;
    if mark.checked_sub(MARK_BASE)? >= MARK_COUNT {
        return None;
    }
    let family = match a.u16(svc::FAMILY)? {
        AF_INET => Family::V4,
        AF_INET6 => Family::V6,
        _ => return None,
    };
    let flags = a.u32(svc::FLAGS)?;
    let odd = flags & (flag::ONE_PACKET | flag::SCHED3) != 0 || a.get(svc::PE_NAME).is_some();
    let scheduler = match a.string(svc::SCHED_NAME) {
        Some(name) if !odd => Scheduler::named(&name),
        _ => Scheduler::Other,
    };
    // The kernel keeps a timeout also where it plays no part.
    let persistent = flags & flag::PERSISTENT != 0;
    let settings = Settings {
        scheduler,
        flags: SchedFlags {
            port: flags & flag::PORT != 0,
            fallback: flags & flag::FALLBACK != 0,
        },
        timeout: a.u32(svc::TIMEOUT).filter(|_| persistent).unwrap_or(0),
    };
    Some((ServiceKey { mark, family }, settings))
}

/// A backend of a service of this family; `None`: nothing that can be read.
pub(super) fn dest(family: Family, attrs: Attrs<'_>) -> Option<(DestKey, Dest)> {
    let a = attrs.get(top::DEST).map(Attrs)?;
    let octets: [u8; 16] = *a.get(dst::ADDRESS)?.first_chunk()?;
    // Told since Linux 3.18; before, it was that of the service.
    let address = match (a.u16(dst::FAMILY), family) {
        (Some(AF_INET), _) | (None, Family::V4) => IpAddr::V4(Ipv4Addr::from(*octets.first_chunk::<4>()?)),
        (Some(AF_INET6), _) | (None, Family::V6) => IpAddr::V6(Ipv6Addr::from(octets)),
        _ => return None,
    };
    let port = u16::from_be_bytes(*a.get(dst::PORT)?.first_chunk()?);
    let nought = |attr| a.u32(attr).unwrap_or(0) == 0;
    let ipip = a.get(dst::TUNNEL_TYPE).and_then(<[u8]>::first).is_none_or(|t| *t == 0);
    let forward = match a.u32(dst::FORWARD)? {
        _ if !(nought(dst::UPPER) && nought(dst::LOWER) && ipip) => Forward::Other,
        forward::MASQUERADE => Forward::Masquerade,
        forward::DIRECT => Forward::Direct,
        forward::TUNNEL => Forward::Tunnel,
        _ => Forward::Other,
    };
    let weight = a.u32(dst::WEIGHT)?;
    Some((DestKey { address, port }, Dest { weight, forward }))
}
