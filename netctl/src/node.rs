//! `netctl node ...`

use clap::Subcommand;
use model::{
    ApiError, Code,
    api::{NodeHealth, NodeView, TaskView},
    intent::{Availability, Role},
    row::Datapath,
};

use crate::{
    Run, availability,
    cli::{Context, ListArgs},
    managers,
    output::{Cell, Column, Table, Tone, cell, column, maybe, wide},
    service::tasks_table,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the nodes as this one sees them; the asterisk marks this one.
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  netctl node ls\n  netctl node ls --filter health=down -q"
    )]
    Ls(ListArgs),
    /// Show all about a node, as JSON.
    #[command(after_help = "Example:\n  netctl node inspect n2")]
    Inspect {
        /// Id (n2) or host name.
        node: String,
    },
    /// Change whether nodes are given tasks, how many, and their labels.
    #[command(
        after_help = "Examples:\n  netctl node update n2 --availability drain\n  netctl node update n2 n3 --max-tasks 50 --label-add zone=a"
    )]
    Update(availability::Update),
    /// Set labels of a node, or take them away; tasks that may not stay there any more move.
    #[command(after_help = "Examples:\n  netctl node label n2 zone=a disk=ssd\n  netctl node label n2 zone-")]
    Label(availability::Labels),
    /// Move all tasks off nodes: each is ready elsewhere before it ends there.
    #[command(after_help = "Example:\n  netctl node drain n2")]
    Drain(availability::Nodes),
    /// Give nodes no new tasks; what runs there goes on.
    #[command(after_help = "Example:\n  netctl node pause n2")]
    Pause(availability::Nodes),
    /// Give nodes tasks again.
    #[command(after_help = "Example:\n  netctl node activate n2")]
    Activate(availability::Nodes),
    /// List the tasks of a node, and what became of earlier ones.
    #[command(after_help = "Examples:\n  netctl node ps n2\n  netctl node ps n2 --filter wanted=yes")]
    Ps {
        /// Id (n2) or host name.
        node: String,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Make managers of nodes: each gets the log first, then a vote.
    #[command(after_help = "Example:\n  netctl node promote n2 n3")]
    Promote(managers::Promote),
    /// Make workers of managers.
    #[command(after_help = "Example:\n  netctl node demote n3")]
    Demote(managers::Demote),
    /// Take nodes out of the cluster that will not come back.
    #[command(
        after_help = "Example:\n  netctl node rm n3\n\nA manager is demoted first. A node that is alive leaves by itself: netctl cluster leave."
    )]
    Rm(managers::Remove),
}

pub(crate) async fn run(cx: &Context, verb: Verb) -> Run {
    match verb {
        Verb::Ls(list) => {
            let nodes: Vec<NodeView> = cx.client.get("/v1/nodes").await?;
            cx.out.table(&table(&nodes), &list.filter)
        }
        Verb::Update(args) => availability::update(cx, args).await,
        Verb::Label(args) => availability::label(cx, args).await,
        Verb::Drain(args) => availability::set(cx, args, Availability::Drain).await,
        Verb::Pause(args) => availability::set(cx, args, Availability::Pause).await,
        Verb::Activate(args) => availability::set(cx, args, Availability::Active).await,
        Verb::Promote(args) => managers::promote(cx, args).await,
        Verb::Demote(args) => managers::demote(cx, args).await,
        Verb::Rm(args) => managers::remove(cx, args).await,
        Verb::Ps { node, list } => {
            sound(&node)?;
            let tasks: Vec<TaskView> = cx.client.get(&format!("/v1/nodes/{node}/tasks")).await?;
            cx.out.table(&tasks_table(&tasks), &list.filter)
        }
        Verb::Inspect { node } => {
            sound(&node)?;
            let view: NodeView = cx.client.get(&format!("/v1/nodes/{node}")).await?;
            cx.out.one(&view.id.to_string(), &view)
        }
    }
}

/// It becomes part of a path.
fn sound(node: &str) -> Run {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !node.is_empty() && node.chars().all(ok) {
        true => Ok(()),
        false => Err(ApiError::new(
            Code::Invalid,
            format!("{node:?} is neither a node id nor a host name"),
            "netctl node ls",
        )),
    }
}

const COLUMNS: &[Column] = &[
    column("ID"),
    column("HOSTNAME"),
    column("ROLE"),
    column("HEALTH"),
    column("AVAILABILITY"),
    column("ADDRESS"),
    column("TASKS"),
    column("APPLIED"),
    wide("DATAPATH"),
    wide("VERSION"),
    wide("PROBLEMS"),
];

/// The table of nodes, also on the status screen.
pub(crate) fn table(nodes: &[NodeView]) -> Table {
    let mut table = Table::new(COLUMNS);
    for n in nodes {
        let mark = if n.me { "*" } else { "" };
        let role = match (n.role, n.leader) {
            (_, true) => "leader",
            (role, false) => role_word(role),
        };
        let cells = vec![
            cell(format!("{}{mark}", n.id)),
            cell(&n.hostname),
            cell(role),
            health_cell(n.health),
            cell(availability_word(n.availability)),
            maybe(n.addr.as_ref()),
            cell(n.tasks),
            maybe(n.applied),
            cell(n.datapath.map_or("", datapath_word)),
            maybe(n.version.as_ref()),
            Cell::toned(n.problems.join("; "), Tone::Bad),
        ];
        table.row(n.id, cells, n);
    }
    table
}

/// A node's health in words.
pub(crate) fn health_cell(health: NodeHealth) -> Cell {
    match health {
        NodeHealth::Ready => Cell::toned("ready", Tone::Good),
        NodeHealth::DaemonDown => Cell::toned("daemon-down", Tone::Warn),
        NodeHealth::Down => Cell::toned("down", Tone::Bad),
        NodeHealth::Unknown => Cell::toned("unknown", Tone::Warn),
    }
}

pub(crate) fn role_word(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager",
        Role::Worker => "worker",
    }
}

pub(crate) fn availability_word(a: Availability) -> &'static str {
    match a {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

fn datapath_word(d: Datapath) -> &'static str {
    match d {
        Datapath::Ebpf => "ebpf",
        Datapath::Ipvs => "ipvs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn nodes() {
        insta::assert_snapshot!(fixture::show(&table(&fixture::nodes())));
    }
}
