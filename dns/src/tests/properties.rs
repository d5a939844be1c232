use proptest::prelude::*;

use super::*;
use crate::foreign::{Foreign, Reaction};

/// Labels that mean something here, or nothing.
fn label() -> impl Strategy<Value = Vec<u8>> {
    const KNOWN: &[&str] = &[
        "web",
        "WEB",
        "tasks",
        "app",
        "db",
        "pg",
        "1",
        "2",
        "_80",
        "_http",
        "_tcp",
        "_udp",
        "arpa",
        "in-addr",
        "ip6",
        "10",
        "77",
        "0",
        "f",
        "localhost",
        "com",
    ];
    prop_oneof![
        4 => prop::sample::select(KNOWN).prop_map(|l| l.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..64),
    ]
}

/// A query that is well formed, mostly.
fn wellformed() -> impl Strategy<Value = Vec<u8>> {
    let qtype = prop_oneof![
        prop::sample::select(vec![1u16, 28, 33, 12, 6, 16, 255, 65]),
        any::<u16>()
    ];
    (
        prop::collection::vec(label(), 0..6),
        qtype,
        any::<u16>(),
        any::<u16>(),
        prop::option::of(any::<u16>()),
    )
        .prop_map(|(labels, qtype, id, flags, edns)| {
            let mut q: Vec<u8> = [id, flags & 0x07ff, 1, 0, 0, u16::from(edns.is_some())]
                .into_iter()
                .flat_map(u16::to_be_bytes)
                .collect();
            for l in labels {
                q.push(l.len() as u8);
                q.extend(l);
            }
            q.push(0);
            q.extend(qtype.to_be_bytes());
            q.extend([0, 1]);
            if let Some(size) = edns {
                q.extend([0, 0, 41]);
                q.extend(size.to_be_bytes());
                q.extend([0; 6]);
            }
            q
        })
}

fn any_view() -> impl Strategy<Value = View> {
    prop::collection::vec(prop::sample::select(vec![APP, DB, SECRET, 9999]), 0..4).prop_map(|v| view(&v))
}

fn transport() -> impl Strategy<Value = Transport> {
    prop::sample::select(vec![Transport::Udp, Transport::Tcp])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300), v in any_view(), spin: u32, tr in transport()) {
        let mut out = Vec::new();
        if answer(&table(), &v, &noise, tr, spin, &mut out) == Verdict::Reply {
            parse(&out);
        }
    }

    /// A good query with some octets changed: what is answered can be read, and fits.
    #[test]
    fn broken_queries_get_readable_replies(mut q in wellformed(), hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3), v in any_view(), spin: u32, tr in transport()) {
        for (at, with) in hits {
            let at = at.index(q.len());
            q[at] = with;
        }
        let mut out = Vec::new();
        match answer(&table(), &v, &q, tr, spin, &mut out) {
            Verdict::Reply => {
                let m = parse(&out);
                prop_assert_eq!(m.metadata.id.to_be_bytes(), [q[0], q[1]]);
                prop_assert!(tr == Transport::Tcp || out.len() <= 1232);
            }
            Verdict::Forward => prop_assert!(Foreign::parse(&q, tr).is_some()),
            Verdict::Drop => prop_assert!(out.is_empty()),
        }
    }

    /// Nothing of ours leaves: what is forwarded has two labels or more, does not end in a network's name, and comes
    /// from a view with a network that is not internal.
    #[test]
    fn nothing_of_ours_is_forwarded(q in wellformed(), v in any_view()) {
        let mut out = Vec::new();
        let verdict = answer(&table(), &v, &q, Transport::Udp, 0, &mut out);
        let m = parse(&q);
        let labels: Vec<String> = m.queries[0].name().to_lowercase().iter().map(|l| String::from_utf8_lossy(l).into_owned()).collect();
        let ours = labels.len() == 1
            || labels.last().is_some_and(|l| ["app", "db", "secret", "localhost"].contains(&l.as_str()))
            || labels.ends_with(&["77".into(), "10".into(), "in-addr".into(), "arpa".into()]);
        let inside = !v.networks.iter().any(|n| [vni(APP), vni(DB)].contains(n));
        if ours || inside {
            prop_assert_eq!(verdict, Verdict::Reply);
        }
    }

    #[test]
    fn upstream_noise_never_panics(q in wellformed(), id: u16, mut noise in prop::collection::vec(any::<u8>(), 0..300), like_an_answer: bool) {
        let Some(f) = Foreign::parse(&q, Transport::Udp) else { return Ok(()) };
        let ask = f.ask(id);
        prop_assert!(parse(&ask).edns.is_some());
        if like_an_answer {
            // Our own question, marked as an answer, with noise behind it.
            let mut m = ask[..ask.len() - 11].to_vec();
            m[2] |= 0x80;
            m[6..12].copy_from_slice(&[0, 1, 0, 1, 0, 1]);
            m.append(&mut noise);
            noise = m;
        }
        if let Reaction::Answer(a) = f.judge(id, &noise) {
            let mut out = Vec::new();
            f.reply(&a, 3, &mut out);
            prop_assert_eq!(&out[..2], &q[..2]);
        }
    }
}
