//! `netctl endpoint ...`: what is attached on this node.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use model::{
    ApiError, Code, EndpointId, EndpointState, Name,
    api::{EndpointCreate, EndpointView},
};

use crate::{
    Run,
    cli::{Context, ListArgs},
    output::{Cell, Column, Table, Tone, cell, column, maybe, wide},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Attach a network namespace of this node to a network.
    #[command(
        after_help = "Examples:\n  netctl endpoint add db --netns /run/netns/db --network app\n  netctl endpoint add --pid 4242 --network app --service web\n\nAdding the same once more changes nothing."
    )]
    Add(Add),
    /// List the endpoints of this node.
    #[command(
        visible_alias = "list",
        after_help = "Example:\n  netctl endpoint ls --filter network=app"
    )]
    Ls(ListArgs),
    /// Show all about an endpoint of this node, as JSON.
    #[command(after_help = "Example:\n  netctl endpoint inspect web.1")]
    Inspect {
        /// Id.
        id: EndpointId,
    },
    /// Detach a namespace; the namespace itself stays unless netd made it.
    #[command(visible_alias = "remove", after_help = "Example:\n  netctl endpoint rm db")]
    Rm {
        /// Id.
        id: EndpointId,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Id of the endpoint; default: the last part of the path, or pid-PID.
    id: Option<EndpointId>,
    #[command(flatten)]
    target: Target,
    /// Network to attach to; may be repeated: the first one has the default route, and on each further one the
    /// namespace has an endpoint ID.NETWORK.
    #[arg(long = "network", required = true, value_name = "NAME")]
    networks: Vec<Name>,
    /// Service whose backend it becomes.
    #[arg(long, value_name = "NAME")]
    service: Option<Name>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Target {
    /// Path of the namespace, e.g. /run/netns/db.
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    /// A process in the namespace.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

pub(crate) async fn run(cx: &Context, verb: Verb) -> Run {
    match verb {
        Verb::Add(args) => {
            let (id, body) = request(args)?;
            let view: EndpointView = cx.client.put(&format!("/v1/endpoints/{id}"), &body).await?;
            cx.out.done(&sentence(&view), id.as_str(), &view)
        }
        Verb::Ls(list) => {
            let endpoints: Vec<EndpointView> = cx.client.get("/v1/endpoints").await?;
            cx.out.table(&table(&endpoints), &list.filter)
        }
        Verb::Inspect { id } => {
            let view: EndpointView = cx.client.get(&format!("/v1/endpoints/{id}")).await?;
            cx.out.one(id.as_str(), &view)
        }
        Verb::Rm { id } => {
            // netd answers alike when there is none, for orchestrators that repeat themselves; a person wants to know.
            let path = format!("/v1/endpoints/{id}");
            let _: serde::de::IgnoredAny = cx.client.get(&path).await?;
            let answer: serde_json::Value = cx.client.delete(&path).await?;
            cx.out.done(&format!("endpoint {id} is removed"), id.as_str(), &answer)
        }
    }
}

fn request(args: Add) -> Result<(EndpointId, EndpointCreate), ApiError> {
    let netns = match args.target.netns {
        Some(path) => Some(absolute(path)?),
        None => None,
    };
    let id = match (args.id, &netns, args.target.pid) {
        (Some(id), _, _) => id,
        (None, Some(path), _) => path
            .rsplit('/')
            .find(|part| !part.is_empty())
            .unwrap_or_default()
            .parse()?,
        (None, None, pid) => format!("pid-{}", pid.unwrap_or_default()).parse()?,
    };
    let mut networks = args.networks.into_iter();
    let network = networks
        .next()
        .ok_or_else(|| ApiError::new(Code::Invalid, "a network is missing", "--network default"))?;
    let body = EndpointCreate {
        network,
        netns,
        pid: args.target.pid,
        service: args.service,
        slot: None,
        further: networks.collect(),
    };
    Ok((id, body))
}

/// netd has another working folder than the user.
fn absolute(path: PathBuf) -> Result<String, ApiError> {
    let bad = |why: String| {
        ApiError::new(
            Code::Invalid,
            format!("--netns {}: {why}", path.display()),
            "--netns /run/netns/NAME, see: lsns -t net",
        )
    };
    let full = std::path::absolute(&path).map_err(|e| bad(e.to_string()))?;
    full.into_os_string()
        .into_string()
        .map_err(|_| bad("is not UTF-8".into()))
}

fn sentence(e: &EndpointView) -> String {
    let addresses = addresses(e);
    let service = e
        .service
        .as_ref()
        .map(|s| format!(", backend of {s}"))
        .unwrap_or_default();
    format!(
        "endpoint {} is {addresses} on {} ({} in {}){service}",
        e.id, e.network, e.interface, e.netns
    )
}

fn addresses(e: &EndpointView) -> String {
    let v4 = e.v4.map(|a| a.to_string());
    let v6 = e.v6.map(|a| a.to_string());
    v4.into_iter().chain(v6).collect::<Vec<_>>().join(",")
}

/// A life stage in words.
pub(crate) fn state_cell(state: EndpointState) -> Cell {
    match state {
        EndpointState::Starting => Cell::toned("starting", Tone::Warn),
        EndpointState::Ready => Cell::toned("ready", Tone::Good),
        EndpointState::Draining => Cell::toned("draining", Tone::Warn),
    }
}

const COLUMNS: &[Column] = &[
    column("ID"),
    column("NETWORK"),
    column("ADDRESSES"),
    column("SERVICE"),
    column("STATE"),
    column("PROBLEM"),
    wide("INTERFACE"),
    wide("MAC"),
    wide("MTU"),
    wide("NETNS"),
];

fn table(endpoints: &[EndpointView]) -> Table {
    let mut table = Table::new(COLUMNS);
    for e in endpoints {
        let cells = vec![
            cell(&e.id),
            cell(&e.network),
            cell(addresses(e)),
            maybe(e.service.as_ref()),
            state_cell(e.state),
            Cell::toned(e.problem.as_deref().unwrap_or_default(), Tone::Bad),
            cell(&e.interface),
            cell(e.mac),
            cell(e.mtu),
            cell(&e.netns),
        ];
        table.row(&e.id, cells, e);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn endpoints() {
        insta::assert_snapshot!(fixture::show(&table(&fixture::endpoints())));
    }

    fn add(id: Option<&str>, netns: Option<&str>, pid: Option<u32>) -> Add {
        Add {
            id: id.map(|i| i.parse().unwrap()),
            target: Target {
                netns: netns.map(PathBuf::from),
                pid,
            },
            networks: vec!["app".parse().unwrap()],
            service: None,
        }
    }

    #[test]
    fn ids_are_derived_from_what_is_attached() {
        let (id, body) = request(add(None, Some("/run/netns/db"), None)).unwrap();
        assert_eq!(id.as_str(), "db");
        assert_eq!(body.netns.as_deref(), Some("/run/netns/db"));
        let (id, body) = request(add(None, None, Some(42))).unwrap();
        assert_eq!((id.as_str(), body.pid), ("pid-42", Some(42)));
        let (id, _) = request(add(Some("x"), Some("/run/netns/db"), None)).unwrap();
        assert_eq!(id.as_str(), "x");
        let odd = request(add(None, Some("/run/netns/a b"), None)).unwrap_err();
        assert_eq!(odd.code, Code::Invalid);
        let (_, body) = request(add(Some("x"), Some("db"), None)).unwrap();
        assert!(body.netns.unwrap().starts_with('/'));
    }
}
