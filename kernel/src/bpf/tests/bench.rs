//! A data path that is attached to nothing, to run its programs on packets by hand (`BPF_PROG_TEST_RUN`).

use std::{collections::BTreeMap, net::IpAddr, os::fd::AsFd as _};

use ebpf_abi::{
    Addr, BACKEND_ACTIVE, Backend, EP_BACKEND, EpAddrKey, EpAddrVal, EpCfg, NodeCfg, ROUTE_LOCAL, ROUTE_NODE,
    ROUTE_VIP, RouteKey, RouteVal, SvcKey, SvcVal, mac,
};

use super::{
    lab::addr,
    packets::{ACK, Read, Spec},
    world::{World, ifindex, ip},
};
use crate::bpf::{
    DataPath, Hook,
    test_run::{self, Came},
};

pub(super) const NEXT: i32 = -1;
pub(super) const SHOT: i32 = 2;
pub(super) const REDIRECT: i32 = 7;

pub(super) const NODE_MAC: [u8; 6] = [2, 0xee, 0, 0, 0, 1];
pub(super) const TASK_MAC: [u8; 6] = [2, 0x77, 0, 0, 0, 2];
pub(super) const REMOTE_MAC: [u8; 6] = [2, 0x77, 0, 0, 0, 9];
pub(super) const VNI: u32 = 7;

/// A data path that is attached to nothing: one task on this node (a backend), one elsewhere.
pub(super) struct Bench {
    pub(super) path: DataPath,
    pub(super) task: u32,
}

pub(super) fn ip_of(text: &str) -> Addr {
    addr(text.parse::<IpAddr>().unwrap())
}

/// Published on 198.18.0.1 and 2001:db8::1, TCP and UDP: 80 here, 81 elsewhere, 82 nowhere; VIPs 10.77.0.10 and
/// fd00::10 lead here on every port.
pub(super) fn bench(w: &World) -> Bench {
    ip("link add nv0 type veth peer name eth0");
    let task = ifindex("nv0");
    let mut path = DataPath::open(&w.folder("netd")).unwrap().0;
    path.set_config(NodeCfg {
        vtep: u32::from_ne_bytes([198, 18, 0, 1]),
        vxlan_ifindex: ifindex("lo"),
        vxlan_port: u32::from(4789_u16.to_be()),
        mac: mac(NODE_MAC),
        mtu: 1450,
        hairpin4: u32::from_ne_bytes([10, 77, 0, 1]),
        hairpin6: ip_of("fd00::1"),
        ..NodeCfg::default()
    })
    .unwrap();
    let here = Backend {
        addr6: ip_of("fd00::1:2"),
        addr4: u32::from_ne_bytes([10, 77, 1, 2]),
        vtep: 0,
        ifindex: task,
        vni: VNI,
        mac: mac(TASK_MAC),
        state: BACKEND_ACTIVE,
    };
    let there = Backend {
        addr6: ip_of("fd00::2:2"),
        addr4: u32::from_ne_bytes([10, 77, 2, 2]),
        vtep: u32::from_ne_bytes([198, 18, 0, 2]),
        ifindex: 0,
        mac: mac(REMOTE_MAC),
        ..here
    };
    path.backends.sync(&BTreeMap::from([(1, here), (2, there)])).unwrap();
    path.lut().write_row(0, &[1, 2]).unwrap();
    let mut services = BTreeMap::new();
    for proto in [6, 17] {
        for a in ["198.18.0.1", "2001:db8::1", "127.0.0.1"] {
            for (port, off, lut_len) in [(80_u16, 0, 1), (81, 1, 1), (82, 0, 0)] {
                let key = SvcKey {
                    addr: ip_of(a),
                    vni: 0,
                    port: port.to_be(),
                    proto,
                };
                services.insert(
                    key,
                    SvcVal {
                        id: 1,
                        lut_off: off,
                        lut_len,
                        tport: 8080_u16.to_be(),
                        flags: 0,
                    },
                );
            }
        }
    }
    let mut routes = BTreeMap::new();
    for (vip, net, node) in [
        ("10.77.0.10", "10.77.1.0", "10.77.2.0"),
        ("fd00::10", "fd00::1:0", "fd00::2:0"),
    ] {
        services.insert(
            SvcKey {
                addr: ip_of(vip),
                vni: VNI,
                port: 0,
                proto: 0,
            },
            SvcVal {
                id: 2,
                lut_off: 0,
                lut_len: 1,
                tport: 0,
                flags: 0,
            },
        );
        let (one, block) = if vip.contains('.') {
            (160, 32 + 96 + 24)
        } else {
            (160, 32 + 112)
        };
        let mut route = |a: &str, prefix_len: u32, v: RouteVal| {
            routes.insert(
                RouteKey {
                    prefix_len,
                    vni_be: VNI.to_be(),
                    addr: ip_of(a),
                },
                v,
            );
        };
        route(
            vip,
            one,
            RouteVal {
                kind: ROUTE_VIP,
                ..RouteVal::default()
            },
        );
        route(
            net,
            block,
            RouteVal {
                kind: ROUTE_LOCAL,
                ..RouteVal::default()
            },
        );
        let vtep = there.vtep;
        route(
            node,
            block,
            RouteVal {
                kind: ROUTE_NODE,
                vtep,
                mac: mac(REMOTE_MAC),
                pad: 0,
            },
        );
    }
    path.services.sync(&services).unwrap();
    path.routes.sync(&routes).unwrap();
    let mut by_addr = BTreeMap::new();
    for a in ["10.77.1.2", "fd00::1:2"] {
        for vni in [0, VNI] {
            let v = EpAddrVal {
                ifindex: task,
                vni: VNI,
                mac: mac(TASK_MAC),
                pad: 0,
            };
            by_addr.insert(EpAddrKey { addr: ip_of(a), vni }, v);
        }
    }
    path.ep_by_addr.sync(&by_addr).unwrap();
    let cfg = EpCfg {
        addr6: here.addr6,
        link6: ip_of("fe80::2"),
        addr4: here.addr4,
        vni: VNI,
        mac: mac(TASK_MAC),
        flags: EP_BACKEND,
    };
    path.ep_config.sync(&BTreeMap::from([(task, cfg)])).unwrap();
    Bench { path, task }
}

impl Bench {
    pub(super) fn run(&self, hook: Hook, packet: &[u8]) -> (i32, Vec<u8>) {
        self.try_run(hook, packet).unwrap()
    }

    pub(super) fn try_run(&self, hook: Hook, packet: &[u8]) -> std::io::Result<(i32, Vec<u8>)> {
        self.run_segments(hook, packet, 0)
    }

    /// As [`Bench::try_run`], for a packet of several segments of `gso_size` octets each.
    pub(super) fn run_segments(&self, hook: Hook, packet: &[u8], gso_size: u32) -> std::io::Result<(i32, Vec<u8>)> {
        let device = if hook == Hook::Endpoint { self.task } else { 1 };
        let program = self.path.programs[&hook].fd().unwrap();
        let came = Came {
            ifindex: device,
            gso_size,
        };
        let (verdict, out, _) = test_run::run(program.as_fd(), packet, came, 1)?;
        Ok((verdict, out))
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        self.path.counters().unwrap()[name]
    }

    /// The reply of the task to what it was given.
    pub(super) fn reply(&self, given: &Read, proto: u8) -> Read {
        let (client, own) = given.ends();
        let reply = Spec {
            src_mac: TASK_MAC,
            dst_mac: NODE_MAC,
            flags: ACK,
            ..Spec::new(proto, &own.to_string(), &client.to_string())
        };
        let (verdict, out) = self.run(Hook::Endpoint, &reply.build());
        assert!(verdict == REDIRECT || verdict == SHOT, "{verdict}");
        Read::new(&out)
    }
}
