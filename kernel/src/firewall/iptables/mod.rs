//! iptables-legacy: chains `NETD-*`.

mod lock;
pub(super) mod matches;
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
use super::{FirewallError, watch::Watch};

/// How often all is looked at again after a write.
const ATTEMPTS: usize = 4;

/// The chains of one namespace. Everything is for the calling thread's.
#[derive(Default)]
pub(super) struct Iptables {
    programs: Programs,
    /// Begun before the look that found everything as it should be.
    watch: Option<Watch>,
    /// What was wanted of a family, and how iptables printed it when it was there. Only where it prints otherwise than it
    /// was told: without this it would be told again and again.
    spelled: BTreeMap<Family, (Tables, Saved)>,
}

type Tables = BTreeMap<(TableName, Family), Chains>;

impl Iptables {
    pub(super) fn apply(&mut self, rules: &Rules) -> Result<bool, FirewallError> {
        let all = wanted::tables(rules);
        let used: BTreeSet<_> = all.keys().copied().filter(|(_, f)| speaks(*f)).collect();
        let mut written = false;
        for _ in 0..ATTEMPTS {
            let watch = Watch::poll(&used)?;
            let todo = self.look(&all, written)?;
            if todo.is_empty() {
                self.watch = Some(watch);
                return Ok(written);
            }
            written = true;
            self.programs.restore(&todo)?;
        }
        Err(FirewallError::Unsettled(ATTEMPTS))
    }

    /// What is to be done. A chain that is somebody else's, of whichever family, stops all of it before anything is written.
    fn look(&mut self, all: &Tables, written: bool) -> Result<Vec<wanted::Run>, FirewallError> {
        let mut todo = Vec::new();
        for family in [Family::V4, Family::V6] {
            // Nothing passes where the kernel does not speak a family.
            if !speaks(family) {
                continue;
            }
            let of_family = all.iter().filter(|((_, f), _)| *f == family);
            let tables: Tables = of_family.map(|(k, v)| (*k, v.clone())).collect();
            let saved = self.programs.save(family)?;
            let runs = wanted::change(family, &saved, &tables).map_err(foreign)?;
            let there = runs.iter().all(|run| {
                let none = Chains::default();
                saved.looks_like(run.table, tables.get(&(run.table, family)).unwrap_or(&none))
            });
            if runs.is_empty() {
                self.spelled.remove(&family);
            } else if there && (written || self.spelled.get(&family) == Some(&(tables.clone(), saved.clone()))) {
                self.spelled.insert(family, (tables, saved));
            } else {
                todo.extend(runs);
            }
        }
        Ok(todo)
    }

    pub(super) fn changed(&mut self) -> Result<bool, FirewallError> {
        self.watch.as_mut().map_or(Ok(false), Watch::changed)
    }

    pub(super) fn is_there(&mut self) -> Result<bool, FirewallError> {
        for family in [Family::V4, Family::V6].into_iter().filter(|f| speaks(*f)) {
            if self.programs.save(family)?.has_ours() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn remove(&mut self) -> Result<bool, FirewallError> {
        let mut written = false;
        for family in [Family::V4, Family::V6] {
            if !speaks(family) {
                continue;
            }
            let saved = self.programs.save(family)?;
            let runs = wanted::removal(family, &saved);
            self.programs.restore(&runs)?;
            written |= !runs.is_empty();
        }
        self.watch = None;
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

/// Whether the calling thread's namespace has the match for SCTP, in each family that the kernel speaks.
pub(super) fn matches_sctp() -> Result<bool, FirewallError> {
    for family in [Family::V4, Family::V6].into_iter().filter(|f| speaks(*f)) {
        if !matches::has(family, "sctp").map_err(FirewallError::Look)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn foreign(f: Foreign) -> FirewallError {
    FirewallError::ForeignChain {
        family: f.family,
        table: f.table,
        chain: f.chain,
        rule: f.rule,
    }
}
