//! The walks, one per hook.

pub(crate) mod ep;
pub(crate) mod host;
pub(crate) mod netdev;
pub(crate) mod overlay;

use ebpf_abi::{Addr, Backend, C_EARLY, C_TO_LOCAL, C_TO_REMOTE, D_NO_ROUTE, NodeCfg, SvcVal};

use crate::{
    count::{count, drop},
    deliver::{self, Target},
    encap,
    parse::{Packet, of_family},
    pick::{is_early, node_of, port_at},
    reverse::Client,
    skb::Skb,
};

/// To the backend that was picked, wherever it is. `seen`: the client's address as a backend here shall see it.
/// `CHECK`: the sender is told when the packet will not fit the tunnel.
#[inline(always)]
fn forward<const CHECK: bool>(
    skb: Skb,
    cfg: &NodeCfg,
    p: &Packet,
    svc: &SvcVal,
    b: &Backend,
    seen: Addr,
    c: Client,
) -> i32 {
    let early = is_early(b);
    // A node that routes sends nothing on that does not fit, so even the host's own are told.
    if (CHECK || early) && b.vtep != 0 && encap::too_big(skb, cfg, p) {
        return encap::tell(skb, cfg, p);
    }
    let mut mac = &b.mac;
    if b.vtep == 0 || early {
        let t = Target {
            addr: of_family(p.v6, b.addr4, &b.addr6),
            port: port_at(svc, &p.flow, b, p.v6),
            ifindex: b.ifindex,
            vni: b.vni,
            mac: b.mac,
        };
        if let Err(verdict) = deliver::translate(skb, cfg, p, &t, seen, c) {
            return verdict;
        }
        if !early {
            count(C_TO_LOCAL);
            return deliver::plain(skb, cfg, b.ifindex, &b.mac);
        }
        count(C_EARLY);
        match node_of(b, p.v6) {
            Some(r) => mac = &r.mac,
            None => return drop(D_NO_ROUTE),
        }
    }
    count(C_TO_REMOTE);
    encap::to_node(skb, cfg, b.vtep, b.vni, mac)
}
