//! Tables and properties; hickory-proto is the second opinion on every message.

mod answers;
mod foreign;
mod properties;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
    serialize::binary::BinDecodable,
};
use model::{
    EndpointRow, EndpointState, Intent, Vni,
    intent::{Network, PublishedPort, Service, Vip},
    spec::ServiceSpec,
};

use crate::{Table, Transport, Verdict, View, answer};

pub(super) const APP: u32 = 4096;
pub(super) const DB: u32 = 4097;
pub(super) const SECRET: u32 = 4098;

pub(super) fn vni(n: u32) -> Vni {
    Vni::try_from(n).unwrap()
}

pub(super) fn view(networks: &[u32]) -> View {
    View {
        networks: networks.iter().copied().map(vni).collect(),
    }
}

fn network(n: u32, subnet: &str, subnet6: Option<&str>, internal: bool) -> Network {
    let subnet6 = subnet6.map(|s| s.parse().unwrap());
    Network {
        vni: vni(n),
        subnet: subnet.parse().unwrap(),
        subnet6,
        internal,
        mtu: None,
    }
}

fn service(index: u32, vips: &[(&str, &str, Option<&str>)], ports: &[&str]) -> Service {
    let vips = vips.iter().map(|(net, v4, v6)| {
        (
            net.parse().unwrap(),
            Vip {
                v4: v4.parse().unwrap(),
                v6: v6.map(|a| a.parse().unwrap()),
            },
        )
    });
    let vips: std::collections::BTreeMap<_, _> = vips.collect();
    let ports = ports.iter().enumerate().map(|(mark, p)| {
        (
            (*p).to_owned(),
            PublishedPort {
                spec: p.parse().unwrap(),
                auto: false,
                mark: mark as u32,
            },
        )
    });
    let spec = ServiceSpec {
        networks: vips.keys().cloned().collect(),
        ..ServiceSpec::default()
    };
    Service {
        index,
        spec,
        vips,
        ports: ports.collect(),
        ..Service::default()
    }
}

/// `web` on app (IPv4 and IPv6) and db, `pg` on db, `vault` on secret (internal), `empty` on app without endpoints.
pub(super) fn intent() -> Intent {
    let mut i = Intent::default();
    i.networks.insert(
        "app".parse().unwrap(),
        network(APP, "10.77.0.0/16", Some("fd00:77::/64"), false),
    );
    i.networks
        .insert("db".parse().unwrap(), network(DB, "10.78.0.0/16", None, false));
    i.networks
        .insert("secret".parse().unwrap(), network(SECRET, "10.79.0.0/16", None, true));
    let web = service(
        1,
        &[("app", "10.77.0.2", Some("fd00:77::2")), ("db", "10.78.0.2", None)],
        &["80:8080", "53/udp"],
    );
    i.services.insert("web".parse().unwrap(), web);
    i.services.insert(
        "pg".parse().unwrap(),
        service(2, &[("db", "10.78.0.3", None)], &["5432"]),
    );
    i.services.insert(
        "vault".parse().unwrap(),
        service(3, &[("secret", "10.79.0.2", None)], &[]),
    );
    i.services
        .insert("empty".parse().unwrap(), service(4, &[("app", "10.77.0.4", None)], &[]));
    i
}

pub(super) fn endpoint(net: u32, service: &str, slot: Option<u32>, host: u8, state: EndpointState) -> EndpointRow {
    let v6 = (net == APP).then(|| format!("fd00:77::1:{host:x}").parse().unwrap());
    EndpointRow {
        vni: vni(net),
        v4: Some(std::net::Ipv4Addr::new(10, (net - APP) as u8 + 77, 1, host)),
        v6,
        mac: model::Mac([2, 0, 0, 0, 0, host]),
        service: Some(service.parse().unwrap()),
        slot,
        state,
        listening: vec![],
    }
}

pub(super) fn endpoints() -> Vec<EndpointRow> {
    use EndpointState::{Draining, Ready, Starting};
    vec![
        endpoint(APP, "web", Some(1), 1, Ready),
        endpoint(APP, "web", Some(2), 2, Ready),
        endpoint(APP, "web", Some(3), 3, Draining),
        endpoint(APP, "web", Some(4), 4, Starting),
        endpoint(APP, "web", None, 5, Ready),
        endpoint(DB, "pg", Some(1), 1, Ready),
        endpoint(SECRET, "vault", Some(1), 1, Ready),
        endpoint(APP, "unknown", Some(1), 9, Ready),
        endpoint(SECRET, "web", Some(1), 8, Ready),
    ]
}

pub(super) fn table() -> Table {
    Table::new(&intent(), &endpoints())
}

/// A query as hickory writes it. `size`: EDNS.
pub(super) fn query(name: &str, qtype: RecordType, size: Option<u16>) -> Vec<u8> {
    let mut m = Message::new(0x1234, MessageType::Query, OpCode::Query);
    m.metadata.recursion_desired = true;
    m.add_query(Query::query(Name::from_ascii(name).unwrap(), qtype));
    if let Some(size) = size {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        edns.set_version(0);
        m.edns = Some(edns);
    }
    m.to_vec().unwrap()
}

pub(super) fn parse(message: &[u8]) -> Message {
    Message::from_bytes(message).unwrap_or_else(|e| panic!("hickory cannot read {message:02x?}: {e}"))
}

/// What a query gets; none: forwarded.
pub(super) fn ask(t: &Table, v: &View, query: &[u8], transport: Transport, spin: u32) -> Option<Message> {
    let mut out = vec![1, 2, 3];
    match answer(t, v, query, transport, spin, &mut out) {
        Verdict::Reply => Some(parse(&out)),
        Verdict::Forward => {
            assert!(out.is_empty());
            None
        }
        Verdict::Drop => panic!("dropped"),
    }
}

/// The answer in short: the code when it is not 0, `-` for NODATA, `>` for forwarded, else the data.
pub(super) fn short(v: &View, name: &str, qtype: RecordType) -> String {
    let Some(m) = ask(&table(), v, &query(name, qtype, Some(1232)), Transport::Udp, 0) else {
        return ">".into();
    };
    assert_eq!(m.metadata.id, 0x1234);
    assert!(m.metadata.recursion_desired && m.metadata.recursion_available);
    let soa = m
        .authorities
        .iter()
        .filter(|r| r.record_type() == RecordType::SOA)
        .count();
    match m.metadata.response_code {
        ResponseCode::NXDomain => {
            assert_eq!((m.answers.len(), soa), (0, 1), "{name}: NXDOMAIN has a SOA");
            "NXDOMAIN".into()
        }
        ResponseCode::NoError if m.answers.is_empty() => {
            assert_eq!(soa, 1, "{name}: NODATA has a SOA");
            "-".into()
        }
        ResponseCode::NoError => {
            assert!(m.metadata.authoritative && soa == 0 && m.answers.iter().all(|r| r.ttl == crate::TTL));
            assert!(
                m.answers
                    .iter()
                    .all(|r| r.name.eq_ignore_root_case(&Name::from_ascii(name).unwrap())),
                "{name}"
            );
            m.answers
                .iter()
                .map(|r| r.data.to_string())
                .collect::<Vec<_>>()
                .join(" ")
        }
        other => format!("{other:?}"),
    }
}
