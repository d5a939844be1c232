//! The API on the socket: bodies in JSON, and values written as text.

use model::{
    ClusterSettings, Intent, NetworkSpec, PortSpec, ServiceSpec,
    api::{
        Backup, CaRotate, ClusterInit, ClusterJoin, ClusterLeave, ClusterRenew, ClusterUnlock, ClusterUpdate, Discover,
        EndpointCreate, Publish, Restore, RoleChange, Scale, TaskStatus, TokenRotate, Transfer,
    },
    intent::IntentDelta,
};
use serde::de::DeserializeOwned;

use super::sure;

fn read<T: DeserializeOwned>(octets: &[u8]) -> Option<T> {
    serde_json::from_slice(octets).ok()
}

/// Every type that a body can be.
pub(super) fn open(octets: &[u8]) {
    let _ = read::<ClusterInit>(octets);
    let _ = read::<ClusterJoin>(octets);
    let _ = read::<ClusterLeave>(octets);
    let _ = read::<ClusterRenew>(octets);
    let _ = read::<ClusterUnlock>(octets);
    let _ = read::<Backup>(octets);
    let _ = read::<Restore>(octets);
    let _ = read::<Transfer>(octets);
    let _ = read::<Discover>(octets);
    let _ = read::<RoleChange>(octets);
    let _ = read::<CaRotate>(octets);
    let _ = read::<TokenRotate>(octets);
    let _ = read::<Scale>(octets);
    let _ = read::<Publish>(octets);
    let _ = read::<EndpointCreate>(octets);
    let _ = read::<TaskStatus>(octets);
    let _ = read::<NetworkSpec>(octets);
    let _ = read::<ServiceSpec>(octets);
    if let Some(update) = read::<ClusterUpdate>(octets) {
        let mut settings = ClusterSettings::default();
        for (key, value) in &update.set {
            let change = model::settings::Change::parse(key, value);
            let _ = change.and_then(|c| settings.set(&c));
        }
        let _ = settings.check();
        let _ = settings.list();
    }
    if let Some(settings) = read::<ClusterSettings>(octets) {
        let _ = (settings.check(), settings.list(), settings.cert_expiry());
    }
    if let Some(delta) = read::<IntentDelta>(octets) {
        Intent::default().apply(delta);
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let spec = ServiceSpec {
        networks: vec![sure("app".parse())],
        publish: vec![sure("80:8080".parse())],
        command: vec!["serve".into()],
        ..ServiceSpec::default()
    };
    let mut out = vec![
        sure(serde_json::to_vec(&spec)),
        sure(serde_json::to_vec(&NetworkSpec {
            subnet: Some(sure("10.77.0.0/16".parse())),
            subnet6: Some(sure("fd00::/64".parse())),
            ..NetworkSpec::default()
        })),
        sure(serde_json::to_vec(&ClusterSettings::default())),
    ];
    let texts = [
        r#"{"token":"NETD-1-abc","addr":"192.0.2.1:2377","advertise_addr":"eth0","discover":null}"#,
        r#"{"role":"manager","force":true}"#,
        r#"{"replicas":4294967295}"#,
        r#"{"service":"web","port":{"published":80,"target":8080,"proto":"tcp"}}"#,
        r#"{"network":"app","netns":"/run/netns/a","interface":"eth0","service":"web"}"#,
        r#"{"state":"running","pid":12,"message":"x"}"#,
        r#"{"secret":"c2VjcmV0","file":"AAAA","force":false}"#,
        r#"{"url":"etcd://192.0.2.1/netd"}"#,
        r#"{"set":{"cert-expiry":"10s","autolock":"true","default-addr-pool":"10.0.0.0/8"}}"#,
        r#"{"from":0,"to":9,"cluster":"c1","nodes":{"1":null},"networks":{},"services":{},"blocks":{},"placements":{}}"#,
    ];
    out.extend(texts.map(|t| t.as_bytes().to_vec()));
    out
}

/// Names, ports, settings, sockets.
pub(super) fn open_text(octets: &[u8]) {
    let text = String::from_utf8_lossy(octets);
    let _ = text.parse::<model::Name>();
    let _ = text.parse::<model::NodeId>();
    let _ = text.parse::<model::EndpointId>();
    let _ = text.parse::<model::Mac>();
    let _ = text.parse::<u32>().map(model::Vni::try_from);
    let _ = text.parse::<PortSpec>().map(|p| p.to_string());
    let _ = model::settings::parse_time(&text).map(model::settings::show_time);
    if let Some((key, value)) = text.split_once('=')
        && let Ok(change) = model::settings::Change::parse(key, value)
    {
        let mut settings = ClusterSettings::default();
        let _ = settings.set(&change);
        let _ = settings.list();
    }
}

pub(super) fn text_seeds() -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = [
        "web",
        "n12",
        "web.1",
        "02:00:00:00:00:01",
        "4096",
        "80:8080/tcp",
        "53/udp",
        "1h30m",
        "90d",
        "250ms",
        "external-ca=protocol=cfssl,url=https://ca.example:8888/sign,ca=x",
        "default-addr-pool=10.0.0.0/8,fd00::/48",
    ]
    .map(|t| t.as_bytes().to_vec())
    .into();
    for (key, value) in ClusterSettings::default().list() {
        out.push(format!("{}={value}", key.name()).into_bytes());
    }
    out
}
