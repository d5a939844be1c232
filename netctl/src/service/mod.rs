//! `netctl service ...`

mod create;
mod flags;
mod planned;
mod publish;
mod update;

use std::str::FromStr;

use clap::Subcommand;
use model::{
    Name, PortSpec,
    api::{Changed, Preview, Scale, ServiceView, TaskState, TaskView},
    intent::{RolloutState, Service},
};

use crate::{
    Run,
    cli::{Context, ListArgs, WaitArgs},
    logs,
    output::{Cell, Column, Table, Tone, cell, column, maybe, wide},
    progress::Progress,
    wait,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a service: one name and one virtual address for its tasks.
    #[command(
        after_help = "Examples:\n  netctl service create web --network app --replicas 2 --publish 80:8080 -- ./server --port 8080\n  netctl service create db --network app       endpoints are attached with netctl endpoint add --service db"
    )]
    Create(Box<create::Create>),
    /// List the services.
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  netctl service ls\n  netctl service ls --filter networks=app -o wide"
    )]
    Ls(ListArgs),
    /// List the tasks of a service: where each runs, and what became of earlier ones.
    #[command(after_help = "Examples:\n  netctl service ps web\n  netctl service ps web --filter wanted=yes")]
    Ps {
        /// Service.
        name: Name,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show what the tasks of a service have said, on all nodes.
    #[command(
        after_help = "Examples:\n  netctl service logs web\n  netctl service logs -f --tail 20 web\n  netctl service logs web -q       the lines alone"
    )]
    Logs {
        #[command(flatten)]
        args: logs::LogArgs,
        /// Service.
        name: Name,
    },
    /// Show all about a service, as JSON.
    #[command(after_help = "Example:\n  netctl service inspect web")]
    Inspect {
        /// Service.
        name: Name,
    },
    /// Change a service: what is not named stays as it is. Tasks that must be replaced are, some at a time.
    #[command(
        after_help = "Examples:\n  netctl service update web --env-add LEVEL=debug\n  netctl service update web --update-parallelism 2 --update-order start-first -- ./server-2 --port 8080\n  netctl service update web --update-failure-action rollback --publish-add 443:8443"
    )]
    Update(Box<update::Update>),
    /// Go back to what a service was before its last change.
    #[command(after_help = "Example:\n  netctl service rollback web")]
    Rollback(update::Rollback),
    /// Change how many tasks a service has.
    #[command(after_help = "Example:\n  netctl service scale web=5")]
    Scale {
        /// Service and number.
        #[arg(required = true, value_name = "NAME=N")]
        targets: Vec<ScaleTo>,
        /// Show where the tasks would be, and change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Move running tasks to where they would be if all were placed anew, some at most.
    #[command(
        after_help = "Example:\n  netctl service rebalance web --budget 5 --dry-run\n  netctl service rebalance web --budget 5\n\nA node that joins is given new tasks, and none that run: this moves some."
    )]
    Rebalance(planned::RebalanceArgs),
    /// Remove a service; its tasks are drained and stopped.
    #[command(visible_alias = "remove", after_help = "Example:\n  netctl service rm web")]
    Rm {
        /// Service.
        name: Name,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Make a port answer on every node.
    #[command(
        override_usage = "netctl service publish [OPTIONS] [SERVICE] PORT",
        after_help = "Examples:\n  netctl service publish 80            the service whose tasks listen on 80, or the only one\n  netctl service publish web 80:8080\n  netctl service publish dns 53/udp\n  netctl service publish web auto:80   a free port of 30000-32767, kept over updates\n  netctl service publish web 192.0.2.1:80:8080\n  netctl service publish web 80 --mode host"
    )]
    Publish(publish::Ports),
    /// Take a published port away.
    #[command(
        override_usage = "netctl service unpublish [OPTIONS] [SERVICE] PORT",
        after_help = "Examples:\n  netctl service unpublish 80\n  netctl service unpublish dns 53/udp"
    )]
    Unpublish(publish::Ports),
}

/// `web=5`.
#[derive(Debug, Clone)]
pub(crate) struct ScaleTo {
    name: Name,
    replicas: u32,
}

impl FromStr for ScaleTo {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (name, number) = s
            .split_once('=')
            .ok_or_else(|| format!("{s:?} is not NAME=N; try: web=5"))?;
        let name: Name = name.parse().map_err(|e: model::BadValue| e.to_string())?;
        let replicas = number
            .parse()
            .ok()
            .filter(|n| *n <= model::ServiceSpec::MAX_REPLICAS)
            .ok_or_else(|| format!("{number:?} is not a number from 0 to 1000000; try: {name}=5"))?;
        Ok(ScaleTo { name, replicas })
    }
}

pub(crate) async fn run(cx: &Context, verb: Verb) -> Run {
    match verb {
        Verb::Create(args) => create::run(cx, *args).await,
        Verb::Ls(list) => {
            let services: Vec<ServiceView> = cx.client.get("/v1/services").await?;
            cx.out.table(&table(&services), &list.filter)
        }
        Verb::Ps { name, list } => {
            let tasks: Vec<TaskView> = cx.client.get(&format!("/v1/services/{name}/tasks")).await?;
            cx.out.table(&tasks_table(&tasks), &list.filter)
        }
        Verb::Logs { args, name } => logs::run(cx, &format!("/v1/services/{name}/logs"), &args).await,
        Verb::Inspect { name } => {
            let view: ServiceView = cx.client.get(&format!("/v1/services/{name}")).await?;
            cx.out.one(view.name.as_str(), &view)
        }
        Verb::Update(args) => update::update(cx, *args).await,
        Verb::Rollback(args) => update::rollback(cx, args).await,
        Verb::Scale {
            targets, dry_run: true, ..
        } => {
            for t in &targets {
                planned::show(cx, &t.name, &Preview::Replicas(t.replicas)).await?;
            }
            Ok(())
        }
        Verb::Scale { targets, wait, .. } => scale(cx, &targets, &wait).await,
        Verb::Rebalance(args) => planned::rebalance(cx, args).await,
        Verb::Rm { name, wait } => {
            let changed: Changed = cx.client.delete(&format!("/v1/services/{name}")).await?;
            if !wait.detach {
                let mut progress = Progress::new(cx.out);
                wait::everywhere(cx, &wait, changed.revision, &mut progress).await?;
            }
            cx.out.done(&changed.message, name.as_str(), &changed)
        }
        Verb::Publish(ports) => publish::publish(cx, ports).await,
        Verb::Unpublish(ports) => publish::unpublish(cx, ports).await,
    }
}

/// All are asked for before any is waited for: they happen side by side.
async fn scale(cx: &Context, targets: &[ScaleTo], wait: &WaitArgs) -> Run {
    let mut changes = Vec::new();
    for t in targets {
        let body = Scale { replicas: t.replicas };
        let path = format!("/v1/services/{}/scale", t.name);
        changes.push(cx.client.post::<Changed>(&path, &body).await?);
    }
    for (t, changed) in targets.iter().zip(&changes) {
        settle(
            cx,
            wait,
            &t.name,
            changed,
            &format!("{} scaled to {}", t.name, t.replicas),
        )
        .await?;
    }
    Ok(())
}

/// Waits for a change of a service, then says what came of it.
async fn settle(cx: &Context, wait: &WaitArgs, name: &Name, changed: &Changed, done: &str) -> Run {
    settle_at(cx, wait, name, changed.revision, done, changed).await
}

/// The same, whatever the answer was.
async fn settle_at<T: serde::Serialize>(
    cx: &Context,
    wait: &WaitArgs,
    name: &Name,
    revision: u64,
    done: &str,
    changed: &T,
) -> Run {
    if wait.detach {
        return cx.out.done(
            &format!("{done}, not waited for (revision {revision})"),
            name.as_str(),
            changed,
        );
    }
    let mut progress = Progress::new(cx.out);
    wait::everywhere(cx, wait, revision, &mut progress).await?;
    let v = wait::service_ready(cx, wait, name, &mut progress).await?;
    drop(progress);
    let sentence = format!("{done} ({}/{} healthy)", v.ready, v.wanted);
    cx.out.done(&sentence, name.as_str(), changed)
}

/// A life stage in a word.
pub(crate) fn state_word(state: TaskState) -> &'static str {
    match state {
        TaskState::New => "new",
        TaskState::Assigned => "assigned",
        TaskState::Accepted => "accepted",
        TaskState::Preparing => "preparing",
        TaskState::Ready => "ready",
        TaskState::Starting => "starting",
        TaskState::Running => "running",
        TaskState::Complete => "complete",
        TaskState::Shutdown => "shutdown",
        TaskState::Failed => "failed",
        TaskState::Rejected => "rejected",
        TaskState::Orphaned => "orphaned",
    }
}

fn state_cell(state: TaskState) -> Cell {
    let tone = match state {
        TaskState::Running => Tone::Good,
        TaskState::Complete | TaskState::Shutdown => Tone::Plain,
        _ if state.is_failure() => Tone::Bad,
        _ => Tone::Warn,
    };
    Cell::toned(state_word(state), tone)
}

/// Published ports, sorted as numbers.
pub(crate) fn ports(service: &Service) -> Vec<PortSpec> {
    let mut ports: Vec<PortSpec> = service.ports.values().map(|p| p.spec).collect();
    ports.sort_unstable();
    ports
}

/// VIPs of a service, first network first.
pub(crate) fn vips(service: &Service) -> Vec<String> {
    let order = service.spec.networks.iter();
    order
        .filter_map(|n| service.vips.get(n))
        .flat_map(|v| [Some(v.v4.to_string()), v.v6.map(|a| a.to_string())])
        .flatten()
        .collect()
}

/// `2/2`, in the colour of what it means.
pub(crate) fn health_cell(view: &ServiceView) -> Cell {
    let v = wait::judge_service(view, &[]);
    let tone = match (v.ready, v.wanted) {
        (r, w) if r == w => Tone::Good,
        (0, _) => Tone::Bad,
        _ => Tone::Warn,
    };
    Cell::toned(format!("{}/{}", v.ready, v.wanted), tone)
}

/// How far a service's last change is, where that is of interest.
fn change_cell(service: &Service) -> Cell {
    let Some(r) = &service.rollout else {
        return cell("");
    };
    let (word, tone) = match r.state {
        RolloutState::Completed => ("", Tone::Plain),
        RolloutState::Updating => ("updating", Tone::Warn),
        RolloutState::Paused => ("update-paused", Tone::Bad),
        RolloutState::RollbackStarted => ("rolling-back", Tone::Warn),
        RolloutState::RollbackPaused => ("rollback-paused", Tone::Bad),
        RolloutState::RollbackCompleted => ("rolled-back", Tone::Warn),
    };
    Cell::toned(word, tone)
}

const COLUMNS: &[Column] = &[
    column("NAME"),
    column("HEALTHY"),
    column("VIPS"),
    column("PORTS"),
    column("NETWORKS"),
    column("CHANGE"),
    column("PROBLEM"),
    wide("COMMAND"),
];

fn table(services: &[ServiceView]) -> Table {
    let mut table = Table::new(COLUMNS);
    for s in services {
        let networks: Vec<&str> = s.service.spec.networks.iter().map(Name::as_str).collect();
        let ports: Vec<String> = ports(&s.service).iter().map(PortSpec::to_string).collect();
        let cells = vec![
            cell(&s.name),
            health_cell(s),
            cell(vips(&s.service).join(",")),
            cell(ports.join(",")),
            cell(networks.join(",")),
            change_cell(&s.service),
            Cell::toned(s.trouble().unwrap_or_default(), Tone::Bad),
            cell(s.service.spec.command.join(" ")),
        ];
        table.row(&s.name, cells, s);
    }
    table
}

const TASKS: &[Column] = &[
    column("TASK"),
    column("NODE"),
    column("WANTED"),
    column("STATE"),
    column("SINCE"),
    column("ADDRESSES"),
    column("MESSAGE"),
    wide("RESTARTS"),
    wide("GENERATION"),
    wide("HEALTH"),
    wide("PID"),
];

pub(crate) fn tasks_table(tasks: &[TaskView]) -> Table {
    let mut table = Table::new(TASKS);
    for t in tasks {
        let cells = vec![
            cell(&t.id),
            cell(format!("{} {}", t.node, t.hostname).trim_end()),
            cell(if t.desired { "yes" } else { "no" }),
            state_cell(t.state),
            cell(ago(t.since_s)),
            cell(t.addresses.join(",")),
            cell(&t.message),
            cell(t.restarts),
            cell(t.generation),
            health_word(t.health),
            maybe(t.pid),
        ];
        table.row(&t.id, cells, t);
    }
    table
}

fn health_word(health: Option<bool>) -> Cell {
    match health {
        Some(true) => Cell::toned("healthy", Tone::Good),
        Some(false) => Cell::toned("unhealthy", Tone::Bad),
        None => cell(""),
    }
}

/// `5s`, `3m`, `2h`, `4d`: the largest unit is enough for a column.
fn ago(s: u64) -> String {
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m", s / 60),
        3600..86_400 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn services() {
        insta::assert_snapshot!(fixture::show(&table(&fixture::services())));
    }

    #[test]
    fn tasks() {
        insta::assert_snapshot!(fixture::show(&tasks_table(&fixture::tasks())));
    }

    #[test]
    fn scale_targets() {
        let t: ScaleTo = "web=5".parse().unwrap();
        assert_eq!((t.name.as_str(), t.replicas), ("web", 5));
        for bad in ["web", "=5", "web=", "web=-1", "web=1000001", "w_b=1"] {
            assert!(bad.parse::<ScaleTo>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_of_time() {
        let texts = [0, 59, 60, 3600, 86_400 * 3].map(ago);
        assert_eq!(texts, ["0s", "59s", "1m", "1h", "3d"]);
    }
}
