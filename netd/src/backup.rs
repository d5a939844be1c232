//! The file of a backup: all that the managers know, sealed with a passphrase or a key file.
//!
//! ```text
//! "netdbkup" | format u32 | rounds u32 | salt 16 | check 16 | octets u64   | pieces, each 64 KiB + 16 | SHA-256 of it all
//! ```
//!
//! The digest tells damage, the check tells a wrong passphrase, and each piece is sealed with its place and whether it is the
//! last one, so that none can be left out or moved. Numbers are little endian.

use std::num::NonZeroU32;

use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    digest::{SHA256, digest},
    pbkdf2,
};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"netdbkup";
const FORMAT: u32 = 1;
const HEAD: usize = 56;
const PIECE: usize = 64 << 10;
const TAG: usize = 16;
const DIGEST: usize = 32;
/// Rounds of PBKDF2-HMAC-SHA256: about a quarter of a second, as OWASP advises for 2023.
const ROUNDS: u32 = 600_000;
/// Most rounds that a file may ask for.
const MAX_ROUNDS: u32 = 10_000_000;
/// Shortest passphrase, octets.
pub const MIN_SECRET: usize = 8;

/// Why a backup cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Too easy to guess.
    #[error("the passphrase has fewer than {MIN_SECRET} characters; try: a longer one, or --key-file")]
    Short,
    /// Not a backup.
    #[error("the file is no backup of netd's; try: the file that netctl cluster backup wrote")]
    Foreign,
    /// Made by a newer netd.
    #[error("the backup has format {0}, this netd knows {FORMAT}; try: the netd that wrote it")]
    Newer(u32),
    /// Not as it was written.
    #[error("the backup is damaged: {0}; try: another copy of it")]
    Damaged(&'static str),
    /// Not the one it was sealed with.
    #[error("this is not the passphrase or key file that the backup was sealed with; try: the right one")]
    WrongSecret,
    /// Randomness, or a library.
    #[error("the backup cannot be sealed; try: look at the host's log")]
    Seal,
}

/// What is in it.
#[derive(Serialize, Deserialize)]
pub struct Content {
    /// Id of the cluster.
    pub cluster: String,
    /// Version of the netd that made it.
    pub version: String,
    /// The state machine, encoded.
    pub state: Vec<u8>,
}

fn derive(secret: &[u8], salt: &[u8], rounds: u32) -> Option<(LessSafeKey, [u8; 16])> {
    let mut out = [0; 64];
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        NonZeroU32::new(rounds)?,
        salt,
        secret,
        &mut out,
    );
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, out.get(..32)?).ok()?);
    let check = digest(&SHA256, out.get(32..)?).as_ref().get(..16)?.try_into().ok()?;
    Some((key, check))
}

fn nonce(piece: usize) -> Nonce {
    // The salt makes a key of its own for every file, so counting is enough.
    let mut n = [0; 12];
    n[..8].copy_from_slice(&(piece as u64).to_le_bytes());
    Nonce::assume_unique_for_key(n)
}

fn aad(last: bool) -> Aad<[u8; 1]> {
    Aad::from([u8::from(last)])
}

/// Seals it. Takes a moment on purpose.
pub fn seal(content: &Content, secret: &[u8]) -> Result<Vec<u8>, BackupError> {
    seal_with(content, secret, ROUNDS)
}

fn seal_with(content: &Content, secret: &[u8], rounds: u32) -> Result<Vec<u8>, BackupError> {
    if secret.len() < MIN_SECRET {
        return Err(BackupError::Short);
    }
    let plain = postcard::to_allocvec(content).map_err(|_| BackupError::Seal)?;
    let salt: [u8; 16] = crate::identity::random().map_err(|_| BackupError::Seal)?;
    let (key, check) = derive(secret, &salt, rounds).ok_or(BackupError::Seal)?;
    let mut out = Vec::with_capacity(HEAD + plain.len() + plain.len() / PIECE * TAG + TAG + DIGEST);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&rounds.to_le_bytes());
    out.extend_from_slice(&salt);
    out.extend_from_slice(&check);
    out.extend_from_slice(&(plain.len() as u64).to_le_bytes());
    let pieces = plain.chunks(PIECE).len();
    for (i, piece) in plain.chunks(PIECE).enumerate() {
        let mut sealed = piece.to_vec();
        key.seal_in_place_append_tag(nonce(i), aad(i + 1 == pieces), &mut sealed)
            .map_err(|_| BackupError::Seal)?;
        out.extend_from_slice(&sealed);
    }
    let sum = digest(&SHA256, &out);
    out.extend_from_slice(sum.as_ref());
    Ok(out)
}

/// A backup that is opened at once, for the fuzzer's door.
pub(crate) fn example(secret: &[u8]) -> Vec<u8> {
    let content = Content {
        cluster: "c1".into(),
        version: "0.1.0".into(),
        state: vec![1; 100],
    };
    seal_with(&content, secret, 2).unwrap_or_default()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Opens it.
pub fn open(file: &[u8], secret: &[u8]) -> Result<Content, BackupError> {
    if file.get(..8) != Some(MAGIC.as_slice()) {
        return Err(BackupError::Foreign);
    }
    let short = || BackupError::Damaged("it is cut short");
    match u32_at(file, 8).ok_or_else(short)? {
        FORMAT => {}
        f => return Err(BackupError::Newer(f)),
    }
    let body_end = file
        .len()
        .checked_sub(DIGEST)
        .filter(|n| *n >= HEAD)
        .ok_or_else(short)?;
    let (body, sum) = file.split_at(body_end);
    if digest(&SHA256, body).as_ref() != sum {
        return Err(BackupError::Damaged("its checksum does not match"));
    }
    let rounds = u32_at(file, 12).filter(|r| (1..=MAX_ROUNDS).contains(r));
    let rounds = rounds.ok_or(BackupError::Damaged("its head makes no sense"))?;
    let salt = body.get(16..32).ok_or_else(short)?;
    let (key, check) = derive(secret, salt, rounds).ok_or(BackupError::Seal)?;
    if body.get(32..48) != Some(check.as_slice()) {
        return Err(BackupError::WrongSecret);
    }
    let octets = body
        .get(48..)
        .and_then(|b| b.first_chunk())
        .map(|b| u64::from_le_bytes(*b));
    let sealed = body.get(HEAD..).ok_or_else(short)?;
    let pieces = sealed.chunks(PIECE + TAG).len();
    let mut plain = Vec::with_capacity(sealed.len());
    for (i, piece) in sealed.chunks(PIECE + TAG).enumerate() {
        let mut piece = piece.to_vec();
        let opened = key
            .open_in_place(nonce(i), aad(i + 1 == pieces), &mut piece)
            .map_err(|_| BackupError::Damaged("a piece is not what was sealed"))?;
        plain.extend_from_slice(opened);
    }
    if octets != Some(plain.len() as u64) {
        return Err(BackupError::Damaged("its length is not what it says"));
    }
    postcard::from_bytes(&plain).map_err(|_| BackupError::Damaged("its content cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(octets: usize) -> Content {
        Content {
            cluster: "c1".into(),
            version: "1".into(),
            state: (0..octets).map(|i| (i * 7) as u8).collect(),
        }
    }

    #[test]
    fn what_was_sealed_is_opened_by_its_secret_alone() {
        for octets in [0, 1, PIECE - 10, PIECE * 2 + 5] {
            let file = seal_with(&content(octets), b"long enough", 2).unwrap();
            assert_eq!(open(&file, b"long enough").unwrap().state, content(octets).state);
            assert!(matches!(open(&file, b"another one"), Err(BackupError::WrongSecret)));
        }
        assert!(matches!(seal(&content(1), b"short"), Err(BackupError::Short)));
        let secret: Vec<u8> = (0..200).collect();
        let file = seal_with(&content(300), &secret, 2).unwrap();
        assert!(
            !file.windows(32).any(|w| content(300).state.windows(32).any(|s| s == w)),
            "it is sealed"
        );
    }

    #[test]
    fn damage_at_any_octet_is_told() {
        let file = seal_with(&content(100), b"long enough", 2).unwrap();
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 0x10;
            assert!(open(&bad, b"long enough").is_err(), "flipped at {at}");
            assert!(open(&file[..at], b"long enough").is_err(), "cut at {at}");
        }
        let mut newer = file;
        newer[8] = 9;
        assert!(matches!(open(&newer, b"long enough"), Err(BackupError::Newer(9))));
        assert!(matches!(
            open(b"PK\x03\x04 something else", b"long enough"),
            Err(BackupError::Foreign)
        ));
    }
}
