//! Chains and rules as the kernel reads them: lists of expressions (linux/netfilter/nf_tables.h).

use std::net::Ipv4Addr;

use overlay::names::VETH_PREFIX;

use crate::netlink::Writer;

/// `NFT_REG_1`, the first of the 16 octet registers.
const REGISTER: u32 = 1;

/// A chain on a hook.
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// `filter` or `nat`.
    pub(super) kind: &'static str,
    /// `NF_INET_*` of linux/netfilter.h.
    pub(super) hook: u32,
    /// `NF_IP_PRI_*` of linux/netfilter_ipv4.h.
    pub(super) priority: i32,
    pub(super) rules: fn(Option<Tunnel>) -> Vec<Rule>,
    pub(super) option: &'static str,
    pub(super) module: &'static str,
}

/// Data-path address and UDP port of this node's VXLAN.
pub(super) type Tunnel = (Ipv4Addr, u16);

/// A rule: its expressions, and what the kernel must have been built with.
pub(super) struct Rule {
    pub(super) expressions: Vec<u8>,
    /// What the rule was made from, beside this file; it is in the mark, so that it can be read back.
    pub(super) tunnel: Option<Tunnel>,
    pub(super) option: &'static str,
    pub(super) module: &'static str,
}

impl Rule {
    /// The mark that the rule bears in the kernel: a hash of itself (FNV-1a), so that an older netd's rule is known for
    /// what it is.
    pub(super) fn mark(&self) -> Vec<u8> {
        let mut mark = self
            .expressions
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
                (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
            })
            .to_be_bytes()
            .to_vec();
        if let Some((address, port)) = self.tunnel {
            mark.extend(address.octets());
            mark.extend(port.to_be_bytes());
        }
        mark
    }
}

/// The tunnel that a rule's mark tells of.
pub(super) fn tunnel_of(mark: &[u8]) -> Option<Tunnel> {
    let (address, port) = mark.get(8..)?.split_first_chunk::<4>()?;
    Some((Ipv4Addr::from(*address), u16::from_be_bytes(port.try_into().ok()?)))
}

pub(super) const CHAINS: [Chain; 4] = [
    Chain {
        name: "tunnel",
        kind: "filter",
        hook: 3,
        priority: -300,
        rules: tunnel_out,
        option: "CONFIG_NF_TABLES_INET",
        module: "nf_tables",
    },
    Chain {
        name: "spoof",
        kind: "filter",
        hook: 0,
        priority: -300,
        rules: spoof,
        option: "CONFIG_NF_TABLES_INET",
        module: "nf_tables",
    },
    Chain {
        name: "guard",
        kind: "filter",
        hook: 2,
        priority: 0,
        rules: guard,
        option: "CONFIG_NF_TABLES_INET",
        module: "nf_tables",
    },
    Chain {
        name: "outside",
        kind: "nat",
        hook: 4,
        priority: 100,
        rules: outside,
        option: "CONFIG_NFT_NAT",
        module: "nft_chain_nat",
    },
];

/// A set: name, octets of its keys, and nft's number for their type, which makes `nft list` print addresses
/// (TYPE_IPADDR, TYPE_IP6ADDR of nft's datatype.h).
pub(super) const SETS: [(&str, u32, u32); 4] = [
    ("pools4", 4, 7),
    ("pools6", 16, 8),
    ("outside4", 4, 7),
    ("outside6", 16, 8),
];

/// A VXLAN packet of this node's own, by the outer address at an offset of the IPv4 header.
fn untracked(tunnel: Option<Tunnel>, address_at: u32) -> Option<Rule> {
    let (address, port) = tunnel?;
    let mut r = rule(|e| {
        meta(e, META_NFPROTO);
        equal(e, &[libc::AF_INET as u8]);
        payload(e, NETWORK, address_at, 4);
        equal(e, &address.octets());
        meta(e, META_L4PROTO);
        equal(e, &[libc::IPPROTO_UDP as u8]);
        // The destination port follows the source port.
        payload(e, TRANSPORT, 2, 2);
        equal(e, &port.to_be_bytes());
        expression(e, "notrack", |_| {});
        verdict(e, Verdict::Accept);
    });
    (r.option, r.module) = ("CONFIG_NFT_CT", "nft_ct");
    r.tunnel = tunnel;
    Some(r)
}

fn tunnel_out(tunnel: Option<Tunnel>) -> Vec<Rule> {
    untracked(tunnel, 12).into_iter().collect()
}

fn spoof(tunnel: Option<Tunnel>) -> Vec<Rule> {
    let drop = |v4, set| {
        rule(|e| {
            source_in(e, v4, set);
            verdict(e, Verdict::Drop);
        })
    };
    let mut rules: Vec<Rule> = untracked(tunnel, 16).into_iter().collect();
    rules.extend([
        from_device("lo", true),
        from_device(VETH_PREFIX, false),
        drop(true, "pools4"),
        drop(false, "pools6"),
    ]);
    rules
}

fn guard(_: Option<Tunnel>) -> Vec<Rule> {
    let mut unasked = rule(|e| {
        device(e, META_OIFNAME, VETH_PREFIX, false);
        no_reply(e);
        verdict(e, Verdict::Drop);
    });
    (unasked.option, unasked.module) = ("CONFIG_NFT_CT", "nft_ct");
    vec![unasked]
}

fn outside(_: Option<Tunnel>) -> Vec<Rule> {
    let to_task = rule(|e| {
        device(e, META_OIFNAME, VETH_PREFIX, false);
        verdict(e, Verdict::Accept);
    });
    let masquerade = |v4, set| {
        let mut r = rule(|e| {
            source_in(e, v4, set);
            expression(e, "masq", |_| {});
        });
        (r.option, r.module) = ("CONFIG_NFT_MASQ", "nft_masq");
        r
    };
    vec![to_task, masquerade(true, "outside4"), masquerade(false, "outside6")]
}

fn from_device(name: &str, whole: bool) -> Rule {
    rule(|e| {
        device(e, META_IIFNAME, name, whole);
        verdict(e, Verdict::Accept);
    })
}

fn rule(build: impl FnOnce(&mut Writer)) -> Rule {
    let mut w = Writer::default();
    build(&mut w);
    Rule {
        expressions: w.0,
        tunnel: None,
        option: "CONFIG_NF_TABLES",
        module: "nf_tables",
    }
}

/// `NFTA_LIST_ELEM` with `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
fn expression(w: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    w.nest(1, |w| {
        w.string(1, name).nest(2, data);
    });
}

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

/// `NFTA_META_DREG`, `NFTA_META_KEY`.
fn meta(w: &mut Writer, key: u32) {
    expression(w, "meta", |w| {
        w.be32(1, REGISTER).be32(2, key);
    });
}

/// `NFTA_CMP_SREG`, `NFTA_CMP_OP` (0: equal), `NFTA_CMP_DATA`.
fn equal(w: &mut Writer, to: &[u8]) {
    expression(w, "cmp", |w| {
        w.be32(1, REGISTER).be32(2, 0).nest(3, |w| {
            w.bytes(1, to);
        });
    });
}

/// The name, to its end (the zero included), or what it begins with.
fn device(w: &mut Writer, key: u32, name: &str, whole: bool) {
    meta(w, key);
    let mut bytes = name.as_bytes().to_vec();
    if whole {
        bytes.resize(libc::IFNAMSIZ, 0);
    }
    equal(w, &bytes);
}

/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// `NFTA_PAYLOAD_DREG`, `_BASE`, `_OFFSET`, `_LEN`.
fn payload(w: &mut Writer, base: u32, offset: u32, length: u32) {
    expression(w, "payload", |w| {
        w.be32(1, REGISTER).be32(2, base).be32(3, offset).be32(4, length);
    });
}

/// `NFTA_LOOKUP_SET`, `_SREG`.
fn source_in(w: &mut Writer, v4: bool, set: &str) {
    let (family, offset, length) = if v4 {
        (libc::AF_INET, 12, 4)
    } else {
        (libc::AF_INET6, 8, 16)
    };
    meta(w, META_NFPROTO);
    equal(w, &[family as u8]);
    payload(w, NETWORK, offset, length);
    expression(w, "lookup", |w| {
        w.string(1, set).be32(2, REGISTER);
    });
}

/// Bits of `NF_CT_STATE_BIT` (linux/netfilter/nf_conntrack_common.h): established 2, related 4.
const REPLY_STATES: u32 = 2 | 4;

/// The packet belongs to no flow that a task began: `NFTA_CT_DREG`, `_KEY` (0: state); `NFTA_BITWISE_SREG`, `_DREG`,
/// `_LEN`, `_MASK`, `_XOR`; state is in the host's order.
fn no_reply(w: &mut Writer) {
    expression(w, "ct", |w| {
        w.be32(1, REGISTER).be32(2, 0);
    });
    expression(w, "bitwise", |w| {
        w.be32(1, REGISTER).be32(2, REGISTER).be32(3, 4);
        w.nest(4, |w| {
            w.bytes(1, &REPLY_STATES.to_ne_bytes());
        });
        w.nest(5, |w| {
            w.bytes(1, &[0; 4]);
        });
    });
    equal(w, &[0; 4]);
}

enum Verdict {
    Drop = 0,
    Accept = 1,
}

/// `NFTA_IMMEDIATE_DREG` (0: the verdict), `_DATA`, within `NFTA_DATA_VERDICT` and `NFTA_VERDICT_CODE`.
fn verdict(w: &mut Writer, v: Verdict) {
    expression(w, "immediate", |w| {
        w.be32(1, 0).nest(2, |w| {
            w.nest(2, |w| {
                w.be32(1, v as u32);
            });
        });
    });
}
