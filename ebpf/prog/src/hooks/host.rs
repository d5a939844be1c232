//! Ingress of the host's loopback: a process of this node speaks to its own address or to 127.0.0.1.

use ebpf_abi::{Addr, D_CHECKSUM, Flow, REV_HOST};

use crate::{
    count::drop,
    hooks::forward,
    icmp::answer,
    maps::config,
    nat,
    parse::{Packet, Seen, parse},
    pick::{Picked, is_early, pick, service},
    reverse::Client,
    skb::{NEXT, SHOT, Skb},
};

#[inline(always)]
pub(crate) fn run(skb: Skb) -> i32 {
    let Some(cfg) = config() else { return NEXT };
    let mut p = Packet::default();
    if parse(skb, 0, &mut p) != Seen::Ports {
        return NEXT;
    }
    let Some(svc) = service(&p.flow, 0) else { return NEXT };
    let b = match pick::<false>(&p, svc) {
        Picked::Backend(b) => b,
        Picked::Nobody => return answer::refuse(skb, &p),
        Picked::Spoofed => return SHOT,
    };
    let c = Client {
        vtep: 0,
        ifindex: 0,
        mac: [0; 3],
        flags: REV_HOST,
    };
    let mut seen = p.flow.saddr;
    let loopback = !p.v6 && u32::from_be(p.flow.saddr.w[3]) >> 24 == 127;
    if loopback {
        // 127.0.0.1 means nothing to the backend: it sees the node.
        seen = Addr::v4_word(cfg.vtep);
        if b.vtep != 0 && !is_early(b) {
            let to = Flow { saddr: seen, ..p.flow };
            if !nat::rewrite(skb, &p, &to) {
                return drop(D_CHECKSUM);
            }
        }
    }
    // The loopback's packets are of any size, and its routes to the host's own addresses take no path MTU from an answer
    // of ours: what is too big travels as fragments of the outer packet.
    forward::<false>(skb, cfg, &p, svc, b, seen, c)
}
