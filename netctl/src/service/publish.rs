//! `netctl service publish` and `unpublish`

use std::net::IpAddr;

use clap::Args;
use model::{
    ApiError, Code, Name, PortSpec, Proto,
    api::{NodeView, Publish, PublishAnswer},
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
    /// Port, e.g. 80, 80:8080 (on the nodes, then in the tasks), 53/udp.
    port: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

impl Ports {
    fn request(&self) -> Result<Publish, ApiError> {
        match (&self.service, &self.port) {
            (Some(port), None) => Ok(Publish {
                service: None,
                port: parse(port)?,
            }),
            (Some(service), Some(port)) => Ok(Publish {
                service: Some(service.parse()?),
                port: parse(port)?,
            }),
            (None, _) => Err(ApiError::new(
                Code::Invalid,
                "a port is missing",
                "netctl service publish 80",
            )),
        }
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
    let sentence = sentence(&answer, nodes.have, &ready, &all);
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

/// `:80`, `:53/udp`.
fn door(port: PortSpec) -> String {
    match port.proto {
        Proto::Tcp => format!(":{}", port.published),
        Proto::Udp => format!(":{}/udp", port.published),
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

fn sentence(answer: &PublishAnswer, nodes: usize, ready: &ServiceVerdict, all: &[NodeView]) -> String {
    let mut text = format!(
        "{} on {nodes} node{} -> {} ({}/{} healthy)",
        door(answer.port),
        if nodes == 1 { "" } else { "s" },
        backend(answer),
        ready.ready,
        ready.wanted
    );
    let me = all.iter().find(|n| n.me).and_then(|n| n.addr.as_deref());
    if let Some(addr) = me {
        text.push_str(&format!("\ntry: {}", knock(addr, answer.port)));
    }
    text
}

/// A command that tries a published port.
fn knock(addr: &str, port: PortSpec) -> String {
    match port.proto {
        Proto::Udp => format!("nc -u {addr} {}", port.published),
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
        for bad in ["0", "65536", "80:", "80/sctp", "", "-1"] {
            assert_eq!(ports(&[bad]).unwrap_err().code.exit(), 2, "{bad}");
        }
        assert_eq!(ports(&["w_b", "80"]).unwrap_err().code.exit(), 2);
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
            sentence(&answer, 3, &ready, &nodes),
            ":80 on 3 nodes -> web (2/2 healthy)\ntry: curl http://198.18.0.1:80/"
        );
        answer.port = "53:5353/udp".parse().unwrap();
        assert_eq!(
            sentence(&answer, 1, &ready, &nodes),
            ":53/udp on 1 node -> web:5353 (2/2 healthy)\ntry: nc -u 198.18.0.1 53"
        );
        assert_eq!(knock("fd00::1", "80".parse().unwrap()), "curl 'http://[fd00::1]:80/'");
        assert!(!sentence(&answer, 1, &ready, &[]).contains("try"));
    }
}
