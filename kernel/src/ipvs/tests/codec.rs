//! Messages as octets: what is told, and what Linux 6.1 answered to it (little-endian, as on every machine that is tested).

use mesh::ipvs::{MARK_BASE, Step, plan};
use proptest::prelude::*;

use super::{
    super::{
        Counted,
        genl::{self, attrs},
        message::{self, Forced, dst, flag, svc, top},
        read,
    },
    *,
};
use crate::netlink::{Answer, Attrs, Writer};

/// A Maglev service of two backends, one of which drains through a tunnel; the IPv6 one keeps clients for 90 s.
fn recorded(family: Family) -> (ServiceKey, Service) {
    let tunnel = Dest {
        weight: 0,
        forward: Forward::Tunnel,
    };
    let dests = [(dest(family, 1), weight(3)), (dest(family, 2), tunnel)];
    let maglev = Service {
        flags: SchedFlags::MAGLEV,
        timeout: if family == Family::V6 { 90 } else { 0 },
        ..service(Scheduler::Mh, dests)
    };
    (key(1, family), maglev)
}

/// The recorded bodies of a kind: `step`, `family`, `info`, `config`, `service`, `dest`.
fn bodies(kind: &str) -> Vec<Vec<u8>> {
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let lines = include_str!("recorded.txt").lines();
    let hex = lines.filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
    hex.map(|h| h.as_bytes().chunks(2).map(octet).collect()).collect()
}

fn answers(kind: &str) -> Vec<Answer> {
    let answer = |body| Answer { kind: 0x1c, body };
    bodies(kind).into_iter().map(answer).collect()
}

#[test]
fn steps_are_told_as_the_kernel_took_them() {
    let wanted = table(FAMILIES.map(recorded));
    let steps = plan(&Table::default(), &wanted);
    let told: Vec<_> = steps
        .iter()
        .map(|step| message::step(genl::Family(0x1c), step, Forced::No).body)
        .collect();
    assert_eq!(told.len(), 8);
    assert_eq!(told, bodies("step"));
}

#[test]
fn what_the_kernel_answered_is_what_it_was_told() {
    let family = answers("family");
    assert_eq!(family.iter().map(genl::family_id).collect::<Vec<_>>(), [Some(0x1c)]);
    assert_eq!(read::version_of(attrs(&answers("info")[0])), Some(((1, 2, 1), 4096)));
    assert_eq!(read::timeouts(attrs(&answers("config")[0])), Timeouts::default());
    let mut seen = BTreeMap::new();
    for answer in answers("service") {
        let (key, settings) = read::service(attrs(&answer)).unwrap();
        seen.insert(key, settings);
    }
    let counted = answers("service")
        .iter()
        .map(|a| read::counted_of(attrs(a)))
        .collect::<Vec<_>>();
    assert_eq!(counted, [Some(Counted::default()); 2], "nothing had been sent");
    let wanted = BTreeMap::from(FAMILIES.map(recorded));
    let settings = |(key, service): (&ServiceKey, &Service)| (*key, service.settings());
    assert_eq!(seen, wanted.iter().map(settings).collect());
    for (key, service) in &wanted {
        let dests = answers("dest");
        let of = |(dest, _): &(DestKey, Dest)| Family::of(dest.address) == key.family;
        let dests: BTreeMap<_, _> = dests
            .iter()
            .filter_map(|a| read::dest(key.family, attrs(a)))
            .filter(of)
            .collect();
        assert_eq!(dests, service.dests);
    }
}

#[test]
fn an_answer_that_was_cut_off_says_nothing_or_the_same() {
    for body in bodies("service").into_iter().chain(bodies("dest")) {
        let whole = Answer { kind: 0x1c, body };
        let all = (read::service(attrs(&whole)), read::dest(Family::V4, attrs(&whole)));
        for length in 0..whole.body.len() {
            let cut = Answer {
                kind: 0x1c,
                body: whole.body[..length].to_vec(),
            };
            let service = read::service(attrs(&cut));
            let dest = read::dest(Family::V4, attrs(&cut));
            assert!(service.is_none() || service == all.0, "cut at {length}");
            assert!(dest.is_none() || dest == all.1, "cut at {length}");
        }
    }
}

/// A service as the kernel would tell it.
fn told(mark: u32, af: i32, scheduler: &str, flags: u32, timeout: u32, engine: Option<&str>) -> Answer {
    let mut w = Writer(vec![1, 1, 0, 0]);
    w.nest(top::SERVICE, |w| {
        w.bytes(svc::FAMILY, &(af as u16).to_ne_bytes())
            .bytes(svc::FWMARK, &mark.to_ne_bytes())
            .string(svc::SCHED_NAME, scheduler)
            .bytes(svc::FLAGS, &[flags.to_ne_bytes(), [255; 4]].concat())
            .bytes(svc::TIMEOUT, &timeout.to_ne_bytes());
        if let Some(name) = engine {
            w.string(svc::PE_NAME, name);
        }
    });
    Answer { kind: 0x1c, body: w.0 }
}

/// `IP_VS_SVC_F_HASHED`, which every service has.
const HASHED: u32 = 2;

#[test]
fn services_of_others_are_passed_over() {
    for mark in [0, 1, MARK_BASE - 1, 0x6f00_0000, u32::MAX] {
        assert_eq!(
            read::service(attrs(&told(mark, libc::AF_INET, "rr", HASHED, 0, None))),
            None
        );
    }
    assert!(read::service(attrs(&told(MARK_BASE, libc::AF_INET, "rr", HASHED, 0, None))).is_some());
    assert_eq!(
        read::service(attrs(&told(MARK_BASE, libc::AF_UNIX, "rr", HASHED, 0, None))),
        None
    );
}

#[test]
fn what_netd_never_sets_is_seen_as_other() {
    let seen = |scheduler, flags, timeout, engine| {
        let answer = told(MARK_BASE, libc::AF_INET6, scheduler, HASHED | flags, timeout, engine);
        read::service(attrs(&answer)).unwrap().1
    };
    assert_eq!(seen("wlc", 0, 0, None).scheduler, Scheduler::Wlc);
    assert_eq!(seen("none", 0, 0, None).scheduler, Scheduler::None);
    assert_eq!(seen("lblcr", 0, 0, None).scheduler, Scheduler::Other);
    assert_eq!(seen("rr", flag::ONE_PACKET, 0, None).scheduler, Scheduler::Other);
    assert_eq!(seen("mh", flag::SCHED3, 0, None).scheduler, Scheduler::Other);
    assert_eq!(seen("rr", 0, 0, Some("sip")).scheduler, Scheduler::Other);
    assert_eq!(seen("rr", 0, 300, None).timeout, 0, "a timeout that plays no part");
    assert_eq!(seen("rr", flag::PERSISTENT, 300, None).timeout, 300);
}

#[test]
fn limits_and_other_tunnels_of_a_backend_are_seen_as_other() {
    let seen = |forward: u32, extra: (u16, &[u8])| {
        let mut w = Writer(vec![5, 1, 0, 0]);
        w.nest(top::DEST, |w| {
            w.bytes(dst::ADDRESS, &[10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
                .bytes(dst::PORT, &[0, 80])
                .bytes(dst::FORWARD, &forward.to_ne_bytes())
                .bytes(dst::WEIGHT, &7u32.to_ne_bytes())
                .bytes(extra.0, extra.1);
        });
        let answer = Answer { kind: 0x1c, body: w.0 };
        let (key, dest) = read::dest(Family::V4, attrs(&answer)).unwrap();
        assert_eq!(
            key.to_string(),
            "10.0.0.1:80",
            "without a family of its own it is of the service's"
        );
        assert_eq!(dest.weight, 7);
        dest.forward
    };
    assert_eq!(seen(0, (dst::UPPER, &[0; 4])), Forward::Masquerade);
    assert_eq!(seen(2, (dst::TUNNEL_TYPE, &[0])), Forward::Tunnel);
    assert_eq!(seen(3, (dst::LOWER, &[0; 4])), Forward::Direct);
    assert_eq!(seen(1, (dst::UPPER, &[0; 4])), Forward::Other, "local node");
    assert_eq!(seen(0, (dst::UPPER, &[1; 4])), Forward::Other);
    assert_eq!(seen(2, (dst::TUNNEL_TYPE, &[1])), Forward::Other, "GUE");
}

#[test]
fn a_change_bears_all_settings_and_a_removal_the_name_alone() {
    let (key, service) = recorded(Family::V4);
    let family = genl::Family(0x1c);
    let make = Step::SetService {
        key,
        settings: service.settings(),
        new: true,
    };
    let request = |step, forced| message::step(family, &step, forced);
    let (new, changed) = (request(make, Forced::No), request(make, Forced::Change));
    assert_eq!(new.kind, 0x1c);
    assert_eq!((new.body[0], changed.body[0]), (1, 2), "the command alone differs");
    assert_eq!(new.body[1..], changed.body[1..]);
    let removal = request(Step::RemoveService { key }, Forced::No);
    assert_eq!(Attrs(Attrs(&removal.body[4..]).get(top::SERVICE).unwrap()).count(), 2);
    let some = Step::SetTimeouts(Timeouts {
        tcp: 1,
        tcp_fin: 0,
        udp: 2,
    });
    assert_eq!(Attrs(&request(some, Forced::No).body[4..]).count(), 2, "0 is not told");
}

#[test]
fn what_is_told_can_be_read_back() {
    for family in FAMILIES {
        let (key, service) = recorded(family);
        let settings = service.settings();
        let steps = plan(&Table::default(), &table([(key, service.clone())]));
        let mut read_back = service.clone();
        read_back.dests.clear();
        for step in steps {
            let body = message::step(genl::Family(0x1c), &step, Forced::No).body;
            let answer = Answer { kind: 0x1c, body };
            match step {
                Step::SetService { settings: s, .. } => {
                    assert_eq!(read::service(attrs(&answer)), Some((key, s)));
                    read_back.scheduler = s.scheduler;
                }
                _ => read_back.dests.extend(read::dest(family, attrs(&answer))),
            }
        }
        assert_eq!(read_back, service);
        assert_eq!(read_back.settings(), settings);
    }
}

proptest! {
    #[test]
    fn no_answer_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        // Wrapped as well, since chance rarely makes an outer attribute that holds.
        let mut w = Writer(vec![1, 1, 0, 0]);
        w.nest(top::SERVICE, |w| w.0.extend_from_slice(&body));
        w.nest(top::DEST, |w| w.0.extend_from_slice(&body));
        for body in [body, w.0] {
            let answer = Answer { kind: 0x1c, body };
            let _ = read::service(attrs(&answer));
            let _ = read::timeouts(attrs(&answer));
            let _ = genl::family_id(&answer);
            for family in FAMILIES {
                let _ = read::dest(family, attrs(&answer));
            }
        }
    }
}
