//! The cluster's CA: makes roots, certificates of nodes, and the certificate by which an old root vouches for a new one.

use std::time::{Duration, SystemTime};

use model::{ids::NodeId, intent::Role};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use ring::{
    digest::{SHA256, digest},
    signature::{ED25519, UnparsedPublicKey},
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use x509_parser::{
    certification_request::X509CertificationRequest,
    der_parser::asn1_rs::Tag,
    prelude::{FromDer, X509Certificate, X509Name},
};

use super::{IdentityError, certificate, random, tls::SERVER_NAME};

/// How long a node's certificate is valid for when nothing else is set: 90 days.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long a root is.
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// A certificate is valid this much before it was made, or its own life if that is shorter: for hosts whose clocks lag.
const BACKDATE: Duration = Duration::from_secs(3600);
/// Roots between a root and a node's certificate that vouch for each other.
const CROSS_DEPTH: u8 = 4;
/// `SubjectPublicKeyInfo` of an Ed25519 key (RFC 8410 4) less the key.
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// `id-Ed25519` (RFC 8410 3).
const ED25519_OID: &str = "1.3.101.112";

fn bad(what: &'static str, why: impl Into<String>) -> IdentityError {
    IdentityError::Certificate { what, why: why.into() }
}

/// A certificate's request whose signature was checked.
#[derive(Debug, Clone)]
pub struct Csr {
    pem: String,
    key: [u8; 32],
}

impl Csr {
    /// Reads and checks one. Only Ed25519 keys are taken: the same key signs rows. Of the rest nothing counts: names and
    /// usages are the CA's to say.
    pub fn parse(pem: &str) -> Result<Csr, IdentityError> {
        const WHAT: &str = "the certificate's request";
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| bad(WHAT, "it is no PEM of a request"))?;
        let (rest, csr) = X509CertificationRequest::from_der(&der).map_err(|_| bad(WHAT, "it is no request"))?;
        let spki = &csr.certification_request_info.subject_pki;
        let ed25519 = |oid: &x509_parser::der_parser::oid::Oid<'_>| oid.to_id_string() == ED25519_OID;
        if !rest.is_empty() || !ed25519(&spki.algorithm.algorithm) || !ed25519(&csr.signature_algorithm.algorithm) {
            return Err(bad(WHAT, "its key is not Ed25519"));
        }
        let key: [u8; 32] = (*spki.subject_public_key.data)
            .try_into()
            .map_err(|_| bad(WHAT, "its key is not Ed25519"))?;
        UnparsedPublicKey::new(&ED25519, key)
            .verify(csr.certification_request_info.raw, &csr.signature_value.data)
            .map_err(|_| bad(WHAT, "it is not signed with its own key"))?;
        Ok(Csr {
            pem: pem.to_owned(),
            key,
        })
    }

    /// The public key, 32 octets.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// As it came.
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

/// Who a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Id of the cluster.
    pub cluster: String,
    /// Node.
    pub node: NodeId,
    /// Role.
    pub role: Role,
}

impl Subject {
    /// What stands in the certificate.
    pub fn uri(&self) -> String {
        format!("netd://{}/{}/{}", self.cluster, self.node, role_name(self.role))
    }
}

fn validity(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = now.checked_sub(BACKDATE.min(life)).unwrap_or(now).into();
    params.not_after = (now + life).into();
}

/// When a certificate was made, from its limits: the reverse of what [`Root::sign`] writes.
pub(super) fn made_at(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    let all = not_after.duration_since(not_before).unwrap_or_default();
    not_before + (all / 2).min(BACKDATE)
}

fn serial() -> Result<SerialNumber, IdentityError> {
    // A clear top bit keeps the number positive (RFC 5280 4.1.2.2).
    let mut serial = random::<16>()?;
    serial[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&serial))
}

/// A root: its certificate, and its key unless somebody else keeps that.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    cert: String,
    key: Option<String>,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root")
            .field("fingerprint", &self.fingerprint())
            .field("key", &self.key.is_some())
            .finish()
    }
}

impl Root {
    /// A new root with a new key. `number` counts the cluster's roots.
    pub fn create(cluster: &str, number: u32) -> Result<Root, IdentityError> {
        let err = certificate("the cluster's CA");
        let pair = KeyPair::generate_for(&PKCS_ED25519).map_err(&err)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let name = format!("netd CA {cluster} {number}");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(CROSS_DEPTH));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial()?);
        validity(&mut params, CA_LIFE);
        let ca = params.self_signed(&pair).map_err(&err)?;
        Ok(Root {
            cert: ca.pem(),
            key: Some(pair.serialize_pem()),
        })
    }

    /// A root whose key an external signer keeps: exactly one certificate of a CA, PEM.
    pub fn given(pem: &str) -> Result<Root, IdentityError> {
        const WHAT: &str = "the CA's certificate";
        let all: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| bad(WHAT, "it is no PEM"))?;
        let [der] = all.as_slice() else {
            return Err(bad(WHAT, format!("{} certificates, one is needed", all.len())));
        };
        let (_, x) = X509Certificate::from_der(der).map_err(|_| bad(WHAT, "it cannot be read"))?;
        if !x.is_ca() {
            return Err(bad(WHAT, "it is not a CA's"));
        }
        if !x.validity().is_valid() {
            return Err(bad(WHAT, "it has expired, or is not valid yet"));
        }
        // What has to be written again when an older root vouches for it.
        distinguished_name(x.subject())?;
        public_key(&x)?;
        Ok(Root {
            cert: pem.trim().to_owned() + "\n",
            key: None,
        })
    }

    /// Its certificate, PEM.
    pub fn cert(&self) -> &str {
        &self.cert
    }

    /// Whether its key is here.
    pub fn signs(&self) -> bool {
        self.key.is_some()
    }

    /// The same, the key forgotten.
    pub fn without_key(self) -> Root {
        Root { key: None, ..self }
    }

    /// SHA-256 of its certificate, hexadecimal.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.cert)
    }

    /// SHA-256 of its certificate.
    pub fn pin(&self) -> Result<[u8; 32], IdentityError> {
        let der = CertificateDer::from_pem_slice(self.cert.as_bytes());
        der.ok()
            .and_then(|d| pin_of(&d))
            .ok_or_else(|| bad("the CA's certificate", "it cannot be read"))
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, IdentityError> {
        let err = certificate("the cluster's CA");
        let key = self
            .key
            .as_ref()
            .ok_or_else(|| bad("the cluster's CA", "its key is kept by an external signer"))?;
        let pair = KeyPair::from_pem(key).map_err(&err)?;
        Issuer::from_ca_cert_pem(&self.cert, pair).map_err(&err)
    }

    /// A certificate (PEM) for a node that is valid for `life`. Of the request only the key counts.
    pub fn sign(&self, csr: &Csr, who: &Subject, life: Duration) -> Result<String, IdentityError> {
        let err = certificate("a node's certificate");
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(&err)?;
        let uri = who.uri().try_into().map_err(&err)?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, who.node.to_string());
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, role_name(who.role));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(serial()?);
        validity(&mut params, life);
        let key = SubjectPublicKeyInfo::from_der(&[&ED25519_SPKI, csr.key()].concat()).map_err(&err)?;
        Ok(params.signed_by(&key, &self.issuer()?).map_err(&err)?.pem())
    }

    /// A certificate (PEM) by which this root vouches for another one: who knows only this one may trust what the other
    /// has signed.
    pub fn vouch(&self, new: &Root) -> Result<String, IdentityError> {
        const WHAT: &str = "the new CA's certificate";
        let err = certificate(WHAT);
        let der = CertificateDer::from_pem_slice(new.cert.as_bytes()).map_err(|_| bad(WHAT, "it is no PEM"))?;
        let (_, x) = X509Certificate::from_der(&der).map_err(|_| bad(WHAT, "it cannot be read"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(x.subject())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(CROSS_DEPTH));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial()?);
        validity(&mut params, CA_LIFE);
        params.not_after = x.validity().not_after.to_datetime();
        let cross = params.signed_by(&public_key(&x)?, &self.issuer()?).map_err(&err)?;
        // Chains are built by comparing names octet by octet.
        let same =
            X509Certificate::from_der(cross.der()).is_ok_and(|(_, c)| c.subject().as_raw() == x.subject().as_raw());
        match same {
            true => Ok(cross.pem()),
            false => Err(bad(WHAT, "its subject cannot be written again")),
        }
    }
}

fn public_key(x: &X509Certificate<'_>) -> Result<SubjectPublicKeyInfo, IdentityError> {
    SubjectPublicKeyInfo::from_der(x.public_key().raw).map_err(certificate("the new CA's certificate"))
}

/// Only what can be written again as it was: one attribute a step, UTF-8 or printable.
fn distinguished_name(name: &X509Name<'_>) -> Result<DistinguishedName, IdentityError> {
    let odd = || bad("the new CA's certificate", "its subject has attributes of an odd kind");
    let mut dn = DistinguishedName::new();
    for step in name.iter() {
        let mut attributes = step.iter();
        let (Some(a), None) = (attributes.next(), attributes.next()) else {
            return Err(odd());
        };
        let oid: Vec<u64> = a.attr_type().iter().ok_or_else(odd)?.collect();
        let text = a.as_str().map_err(|_| odd())?;
        let value = match a.attr_value().tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into().map_err(|_| odd())?),
            _ => return Err(odd()),
        };
        dn.push(DnType::from_oid(&oid), value);
    }
    Ok(dn)
}

pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager",
        Role::Worker => "worker",
    }
}

/// SHA-256 of the first certificate of a PEM, hexadecimal; empty: it has none.
pub fn fingerprint(pem: &str) -> String {
    let der = CertificateDer::from_pem_slice(pem.as_bytes());
    der.ok()
        .and_then(|d| pin_of(&d))
        .map(|pin| hex(&pin))
        .unwrap_or_default()
}

/// Lower case.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn pin_of(der: &CertificateDer<'_>) -> Option<[u8; 32]> {
    digest(&SHA256, der).as_ref().try_into().ok()
}

/// Compares without telling where two texts differ.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}
