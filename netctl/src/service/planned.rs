//! Placements that are only looked at (`--dry-run`), and `netctl service rebalance`.

use clap::Args;
use model::{
    Name,
    api::{PlacementView, Preview, Rebalance, Rebalanced},
    intent::SlotSet,
};

use super::settle_at;
use crate::{
    Run,
    cli::{Context, WaitArgs},
    output::{Cell, Column, Format, Table, Tone, cell, column, stderr},
};

#[derive(Debug, Args)]
pub(crate) struct RebalanceArgs {
    /// Service.
    name: Name,
    /// Most tasks to move: each is stopped on one node and started on another.
    #[arg(long, value_name = "N", default_value_t = 10)]
    budget: u32,
    /// Show what would move, and move nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(super) async fn rebalance(cx: &Context, args: RebalanceArgs) -> Run {
    if args.dry_run {
        return show(cx, &args.name, &Preview::Rebalance(args.budget)).await;
    }
    let path = format!("/v1/services/{}/rebalance", args.name);
    let answer: Rebalanced = cx.client.post(&path, &Rebalance { budget: args.budget }).await?;
    let done = match answer.moved {
        0 => format!("{} is balanced: nothing moves", args.name),
        1 => format!("{}: 1 task moves", args.name),
        n => format!("{}: {n} tasks move", args.name),
    };
    settle_at(cx, &args.wait, &args.name, answer.revision, &done, &answer).await
}

/// Shows what would come of a change.
pub(super) async fn show(cx: &Context, name: &Name, change: &Preview) -> Run {
    let view: PlacementView = cx.client.post(&format!("/v1/services/{name}/preview"), change).await?;
    match cx.out.format {
        Format::Json => return cx.out.one(name.as_str(), &view),
        _ => cx.out.table(&table(&view), &[])?,
    }
    let moved = match view.moved {
        0 => "no task would move".to_owned(),
        1 => "1 task would move".to_owned(),
        n => format!("{n} tasks would move"),
    };
    stderr(&format!("{moved}; nothing was changed\n"));
    if let Some(problem) = &view.problem {
        stderr(&format!("problem: {problem}\n"));
    }
    Ok(())
}

const COLUMNS: &[Column] = &[
    column("NODE"),
    column("HOSTNAME"),
    column("NOW"),
    column("THEN"),
    column("SLOTS"),
];

fn table(view: &PlacementView) -> Table {
    let mut table = Table::new(COLUMNS);
    for n in &view.nodes {
        let (now, then) = (n.before.len(), n.after.len());
        let tone = match then.cmp(&now) {
            std::cmp::Ordering::Greater => Tone::Good,
            std::cmp::Ordering::Less => Tone::Warn,
            std::cmp::Ordering::Equal => Tone::Plain,
        };
        let cells = vec![
            cell(n.node),
            cell(&n.hostname),
            cell(now),
            Cell::toned(then.to_string(), tone),
            cell(slots(&n.after)),
        ];
        table.row(n.node, cells, n);
    }
    table
}

/// `1-3,7`, at most eight ranges.
fn slots(set: &SlotSet) -> String {
    let range = |(a, b): &(u32, u32)| match a == b {
        true => a.to_string(),
        false => format!("{a}-{b}"),
    };
    let mut text: Vec<String> = set.0.iter().take(8).map(range).collect();
    if set.0.len() > 8 {
        text.push("..".into());
    }
    text.join(",")
}

#[cfg(test)]
mod tests {
    use model::{NodeId, api::PlacedOn};

    use super::*;
    use crate::fixture;

    #[test]
    fn a_preview() {
        let on = |node, hostname: &str, before: &[(u32, u32)], after: &[(u32, u32)]| PlacedOn {
            node: NodeId(node),
            hostname: hostname.into(),
            before: SlotSet(before.to_vec()),
            after: SlotSet(after.to_vec()),
        };
        let view = PlacementView {
            nodes: vec![
                on(1, "alpha", &[(1, 4)], &[(1, 2)]),
                on(2, "beta", &[(5, 5)], &[(5, 5)]),
                on(3, "gamma", &[], &[(3, 4), (7, 7)]),
            ],
            moved: 2,
            problem: None,
        };
        insta::assert_snapshot!(fixture::show(&table(&view)));
        let many: SlotSet = (1..=20).map(|n| n * 2).collect();
        assert_eq!(slots(&many), "2,4,6,8,10,12,14,16,..");
    }
}
