//! For any two states of the view, any accident in between and anything foreign: the plan can be carried out in its
//! order, afterwards nothing is left to do, what is wanted is there, and what is foreign is untouched.

use std::{collections::BTreeSet, path::Path};

use proptest::prelude::*;

use super::{kernel::Kernel, *};

const FOLDER: &str = "/run/netd/netns";
const TASKS: [&str; 3] = ["/run/netd/netns/a", "/run/netd/netns/b", "/run/netd/netns/c"];

#[derive(Debug, Clone)]
enum Accident {
    /// The next steps are never carried out (kill -9 in the middle of a plan).
    Killed(usize),
    /// A namespace ends.
    Ends(usize),
    /// A namespace ends and another one takes its path.
    Replaced(usize),
    /// Somebody takes a device down, or gives it another MTU.
    Down(usize),
    /// Somebody removes a route or address.
    Emptied,
    /// Somebody flushes the rules.
    Flushed,
    /// Somebody takes a sandbox's name away while it lives on.
    Lost(usize),
    /// Somebody takes the filters' hooks away, and changes what is left.
    Unhooked,
}

fn accidents() -> impl Strategy<Value = Vec<Accident>> {
    let one = prop_oneof![
        (0usize..40).prop_map(Accident::Killed),
        (0usize..3).prop_map(Accident::Ends),
        (0usize..3).prop_map(Accident::Replaced),
        (0usize..6).prop_map(Accident::Down),
        Just(Accident::Emptied),
        Just(Accident::Flushed),
        (0usize..2).prop_map(Accident::Lost),
        Just(Accident::Unhooked),
    ];
    prop::collection::vec(one, 0..3)
}

fn view() -> impl Strategy<Value = Desired> {
    let one = (
        0usize..4,
        prop::bool::ANY,
        0usize..3,
        0usize..3,
        1u8..6,
        prop::bool::ANY,
    );
    (prop::collection::vec(one, 0..5), 0u8..10, prop::bool::ANY).prop_map(|(list, node, port)| {
        let mut d = cluster();
        for (i, second, task, interface, n, extra) in list {
            let net = if second { 4097 } else { 4096 };
            let mut ep = endpoint(net, n, TASKS[task], ["eth0", "eth1", "eth10"][interface]);
            if extra {
                ep.extra.insert(ip(&format!("10.77.200.{n}")));
            }
            d.endpoints.insert(id(["web.1", "web.2", "db.1", "x"][i]), ep);
        }
        match node {
            0 => d.node = None,
            1 => d.node.as_mut().unwrap().mac = Mac([6, 0x6e, 0, 0, 0, 9]),
            2 => d.node.as_mut().unwrap().mtu = 1280,
            3 => d.networks.clear(),
            _ => {}
        }
        if let Some(n) = d.node.as_mut().filter(|_| port) {
            n.vxlan_port = 4790;
        }
        d
    })
}

fn foreign() -> impl Strategy<Value = BTreeSet<usize>> {
    prop::collection::btree_set(0usize..6, 0..2)
}

/// Devices that netd did not make, under names that it might want.
fn add_foreign(k: &mut Kernel, which: &BTreeSet<usize>) -> Vec<(Ns, String)> {
    let task = |i: usize| Ns::Task(PathBuf::from(TASKS[i]));
    let all = [
        (Ns::Host, names::VXLAN.to_owned()),
        (Ns::Host, names::veth(&id("web.1"))),
        (task(0), "eth0".to_owned()),
        (task(1), "eth1".to_owned()),
        (Ns::Host, "docker0".to_owned()),
        (task(2), "eth10".to_owned()),
    ];
    let chosen: Vec<_> = which.iter().map(|i| all[*i].clone()).collect();
    for (ns, name) in &chosen {
        k.link(ns, name, Some("somebody's"));
    }
    chosen
}

fn sandboxes(k: &mut Kernel) -> impl Iterator<Item = &mut SeenSpace> {
    k.seen.sandboxes.values_mut().filter_map(|s| match s {
        SeenSandbox::Ours(space) => Some(space),
        _ => None,
    })
}

/// In either shape.
fn wish(d: &Desired, routed: bool, abilities: Abilities) -> Wanted {
    let folder = Path::new(FOLDER);
    match routed {
        false => Wanted {
            sandbox_folder: Some(folder.to_owned()),
            ..want(d, abilities)
        },
        true => routed::want(
            d,
            &routed::Setting {
                folder,
                abilities,
                ipvs: true,
                classifiers: true,
            },
        ),
    }
}

fn happen(k: &mut Kernel, accident: &Accident) {
    match accident {
        Accident::Killed(_) => {}
        Accident::Ends(i) => k.end(TASKS[*i]),
        Accident::Replaced(i) => {
            k.end(TASKS[*i]);
            k.seen
                .tasks
                .insert(PathBuf::from(TASKS[*i]), Some(SeenSpace::default()));
        }
        Accident::Down(n) => {
            if let Some(l) = k
                .seen
                .host
                .links
                .values_mut()
                .filter(|l| names::is_ours(l.alias.as_deref()))
                .nth(*n)
            {
                (l.up, l.mtu, l.generates_addresses) = (false, 1000, true);
            }
        }
        Accident::Emptied => {
            let sandboxes = k.seen.sandboxes.values_mut().filter_map(|s| match s {
                SeenSandbox::Ours(space) => Some(space),
                _ => None,
            });
            let tasks = k.seen.tasks.values_mut().flatten();
            for s in std::iter::once(&mut k.seen.host).chain(sandboxes).chain(tasks) {
                s.fdb.pop_first();
                s.classifiers.pop_last();
                s.routes.pop_first();
                s.addresses.pop_last();
                s.neighbours.pop_first();
                s.rules.pop_first();
                s.sysctls.pop_last();
            }
        }
        Accident::Flushed => k.seen.filter = None,
        Accident::Lost(n) => {
            let path = k.seen.sandboxes.keys().nth(*n).cloned();
            path.iter().for_each(|p| k.lose(p));
        }
        Accident::Unhooked => {
            for (i, s) in sandboxes(k).enumerate() {
                if i == 0 {
                    s.clsact.clear();
                    s.classifiers.clear();
                } else if let Some(mut first) = s.classifiers.first_entry() {
                    first.insert(None);
                }
                let stale = s.fdb.first().map(|(l, m, _)| (l.clone(), *m, ip("198.18.0.77")));
                s.fdb.extend(stale);
            }
        }
    }
}

fn holds(w: &Wanted, k: &Kernel, p: &Plan) {
    if !p.conflicts.is_empty() {
        return;
    }
    let mut spaces = vec![(Ns::Host, &w.host)];
    spaces.extend(w.sandboxes.iter().map(|(p, s)| (Ns::Sandbox(p.clone()), &s.space)));
    spaces.extend(w.tasks.iter().map(|(p, s)| (Ns::Task(p.clone()), s)));
    let mut lost: BTreeSet<(&Ns, &String)> = BTreeSet::new();
    for (ns, wanted) in &spaces {
        let gone = |l: &Link| matches!(&l.kind, LinkKind::Veth { far: Ns::Task(t), .. } if p.gone.contains(t));
        lost.extend(wanted.links.iter().filter(|(_, l)| gone(l)).map(|(n, _)| (ns, n)));
    }
    for (ns, wanted) in &spaces {
        let Some(seen) = k.seen.space(ns) else {
            assert!(!matches!(ns, Ns::Sandbox(_)), "{ns} is not there");
            continue;
        };
        let of = |l: &String| !lost.contains(&(ns, l));
        for (name, link) in wanted.links.iter().filter(|(n, _)| of(n)) {
            let l = seen.links.get(name).unwrap_or_else(|| panic!("{name} is missing"));
            assert!(
                l.up && !l.generates_addresses
                    && l.mtu == link.mtu
                    && l.mac == Some(link.mac)
                    && l.alias.as_ref() == Some(&link.alias),
                "{name}: {l:?}"
            );
        }
        assert_eq!(
            seen.addresses.iter().collect::<Vec<_>>(),
            wanted.addresses.iter().filter(|(l, _)| of(l)).collect::<Vec<_>>()
        );
        assert_eq!(
            seen.routes.iter().collect::<Vec<_>>(),
            wanted.routes.iter().filter(|(_, r)| of(&r.link)).collect::<Vec<_>>()
        );
        assert_eq!(
            seen.neighbours.keys().collect::<Vec<_>>(),
            wanted.neighbours.keys().filter(|(l, _)| of(l)).collect::<Vec<_>>()
        );
        assert_eq!(seen.rules, wanted.rules);
        let fdb: BTreeSet<_> = wanted.fdb.iter().map(|((l, m), to)| (l.clone(), *m, *to)).collect();
        assert_eq!(seen.fdb, fdb);
        let classifiers: Vec<_> = seen
            .classifiers
            .iter()
            .map(|(p, c)| (p.link.clone(), c.unwrap()))
            .collect();
        let expected: BTreeSet<_> = wanted.classifiers.iter().filter(|(l, _)| of(l)).cloned().collect();
        assert_eq!(classifiers.len(), expected.len());
        assert_eq!(classifiers.into_iter().collect::<BTreeSet<_>>(), expected);
        let ours = seen
            .links
            .iter()
            .filter(|(n, l)| *n != "lo" && names::is_ours(l.alias.as_deref()));
        if *ns == Ns::Host || matches!(ns, Ns::Sandbox(_)) {
            let lost = lost.iter().filter(|(n, _)| *n == ns).count();
            assert_eq!(
                ours.count(),
                wanted.links.len() - lost,
                "a device of ours is left over in {ns}"
            );
        }
    }
    for (path, sandbox) in &k.seen.sandboxes {
        let there = matches!(sandbox, SeenSandbox::Ours(_));
        assert_eq!(there, w.sandboxes.contains_key(path), "{}", path.display());
    }
    assert_eq!(k.seen.filter, w.filter);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_plan_leads_there_and_the_next_is_empty(
        first in view(), second in view(), accidents in accidents(), strangers in foreign(), early in prop::bool::ANY,
        force_forwarding in prop::bool::ANY, routed in any::<(bool, bool)>(),
    ) {
        let abilities = Abilities { ipv6: true, force_forwarding };
        let mut k = Kernel::new(&TASKS);
        let mut theirs = if early { add_foreign(&mut k, &strangers) } else { Vec::new() };
        let wanted = wish(&first, routed.0, abilities);
        k.look(&wanted);
        let p = plan(&wanted, &k.seen);
        let killed = accidents.iter().find_map(|a| if let Accident::Killed(n) = a { Some(*n) } else { None }).unwrap_or(usize::MAX);
        for step in p.steps.iter().take(killed) {
            k.apply(step).map_err(|e| TestCaseError::fail(format!("{step}: {e}")))?;
        }
        for a in &accidents {
            happen(&mut k, a);
        }
        theirs.retain(|(ns, name)| k.space(ns).is_ok_and(|s| s.links.contains_key(name)));
        let before: Vec<_> = theirs.iter().map(|(ns, n)| k.space(ns).unwrap().links[n].clone()).collect();

        let wanted = wish(&second, routed.1, abilities);
        if wanted.filter_elsewhere {
            // Whoever it belongs to then removes or replaces it.
            (k.seen.filter, k.seen.filter_present) = (None, false);
        }
        k.look(&wanted);
        let p = plan(&wanted, &k.seen);
        k.run(&p).map_err(TestCaseError::fail)?;
        holds(&wanted, &k, &p);
        let again = plan(&wanted, &k.seen);
        prop_assert!(again.is_empty(), "{:#?}", again.steps.iter().map(ToString::to_string).collect::<Vec<_>>());
        prop_assert_eq!(&again.conflicts, &p.conflicts);
        let after: Vec<_> = theirs.iter().map(|(ns, n)| k.space(ns).unwrap().links[n].clone()).collect();
        prop_assert_eq!(before, after);
    }

    /// Ranges hold exactly the addresses of the subnets, in order, and do not touch.
    #[test]
    fn ranges_are_the_subnets(nets in prop::collection::vec((any::<u16>(), 8u8..=32), 0..12), probes in prop::collection::vec(any::<u32>(), 32)) {
        let nets: Vec<ipnet::IpNet> = nets.into_iter().map(|(a, l)| ipnet::Ipv4Net::new((u32::from(a) << 16).into(), l).unwrap().trunc().into()).collect();
        let got = ranges(nets.iter().copied());
        for probe in probes.into_iter().map(std::net::Ipv4Addr::from).map(IpAddr::V4).chain(nets.iter().flat_map(|n| [n.network(), n.broadcast()])) {
            let inside = got.iter().any(|(a, b)| (a..=b).contains(&&probe));
            prop_assert_eq!(inside, nets.iter().any(|n| n.contains(&probe)));
        }
        for (a, b) in got.iter().zip(got.iter().skip(1)) {
            let (IpAddr::V4(end), IpAddr::V4(start)) = (a.1, b.0) else { panic!() };
            prop_assert!(u32::from(end) + 1 < u32::from(start));
        }
    }
}
