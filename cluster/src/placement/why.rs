//! Why a slot has no place, for the user's eyes.

use super::{
    Plan, Request,
    filter::{Filter, Told},
};
use model::spec::Mode;

/// What a plan lacks: which filter excluded how many nodes, and what to try. `None`: nothing.
pub fn problem(plan: &Plan, ask: &Request<'_>) -> Option<String> {
    let nobody = ask.mode == Mode::Global && plan.wanted == 0;
    if plan.unplaced == 0 && !nobody {
        return None;
    }
    let mut text = match (ask.mode, nobody) {
        (_, true) => "no node may have a task".to_owned(),
        (Mode::Global, _) => format!("{} of {} nodes have no task", plan.unplaced, plan.wanted),
        (Mode::Replicated, _) => format!("{} of {} tasks have no node", plan.unplaced, plan.wanted),
    };
    for (at, (filter, nodes)) in plan.excluded.iter().enumerate() {
        let told = Told(*filter, ask);
        match at {
            0 => text.push_str(&format!(": {told} excluded {nodes}")),
            _ => text.push_str(&format!(", {told} {nodes}")),
        }
    }
    // What excluded most is most worth a change; of equals the first one.
    let most = plan.excluded.iter().rev().max_by_key(|(_, nodes)| *nodes);
    let hint = most.map_or("netctl node ls".to_owned(), |(filter, _)| hint(*filter, ask));
    Some(format!("{text}; try: {hint}"))
}

fn hint(filter: Filter, ask: &Request<'_>) -> String {
    let service = ask.service;
    match filter {
        Filter::Health => "netctl node ls".into(),
        Filter::Availability => "netctl node update NODE --availability active".into(),
        Filter::Avoid => format!("netctl service ps {service}, and netctl service logs {service}"),
        Filter::Constraint(at) => {
            let text = ask.spec.constraints.get(at).map_or("", String::as_str);
            match text.strip_prefix("node.labels.").and_then(|t| t.split_once("==")) {
                Some((key, value)) if !value.contains(['*', '?', '/']) => {
                    format!("netctl node label NODE {}={}", key.trim(), value.trim())
                }
                _ => "netctl node ls, and another --constraint".into(),
            }
        }
        Filter::Near(at) if ask.near.get(at).is_some_and(|o| !o.exists) => {
            let missing = ask.near.get(at).map_or(String::new(), |o| o.name.to_string());
            format!("netctl service create {missing}")
        }
        Filter::Near(_) | Filter::Apart(_) => "netctl node ls, or another --near or --apart".into(),
        Filter::HostPorts => "fewer tasks, more nodes, or a port of the mesh (--publish PORT)".into(),
        Filter::PerNode => format!("more nodes, or netctl service update {service} --max-per-node with more"),
        Filter::MaxTasks => "netctl node update NODE --max-tasks with more".into(),
        Filter::After(at) => match ask.after.get(at) {
            Some(o) if !o.exists => format!("netctl service create {}", o.name),
            Some(o) => format!("netctl service ps {}", o.name),
            None => "netctl service ls".into(),
        },
        Filter::Untold => "again when the nodes have told it; netctl node inspect NODE".into(),
        Filter::Cpu => "more nodes, or less with --reserve-cpu; netctl node inspect NODE shows what is free".into(),
        Filter::Memory => {
            "more nodes, or less with --reserve-memory; netctl node inspect NODE shows what is free".into()
        }
    }
}
