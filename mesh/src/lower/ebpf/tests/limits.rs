//! What cannot be had is said, and the rest goes on: full maps, allow lists, rows that are not ours.

use ebpf_abi::SvcVal;

use super::*;
use crate::wanted::Problem;

#[test]
fn what_cannot_be_used_is_named() {
    let mut bare = backend(2, 2);
    (bare.1.v4, bare.1.v6) = (None, None);
    let mut absent = backend(3, 1);
    absent.1.place = Place::Local { ifindex: 0 };
    let mut ours = backend(4, 2);
    ours.1.place = Place::Remote {
        vtep: ME,
        datapath: Datapath::Ebpf,
    };
    let mut six = backend(8, 2);
    six.1.place = Place::Remote {
        vtep: "fd18::2".parse().unwrap(),
        datapath: Datapath::Ipvs,
    };
    let mut twin = backend(6, 3);
    twin.1.mac = backend(5, 2).1.mac;
    let mut w = web(&["80"], [bare, absent, ours, six, backend(5, 2), twin]);
    w.services.get_mut(&7).unwrap().lb = model::spec::Lb::Rr;
    w.services.insert(
        9,
        Service {
            vips: BTreeMap::new(),
            ..service(&["80"], [backend(7, 2)])
        },
    );
    let mut o = small();
    let p = settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([5].into()));
    let count = |f: fn(&Problem) -> bool| p.problems.iter().filter(|p| f(p)).count();
    assert_eq!(count(|p| matches!(p, Problem::OnlyMaglev(7, _))), 1);
    assert_eq!(count(|p| matches!(p, Problem::Unreachable(..))), 4);
    assert_eq!(count(|p| matches!(p, Problem::DuplicateMac(..))), 1);
    assert_eq!(count(|p| matches!(p, Problem::Taken(9, _, 7))), 3, "{:?}", p.problems);
    assert!(p.problems.iter().all(|p| p.to_string().contains("try: ")));
}

#[test]
fn what_this_data_path_does_not_know_is_said_and_an_allow_list_closes_the_ports() {
    let mut w = web(&["80", "81,mode=host"], [backend(1, 1), backend(2, 2)]);
    let s = w.services.get_mut(&7).unwrap();
    s.allow_from = ["192.0.2.0/24".parse().unwrap()].into();
    s.source_ip = model::spec::SourceIp::Masquerade;
    s.timeouts.udp_s = Some(9);
    let mut o = small();
    let p = settle(&w, &mut o);
    let expected = [
        Problem::NoAllowFrom(7),
        Problem::NoMasquerade(7),
        Problem::NoTimeouts(7),
    ];
    assert_eq!(p.problems, expected);
    assert!(p.problems.iter().all(|p| p.to_string().contains("try: ")));
    let doors = o.services.keys().filter(|k| k.vni == 0).count();
    assert_eq!(doors, 0, "nobody is let in by a published port");
    let vip = key("10.77.0.2", 4096, 80, 6);
    assert_eq!(
        leads_to(&o, &vip),
        Some([1, 2].into()),
        "the service goes on within its networks"
    );
    // Open again as soon as everybody may come; a protocol that is not carried stays the host's.
    let s = w.services.get_mut(&7).unwrap();
    s.allow_from.clear();
    s.ports.insert(port("3868/sctp"));
    assert!(plan(&w, &o).problems.contains(&Problem::NoSctp(7, 3868)));
    settle(&w, &mut o);
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([1, 2].into()));
    assert!(o.services.keys().all(|k| k.proto != 132));
}

#[test]
fn full_maps_are_said_and_do_not_stop_the_rest() {
    let mut o = small();
    o.sizes = Sizes {
        services: 4,
        backends: 3,
        lut: 1100,
        targets: 1,
    };
    let mut w = web(&["80"], [backend(1, 1), backend(2, 2), backend(3, 3)]);
    w.services.insert(8, service(&["81"], [backend(1, 1)]));
    let p = settle(&w, &mut o);
    let full: BTreeSet<&str> = p
        .problems
        .iter()
        .filter_map(|p| {
            if let Problem::Full { map, .. } = p {
                Some(*map)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(full, ["backends", "services", "targets"].into());
    assert!(p.problems.contains(&Problem::ShortRow {
        service: 8,
        wanted: 1021,
        got: 0
    }));
    assert_eq!(o.services.len(), 4);
    // A row that should grow but cannot keeps its place.
    let mut o = small();
    o.sizes.lut = 3000;
    settle(&web(&["80"], (1..=10).map(|n| backend(n, 2))), &mut o);
    let p = settle(&web(&["80"], (1..=11).map(|n| backend(n, 2))), &mut o);
    assert_eq!(
        p.problems,
        [Problem::ShortRow {
            service: 7,
            wanted: 4093,
            got: 1021
        }]
    );
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some((1..=11).collect()));
}

#[test]
fn foreign_content_does_not_confuse() {
    let w = web(&["80"], [backend(1, 1)]);
    let mut o = small();
    // Rows out of bounds, overlapping, of unknown services; a backend in cell 0.
    let row = |off, len, id| SvcVal {
        id,
        lut_off: off,
        lut_len: len,
        tport: 1,
        flags: 9,
    };
    o.services.insert(key("198.18.0.1", 0, 80, 6), row(u32::MAX, 1021, 7));
    o.services.insert(key("127.0.0.1", 0, 80, 6), row(39_999, 1021, 7));
    o.services.insert(key("10.77.0.2", 4096, 80, 6), row(10, 0, 3));
    o.services.insert(key("10.9.9.9", 4096, 80, 6), row(5, 1021, 3));
    let b = Cell {
        vni: 1,
        state: BACKEND_ACTIVE,
        ..Cell::default()
    };
    o.backends = vec![b, Cell { vni: 2, ..b }, Cell { vni: 2, ..b }];
    o.lut = vec![1; 2000];
    for step in plan(&w, &o).steps {
        o.apply(&step);
    }
    check(&o);
    assert!(plan(&w, &o).is_empty());
    assert_eq!(leads_to(&o, &key("198.18.0.1", 0, 80, 6)), Some([1].into()));
}
