//! A service in the log, in snapshots and between nodes, where fields have neither names nor defaults: what came after
//! the first logs were written stands behind the last field, and only where it is asked for. So a record without it is what
//! it always was, to those who wrote the old ones and to those who read them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    EndpointMode, Health, Lb, Mode, PlacementSpec, PortSpec, Restart, RollingUpdate, ServiceSpec, SourceIp, Timeouts,
};
use crate::ids::Name;

macro_rules! packed {
    ($($field:ident: $type:ty),+ $(,)?) => {
        #[derive(Serialize, Deserialize)]
        struct Packed {
            $($field: $type,)+
            last: Last,
        }

        impl From<ServiceSpec> for Packed {
            fn from(s: ServiceSpec) -> Packed {
                let later = Later {
                    source_ip: s.source_ip,
                    allow_from: s.allow_from,
                    timeouts: s.timeouts,
                };
                Packed {
                    last: Last::new(s.attachable, later),
                    $($field: s.$field,)+
                }
            }
        }

        impl From<Packed> for ServiceSpec {
            fn from(p: Packed) -> ServiceSpec {
                let (attachable, later) = match p.last {
                    Last::No => (false, Later::default()),
                    Last::Yes => (true, Later::default()),
                    Last::NoAnd(later) => (false, later),
                    Last::YesAnd(later) => (true, later),
                };
                ServiceSpec {
                    $($field: p.$field,)+
                    attachable,
                    source_ip: later.source_ip,
                    allow_from: later.allow_from,
                    timeouts: later.timeouts,
                }
            }
        }
    };
}

// In the order of the first logs; none may be added.
packed! {
    networks: Vec<Name>,
    mode: Mode,
    replicas: u32,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    hostname: Option<String>,
    labels: BTreeMap<String, String>,
    publish: Vec<PortSpec>,
    endpoint_mode: EndpointMode,
    lb: Lb,
    health: Option<Health>,
    restart: Restart,
    update: RollingUpdate,
    rollback: RollingUpdate,
    placement: PlacementSpec,
    stop_grace_ms: u64,
    drain_timeout_ms: u64,
}

/// `attachable`, which is an octet, 0 or 1: the first two of these are those. What comes after [`Later`] gets variants of
/// its own.
#[derive(Serialize, Deserialize)]
enum Last {
    No,
    Yes,
    NoAnd(Later),
    YesAnd(Later),
}

#[derive(Default, PartialEq, Serialize, Deserialize)]
struct Later {
    source_ip: SourceIp,
    allow_from: BTreeSet<IpNet>,
    timeouts: Timeouts,
}

impl Last {
    fn new(attachable: bool, later: Later) -> Last {
        match (attachable, later == Later::default()) {
            (false, true) => Last::No,
            (true, true) => Last::Yes,
            (false, false) => Last::NoAnd(later),
            (true, false) => Last::YesAnd(later),
        }
    }
}

impl Serialize for ServiceSpec {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match to.is_human_readable() {
            true => ServiceSpec::serialize(self, to),
            false => Packed::from(self.clone()).serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for ServiceSpec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match from.is_human_readable() {
            true => ServiceSpec::deserialize(from),
            false => Packed::deserialize(from).map(ServiceSpec::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it was before there was anything behind the last field.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        networks: Vec<Name>,
        mode: Mode,
        replicas: u32,
        command: Vec<String>,
        env: BTreeMap<String, String>,
        hostname: Option<String>,
        labels: BTreeMap<String, String>,
        publish: Vec<PortSpec>,
        endpoint_mode: EndpointMode,
        lb: Lb,
        health: Option<Health>,
        restart: Restart,
        update: RollingUpdate,
        rollback: RollingUpdate,
        placement: PlacementSpec,
        stop_grace_ms: u64,
        drain_timeout_ms: u64,
        attachable: bool,
    }

    fn web(attachable: bool) -> ServiceSpec {
        ServiceSpec {
            networks: vec!["app".parse().unwrap()],
            replicas: 300,
            command: vec!["srv".into()],
            publish: vec!["80:8080".parse().unwrap()],
            attachable,
            ..ServiceSpec::default()
        }
    }

    #[test]
    fn old_records_are_read_and_what_asks_for_nothing_new_is_written_as_they_were() {
        for attachable in [true, false] {
            let spec = web(attachable);
            let old = Old {
                networks: spec.networks.clone(),
                mode: spec.mode,
                replicas: spec.replicas,
                command: spec.command.clone(),
                env: spec.env.clone(),
                hostname: spec.hostname.clone(),
                labels: spec.labels.clone(),
                publish: spec.publish.clone(),
                endpoint_mode: spec.endpoint_mode,
                lb: spec.lb,
                health: spec.health.clone(),
                restart: spec.restart.clone(),
                update: spec.update.clone(),
                rollback: spec.rollback.clone(),
                placement: spec.placement.clone(),
                stop_grace_ms: spec.stop_grace_ms,
                drain_timeout_ms: spec.drain_timeout_ms,
                attachable,
            };
            // With something behind it, as in a record.
            let octets = postcard::to_allocvec(&(&old, 7u8)).unwrap();
            assert_eq!(postcard::to_allocvec(&(&spec, 7u8)).unwrap(), octets);
            assert_eq!(postcard::from_bytes::<(ServiceSpec, u8)>(&octets).unwrap(), (spec, 7));
        }
    }

    #[test]
    fn what_is_new_is_read_again_in_both_forms() {
        let later = [
            ServiceSpec {
                source_ip: SourceIp::Masquerade,
                ..web(true)
            },
            ServiceSpec {
                allow_from: ["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()].into(),
                ..web(false)
            },
            ServiceSpec {
                timeouts: Timeouts {
                    tcp_s: Some(60),
                    ..Timeouts::default()
                },
                ..web(true)
            },
        ];
        for spec in later {
            let octets = postcard::to_allocvec(&(&spec, 7u8)).unwrap();
            assert_eq!(
                postcard::from_bytes::<(ServiceSpec, u8)>(&octets).unwrap(),
                (spec.clone(), 7)
            );
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<ServiceSpec>(&json).unwrap(), spec);
        }
        let plain = serde_json::from_str::<ServiceSpec>(r#"{"replicas":2}"#).unwrap();
        assert_eq!(
            plain,
            ServiceSpec {
                replicas: 2,
                ..ServiceSpec::default()
            }
        );
        assert!(serde_json::from_str::<ServiceSpec>(r#"{"replica":2}"#).is_err());
    }
}
