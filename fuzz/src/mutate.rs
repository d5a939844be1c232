//! Changes of an example: what breaks parsers is a length that lies, a number at its end, a part that is missing, comes
//! twice or comes from elsewhere.

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

/// Longest input, octets: what one frame may have costs more time than it tells.
const MAX: usize = 64 << 10;

/// Numbers at which code changes its mind.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// Pieces of text that parsers trip over.
const WORDS: &[&str] = &[
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "-1",
    "0",
    "1e999",
    "18446744073709551615",
    "18446744073709551616",
    "4294967295",
    "65535",
    "65536",
    "\\u0000",
    "\\ud800",
    "\u{fffd}",
    "::",
    "::ffff:0:0",
    "0.0.0.0/0",
    "255.255.255.255",
    "::/0",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "/",
    "%",
    "[1:99999999]",
    "-----BEGIN CERTIFICATE-----",
    "\n",
    "\0",
    " ",
    "\"\":",
    "0.0.0.0/32",
    "::/128",
    "999999999999h",
    "é",
];

/// A changed copy of one of `seeds`.
pub(crate) fn mutated(seeds: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut out = seeds.choose(rng).cloned().unwrap_or_default();
    for _ in 0..rng.random_range(1..=6) {
        change(&mut out, seeds, rng);
    }
    out.truncate(MAX);
    out
}

/// A place in `0..=len`; often one of the first, where heads are.
fn place(len: usize, rng: &mut StdRng) -> usize {
    match rng.random_range(0..4) {
        0 => rng.random_range(0..=len.min(16)),
        _ => rng.random_range(0..=len),
    }
}

/// A short piece of `0..len`.
fn piece(len: usize, rng: &mut StdRng) -> std::ops::Range<usize> {
    let from = place(len, rng);
    let most = (len - from).min(if rng.random_range(0..8) == 0 { len } else { 16 });
    from..from + rng.random_range(0..=most)
}

fn change(out: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut StdRng) {
    let at = place(out.len(), rng);
    match rng.random_range(0..12) {
        0 => {
            if let Some(b) = out.get_mut(at) {
                *b ^= 1 << rng.random_range(0..8);
            }
        }
        1 => {
            if let Some(b) = out.get_mut(at) {
                *b = rng.random();
            }
        }
        2 => {
            // A number beside the one that is there.
            if let Some(b) = out.get_mut(at) {
                *b = b.wrapping_add_signed(rng.random_range(-4..=4));
            }
        }
        3 => {
            let edge = EDGES.choose(rng).copied().unwrap_or(0);
            write(out, at, &number(edge, rng));
        }
        4 => {
            let edge = EDGES.choose(rng).copied().unwrap_or(0);
            insert(out, at, &number(edge, rng));
        }
        5 => drop(out.drain(piece(out.len(), rng))),
        6 => {
            let copy = out[piece(out.len(), rng)].to_vec();
            insert(out, at, &copy);
        }
        7 => out.truncate(at),
        8 => {
            let noise: Vec<u8> = (0..rng.random_range(1..16)).map(|_| rng.random()).collect();
            insert(out, at, &noise);
        }
        9 => {
            let word = WORDS.choose(rng).copied().unwrap_or_default();
            match rng.random() {
                true => write(out, at, word.as_bytes()),
                false => insert(out, at, word.as_bytes()),
            }
        }
        10 => number_in_text(out, rng),
        _ => {
            // The end of another one behind the beginning of this one.
            let other = seeds.choose(rng).cloned().unwrap_or_default();
            let from = place(other.len(), rng);
            out.truncate(at);
            out.extend_from_slice(&other[from..]);
        }
    }
}

/// A number in one of the ways in which numbers are written.
fn number(n: u64, rng: &mut StdRng) -> Vec<u8> {
    let (big, little) = (n.to_be_bytes(), n.to_le_bytes());
    match rng.random_range(0..7) {
        0 => vec![little[0]],
        1 => big[6..].to_vec(),
        2 => big[4..].to_vec(),
        3 => big.to_vec(),
        4 => little[..4].to_vec(),
        5 => little.to_vec(),
        _ => varint(n),
    }
}

/// As postcard writes it: seven bits an octet, the lowest first.
fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(u8::try_from(n & 0x7f).unwrap_or(0) | 0x80);
        n >>= 7;
    }
    out.push(u8::try_from(n).unwrap_or(0));
    out
}

fn write(out: &mut [u8], at: usize, bytes: &[u8]) {
    let end = (at + bytes.len()).min(out.len());
    if let Some(there) = out.get_mut(at..end) {
        there.copy_from_slice(&bytes[..end - at]);
    }
}

fn insert(out: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    out.splice(at..at, bytes.iter().copied());
}

/// Puts another number in the place of one that is written in digits.
fn number_in_text(out: &mut Vec<u8>, rng: &mut StdRng) {
    let digits: Vec<usize> = (0..out.len()).filter(|i| out[*i].is_ascii_digit()).collect();
    let Some(&from) = digits.choose(rng) else {
        return;
    };
    let end = (from..out.len())
        .find(|i| !out[*i].is_ascii_digit())
        .unwrap_or(out.len());
    let edge = EDGES.choose(rng).copied().unwrap_or(0).to_string();
    out.splice(from..end, edge.into_bytes());
}
