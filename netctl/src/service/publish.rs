//! `netctl service publish` and `unpublish`

use std::{collections::BTreeSet, net::IpAddr};

use clap::Args;
use model::{
    ApiError, Code, Device, Name, On, PortSpec, Proto, PublishMode,
    api::{NodeView, Publish, PublishAnswer, ServiceView},
};

use crate::{
    Run,
    cli::{Context, WaitArgs},
    progress::Progress,
    wait::{self, ServiceVerdict},
};

#[derive(Debug, Args)]
pub(crate) struct Ports {
    /// Service; may be left out where only one fits: then the port stands here.
    service: Option<String>,
    /// Port, e.g. 80, 80:8080 (on the nodes, then in the tasks), 53/udp, auto:80 (a free one of 30000-32767),
    /// 192.0.2.1:80, eth0:80, published=80,target=8080,mode=host.
    port: Option<String>,
    /// On every node, leading to all tasks (ingress), or on the nodes of its tasks, leading to their own (host).
    #[arg(long, value_name = "ingress|host")]
    mode: Option<PublishMode>,
    /// On this address of the nodes alone; on others the port stays theirs.
    #[arg(long, value_name = "IP", conflicts_with = "interface")]
    address: Option<IpAddr>,
    /// On the addresses of this device of the nodes alone.
    #[arg(long, value_name = "NAME")]
    interface: Option<Device>,
    #[command(flatten)]
    wait: WaitArgs,
}

impl Ports {
    fn request(&self) -> Result<Publish, ApiError> {
        let (service, port) = match (&self.service, &self.port) {
            (Some(port), None) => (None, parse(port)?),
            (Some(service), Some(port)) => (Some(service.parse()?), parse(port)?),
            (None, _) => {
                return Err(ApiError::new(
                    Code::Invalid,
                    "a port is missing",
                    "netctl service publish 80",
                ));
            }
        };
        Ok(Publish {
            service,
            port: self.laid_over(port)?,
        })
    }

    /// A port with what the flags say of it.
    fn laid_over(&self, mut port: PortSpec) -> Result<PortSpec, ApiError> {
        let on = match (self.address, self.interface) {
            (Some(ip), _) => On::address(ip)?,
            (None, Some(device)) => On::Device(device),
            (None, None) => On::All,
        };
        if on != On::All && port.on != On::All && port.on != on {
            return Err(ApiError::new(
                Code::Invalid,
                format!("{port} says another address than the flag"),
                "one of the two",
            ));
        }
        if on != On::All {
            port.on = on;
        }
        port.mode = self.mode.unwrap_or(port.mode);
        Ok(port)
    }
}

/// A lone word that is no port is most likely a service without one.
fn parse(port: &str) -> Result<PortSpec, ApiError> {
    port.parse().map_err(|e| match port.parse::<Name>() {
        Ok(name) if !port.starts_with(|c: char| c.is_ascii_digit()) => ApiError::new(
            Code::Invalid,
            format!("{port:?} is not a port"),
            format!("netctl service publish {name} 80"),
        ),
        _ => ApiError::from(e),
    })
}

pub(super) async fn publish(cx: &Context, ports: Ports) -> Run {
    let answer: PublishAnswer = cx.client.post("/v1/publish", &ports.request()?).await?;
    if ports.wait.detach {
        let sentence = format!(
            "{} -> {}, not waited for (revision {})",
            door(answer.port),
            backend(&answer),
            answer.revision
        );
        return cx.out.done(&sentence, answer.service.as_str(), &answer);
    }
    let mut progress = Progress::new(cx.out);
    let nodes = wait::everywhere(cx, &ports.wait, answer.revision, &mut progress).await?;
    let ready = wait::service_ready(cx, &ports.wait, &answer.service, &mut progress).await?;
    // The try line is a help, not the answer: without the nodes it is left out.
    let all: Vec<NodeView> = cx.client.get("/v1/nodes").await.unwrap_or_default();
    drop(progress);
    let homes = match answer.port.mode {
        PublishMode::Ingress => Vec::new(),
        PublishMode::Host => homes(cx, &answer.service).await?,
    };
    let sentence = sentence(&answer, nodes.have, &ready, &all, &homes);
    cx.out.done(&sentence, answer.service.as_str(), &answer)
}

pub(super) async fn unpublish(cx: &Context, ports: Ports) -> Run {
    let answer: PublishAnswer = cx.client.post("/v1/unpublish", &ports.request()?).await?;
    if !ports.wait.detach {
        let mut progress = Progress::new(cx.out);
        wait::everywhere(cx, &ports.wait, answer.revision, &mut progress).await?;
    }
    let sentence = format!("{} no longer leads to {}", door(answer.port), answer.service);
    cx.out.done(&sentence, answer.service.as_str(), &answer)
}

/// `, :31004 -> 80`: the ports that were given to a service.
pub(super) async fn given(cx: &Context, service: &Name) -> Result<String, ApiError> {
    let view: ServiceView = cx.client.get(&format!("/v1/services/{service}")).await?;
    let autos = view.service.ports.values().filter(|p| p.auto);
    Ok(autos
        .map(|p| format!(", {} -> {}", door(p.spec), p.spec.target))
        .collect())
}

/// Host names of the nodes that have a task, without repetition.
async fn homes(cx: &Context, service: &Name) -> Result<Vec<String>, ApiError> {
    let view: ServiceView = cx.client.get(&format!("/v1/services/{service}")).await?;
    let used = view.backends.into_iter().filter(|b| b.in_use);
    let names: BTreeSet<String> = used.map(|b| b.hostname).collect();
    Ok(names.into_iter().collect())
}

/// `:80`, `:53/udp`, `192.0.2.1:80`, `eth0:80`.
pub(super) fn door(port: PortSpec) -> String {
    let on = match port.on {
        On::Address(IpAddr::V6(a)) => format!("[{a}]"),
        on => on.to_string(),
    };
    match port.proto {
        Proto::Tcp => format!("{on}:{}", port.published),
        Proto::Udp | Proto::Sctp => format!("{on}:{}/{}", port.published, port.proto),
    }
}

/// `web`, `web:8080`.
fn backend(answer: &PublishAnswer) -> String {
    if answer.port.published == answer.port.target {
        answer.service.to_string()
    } else {
        format!("{}:{}", answer.service, answer.port.target)
    }
}

fn sentence(
    answer: &PublishAnswer,
    nodes: usize,
    ready: &ServiceVerdict,
    all: &[NodeView],
    homes: &[String],
) -> String {
    let port = answer.port;
    let on = match (port.mode, port.on) {
        (PublishMode::Host, _) if homes.is_empty() => "on no node yet".to_owned(),
        (PublishMode::Host, _) => format!("on {}", homes.join(", ")),
        (PublishMode::Ingress, On::All) => format!("on {nodes} node{}", if nodes == 1 { "" } else { "s" }),
        (PublishMode::Ingress, On::Address(_)) => "where a node has it".to_owned(),
        (PublishMode::Ingress, On::Device(d)) => format!("on the nodes that have {d}"),
    };
    let mut text = format!(
        "{} {on} -> {} ({}/{} healthy)",
        door(port),
        backend(answer),
        ready.ready,
        ready.wanted
    );
    if port.mode == PublishMode::Host {
        text.push_str("\neach node leads to its own task; an update stops a task before it starts the next one");
    }
    let fits = |n: &&NodeView| match (port.mode, port.on) {
        (PublishMode::Host, _) => homes.contains(&n.hostname),
        (PublishMode::Ingress, On::All) => n.me,
        _ => false,
    };
    let at = match port.on {
        On::Address(a) => Some(a.to_string()),
        On::All => all.iter().find(fits).and_then(|n| n.addr.clone()),
        On::Device(_) => None,
    };
    if let Some(addr) = at {
        text.push_str(&format!("\ntry: {}", knock(&addr, port)));
    }
    text
}

/// A command that tries a published port.
fn knock(addr: &str, port: PortSpec) -> String {
    match port.proto {
        Proto::Udp => format!("nc -u {addr} {}", port.published),
        Proto::Sctp => format!("ncat --sctp {addr} {}", port.published),
        Proto::Tcp => match addr.parse::<IpAddr>() {
            Ok(IpAddr::V6(a)) => format!("curl 'http://[{a}]:{}/'", port.published),
            _ => format!("curl http://{addr}:{}/", port.published),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn ports(words: &[&str]) -> Result<Publish, ApiError> {
        let wait = WaitArgs {
            detach: false,
            timeout: std::time::Duration::ZERO,
        };
        let word = |n: usize| words.get(n).map(|w| (*w).to_owned());
        Ports {
            service: word(0),
            port: word(1),
            mode: None,
            address: None,
            interface: None,
            wait,
        }
        .request()
    }

    #[test]
    fn the_literal_command_and_its_kin() {
        let p = ports(&["80"]).unwrap();
        assert_eq!((p.service, p.port.to_string()), (None, "80/tcp".to_owned()));
        let p = ports(&["web", "80:8080/tcp"]).unwrap();
        assert_eq!(p.service.unwrap().as_str(), "web");
        assert_eq!((p.port.published, p.port.target), (80, 8080));
        let e = ports(&["web"]).unwrap_err();
        assert_eq!(e.hint, "netctl service publish web 80");
        assert_eq!(ports(&[]).unwrap_err().code.exit(), 2);
        for bad in ["0", "65536", "80:", "80/dccp", "", "-1"] {
            assert_eq!(ports(&[bad]).unwrap_err().code.exit(), 2, "{bad}");
        }
        assert_eq!(ports(&["w_b", "80"]).unwrap_err().code.exit(), 2);
    }

    #[test]
    fn flags_and_syntax_say_the_same() {
        let mut p = Ports {
            service: Some("web".into()),
            port: Some("80:8080".into()),
            mode: Some(PublishMode::Host),
            address: Some("2001:db8::1".parse().unwrap()),
            interface: None,
            wait: WaitArgs {
                detach: false,
                timeout: std::time::Duration::ZERO,
            },
        };
        assert_eq!(
            p.request().unwrap().port.to_string(),
            "[2001:db8::1]:80:8080/tcp,mode=host"
        );
        p.port = Some("192.0.2.1:80".into());
        assert!(p.request().is_err(), "two addresses");
        p.address = Some("::1".parse().unwrap());
        assert!(p.request().unwrap_err().message.contains("127.0.0.1"));
    }

    #[test]
    fn it_ends_with_a_line_to_try() {
        let ready = ServiceVerdict {
            done: true,
            ready: 2,
            wanted: 2,
            lag: Vec::new(),
        };
        let mut answer = PublishAnswer {
            revision: 42,
            service: "web".parse().unwrap(),
            port: "80".parse().unwrap(),
        };
        let nodes = fixture::nodes();
        assert_eq!(
            sentence(&answer, 3, &ready, &nodes, &[]),
            ":80 on 3 nodes -> web (2/2 healthy)\ntry: curl http://198.18.0.1:80/"
        );
        answer.port = "53:5353/udp".parse().unwrap();
        assert_eq!(
            sentence(&answer, 1, &ready, &nodes, &[]),
            ":53/udp on 1 node -> web:5353 (2/2 healthy)\ntry: nc -u 198.18.0.1 53"
        );
        answer.port = "31004:80".parse().unwrap();
        let text = sentence(&answer, 3, &ready, &nodes, &[]);
        assert!(text.starts_with(":31004 on 3 nodes -> web:80 (2/2 healthy)"), "{text}");
        answer.port = "192.0.2.1:80".parse().unwrap();
        assert_eq!(
            sentence(&answer, 3, &ready, &nodes, &[]),
            "192.0.2.1:80 where a node has it -> web (2/2 healthy)\ntry: curl http://192.0.2.1:80/"
        );
        answer.port = "80,mode=host".parse().unwrap();
        let text = sentence(&answer, 3, &ready, &nodes, &["beta".to_owned()]);
        assert!(
            text.starts_with(":80 on beta -> web (2/2 healthy)\neach node") && text.contains("http://198.18.0.2:80/"),
            "{text}"
        );
        assert_eq!(knock("fd00::1", "80".parse().unwrap()), "curl 'http://[fd00::1]:80/'");
        assert!(!sentence(&answer, 1, &ready, &[], &[]).contains("try"));
    }
}
