//! What people say of nodes: whether they are given tasks, how many, and labels.

use std::collections::BTreeMap;

use clap::Args;
use model::{
    ApiError, Code,
    api::{Changed, NodeChange, NodeView, ServiceView},
    intent::Availability,
};

use crate::{
    Run,
    cli::{Context, WaitArgs},
    managers::in_path,
    progress::Progress,
    wait::{self, Patience},
};

/// `active`, `pause`, `drain`.
pub(crate) fn word(text: &str) -> Result<Availability, String> {
    match text {
        "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        _ => Err(format!(
            "{text:?} is none of active, pause and drain; try: --availability active"
        )),
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Update {
    /// Ids (n2) or host names.
    #[arg(required = true)]
    nodes: Vec<String>,
    /// active: it is given tasks; pause: no new ones; drain: none, what runs moves.
    #[arg(long, value_parser = word)]
    availability: Option<Availability>,
    /// Most tasks that may be placed on it; 0: no limit.
    #[arg(long, value_name = "N")]
    max_tasks: Option<u32>,
    /// Label to set; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    label_add: Vec<String>,
    /// Label to take away; may be repeated.
    #[arg(long, value_name = "NAME")]
    label_rm: Vec<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Labels {
    /// Id (n2) or host name.
    node: String,
    /// zone=a sets a label, zone- takes it away.
    #[arg(required = true, value_name = "NAME=VALUE|NAME-")]
    labels: Vec<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Nodes {
    /// Ids (n2) or host names.
    #[arg(required = true)]
    nodes: Vec<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

fn no_label(text: &str) -> ApiError {
    ApiError::new(
        Code::Invalid,
        format!("{text:?} neither sets a label nor takes one away"),
        "netctl node label NODE zone=a, or zone-",
    )
}

/// `zone=a` and `zone-`.
fn labels(words: &[String]) -> Result<BTreeMap<String, Option<String>>, ApiError> {
    let mut out = BTreeMap::new();
    for text in words {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.strip_suffix('-').ok_or_else(|| no_label(text))?, None),
        };
        if name.is_empty() {
            return Err(no_label(text));
        }
        if out.insert(name.to_owned(), value).is_some() {
            return Err(ApiError::new(
                Code::Invalid,
                format!("the label {name} is named twice"),
                format!("netctl node label NODE {text}"),
            ));
        }
    }
    Ok(out)
}

pub(crate) async fn update(cx: &Context, args: Update) -> Run {
    let words: Vec<String> = args
        .label_add
        .iter()
        .cloned()
        .chain(args.label_rm.iter().map(|l| format!("{l}-")))
        .collect();
    if let Some(bad) = args.label_add.iter().find(|l| !l.contains('=')) {
        return Err(no_label(bad));
    }
    let change = NodeChange {
        availability: args.availability,
        labels: labels(&words)?,
        max_tasks: args.max_tasks,
    };
    if change == NodeChange::default() {
        return Err(ApiError::new(
            Code::Invalid,
            "nothing is to change",
            "--availability, --max-tasks, --label-add or --label-rm",
        ));
    }
    make(cx, &args.nodes, &change, &args.wait).await
}

pub(crate) async fn label(cx: &Context, args: Labels) -> Run {
    let change = NodeChange {
        labels: labels(&args.labels)?,
        ..NodeChange::default()
    };
    make(cx, &[args.node], &change, &args.wait).await
}

pub(crate) async fn set(cx: &Context, args: Nodes, availability: Availability) -> Run {
    let change = NodeChange {
        availability: Some(availability),
        ..NodeChange::default()
    };
    make(cx, &args.nodes, &change, &args.wait).await
}

/// All are asked for before any is waited for: what is drained goes to none that is drained after it.
async fn make(cx: &Context, nodes: &[String], change: &NodeChange, args: &WaitArgs) -> Run {
    let mut answers: Vec<Changed> = Vec::new();
    for node in nodes {
        let path = format!("/v1/nodes/{}", in_path(node)?);
        answers.push(cx.client.post(&path, change).await?);
    }
    let drains = change.availability == Some(Availability::Drain) && !args.detach;
    if !args.detach {
        let revision = answers.iter().map(|a| a.revision).max().unwrap_or(0);
        let mut progress = Progress::new(cx.out);
        wait::everywhere(cx, args, revision, &mut progress).await?;
        if drains {
            empty(cx, nodes, args, &mut progress).await?;
        }
    }
    for (node, answer) in nodes.iter().zip(&answers) {
        let sentence = match drains {
            true => format!("{node} is drained: no task is left on it"),
            false => answer.message.clone(),
        };
        cx.out.done(&sentence, node, answer)?;
    }
    Ok(())
}

/// Waits until the nodes have no task; as long as they get fewer, there is time.
async fn empty(cx: &Context, nodes: &[String], args: &WaitArgs, progress: &mut Progress) -> Result<(), ApiError> {
    let mut patience = Patience::new(args.timeout);
    let mut fewest = u32::MAX;
    loop {
        let mut left = Vec::new();
        let mut count = 0;
        let mut unseen = None;
        for node in nodes {
            match cx.client.get::<NodeView>(&format!("/v1/nodes/{node}")).await {
                Ok(v) if v.tasks > 0 => {
                    count += v.tasks;
                    left.push(format!("{node} has {} tasks", v.tasks));
                }
                Ok(_) => {}
                Err(e) if e.retryable => unseen = Some(e.message),
                Err(e) => return Err(e),
            }
        }
        if left.is_empty() && unseen.is_none() {
            return Ok(());
        }
        left.extend(unseen);
        if count < fewest {
            fewest = count;
            patience.extend(args.timeout);
        }
        progress.say(&left.join("; "));
        if !patience.wait().await {
            let mut message = format!(
                "accepted, but after {} s {}",
                patience.waited().as_secs_f64(),
                left.join("; ")
            );
            for line in homeless(cx).await {
                message.push_str("\n  ");
                message.push_str(&line);
            }
            return Err(ApiError::new(
                Code::NotConverged,
                message,
                "netctl service ps of the services that they belong to, netctl node ls",
            ));
        }
    }
}

/// Why tasks may have no other place.
async fn homeless(cx: &Context) -> Vec<String> {
    let services: Vec<ServiceView> = cx.client.get("/v1/services").await.unwrap_or_default();
    let told = services.iter();
    told.filter_map(|s| Some(format!("{}: {}", s.name, s.trouble()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_taken_away() {
        let words = |w: &[&str]| labels(&w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        let got = words(&["zone=a", "rack-", "note=a=b", "empty="]).unwrap();
        assert_eq!(got["zone"].as_deref(), Some("a"));
        assert_eq!(got["rack"], None);
        assert_eq!(got["note"].as_deref(), Some("a=b"));
        assert_eq!(got["empty"].as_deref(), Some(""));
        for bad in [&["zone"][..], &["=a"], &["-"], &["zone=a", "zone-"]] {
            assert_eq!(words(bad).unwrap_err().code.exit(), 2, "{bad:?}");
        }
    }

    #[test]
    fn words_of_availability() {
        assert_eq!(word("drain"), Ok(Availability::Drain));
        assert!(word("Drained").unwrap_err().contains("active, pause and drain"));
    }
}
