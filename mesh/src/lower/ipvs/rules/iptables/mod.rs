//! Rules as iptables-legacy reads and prints them: one atomic `iptables-legacy-restore --noflush` per table and family.
//!
//! Chains are ours alone, `NETD-*`; the kernel's own have one rule, at their beginning, that leads there. The last rule
//! of each chain bears a comment with a hash of the chain: so a chain of that name which somebody else made is told from
//! one that netd made, and an older netd's from a newer one's. Lines are written as `iptables-save` of 1.8 prints them.

mod saved;
mod tree;

use std::{collections::BTreeMap, fmt::Write, net::IpAddr};

use ipnet::IpNet;

pub use self::saved::{Foreign, Run, Saved, change, removal};
use super::{
    super::Family,
    fingerprint,
    language::{Action, Device, Entry, List, Match, Rule, Rules, TableName, Transport, Value, families_of},
};

/// What begins the names of our chains.
pub const CHAIN_PREFIX: &str = "NETD-";
/// Comment of the rules in the kernel's own chains that lead into ours.
pub const JUMP_COMMENT: &str = "netd";

/// The chains of one table and family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chains {
    /// Rules by chain, without `-A CHAIN`; the last one is the chain's hash.
    pub ours: BTreeMap<String, Vec<String>>,
    /// The kernel's chains that lead into one of ours.
    pub jumps: BTreeMap<&'static str, String>,
}

/// The rules of a namespace, by table and family. Tables without a rule are absent.
pub fn tables(rules: &Rules) -> BTreeMap<(TableName, Family), Chains> {
    let mut out: BTreeMap<(TableName, Family), Chains> = BTreeMap::new();
    for ((table, hook), chain) in &rules.chains {
        for family in [Family::V4, Family::V6] {
            let mut lines = Vec::new();
            let mut more = BTreeMap::new();
            for rule in chain.iter().filter(|r| families_of(r).contains(&family)) {
                lower(rule, rules, family, &mut lines, &mut more);
            }
            if lines.is_empty() {
                continue;
            }
            let chains = out.entry((*table, family)).or_default();
            let name = format!("{CHAIN_PREFIX}{}", hook.as_str());
            chains.jumps.insert(hook.as_str(), name.clone());
            chains.ours.insert(name, lines);
            chains.ours.append(&mut more);
        }
    }
    for chains in out.values_mut() {
        for (name, lines) in &mut chains.ours {
            let hash = fingerprint([name.as_str()].into_iter().chain(lines.iter().map(String::as_str)));
            lines.push(format!("-m comment --comment \"{hash}\" -j RETURN"));
        }
    }
    out
}

/// The rule that leads from one of the kernel's chains into one of ours.
fn jump(to: &str) -> String {
    format!("-m comment --comment {JUMP_COMMENT} -j {to}")
}

/// All of it as text to read: what `iptables-save` prints of it.
pub fn text(tables: &BTreeMap<(TableName, Family), Chains>) -> String {
    let mut out = String::new();
    for family in [Family::V4, Family::V6] {
        for ((table, _), chains) in tables.iter().filter(|((_, f), _)| *f == family) {
            let of = match family {
                Family::V4 => "iptables",
                Family::V6 => "ip6tables",
            };
            let _ = writeln!(out, "# {of}\n*{table}");
            for name in chains.ours.keys() {
                let _ = writeln!(out, ":{name} - [0:0]");
            }
            for (hook, to) in &chains.jumps {
                let _ = writeln!(out, "-A {hook} {}", jump(to));
            }
            for (name, lines) in &chains.ours {
                lines.iter().for_each(|l| {
                    let _ = writeln!(out, "-A {name} {l}");
                });
            }
            out.push_str("COMMIT\n");
        }
    }
    out
}

/// Chains beside the one that is being written.
type More = BTreeMap<String, Vec<String>>;

fn lower(rule: &Rule, rules: &Rules, family: Family, lines: &mut Vec<String>, more: &mut More) {
    let listed = rule.matches.iter().find_map(|m| match m {
        Match::Listed(name) => Some(rules.lists.get(name)),
        _ => None,
    });
    // An empty list has nothing in it: the rule is true of no packet.
    let entries: Vec<Option<&Entry>> = match listed {
        None => vec![None],
        Some(list) => list
            .into_iter()
            .flat_map(|l| l.of(family))
            .map(|(e, _)| Some(e))
            .collect(),
    };
    for entry in entries {
        let mut spec = Spec::default();
        rule.matches.iter().for_each(|m| spec.add(m));
        if let Some(entry) = entry {
            spec.entry(entry);
        }
        let target = match &rule.action {
            Action::Accept => "-j ACCEPT".to_owned(),
            Action::Drop => "-j DROP".to_owned(),
            Action::Return => "-j RETURN".to_owned(),
            Action::NoTrack => "-j CT --notrack".to_owned(),
            Action::Source(a) => format!("-j SNAT --to-source {a}"),
            Action::Masquerade => "-j MASQUERADE".to_owned(),
            Action::AcceptBy(name) | Action::MarkBy(name) | Action::TranslateBy(name) => {
                let Some(chain) = rules.lists.get(name).and_then(|l| by_list(name, l, family, more)) else {
                    continue;
                };
                format!("-j {chain}")
            }
        };
        lines.push(spec.line(&target));
    }
}

fn set_mark(mark: u32) -> String {
    format!("-j MARK --set-xmark {mark:#x}/0xffffffff")
}

/// The chain of a list; `None`: there is nothing in it.
fn by_list(name: &str, list: &List, family: Family, more: &mut More) -> Option<String> {
    let leaf = |(entry, value): (&Entry, &Value)| {
        let target = match value {
            Value::There => "-j ACCEPT".to_owned(),
            Value::Mark(mark) => set_mark(*mark),
            Value::To(IpAddr::V4(a), port) => format!("-j DNAT --to-destination {a}:{port}"),
            Value::To(IpAddr::V6(a), port) => format!("-j DNAT --to-destination [{a}]:{port}"),
        };
        (*entry, target)
    };
    let leaves: Vec<_> = list.of(family).map(leaf).collect();
    if leaves.is_empty() {
        return None;
    }
    let root = format!("{CHAIN_PREFIX}{}", name.to_ascii_uppercase());
    tree::grow(&root, leaves, more);
    Some(root)
}

/// The matches of a rule, in the order that iptables-save prints them.
#[derive(Debug, Clone, Default)]
struct Spec {
    from: Option<String>,
    to: Option<String>,
    input: Option<String>,
    output: Option<String>,
    port: Option<String>,
    rest: Vec<&'static str>,
    marks: Vec<String>,
}

/// A network, unless it is everything.
fn net(flag: &str, net: IpNet) -> Option<String> {
    (net.prefix_len() > 0).then(|| format!("{flag} {}", net.trunc()))
}

fn device(flag: &str, device: &Device) -> Option<String> {
    Some(match device {
        Device::Named(name) => format!("{flag} {name}"),
        Device::Prefix(name) => format!("{flag} {name}+"),
    })
}

fn port(transport: Transport, from: u16, to: u16) -> String {
    let range = if from == to {
        from.to_string()
    } else {
        format!("{from}:{to}")
    };
    format!("-p {transport} -m {transport} --dport {range}")
}

impl Spec {
    fn add(&mut self, m: &Match) {
        match m {
            // A family is a command of its own; a list's entries are added by the caller.
            Match::Of(_) | Match::Listed(_) => {}
            Match::In(d) => self.input = device("-i", d),
            Match::Out(d) => self.output = device("-o", d),
            Match::From(n) => self.from = net("-s", *n),
            Match::To(n) => self.to = net("-d", *n),
            Match::NotTo(n) => self.to = net("! -d", *n),
            Match::Port(t, p) => self.port = Some(port(*t, *p, *p)),
            Match::Local => self.rest.push("-m addrtype --dst-type LOCAL"),
            Match::New => self.rest.push("-m conntrack --ctstate NEW"),
            Match::Known => self.rest.push("-m conntrack --ctstate RELATED,ESTABLISHED"),
            Match::Translated => self.rest.push("-m conntrack --ctstate DNAT"),
            Match::NoWayBack => self.rest.push("-m rpfilter --invert"),
        }
    }

    fn entry(&mut self, e: &Entry) {
        if let Some(from) = e.from {
            self.from = net("-s", from);
        }
        if let Some(to) = e.to {
            self.to = net("-d", to.into());
        }
        self.port = match (e.transport, e.port) {
            (Some(t), Some(p)) => Some(port(t, p, p)),
            (Some(t), None) => Some(format!("-p {t}")),
            (None, _) => self.port.take(),
        };
    }

    fn line(&self, target: &str) -> String {
        let parts = [&self.from, &self.to, &self.input, &self.output, &self.port];
        let parts = parts.into_iter().flatten().map(String::as_str);
        let rest = self.marks.iter().map(String::as_str).chain(self.rest.iter().copied());
        let all: Vec<&str> = parts.chain(rest).chain([target]).collect();
        all.join(" ")
    }
}
