//! What `iptables-legacy-save` printed, and the way from there to what is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use super::{
    super::{super::Family, is_ours, language::TableName},
    CHAIN_PREFIX, Chains, JUMP_COMMENT, jump,
};

/// One family's tables as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Saved {
    tables: BTreeMap<TableName, Table>,
}

/// A table as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Table {
    /// Rules by chain, without `-A CHAIN`.
    chains: BTreeMap<String, Vec<String>>,
    /// Policies of the kernel's chains.
    policies: BTreeMap<String, String>,
}

/// A chain under one of our names that netd did not make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Family.
    pub family: Family,
    /// Table.
    pub table: TableName,
    /// Chain.
    pub chain: String,
    /// Its first rule.
    pub rule: String,
}

/// One run of `iptables-legacy-restore --noflush`, or of its sister for IPv6: all of it happens, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Family.
    pub family: Family,
    /// Table.
    pub table: TableName,
    /// What it reads.
    pub input: String,
}

impl Saved {
    /// Reads what iptables-save printed. Lines that are not understood are passed over: they are not ours.
    pub fn parse(text: &str) -> Self {
        let mut out = Saved::default();
        let mut current = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                current = TableName::ALL.into_iter().find(|t| t.as_str() == name.trim());
                continue;
            }
            let Some(table) = current else { continue };
            let table = out.tables.entry(table).or_default();
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split_whitespace();
                if let Some(name) = words.next() {
                    table.chains.entry(name.to_owned()).or_default();
                    let policy = words.next().filter(|p| *p != "-");
                    table.policies.extend(policy.map(|p| (name.to_owned(), p.to_owned())));
                }
            } else if let Some((name, rule)) = line.strip_prefix("-A ").and_then(|r| r.split_once(' ')) {
                table
                    .chains
                    .entry(name.to_owned())
                    .or_default()
                    .push(rule.trim_end().to_owned());
            } else if line == "COMMIT" {
                current = None;
            }
        }
        out
    }

    /// Whether anything of ours is there.
    pub fn has_ours(&self) -> bool {
        self.tables.values().any(|t| {
            let mut rules = t.chains.values().flatten();
            t.chains.keys().any(|c| c.starts_with(CHAIN_PREFIX)) || rules.any(|r| leads_to(r).is_some())
        })
    }

    /// What the kernel does with packets on their way through that no rule is about.
    pub fn forward_policy(&self) -> Option<&str> {
        let filter = self.tables.get(&TableName::Filter)?;
        filter.policies.get("FORWARD").map(String::as_str)
    }

    /// Whether the chains of a table are those of `wanted`, whatever a line's spelling: as many rules in each, hashes as
    /// they should be, and the same ways in. For an iptables that prints otherwise than the one that netd knows.
    pub fn looks_like(&self, table: TableName, wanted: &Chains) -> bool {
        let Some(seen) = self.tables.get(&table) else {
            return wanted.ours.is_empty();
        };
        let ours: BTreeSet<&String> = seen.chains.keys().filter(|c| c.starts_with(CHAIN_PREFIX)).collect();
        ours == wanted.ours.keys().collect()
            && wanted.ours.iter().all(|(name, rules)| {
                let held = &seen.chains[name];
                let hash = |r: &[String]| r.last().and_then(|r| comment(r)).map(str::to_owned);
                held.len() == rules.len() && hash(held) == hash(rules)
            })
            && seen.jumps_are(wanted)
    }
}

impl Table {
    fn jumps(&self) -> impl Iterator<Item = (&str, &str)> {
        let foreign = self.chains.iter().filter(|(c, _)| !c.starts_with(CHAIN_PREFIX));
        foreign.flat_map(|(c, rules)| rules.iter().filter_map(|r| leads_to(r)).map(|to| (c.as_str(), to)))
    }

    fn jumps_are(&self, wanted: &Chains) -> bool {
        let seen: Vec<(&str, &str)> = self.jumps().collect();
        let wanted: Vec<(&str, &str)> = wanted.jumps.iter().map(|(c, to)| (*c, to.as_str())).collect();
        seen == wanted
    }

    /// Chains under our names that netd did not make: there are rules in them, and none bears our mark. An empty one is
    /// what somebody's `iptables -F` left of ours.
    fn foreign(&self) -> impl Iterator<Item = (&String, &String)> {
        let named = self.chains.iter().filter(|(c, _)| c.starts_with(CHAIN_PREFIX));
        named.filter_map(|(chain, rules)| {
            let ours = rules.iter().filter_map(|r| comment(r)).any(is_ours);
            Some((chain, rules.first().filter(|_| !ours)?))
        })
    }

    /// Whether a rule that is not in one of our chains, nor made by us, leads into a chain of ours.
    fn is_used_by_others(&self, chain: &str) -> bool {
        let foreign = self.chains.iter().filter(|(c, _)| !c.starts_with(CHAIN_PREFIX));
        let mut rules = foreign.flat_map(|(_, rules)| rules).filter(|r| leads_to(r).is_none());
        rules.any(|r| target(r) == Some(chain))
    }
}

/// The comment of a rule.
fn comment(rule: &str) -> Option<&str> {
    let (_, rest) = rule.split_once("--comment ")?;
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split_whitespace().next(),
    }
}

/// Where a rule leads.
fn target(rule: &str) -> Option<&str> {
    let at = rule.rfind(" -j ").or_else(|| rule.rfind(" -g "))?;
    rule.get(at + 4..)?.split_whitespace().next()
}

/// Where a rule of the kernel's chains leads, when it is one that netd made.
fn leads_to(rule: &str) -> Option<&str> {
    let to = target(rule)?;
    (comment(rule) == Some(JUMP_COMMENT) && to.starts_with(CHAIN_PREFIX)).then_some(to)
}

/// The runs that make one family's tables hold what is wanted there, and nothing more of ours; none: they do.
pub fn change(
    family: Family,
    saved: &Saved,
    wanted: &BTreeMap<(TableName, Family), Chains>,
) -> Result<Vec<Run>, Foreign> {
    let nothing = (Table::default(), Chains::default());
    let mut out = Vec::new();
    // Who may not pass comes before what leads there.
    for table in [TableName::Filter, TableName::Raw, TableName::Mangle, TableName::Nat] {
        let seen = saved.tables.get(&table).unwrap_or(&nothing.0);
        let wanted = wanted.get(&(table, family)).unwrap_or(&nothing.1);
        if let Some((chain, rule)) = seen.foreign().next() {
            return Err(Foreign {
                family,
                table,
                chain: chain.clone(),
                rule: rule.clone(),
            });
        }
        let input = run(table, seen, wanted);
        out.extend(input.map(|input| Run { family, table, input }));
    }
    Ok(out)
}

/// The runs that leave nothing of ours in one family's tables. Chains that others made under our names stay.
pub fn removal(family: Family, saved: &Saved) -> Vec<Run> {
    let mut saved = saved.clone();
    for table in saved.tables.values_mut() {
        let foreign: Vec<String> = table.foreign().map(|(c, _)| c.clone()).collect();
        table.chains.retain(|c, _| !foreign.contains(c));
    }
    change(family, &saved, &BTreeMap::new()).unwrap_or_default()
}

fn run(table: TableName, seen: &Table, wanted: &Chains) -> Option<String> {
    let ours = || seen.chains.iter().filter(|(c, _)| c.starts_with(CHAIN_PREFIX));
    // A chain that others lead to cannot go; it stays as an empty one.
    let (kept, stale): (Vec<_>, Vec<_>) = ours()
        .filter(|(c, _)| !wanted.ours.contains_key(*c))
        .partition(|(c, _)| seen.is_used_by_others(c));
    let kept = kept.into_iter().filter(|(_, rules)| !rules.is_empty());
    let emptied: Vec<&String> = stale.iter().copied().chain(kept).map(|(c, _)| c).collect();
    // With thousands of services a change is about a few chains: the others stay as they are.
    let differ = wanted
        .ours
        .iter()
        .filter(|(c, rules)| seen.chains.get(*c) != Some(*rules));
    let differ: Vec<(&String, &Vec<String>)> = differ.collect();
    if differ.is_empty() && emptied.is_empty() && seen.jumps_are(wanted) {
        return None;
    }
    let mut out = format!("*{table}\n");
    // Naming a chain makes it, or empties it.
    for name in differ.iter().map(|(c, _)| *c).chain(emptied) {
        let _ = writeln!(out, ":{name} - [0:0]");
    }
    if !seen.jumps_are(wanted) {
        for (from, to) in seen.jumps() {
            let _ = writeln!(out, "-D {from} {}", jump(to));
        }
        for (from, to) in &wanted.jumps {
            let _ = writeln!(out, "-I {from} 1 {}", jump(to));
        }
    }
    for (name, rules) in differ {
        for rule in rules {
            let _ = writeln!(out, "-A {name} {rule}");
        }
    }
    for (name, _) in &stale {
        let _ = writeln!(out, "-X {name}");
    }
    out.push_str("COMMIT\n");
    Some(out)
}
