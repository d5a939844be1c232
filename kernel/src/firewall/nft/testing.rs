//! What others do, and what can be counted: for the tests.

use mesh::lower::ipvs::rules::{
    Rules, Transport,
    nft::{Chain, Comparison, Expression, Header, MetaKey, Rule, Seen},
};

use super::{
    Nft, encode,
    encode::{kind, request},
    open, read,
};
use crate::{
    firewall::FirewallError,
    netfilter::TABLE,
    netlink::Attrs,
    netns::{self, Netns},
};

/// `NLM_F_CREATE`, `NLM_F_ACK`.
const CREATE: u16 = 0x400 | 4;
/// `NFT_MSG_DELRULE`.
const DEL_RULE: u16 = 8;

fn send(ns: &Netns, requests: Vec<crate::netlink::Request>) {
    netns::run_in(ns, || {
        let mut socket = open().unwrap();
        let mut batch = encode::batch(read::generation(&mut socket).unwrap(), vec![]);
        batch.splice(1..1, requests);
        socket.transaction(&batch).map_err(|(_, e)| e).unwrap();
    })
    .unwrap();
}

pub(in crate::firewall) fn generation_of(ns: &Netns) -> u32 {
    netns::run_in(ns, || read::generation(&mut open().unwrap()).unwrap()).unwrap()
}

/// Somebody's table, with a chain.
pub(in crate::firewall) fn foreign(ns: &Netns, table: &str, chain: Option<&str>) {
    let mut all = vec![request(kind::NEW_TABLE, CREATE, |w| {
        w.string(1, table);
    })];
    all.extend(chain.map(|chain| {
        request(kind::NEW_CHAIN, CREATE, |w| {
            w.string(1, table).string(3, chain);
        })
    }));
    send(ns, all);
}

/// Somebody's chain that drops what is forwarded.
pub(in crate::firewall) fn dropping(ns: &Netns, table: &str) {
    let all = vec![
        request(kind::NEW_TABLE, CREATE, |w| {
            w.string(1, table);
        }),
        request(kind::NEW_CHAIN, CREATE, |w| {
            w.string(1, table).string(3, "forward").nest(4, |w| {
                w.be32(1, 2).be32(2, 0);
            });
            w.be32(5, 0).string(7, "filter");
        }),
    ];
    send(ns, all);
}

pub(in crate::firewall) fn has_table(ns: &Netns, table: &str) -> bool {
    netns::run_in(ns, || {
        let get = request(kind::GET_TABLE, 0, |w| {
            w.string(1, table);
        });
        open().unwrap().get(&get).is_ok()
    })
    .unwrap()
}

/// What somebody does to our table.
#[derive(Debug, Clone, Copy)]
pub(in crate::firewall) enum Damage {
    Rules,
    Elements,
    Table,
    Chain,
}

pub(in crate::firewall) fn damage(ns: &Netns, what: Damage) {
    let message = match what {
        Damage::Rules => request(DEL_RULE, 4, |w| {
            w.string(1, TABLE).string(2, "filter-forward");
        }),
        Damage::Elements => request(kind::DEL_ELEMENT, 4, |w| {
            w.string(1, TABLE).string(2, "ports4");
        }),
        Damage::Table => request(kind::DEL_TABLE, 4, |w| {
            w.string(1, TABLE);
        }),
        Damage::Chain => request(kind::NEW_CHAIN, CREATE, |w| {
            w.string(1, TABLE).string(3, "theirs");
        }),
    };
    send(ns, vec![message]);
}

impl Nft {
    /// Everything anew, with a message at the end that is refused.
    pub(in crate::firewall) fn cut_short(&mut self, rules: &Rules) -> Result<bool, FirewallError> {
        let mut parts = encode::rebuild(&mesh::lower::ipvs::rules::nft::table(rules));
        parts.extend(encode::probe().pop());
        let generation = read::generation(&mut self.socket)?;
        self.commit(generation, parts)
    }
}

/// The table of the calling thread's namespace, if nothing changed while it was read.
pub(in crate::firewall) fn stable_look() -> Option<Seen> {
    let mut socket = open().unwrap();
    let before = read::generation(&mut socket).unwrap();
    super::settle(&mut socket, before);
    let seen = read::table(&mut socket).ok().flatten();
    (read::generation(&mut socket).unwrap() == before)
        .then_some(seen)
        .flatten()
}

/// Gives what comes by a device a mark before our own chains see it, as a classifier does.
pub(in crate::firewall) fn mark_from(ns: &Netns, device: &str, mark: u32) {
    const TABLE: &str = "classifier";
    let chain = Chain {
        kind: "filter",
        hook: 0,
        hook_name: "prerouting",
        priority: -310,
        rules: vec![],
    };
    let mut name = device.as_bytes().to_vec();
    name.resize(16, 0);
    let rule = Rule {
        expressions: vec![
            Expression::Meta(MetaKey::In, 0),
            Expression::Compare(0, Comparison::Is, name),
            Expression::Load(0, mark.to_ne_bytes().to_vec()),
            Expression::SetMark(0),
        ],
        text: String::new(),
        comment: String::new(),
    };
    let table = request(kind::NEW_TABLE, CREATE, |w| {
        w.string(1, TABLE);
    });
    let chain_and_rule = [
        encode::new_chain(TABLE, "mark", &chain).request,
        encode::new_rule(TABLE, "mark", &rule).request,
    ];
    send(ns, [table].into_iter().chain(chain_and_rule).collect());
}

/// Counts UDP packets with a mark and a destination port, behind our own chains.
pub(in crate::firewall) struct Counter<'a>(&'a Netns);

const PROBE: &str = "probe";

impl<'a> Counter<'a> {
    pub(in crate::firewall) fn of(ns: &'a Netns, mark: u32, port: u16) -> Self {
        let chain = Chain {
            kind: "filter",
            hook: 0,
            hook_name: "prerouting",
            priority: -140,
            rules: vec![],
        };
        let rule = Rule {
            expressions: vec![
                Expression::Meta(MetaKey::Mark, 0),
                Expression::Compare(0, Comparison::Is, mark.to_ne_bytes().to_vec()),
                Expression::Meta(MetaKey::Transport, 0),
                Expression::Compare(0, Comparison::Is, vec![Transport::Udp.number()]),
                Expression::Payload {
                    header: Header::Transport,
                    offset: 2,
                    length: 2,
                    to: 0,
                },
                Expression::Compare(0, Comparison::Is, port.to_be_bytes().to_vec()),
            ],
            text: String::new(),
            comment: String::new(),
        };
        let named = |w: &mut crate::netlink::Writer| {
            w.string(1, PROBE);
        };
        send(
            ns,
            vec![
                request(kind::NEW_TABLE, CREATE, named),
                request(kind::DEL_TABLE, 4, named),
                request(kind::NEW_TABLE, CREATE, named),
                encode::new_chain(PROBE, "count", &chain).request,
                request(kind::NEW_RULE, CREATE, |w| {
                    w.string(1, PROBE).string(2, "count").nest(4, |w| {
                        rule.expressions.iter().for_each(|e| encode::expression(w, e));
                        encode::named(w, "counter", |_| {});
                    });
                }),
            ],
        );
        Counter(ns)
    }

    /// Packets so far.
    pub(in crate::firewall) fn packets(&self) -> u64 {
        let rules = netns::run_in(self.0, || {
            let list = request(kind::GET_RULE, 0, |w| {
                w.string(1, PROBE);
            });
            open().unwrap().dump(&list).unwrap()
        })
        .unwrap();
        let count = rules.iter().find_map(|r| {
            let r = Attrs(&r.body[4..]);
            let of_probe = r.string(1).as_deref() == Some(PROBE);
            let expressions = Attrs(r.get(4).filter(|_| of_probe)?);
            let mut counters = expressions
                .map(|(_, e)| Attrs(e))
                .filter(|e| e.string(1).as_deref() == Some("counter"));
            // NFTA_COUNTER_PACKETS.
            let packets = Attrs(counters.next()?.get(2)?).get(2)?;
            Some(u64::from_be_bytes(packets.try_into().ok()?))
        });
        count.unwrap()
    }
}
