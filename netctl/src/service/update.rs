//! `netctl service update` and `rollback`

use clap::Args;
use model::{
    ApiError, Code, Name, PortSpec, ServiceSpec,
    api::{Changed, Preview, Replace, ServiceView},
};

use super::{
    flags::{Pair, SpecFlags},
    planned,
};
use crate::{
    Run,
    cli::{Context, WaitArgs},
    progress::Progress,
    wait::{self, Aim},
};

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Service.
    name: Name,
    #[command(flatten)]
    flags: SpecFlags,
    #[command(flatten)]
    parts: Parts,
    /// Show where the tasks would be, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
    /// Another command for its tasks, with its arguments; none: the one that they have.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What is added to lists, and taken out of them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Parts of lists")]
struct Parts {
    /// Set a variable of the environment; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    env_add: Vec<Pair>,
    /// Take a variable out of the environment; may be repeated.
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    /// Publish a port beside the others; may be repeated.
    #[arg(long, value_name = "PORT[:TARGET][/PROTO]")]
    publish_add: Vec<PortSpec>,
    /// Take a published port away; may be repeated.
    #[arg(long, value_name = "PORT[/PROTO]")]
    publish_rm: Vec<PortSpec>,
    /// Set a label; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    label_add: Vec<Pair>,
    /// Take a label away; may be repeated.
    #[arg(long, value_name = "NAME")]
    label_rm: Vec<String>,
    /// Join a network beside the others; may be repeated.
    #[arg(long, value_name = "NAME")]
    network_add: Vec<Name>,
    /// Leave a network; may be repeated.
    #[arg(long, value_name = "NAME")]
    network_rm: Vec<Name>,
}

fn missing(name: &Name, what: &str, value: &dyn std::fmt::Display, has: Vec<String>) -> ApiError {
    let has = if has.is_empty() {
        "none".to_owned()
    } else {
        has.join(", ")
    };
    ApiError::new(
        Code::Invalid,
        format!("{name} has no {what} {value}; it has: {has}"),
        format!("netctl service inspect {name}"),
    )
}

impl Parts {
    fn apply(&self, name: &Name, spec: &mut ServiceSpec) -> Result<(), ApiError> {
        for key in &self.env_rm {
            if spec.env.remove(key).is_none() {
                return Err(missing(name, "variable", key, spec.env.keys().cloned().collect()));
            }
        }
        for Pair(k, v) in &self.env_add {
            spec.env.insert(k.clone(), v.clone());
        }
        for key in &self.label_rm {
            if spec.labels.remove(key).is_none() {
                return Err(missing(name, "label", key, spec.labels.keys().cloned().collect()));
            }
        }
        for Pair(k, v) in &self.label_add {
            spec.labels.insert(k.clone(), v.clone());
        }
        for port in &self.publish_rm {
            let before = spec.publish.len();
            // `80` alone means the published port, whatever its target.
            let same = |p: &PortSpec| p == port || (p.key() == port.key() && port.target == port.published);
            spec.publish.retain(|p| !same(p));
            if spec.publish.len() == before {
                let has = spec.publish.iter().map(PortSpec::to_string).collect();
                return Err(missing(name, "published port", port, has));
            }
        }
        for port in &self.publish_add {
            if !spec.publish.contains(port) {
                spec.publish.push(*port);
            }
        }
        for net in &self.network_rm {
            let before = spec.networks.len();
            spec.networks.retain(|n| n != net);
            if spec.networks.len() == before {
                let has = spec.networks.iter().map(Name::to_string).collect();
                return Err(missing(name, "network", net, has));
            }
        }
        for net in &self.network_add {
            if !spec.networks.contains(net) {
                spec.networks.push(net.clone());
            }
        }
        Ok(())
    }
}

fn changed(args: &Update, mut spec: ServiceSpec) -> Result<ServiceSpec, ApiError> {
    args.flags.apply(&mut spec)?;
    args.parts.apply(&args.name, &mut spec)?;
    if !args.command.is_empty() {
        spec.command.clone_from(&args.command);
    }
    Ok(spec)
}

pub(super) async fn update(cx: &Context, args: Update) -> Run {
    let path = format!("/v1/services/{}", args.name);
    let view: ServiceView = cx.client.get(&path).await?;
    let spec = changed(&args, view.service.spec)?;
    if args.dry_run {
        return planned::show(cx, &args.name, &Preview::Spec(Box::new(spec))).await;
    }
    let body = Replace {
        spec,
        seen: view.service.changed,
    };
    let done: Changed = cx.client.post(&format!("{path}/update"), &body).await?;
    let sentence = format!("service {} is updated", args.name);
    settle(cx, &args.wait, &args.name, &done, &sentence, Aim::Update).await
}

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// Service.
    name: Name,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(super) async fn rollback(cx: &Context, args: Rollback) -> Run {
    let path = format!("/v1/services/{}/rollback", args.name);
    let done: Changed = cx.client.post(&path, &serde_json::json!({})).await?;
    let sentence = format!("service {} is what it was before", args.name);
    settle(cx, &args.wait, &args.name, &done, &sentence, Aim::Rollback).await
}

async fn settle(cx: &Context, wait: &WaitArgs, name: &Name, changed: &Changed, done: &str, aim: Aim) -> Run {
    if !wait.detach {
        let mut progress = Progress::new(cx.out);
        wait::rolled_out(cx, wait, name, aim, &mut progress).await?;
    }
    super::settle(cx, wait, name, changed, done).await
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        update: Update,
    }

    fn apply(text: &str) -> Result<ServiceSpec, String> {
        let line = Line::try_parse_from(["x"].into_iter().chain(text.split_whitespace())).map_err(|e| e.to_string())?;
        let spec = ServiceSpec {
            networks: vec!["app".parse().unwrap()],
            replicas: 3,
            command: vec!["old".into()],
            env: [("A".to_owned(), "1".to_owned())].into(),
            publish: vec!["80:8080".parse().unwrap()],
            allow_from: ["192.0.2.0/24".parse().unwrap()].into(),
            timeouts: model::spec::Timeouts {
                tcp_s: Some(60),
                udp_s: Some(7),
                tcp_fin_s: None,
            },
            ..ServiceSpec::default()
        };
        changed(&line.update, spec).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_not_named_stays() {
        let s = apply("web --env-add B=2 --update-parallelism 2").unwrap();
        assert_eq!((s.env["A"].as_str(), s.env["B"].as_str()), ("1", "2"));
        assert_eq!((s.replicas, s.command[0].as_str(), s.update.parallelism), (3, "old", 2));
        assert_eq!(s.publish[0].to_string(), "80:8080/tcp");
    }

    #[test]
    fn lists_by_parts() {
        let s = apply(
            "web --env-rm A --publish-rm 80 --publish-add 81:8080 --network-add db --network-rm app --label-add x=y -- new -v",
        )
        .unwrap();
        assert!(s.env.is_empty());
        assert_eq!(s.publish[0].to_string(), "81:8080/tcp");
        assert_eq!(s.networks[0].as_str(), "db");
        assert_eq!((s.labels["x"].as_str(), s.command.join(" ").as_str()), ("y", "new -v"));
    }

    #[test]
    fn rules_of_both_ways() {
        let s = apply(
            "web --update-order start-first --update-delay 2s --update-monitor 500ms --update-max-failure-ratio 0.2 \
             --update-failure-action rollback --rollback-parallelism 0 --rollback-order start-first",
        )
        .unwrap();
        let u = &s.update;
        assert_eq!((u.delay_ms, u.monitor_ms, u.max_failure_permille), (2000, 500, 200));
        assert_eq!(format!("{:?} {:?}", u.order, u.failure_action), "StartFirst Rollback");
        assert_eq!(
            (s.rollback.parallelism, format!("{:?}", s.rollback.order)),
            (0, "StartFirst".into())
        );
    }

    #[test]
    fn traffic_by_parts() {
        let s = apply("web --idle-timeout tcp=usual,tcp-fin=9s").unwrap();
        let t = s.timeouts;
        assert_eq!((t.tcp_s, t.tcp_fin_s, t.udp_s), (None, Some(9), Some(7)));
        assert_eq!(s.allow_from.len(), 1);
        assert!(apply("web --allow-from all").unwrap().allow_from.is_empty());
        let s = apply("web --allow-from 198.51.100.0/24").unwrap();
        assert_eq!(
            s.allow_from.first().unwrap().to_string(),
            "198.51.100.0/24",
            "in place of the others"
        );
    }

    #[test]
    fn slips_are_told() {
        for (line, word) in [
            ("web --env-rm B", "it has: A"),
            ("web --publish-rm 81", "80:8080"),
            ("web --network-rm db", "app"),
            ("web --label-rm x", "none"),
            ("web --update-order both", "stop-first"),
            ("web --rollback-failure-action rollback", "pause"),
            ("web --update-max-failure-ratio 7", "0.0 to 1.0"),
        ] {
            let e = apply(line).unwrap_err();
            assert!(e.contains(word), "{line}: {e}");
        }
    }
}
