//! The cluster's CA and the other secrets that managers keep in the log.

use std::{collections::BTreeMap, time::SystemTime};

use cluster::seal::Key;
use model::{ids::NodeId, intent::Role};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType,
    SerialNumber,
};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    IdentityError, certificate, random,
    tls::SERVER_NAME,
    token::{SECRET, Token},
};

/// Days that a node's certificate is valid for; it is renewed after two thirds of them.
pub const CERTIFICATE_DAYS: u64 = 90;
const CA_DAYS: u64 = 20 * 365;
const DAY: u64 = 24 * 3600;

/// What only managers know.
#[derive(Clone)]
pub struct ClusterSecrets {
    ca_cert: String,
    ca_key: String,
    worker: [u8; SECRET],
    manager: [u8; SECRET],
    /// Gossip keys, the one to seal with first.
    pub gossip: Vec<Key>,
}

impl std::fmt::Debug for ClusterSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterSecrets").finish_non_exhaustive()
    }
}

/// A certificate's request whose signature was checked.
#[derive(Debug)]
pub struct Csr(CertificateSigningRequestParams);

impl Csr {
    /// Reads and checks one. Only Ed25519 keys are taken: the same key signs rows.
    pub fn parse(pem: &str) -> Result<Csr, IdentityError> {
        let csr = CertificateSigningRequestParams::from_pem(pem).map_err(certificate("the certificate's request"))?;
        if csr.public_key.algorithm() != &PKCS_ED25519 || csr.public_key.der_bytes().len() != 32 {
            return Err(IdentityError::Certificate {
                what: "the certificate's request",
                why: "its key is not Ed25519".into(),
            });
        }
        Ok(Csr(csr))
    }

    /// The public key, 32 octets.
    pub fn key(&self) -> &[u8] {
        self.0.public_key.der_bytes()
    }
}

/// Valid from an hour ago, for hosts whose clocks lag.
fn validity(params: &mut CertificateParams, days: u64) {
    let now = SystemTime::now();
    let hour = std::time::Duration::from_secs(3600);
    params.not_before = now.checked_sub(hour).unwrap_or(now).into();
    params.not_after = (now + std::time::Duration::from_secs(days * DAY)).into();
}

/// Texts that go by these names in the managers' secrets.
const CA_CERT: &str = "ca.cert";
const CA_KEY: &str = "ca.key";
const WORKER: &str = "token.worker";
const MANAGER: &str = "token.manager";
const GOSSIP: &str = "gossip.keys";

impl ClusterSecrets {
    /// New secrets for a new cluster.
    pub fn create(cluster: &str) -> Result<Self, IdentityError> {
        let err = certificate("the cluster's CA");
        let pair = KeyPair::generate_for(&PKCS_ED25519).map_err(&err)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("netd CA {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, CA_DAYS);
        let ca = params.self_signed(&pair).map_err(&err)?;
        Ok(ClusterSecrets {
            ca_cert: ca.pem(),
            ca_key: pair.serialize_pem(),
            worker: random()?,
            manager: random()?,
            gossip: vec![Key {
                id: 1,
                secret: random()?,
            }],
        })
    }

    /// As named octets, for the log.
    pub fn to_map(&self) -> BTreeMap<String, Vec<u8>> {
        let gossip = self
            .gossip
            .iter()
            .flat_map(|k| [k.id.to_be_bytes().as_slice(), k.secret.as_slice()].concat())
            .collect();
        [
            (CA_CERT, self.ca_cert.clone().into_bytes()),
            (CA_KEY, self.ca_key.clone().into_bytes()),
            (WORKER, self.worker.to_vec()),
            (MANAGER, self.manager.to_vec()),
            (GOSSIP, gossip),
        ]
        .map(|(name, v)| (name.to_owned(), v))
        .into()
    }

    /// From named octets.
    pub fn from_map<'a>(get: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Self, IdentityError> {
        let missing = |name: &str| IdentityError::Certificate {
            what: "the managers' secrets",
            why: format!("{name} is missing or malformed"),
        };
        let octets = |name| get(name).ok_or_else(|| missing(name));
        let text = |name| {
            std::str::from_utf8(octets(name)?)
                .map(str::to_owned)
                .map_err(|_| missing(name))
        };
        let secret = |name| octets(name)?.try_into().map_err(|_| missing(name));
        let (keys, rest) = octets(GOSSIP)?.as_chunks::<36>();
        if keys.is_empty() || !rest.is_empty() {
            return Err(missing(GOSSIP));
        }
        let key = |k: &[u8; 36]| {
            let (id, secret) = k.split_first_chunk::<4>()?;
            Some(Key {
                id: u32::from_be_bytes(*id),
                secret: secret.try_into().ok()?,
            })
        };
        Ok(ClusterSecrets {
            ca_cert: text(CA_CERT)?,
            ca_key: text(CA_KEY)?,
            worker: secret(WORKER)?,
            manager: secret(MANAGER)?,
            gossip: keys.iter().filter_map(key).collect(),
        })
    }

    /// The CA's certificate, PEM.
    pub fn ca(&self) -> &str {
        &self.ca_cert
    }

    /// The token to join with in a role.
    pub fn token(&self, role: Role) -> Result<Token, IdentityError> {
        Ok(Token {
            pin: pin(&self.ca_cert)?,
            secret: match role {
                Role::Worker => self.worker,
                Role::Manager => self.manager,
            },
        })
    }

    /// The role that a secret opens. Takes the same time whatever the secret is.
    pub fn role_of(&self, secret: &[u8]) -> Option<Role> {
        let worker = same(secret, &self.worker);
        let manager = same(secret, &self.manager);
        match (worker, manager) {
            (_, true) => Some(Role::Manager),
            (true, _) => Some(Role::Worker),
            _ => None,
        }
    }

    /// New secrets for a role: the old token is worth nothing.
    pub fn rotate_token(&mut self, role: Role) -> Result<(), IdentityError> {
        let new = random()?;
        match role {
            Role::Worker => self.worker = new,
            Role::Manager => self.manager = new,
        }
        Ok(())
    }

    /// A certificate (PEM) for a node. Of the request only the key counts: names and usages are ours.
    pub fn sign(&self, csr: &Csr, cluster: &str, node: NodeId, role: Role) -> Result<String, IdentityError> {
        let err = certificate("a node's certificate");
        let pair = KeyPair::from_pem(&self.ca_key).map_err(&err)?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca_cert, pair).map_err(&err)?;
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(&err)?;
        let uri = format!("netd://{cluster}/{node}/{}", role_name(role));
        let uri = uri.try_into().map_err(&err)?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node.to_string());
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, role_name(role));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        // A clear top bit keeps the number positive (RFC 5280 4.1.2.2).
        let mut serial = random::<16>()?;
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        validity(&mut params, CERTIFICATE_DAYS);
        let csr = CertificateSigningRequestParams {
            params,
            public_key: csr.0.public_key.clone(),
        };
        Ok(csr.signed_by(&issuer).map_err(&err)?.pem())
    }
}

pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager",
        Role::Worker => "worker",
    }
}

/// SHA-256 of a certificate given as PEM.
fn pin(pem: &str) -> Result<[u8; 32], IdentityError> {
    let bad = |why: String| IdentityError::Certificate {
        what: "the CA's certificate",
        why,
    };
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| bad(e.to_string()))?;
    pin_of(&der).ok_or_else(|| bad("no digest".into()))
}

pub(super) fn pin_of(der: &CertificateDer<'_>) -> Option<[u8; 32]> {
    digest(&SHA256, der).as_ref().try_into().ok()
}

/// Compares without telling where two texts differ.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}
