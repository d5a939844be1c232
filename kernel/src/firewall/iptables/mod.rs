//! iptables-legacy: chains `NETD-*`.

mod lock;
mod run;

use std::collections::{BTreeMap, BTreeSet};

use mesh::lower::ipvs::{
    Family,
    rules::{
        Rules, TableName,
        iptables::{self as wanted, Chains, Foreign, Saved},
    },
};

pub(super) use self::run::LOCK_SECONDS;
use self::run::{Programs, speaks};
use super::FirewallError;

/// The chains of one namespace. Everything is for the calling thread's.
#[derive(Debug, Default)]
pub(super) struct Iptables {
    programs: Programs,
    used: BTreeSet<(TableName, Family)>,
    /// What was wanted of a family, and how iptables printed it when it was there. Only where it prints otherwise than it
    /// was told: without this it would be told again and again.
    spelled: BTreeMap<Family, (Tables, Saved)>,
}

type Tables = BTreeMap<(TableName, Family), Chains>;

impl Iptables {
    /// Tables that have rules of ours since the last [`Iptables::apply`].
    pub(super) fn used(&self) -> &BTreeSet<(TableName, Family)> {
        &self.used
    }

    pub(super) fn apply(&mut self, rules: &Rules) -> Result<bool, FirewallError> {
        let all = wanted::tables(rules);
        let mut written = false;
        // A chain that is somebody else's, of whichever family, stops all of it before anything is written.
        let mut todo = Vec::new();
        for family in [Family::V4, Family::V6] {
            // Nothing passes where the kernel does not speak a family.
            if !speaks(family) {
                continue;
            }
            let tables: Tables = all
                .iter()
                .filter(|((_, f), _)| *f == family)
                .map(|(k, v)| (*k, v.clone()))
                .collect();
            let saved = self.programs.save(family)?;
            let runs = wanted::change(family, &saved, &tables).map_err(foreign)?;
            if runs.is_empty() || self.spelled.get(&family) == Some(&(tables.clone(), saved)) {
                continue;
            }
            todo.push((family, tables, runs));
        }
        for (family, tables, runs) in todo {
            written = true;
            for run in &runs {
                self.programs.restore(run)?;
            }
            let saved = self.programs.save(family)?;
            let again = wanted::change(family, &saved, &tables).map_err(foreign)?;
            let there = again.iter().all(|run| {
                let none = Chains::default();
                saved.looks_like(run.table, tables.get(&(run.table, family)).unwrap_or(&none))
            });
            self.spelled.remove(&family);
            if !again.is_empty() && there {
                self.spelled.insert(family, (tables, saved));
            }
        }
        self.used = all.into_keys().filter(|(_, f)| speaks(*f)).collect();
        Ok(written)
    }

    pub(super) fn remove(&mut self) -> Result<bool, FirewallError> {
        let mut written = false;
        for family in [Family::V4, Family::V6] {
            if !speaks(family) {
                continue;
            }
            let saved = self.programs.save(family)?;
            for run in wanted::removal(family, &saved) {
                self.programs.restore(&run)?;
                written = true;
            }
        }
        self.used.clear();
        self.spelled.clear();
        Ok(written)
    }

    /// Removes what is ours where anything is in iptables at all.
    pub(super) fn remove_if_used() -> Result<bool, FirewallError> {
        let lists = [
            "/proc/thread-self/net/ip_tables_names",
            "/proc/thread-self/net/ip6_tables_names",
        ];
        let used = |l: &str| std::fs::read_to_string(l).is_ok_and(|names| !names.trim().is_empty());
        if !lists.into_iter().any(used) {
            return Ok(false);
        }
        match Self::default().remove() {
            // Without its programs netd has made none.
            Err(FirewallError::NoTool { .. }) => Ok(false),
            other => other,
        }
    }

    #[cfg(test)]
    pub(super) fn with_lock(lock: std::path::PathBuf) -> Self {
        Iptables {
            programs: Programs { lock: Some(lock) },
            ..Iptables::default()
        }
    }
}

fn foreign(f: Foreign) -> FirewallError {
    FirewallError::ForeignChain {
        family: f.family,
        table: f.table,
        chain: f.chain,
        rule: f.rule,
    }
}
