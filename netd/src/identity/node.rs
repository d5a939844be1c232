//! What a node keeps of its identity on disk, in `<state_dir>/identity` (0700, files 0600).

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use cluster::{rows::Signer, seal::Key};
use model::{ids::NodeId, intent::Role};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519};
use ring::signature::Ed25519KeyPair;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::{IdentityError, certificate};
use crate::disk::write_atomic;

const FOLDER: &str = "identity";
const KEY: &str = "key.pem";
const CREDENTIALS: &str = "credentials.json";

fn failed(path: &Path) -> impl Fn(std::io::Error) -> IdentityError {
    let path = path.to_owned();
    move |e| IdentityError::Disk {
        path: path.clone(),
        why: e.to_string(),
    }
}

fn folder(state_dir: &Path) -> Result<PathBuf, IdentityError> {
    let dir = state_dir.join(FOLDER);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(failed(&dir))?;
    Ok(dir)
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
    pub fn load_or_create(state_dir: &Path) -> Result<NodeKey, IdentityError> {
        let path = folder(state_dir)?.join(KEY);
        match fs::read_to_string(&path) {
            Ok(pem) => KeyPair::from_pem(&pem)
                .ok()
                .filter(|k| k.is_compatible(&PKCS_ED25519))
                .map(NodeKey)
                .ok_or_else(|| IdentityError::Disk {
                    path,
                    why: "it is no Ed25519 key".into(),
                }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let key = NodeKey::generate()?;
                write_atomic(&path, key.0.serialize_pem().as_bytes(), 0o600).map_err(failed(&path))?;
                Ok(key)
            }
            Err(e) => Err(failed(&path)(e)),
        }
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

    /// Signs this node's rows.
    pub fn signer(&self, cluster: &str) -> Result<Signer, IdentityError> {
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(self.0.serialized_der())
            .map(|pair| Signer::new(cluster, pair))
            .map_err(|e| IdentityError::Certificate {
                what: "the node's key",
                why: e.to_string(),
            })
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
    /// Its certificate, PEM.
    pub certificate: String,
    /// The CA's certificate, PEM; two while the CA changes.
    pub ca: String,
    /// Gossip keys, the one to seal with first.
    #[serde(default)]
    pub gossip: Vec<Key>,
    /// Managers' RPC addresses known when it joined, `ip:port`; newer ones are in the intent.
    pub managers: Vec<String>,
}

impl Credentials {
    /// Reads them; `None`: this node is in no cluster.
    pub fn load(state_dir: &Path) -> Result<Option<Credentials>, IdentityError> {
        let path = state_dir.join(FOLDER).join(CREDENTIALS);
        match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map(Some)
                .map_err(|e| IdentityError::Disk {
                    path,
                    why: e.to_string(),
                }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(&path)(e)),
        }
    }

    /// Keeps them.
    pub fn save(&self, state_dir: &Path) -> Result<(), IdentityError> {
        let path = folder(state_dir)?.join(CREDENTIALS);
        let json = serde_json::to_vec_pretty(self).map_err(|e| IdentityError::Disk {
            path: path.clone(),
            why: e.to_string(),
        })?;
        write_atomic(&path, &json, 0o600).map_err(failed(&path))
    }

    /// Forgets them, and the key: a node that joins again is a new one.
    pub fn remove(state_dir: &Path) -> Result<(), IdentityError> {
        for name in [CREDENTIALS, KEY] {
            let path = state_dir.join(FOLDER).join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path)(e)),
                _ => {}
            }
        }
        Ok(())
    }
}
