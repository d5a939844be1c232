//! A new cluster, decided but not yet written anywhere.

use std::{net::SocketAddr, time::Duration};

use cluster::state::{InitCluster, NewNode, Secret};
use ipnet::Ipv6Net;
use model::{ApiError, ClusterSettings, NetworkSpec, NodeId, intent::Role};

use crate::{
    daemon::internal,
    identity::{ClusterSecrets, Credentials, Csr, NodeKey, Subject, UnlockKey},
};

/// What makes a cluster begin.
pub struct FirstCommand {
    /// The first entry of the log.
    pub command: InitCluster,
    /// With `autolock`: the key that its disk is sealed with.
    pub unlock: Option<UnlockKey>,
}

/// A new cluster, decided but not yet written anywhere.
pub fn found(
    hostname: &str,
    key: &NodeKey,
    rpc: SocketAddr,
    mut settings: ClusterSettings,
) -> Result<(Credentials, FirstCommand), ApiError> {
    let id: [u8; 16] = crate::identity::random()?;
    let cluster: String = id.iter().map(|b| format!("{b:02x}")).collect();
    let mut secrets = ClusterSecrets::create(&cluster)?;
    if settings.autolock {
        secrets.unlock = Some(UnlockKey::create()?);
    }
    // The log gives ids from 1 on, so the founder's is known.
    let node = NodeId(1);
    let who = Subject {
        cluster: cluster.clone(),
        node,
        role: Role::Manager,
    };
    let life = Duration::from_millis(settings.cert_expiry_ms);
    let issued = secrets.ca.sign(&Csr::parse(&key.csr(hostname)?)?, &who, life)?;
    let credentials = Credentials {
        cluster: cluster.clone(),
        node,
        role: Role::Manager,
        certificate: issued.certificate,
        ca: issued.ca,
        issuer: issued.issuer,
        gossip: secrets.gossip.keys().to_vec(),
        managers: vec![rpc.to_string()],
    };
    if settings.default_addr_pool6.is_none() {
        settings.default_addr_pool6 = Some(random_ula()?);
    }
    cluster::state::check_settings(&settings)?;
    let avoid = crate::reconcile::host::routed_subnets().map_err(|e| internal("routes of this host", e))?;
    let command = InitCluster {
        cluster,
        node: NewNode {
            hostname: hostname.to_owned(),
            role: Role::Manager,
            key: key.public().to_vec(),
            rpc: Some(rpc.to_string()),
        },
        settings,
        default_network: NetworkSpec::default(),
        avoid: avoid.into_iter().collect(),
        secrets: secrets
            .to_map()?
            .into_iter()
            .filter_map(|(k, v)| Some((k, Secret(v?))))
            .collect(),
    };
    let unlock = secrets.unlock;
    Ok((credentials, FirstCommand { command, unlock }))
}

/// A random /48 of fd00::/8 (RFC 4193 3.2).
fn random_ula() -> Result<Ipv6Net, ApiError> {
    let r: [u8; 5] = crate::identity::random()?;
    let mut octets = [0u8; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&r);
    Ipv6Net::new(octets.into(), 48).map_err(|e| internal("the ULA prefix", e))
}
