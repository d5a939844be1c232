//! Rules to expressions.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    super::{
        super::Family,
        fingerprint,
        language::{
            Action, Device, Entry, Holds, Hook, Key, List, Match, Rule as Said, Rules, TableName, Transport, Value,
            families_of,
        },
    },
    Chain, Comparison, Expression, Field, FlowKey, Header, Keys, MetaKey, Register, Rule, Set, Table, Verdict, address,
};

/// `IFNAMSIZ` of linux/if.h.
const NAME_OCTETS: usize = 16;
/// `RTN_LOCAL` of linux/rtnetlink.h.
const RTN_LOCAL: u32 = 2;
/// `NF_CT_STATE_BIT` of nf_conntrack_common.h: established 2, related 4, new 8.
const STATE_KNOWN: u32 = 2 | 4;
const STATE_NEW: u32 = 8;
/// `IPS_DST_NAT` of nf_conntrack_common.h.
const STATUS_TRANSLATED: u32 = 1 << 5;

/// The table of a namespace. Without rules: without chains.
pub fn table(rules: &Rules) -> Table {
    let mut out = Table::default();
    for ((table, hook), said) in &rules.chains {
        let mut lowered = Vec::new();
        for rule in said {
            lower(rule, rules, &mut out, &mut lowered);
        }
        if !lowered.is_empty() {
            let (name, chain) = chain(*table, *hook, lowered);
            out.chains.insert(name, chain);
        }
    }
    out
}

fn chain(table: TableName, hook: Hook, rules: Vec<Rule>) -> (String, Chain) {
    let (number, hook_name) = match hook {
        Hook::Prerouting => (0, "prerouting"),
        Hook::Forward => (2, "forward"),
        Hook::Output => (3, "output"),
        Hook::Postrouting => (4, "postrouting"),
    };
    let kind = match (table, hook) {
        (TableName::Nat, _) => "nat",
        // A mark that changes there changes the way.
        (TableName::Mangle, Hook::Output) => "route",
        _ => "filter",
    };
    let priority = match (table, hook) {
        (TableName::Raw, _) => -300,
        (TableName::Mangle, _) => -150,
        (TableName::Nat, Hook::Postrouting) => 100,
        (TableName::Nat, _) => -100,
        (TableName::Filter, _) => 0,
    };
    let chain = Chain {
        kind,
        hook: number,
        hook_name,
        priority,
        rules,
    };
    (format!("{table}-{hook_name}"), chain)
}

/// One rule, or one for each family where it has to do with addresses.
fn lower(said: &Said, rules: &Rules, out: &mut Table, lowered: &mut Vec<Rule>) {
    let lists = said.matches.iter().filter_map(|m| match m {
        Match::Listed(name) => Some(*name),
        _ => None,
    });
    let lists: Vec<&str> = lists
        .chain(match &said.action {
            Action::AcceptBy(name) | Action::MarkBy(name) | Action::TranslateBy(name) => Some(*name),
            _ => None,
        })
        .collect();
    let families = families_of(said);
    if families.len() == 2 && lists.is_empty() {
        lowered.push(one(said, rules, None));
        return;
    }
    for family in families {
        for name in &lists {
            let Some(list) = rules.lists.get(name) else { continue };
            out.sets
                .entry(set_name(name, family))
                .or_insert_with(|| set(list, family));
        }
        if lists.iter().all(|name| rules.lists.contains_key(name)) {
            lowered.push(one(said, rules, Some(family)));
        }
    }
}

pub(super) fn set_name(list: &str, family: Family) -> String {
    match family {
        Family::V4 => format!("{list}4"),
        Family::V6 => format!("{list}6"),
    }
}

fn fields(key: Key, family: Family) -> Vec<Field> {
    let parts = [
        (key.from, address(family)),
        (key.to, address(family)),
        (key.transport, Field::Transport),
        (key.port, Field::Port),
    ];
    parts.into_iter().filter(|(there, _)| *there).map(|(_, f)| f).collect()
}

fn set(list: &List, family: Family) -> Set {
    let value = match list.holds {
        Holds::Nothing => vec![],
        Holds::Marks => vec![Field::Mark],
        Holds::Targets => vec![address(family), Field::Port],
    };
    Set {
        key: fields(list.key, family),
        value,
        ranges: list.key.from,
        elements: list.of(family).filter_map(|(e, v)| element(list.key, e, *v)).collect(),
    }
}

fn octets(a: IpAddr) -> Vec<u8> {
    match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Key and value; `None`: the entry lacks what the list's key has.
fn element(key: Key, e: &Entry, value: Value) -> Option<(Keys, Vec<u8>)> {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let mut both = |octets: &[u8]| {
        for side in [&mut first, &mut last] {
            side.extend_from_slice(octets);
            side.resize(side.len().next_multiple_of(4), 0);
        }
    };
    if key.to {
        both(&octets(e.to?));
    }
    if key.transport {
        both(&[e.transport?.number()]);
    }
    if key.port {
        both(&e.port?.to_be_bytes());
    }
    if key.from {
        let net = e.from?;
        first.splice(0..0, octets(net.network()));
        last.splice(0..0, octets(net.broadcast()));
    }
    let value = match value {
        Value::There => Vec::new(),
        Value::Mark(mark) => mark.to_ne_bytes().to_vec(),
        Value::To(a, port) => {
            let mut v = octets(a);
            v.extend(port.to_be_bytes());
            v.resize(v.len().next_multiple_of(4), 0);
            v
        }
    };
    Some(((first, last), value))
}

/// A rule in the making.
struct Draft {
    expressions: Vec<Expression>,
    text: Vec<String>,
    /// The family is known to be this.
    family: Option<Family>,
    asked: bool,
}

fn one(said: &Said, rules: &Rules, family: Option<Family>) -> Rule {
    let family = family.or_else(|| {
        let families = families_of(said);
        families.first().copied().filter(|_| families.len() == 1)
    });
    let mut d = Draft {
        expressions: Vec::new(),
        text: Vec::new(),
        family,
        asked: false,
    };
    for m in &said.matches {
        d.matched(m, rules);
    }
    d.action(&said.action, rules);
    let comment = fingerprint([format!("{:?}", d.expressions).as_str()]);
    Rule {
        expressions: d.expressions,
        text: d.text.join(" "),
        comment,
    }
}

use Expression::*;

impl Draft {
    fn say(&mut self, text: impl Into<String>) {
        self.text.push(text.into());
    }

    /// The rule is about one family: asked once, before the header is read.
    fn of_family(&mut self, say: bool) {
        let Some(family) = self.family else { return };
        if !self.asked {
            self.asked = true;
            let (number, name) = match family {
                Family::V4 => (2, "ipv4"),
                Family::V6 => (10, "ipv6"),
            };
            self.expressions.push(Meta(MetaKey::Family, 0));
            self.expressions.push(Compare(0, Comparison::Is, vec![number]));
            if say {
                self.say(format!("meta nfproto {name}"));
            }
        }
    }

    fn ip(&self) -> &'static str {
        match self.family {
            Some(Family::V6) => "ip6",
            _ => "ip",
        }
    }

    fn load_address(&mut self, source: bool, to: Register) {
        let (offset, length) = match (self.family, source) {
            (Some(Family::V6), true) => (8, 16),
            (Some(Family::V6), false) => (24, 16),
            (_, true) => (12, 4),
            (_, false) => (16, 4),
        };
        self.expressions.push(Payload {
            header: Header::Network,
            offset,
            length,
            to,
        });
    }

    fn load_port(&mut self, to: Register) {
        self.expressions.push(Payload {
            header: Header::Transport,
            offset: 2,
            length: 2,
            to,
        });
    }

    fn within(&mut self, source: bool, net: IpNet, is: Comparison) {
        self.of_family(false);
        let which = if source { "saddr" } else { "daddr" };
        let not = if is == Comparison::IsNot { "!= " } else { "" };
        let net = net.trunc();
        let full = net.prefix_len() == net.max_prefix_len();
        let shown = if full { net.addr().to_string() } else { net.to_string() };
        let text = format!("{} {which} {not}{shown}", self.ip());
        self.say(text);
        self.load_address(source, 0);
        if !full {
            self.expressions.push(And(0, octets(net.netmask())));
        }
        self.expressions.push(Compare(0, is, octets(net.addr())));
    }

    fn device(&mut self, input: bool, device: &Device) {
        let (key, word) = if input {
            (MetaKey::In, "iifname")
        } else {
            (MetaKey::Out, "oifname")
        };
        self.expressions.push(Meta(key, 0));
        let octets = match device {
            Device::Named(name) => {
                self.say(format!("{word} \"{name}\""));
                let mut octets = name.clone().into_bytes();
                octets.resize(NAME_OCTETS, 0);
                octets
            }
            Device::Prefix(name) => {
                self.say(format!("{word} \"{name}*\""));
                name.clone().into_bytes()
            }
        };
        self.expressions.push(Compare(0, Comparison::Is, octets));
    }

    /// Some of the bits of a number in the host's order.
    fn any_bit(&mut self, bits: u32) {
        self.expressions.push(And(0, bits.to_ne_bytes().to_vec()));
        self.expressions.push(Compare(0, Comparison::IsNot, vec![0; 4]));
    }

    fn matched(&mut self, m: &Match, rules: &Rules) {
        match m {
            Match::Of(_) => self.of_family(true),
            Match::In(d) => self.device(true, d),
            Match::Out(d) => self.device(false, d),
            Match::From(n) => self.within(true, *n, Comparison::Is),
            Match::To(n) => self.within(false, *n, Comparison::Is),
            Match::NotTo(n) => self.within(false, *n, Comparison::IsNot),
            Match::Port(t, p) => self.port(*t, *p),
            Match::Local => {
                self.say("fib daddr type local");
                self.expressions.push(DestinationType(0));
                let local = RTN_LOCAL.to_ne_bytes().to_vec();
                self.expressions.push(Compare(0, Comparison::Is, local));
            }
            Match::New => {
                self.say("ct state new");
                self.expressions.push(Flow(FlowKey::State, 0));
                self.any_bit(STATE_NEW);
            }
            Match::Known => {
                self.say("ct state established,related");
                self.expressions.push(Flow(FlowKey::State, 0));
                self.any_bit(STATE_KNOWN);
            }
            Match::Translated => {
                self.say("ct status dnat");
                self.expressions.push(Flow(FlowKey::Status, 0));
                self.any_bit(STATUS_TRANSLATED);
            }
            Match::NoWayBack => {
                self.say("fib saddr . iif oif missing");
                self.expressions.push(WayBack(0));
                // The kernel writes 0 or 1, as a whole register or as its first octet.
                self.expressions.push(Compare(0, Comparison::Is, vec![0; 4]));
            }
            Match::Listed(name) => {
                if let Some(list) = rules.lists.get(name) {
                    self.look(name, list.key);
                }
            }
        }
    }

    fn port(&mut self, transport: Transport, port: u16) {
        self.say(format!("{transport} dport {port}"));
        self.expressions.push(Meta(MetaKey::Transport, 0));
        self.expressions
            .push(Compare(0, Comparison::Is, vec![transport.number()]));
        self.load_port(0);
        self.expressions
            .push(Compare(0, Comparison::Is, port.to_be_bytes().to_vec()));
    }

    /// Puts a list's key together; what it reads, as nft prints it.
    fn key(&mut self, key: Key) -> String {
        self.of_family(!(key.from || key.to));
        let mut at = 0;
        let mut parts = Vec::new();
        for (there, source, name) in [(key.from, true, "saddr"), (key.to, false, "daddr")] {
            if there {
                self.load_address(source, at);
                at += address(self.family.unwrap_or(Family::V4)).octets() / 4;
                parts.push(format!("{} {name}", self.ip()));
            }
        }
        if key.transport {
            self.expressions.push(Meta(MetaKey::Transport, at));
            at += 1;
            parts.push("meta l4proto".to_owned());
        }
        if key.port {
            self.load_port(at);
            parts.push("th dport".to_owned());
        }
        parts.join(" . ")
    }

    fn look(&mut self, list: &str, key: Key) {
        let read = self.key(key);
        let set = set_name(list, self.family.unwrap_or(Family::V4));
        self.say(format!("{read} @{set}"));
        self.expressions.push(Lookup {
            set,
            key: 0,
            value: None,
        });
    }

    fn action(&mut self, action: &Action, rules: &Rules) {
        match action {
            Action::Accept => self.verdict("accept", Verdict::Accept),
            Action::AcceptBy(name) => {
                self.matched(&Match::Listed(name), rules);
                self.verdict("accept", Verdict::Accept);
            }
            Action::Drop => self.verdict("drop", Verdict::Drop),
            Action::Return => self.verdict("return", Verdict::Return),
            Action::NoTrack => {
                self.say("notrack");
                self.expressions.push(NoTrack);
            }
            Action::MarkBy(name) => {
                if self.map(name, rules, "meta mark set") {
                    self.expressions.push(SetMark(0));
                }
            }
            Action::TranslateBy(name) => {
                let family = self.family.unwrap_or(Family::V4);
                let how = format!("dnat {} to", self.ip());
                if self.map(name, rules, &how) {
                    let port = address(family).octets() / 4;
                    self.expressions.push(Destination(family, 0, port));
                }
            }
            Action::Source(a) => {
                let family = Family::of(*a);
                self.of_family(true);
                let text = format!("snat {} to {a}", self.ip());
                self.say(text);
                self.expressions.push(Load(0, octets(*a)));
                self.expressions.push(Source(family, 0));
            }
            Action::Masquerade => {
                self.say("masquerade");
                self.expressions.push(Masquerade);
            }
        }
    }

    fn verdict(&mut self, text: &str, v: Verdict) {
        self.say(text);
        self.expressions.push(Expression::Verdict(v));
    }

    /// The value that a map has. `false`: there is no such list.
    fn map(&mut self, list: &str, rules: &Rules, how: &str) -> bool {
        let Some(held) = rules.lists.get(list) else {
            return false;
        };
        let read = self.key(held.key);
        let set = set_name(list, self.family.unwrap_or(Family::V4));
        self.say(format!("{how} {read} map @{set}"));
        self.expressions.push(Lookup {
            set,
            key: 0,
            value: Some(0),
        });
        true
    }
}
