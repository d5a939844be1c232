//! Messages of a transaction (linux/netfilter/nf_tables.h; the numbers are those of its attribute enumerations).

use mesh::lower::ipvs::{
    Family,
    rules::nft::{
        Chain, Comparison, Elements, Expression, Field, FlowKey, Header, MetaKey, Register, Rule, Set, SetChange,
        Table, Verdict,
    },
};
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};

use super::{INET, Lacking, SUBSYSTEM, TABLE};
use crate::netlink::{Request, Writer};

/// `NFT_MSG_*`.
pub(super) mod kind {
    pub(crate) const NEW_TABLE: u16 = 0;
    pub(crate) const GET_TABLE: u16 = 1;
    pub(crate) const DEL_TABLE: u16 = 2;
    pub(crate) const NEW_CHAIN: u16 = 3;
    pub(crate) const GET_CHAIN: u16 = 4;
    pub(crate) const NEW_RULE: u16 = 6;
    pub(crate) const GET_RULE: u16 = 7;
    pub(crate) const NEW_SET: u16 = 9;
    pub(crate) const GET_SET: u16 = 10;
    pub(crate) const NEW_ELEMENT: u16 = 12;
    pub(crate) const GET_ELEMENT: u16 = 13;
    pub(crate) const DEL_ELEMENT: u16 = 14;
    pub(crate) const GET_GENERATION: u16 = 16;
}

/// `NFNL_MSG_BATCH_BEGIN`, `_END` of linux/netfilter/nfnetlink.h.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// Comment of the table, by which it is known as ours.
pub(super) const TABLE_COMMENT: &str = "netd";
/// Elements told in one message: the longest has 100 octets, and an attribute 64 KiB.
const ELEMENTS: usize = 500;
/// Bits of one type's number in that of a concatenation (nft's `TYPE_BITS`).
const TYPE_BITS: u32 = 6;

/// A message of a transaction, and what to say when it is refused.
pub(super) struct Part {
    request: Request,
    what: String,
    option: &'static str,
    module: &'static str,
}

impl Part {
    pub(super) fn lacking(&self) -> Lacking {
        (self.what.clone(), self.option, self.module)
    }
}

/// A message: `struct nfgenmsg` (family, version, resource) and attributes.
pub(super) fn request(kind: u16, flags: u16, build: impl FnOnce(&mut Writer)) -> Request {
    let mut w = Writer(vec![INET, 0, 0, 0]);
    build(&mut w);
    Request {
        kind: SUBSYSTEM << 8 | kind,
        flags,
        body: w.0,
    }
}

fn part(kind: u16, flags: u16, what: impl Into<String>, build: impl FnOnce(&mut Writer)) -> Part {
    Part {
        request: request(kind, flags | NLM_F_ACK, build),
        what: what.into(),
        option: "CONFIG_NF_TABLES",
        module: "nf_tables",
    }
}

/// Parts within a transaction that fails if nf_tables is no longer of `generation` (`NFNL_BATCH_GENID`).
pub(super) fn batch(generation: u32, parts: Vec<Part>) -> Vec<Request> {
    let edge = |kind, attrs: &[u8]| {
        // The resource is the subsystem, in network order.
        let mut body = vec![0];
        body.push(0);
        body.extend(SUBSYSTEM.to_be_bytes());
        body.extend_from_slice(attrs);
        Request { kind, flags: 0, body }
    };
    let mut genid = Writer::default();
    genid.be32(1, generation);
    let mut out = vec![edge(BATCH_BEGIN, &genid.0)];
    out.extend(parts.into_iter().map(|p| p.request));
    out.push(edge(BATCH_END, &[]));
    out
}

/// A comment as nft keeps it: type 0 (`NFTNL_UDATA_TABLE_COMMENT`, `NFTNL_UDATA_RULE_COMMENT`), length, text, zero.
fn comment(text: &str) -> Vec<u8> {
    let mut out = vec![0, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    out.extend_from_slice(text.as_bytes());
    out.push(0);
    out
}

/// The comment within what nft keeps.
pub(super) fn comment_of(mut user_data: &[u8]) -> Option<&str> {
    while let [kind, length, rest @ ..] = user_data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok();
        }
        user_data = rest.get(usize::from(*length)..)?;
    }
    None
}

fn new_table(name: &str) -> Part {
    let mut p = part(kind::NEW_TABLE, NLM_F_CREATE, "the table", |w| {
        w.string(1, name).bytes(6, &comment(TABLE_COMMENT));
    });
    (p.option, p.module) = ("CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET", "nf_tables");
    p
}

pub(super) fn delete_table() -> Part {
    part(kind::DEL_TABLE, 0, "the table", |w| {
        w.string(1, TABLE);
    })
}

/// The whole table anew. Making it first lets the removal succeed where there is none.
pub(super) fn rebuild(table: &Table) -> Vec<Part> {
    let mut out = vec![new_table(TABLE), delete_table(), new_table(TABLE)];
    for (i, (name, set)) in (1u32..).zip(&table.sets) {
        out.push(new_set(TABLE, name, i, set));
        fill(kind::NEW_ELEMENT, NLM_F_CREATE, name, set, &set.elements, &mut out);
    }
    for (name, chain) in &table.chains {
        out.push(new_chain(TABLE, name, chain));
        out.extend(chain.rules.iter().map(|r| new_rule(TABLE, name, r)));
    }
    out
}

/// Elements alone.
pub(super) fn elements(changes: &[SetChange], table: &Table) -> Vec<Part> {
    let mut out = Vec::new();
    for change in changes {
        let Some(set) = table.sets.get(&change.set) else {
            continue;
        };
        if change.clear {
            out.push(part(kind::DEL_ELEMENT, 0, format!("set {}", change.set), |w| {
                w.string(1, TABLE).string(2, &change.set);
            }));
        }
        fill(kind::DEL_ELEMENT, 0, &change.set, set, &change.remove, &mut out);
        fill(kind::NEW_ELEMENT, NLM_F_CREATE, &change.set, set, &change.add, &mut out);
    }
    out
}

fn new_set(table: &str, name: &str, id: u32, set: &Set) -> Part {
    let number = |fields: &[Field]| fields.iter().fold(0, |n, f| n << TYPE_BITS | f.number());
    let mut p = part(kind::NEW_SET, NLM_F_CREATE, format!("set {name}"), |w| {
        // The id names the set within the transaction.
        w.string(1, table)
            .string(2, name)
            .be32(3, set.flags())
            .be32(4, number(&set.key))
            .be32(5, set.key_octets());
        if !set.value.is_empty() {
            w.be32(6, number(&set.value)).be32(7, set.value_octets());
        }
        if set.ranges && set.key.len() > 1 {
            // NFTA_SET_DESC_CONCAT: the length of each field.
            w.nest(9, |w| {
                w.nest(2, |w| {
                    for field in &set.key {
                        w.nest(1, |w| {
                            w.be32(1, field.length());
                        });
                    }
                });
            });
        }
        w.be32(10, id);
    });
    (p.option, p.module) = ("CONFIG_NF_TABLES", "nf_tables");
    p
}

fn fill(kind: u16, flags: u16, name: &str, set: &Set, elements: &Elements, out: &mut Vec<Part>) {
    let all: Vec<_> = elements.iter().collect();
    for chunk in all.chunks(ELEMENTS) {
        out.push(part(kind, flags, format!("elements of set {name}"), |w| {
            w.string(1, TABLE).string(2, name).nest(3, |w| {
                chunk.iter().for_each(|(key, value)| element(w, set, key, value));
            });
        }));
    }
}

/// `NFTA_SET_ELEM_KEY` 1, `_DATA` 2, `_FLAGS` 3, `_KEY_END` 10. A range of one field is an element at its start and one
/// with `NFT_SET_ELEM_INTERVAL_END` behind its end, where there is a behind.
fn element(w: &mut Writer, set: &Set, (first, last): &(Vec<u8>, Vec<u8>), value: &[u8]) {
    let value_of = |w: &mut Writer, kind: u16, octets: &[u8]| {
        w.nest(kind, |w| {
            w.bytes(1, octets);
        });
    };
    if set.ranges && set.key.len() == 1 {
        w.nest(1, |w| value_of(w, 1, first));
        let mut behind = last.clone();
        let carried = behind.iter_mut().rev().all(|b| {
            let (next, carry) = b.overflowing_add(1);
            *b = next;
            carry
        });
        if !carried {
            w.nest(1, |w| {
                value_of(w, 1, &behind);
                w.be32(3, 1);
            });
        }
        return;
    }
    w.nest(1, |w| {
        value_of(w, 1, first);
        if set.ranges {
            value_of(w, 10, last);
        }
        if !value.is_empty() {
            value_of(w, 2, value);
        }
    });
}

fn new_chain(table: &str, name: &str, chain: &Chain) -> Part {
    let mut p = part(kind::NEW_CHAIN, NLM_F_CREATE, format!("chain {name}"), |w| {
        w.string(1, table).string(3, name).nest(4, |w| {
            w.be32(1, chain.hook).bytes(2, &chain.priority.to_be_bytes());
        });
        // Policy: accept.
        w.be32(5, 1).string(7, chain.kind);
    });
    (p.option, p.module) = match chain.kind {
        "nat" => ("CONFIG_NFT_NAT", "nft_chain_nat"),
        _ => ("CONFIG_NF_TABLES_INET", "nf_tables"),
    };
    p
}

fn new_rule(table: &str, chain: &str, rule: &Rule) -> Part {
    let what = format!("the rule `{}`", rule.text);
    let mut p = part(kind::NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, what, |w| {
        // NFTA_RULE_EXPRESSIONS is a nested list; NFTA_RULE_USERDATA comes back as it was given.
        w.string(1, table)
            .string(2, chain)
            .nest(4, |w| rule.expressions.iter().for_each(|e| expression(w, e)))
            .bytes(7, &comment(&rule.comment));
    });
    let needs = rule.expressions.iter().rev().find_map(|e| match e {
        Expression::Masquerade => Some(("CONFIG_NFT_MASQ", "nft_masq")),
        Expression::Source(..) | Expression::Destination(..) => Some(("CONFIG_NFT_NAT", "nft_nat")),
        Expression::WayBack(_) | Expression::DestinationType(_) => Some(("CONFIG_NFT_FIB_INET", "nft_fib_inet")),
        Expression::NoTrack | Expression::Flow(..) => Some(("CONFIG_NFT_CT", "nft_ct")),
        _ => None,
    });
    (p.option, p.module) = needs.unwrap_or(("CONFIG_NF_TABLES", "nf_tables"));
    p
}

/// `NFT_REG32_00`.
const REGISTERS: u32 = 8;

fn register(r: Register) -> u32 {
    REGISTERS + r
}

/// `NFTA_LIST_ELEM` with `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
fn named(w: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    w.nest(1, |w| {
        w.string(1, name).nest(2, data);
    });
}

fn value(w: &mut Writer, kind: u16, octets: &[u8]) {
    w.nest(kind, |w| {
        w.bytes(1, octets);
    });
}

/// `NFT_META_*`.
fn meta(key: MetaKey) -> u32 {
    match key {
        MetaKey::Mark => 3,
        MetaKey::In => 6,
        MetaKey::Out => 7,
        MetaKey::Family => 15,
        MetaKey::Transport => 16,
    }
}

/// `NFT_CT_*`.
fn flow(key: FlowKey) -> u32 {
    match key {
        FlowKey::State => 0,
        FlowKey::Status => 2,
    }
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
fn protocol(family: Family) -> u32 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn expression(w: &mut Writer, e: &Expression) {
    match e {
        // NFTA_META_DREG 1, _KEY 2, _SREG 3.
        Expression::Meta(key, to) => named(w, "meta", |w| {
            w.be32(1, register(*to)).be32(2, meta(*key));
        }),
        Expression::SetMark(from) => named(w, "meta", |w| {
            w.be32(2, meta(MetaKey::Mark)).be32(3, register(*from));
        }),
        // NFTA_CT_DREG 1, _KEY 2.
        Expression::Flow(key, to) => named(w, "ct", |w| {
            w.be32(1, register(*to)).be32(2, flow(*key));
        }),
        // NFTA_PAYLOAD_DREG 1, _BASE 2, _OFFSET 3, _LEN 4.
        Expression::Payload {
            header,
            offset,
            length,
            to,
        } => named(w, "payload", |w| {
            let base = match header {
                Header::Network => 1,
                Header::Transport => 2,
            };
            w.be32(1, register(*to)).be32(2, base).be32(3, *offset).be32(4, *length);
        }),
        // NFTA_BITWISE_SREG 1, _DREG 2, _LEN 3, _MASK 4, _XOR 5.
        Expression::And(at, mask) => named(w, "bitwise", |w| {
            let length = u32::try_from(mask.len()).unwrap_or(0);
            w.be32(1, register(*at)).be32(2, register(*at)).be32(3, length);
            value(w, 4, mask);
            value(w, 5, &vec![0; mask.len()]);
        }),
        // NFTA_CMP_SREG 1, _OP 2, _DATA 3.
        Expression::Compare(at, how, with) => named(w, "cmp", |w| {
            let how = match how {
                Comparison::Is => 0,
                Comparison::IsNot => 1,
            };
            w.be32(1, register(*at)).be32(2, how);
            value(w, 3, with);
        }),
        // NFTA_LOOKUP_SET 1, _SREG 2, _DREG 3.
        Expression::Lookup { set, key, value } => named(w, "lookup", |w| {
            w.string(1, set).be32(2, register(*key));
            if let Some(value) = value {
                w.be32(3, register(*value));
            }
        }),
        // NFTA_IMMEDIATE_DREG 1, _DATA 2.
        Expression::Load(to, octets) => named(w, "immediate", |w| {
            w.be32(1, register(*to));
            value(w, 2, octets);
        }),
        // NFTA_FIB_DREG 1, _RESULT 2 (NFT_FIB_RESULT_OIF 1, _ADDRTYPE 3), _FLAGS 3 (NFTA_FIB_F_SADDR 1, _DADDR 2,
        // _IIF 8, _PRESENT 32).
        Expression::DestinationType(to) => named(w, "fib", |w| {
            w.be32(1, register(*to)).be32(2, 3).be32(3, 2);
        }),
        Expression::WayBack(to) => named(w, "fib", |w| {
            w.be32(1, register(*to)).be32(2, 1).be32(3, 1 | 8 | 32);
        }),
        // NFTA_NAT_TYPE 1 (NFT_NAT_SNAT 0, _DNAT 1), _FAMILY 2, _REG_ADDR_MIN 3, _REG_PROTO_MIN 5.
        Expression::Source(family, address) => named(w, "nat", |w| {
            w.be32(1, 0).be32(2, protocol(*family)).be32(3, register(*address));
        }),
        Expression::Destination(family, address, port) => named(w, "nat", |w| {
            w.be32(1, 1)
                .be32(2, protocol(*family))
                .be32(3, register(*address))
                .be32(5, register(*port));
        }),
        Expression::Masquerade => named(w, "masq", |_| {}),
        Expression::NoTrack => named(w, "notrack", |_| {}),
        // Register 0 is the verdict; NFTA_DATA_VERDICT 2, NFTA_VERDICT_CODE 1; NFT_RETURN is -5.
        Expression::Verdict(v) => named(w, "immediate", |w| {
            let code = match v {
                Verdict::Accept => 1u32,
                Verdict::Drop => 0,
                Verdict::Return => (-5i32).cast_unsigned(),
            };
            w.be32(1, 0).nest(2, |w| {
                w.nest(2, |w| {
                    w.be32(1, code);
                });
            });
        }),
    }
}

/// A table that uses what ours do, and the removal of one that is not there.
pub(super) fn probe() -> Vec<Part> {
    const PROBE: &str = "netd-probe";
    let chain = |kind: &'static str, hook, priority| Chain {
        kind,
        hook,
        hook_name: "",
        priority,
        rules: Vec::new(),
    };
    let rule = |text: &str, expressions: Vec<Expression>| Rule {
        expressions,
        text: text.to_owned(),
        comment: String::new(),
    };
    let set = Set {
        key: vec![Field::V4, Field::Transport, Field::Port],
        value: vec![],
        ranges: true,
        elements: Elements::new(),
    };
    let map = Set {
        key: vec![Field::Transport, Field::Port],
        value: vec![Field::V4, Field::Port],
        ranges: false,
        elements: Elements::new(),
    };
    let lookup = Expression::Lookup {
        set: "map".into(),
        key: 0,
        value: Some(0),
    };
    vec![
        new_table(PROBE),
        new_set(PROBE, "set", 1, &set),
        new_set(PROBE, "map", 2, &map),
        new_chain(PROBE, "first", &chain("filter", 0, -300)),
        new_chain(PROBE, "way", &chain("route", 3, -150)),
        new_chain(PROBE, "in", &chain("nat", 0, -100)),
        new_chain(PROBE, "out", &chain("nat", 4, 100)),
        new_rule(
            PROBE,
            "first",
            &rule("fib saddr . iif oif missing", vec![Expression::WayBack(0)]),
        ),
        new_rule(PROBE, "first", &rule("notrack", vec![Expression::NoTrack])),
        new_rule(
            PROBE,
            "in",
            &rule(
                "dnat ip to map",
                vec![
                    Expression::Meta(MetaKey::Family, 0),
                    Expression::Compare(0, Comparison::Is, vec![2]),
                    Expression::Meta(MetaKey::Transport, 0),
                    Expression::Payload {
                        header: Header::Transport,
                        offset: 2,
                        length: 2,
                        to: 1,
                    },
                    lookup,
                    Expression::Destination(Family::V4, 0, 1),
                ],
            ),
        ),
        new_rule(PROBE, "out", &rule("masquerade", vec![Expression::Masquerade])),
        part(kind::DEL_TABLE, 0, "the probe", |w| {
            w.string(1, "netd-probe-that-nobody-made");
        }),
    ]
}
