//! The walks, one per hook.

pub(crate) mod ep;
pub(crate) mod host;
pub(crate) mod netdev;
pub(crate) mod overlay;

use ebpf_abi::{Addr, Backend, C_TO_LOCAL, C_TO_REMOTE, NodeCfg, SvcVal};

use crate::{
    count::count,
    deliver::{self, Target},
    encap,
    parse::{Packet, of_family},
    pick::port_at,
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
    if b.vtep != 0 {
        count(C_TO_REMOTE);
        if CHECK {
            return encap::to_node_checked(skb, cfg, p, b.vtep, b.vni, &b.mac);
        }
        return encap::to_node(skb, cfg, b.vtep, b.vni, &b.mac);
    }
    count(C_TO_LOCAL);
    let t = Target {
        addr: of_family(p.v6, b.addr4, &b.addr6),
        port: port_at(svc, &p.flow, b, p.v6),
        ifindex: b.ifindex,
        vni: b.vni,
        mac: b.mac,
    };
    deliver::to_backend(skb, cfg, p, &t, seen, c)
}
