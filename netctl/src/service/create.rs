//! `netctl service create`

use clap::Args;
use model::{
    ApiError, Name, PortSpec, ServiceSpec,
    api::{Changed, Preview},
};

use super::{flags::SpecFlags, planned, publish, settle};
use crate::{
    Run,
    cli::{Context, WaitArgs},
};

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name: a DNS label; tasks find the service by it.
    name: Name,
    #[command(flatten)]
    flags: SpecFlags,
    /// Show where the tasks would be, and make nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
    /// Command that each task runs, with its arguments; none: endpoints are attached by hand or by an orchestrator.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn spec(args: &Create) -> Result<ServiceSpec, ApiError> {
    let mut spec = ServiceSpec {
        command: args.command.clone(),
        ..ServiceSpec::default()
    };
    args.flags.apply(&mut spec)?;
    Ok(spec)
}

pub(super) async fn run(cx: &Context, args: Create) -> Run {
    let spec = spec(&args)?;
    if args.dry_run {
        return planned::show(cx, &args.name, &Preview::Spec(Box::new(spec))).await;
    }
    let path = format!("/v1/services/{}", args.name);
    let changed: Changed = cx.client.put(&path, &spec).await?;
    let given = match spec.publish.iter().any(PortSpec::is_auto) {
        true => publish::given(cx, &args.name).await?,
        false => String::new(),
    };
    let done = format!("service {} is made{given}", args.name);
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
    fn ports_in_all_their_forms() {
        let s = parse(
            "web --publish published=80,target=8080,protocol=tcp,mode=host --publish [2001:db8::1]:80 --publish auto:9 --endpoint-mode dnsrr --lb wlc",
        )
        .unwrap();
        let ports: Vec<String> = s.publish.iter().map(PortSpec::to_string).collect();
        assert_eq!(ports, ["80:8080/tcp,mode=host", "[2001:db8::1]:80/tcp", "auto:9/tcp"]);
        assert_eq!(s.endpoint_mode, model::spec::EndpointMode::Dnsrr);
        assert_eq!(s.lb, model::spec::Lb::Wlc);
    }

    #[test]
    fn what_becomes_of_traffic() {
        let s = parse("web --source-ip masquerade --allow-from 192.0.2.0/24,2001:db8::/32 --allow-from 198.51.100.7 --idle-timeout tcp=15m,tcp-fin=30s --idle-timeout udp=10s").unwrap();
        assert_eq!(s.source_ip, model::spec::SourceIp::Masquerade);
        let from: Vec<String> = s.allow_from.iter().map(|n| n.to_string()).collect();
        assert_eq!(from, ["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32"]);
        let t = s.timeouts;
        assert_eq!((t.tcp_s, t.tcp_fin_s, t.udp_s), (Some(900), Some(30), Some(10)));
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
            ("web --publish 80/dccp", "tcp nor udp nor sctp"),
            ("web --env A", "NAME=VALUE"),
            ("web --env A=1 --env A=2", "twice"),
            ("web --replicas 1000001", "1000001"),
            ("web --stop-grace soon", "not a time"),
            ("web srv", "unexpected argument"),
            ("web --source-ip direct", "reverse path"),
            ("web --source-ip snat", "neither preserve nor masquerade"),
            ("web --allow-from 192.0.2.1/24", "192.0.2.0/24"),
            ("web --allow-from here", "neither a network nor an address"),
            ("web --allow-from all --allow-from ::/0", "everybody"),
            ("web --idle-timeout 15m", "KIND=TIME"),
            ("web --idle-timeout sctp=15m", "tcp-fin"),
            ("web --idle-timeout udp=500ms", "whole seconds"),
            ("web --idle-timeout tcp=0s", "between 1 s"),
            ("web --idle-timeout tcp=1m,tcp=2m", "twice"),
        ] {
            let e = parse(line).unwrap_err();
            assert!(e.contains(word), "{line}: {e}");
        }
    }
}
