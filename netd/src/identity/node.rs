//! What a node keeps of its identity: its key and what it got when it joined.

use cluster::{rows::Signer, seal::Key};
use model::{ids::NodeId, intent::Role};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519};
use ring::signature::Ed25519KeyPair;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::{IdentityError, Vault, certificate};

/// File of the key.
pub(super) const KEY: &str = "key.pem";
/// File of the rest.
pub(super) const CREDENTIALS: &str = "credentials.json";

fn spoilt(name: &str, why: impl std::fmt::Display) -> IdentityError {
    IdentityError::Disk {
        path: name.into(),
        why: why.to_string(),
    }
}

/// The node's Ed25519 key.
pub struct NodeKey(KeyPair);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

impl NodeKey {
    /// Reads the key, or makes one and keeps it.
    pub fn load_or_create(vault: &Vault) -> Result<NodeKey, IdentityError> {
        let Some(pem) = vault.read(KEY)? else {
            let key = NodeKey::generate()?;
            vault.write(KEY, key.0.serialize_pem().as_bytes())?;
            return Ok(key);
        };
        std::str::from_utf8(&pem)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .filter(|k| k.is_compatible(&PKCS_ED25519))
            .map(NodeKey)
            .ok_or_else(|| spoilt(KEY, "it is no Ed25519 key"))
    }

    /// A key that is on no disk.
    pub fn generate() -> Result<NodeKey, IdentityError> {
        KeyPair::generate_for(&PKCS_ED25519)
            .map(NodeKey)
            .map_err(certificate("the node's key"))
    }

    /// The public key, 32 octets: what the intent holds for this node.
    pub fn public(&self) -> &[u8] {
        self.0.public_key_raw()
    }

    fn pair(&self) -> Result<Ed25519KeyPair, IdentityError> {
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(self.0.serialized_der()).map_err(|e| IdentityError::Certificate {
            what: "the node's key",
            why: e.to_string(),
        })
    }

    /// Signs this node's rows.
    pub fn signer(&self, cluster: &str) -> Result<Signer, IdentityError> {
        Ok(Signer::new(cluster, self.pair()?))
    }

    /// Signs octets.
    pub(crate) fn sign(&self, octets: &[u8]) -> Result<Vec<u8>, IdentityError> {
        Ok(self.pair()?.sign(octets).as_ref().to_vec())
    }

    /// A request for a certificate, PEM.
    pub fn csr(&self, hostname: &str) -> Result<String, IdentityError> {
        let err = certificate("the certificate's request");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, hostname);
        let csr = params.serialize_request(&self.0).map_err(&err)?;
        csr.pem().map_err(&err)
    }

    pub(super) fn der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}

/// What a node got when it joined. Without it a node is in no cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of this node.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// Its certificate, PEM, and those by which older roots vouch for the one that it is from.
    pub certificate: String,
    /// The CA's certificate, PEM; two while the CA changes.
    pub ca: String,
    /// Fingerprint of the root that the certificate is from.
    #[serde(default)]
    pub issuer: String,
    /// Gossip keys, the one to seal with first.
    #[serde(default)]
    pub gossip: Vec<Key>,
    /// Managers' RPC addresses known when it joined, `ip:port`; newer ones are in the intent.
    pub managers: Vec<String>,
}

/// What a manager hands out when it certifies a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// As in [`Credentials`].
    pub certificate: String,
    /// As in [`Credentials`].
    pub ca: String,
    /// As in [`Credentials`].
    pub issuer: String,
    /// As in the certificate.
    pub role: Role,
}

impl Credentials {
    /// Takes a new certificate.
    pub fn take(&mut self, issued: Issued) {
        self.certificate = issued.certificate;
        self.ca = issued.ca;
        self.issuer = issued.issuer;
        self.role = issued.role;
    }

    /// Reads them; `None`: this node is in no cluster.
    pub fn load(vault: &Vault) -> Result<Option<Credentials>, IdentityError> {
        let json = vault.read(CREDENTIALS)?;
        let read = |json: Vec<u8>| serde_json::from_slice(&json).map_err(|e| spoilt(CREDENTIALS, e));
        json.map(read).transpose()
    }

    /// Keeps them.
    pub fn save(&self, vault: &Vault) -> Result<(), IdentityError> {
        let json = serde_json::to_vec_pretty(self).map_err(|e| spoilt(CREDENTIALS, e))?;
        vault.write(CREDENTIALS, &json)
    }

    /// Forgets them, and the key: a node that joins again is a new one.
    pub fn remove(vault: &Vault) -> Result<(), IdentityError> {
        vault.remove(CREDENTIALS)?;
        vault.remove(KEY)
    }
}
