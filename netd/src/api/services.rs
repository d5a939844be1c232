//! `/v1/services`

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Path, State};
use cluster::{rollout::Rollouts, state::Command};
use model::{
    Code, Intent, Name, NodeId, PortSpec, Proto, ServiceSpec,
    api::{Changed, Logs, LogsAsk, Replace, Scale, ServiceView, TaskView},
    intent::{Service, SlotSet},
    row::Datapath,
    spec::{Lb, Mode, SourceIp, Timeouts},
};

use super::{
    Shared,
    answer::{Answer, Body, Fail, segment},
};
use crate::{daemon::Cluster, gossip::Facts};

/// A worker asks this of a manager.
pub(super) const STUCK: &str = "stuck";

/// Why changes and moves of some services do not get on: what the leader's memory alone holds.
async fn stuck<'n>(c: &Cluster, intent: &Intent, names: impl Iterator<Item = &'n Name>) -> BTreeMap<Name, String> {
    let moves = |(name, s): (&Name, &Service)| Rollouts::concerns(s, intent.leaving.contains_key(name));
    let mut known = names.filter_map(|n| intent.services.get_key_value(n));
    // Most often there is nothing to ask for.
    match (known.any(moves), c.leading()) {
        (false, _) => BTreeMap::new(),
        (true, Some(m)) => m.stuck(),
        (true, None) => c.ask_manager(STUCK).await.unwrap_or_default(),
    }
}

fn view(intent: &Intent, facts: &Facts, name: &Name, stuck: &BTreeMap<Name, String>) -> Option<ServiceView> {
    let service = intent.services.get(name)?.clone();
    let backends = crate::view::backends(intent, facts, name);
    let placed = intent
        .placements
        .get(name)
        .map_or(0, |p| p.values().map(SlotSet::len).sum());
    let wanted = match service.spec.mode {
        _ if service.spec.command.is_empty() => 0,
        Mode::Replicated => service.spec.replicas,
        // Those beside them while they are replaced are not asked for.
        Mode::Global => {
            let surge = service.rollout.as_ref().map_or(0, |r| r.surge.len());
            placed.saturating_sub(surge)
        }
    };
    let units: BTreeSet<_> = backends.iter().map(|b| b.unit(name)).collect();
    let out: BTreeSet<_> = backends.iter().filter(|b| !b.in_use).map(|b| b.unit(name)).collect();
    let ready = units.difference(&out).count() as u32;
    Some(ServiceView {
        name: name.clone(),
        service,
        wanted,
        ready,
        backends,
        stuck: stuck.get(name).cloned(),
    })
}

pub(super) async fn views(c: &Cluster) -> Vec<ServiceView> {
    let (intent, facts) = (c.intent(), c.facts());
    let stuck = stuck(c, &intent, intent.services.keys()).await;
    let all = intent.services.keys();
    all.filter_map(|n| view(&intent, &facts, n, &stuck)).collect()
}

fn unknown(c: &Cluster, name: &Name) -> Fail {
    let have: Vec<String> = c.intent().services.keys().map(|n| n.to_string()).take(8).collect();
    let have = if have.is_empty() {
        "there is none".to_owned()
    } else {
        format!("there are: {}", have.join(", "))
    };
    Fail::new(
        Code::NotFound,
        format!("no service {name}; {have}"),
        "netctl service ls",
    )
}

pub(super) async fn list(State(d): State<Shared>) -> Result<Answer<Vec<ServiceView>>, Fail> {
    Ok(Answer(views(&*d.cluster()?).await))
}

pub(super) async fn one(State(d): State<Shared>, path: Path<String>) -> Result<Answer<ServiceView>, Fail> {
    let name: Name = segment(path)?;
    let c = d.cluster()?;
    let (intent, facts) = (c.intent(), c.facts());
    let stuck = stuck(&c, &intent, [&name].into_iter()).await;
    let view = view(&intent, &facts, &name, &stuck);
    view.map(Answer).ok_or_else(|| unknown(&c, &name))
}

/// What is asked for anew and would not be done on some node is refused: the log does not know data paths.
fn can_serve(c: &Cluster, spec: &ServiceSpec, had: Option<&ServiceSpec>) -> Result<(), Fail> {
    let Some((what, why, hint)) = beyond_ebpf(spec, had.unwrap_or(&ServiceSpec::default())) else {
        return Ok(());
    };
    let (intent, facts) = (c.intent(), c.facts());
    let ebpf = |id: &&NodeId| {
        crate::view::forwards(&facts, **id)
            && c.node_row(&facts, **id)
                .is_some_and(|row| row.datapath == Datapath::Ebpf)
    };
    match intent.nodes.keys().find(ebpf) {
        None => Ok(()),
        Some(id) => Err(Fail::new(
            Code::Unsupported,
            format!("{what} cannot be done on {id}, whose data path is eBPF: that {why}"),
            hint,
        )),
    }
}

/// As [`can_serve`], of one more published port.
pub(super) fn can_publish(c: &Cluster, port: PortSpec) -> Result<(), Fail> {
    let spec = ServiceSpec {
        publish: vec![port],
        ..ServiceSpec::default()
    };
    can_serve(c, &spec, None)
}

/// What of a service nodes with the eBPF data path do not do and was not asked of them before; why, and what they do.
fn beyond_ebpf(spec: &ServiceSpec, had: &ServiceSpec) -> Option<(String, &'static str, &'static str)> {
    if spec.lb != had.lb && spec.lb != Lb::Maglev {
        let what = format!("--lb {}", spec.lb);
        return Some((what, "balances by maglev alone", "--lb maglev"));
    }
    if spec.source_ip != had.source_ip && spec.source_ip != SourceIp::Preserve {
        let what = format!("--source-ip {}", spec.source_ip);
        return Some((what, "shows tasks the client's own address", "--source-ip preserve"));
    }
    if spec.allow_from != had.allow_from && !spec.allow_from.is_empty() {
        let why = "would let everybody in, and so keeps the published ports of such a service closed";
        return Some(("--allow-from".to_owned(), why, "--allow-from all"));
    }
    let sctp = |p: &&PortSpec| p.proto == Proto::Sctp && !had.publish.contains(p);
    if let Some(port) = spec.publish.iter().find(sctp) {
        return Some((
            format!("publishing {port}"),
            "carries tcp and udp alone",
            "80/tcp or 53/udp",
        ));
    }
    if spec.timeouts != had.timeouts && spec.timeouts != Timeouts::default() {
        let why = "remembers flows for as long as its maps have room";
        return Some((
            "--idle-timeout".to_owned(),
            why,
            "--idle-timeout tcp=usual,tcp-fin=usual,udp=usual",
        ));
    }
    None
}

pub(super) async fn create(
    State(d): State<Shared>,
    path: Path<String>,
    Body(spec): Body<ServiceSpec>,
) -> Result<Answer<Changed>, Fail> {
    let name: Name = segment(path)?;
    let c = d.cluster()?;
    let m = c.manager()?;
    can_serve(&c, &spec, None)?;
    for port in &spec.publish {
        m.port_free(&c, *port).await?;
    }
    let (revision, _) = m
        .propose(Command::CreateService {
            name: name.clone(),
            spec,
        })
        .await?;
    Ok(Answer(Changed {
        revision,
        message: format!("service {name}"),
    }))
}

pub(super) async fn update(
    State(d): State<Shared>,
    path: Path<String>,
    Body(req): Body<Replace>,
) -> Result<Answer<Changed>, Fail> {
    let name: Name = segment(path)?;
    let c = d.cluster()?;
    let m = c.manager()?;
    let had = c.intent().services.get(&name).map(|s| s.spec.clone());
    can_serve(&c, &req.spec, had.as_ref())?;
    for port in &req.spec.publish {
        if had.as_ref().is_some_and(|had| !had.publish.contains(port)) {
            m.port_free(&c, *port).await?;
        }
    }
    let (revision, _) = m
        .propose(Command::ReplaceService {
            name: name.clone(),
            spec: req.spec,
            seen: req.seen,
        })
        .await?;
    Ok(Answer(Changed {
        revision,
        message: format!("service {name} is changed"),
    }))
}

pub(super) async fn rollback(State(d): State<Shared>, path: Path<String>) -> Result<Answer<Changed>, Fail> {
    let name: Name = segment(path)?;
    let c = d.cluster()?;
    let (revision, _) = c.manager()?.propose(Command::Rollback { name: name.clone() }).await?;
    Ok(Answer(Changed {
        revision,
        message: format!("service {name} goes back"),
    }))
}

pub(super) async fn scale(
    State(d): State<Shared>,
    path: Path<String>,
    Body(req): Body<Scale>,
) -> Result<Answer<Changed>, Fail> {
    let name: Name = segment(path)?;
    let c = d.cluster()?;
    let (revision, _) = c
        .manager()?
        .propose(Command::Scale {
            name: name.clone(),
            replicas: req.replicas,
        })
        .await?;
    Ok(Answer(Changed {
        revision,
        message: format!("service {name}: {} replicas", req.replicas),
    }))
}

pub(super) async fn remove(State(d): State<Shared>, path: Path<String>) -> Result<Answer<Changed>, Fail> {
    let name: Name = segment(path)?;
    let c = d.cluster()?;
    let (revision, _) = c
        .manager()?
        .propose(Command::RemoveService { name: name.clone() })
        .await?;
    Ok(Answer(Changed {
        revision,
        message: format!("service {name} is removed"),
    }))
}

/// What its tasks have said, a piece at a time.
pub(super) async fn logs(
    State(d): State<Shared>,
    path: Path<String>,
    Body(ask): Body<LogsAsk>,
) -> Result<Answer<Logs>, Fail> {
    let name: Name = segment(path)?;
    let c = d.cluster()?;
    if !c.intent().services.contains_key(&name) {
        return Err(unknown(&c, &name));
    }
    Ok(Answer(super::tasks::gather(&c, &name, None, ask).await?))
}

pub(super) async fn tasks(State(d): State<Shared>, path: Path<String>) -> Result<Answer<Vec<TaskView>>, Fail> {
    let name: Name = segment(path)?;
    let c = d.cluster()?;
    if !c.intent().services.contains_key(&name) {
        return Err(unknown(&c, &name));
    }
    match c.leading() {
        Some(m) => Ok(Answer(m.tasks(&name, &c.facts()))),
        // The managers alone remember what became of earlier tasks.
        None => Ok(Answer(c.ask_manager(&format!("/v1/services/{name}/tasks")).await?)),
    }
}
