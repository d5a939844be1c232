//! A segment: a file of fixed length, zero-filled in advance, with records one behind the other.
//!
//! ```text
//! 0   head of the segment, 64 octets: magic, format, epoch, sequence of its first record, owner's Raft id, crc32c
//! 64  records, each at a multiple of 32 (so that a head never straddles two sectors):
//!     0   magic, length of the sealed body, epoch, sequence, crc32c of the body, crc32c of this head   (32 octets)
//!     32  nonce, ciphertext, tag
//!     ..  tail mark, 8 octets, then zeros up to the next multiple of 32
//! ```
//! All numbers are little-endian. A record is written by one write and made durable before the next is written, so at
//! most the last one can be torn; whatever else does not check is damage, and said.

pub(super) const FORMAT: u32 = 1;
pub(super) const HEAD: usize = 64;
const ALIGN: usize = 32;
pub(super) const RECORD_HEAD: usize = 32;
const SEGMENT_MAGIC: [u8; 8] = *b"netd.log";
const RECORD_MAGIC: u32 = 0x6e72_6563;
/// No octet of it is zero: where it is missing, the end of the write is.
const TAIL: [u8; 8] = [0xa5; 8];
/// What disks write as a whole, octets.
const SECTOR: usize = 512;

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Name of a segment's file.
pub(super) fn name(epoch: u64) -> String {
    format!("log-{epoch:016x}")
}

/// Epoch in a segment's name.
pub(super) fn epoch_of(name: &str) -> Option<u64> {
    let hex = name.strip_prefix("log-").filter(|h| h.len() == 16)?;
    u64::from_str_radix(hex, 16).ok()
}

/// Head of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) epoch: u64,
    pub(super) first_seq: u64,
    /// Raft id of the manager that writes it; 0: not told.
    pub(super) owner: u64,
}

pub(super) enum BadHead {
    Newer(u32),
    Damaged,
}

impl Head {
    pub(super) fn encode(&self) -> [u8; HEAD] {
        let mut out = [0; HEAD];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..32].copy_from_slice(&self.first_seq.to_le_bytes());
        out[32..40].copy_from_slice(&self.owner.to_le_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Head, BadHead> {
        let head = bytes.get(..HEAD).ok_or(BadHead::Damaged)?;
        let get32 = |at| u32_at(head, at).ok_or(BadHead::Damaged);
        let get64 = |at| u64_at(head, at).ok_or(BadHead::Damaged);
        if head[..8] != SEGMENT_MAGIC || get32(60)? != crc32c::crc32c(&head[..60]) {
            return Err(BadHead::Damaged);
        }
        match get32(8)? {
            FORMAT => Ok(Head {
                epoch: get64(16)?,
                first_seq: get64(24)?,
                owner: get64(32)?,
            }),
            other => Err(BadHead::Newer(other)),
        }
    }
}

/// What the seal of a record is bound to.
pub(super) fn aad(epoch: u64, seq: u64) -> [u8; 24] {
    let mut out = [0; 24];
    out[..8].copy_from_slice(&SEGMENT_MAGIC);
    out[8..16].copy_from_slice(&epoch.to_le_bytes());
    out[16..].copy_from_slice(&seq.to_le_bytes());
    out
}

/// A record's octets; `None`: longer than the format can say.
pub(super) fn encode(epoch: u64, seq: u64, sealed: &[u8]) -> Option<Vec<u8>> {
    let len = u32::try_from(sealed.len()).ok()?;
    let total = (RECORD_HEAD + sealed.len() + TAIL.len()).next_multiple_of(ALIGN);
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(&RECORD_MAGIC.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&epoch.to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(sealed).to_le_bytes());
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(sealed);
    out.extend_from_slice(&TAIL);
    out.resize(total, 0);
    Some(out)
}

struct RecordHead {
    len: usize,
    epoch: u64,
    seq: u64,
    crc: u32,
}

fn record_head(bytes: &[u8], at: usize) -> Option<RecordHead> {
    let head = bytes.get(at..at + RECORD_HEAD)?;
    let sound = u32_at(head, 0)? == RECORD_MAGIC && u32_at(head, 28)? == crc32c::crc32c(&head[..28]);
    Some(RecordHead {
        len: usize::try_from(u32_at(head, 4)?).ok()?,
        epoch: u64_at(head, 8)?,
        seq: u64_at(head, 16)?,
        crc: u32_at(head, 24)?,
    })
    .filter(|_| sound)
}

/// What stands at a place of a segment.
pub(super) enum Found<'a> {
    /// A record, and the place behind it.
    Record(&'a [u8], usize),
    /// Nothing, or a write that did not end: here the log ends.
    End,
    /// Damage.
    Damaged(&'static str),
}

fn all_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|c| *c == ZEROS[..c.len()])
}

/// Reads the record `seq` at `at`.
pub(super) fn find(segment: &[u8], epoch: u64, seq: u64, at: usize) -> Found<'_> {
    let Some(head_bytes) = segment.get(at..at + RECORD_HEAD) else {
        return Found::End;
    };
    let rest = &segment[at + RECORD_HEAD..];
    if all_zero(head_bytes) && all_zero(rest) {
        return Found::End;
    }
    let end = || match later(segment, epoch, seq, at + ALIGN) {
        true => Found::Damaged("a record is missing, later ones are there"),
        false => Found::End,
    };
    let Some(head) = record_head(segment, at) else {
        // A sector is written as a whole, and a simulated disk stops at an octet: behind a torn head there is nothing.
        return match all_zero(head_bytes) || all_zero(rest) {
            true => end(),
            false => Found::Damaged("the head of a record does not match its checksum"),
        };
    };
    if head.epoch != epoch || head.seq != seq {
        return Found::Damaged("a record is out of order");
    }
    let stop = head.len + TAIL.len();
    let (Some(sealed), Some(with_tail)) = (rest.get(..head.len), rest.get(..stop)) else {
        return Found::Damaged("a record is longer than its segment");
    };
    if crc32c::crc32c(sealed) == head.crc {
        let next = (at + RECORD_HEAD + stop).next_multiple_of(ALIGN);
        return Found::Record(sealed, next);
    }
    // A write that did not end leaves zeros: at its end, or in whole sectors. Damage to what was written leaves none.
    let first_sector = (at + RECORD_HEAD).next_multiple_of(SECTOR);
    let last_octet = at + RECORD_HEAD + stop;
    let hole = (first_sector..last_octet)
        .step_by(SECTOR)
        .filter(|s| s + SECTOR <= last_octet)
        .any(|s| all_zero(&segment[s..s + SECTOR]));
    match hole || with_tail[head.len..] != TAIL {
        true => end(),
        false => Found::Damaged("a record does not match its checksum"),
    }
}

/// Whether a record of this segment that is not older than `seq` begins at `from` or behind.
fn later(segment: &[u8], epoch: u64, seq: u64, from: usize) -> bool {
    (from..segment.len())
        .step_by(ALIGN)
        .filter_map(|at| record_head(segment, at))
        .any(|h| h.epoch == epoch && h.seq >= seq)
}

/// The place behind the last octet that is not zero.
pub(super) fn used(segment: &[u8]) -> usize {
    let mut end = segment.len();
    while end > 0 {
        let start = end.saturating_sub(4096);
        if !all_zero(&segment[start..end]) {
            let last = segment[start..end].iter().rposition(|b| *b != 0);
            return start + last.map_or(0, |l| l + 1);
        }
        end = start;
    }
    0
}
