use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME, SOA},
    },
};

use super::*;
use crate::foreign::{Answer, Foreign, MAX_TTL, Reaction};

fn name(n: &str) -> Name {
    Name::from_ascii(n).unwrap()
}

fn a(owner: &str, ttl: u32, last: u8) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A::new(192, 0, 2, last)))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    Record::from_rdata(
        name("example.com."),
        ttl,
        RData::SOA(SOA::new(
            name("ns.example.com."),
            name("root.example.com."),
            1,
            2,
            3,
            4,
            minimum,
        )),
    )
}

/// An upstream's answer to `www.example.com A` under id 7.
fn upstream(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Message {
    let mut m = Message::new(7, MessageType::Response, OpCode::Query);
    m.metadata.response_code = code;
    m.add_query(Query::query(name("www.example.com."), RecordType::A));
    m.add_answers(answers);
    m.authorities.extend(authorities);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    m.edns = Some(edns);
    m
}

fn asked(size: Option<u16>) -> Foreign {
    Foreign::parse(&query("wWw.ExAmple.com.", RecordType::A, size), Transport::Udp).unwrap()
}

fn judged(m: &Message) -> Answer {
    match asked(None).judge(7, &m.to_vec().unwrap()) {
        Reaction::Answer(a) => a,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_query_upstream_is_our_own() {
    let m = parse(&asked(None).ask(7));
    assert_eq!((m.metadata.id, m.queries.len()), (7, 1));
    assert!(m.metadata.recursion_desired);
    assert_eq!(m.edns.unwrap().max_payload(), 1232);
    assert_eq!(asked(None).key(), asked(Some(4096)).key(), "shared between clients");
    let other = Foreign::parse(&query("www.example.com.", RecordType::AAAA, None), Transport::Udp).unwrap();
    assert_ne!(asked(None).key(), other.key());
}

#[test]
fn how_long_an_answer_is_kept() {
    use ResponseCode::{NXDomain, NoError};
    let cname = Record::from_rdata(
        name("www.example.com."),
        20,
        RData::CNAME(CNAME(name("x.example.com."))),
    );
    let table: Vec<(&str, Message, u32)> = vec![
        ("one", upstream(NoError, vec![a("www.example.com.", 60, 1)], vec![]), 60),
        (
            "the least",
            upstream(NoError, vec![cname.clone(), a("x.example.com.", 60, 1)], vec![]),
            20,
        ),
        (
            "a year",
            upstream(NoError, vec![a("www.example.com.", 31_536_000, 1)], vec![]),
            MAX_TTL,
        ),
        (
            "negative ttl",
            upstream(NoError, vec![a("www.example.com.", 0x8000_0001, 1)], vec![]),
            0,
        ),
        ("no such name", upstream(NXDomain, vec![], vec![soa(90, 30)]), 30),
        (
            "no such name behind an alias",
            upstream(NXDomain, vec![cname], vec![soa(90, 30)]),
            20,
        ),
        ("no data", upstream(NoError, vec![], vec![soa(10, 30)]), 10),
        ("no data, no SOA", upstream(NoError, vec![], vec![]), 0),
    ];
    for (what, m, ttl) in table {
        assert_eq!(judged(&m).ttl(), ttl, "{what}");
    }
    let mut cut = upstream(NoError, vec![a("www.example.com.", 60, 1)], vec![]);
    cut.metadata.truncation = true;
    assert!(judged(&cut).truncated());
    assert_eq!(judged(&cut).ttl(), 0);
}

#[test]
fn forgeries_are_ignored_and_failures_passed_over() {
    let good = upstream(ResponseCode::NoError, vec![a("www.example.com.", 60, 1)], vec![]);
    let f = asked(None);
    let bytes = good.to_vec().unwrap();
    assert!(matches!(f.judge(7, &bytes), Reaction::Answer(_)));
    let mut question = good.clone();
    question.queries[0].set_name(name("www.example.org."));
    let mut qtype = good.clone();
    qtype.queries[0].set_query_type(RecordType::AAAA);
    let mut refused = good.clone();
    refused.metadata.response_code = ResponseCode::Refused;
    let mut formerr = Message::new(7, MessageType::Response, OpCode::Query);
    formerr.metadata.response_code = ResponseCode::FormErr;
    let cut = bytes[..bytes.len() - 20].to_vec();
    let table: Vec<(&str, u16, Vec<u8>, Reaction)> = vec![
        ("wrong id", 8, bytes.clone(), Reaction::Ignore),
        ("a query", 7, f.ask(7), Reaction::Ignore),
        ("other name", 7, question.to_vec().unwrap(), Reaction::Ignore),
        ("other type", 7, qtype.to_vec().unwrap(), Reaction::Ignore),
        ("short", 7, bytes[..9].to_vec(), Reaction::Ignore),
        ("refused", 7, refused.to_vec().unwrap(), Reaction::NextServer),
        (
            "format error without question",
            7,
            formerr.to_vec().unwrap(),
            Reaction::NextServer,
        ),
        ("broken", 7, cut, Reaction::NextServer),
    ];
    for (what, id, message, expected) in table {
        assert_eq!(f.judge(id, &message), expected, "{what}");
    }
}

#[test]
fn the_client_gets_its_own_id_case_and_age() {
    let answers = vec![a("www.example.com.", 60, 1), a("www.example.com.", 2, 2)];
    let answer = judged(&upstream(ResponseCode::NoError, answers, vec![soa(90, 30)]));
    for size in [None, Some(1232)] {
        let mut out = Vec::new();
        asked(size).reply(&answer, 5, &mut out);
        let m = parse(&out);
        assert_eq!(m.metadata.id, 0x1234);
        assert_eq!(m.queries[0].name().to_ascii(), "wWw.ExAmple.com.");
        assert_eq!(m.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [55, 0]);
        assert_eq!(m.authorities.len(), 1);
        assert_eq!(m.edns.is_some(), size.is_some());
        assert!(m.metadata.recursion_available && m.metadata.recursion_desired && !m.metadata.truncation);
    }
}

#[test]
fn what_is_too_long_for_udp_is_asked_for_by_tcp() {
    let answer = judged(&upstream(
        ResponseCode::NoError,
        (0..60).map(|n| a("www.example.com.", 60, n)).collect(),
        vec![],
    ));
    let mut out = Vec::new();
    asked(None).reply(&answer, 0, &mut out);
    let m = parse(&out);
    assert!(m.metadata.truncation && m.answers.is_empty() && out.len() <= 512);
    asked(Some(1232)).reply(&answer, 0, &mut out);
    assert_eq!(parse(&out).answers.len(), 60);
    asked(None).fail(crate::rcode::SERVFAIL, &mut out);
    assert_eq!(parse(&out).metadata.response_code, ResponseCode::ServFail);
}
