//! What others do, and what can be counted: for the tests.

use mesh::lower::ipvs::rules::{Rules, nft::Seen};

use super::{
    Nft, encode,
    encode::{kind, request},
    open, read,
};
use crate::{
    firewall::FirewallError,
    netfilter::TABLE,
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
