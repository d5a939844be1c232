//! `/v1/cluster` and `/v1/cluster/update`: settings of the cluster.

use axum::extract::State;
use cluster::state::{Applied, Command};
use model::{
    Code,
    api::{Changed, ClusterUpdate, ClusterView, SettingView},
    intent::Role,
    settings::Change,
};

use super::{
    Shared,
    answer::{Answer, Body, Fail},
};

pub(super) async fn inspect(State(d): State<Shared>) -> Result<Answer<ClusterView>, Fail> {
    let intent = d.cluster()?.intent();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let table = intent.settings.list().into_iter().map(|(key, value)| SettingView {
        key: key.name().to_owned(),
        value,
        default: key.default_text(),
        range: key.range(),
        help: key.help().to_owned(),
    });
    Ok(Answer(ClusterView {
        id: intent.cluster.clone(),
        revision: intent.revision,
        managers: count(intent.nodes.values().filter(|n| n.role == Role::Manager).count()),
        nodes: count(intent.nodes.len()),
        table: table.collect(),
        settings: intent.settings.clone(),
    }))
}

pub(super) async fn update(State(d): State<Shared>, Body(req): Body<ClusterUpdate>) -> Result<Answer<Changed>, Fail> {
    let c = d.cluster()?;
    if req.set.is_empty() {
        return Err(Fail::new(
            Code::Invalid,
            "no setting is named",
            "netctl cluster update KEY=VALUE",
        ));
    }
    let changes = req.set.iter().map(|(k, v)| Change::parse(k, v));
    let changes: Vec<Change> = changes.collect::<Result<_, _>>().map_err(model::ApiError::from)?;
    let (revision, applied) = c.manager()?.propose(Command::UpdateSettings(changes)).await?;
    let set: Vec<String> = req.set.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut message = match applied {
        Applied::Unchanged => "unchanged".to_owned(),
        _ => set.join(" "),
    };
    let intent = c.intent();
    if req.set.contains_key("autolock") && applied != Applied::Unchanged {
        let m = c.manager()?;
        match intent.settings.autolock {
            true => {
                let key = m.unlock_key(&intent, false).await?;
                d.seal(&c, Some(key.clone())).await?;
                message.push_str(&format!(
                    "\nafter a restart a manager is opened by: netctl cluster unlock\nkeep this key where no manager's disk is:\n  {}",
                    key.reveal()
                ));
            }
            false => {
                m.forget_unlock_key().await?;
                d.seal(&c, None).await?;
            }
        }
    }
    Ok(Answer(Changed { revision, message }))
}
