//! What people say of nodes, and what nodes say of their machines.

use model::{
    NodeId,
    intent::{Availability, Machine},
    spec::Lb,
};

use super::{Applied, NodeUpdate, Refusal, State};

/// Most labels of one node.
const MAX_LABELS: usize = 128;
/// Longest name and value of a label, octets.
const MAX_LABEL: usize = 253;
/// Longest word of a machine, octets.
const MAX_WORD: usize = 64;

impl State {
    pub(super) fn update_node(&mut self, index: u64, id: NodeId, update: &NodeUpdate) -> Result<Applied, Refusal> {
        let old = self.node(id)?;
        let mut new = old.clone();
        new.availability = update.availability.unwrap_or(new.availability);
        new.max_tasks = update.max_tasks.unwrap_or(new.max_tasks);
        for (key, value) in &update.labels {
            check_label(key, value.as_deref())?;
            match value {
                Some(value) => new.labels.insert(key.clone(), value.clone()),
                None => new.labels.remove(key),
            };
        }
        if new.labels.len() > MAX_LABELS {
            return Err(Refusal::invalid(
                format!("{id} would have {} labels, more than {MAX_LABELS}", new.labels.len()),
                format!("netctl node label {id} NAME- takes one away"),
            ));
        }
        if new == *old {
            return Ok(Applied::Unchanged);
        }
        self.put_node(index, id, new);
        Ok(Applied::Done)
    }

    pub(super) fn set_availability(
        &mut self,
        index: u64,
        id: NodeId,
        availability: Availability,
    ) -> Result<Applied, Refusal> {
        let update = NodeUpdate {
            availability: Some(availability),
            ..NodeUpdate::default()
        };
        self.update_node(index, id, &update)
    }

    pub(super) fn set_machine(&mut self, index: u64, id: NodeId, machine: &Machine) -> Result<Applied, Refusal> {
        let old = self.node(id)?;
        for word in [&machine.os, &machine.arch] {
            if word.len() > MAX_WORD || word.chars().any(char::is_control) {
                return Err(Refusal::invalid(
                    format!("{id} tells an odd name of its machine"),
                    "the same version of netd on all nodes",
                ));
            }
        }
        if old.machine == *machine {
            return Ok(Applied::Unchanged);
        }
        let mut new = old.clone();
        new.machine = machine.clone();
        self.put_node(index, id, new);
        Ok(Applied::Done)
    }

    /// Replaces what is known of a node. What it may no longer keep moves, what had no place may go there.
    fn put_node(&mut self, index: u64, id: NodeId, new: model::intent::Node) {
        if let Some(n) = self.change(index).nodes.get_mut(&id) {
            *n = new;
        }
        self.place_around(index, id);
    }
}

fn check_label(key: &str, value: Option<&str>) -> Result<(), Refusal> {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if key.is_empty() || key.len() > MAX_LABEL || !key.chars().all(ok) {
        return Err(Refusal::invalid(
            format!("{key:?} is no name of a label: letters, digits and . _ - / alone"),
            "netctl node label NODE zone=a",
        ));
    }
    if value.is_some_and(|v| v.len() > MAX_LABEL || v.chars().any(char::is_control)) {
        return Err(Refusal::invalid(
            format!("the value of the label {key} is longer than {MAX_LABEL} octets or has control characters"),
            format!("netctl node label NODE {key}=a"),
        ));
    }
    if key == Lb::WEIGHT && value.is_some_and(|v| v.parse::<u16>().is_err()) {
        return Err(Refusal::invalid(
            format!(
                "the label {key} is the weight of a node's tasks in balancing, a number from 0 to {}",
                Lb::MAX_WEIGHT
            ),
            format!("netctl node label NODE {key}=2"),
        ));
    }
    Ok(())
}
