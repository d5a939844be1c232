//! The token that a node joins with: `NETD1-<pin>-<secret>`. The pin is the SHA-256 of the CA's certificate, so that the
//! joining node knows the manager before it tells the secret; which secret it is decides the role.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    str::FromStr,
    time::{Duration, Instant},
};

use super::IdentityError;

/// Octets of a token's secret: 160 bits.
pub const SECRET: usize = 20;
/// Octets of a pin (SHA-256).
const PIN: usize = 32;
const PREFIX: &str = "NETD1";
/// RFC 4648 6, in lower case, without padding.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the CA's certificate (DER).
    pub pin: [u8; PIN],
    /// What is told to the manager.
    pub secret: [u8; SECRET],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Logs must not hold the secret.
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-{}", encode(&self.pin), encode(&self.secret))
    }
}

impl FromStr for Token {
    type Err = IdentityError;
    fn from_str(s: &str) -> Result<Self, IdentityError> {
        let wrong = || IdentityError::Token("is not of the form NETD1-<pin>-<secret>");
        if s.len() > 256 {
            return Err(wrong());
        }
        let mut parts = s.trim().split('-');
        if parts.next() != Some(PREFIX) {
            return Err(IdentityError::Token("does not begin with NETD1-"));
        }
        let mut part = || parts.next().and_then(decode).ok_or_else(wrong);
        let (pin, secret) = (part()?, part()?);
        if parts.next().is_some() {
            return Err(wrong());
        }
        let short = |_| IdentityError::Token("is cut short");
        Ok(Token {
            pin: pin.try_into().map_err(short)?,
            secret: secret.try_into().map_err(short)?,
        })
    }
}

impl Token {
    /// Whether one of the certificates (PEM) is the CA's that the token pins.
    pub fn pins(&self, ca: &str) -> bool {
        use ring::digest::{SHA256, digest};
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        CertificateDer::pem_slice_iter(ca.as_bytes())
            .flatten()
            .any(|der| digest(&SHA256, &der).as_ref() == self.pin)
    }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    let mut out = String::new();
    let (mut buffer, mut bits) = (0u32, 0);
    for b in bytes {
        buffer = (buffer << 8) | u32::from(*b);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(digit(buffer >> bits));
        }
    }
    if bits > 0 {
        out.push(digit(buffer << (5 - bits)));
    }
    out
}

fn digit(n: u32) -> char {
    let i = usize::try_from(n & 31).unwrap_or(0);
    BASE32.get(i).map_or('?', |b| char::from(*b))
}

pub(super) fn decode(s: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut buffer, mut bits) = (0u32, 0);
    for c in s.bytes() {
        let value = BASE32.iter().position(|b| *b == c.to_ascii_lowercase())?;
        buffer = ((buffer << 5) | u32::try_from(value).ok()?) & 0xffff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from((buffer >> bits) & 0xff).ok()?);
        }
    }
    // Bits left over must be padding.
    (buffer & ((1 << bits) - 1) == 0).then_some(out)
}

/// Whom a try is counted for: in IPv6 one host has a whole /64.
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(a) => IpAddr::V6((u128::from(a) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// Bounds how fast secrets can be guessed: an address is let in again a minute after its last failures. So are all, after
/// very many, which bounds the memory; a few attackers must not keep good nodes out.
#[derive(Debug, Default)]
pub struct Gate {
    failed: BTreeMap<IpAddr, (u32, Instant)>,
    all: Option<(u32, Instant)>,
}

impl Gate {
    /// Failures of one address within [`Gate::WINDOW`].
    pub const PER_ADDRESS: u32 = 5;
    /// Failures of all together within [`Gate::WINDOW`].
    pub const TOTAL: u32 = 4096;
    /// See above.
    pub const WINDOW: Duration = Duration::from_secs(60);

    /// Whether a try from this address may be looked at now.
    pub fn open(&mut self, now: Instant, from: IpAddr) -> bool {
        let from = source(from);
        let fresh = |since: &Instant| now.saturating_duration_since(*since) < Self::WINDOW;
        self.failed.retain(|_, (_, since)| fresh(since));
        self.all = self.all.filter(|(_, since)| fresh(since));
        self.all.is_none_or(|(n, _)| n < Self::TOTAL)
            && self.failed.get(&from).is_none_or(|(n, _)| *n < Self::PER_ADDRESS)
    }

    /// Counts a failure. The map stays small: [`Gate::TOTAL`] failures close the gate for all.
    pub fn failed(&mut self, now: Instant, from: IpAddr) {
        let entry = self.failed.entry(source(from)).or_insert((0, now));
        *entry = (entry.0 + 1, now);
        let (n, since) = self.all.unwrap_or((0, now));
        self.all = Some((n + 1, since));
    }
}
