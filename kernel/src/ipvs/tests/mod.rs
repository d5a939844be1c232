//! `balance` and `real` need IPVS in the kernel and are run by `cargo xtask test --lane ipvs` (with `--include-ignored`); the
//! others run anywhere.

mod balance;
mod codec;
mod real;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mesh::ipvs::{
    Dest, DestKey, Family, Forward, SchedFlags, Scheduler, Service, ServiceKey, Table, Timeouts, mark_of,
};

use super::{IpvsError, probe};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn key(n: u32, family: Family) -> ServiceKey {
    ServiceKey {
        mark: mark_of(n).unwrap(),
        family,
    }
}

fn dest(family: Family, n: u16) -> DestKey {
    let address = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(0x0a80_0000 + u32::from(n))),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, n)),
    };
    DestKey { address, port: 8080 }
}

fn weight(weight: u32) -> Dest {
    Dest {
        weight,
        forward: Forward::Masquerade,
    }
}

fn service(scheduler: Scheduler, dests: impl IntoIterator<Item = (DestKey, Dest)>) -> Service {
    Service {
        scheduler,
        flags: SchedFlags::default(),
        timeout: 0,
        dests: dests.into_iter().collect(),
    }
}

fn table(services: impl IntoIterator<Item = (ServiceKey, Service)>) -> Table {
    Table {
        services: services.into_iter().collect::<BTreeMap<_, _>>(),
        timeouts: Timeouts::default(),
    }
}

/// In the lane IPVS has to be there; elsewhere the answer has to be one that helps.
#[test]
fn the_probe_tells_what_is_there_or_what_is_missing() {
    match probe() {
        Ok(abilities) => {
            assert!(abilities.version >= (1, 2, 0), "{abilities}");
            assert!(abilities.table_rows >= 256, "{abilities}");
            assert!(!abilities.schedulers.is_empty(), "{abilities}");
        }
        Err(e @ IpvsError::Missing(_)) => {
            assert_ne!(std::env::var("NETD_LANE").as_deref(), Ok("ipvs"), "{e}");
            let text = e.to_string();
            for word in ["CONFIG_IP_VS", "modprobe ip_vs", "mode = \"ebpf\""] {
                assert!(text.contains(word), "{text}");
            }
        }
        Err(e) => panic!("{e}"),
    }
}
