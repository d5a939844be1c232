//! Opening, adopting, replacing, sweeping, leaving.

use std::{collections::BTreeMap, fs, os::fd::AsFd as _, path::Path};

use ebpf_abi::{
    Addr, BACKEND_ACTIVE, Backend, Flow, FwdKey, FwdVal, NodeCfg, RevVal, RouteKey, RouteVal, SvcKey, SvcVal,
};

use super::world::{World, ifindex, ip, isolated};
use crate::bpf::{Attached, BpfError, DataPath, Hook, SyncCount, object, sys};

fn open(w: &World) -> DataPath {
    DataPath::open(&w.folder("netd")).unwrap().0
}

/// Writes a configuration past the data path: as another netd would have left it.
pub(super) fn overwrite_config(dir: &Path, cfg: &NodeCfg) {
    let fd = sys::get(&object::map_pin(dir, "config")).unwrap();
    sys::update(fd.as_fd(), &0u32, cfg).unwrap();
}

fn services(n: u16) -> BTreeMap<SvcKey, SvcVal> {
    (0..n)
        .map(|i| {
            let key = SvcKey {
                addr: Addr::v4([10, 0, (i >> 8) as u8, i as u8]),
                vni: 7,
                port: 80,
                proto: 6,
            };
            (
                key,
                SvcVal {
                    id: u32::from(i),
                    lut_off: 0,
                    lut_len: 7,
                    tport: 0,
                    flags: 0,
                },
            )
        })
        .collect()
}

#[test]
fn a_second_open_adopts_everything_and_writes_nothing() {
    isolated(|w| {
        let (mut first, report) = DataPath::open(&w.folder("netd")).unwrap();
        assert!(!report.adopted_maps && !report.replaced_programs);
        assert_eq!(report.loaded_object, object::HASH);
        let cfg = NodeCfg {
            vtep: 0x0102_0304,
            mtu: 1450,
            ..NodeCfg::default()
        };
        assert!(first.set_config(cfg).unwrap());
        assert!(!first.set_config(cfg).unwrap());
        let want = services(300);
        assert_eq!(
            first.services.sync(&want).unwrap(),
            SyncCount {
                added: 300,
                changed: 0,
                removed: 0
            }
        );
        assert_eq!(first.lut().write_row(100, &[1, 2, 3]).unwrap(), 3);
        assert_eq!(first.attach(Hook::Host, 1).unwrap(), Attached::New);
        let programs = fs::metadata(w.folder("netd/prog_from_ep")).is_ok();
        assert!(programs);
        drop(first);

        let (mut second, report) = DataPath::open(&w.folder("netd")).unwrap();
        assert!(report.adopted_maps && !report.replaced_programs);
        assert!(!second.set_config(cfg).unwrap());
        assert!(second.services.sync(&want).unwrap().is_empty());
        assert_eq!(second.lut().write_row(100, &[1, 2, 3]).unwrap(), 0);
        assert_eq!(second.lut().read_row(99, 5).unwrap(), [0, 1, 2, 3, 0]);
        let lut = sys::get(&object::map_pin(&w.folder("netd"), "lut")).unwrap();
        assert_eq!(
            sys::lookup::<u32, u32>(lut.as_fd(), &102).unwrap(),
            Some(3),
            "as the programs see it"
        );
        assert_eq!(second.attach(Hook::Host, 1).unwrap(), Attached::Kept);
        assert_eq!(second.attached().into_iter().collect::<Vec<_>>(), [(Hook::Host, 1)]);
        second.unload().unwrap();
        assert!(!w.folder("netd").exists());
    });
}

#[test]
fn sync_writes_the_difference() {
    isolated(|w| {
        let mut path = open(w);
        let mut want = services(10_000);
        assert_eq!(path.services.sync(&want).unwrap().added, 10_000);
        let first = *want.keys().next().unwrap();
        want.remove(&first);
        want.values_mut().next().unwrap().lut_len = 11;
        want.extend(services(3).into_iter().map(|(k, v)| (SvcKey { vni: 9, ..k }, v)));
        assert_eq!(
            path.services.sync(&want).unwrap(),
            SyncCount {
                added: 3,
                changed: 1,
                removed: 1
            }
        );
        assert!(!path.services.refresh().unwrap(), "the mirror is what the kernel holds");
        assert_eq!(path.services.get_all(), &want);
        assert_eq!(path.services.sync(&BTreeMap::new()).unwrap().removed, want.len());
        assert!(!path.services.refresh().unwrap());
    });
}

#[test]
fn what_others_wrote_is_seen_after_a_refresh() {
    isolated(|w| {
        let mut path = open(w);
        path.services.sync(&services(5)).unwrap();
        let fd = sys::get(&object::map_pin(&w.folder("netd"), "services")).unwrap();
        let (key, _) = services(1).pop_first().unwrap();
        assert!(sys::delete(fd.as_fd(), &key).unwrap());
        assert!(path.services.refresh().unwrap());
        assert_eq!(path.services.sync(&services(5)).unwrap().added, 1);
    });
}

#[test]
fn arrays_and_tries_are_tables_too() {
    isolated(|w| {
        let mut path = open(w);
        let backend = Backend {
            addr4: 5,
            vni: 7,
            state: BACKEND_ACTIVE,
            ..Backend::default()
        };
        let want = BTreeMap::from([(3, backend), (65_535, backend), (9, Backend::default())]);
        assert_eq!(path.backends.sync(&want).unwrap().added, 2);
        assert_eq!(path.backends.sync(&want).unwrap(), SyncCount::default());
        let fewer = BTreeMap::from([(3, backend)]);
        assert_eq!(path.backends.sync(&fewer).unwrap().removed, 1);
        path.backends.refresh().unwrap();
        assert_eq!(path.backends.get_all(), &fewer);

        let route = |o: u8| RouteKey {
            prefix_len: 32 + 96 + 28,
            vni_be: 7_u32.to_be(),
            addr: Addr::v4([10, 77, 0, o]),
        };
        let want: BTreeMap<_, _> = (0..16)
            .map(|i| {
                (
                    route(i * 16),
                    RouteVal {
                        kind: 1,
                        vtep: u32::from(i),
                        ..RouteVal::default()
                    },
                )
            })
            .collect();
        assert_eq!(path.routes.sync(&want).unwrap().added, 16);
        assert!(!path.routes.refresh().unwrap());
        assert_eq!(path.routes.sync(&BTreeMap::new()).unwrap().removed, 16);
        assert!(!path.routes.refresh().unwrap());
    });
}

#[test]
fn a_full_map_is_said_and_survived() {
    isolated(|w| {
        let mut path = open(w);
        let fits = services(60_000);
        let mut too_many = fits.clone();
        too_many.extend(services(60_000).into_iter().map(|(mut k, v)| {
            k.vni = 8;
            (k, v)
        }));
        let error = path.services.sync(&too_many).unwrap_err();
        assert!(error.to_string().contains("the map is full"), "{error}");
        path.services.sync(&fits).unwrap();
        assert!(!path.services.refresh().unwrap());
        assert_eq!(path.services.get_all().len(), 60_000);
    });
}

#[test]
fn other_versions_are_refused_before_anything_is_touched() {
    isolated(|w| {
        let dir = w.folder("netd");
        let mut path = open(w);
        path.set_config(NodeCfg::default()).unwrap();
        drop(path);
        let fd = sys::get(&object::map_pin(&dir, "config")).unwrap();
        let mut cfg: NodeCfg = sys::lookup(fd.as_fd(), &0u32).unwrap().unwrap();
        cfg.abi += 1;
        sys::update(fd.as_fd(), &0u32, &cfg).unwrap();
        assert!(matches!(DataPath::open(&dir), Err(BpfError::Abi { .. })));
        cfg.abi -= 1;
        sys::update(fd.as_fd(), &0u32, &cfg).unwrap();

        // A map of another shape under one of our names.
        let foreign = sys::get(&object::map_pin(&dir, "members")).unwrap();
        fs::remove_file(object::map_pin(&dir, "pools")).unwrap();
        sys::pin(foreign.as_fd(), &object::map_pin(&dir, "pools")).unwrap();
        let error = DataPath::open(&dir).unwrap_err();
        assert!(matches!(error, BpfError::Shape { .. }), "{error}");
        assert!(error.to_string().contains("try:"));
    });
}

/// The verifier gives up when a signal comes for the thread that it runs on.
#[test]
fn a_signal_while_programs_are_loaded_is_no_verdict() {
    extern "C" fn nothing(_: libc::c_int) {}
    isolated(|w| {
        let handler = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler does nothing, which is safe at any time.
        assert_ne!(unsafe { libc::signal(libc::SIGUSR2, handler) }, libc::SIG_ERR);
        // SAFETY: it has no arguments and cannot fail.
        let me = unsafe { libc::gettid() };
        let pid = nix::unistd::getpid().as_raw();
        let disturber = std::thread::spawn(move || {
            for _ in 0..60 {
                // SAFETY: numbers alone; the thread waits for this one before it ends.
                unsafe { libc::syscall(libc::SYS_tgkill, pid, me, libc::SIGUSR2) };
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        });
        let opened = DataPath::open(&w.folder("netd"));
        disturber.join().unwrap();
        assert!(opened.is_ok(), "{:?}", opened.err());
    });
}

#[test]
fn another_object_is_replaced_where_it_runs() {
    isolated(|w| {
        for clsact in [false, true] {
            let dir = w.folder("netd");
            ip("link add v0 type veth peer name v1");
            let index = ifindex("v0");
            let mut path = open(w);
            path.clsact = clsact;
            path.set_config(NodeCfg::default()).unwrap();
            assert_eq!(path.attach(Hook::Endpoint, index).unwrap(), Attached::New);
            assert_eq!(path.attach(Hook::Endpoint, index).unwrap(), Attached::Kept);
            drop(path);
            // As an older netd would have left it.
            overwrite_config(
                &dir,
                &NodeCfg {
                    abi: ebpf_abi::ABI,
                    object: [1, 2],
                    ..NodeCfg::default()
                },
            );

            let (mut path, report) = DataPath::open(&dir).unwrap();
            assert!(report.adopted_maps && report.replaced_programs);
            assert_eq!(path.config().object, object::HASH);
            assert_eq!(path.attach(Hook::Endpoint, index).unwrap(), Attached::Kept);
            assert!(path.detach(Hook::Endpoint, index).unwrap());
            assert!(!path.detach(Hook::Endpoint, index).unwrap());
            path.clsact = clsact;
            assert_eq!(path.attach(Hook::Endpoint, index).unwrap(), Attached::New);

            // The device goes, another gets its index: nothing of the old one is believed.
            ip("link del v0");
            assert_eq!(path.sweep().unwrap(), [(Hook::Endpoint, index)]);
            assert!(path.attached().is_empty());
            assert!(path.attach(Hook::Endpoint, index).is_err());
            path.unload().unwrap();
            assert!(!dir.exists());
        }
    });
}

#[test]
fn a_program_is_off_when_detaching_returns() {
    isolated(|w| {
        ip("link add v0 type veth peer name v1");
        let index = ifindex("v0");
        let mut path = open(w);
        for clsact in [false, true] {
            path.clsact = clsact;
            // The kernel refuses the same program twice at one hook.
            for round in 0..200 {
                assert_eq!(path.attach(Hook::Netdev, index).unwrap(), Attached::New, "{round}");
                assert!(path.detach(Hook::Netdev, index).unwrap());
            }
        }
        path.unload().unwrap();
    });
}

#[test]
fn a_filter_that_was_taken_away_comes_back() {
    isolated(|w| {
        ip("link add v0 type veth peer name v1");
        let index = ifindex("v0");
        let mut path = open(w);
        path.clsact = true;
        path.attach(Hook::Netdev, index).unwrap();
        super::world::run("tc", "qdisc del dev v0 clsact");
        assert_eq!(path.attach(Hook::Netdev, index).unwrap(), Attached::New);
        assert_eq!(path.attach(Hook::Netdev, index).unwrap(), Attached::Kept);
        path.unload().unwrap();
    });
}

#[test]
fn a_bpffs_is_mounted_where_there_is_none() {
    isolated(|_| {
        let dir = std::path::Path::new("/run/netd-bpf/netd");
        let (path, report) = DataPath::open(dir).unwrap();
        assert!(!report.adopted_maps);
        drop(path);
        assert!(DataPath::open(dir).unwrap().1.adopted_maps);
    });
}

#[test]
fn rows_may_lie_across_pages() {
    isolated(|w| {
        let mut path = DataPath::open(&w.folder("netd")).unwrap().0;
        let cells = path.lut().cells();
        // A page holds 512 cells.
        for (off, len) in [
            (0, 1),
            (511, 2),
            (510, 1030),
            (512, 512),
            (cells - 600, 600),
            (cells - 1, 1),
            (7, 0),
        ] {
            let row: Vec<u32> = (1..=len).collect();
            let lut = path.lut();
            assert_eq!(lut.write_row(off, &row).unwrap(), row.len());
            assert_eq!(lut.read_row(off, len).unwrap(), row);
            assert_eq!(lut.write_row(off, &vec![0; row.len()]).unwrap(), row.len());
        }
        assert!(path.lut().read_row(0, cells).unwrap().iter().all(|c| *c == 0));
    });
}

#[test]
fn rows_outside_the_table_are_refused() {
    isolated(|w| {
        let mut path = open(w);
        let cells = path.lut().cells();
        assert!(matches!(
            path.lut().write_row(cells - 1, &[1, 2]),
            Err(BpfError::Row { .. })
        ));
        assert!(matches!(path.lut().read_row(u32::MAX, 2), Err(BpfError::Row { .. })));
    });
}

#[test]
fn a_device_that_went_while_netd_was_away_is_no_obstacle() {
    isolated(|w| {
        for clsact in [false, true] {
            let dir = w.folder("netd");
            ip("link add v0 type veth peer name v1");
            let index = ifindex("v0");
            let mut path = open(w);
            path.clsact = clsact;
            path.set_config(NodeCfg::default()).unwrap();
            path.attach(Hook::Netdev, index).unwrap();
            drop(path);
            ip("link del v0");
            // Its index is another's by now, and the programs are of another version.
            ip(&format!("link add v0 index {index} type veth peer name v1"));
            overwrite_config(
                &dir,
                &NodeCfg {
                    abi: ebpf_abi::ABI,
                    object: [1, 2],
                    ..NodeCfg::default()
                },
            );
            let (mut path, report) = DataPath::open(&dir).unwrap();
            assert!(!report.replaced_programs);
            assert_eq!(path.sweep().unwrap(), [(Hook::Netdev, index)]);
            path.clsact = clsact;
            assert_eq!(path.attach(Hook::Netdev, index).unwrap(), Attached::New);
            path.unload().unwrap();
            ip("link del v0");
        }
    });
}

#[test]
fn flows_follow_nodes_that_move() {
    isolated(|w| {
        let mut path = open(w);
        let flow = |port: u16| Flow {
            sport: port,
            ..Flow::default()
        };
        let way = |vtep| RevVal {
            vtep,
            ts: 9,
            ..RevVal::default()
        };
        // 1 and 2 change places, 3 goes to 4, 5 stays; 0 is this node.
        let ways: Vec<(u16, u32)> = vec![(10, 1), (11, 1), (20, 2), (30, 3), (50, 5), (60, 0)];
        for (port, vtep) in &ways {
            sys::update(path.reverse_map.as_fd(), &flow(*port), &way(*vtep)).unwrap();
            let (key, value) = (
                FwdKey {
                    flow: flow(*port),
                    vtep: *vtep,
                },
                FwdVal {
                    sport: *port,
                    ..FwdVal::default()
                },
            );
            sys::update(path.forward_map.as_fd(), &key, &value).unwrap();
        }
        let moved = BTreeMap::from([(1, 2), (2, 1), (3, 4)]);
        assert_eq!(path.move_nodes(&moved).unwrap(), 8);
        for (port, vtep) in ways {
            let now = moved.get(&vtep).copied().unwrap_or(vtep);
            let found: Option<RevVal> = sys::lookup(path.reverse_map.as_fd(), &flow(port)).unwrap();
            assert_eq!(found, Some(way(now)), "{port}");
            let key = |vtep| FwdKey { flow: flow(port), vtep };
            let found: Option<FwdVal> = sys::lookup(path.forward_map.as_fd(), &key(now)).unwrap();
            assert_eq!(found.map(|v| v.sport), Some(port));
            if now != vtep {
                assert_eq!(
                    sys::lookup::<_, FwdVal>(path.forward_map.as_fd(), &key(vtep)).unwrap(),
                    None
                );
            }
        }
        assert_eq!(path.move_nodes(&BTreeMap::from([(77, 78)])).unwrap(), 0);
    });
}
