//! `netctl task ...`

use clap::Subcommand;
use model::{
    EndpointId,
    api::{MAX_TASKS, TaskView},
};

use crate::{
    Run,
    cli::{Context, ListArgs},
    logs, output,
    service::tasks_table,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the tasks of all services, and what became of earlier ones.
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  netctl task ls\n  netctl task ls --filter state=failed\n  netctl task ls --filter wanted=yes -q"
    )]
    Ls(ListArgs),
    /// Show what a task and those before it in its slot have said.
    #[command(after_help = "Examples:\n  netctl task logs web.1\n  netctl task logs -f --tail 20 web.1")]
    Logs {
        #[command(flatten)]
        args: logs::LogArgs,
        /// Service and slot, e.g. web.1.
        task: EndpointId,
    },
    /// Show all about a task and those before it in its slot, as JSON.
    #[command(after_help = "Example:\n  netctl task inspect web.1")]
    Inspect {
        /// Service and slot, e.g. web.1.
        task: EndpointId,
    },
}

pub(crate) async fn run(cx: &Context, verb: Verb) -> Run {
    match verb {
        Verb::Ls(list) => {
            let tasks: Vec<TaskView> = cx.client.get("/v1/tasks").await?;
            if tasks.len() >= MAX_TASKS {
                output::stderr(&format!(
                    "note: the first {MAX_TASKS} are shown; all of a service: netctl service ps NAME\n"
                ));
            }
            cx.out.table(&tasks_table(&tasks), &list.filter)
        }
        Verb::Logs { args, task } => logs::run(cx, &format!("/v1/tasks/{task}/logs"), &args).await,
        Verb::Inspect { task } => {
            let tasks: Vec<TaskView> = cx.client.get(&format!("/v1/tasks/{task}")).await?;
            cx.out.one(task.as_str(), &tasks)
        }
    }
}
