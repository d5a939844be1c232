use std::collections::BTreeSet;

use hickory_proto::{
    op::ResponseCode,
    rr::RecordType::{self, A, AAAA, ANY, AXFR, PTR, SOA, SRV, TXT},
};
use model::EndpointState;

use super::*;
use crate::kernel;

#[test]
fn names_of_services() {
    let app = view(&[APP]);
    let both = view(&[DB, APP]);
    let none = view(&[]);
    let secret = view(&[SECRET]);
    let table: &[(&View, &str, RecordType, &str)] = &[
        (&app, "web.", A, "10.77.0.2"),
        (&app, "web.", AAAA, "fd00:77::2"),
        (&app, "WeB.", A, "10.77.0.2"),
        (&app, "web.", TXT, "-"),
        (&app, "empty.", AAAA, "-"),
        (&app, "web.app.", A, "10.77.0.2"),
        (&app, "tasks.web.", A, "10.77.1.1 10.77.1.2 10.77.1.5"),
        (&app, "tasks.web.", AAAA, "fd00:77::1:1 fd00:77::1:2 fd00:77::1:5"),
        (&app, "tasks.web.app.", A, "10.77.1.1 10.77.1.2 10.77.1.5"),
        (&app, "tasks.empty.", A, "-"),
        (&app, "1.web.", A, "10.77.1.1"),
        (&app, "2.web.app.", AAAA, "fd00:77::1:2"),
        (&app, "3.web.", A, "NXDOMAIN"), // draining
        (&app, "4.web.", A, "NXDOMAIN"), // starting
        (&app, "01.web.", A, ">"),       // no slot's name
        (&app, "_80._tcp.web.", SRV, "0 1 80 web.app."),
        (&app, "_http._tcp.web.app.", SRV, "0 1 80 web.app."),
        (&app, "_domain._udp.web.", SRV, "0 1 53 web.app."),
        (&app, "_8080._tcp.web.", SRV, "NXDOMAIN"), // the target port is not published
        (&app, "_80._udp.web.", SRV, "NXDOMAIN"),
        (&app, "_80._tcp.web.", A, "-"),
        (&app, "_80._tcp.nobody.", SRV, "NXDOMAIN"),
        // One label is ours, whatever it is.
        (&app, "nobody.", A, "NXDOMAIN"),
        (&app, "com.", A, "NXDOMAIN"),
        (&app, "tasks.", A, "NXDOMAIN"),
        (&app, "tasks.nobody.", A, "NXDOMAIN"),
        (&app, "app.", A, "-"),
        (&app, "x.app.", A, "NXDOMAIN"),
        (&app, "a.b.c.app.", A, "NXDOMAIN"),
        // What a view does not show does not exist, and does not go out.
        (&app, "pg.", A, "NXDOMAIN"),
        (&app, "tasks.pg.", A, "NXDOMAIN"),
        (&app, "1.pg.", A, "NXDOMAIN"),
        (&app, "pg.db.", A, "NXDOMAIN"),
        (&app, "db.", A, "NXDOMAIN"),
        (&none, "web.", A, "NXDOMAIN"),
        (&secret, "web.", A, "NXDOMAIN"),
        (&secret, "vault.", A, "10.79.0.2"),
        // The first network of the view that has it.
        (&both, "web.", A, "10.78.0.2"),
        (&both, "web.", AAAA, "-"),
        (&both, "web.app.", A, "10.77.0.2"),
        (&both, "pg.", A, "10.78.0.3"),
        (&both, "empty.", A, "10.77.0.4"),
        (&both, "_5432._tcp.pg.", SRV, "0 1 5432 pg.db."),
        // Others.
        (&app, "example.com.", A, ">"),
        (&app, "www.web.", A, ">"),
        (&app, "tasks.example.com.", A, ">"),
        (&app, "1.com.", A, ">"),
        (&app, "_sip._tcp.example.com.", SRV, ">"),
        (&app, ".", SOA, ">"),
        (&both, "example.com.", A, ">"),
        (&view(&[SECRET, APP]), "example.com.", A, ">"),
        (&secret, "example.com.", A, "Refused"),
        (&none, "example.com.", A, "Refused"),
        (&view(&[9999]), "example.com.", A, "Refused"),
        (&app, "web.", ANY, "Refused"),
        (&app, "example.com.", ANY, "Refused"),
        (&app, "app.", AXFR, "Refused"),
        (&none, "localhost.", A, "127.0.0.1"),
        (&none, "foo.localhost.", AAAA, "::1"),
    ];
    for (view, name, qtype, expected) in table {
        assert_eq!(short(view, name, *qtype), *expected, "{name} {qtype} in {view:?}");
    }
}

#[test]
fn names_of_addresses() {
    let app = view(&[APP]);
    let six = |host: &str| {
        let a: std::net::Ipv6Addr = host.parse().unwrap();
        let nibbles: Vec<String> = a
            .octets()
            .iter()
            .rev()
            .flat_map(|o| [format!("{:x}", o & 15), format!("{:x}", o >> 4)])
            .collect();
        format!("{}.ip6.arpa.", nibbles.join("."))
    };
    let table: &[(&View, String, &str)] = &[
        (&app, "2.0.77.10.in-addr.arpa.".into(), "web.app."),
        (&app, "1.1.77.10.in-addr.arpa.".into(), "1.web.app."),
        (&app, "3.1.77.10.in-addr.arpa.".into(), "3.web.app."), // draining: still has a name
        (&app, "5.1.77.10.in-addr.arpa.".into(), "tasks.web.app."),
        (&app, "9.1.77.10.in-addr.arpa.".into(), "NXDOMAIN"),
        (&app, "99.1.77.10.in-addr.arpa.".into(), "NXDOMAIN"),
        (&app, "x.1.77.10.in-addr.arpa.".into(), "NXDOMAIN"),
        (&app, "x.1.1.77.10.in-addr.arpa.".into(), "NXDOMAIN"),
        (&app, "1.77.10.in-addr.arpa.".into(), "-"),
        (&app, "77.10.in-addr.arpa.".into(), "-"),
        (&app, "10.in-addr.arpa.".into(), ">"),
        (&app, "in-addr.arpa.".into(), ">"),
        (&app, "2.0.78.10.in-addr.arpa.".into(), "NXDOMAIN"), // another network
        (&app, "8.8.8.8.in-addr.arpa.".into(), ">"),
        (&app, "1.0.80.10.in-addr.arpa.".into(), ">"),
        (&view(&[SECRET]), "8.8.8.8.in-addr.arpa.".into(), "Refused"),
        (&app, "1.0.0.127.in-addr.arpa.".into(), "localhost."),
        (&app, "11.0.0.127.in-addr.arpa.".into(), "NXDOMAIN"),
        (&app, six("fd00:77::2"), "web.app."),
        (&app, six("fd00:77::1:2").to_uppercase(), "2.web.app."),
        (&app, six("fd00:77::1:9"), "NXDOMAIN"),
        (&app, six("::1"), "localhost."),
        (&app, six("2001:db8::1"), ">"),
        (&app, "0.0.d.f.ip6.arpa.".into(), ">"),
        (&app, "7.7.0.0.0.0.d.f.ip6.arpa.".into(), ">"),
        (&app, six("fd00:77::").split_off(32), "-"),
        (&app, "g.0.d.f.ip6.arpa.".into(), ">"),
    ];
    for (view, name, expected) in table {
        assert_eq!(short(view, name, PTR), *expected, "{name}");
    }
}

/// An SRV answer brings the addresses along, and the target's name can be resolved.
#[test]
fn srv_has_the_addresses_with_it() {
    let m = ask(
        &table(),
        &view(&[APP]),
        &query("_http._tcp.web.", SRV, Some(1232)),
        Transport::Udp,
        0,
    )
    .unwrap();
    let extra: Vec<String> = m.additionals.iter().map(|r| format!("{} {}", r.name, r.data)).collect();
    assert_eq!(extra, ["web.app. 10.77.0.2", "web.app. fd00:77::2"]);
}

#[test]
fn the_question_keeps_its_case() {
    let q = query("tAsKs.WeB.", A, None);
    let mut out = Vec::new();
    assert_eq!(
        answer(&table(), &view(&[APP]), &q, Transport::Udp, 0, &mut out),
        Verdict::Reply
    );
    assert_eq!(out[12..q.len()], q[12..]);
    assert_eq!(parse(&out).answers.len(), 3);
}

#[test]
fn answers_take_turns() {
    let firsts: BTreeSet<String> = (0..3)
        .map(|spin| {
            let m = ask(
                &table(),
                &view(&[APP]),
                &query("tasks.web.", A, None),
                Transport::Udp,
                spin,
            )
            .unwrap();
            assert_eq!(
                m.answers
                    .iter()
                    .map(|r| r.data.to_string())
                    .collect::<BTreeSet<_>>()
                    .len(),
                3
            );
            m.answers[0].data.to_string()
        })
        .collect();
    assert_eq!(firsts.len(), 3);
}

#[test]
fn each_is_followed_by_each_other() {
    let many: Vec<_> = (1..=7)
        .map(|h| endpoint(APP, "web", Some(h.into()), h, EndpointState::Ready))
        .collect();
    let t = Table::new(&intent(), &many);
    let mut after_first = BTreeSet::new();
    for spin in 0..700 {
        let q = query("tasks.web.", A, None);
        let m = ask(&t, &view(&[APP]), &q, Transport::Udp, spin).unwrap();
        let all: Vec<String> = m.answers.iter().map(|r| r.data.to_string()).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 7, "each once");
        after_first.insert((all[0].clone(), all[1].clone()));
    }
    assert_eq!(after_first.len(), 7 * 6);
}

#[test]
fn a_service_without_a_vip_is_its_tasks() {
    let mut i = intent();
    let web = i.services.get_mut(&"web".parse().unwrap()).unwrap();
    web.spec.endpoint_mode = model::spec::EndpointMode::Dnsrr;
    web.vips.clear();
    web.ports.clear();
    let t = Table::new(&i, &endpoints());
    let short = |v: &View, name: &str, qtype| -> BTreeSet<String> {
        let m = ask(&t, v, &query(name, qtype, None), Transport::Udp, 0).unwrap();
        m.answers.iter().map(|r| r.data.to_string()).collect()
    };
    let app = view(&[APP]);
    let set = |all: &[&str]| -> BTreeSet<String> { all.iter().map(|a| (*a).to_owned()).collect() };
    assert_eq!(
        short(&app, "web.", A),
        set(&["10.77.1.1", "10.77.1.2", "10.77.1.5"]),
        "ready ones alone"
    );
    assert_eq!(short(&app, "web.app.", A), short(&app, "tasks.web.", A));
    assert_eq!(short(&app, "web.", AAAA).len(), 3);
    assert_eq!(short(&app, "1.web.", A), set(&["10.77.1.1"]));
    assert_eq!(short(&view(&[DB]), "web.", A), set(&[]), "on each network its own");
}

#[test]
fn a_port_of_single_nodes_is_not_the_vips() {
    let mut i = intent();
    let web = i.services.get_mut(&"web".parse().unwrap()).unwrap();
    for p in web.ports.values_mut() {
        p.spec.mode = model::PublishMode::Host;
    }
    let t = Table::new(&i, &endpoints());
    let m = ask(&t, &view(&[APP]), &query("_80._tcp.web.", SRV, None), Transport::Udp, 0).unwrap();
    assert!(m.answers.is_empty());
}

#[test]
fn edns_is_echoed_and_sets_the_length() {
    let many: Vec<_> = (1..=250)
        .map(|h| endpoint(APP, "web", Some(h.into()), h, EndpointState::Ready))
        .collect();
    let t = Table::new(&intent(), &many);
    let table = [
        (None, Transport::Udp, 512, true),
        (Some(100), Transport::Udp, 512, true),
        (Some(800), Transport::Udp, 800, true),
        (Some(65535), Transport::Udp, 1232, true),
        (None, Transport::Tcp, 65535, false),
        (Some(512), Transport::Tcp, 65535, false),
    ];
    for (size, transport, limit, truncated) in table {
        let mut out = Vec::new();
        answer(&t, &view(&[APP]), &query("tasks.web.", A, size), transport, 7, &mut out);
        let m = parse(&out);
        assert!(out.len() <= limit, "{size:?}: {}", out.len());
        assert!(!truncated || out.len() + 16 > limit, "as many as fit");
        assert_eq!(m.metadata.truncation, truncated, "{size:?}");
        assert_eq!(m.edns.as_ref().map(|e| e.max_payload()), size.map(|_| 1232));
        assert!(truncated || m.answers.len() == 250);
    }
    let vast: Vec<_> = (0..6000u32)
        .map(|n| model::EndpointRow {
            v4: Some(std::net::Ipv4Addr::from(0x0a4d_0100 + n)),
            ..endpoint(APP, "web", Some(n), 1, EndpointState::Ready)
        })
        .collect();
    let mut out = Vec::new();
    answer(
        &Table::new(&intent(), &vast),
        &view(&[APP]),
        &query("tasks.web.", A, None),
        Transport::Tcp,
        5,
        &mut out,
    );
    let m = parse(&out);
    assert!(!m.metadata.truncation && m.answers.len() > 4000, "by TCP: what fits");
}

fn raw(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let words = [0x1234, flags].into_iter().chain(counts);
    words.flat_map(u16::to_be_bytes).chain(rest.iter().copied()).collect()
}

#[test]
fn malformed_queries_get_a_code() {
    // 16 has two names; hickory prints the one of TSIG.
    use ResponseCode::{BADSIG as BADVERS, FormErr, NotImp, Refused};
    let web = b"\x03web\0\0\x01\0\x01";
    let opt = |version: u8| [b"\0\0\x29\x04\xd0\0".as_slice(), &[version], b"\0\0\0\0"].concat();
    let with = |opts: &[Vec<u8>]| [web.to_vec(), opts.concat()].concat();
    let long = [b"\x3f".to_vec(), b"a".repeat(63)].concat().repeat(4);
    let table: Vec<(&str, Vec<u8>, ResponseCode)> = vec![
        ("an update", raw(0x2800, [1, 0, 0, 0], web), NotImp),
        ("no question", raw(0, [0; 4], b""), FormErr),
        ("two questions", raw(0, [2, 0, 0, 0], &web.repeat(2)), FormErr),
        ("an answer", raw(0, [1, 1, 0, 0], web), FormErr),
        ("cut short", raw(0, [1, 0, 0, 0], &web[..6]), FormErr),
        ("more behind", raw(0, [1, 0, 0, 0], b"\x03web\0\0\x01\0\x01x"), FormErr),
        ("a pointer", raw(0, [1, 0, 0, 0], b"\xc0\x0c\0\x01\0\x01"), FormErr),
        (
            "a label of 64",
            raw(
                0,
                [1, 0, 0, 0],
                &[b"\x40".to_vec(), b"a".repeat(64), b"\0\0\x01\0\x01".to_vec()].concat(),
            ),
            FormErr,
        ),
        (
            "a name of 257",
            raw(0, [1, 0, 0, 0], &[long, b"\0\0\x01\0\x01".to_vec()].concat()),
            FormErr,
        ),
        ("two OPT", raw(0, [1, 0, 0, 2], &with(&[opt(0), opt(0)])), FormErr),
        (
            "OPT with a name",
            raw(0, [1, 0, 0, 1], &[with(&[]), b"\x01x".to_vec(), opt(0)].concat()),
            FormErr,
        ),
        ("OPT missing", raw(0, [1, 0, 0, 1], web), FormErr),
        ("EDNS 1", raw(0, [1, 0, 0, 1], &with(&[opt(1)])), BADVERS),
        ("class CH", raw(0, [1, 0, 0, 0], b"\x03web\0\0\x01\0\x03"), Refused),
        ("class ANY", raw(0, [1, 0, 0, 0], b"\x03web\0\0\x01\0\xff"), Refused),
        ("type 0", raw(0, [1, 0, 0, 0], b"\x03web\0\0\0\0\x01"), FormErr),
        ("type OPT", raw(0, [1, 0, 0, 0], b"\x03web\0\0\x29\0\x01"), FormErr),
    ];
    for (what, q, code) in table {
        let m = ask(&super::table(), &view(&[APP]), &q, Transport::Udp, 0).unwrap();
        assert_eq!((m.metadata.response_code, m.metadata.id), (code, 0x1234), "{what}");
    }
    let mut out = Vec::new();
    for dropped in [&b""[..], &[0; 11], &raw(0x8000, [1, 0, 0, 0], web)] {
        assert_eq!(
            answer(&super::table(), &view(&[APP]), dropped, Transport::Udp, 0, &mut out),
            Verdict::Drop
        );
    }
}

/// RFC 1035 3.1: 255 octets with the root's; one more is malformed.
#[test]
fn the_longest_name_is_read() {
    for (last, code) in [(61, None), (62, Some(ResponseCode::FormErr))] {
        let label = |n: usize| [vec![n as u8], b"a".repeat(n)].concat();
        let name = [label(63), label(63), label(63), label(last), b"\0\0\x01\0\x01".to_vec()].concat();
        let m = ask(
            &super::table(),
            &view(&[APP]),
            &raw(0, [1, 0, 0, 0], &name),
            Transport::Udp,
            0,
        );
        assert_eq!(m.map(|m| m.metadata.response_code), code, "{last}");
    }
    let many = [b"\x01a".repeat(127), b"\0\0\x01\0\x01".to_vec()].concat();
    assert!(
        ask(
            &super::table(),
            &view(&[APP]),
            &raw(0, [1, 0, 0, 0], &many),
            Transport::Udp,
            0
        )
        .is_none()
    );
}

/// The kernel's table says what we say.
#[test]
fn the_kernel_answers_alike() {
    let t = table();
    let entries = kernel::entries(&t);
    assert_eq!(
        entries.len(),
        2 * (2 + 2 + 2 + 2 + 2 + 1 + 2 + 1),
        "VIP and tasks of five, slots 1 2 of web, 1 of pg, 1 of vault"
    );
    for (key, addresses) in entries {
        for (qtype, expected) in [(1, addresses.v4.len()), (28, addresses.v6.len())] {
            let q = raw(0x0100, [1, 0, 0, 0], &[key.name.clone(), vec![0, qtype, 0, 1]].concat());
            let m = ask(
                &t,
                &View {
                    networks: vec![key.network],
                },
                &q,
                Transport::Udp,
                0,
            )
            .unwrap();
            assert_eq!(
                (m.metadata.response_code, m.answers.len()),
                (ResponseCode::NoError, expected),
                "{key:?}"
            );
        }
    }
}
