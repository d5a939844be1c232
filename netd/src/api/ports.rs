//! `/v1/publish` and `/v1/unpublish`

use std::collections::BTreeSet;

use axum::extract::State;
use cluster::state::{Applied, Command};
use model::{
    Code, Name, PortSpec, RowBody,
    api::{Publish, PublishAnswer},
};

use super::{
    Shared,
    answer::{Answer, Body, Fail},
};
use crate::daemon::Cluster;

/// The service that `publish PORT` without a name means: the one whose endpoints listen on the target port, or the only
/// one there is.
fn choose(c: &Cluster, port: PortSpec) -> Result<Name, Fail> {
    let (intent, facts) = (c.intent(), c.facts());
    let listening: BTreeSet<&Name> = facts
        .rows
        .values()
        .flat_map(|rows| rows.values())
        .filter_map(|r| match &r.body {
            RowBody::Endpoint(e) if e.listening.contains(&(port.proto, port.target)) => e.service.as_ref(),
            _ => None,
        })
        .filter(|s| intent.services.contains_key(*s))
        .collect();
    let all: BTreeSet<&Name> = intent.services.keys().collect();
    let (candidates, why) = match (listening.len(), all.len()) {
        (1, _) => (&listening, ""),
        (0, 1) => (&all, ""),
        (0, 0) => {
            return Err(Fail::new(
                Code::NotFound,
                "there is no service to publish",
                "netctl service create web --replicas 2 -- CMD",
            ));
        }
        (0, _) => (&all, "no service has tasks that listen on that port"),
        _ => (&listening, "several services have tasks that listen on that port"),
    };
    match candidates.iter().next() {
        Some(one) if candidates.len() == 1 => Ok((*one).clone()),
        _ => {
            let lines: Vec<String> = candidates
                .iter()
                .map(|s| format!("netctl service publish {s} {port}"))
                .collect();
            Err(Fail::new(
                Code::Ambiguous,
                format!("{port}: {why}\n  {}", lines.join("\n  ")),
                lines.first().cloned().unwrap_or_default(),
            ))
        }
    }
}

pub(super) async fn publish(State(d): State<Shared>, Body(req): Body<Publish>) -> Result<Answer<PublishAnswer>, Fail> {
    let c = d.cluster()?;
    let m = c.manager()?;
    let service = match req.service {
        Some(s) => s,
        None => choose(&c, req.port)?,
    };
    if !c.intent().services.contains_key(&service) {
        return Err(Fail::new(
            Code::NotFound,
            format!("no service {service}"),
            "netctl service ls",
        ));
    }
    super::services::can_publish(&c, req.port)?;
    m.port_free(&c, req.port).await?;
    let (revision, applied) = m
        .propose(Command::Publish {
            service: service.clone(),
            port: req.port,
        })
        .await?;
    let port = given(applied, req.port);
    Ok(Answer(PublishAnswer {
        revision,
        service,
        port,
    }))
}

/// The port as the log knows it: an automatic one has its number.
fn given(applied: Applied, asked: PortSpec) -> PortSpec {
    match applied {
        Applied::Published(port) => port,
        _ => asked,
    }
}

/// The service that publishes a port.
fn holder(c: &Cluster, port: &PortSpec) -> Result<Name, Fail> {
    let intent = c.intent();
    let services = intent.services.iter();
    let names: Vec<&Name> = services
        .filter(|(_, s)| {
            s.ports
                .values()
                .any(|p| p.asked() == *port || p.spec.key() == port.key())
        })
        .map(|(name, _)| name)
        .collect();
    match names.as_slice() {
        [] => Err(Fail::new(
            Code::NotFound,
            format!("port {} is not published", port.key()),
            "netctl service ls",
        )),
        [one] => Ok((*one).clone()),
        several => {
            let lines: Vec<String> = several
                .iter()
                .map(|s| format!("netctl service unpublish {s} {port}"))
                .collect();
            Err(Fail::new(
                Code::Ambiguous,
                format!("{port}: several services publish it\n  {}", lines.join("\n  ")),
                lines.first().cloned().unwrap_or_default(),
            ))
        }
    }
}

pub(super) async fn unpublish(
    State(d): State<Shared>,
    Body(req): Body<Publish>,
) -> Result<Answer<PublishAnswer>, Fail> {
    let c = d.cluster()?;
    let m = c.manager()?;
    let service = match req.service {
        Some(s) => s,
        None => holder(&c, &req.port)?,
    };
    let (revision, applied) = m
        .propose(Command::Unpublish {
            service: service.clone(),
            port: req.port,
        })
        .await?;
    let port = given(applied, req.port);
    Ok(Answer(PublishAnswer {
        revision,
        service,
        port,
    }))
}
