//! `netctl service create`

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use clap::Args;
use model::{ApiError, Code, Name, PortSpec, ServiceSpec, api::Changed};

use super::settle;
use crate::{
    Run,
    cli::{Context, WaitArgs, duration},
};

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name: a DNS label; tasks find the service by it.
    name: Name,
    /// Network to join; may be repeated; default: the network `default`.
    #[arg(long = "network", value_name = "NAME")]
    networks: Vec<Name>,
    /// Number of tasks.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    replicas: u32,
    /// Port to publish on every node, e.g. 80, 80:8080, 53/udp; may be repeated.
    #[arg(short, long, value_name = "PORT[:TARGET][/PROTO]")]
    publish: Vec<PortSpec>,
    /// Environment of the command; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<Env>,
    /// Between SIGTERM and SIGKILL.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    stop_grace: Duration,
    /// How long established flows may go on after a task was asked to stop.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    drain_timeout: Duration,
    #[command(flatten)]
    wait: WaitArgs,
    /// Command that each task runs, with its arguments; none: endpoints are attached by hand or by an orchestrator.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// `NAME=VALUE`.
#[derive(Debug, Clone)]
struct Env(String, String);

impl FromStr for Env {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('=') {
            Some((k, v)) if !k.is_empty() => Ok(Env(k.to_owned(), v.to_owned())),
            _ => Err(format!("{s:?} is not NAME=VALUE; try: --env LEVEL=debug")),
        }
    }
}

/// Milliseconds; the parser's bound of a year keeps them far below the limit.
fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn spec(args: &Create) -> Result<ServiceSpec, ApiError> {
    let mut env = BTreeMap::new();
    for Env(k, v) in &args.env {
        if env.insert(k.clone(), v.clone()).is_some() {
            return Err(ApiError::new(
                Code::Invalid,
                format!("--env {k} is given twice"),
                format!("--env {k}={v}"),
            ));
        }
    }
    Ok(ServiceSpec {
        networks: args.networks.clone(),
        replicas: args.replicas,
        command: args.command.clone(),
        env,
        publish: args.publish.clone(),
        stop_grace_ms: ms(args.stop_grace),
        drain_timeout_ms: ms(args.drain_timeout),
        ..ServiceSpec::default()
    })
}

pub(super) async fn run(cx: &Context, args: Create) -> Run {
    let path = format!("/v1/services/{}", args.name);
    let changed: Changed = cx.client.put(&path, &spec(&args)?).await?;
    let done = format!("service {} is made", args.name);
    settle(cx, &args.wait, &args.name, &changed, &done).await
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn parse(text: &str) -> Result<ServiceSpec, String> {
        let line = Line::try_parse_from(["x"].into_iter().chain(text.split_whitespace())).map_err(|e| e.to_string())?;
        spec(&line.create).map_err(|e| e.to_string())
    }

    #[test]
    fn a_full_line() {
        let s = parse(
            "web --network app --network db --replicas 3 --publish 80:8080 --publish 53/udp --env A=1 --env B=x=y --stop-grace 2s --drain-timeout 1500ms -- srv --port 8080",
        )
        .unwrap();
        assert_eq!(s.networks.len(), 2);
        assert_eq!(s.replicas, 3);
        assert_eq!(s.command, ["srv", "--port", "8080"]);
        assert_eq!(s.env["B"], "x=y");
        assert_eq!(s.publish[1].to_string(), "53/udp");
        assert_eq!((s.stop_grace_ms, s.drain_timeout_ms), (2000, 1500));
    }

    #[test]
    fn defaults_are_the_models() {
        assert_eq!(parse("web").unwrap(), ServiceSpec::default());
    }

    #[test]
    fn slips_are_told() {
        for (line, word) in [
            ("we_b", "hyphens"),
            ("web --publish 0", "65535"),
            ("web --publish 80/sctp", "tcp nor udp"),
            ("web --env A", "NAME=VALUE"),
            ("web --env A=1 --env A=2", "twice"),
            ("web --replicas 1000001", "1000001"),
            ("web --stop-grace soon", "not a time"),
            ("web srv", "unexpected argument"),
        ] {
            let e = parse(line).unwrap_err();
            assert!(e.contains(word), "{line}: {e}");
        }
    }
}
