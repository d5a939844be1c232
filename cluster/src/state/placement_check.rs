//! What is wrong with the placement that a service asks for.

use std::collections::BTreeSet;

use model::{Name, spec::PlacementSpec};

use super::{Refusal, State};
use crate::placement::expr::{BadExpr, Constraint, Key};

/// Most constraints of one service, and most services that it may be near, apart or after.
const MAX_CONSTRAINTS: usize = 64;
/// Most labels to spread over.
const MAX_SPREAD: usize = 8;

impl From<BadExpr> for Refusal {
    fn from(e: BadExpr) -> Refusal {
        Refusal::invalid(e.message, e.hint)
    }
}

impl State {
    pub(super) fn check_placement(&self, name: &Name, spec: &PlacementSpec) -> Result<(), Refusal> {
        let lists = [&spec.near, &spec.apart, &spec.after].map(Vec::len);
        if spec.constraints.len() > MAX_CONSTRAINTS || lists.iter().any(|n| *n > MAX_CONSTRAINTS) {
            return Err(Refusal::invalid(
                format!(
                    "a service may have {MAX_CONSTRAINTS} constraints at most, and as many of --near, --apart, --after"
                ),
                "fewer of them; one regular expression can stand for many values",
            ));
        }
        for text in &spec.constraints {
            Constraint::parse(text)?;
        }
        if spec.spread.len() > MAX_SPREAD {
            return Err(Refusal::invalid(
                format!("tasks can be spread over {MAX_SPREAD} labels at most"),
                "fewer --spread",
            ));
        }
        for key in &spec.spread {
            Key::parse(key)?;
        }
        if spec.max_per_node == Some(0) {
            return Err(Refusal::invalid(
                "0 tasks a node are no tasks at all",
                "--max-per-node 1, or netctl service scale to 0",
            ));
        }
        for (flag, names) in [("near", &spec.near), ("after", &spec.after)] {
            if names.contains(name) {
                return Err(Refusal::invalid(
                    format!("{name} cannot be {flag} itself: its first task would never be placed"),
                    format!("--{flag} with another service"),
                ));
            }
        }
        if let Some(apart) = spec.near.iter().find(|n| spec.apart.contains(n)) {
            return Err(Refusal::invalid(
                format!("{name} cannot be both near {apart} and apart from it"),
                "--near or --apart",
            ));
        }
        self.no_circle(name, spec)
    }

    /// Refuses services that all wait for each other.
    fn no_circle(&self, name: &Name, spec: &PlacementSpec) -> Result<(), Refusal> {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&Name> = spec.after.iter().collect();
        while let Some(one) = next.pop() {
            if one == name {
                let first = spec.after.iter().map(Name::to_string).collect::<Vec<_>>().join(", ");
                return Err(Refusal::invalid(
                    format!("{name} would be after {first}, and that after {name}: neither would ever be placed"),
                    "one of them without --after",
                ));
            }
            if seen.insert(one)
                && let Some(s) = self.intent.services.get(one)
            {
                next.extend(&s.spec.placement.after);
            }
        }
        Ok(())
    }
}
