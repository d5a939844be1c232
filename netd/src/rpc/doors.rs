//! Messages on the managers' port, from whoever may send them.

use futures_util::FutureExt;
use model::{ApiError, Intent, NodeId, intent::IntentDelta};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    MAX_DOWN, MAX_JOIN, MAX_UP, frame,
    message::{
        Answer, JoinAnswer, JoinRequest, ListAnswer, Opening, Report, Request, ReturnRequest, ToManager, ToNode,
    },
};
use crate::{
    doors::{example_intent, look_at},
    identity::{Csr, NodeKey, PeerId, former},
};

/// The next message; there is nothing to wait for.
fn next<T: DeserializeOwned>(octets: &mut &[u8], max: usize) -> Option<T> {
    frame::read(octets, max).now_or_never()?.ok()
}

fn frames<T: Serialize>(all: &[T]) -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = all.iter().filter_map(|m| frame::encode(m).ok()).collect();
    out.push(out.concat());
    out
}

/// What one without a certificate may say.
pub(crate) fn stranger(mut octets: &[u8]) {
    match next::<Opening>(&mut octets, MAX_JOIN) {
        Some(Opening::Join(r)) => drop(Csr::parse(&r.csr)),
        Some(Opening::Return(r)) => {
            let _ = Csr::parse(&r.csr);
            let _ = former(&r.certificate, std::iter::once(r.certificate.as_str()));
        }
        Some(Opening::List(_)) | None => {}
    }
}

pub(crate) fn stranger_seeds() -> Vec<Vec<u8>> {
    let csr = NodeKey::generate().and_then(|k| k.csr("host1")).unwrap_or_default();
    let all = [
        Opening::Join(JoinRequest {
            secret: vec![7; 16],
            csr: csr.clone(),
            hostname: "host1".into(),
            rpc: Some("198.18.0.1:2377".into()),
            availability: model::intent::Availability::Active,
        }),
        Opening::Return(ReturnRequest {
            certificate: crate::doors::pem("CERTIFICATE", &[0x30, 3, 2, 1, 1]),
            csr,
            proof: vec![1; 64],
        }),
        Opening::List(vec![7; 16]),
    ];
    frames(&all)
}

/// A node's stream.
pub(crate) fn node(mut octets: &[u8]) {
    while let Some(m) = next::<ToManager>(&mut octets, MAX_UP) {
        if let ToManager::Request {
            request: Request::Renew { csr },
            ..
        } = m
        {
            let _ = Csr::parse(&csr);
        }
    }
}

pub(crate) fn node_seeds() -> Vec<Vec<u8>> {
    let vni = model::Vni::try_from(4096).ok();
    let mut all = vec![
        ToManager::Hello {
            revision: 7,
            version: "0.1.0".into(),
        },
        ToManager::Report(Box::new(Report {
            applied: 7,
            problems: vec!["one".into()],
            held: [(NodeId(2), 9)].into(),
            ..Report::default()
        })),
        ToManager::Answer {
            id: 1,
            answer: Answer::Taken { owner: "nginx".into() },
        },
        ToManager::Request {
            id: 2,
            request: Request::Renew { csr: "x".into() },
        },
        ToManager::Request {
            id: 3,
            request: Request::Query {
                path: "/v1/nodes".into(),
            },
        },
        ToManager::Raft { from: 1, to: 2 },
        ToManager::Ping,
    ];
    all.extend(vni.map(|vni| ToManager::Request {
        id: 4,
        request: Request::NeedBlock { vni },
    }));
    frames(&all)
}

/// A manager's stream, and its answers to one who joins or looks for managers.
pub(crate) fn manager(octets: &[u8]) {
    let mut from = octets;
    let mut intent = Intent::default();
    while let Some(m) = next::<ToNode>(&mut from, MAX_DOWN) {
        match m {
            ToNode::Delta(delta) if intent.apply((*delta).clone()) => look_at(&intent),
            ToNode::Reply {
                reply: Ok(super::message::Reply::Certificate(issued)),
                ..
            } => drop(PeerId::of_pem(&issued.certificate)),
            _ => {}
        }
    }
    let _ = next::<Result<JoinAnswer, ApiError>>(&mut { octets }, MAX_JOIN);
    let _ = next::<Result<ListAnswer, ApiError>>(&mut { octets }, MAX_JOIN);
}

pub(crate) fn manager_seeds() -> Vec<Vec<u8>> {
    let whole = example_intent();
    let first: IntentDelta = Intent::default().delta_to(&whole);
    let mut later = whole.clone();
    later.revision += 1;
    later.services.clear();
    let all = [
        ToNode::Welcome { keys: Vec::new() },
        ToNode::Delta(Box::new(first)),
        ToNode::Delta(Box::new(whole.delta_to(&later))),
        ToNode::Held { version: 3 },
        ToNode::Leader {
            node: NodeId(2),
            addr: "198.18.0.2:2377".into(),
        },
        ToNode::Refused(ApiError::new(model::Code::Forbidden, "no", "")),
        ToNode::Ping,
    ];
    let mut out = frames(&all);
    out.extend(frames(&[Ok::<_, ApiError>(ListAnswer {
        cluster: "c1".into(),
        managers: vec!["198.18.0.1:2377".into()],
    })]));
    out
}
