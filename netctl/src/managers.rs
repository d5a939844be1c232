//! Who manages: promote, demote, hand over, and how the managers stand.

use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use model::{
    ApiError, Code, NodeId,
    api::{Changed, MemberView, QuorumView, RoleAnswer, RoleChange, Transfer, TransferAnswer, Vote},
    intent::Role,
};
use tokio::time::{Instant, sleep};

use crate::{
    Run,
    cli::{Context, ListArgs, WaitArgs, duration},
    node::{health_cell, role_word},
    output::{Cell, Column, Format, Table, Tone, cell, column, maybe, stderr, wide},
    progress::Progress,
    wait,
};

/// Between two looks at the members.
pub(crate) const LOOK: Duration = Duration::from_millis(150);

#[derive(Debug, Clone, Args)]
pub(crate) struct Promote {
    /// Ids (n2) or host names.
    #[arg(required = true)]
    nodes: Vec<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Demote {
    /// Ids (n2) or host names.
    #[arg(required = true)]
    nodes: Vec<String>,
    /// Also if too few of the managers that would be left can be reached: then nothing can be changed any more until they
    /// are back, or the cluster is begun anew from one of them (netctl cluster init --force-new).
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Remove {
    /// Ids (n2) or host names.
    #[arg(required = true)]
    nodes: Vec<String>,
    /// Also a node that is alive: it is refused everywhere from then on, and its tasks are placed elsewhere.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TransferArgs {
    /// The manager that is to lead (n2, or its host name); default: the one that has most of the log.
    node: Option<String>,
    /// How long to wait for netd.
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
}

/// A node as part of a path.
pub(crate) fn in_path(node: &str) -> Result<&str, ApiError> {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !node.is_empty() && node.chars().all(ok) {
        true => Ok(node),
        false => Err(ApiError::new(
            Code::Invalid,
            format!("{node:?} is neither a node id nor a host name"),
            "netctl node ls",
        )),
    }
}

async fn change(cx: &Context, node: &str, role: Role, force: bool) -> Result<RoleAnswer, ApiError> {
    let path = format!("/v1/nodes/{}/role", in_path(node)?);
    cx.client.post(&path, &RoleChange { role, force }).await
}

pub(crate) async fn promote(cx: &Context, args: Promote) -> Run {
    let mut progress = Progress::new(cx.out);
    let mut answers = Vec::new();
    for node in &args.nodes {
        progress.say(&format!("promoting {node}"));
        answers.push(change(cx, node, Role::Manager, false).await?);
    }
    if !args.wait.detach {
        let ids = answers.iter().map(|a| a.node).collect();
        voters(cx, ids, args.wait.timeout, &mut progress).await?;
    }
    told(cx, &answers, "a manager", !args.wait.detach)
}

/// Waits until nodes vote.
async fn voters(
    cx: &Context,
    mut ids: BTreeSet<NodeId>,
    timeout: Duration,
    progress: &mut Progress,
) -> Result<(), ApiError> {
    let until = Instant::now() + timeout;
    loop {
        let lag = match cx.client.get::<Vec<MemberView>>("/v1/cluster/members").await {
            Ok(members) => {
                for m in members.iter().filter(|m| m.vote == Some(Vote::Voter)) {
                    ids.remove(&m.id);
                }
                if ids.is_empty() {
                    return Ok(());
                }
                let lag = members.iter().filter(|m| ids.contains(&m.id)).map(standing);
                lag.collect::<Vec<_>>().join("; ")
            }
            // A leader that changes is waited for.
            Err(e) if e.retryable => e.message,
            Err(e) => return Err(e),
        };
        progress.say(&lag);
        if Instant::now() >= until {
            return Err(ApiError::new(
                Code::NotConverged,
                format!(
                    "accepted, but after {} s not every new manager votes: {lag}",
                    timeout.as_secs()
                ),
                "netctl cluster members",
            ));
        }
        sleep(LOOK).await;
    }
}

/// How far a new manager is.
fn standing(m: &MemberView) -> String {
    let who = format!("{} ({})", m.id, m.hostname);
    let problem = m.problem.as_ref().map(|p| format!(": {p}")).unwrap_or_default();
    match m.vote {
        Some(Vote::Voter) => format!("{who} votes"),
        Some(Vote::Learner) => format!("{who} gets the log, {} entries so far", m.log_index.unwrap_or(0)),
        _ => format!("{who} is not heard yet{problem}"),
    }
}

pub(crate) async fn demote(cx: &Context, args: Demote) -> Run {
    let mut progress = Progress::new(cx.out);
    let mut answers = Vec::new();
    for node in &args.nodes {
        progress.say(&format!("demoting {node}"));
        answers.push(change(cx, node, Role::Worker, args.force).await?);
    }
    if !args.wait.detach
        && let Some(revision) = answers.iter().map(|a| a.revision).max()
    {
        wait::everywhere(cx, &args.wait, revision, &mut progress).await?;
    }
    told(cx, &answers, "a worker", !args.wait.detach)
}

fn told(cx: &Context, answers: &[RoleAnswer], what: &str, done: bool) -> Run {
    let lines: Vec<String> = answers
        .iter()
        .map(|a| match done {
            true => format!("{} is {what}", a.node),
            false => a.message.clone(),
        })
        .collect();
    let names: Vec<String> = answers.iter().map(|a| a.node.to_string()).collect();
    // The last one counts: a pair makes the number odd again.
    if let Some(w) = answers.last().and_then(|a| a.warning.as_ref()) {
        stderr(&format!("warning: {w}\n"));
    }
    cx.out.done(&lines.join("\n"), &names.join("\n"), &answers)
}

pub(crate) async fn remove(cx: &Context, args: Remove) -> Run {
    let mut progress = Progress::new(cx.out);
    let mut answers: Vec<Changed> = Vec::new();
    for node in &args.nodes {
        progress.say(&format!("removing {node}"));
        let path = format!("/v1/nodes/{}?force={}", in_path(node)?, args.force);
        answers.push(cx.client.delete(&path).await?);
    }
    if !args.wait.detach
        && let Some(revision) = answers.iter().map(|a| a.revision).max()
    {
        wait::everywhere(cx, &args.wait, revision, &mut progress).await?;
    }
    let lines: Vec<&str> = answers.iter().map(|a| a.message.as_str()).collect();
    cx.out.done(&lines.join("\n"), &args.nodes.join("\n"), &answers)
}

pub(crate) async fn transfer(cx: &Context, args: TransferArgs) -> Run {
    let mut progress = Progress::new(cx.out);
    progress.say("handing the lead over");
    let client = cx.client.clone().with_timeout(args.timeout);
    let answer: TransferAnswer = client.post("/v1/cluster/transfer", &Transfer { to: args.node }).await?;
    cx.out
        .done(&format!("{} leads", answer.leader), &answer.leader.to_string(), &answer)
}

pub(crate) async fn members(cx: &Context, list: &ListArgs) -> Run {
    let members: Vec<MemberView> = cx.client.get("/v1/cluster/members").await?;
    cx.out.table(&members_table(&members), &list.filter)?;
    if cx.out.format == Format::Table || cx.out.format == Format::Wide {
        // Where no manager can be asked the table alone is what there is.
        if let Ok(q) = cx.client.get::<QuorumView>("/v1/cluster/quorum").await {
            stderr(&quorum_lines(&q));
        }
    }
    Ok(())
}

/// `3 managers, 2 must agree, 3 are reached: 1 may fail`.
pub(crate) fn quorum_lines(q: &QuorumView) -> String {
    let managers = match q.voters {
        1 => "1 manager".to_owned(),
        n => format!("{n} managers"),
    };
    let learners = match q.learners {
        0 => String::new(),
        n => format!(" and {n} that will vote"),
    };
    let mut text = format!(
        "{managers}{learners}; quorum {}, reached {}, {} more may fail; term {}\n",
        q.quorum, q.reachable, q.tolerated, q.term
    );
    if let Some(p) = &q.problem {
        text.push_str(&format!("problem: {p}\n"));
    }
    if let Some(w) = &q.warning {
        text.push_str(&format!("warning: {w}\n"));
    }
    text
}

const MEMBERS: &[Column] = &[
    column("ID"),
    column("HOSTNAME"),
    column("ROLE"),
    column("HEALTH"),
    column("ADDRESS"),
    column("RAFT"),
    column("TERM"),
    column("LOG"),
    column("REACHED"),
    column("RTT"),
    wide("APPLIED"),
    wide("PROBLEM"),
];

pub(crate) fn members_table(members: &[MemberView]) -> Table {
    let mut table = Table::new(MEMBERS);
    for m in members {
        let raft = match (m.leader, m.vote) {
            (true, _) => "leader",
            (false, Some(Vote::Voter)) => "voter",
            (false, Some(Vote::Learner)) => "learner",
            (false, Some(Vote::None)) => "waiting",
            (false, None) => "",
        };
        let reached = match m.reachable {
            Some(true) => Cell::toned("yes", Tone::Good),
            Some(false) => Cell::toned("no", Tone::Bad),
            None => cell(""),
        };
        let cells = vec![
            cell(m.id),
            cell(&m.hostname),
            cell(role_word(m.role)),
            health_cell(m.health),
            maybe(m.addr.as_ref()),
            cell(raft),
            maybe(m.term),
            maybe(m.log_index),
            reached,
            maybe(m.round_trip_us.map(trip)),
            maybe(m.applied),
            Cell::toned(m.problem.clone().unwrap_or_default(), Tone::Bad),
        ];
        table.row(m.id, cells, m);
    }
    table
}

/// `0.3 ms`, `151 ms`.
fn trip(us: u64) -> String {
    match us {
        0..10_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => format!("{} ms", us / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn members() {
        insta::assert_snapshot!(fixture::show(&members_table(&fixture::members())));
    }

    #[test]
    fn what_may_fail_is_said() {
        let q = QuorumView {
            voters: 4,
            learners: 1,
            quorum: 3,
            reachable: 3,
            tolerated: 0,
            leader: Some(NodeId(1)),
            term: 7,
            problem: None,
            warning: Some("4 managers bear 1 failures".into()),
        };
        assert_eq!(
            quorum_lines(&q),
            "4 managers and 1 that will vote; quorum 3, reached 3, 0 more may fail; term 7\nwarning: 4 managers bear 1 failures\n"
        );
    }

    #[test]
    fn trips() {
        assert_eq!((trip(340), trip(151_000)), ("0.3 ms".into(), "151 ms".into()));
    }
}
