//! Nodes that balance by IPVS in the same cluster: what goes to them and comes from them is translated early.

use ebpf_abi::{BACKEND_EARLY, TARGET_EARLY};

use super::*;

#[test]
fn what_nodes_that_balance_by_ipvs_are_sent_and_send() {
    let mut far = backend(1, 2);
    far.1.place = Place::Remote {
        vtep: IpAddr::from([198, 18, 0, 2]),
        datapath: Datapath::Ipvs,
    };
    let mut w = web(&["80:8080", "53/udp"], [far, backend(2, 1)]);
    w.early = true;
    let mut o = small();
    assert_eq!(settle(&w, &mut o).problems, []);
    let ifindex = |n: u8, node: u8| {
        let mac = ebpf_abi::mac(backend(n, node).1.mac.0);
        o.backends.iter().find(|b| b.mac == mac).unwrap().ifindex
    };
    assert_eq!((ifindex(1, 2), ifindex(2, 1)), (BACKEND_EARLY, 102));
    let mut early: Vec<(u16, u16)> = o
        .targets
        .keys()
        .filter(|k| k.proto & TARGET_EARLY != 0 && k.addr.is_v4())
        .map(|k| (u16::from_be(k.port), k.proto & 0xff))
        .collect();
    early.sort_unstable();
    assert_eq!(early, [(53, 17), (8080, 6)], "the ports of the endpoint itself");
    w.early = false;
    settle(&w, &mut o);
    assert!(o.targets.keys().all(|k| k.proto & TARGET_EARLY == 0));
}
