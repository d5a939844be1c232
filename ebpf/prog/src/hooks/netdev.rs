//! Ingress of a device of the host: a client outside, or another node's VXLAN.

use ebpf_abi::{CFG_DIRECT, NodeCfg, REV_OUTSIDE};

use crate::{
    hooks::{forward, overlay},
    icmp::{answer, error},
    maps::config,
    parse::{Packet, Seen, UDP, parse},
    pick::{Picked, pick, service},
    reverse::Client,
    skb::{NEXT, SHOT, Skb},
    tunnel,
};

/// Another node's VXLAN: taken here where that is allowed and simple, else by the VXLAN device.
#[inline(always)]
fn tunnelled(skb: Skb, cfg: &NodeCfg, p: &Packet) -> i32 {
    if cfg.flags & CFG_DIRECT == 0 {
        return NEXT;
    }
    match tunnel::take(skb, cfg, p) {
        Some(from) => overlay::walk(skb, cfg, from.vni, from.vtep),
        None => NEXT,
    }
}

#[inline(always)]
pub(crate) fn run(skb: Skb) -> i32 {
    let Some(cfg) = config() else { return NEXT };
    // A VLAN's packets come again on the VLAN's own device, untagged.
    if skb.vlan_present() != 0 {
        return NEXT;
    }
    let mut p = Packet::default();
    match parse(skb, 0, &mut p) {
        Seen::Ports => {}
        Seen::Icmp => return error::to_service(skb, cfg, &p, 0),
        _ => return NEXT,
    }
    if p.proto() == UDP && u32::from(p.flow.dport) == cfg.vxlan_port {
        return tunnelled(skb, cfg, &p);
    }
    let Some(svc) = service(&p.flow, 0) else { return NEXT };
    match pick::<true>(&p, svc) {
        Picked::Backend(b) => {
            let c = Client {
                vtep: 0,
                ifindex: 0,
                mac: [0; 3],
                flags: REV_OUTSIDE,
            };
            forward::<true>(skb, cfg, &p, svc, b, p.flow.saddr, c)
        }
        Picked::Nobody => answer::refuse(skb, &p),
        Picked::Spoofed => SHOT,
    }
}
