//! The cipher of gossip datagrams: ChaCha20-Poly1305 (RFC 8439) with the cluster's keys.
//!
//! A packet is `format (1) | key id (4, big endian) | nonce (12) | ciphertext | tag (16)`; header and cluster id are
//! authenticated with it. Lengths are checked before anything is allocated. The ring holds up to three keys: all are
//! opened with, one is sealed with, so that keys are changed in two phases (all receive, then all send).
//!
//! A packet can be replayed, and whoever has the key can make any: so SWIM messages carry generations and incarnations,
//! rows carry versions and their owner's signature, and a death is confirmed over mutual TLS before it counts.
//!
//! Nonces are random: a key must not seal more than 2^32 packets in the whole cluster (NIST SP 800-38D 8.3 for 96-bit
//! random nonces). 25 nodes at 40 packets/s each take 50 days to get there.

use std::collections::BTreeMap;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Format of the packets, their first octet.
const FORMAT: u8 = 1;
/// Format and key id.
const HEADER: usize = 5;
/// Octets of a nonce (RFC 8439 2.8).
pub const NONCE: usize = 12;
/// Octets of a tag.
const TAG: usize = 16;
/// Most octets of a sealed packet: fits an Ethernet frame, also through one tunnel.
pub const MAX_PACKET: usize = 1400;
/// Most octets that can be sealed.
pub const MAX_PLAIN: usize = MAX_PACKET - HEADER - NONCE - TAG;
/// Most keys in a ring.
pub const MAX_KEYS: usize = 3;

/// A key of the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Its number, never used again.
    pub id: u32,
    /// 32 random octets.
    pub secret: [u8; 32],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret must not get into a log.
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a packet was not opened or sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not a packet of ours.
    #[error("a packet of {0} octets is too short or too long; try: look for a stranger on the gossip port")]
    Length(usize),
    /// Another format.
    #[error("a packet of format {0}, this netd speaks {FORMAT}; try: run the same version on all nodes")]
    Format(u8),
    /// A key that is not in the ring.
    #[error("a packet sealed with key {0}, which is not known here; try: wait for the key change to reach this node")]
    UnknownKey(u32),
    /// It was changed, or belongs to another cluster.
    #[error("a packet does not open; try: look for a node of another cluster with the same address")]
    Forged,
    /// A ring needs one to three keys.
    #[error("{0} gossip keys, 1 to {MAX_KEYS} are needed; try: cluster join again")]
    Keys(usize),
}

/// The keys in use.
#[derive(Clone)]
pub struct Keyring {
    cluster: String,
    keys: BTreeMap<u32, LessSafeKey>,
    primary: u32,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring")
            .field("keys", &self.keys.keys())
            .field("primary", &self.primary)
            .finish_non_exhaustive()
    }
}

impl Keyring {
    /// A ring; the first key seals, all open.
    pub fn new(cluster: impl Into<String>, keys: &[Key]) -> Result<Self, SealError> {
        let wrong = SealError::Keys(keys.len());
        if keys.len() > MAX_KEYS {
            return Err(wrong);
        }
        let primary = keys.first().ok_or(wrong)?.id;
        let keys = keys
            .iter()
            .map(|k| {
                let key = UnboundKey::new(&CHACHA20_POLY1305, &k.secret).map_err(|_| wrong)?;
                Ok((k.id, LessSafeKey::new(key)))
            })
            .collect::<Result<_, SealError>>()?;
        Ok(Keyring {
            cluster: cluster.into(),
            keys,
            primary,
        })
    }

    fn aad(&self, header: &[u8]) -> Vec<u8> {
        [header, self.cluster.as_bytes()].concat()
    }

    /// Seals `plain` (at most [`MAX_PLAIN`] octets). `nonce` must be random and never used twice.
    pub fn seal(&self, nonce: [u8; NONCE], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        if plain.len() > MAX_PLAIN {
            return Err(SealError::Length(plain.len()));
        }
        let key = self
            .keys
            .get(&self.primary)
            .ok_or(SealError::UnknownKey(self.primary))?;
        let mut out = Vec::with_capacity(HEADER + NONCE + plain.len() + TAG);
        out.push(FORMAT);
        out.extend_from_slice(&self.primary.to_be_bytes());
        let aad = self.aad(&out);
        out.extend_from_slice(&nonce);
        let mut body = plain.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut body)
            .map_err(|_| SealError::Length(plain.len()))?;
        out.append(&mut body);
        Ok(out)
    }

    /// Opens a packet.
    pub fn open(&self, packet: &[u8]) -> Result<Vec<u8>, SealError> {
        let length = SealError::Length(packet.len());
        if packet.len() > MAX_PACKET || packet.len() < HEADER + NONCE + TAG {
            return Err(length);
        }
        let (header, rest) = packet.split_first_chunk::<HEADER>().ok_or(length)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or(length)?;
        let [format, id @ ..] = *header;
        if format != FORMAT {
            return Err(SealError::Format(format));
        }
        let id = u32::from_be_bytes(id);
        let key = self.keys.get(&id).ok_or(SealError::UnknownKey(id))?;
        let mut body = sealed.to_vec();
        let plain = key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(self.aad(header)),
                &mut body,
            )
            .map_err(|_| SealError::Forged)?
            .len();
        body.truncate(plain);
        Ok(body)
    }
}
