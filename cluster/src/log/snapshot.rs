//! A snapshot's file: written under another name, made durable, renamed. A head of 32 octets, then chunks of at most
//! 64 KiB, each with its length, checksum and seal; the seal is bound to the index, the chunk's number and their count, so
//! that chunks cannot be swapped, repeated or left out.

use super::{LogError, seal::Sealer};
use crate::raft::Snapshot;

const FORMAT: u32 = 1;
const MAGIC: [u8; 8] = *b"netdsnap";
const HEAD: usize = 32;
const CHUNK: usize = 64 << 10;
/// Longest snapshot, octets: bounds what a damaged length may ask for.
const MAX: usize = 1 << 30;

/// Name of a snapshot's file.
pub(super) fn name(index: u64) -> String {
    format!("snap-{index:016x}")
}

/// Index in a snapshot's name.
pub(super) fn index_of(name: &str) -> Option<u64> {
    let hex = name.strip_prefix("snap-").filter(|h| h.len() == 16)?;
    u64::from_str_radix(hex, 16).ok()
}

fn aad(index: u64, chunk: u32, chunks: u32) -> [u8; 24] {
    let mut out = [0; 24];
    out[..8].copy_from_slice(&MAGIC);
    out[8..16].copy_from_slice(&index.to_le_bytes());
    out[16..20].copy_from_slice(&chunk.to_le_bytes());
    out[20..].copy_from_slice(&chunks.to_le_bytes());
    out
}

pub(super) fn encode(snapshot: &Snapshot, sealer: &mut Sealer) -> Option<Vec<u8>> {
    let plain = postcard::to_allocvec(snapshot).ok()?;
    if plain.len() > MAX {
        return None;
    }
    let chunks = u32::try_from(plain.chunks(CHUNK).len()).ok()?;
    let mut out = vec![0; HEAD];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    out[12..16].copy_from_slice(&chunks.to_le_bytes());
    out[16..24].copy_from_slice(&snapshot.index.to_le_bytes());
    let crc = crc32c::crc32c(&out[..28]);
    out[28..32].copy_from_slice(&crc.to_le_bytes());
    for (number, chunk) in (0u32..).zip(plain.chunks(CHUNK)) {
        let sealed = sealer.seal(&aad(snapshot.index, number, chunks), chunk)?;
        out.extend_from_slice(&u32::try_from(sealed.len()).ok()?.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&sealed).to_le_bytes());
        out.extend_from_slice(&sealed);
    }
    Some(out)
}

pub(super) fn decode(name: &str, bytes: &[u8], sealer: &Sealer) -> Result<Snapshot, LogError> {
    let damaged = |at: usize, why| LogError::Damaged {
        name: name.into(),
        at,
        why,
    };
    let u32_at = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    let head = bytes.get(..HEAD).ok_or(damaged(0, "it is shorter than its head"))?;
    if head[..8] != MAGIC || u32_at(28) != Some(crc32c::crc32c(&head[..28])) {
        return Err(damaged(0, "its head does not match its checksum"));
    }
    let (format, chunks) = (u32_at(8).unwrap_or(0), u32_at(12).unwrap_or(0));
    if format != FORMAT {
        return Err(LogError::Newer {
            name: name.into(),
            format,
        });
    }
    let index = u64::from_le_bytes(head[16..24].try_into().unwrap_or_default());
    let mut plain = Vec::new();
    let mut at = HEAD;
    for number in 0..chunks {
        let short = || damaged(at, "it ends within a chunk");
        let len = u32_at(at).ok_or_else(short)? as usize;
        let crc = u32_at(at + 4).ok_or_else(short)?;
        let sealed = bytes.get(at + 8..).and_then(|b| b.get(..len)).ok_or_else(short)?;
        if crc32c::crc32c(sealed) != crc {
            return Err(damaged(at, "a chunk does not match its checksum"));
        }
        let chunk = sealer.open(&aad(index, number, chunks), sealed);
        plain.extend(chunk.ok_or_else(|| LogError::WrongKey { name: name.into() })?);
        at += 8 + len;
    }
    if at != bytes.len() {
        return Err(damaged(at, "there is more than its head says"));
    }
    let snapshot: Snapshot = postcard::from_bytes(&plain).map_err(|_| damaged(HEAD, "its content cannot be read"))?;
    match snapshot.index == index {
        true => Ok(snapshot),
        false => Err(damaged(0, "its head and its content differ")),
    }
}
