//! `netctl node activate`, `pause` and `drain`

use clap::Args;
use model::{
    ApiError, Code,
    api::{AvailabilityChange, Changed, NodeView, ServiceView},
    intent::Availability,
};

use crate::{
    Run,
    cli::{Context, WaitArgs},
    managers::in_path,
    progress::Progress,
    wait::{self, Patience},
};

#[derive(Debug, Clone, Args)]
pub(crate) struct Change {
    /// Ids (n2) or host names.
    #[arg(required = true)]
    nodes: Vec<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// All are asked for before any is waited for: what is drained goes to none that is drained after it.
pub(super) async fn change(cx: &Context, args: Change, availability: Availability) -> Run {
    let mut changes = Vec::new();
    for node in &args.nodes {
        let path = format!("/v1/nodes/{}/availability", in_path(node)?);
        let body = AvailabilityChange { availability };
        changes.push(cx.client.post::<Changed>(&path, &body).await?);
    }
    let revision = changes.iter().map(|c| c.revision).max().unwrap_or(0);
    if !args.wait.detach {
        let mut progress = Progress::new(cx.out);
        wait::everywhere(cx, &args.wait, revision, &mut progress).await?;
        if availability == Availability::Drain {
            empty(cx, &args, &mut progress).await?;
        }
    }
    for (node, changed) in args.nodes.iter().zip(&changes) {
        let sentence = match (availability, args.wait.detach) {
            (Availability::Drain, false) => format!("{node} is drained: no task is left on it"),
            _ => changed.message.clone(),
        };
        cx.out.done(&sentence, node, changed)?;
    }
    Ok(())
}

/// Waits until the nodes have no task; as long as they get fewer, there is time.
async fn empty(cx: &Context, args: &Change, progress: &mut Progress) -> Result<(), ApiError> {
    let mut patience = Patience::new(args.wait.timeout);
    let mut fewest = u32::MAX;
    loop {
        let mut left = Vec::new();
        let mut count = 0;
        let mut unseen = None;
        for node in &args.nodes {
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
            patience.extend(args.wait.timeout);
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
    told.filter_map(|s| Some(format!("{}: {}", s.name, s.service.problem.as_ref()?)))
        .collect()
}
