//! The walks, one per hook.

pub(crate) mod ep;
pub(crate) mod host;
pub(crate) mod netdev;
pub(crate) mod overlay;

use ebpf_abi::{Addr, BACKEND_EARLY, Backend, C_TO_LOCAL, C_TO_REMOTE, NodeCfg};

use crate::{
    count::count,
    deliver::{self, Target},
    encap,
    parse::{Packet, of_family},
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
    tport: u16,
    b: &Backend,
    seen: Addr,
    c: Client,
) -> i32 {
    if b.vtep == 0 {
        count(C_TO_LOCAL);
    } else {
        count(C_TO_REMOTE);
        if !is_early(b) {
            if CHECK {
                return encap::to_node_checked(skb, cfg, p, b.vtep, b.vni, &b.mac);
            }
            return encap::to_node(skb, cfg, b.vtep, b.vni, &b.mac);
        }
        if CHECK && encap::too_big(skb, cfg, p) {
            return encap::tell(skb, cfg, p);
        }
    }
    let t = Target {
        addr: of_family(p.v6, b.addr4, &b.addr6),
        port: tport,
        vtep: b.vtep,
        ifindex: b.ifindex,
        vni: b.vni,
        mac: b.mac,
    };
    deliver::to_backend(skb, cfg, p, &t, seen, c)
}

/// Whether packets for a backend are translated here although it is elsewhere.
#[inline(always)]
fn is_early(b: &Backend) -> bool {
    b.vtep != 0 && b.ifindex == BACKEND_EARLY
}
