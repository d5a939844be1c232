//! One wanted mesh after the other, whatever they are.

use proptest::prelude::*;

use super::*;

fn any_backend() -> impl Strategy<Value = (BackendId, Backend)> {
    (1u8..30, 1u8..4, 0u8..4, any::<bool>(), any::<bool>()).prop_map(|(n, node, family, draining, other)| {
        let (id, mut b) = backend(n, node);
        if family == 1 {
            b.v6 = None;
        }
        if family == 2 {
            b.v4 = None;
        }
        if draining {
            b.state = BackendState::Draining;
        }
        if other && n % 5 == 0 {
            b.vni = vni(5000);
        }
        (id, b)
    })
}

fn any_wanted() -> impl Strategy<Value = Wanted> {
    let service = (
        proptest::collection::vec(any_backend(), 0..15),
        proptest::collection::btree_set(1u16..20, 0..4),
        any::<bool>(),
    );
    proptest::collection::btree_map(1u32..6, service, 0..5).prop_map(|services| {
        let services = services.into_iter().map(|(index, (backends, ports, vip))| {
            let ports: Vec<String> = ports
                .iter()
                .map(|p| {
                    let on = if p % 3 == 0 { "198.18.0.1:" } else { "" };
                    let mode = if p % 4 == 0 { ",mode=host" } else { "" };
                    format!("{on}{p}:{}/{}{mode}", p + 1, if p % 2 == 0 { "udp" } else { "tcp" })
                })
                .collect();
            let mut s = service_of(&ports, backends);
            s.vips
                .values_mut()
                .for_each(|v| v.v4 = Ipv4Addr::new(10, 77, 0, index as u8));
            if !vip {
                s.vips.clear();
            }
            (index, s)
        });
        let mut w = Wanted {
            services: services.collect(),
            ..nothing()
        };
        if w.services.contains_key(&3) {
            w.local.insert(IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1)));
        }
        w
    })
}

fn service_of(ports: &[String], backends: Vec<(BackendId, Backend)>) -> Service {
    service(&ports.iter().map(String::as_str).collect::<Vec<_>>(), backends)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Whatever is wanted one after the other: it is reached, by good steps alone, and then there is nothing left to do.
    #[test]
    fn any_history_converges(history in proptest::collection::vec(any_wanted(), 1..6), cut in any::<proptest::sample::Index>()) {
        let mut o = small();
        for w in &history {
            let p = plan(w, &o);
            // Killed somewhere in the middle, the daemon plans anew.
            let at = cut.index(p.steps.len() + 1);
            apply(&mut o, &Plan { steps: p.steps[..at].to_vec(), problems: vec![] });
            let p = plan(w, &o);
            apply(&mut o, &p);
            prop_assert_eq!(plan(w, &o).steps, vec![]);
            // Keys lead to the active backends, and to nobody else.
            let mut fresh = small();
            for step in plan(w, &fresh).steps { fresh.apply(&step) }
            prop_assert_eq!(o.services.keys().collect::<Vec<_>>(), fresh.services.keys().collect::<Vec<_>>());
            for k in o.services.keys() {
                prop_assert_eq!(leads_to(&o, k), leads_to(&fresh, k));
            }
            prop_assert_eq!(&o.targets, &fresh.targets);
        }
        let p = plan(&nothing(), &o);
        apply(&mut o, &p);
        prop_assert!(o.services.is_empty() && o.targets.is_empty() && o.backends.iter().all(|b| *b == Cell::default()));
    }
}
