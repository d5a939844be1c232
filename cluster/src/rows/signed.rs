//! A row with its owner's signature: octets, checks, signing.

use model::row::{EndpointRow, Row, RowBody, RowKey};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// Most octets of an encoded row, without its signature: with it, it fits one sealed packet.
pub const MAX_ROW: usize = 1200;

/// Octets of an Ed25519 signature (RFC 8032 5.1.6).
pub const SIGNATURE: usize = 64;

/// Longest host name in a row (RFC 1035 2.3.4).
const MAX_HOSTNAME: usize = 253;

/// Longest version text in a row.
const MAX_VERSION: usize = 64;

/// Separates signatures of rows from all others that the same key makes.
const CONTEXT: &[u8] = b"netd row 1\0";

/// Why octets are no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// It ends too early.
    #[error("a row is cut short; try: check that all nodes run the same version of netd (netctl node ls)")]
    Short,
    /// It is longer than [`MAX_ROW`].
    #[error("a row of {0} octets is longer than {MAX_ROW}; try: shorter names")]
    Long(usize),
    /// It is not what it should be.
    #[error("a row is malformed: {0}; try: check that all nodes run the same version of netd (netctl node ls)")]
    Malformed(&'static str),
}

/// A row, the octets that were signed, and the signature. The octets are kept as they came, so that a relay passes on
/// exactly what the owner signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRow {
    row: Row,
    bytes: Box<[u8]>,
    signature: [u8; SIGNATURE],
}

impl SignedRow {
    /// What it says.
    pub fn row(&self) -> &Row {
        &self.row
    }

    /// Octets on the wire.
    pub fn size(&self) -> usize {
        2 + self.bytes.len() + SIGNATURE
    }

    /// What two rows of the same key are ordered by: the version, then (an owner that signed two rows of one version)
    /// the octets, so that every node keeps the same one.
    pub(super) fn rank(&self) -> (u64, &[u8], &[u8]) {
        (self.row.version, &self.bytes, &self.signature)
    }

    /// Octets that a digest is made of.
    pub(super) fn parts(&self) -> [&[u8]; 2] {
        [&self.bytes, &self.signature]
    }

    /// Appends length (2 octets, big endian), row, signature.
    pub fn encode(&self, out: &mut Vec<u8>) {
        // The constructors keep it below MAX_ROW.
        let len = u16::try_from(self.bytes.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&self.bytes);
        out.extend_from_slice(&self.signature);
    }

    /// Takes one row off the front of `from`. The signature is not checked here.
    pub fn decode(from: &mut &[u8]) -> Result<SignedRow, RowError> {
        let (len, rest) = from.split_first_chunk::<2>().ok_or(RowError::Short)?;
        let len = usize::from(u16::from_be_bytes(*len));
        if len > MAX_ROW {
            return Err(RowError::Long(len));
        }
        let (bytes, rest) = rest.split_at_checked(len).ok_or(RowError::Short)?;
        let (signature, rest) = rest.split_first_chunk::<SIGNATURE>().ok_or(RowError::Short)?;
        let (row, left) =
            postcard::take_from_bytes::<Row>(bytes).map_err(|_| RowError::Malformed("it does not decode"))?;
        if !left.is_empty() {
            return Err(RowError::Malformed("it has more octets than it needs"));
        }
        check(&row)?;
        *from = rest;
        Ok(SignedRow {
            row,
            bytes: bytes.into(),
            signature: *signature,
        })
    }

    /// Whether the holder of `key` (32 octets, Ed25519) made it for this cluster.
    pub fn verify(&self, cluster: &str, key: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, key)
            .verify(&to_sign(cluster, &self.bytes), &self.signature)
            .is_ok()
    }
}

/// Decodes rows laid end to end; the first fault ends it.
pub fn decode_all(mut from: &[u8]) -> Result<Vec<SignedRow>, RowError> {
    let mut out = Vec::new();
    while !from.is_empty() {
        out.push(SignedRow::decode(&mut from)?);
    }
    Ok(out)
}

/// Signs this node's rows.
pub struct Signer {
    cluster: String,
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// A signer for a cluster, with the node's key pair.
    pub fn new(cluster: impl Into<String>, pair: Ed25519KeyPair) -> Self {
        Signer {
            cluster: cluster.into(),
            pair,
        }
    }

    /// The public key, 32 octets.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Signs a row. Errors: it is malformed or longer than [`MAX_ROW`].
    pub fn sign(&self, row: Row) -> Result<SignedRow, RowError> {
        check(&row)?;
        let bytes = postcard::to_allocvec(&row)
            .map_err(|_| RowError::Malformed("it does not encode"))?
            .into_boxed_slice();
        if bytes.len() > MAX_ROW {
            return Err(RowError::Long(bytes.len()));
        }
        let made = self.pair.sign(&to_sign(&self.cluster, &bytes));
        let signature = made
            .as_ref()
            .try_into()
            .map_err(|_| RowError::Malformed("its signature has a wrong length"))?;
        Ok(SignedRow { row, bytes, signature })
    }
}

fn to_sign(cluster: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(CONTEXT.len() + cluster.len() + 1 + bytes.len());
    out.extend_from_slice(CONTEXT);
    out.extend_from_slice(cluster.as_bytes());
    out.push(0);
    out.extend_from_slice(bytes);
    out
}

/// What any row must satisfy, whoever made it.
fn check(row: &Row) -> Result<(), RowError> {
    let bad = |why| Err(RowError::Malformed(why));
    if row.version == 0 {
        return bad("its version is 0");
    }
    match (&row.key, &row.body) {
        (_, RowBody::Tombstone) => Ok(()),
        (RowKey::Node, RowBody::Node(n)) => {
            if n.hostname.len() > MAX_HOSTNAME || n.version.len() > MAX_VERSION {
                return bad("a name in it is too long");
            }
            Ok(())
        }
        (RowKey::Endpoint(_), RowBody::Endpoint(e)) => {
            if e.listening.len() > EndpointRow::MAX_LISTENING {
                return bad("it lists too many listening ports");
            }
            if !e.listening.is_sorted() {
                return bad("its listening ports are not sorted");
            }
            Ok(())
        }
        _ => bad("its key and its content are of two kinds"),
    }
}
